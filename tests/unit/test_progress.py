"""Bars for a person, lines for a log file, nothing for a short step."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from scripts.lib import progress
from scripts.lib.progress import Progress, clock, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clockwork(monkeypatch):
    """A clock that the test moves: [seconds]."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (93_784, "26 h 03 min"),
    ],
)
def test_clock(seconds, said):
    assert clock(seconds) == said


def test_a_log_file_gets_a_line_now_and_then_with_the_time_left(clockwork, caplog, capsys):
    caplog.set_level(logging.INFO)
    for _ in track(range(100), "episodes", name="frames"):
        clockwork[0] += 1
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "frames: 10 of 100 episodes (10 %), 1.00 episodes/s, 1 min 30 s left",
        "frames: 40 of 100 episodes (40 %), 1.00 episodes/s, 1 min 00 s left",
        "frames: 70 of 100 episodes (70 %), 1.00 episodes/s, 30 s left",
        "frames: 100 of 100 episodes (100 %), 1.00 episodes/s, 0 s left",
    ]
    assert capsys.readouterr().err == ""


def test_a_short_step_says_nothing_in_a_log_file(clockwork, caplog, capsys):
    caplog.set_level(logging.INFO)
    assert list(track([1, 2, 3], "episodes")) == [1, 2, 3]
    assert (caplog.records, capsys.readouterr().err) == ([], "")


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, clockwork, caplog):
    caplog.set_level(logging.INFO)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for _ in track(range(100), "episodes", name="frames"):
        clockwork[0] += 1
    assert "frames:" in screen.getvalue()
    assert "\r" in screen.getvalue()
    assert caplog.records == []
    assert screen.getvalue().rstrip(" ").endswith("\r"), "the bar goes when it is done"


def test_what_was_there_before_does_not_count_for_the_speed(clockwork):
    bar = Progress(1000, "answers", done=900)
    clockwork[0] += 10
    bar.update(50)
    assert bar.line(10.0) == "950 of 1,000 answers (95 %), 5.00 answers/s, 10 s left"


def test_bytes_are_told_in_megabytes(clockwork):
    bar = Progress(4_300_000_000, "B", done=0, name="model.safetensors")
    bar.done = 1_000_000_000
    assert bar.line(10.0) == "model.safetensors: 1,000.0 MB of 4,300.0 MB (23 %), 100.0 MB/s, 33 s left"


def test_an_unknown_total_has_no_share_and_no_end(clockwork):
    bar = Progress(None, "B")
    bar.done = 5_000_000
    assert bar.line(1.0) == "5.0 MB, 5.0 MB/s"


def test_a_generator_is_counted_and_an_error_closes_the_bar(clockwork):
    seen: list[int] = []

    def broken() -> None:
        for item in track(iter(range(5)), "episodes"):
            seen.append(item)
            if item == 2:
                raise ValueError("third")

    with pytest.raises(ValueError, match="third"):
        broken()
    assert seen == [0, 1, 2]
