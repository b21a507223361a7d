"""No input of others breaks a parser: past crashes again, hostile values at every place, bytes changed at random."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz import broken_by, fuzz_each
from tests.fuzz.targets import HOSTILE, TARGETS, attempt, parsed, places, replaced, unparsed
from tests.lib.project import ROOT

CRASHES = Path(__file__).parent / "crashes"
# so many inputs of a fixed seed, hardly any other at each call: a failure is about the change.
# `make fuzz SECONDS=600` goes further
RUNS, CEILING_S = 1500, 20


def seeds_of(name: str, folder: Path) -> list[bytes]:
    folder.mkdir()
    return TARGETS[name].seeds(folder)


@pytest.mark.parametrize("file", sorted(CRASHES.glob("*/*")), ids=lambda file: f"{file.parent.name}-{file.name}")
def test_past_crash_is_refused_or_read(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz", "--target", file.parent.name, "--file", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_whole_files_are_accepted(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / "own/scratch").mkdir(parents=True)
    outcomes = [attempt(TARGETS[name], seed, folder) for seed in seeds_of(name, tmp_path / "seeds")]
    assert "" in outcomes  # a target that refuses everything fuzzes nothing


@pytest.mark.parametrize("name", sorted(name for name, target in TARGETS.items() if target.text and name != "prompt"))
def test_hostile_value_at_every_place(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / "own/scratch").mkdir(parents=True)
    tried = 0
    # every preset has the same keys
    for seed in seeds_of(name, tmp_path / "seeds")[: 1 if name == "config" else None]:
        documents = parsed(seed)
        for number, (head, value) in enumerate(documents or ()):
            for at in places(value) if value is not ... else ():
                # a recipe has over 100 keys and a slow check: three values each, another three at the next key
                some = [HOSTILE[(tried + 7 * i) % len(HOSTILE)] for i in range(3)]
                for new in some if name == "config" else (*HOSTILE, ...):
                    changed = [*documents[:number], (head, replaced(value, at, new)), *documents[number + 1 :]]
                    attempt(TARGETS[name], unparsed(changed), folder)
                    tried += 1
    assert tried > 50


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_bytes_changed_at_random(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / "own/scratch").mkdir(parents=True)
    seeds = seeds_of(name, tmp_path / "seeds")

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def change(data: st.DataObject) -> None:
        changed = bytearray(data.draw(st.sampled_from(seeds)))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
            kind = data.draw(st.sampled_from(("set", "cut", "insert", "remove", "double")))
            if kind == "set" and changed:
                changed[at] = data.draw(st.integers(0, 255))
            elif kind == "cut":
                del changed[at:]
            elif kind == "insert":
                changed[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            elif kind == "remove":
                del changed[at : at + data.draw(st.integers(1, 16))]
            else:
                changed[at:at] = changed[at : at + 64]
        attempt(TARGETS[name], bytes(changed), folder)

    change()


@pytest.fixture(scope="module")
def fuzzed() -> dict[str, subprocess.CompletedProcess]:
    """Every parser fuzzed with some inputs, on all cores. A fixed seed; long runs by hand draw their own."""
    return dict(fuzz_each(sorted(TARGETS), "--runs", str(RUNS), "--seconds", str(CEILING_S), "--seed", "1"))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_atheris_finds_nothing_within_some_inputs(name: str, fuzzed: dict[str, subprocess.CompletedProcess]) -> None:
    done = fuzzed[name]
    assert done.returncode == 0, broken_by(done)
    assert "INITED cov:" in done.stderr  # it fuzzed, guided by coverage
