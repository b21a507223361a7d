"""Artifacts that break without a new time, and while a run is under way: found by tests/faults."""

from __future__ import annotations

import os

import pytest

from tests.lib.mini import cache_hashes, make_mini, plan, save, snakemake
from tests.lib.project import call, copy_clone


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = make_mini(tmp_path_factory.mktemp("built") / "mini")
    snakemake(folder)
    save(folder, "first run")
    return folder


@pytest.fixture
def mini(built, tmp_path):
    return copy_clone(built, tmp_path / "mini")


def damage(path, content: bytes, later_ns: int = 0) -> None:
    """Replace a file's content in place; its age moves by `later_ns` only."""
    before = os.stat(path)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later_ns))


def test_a_file_cut_short_that_kept_its_time_is_made_again(mini):
    path = mini / "results/sft/test.json"
    right = path.read_bytes()
    assert plan(mini) == []
    damage(path, right[: len(right) // 2])
    assert "build_sft" in plan(mini)
    snakemake(mini)
    assert path.read_bytes() == right
    assert plan(mini) == []


def test_a_file_of_the_same_length_whose_time_moved_by_less_than_a_clock_tells_is_made_again(mini):
    path = mini / "results/sft/test.json"
    right = path.read_bytes()
    assert plan(mini) == []
    damage(path, bytes(len(right)), later_ns=1)
    assert "build_sft" in plan(mini)
    snakemake(mini)
    assert path.read_bytes() == right


def test_a_file_that_dvc_put_back_and_then_broke_is_made_again(mini):
    path = mini / "results/sft/test.json"
    right = path.read_bytes()
    path.unlink()
    call(mini, "dvc", "checkout", "results/sft")
    assert plan(mini) == []
    damage(path, bytes(len(right)), later_ns=1)
    assert "build_sft" in plan(mini)
    snakemake(mini)
    assert path.read_bytes() == right


def test_what_broke_beside_a_run_is_neither_recorded_nor_committed(mini):
    """A run of another target does not look at the broken file, and must not store it as a result."""
    lock, dvc = (mini / "provenance.lock.json").read_bytes(), (mini / "dvc.lock").read_bytes()
    held = cache_hashes(mini / ".dvc/cache")
    path = mini / "results/sft/test.json"
    damage(path, b"garbage")
    (mini / "results/frames/manifest.json").unlink()
    done = snakemake(mini, "results/frames/manifest.json", check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "nothing is committed to DVC" in line]
    assert "results/sft/test.json" in line
    assert (mini / "provenance.lock.json").read_bytes() == lock
    assert (mini / "dvc.lock").read_bytes() == dvc
    assert cache_hashes(mini / ".dvc/cache") == held
    snakemake(mini)
    assert plan(mini) == []
    assert "up to date" in call(mini, "dvc", "status").stdout
