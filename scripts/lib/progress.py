"""How far a long script is and how long it still takes: a bar at a terminal, a line now and then in a log file.

    for episode in track(episodes, "episodes"):
        ...

Bars and lines go to stderr and say nothing of a result, so they may hold times.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_LINE_S = 10.0  # a step of seconds needs no line
BETWEEN_LINES_S = 30.0


class Progress:
    """A count that goes up to `total`. A context manager; leaving it takes the bar away.

    Args:
        total: how many there are; None where that is not known.
        unit: what is counted, in the plural: "episodes"; "B" for bytes.
        done: how many were there before, as after an interruption; they do not count for the speed.
        name: stands before the bar.
    """

    def __init__(self, total: int | None, unit: str, done: int = 0, name: str = "") -> None:
        from tqdm import tqdm

        self.total, self.unit, self.done, self.name = total, unit, done, name
        self.before, self.started = done, time.monotonic()
        self.next_line = self.started + FIRST_LINE_S
        bytes_ = unit == "B"
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name or None,
            unit="B" if bytes_ else f" {unit}",
            unit_scale=bytes_,
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def update(self, count: int = 1) -> None:
        """Add to the count."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now >= self.next_line:
            self.next_line = now + BETWEEN_LINES_S
            log.info("%s", self.line(now - self.started))

    def line(self, seconds: float) -> str:
        """For a log: how many of how many, how fast, how long still.

        Args:
            seconds: since the start.
        """
        many = _amount(self.done, self.unit)
        if self.total:
            first = many.removesuffix(f" {self.unit}")
            many = f"{first} of {_amount(self.total, self.unit)} ({100 * self.done // self.total} %)"
        rate = (self.done - self.before) / seconds if seconds > 0 else 0.0
        parts = [f"{self.name}: {many}" if self.name else many]
        if rate > 0:
            parts.append(f"{_amount(rate, self.unit)}/s")
            if self.total:
                parts.append(f"{clock((self.total - self.done) / rate)} left")
        return ", ".join(parts)


def track(items: Iterable[T], unit: str, total: int | None = None, name: str = "") -> Iterator[T]:
    """The items one by one, counted when the caller asks for the next.

    Args:
        items: what is gone through; its length is taken where it has one.
        unit: what is counted, in the plural.
        total: how many items there are, where they have no length.
        name: stands before the bar.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(total, unit, name=name) as progress:
        for item in items:
            yield item
            progress.update()


def clock(seconds: float) -> str:
    """Seconds as 42 s, 3 min 07 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _amount(number: float, unit: str) -> str:
    if unit == "B":
        return f"{number / 1e6:,.1f} MB"
    return f"{number:,.2f} {unit}" if isinstance(number, float) else f"{number:,} {unit}"
