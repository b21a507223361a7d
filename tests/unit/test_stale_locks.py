"""A killed Snakemake's lock is removed by the next one, a living one's is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib import stale_locks

HOLD = "import sys, pathlib; from scripts.lib import stale_locks; print(repr(stale_locks.release(pathlib.Path('.'))), flush=True)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a lock in it."""
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.output.lock").write_text("results/adapter/manifest.json\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    stale_locks.forget()


def another(folder: Path, root: Path, *words: str) -> subprocess.Popen:
    """A process that takes the system lock, says what it found, and lives until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD + "; sys.stdin.read()", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_lock_of_a_killed_one_is_removed_once(folder: Path, root: Path) -> None:
    first = another(folder, root)
    assert "its lock is removed" in first.stdout.readline()
    (folder / ".snakemake/locks").mkdir()
    (folder / ".snakemake/locks/0.output.lock").write_text("x\n")
    assert stale_locks.release(folder) == "", "the first one is alive"
    assert (folder / ".snakemake/locks/0.output.lock").exists()
    stale_locks.forget()
    first.kill()
    first.wait()
    assert "its lock is removed" in stale_locks.release(folder)
    assert not (folder / ".snakemake/locks").exists()


def test_lock_stays_while_a_job_of_the_killed_run_writes(folder: Path) -> None:
    said = stale_locks.release(folder, [(7, "scripts.train_adapter"), (9, "scripts.merge_adapter")])
    assert "process 9 (scripts.merge_adapter)" in said
    assert (folder / ".snakemake/locks/0.output.lock").exists()


def test_training_of_a_killed_run_has_a_lock_of_its_own(folder: Path) -> None:
    assert "removed" in stale_locks.release(folder, [(7, "scripts.train_adapter"), (8, "scripts.predict")])


def test_lock_stays_where_another_machine_may_be_at_work(folder: Path) -> None:
    (folder / ".snakemake/running").mkdir()
    (folder / ".snakemake/running/other-machine").write_text("alive")
    assert "other-machine" in stale_locks.release(folder)
    assert (folder / ".snakemake/locks/0.output.lock").exists()
    (folder / ".snakemake/running/other-machine").write_text("")
    stale_locks.forget()
    assert "removed" in stale_locks.release(folder)


def squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A stand-in for Slurm's program, first on the PATH; it keeps what it was asked."""
    (folder / "bin").mkdir()
    (folder / "bin/squeue").write_text(f'#!/bin/sh\necho "$*" > {folder}/bin/asked\n{script}\n')
    (folder / "bin/squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_lock_stays_while_slurm_jobs_of_the_killed_run_may_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("home") / "project"
    link.symlink_to(folder)
    squeue(folder, monkeypatch, f"echo '11|{folder}'; echo '12|{folder.parent}'; echo '13_4|{link}'")
    said = stale_locks.release(folder)
    assert "2 Slurm job(s)" in said
    assert "`scancel 11 13_4`" in said
    assert len(said.splitlines()) == 1
    assert (folder / ".snakemake/locks/0.output.lock").exists()
    assert f"--user={os.getuid()}" in (folder / "bin/asked").read_text()
    stale_locks.forget()
    (folder / "bin/squeue").write_text(f"#!/bin/sh\necho '12|{folder.parent}'\n")
    assert "removed" in stale_locks.release(folder)


def test_the_slurm_job_that_snakemake_itself_runs_in_is_no_obstacle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue(folder, monkeypatch, f"echo '11|{folder}'")
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    assert "removed" in stale_locks.release(folder)


@pytest.mark.parametrize("script", ["echo broken >&2; exit 1", "echo '11|'; echo; echo words", "sleep 30"])
def test_a_slurm_that_does_not_answer_does_not_keep_the_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    squeue(folder, monkeypatch, script)
    monkeypatch.setattr(stale_locks, "SQUEUE_S", 0.5)
    began = time.monotonic()
    assert "removed" in stale_locks.release(folder)
    assert time.monotonic() - began < 5


def test_slurm_is_not_asked_where_nothing_is_locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue(folder, monkeypatch, f"echo '11|{folder}'")
    (folder / ".snakemake/locks/0.output.lock").unlink()
    assert stale_locks.release(folder) == ""
    assert not (folder / "bin/asked").exists()


def test_an_ended_one_leaves_no_mark_and_no_lock_means_no_word(folder: Path) -> None:
    (folder / ".snakemake/locks/0.output.lock").unlink()
    assert stale_locks.release(folder) == ""
    (mark,) = (folder / ".snakemake/running").iterdir()
    assert mark.read_text() == "alive"
    stale_locks.forget()
    assert mark.read_text() == ""


def test_jobs_are_found_by_folder_and_module(folder: Path) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts/slow.py").write_text("import sys\nprint(1, flush=True)\nsys.stdin.read()\n")
    # as scripts.lib.devices is called: a launcher before the script itself
    launcher = [sys.executable, "-c", "import runpy; runpy.run_module('scripts.slow')", "-m", "scripts.lib.devices"]
    line = [*launcher, "--", "python", "-m", "scripts.slow", "--shard", "0"]
    process = subprocess.Popen(line, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert stale_locks.jobs_alive(folder) == [(process.pid, "scripts.slow")]
    assert stale_locks.jobs_alive(folder.parent) == []
    process.stdin.close()
    process.wait()
    assert stale_locks.jobs_alive(folder) == []
