"""A kill that comes too late tests nothing: the fault matrix strikes earlier, from a fresh copy."""

from __future__ import annotations

import subprocess

import pytest

from tests.faults import matrix


class Ticking:
    """Stands in for a case: a job of `seconds`, struck by the clock or at a rename."""

    def __init__(self, seconds: float, leaves_orphans: bool = True) -> None:
        self.seconds, self.leaves_orphans = seconds, leaves_orphans
        self.asked: list[str] = []
        self.notes: list[str] = []
        self.copies = 1

    def hook(self, mode: str, **when: str) -> dict[str, str]:
        return when

    def make(self, **when: str) -> subprocess.CompletedProcess[str]:
        self.asked.append(when.get("after_s", "rename"))
        self.when = when
        return subprocess.CompletedProcess([], int(self.fired() is not None), "", "")

    def fired(self) -> dict | None:
        late = self.when["at"] == "0" and float(self.when["after_s"]) > self.seconds
        return None if late else {"where": "there"}

    def processes(self) -> list[int]:
        at_the_end = self.when["at"] == "0" and float(self.when["after_s"]) == self.seconds
        return [1] if self.leaves_orphans and not at_the_end else []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self) -> None:
        self.copies += 1

    def forget_work(self) -> None:
        pass


@pytest.fixture(autouse=True)
def by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "moment", lambda case: {"at": "0", "after_s": "9.0"})


@pytest.mark.parametrize(
    ("seconds", "asked", "note"),
    [
        (20.0, ["9.0"], None),
        (9.0, ["9.0", "3.0"], "ended at the kill; tried earlier"),
        (5.0, ["9.0", "3.0"], "finished before the kill; tried earlier"),
        (1.0, ["9.0", "3.0", "rename"], "finished before the kill; tried earlier"),
    ],
)
def test_late_kill_is_tried_earlier_from_a_fresh_copy(seconds: float, asked: list[str], note: str | None) -> None:
    case = Ticking(seconds)
    done, when = matrix.strike(case, "kill_snakemake", case.processes)
    assert done.returncode == 1
    assert when == case.when
    assert case.asked == asked
    assert case.copies == len(asked)
    assert case.notes == [note] * (len(asked) - 1) + ["there"] if note else case.notes == ["there"]


def test_job_that_dies_with_snakemake_at_a_rename_is_not_tried_again() -> None:
    """There the hook holds the job, so its absence is a finding: kill_snakemake breaks the case."""
    case = Ticking(1.0, leaves_orphans=False)
    matrix.strike(case, "kill_snakemake", case.processes)
    assert case.asked == ["9.0", "3.0", "rename"]
    assert case.processes() == []
