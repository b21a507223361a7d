"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.lib import project

ROOT = project.ROOT


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def openeqa() -> Path:
    """Folder with Open-EQA's real questions, prompts and one clip; skips, saying why, where it is absent."""
    folder = project.openeqa_folder()
    if not (folder / "open-eqa-v0.json").is_file():
        pytest.skip(f"no open-eqa-v0.json in {folder}; set OPENEQA_DATA to a folder with Open-EQA's data")
    return folder.resolve()


def make_finished_demo() -> Path:
    """A committed clone in which the demo has run to its end. Built once for equal sources; copy it, never change it."""
    store = ROOT / "work/finished_demo"
    folder = store / project.source_key()
    done = folder.with_suffix(".done")
    if not done.exists():
        shutil.rmtree(store, ignore_errors=True)
        project.make_clone(folder)
        run = project.call(folder, "snakemake", "--cores", "8")
        (folder / ".git/first_run.txt").write_text(run.stdout + run.stderr)
        status = project.call(folder, "git", "status", "--porcelain", "-uall").stdout
        (folder / ".git/status_after_run.txt").write_text(status)
        project.call(folder, "git", "add", "-A")
        project.call(folder, "git", "commit", "-q", "--allow-empty", "-m", "demo")
        done.touch()
    return folder


@pytest.fixture(scope="session")
def finished_demo() -> Path:
    """The finished demo of this source: see `make_finished_demo`."""
    return make_finished_demo()


@pytest.fixture
def demo_copy(finished_demo: Path, tmp_path: Path) -> Path:
    """A copy of the finished demo that a test may change."""
    return project.copy_clone(finished_demo, tmp_path / "demo")
