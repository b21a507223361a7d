"""DVC's part: commit what a successful run made, and lend environments to DVC's temporary experiment folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import yaml

from scripts.lib.errors import EqaError
from scripts.lib.provenance import LOCK, STATE, Policy, absent_folders

PENDING = STATE / "uncommitted"  # there from the end of a successful run until DVC has taken its results
LOCK_TRIES = 5  # another dvc command (a push, say) holds DVC's lock for a while
LOCK_WAIT_S = 3.0


def dvc_commits(config_root: Path = Path(".")) -> tuple[bool, str]:
    """Whether a successful run is followed by `dvc commit`, and in words why not.

    No: inside DVC, which saves outputs itself; with EQA_DVC_COMMIT=0; without dvc, outside git, without dvc.yaml.
    """
    if "DVC_ROOT" in os.environ:
        return False, ""
    if os.environ.get("EQA_DVC_COMMIT", "1") == "0":
        return False, "EQA_DVC_COMMIT=0: results are not committed to DVC; `dvc commit -f` does it later"
    if not (config_root / "dvc.yaml").is_file():
        return False, ""
    if not dvc_command():
        return False, "dvc is not installed: results are not versioned; `uv sync --frozen` brings it"
    if not (config_root / ".dvc").is_dir() or not _in_git():
        return False, "this folder is no git and DVC repository: results are not versioned; clone it with git"
    return True, ""


def dvc_command() -> list[str]:
    """How to call the dvc of this environment; [] where there is none."""
    beside = Path(sys.executable).with_name("dvc")
    found = str(beside) if beside.is_file() else shutil.which("dvc")
    return [found] if found else []


def mark_uncommitted() -> None:
    """Remember that results wait for DVC, so that a later start makes up for a commit that did not come about."""
    PENDING.parent.mkdir(parents=True, exist_ok=True)
    PENDING.touch()


def is_stored(path: str, lock: Path = Path("dvc.lock"), ignored: Path = Path(".dvcignore")) -> bool:
    """Whether DVC stores a path of this project: it lies in an output of its stage, and .dvcignore leaves it in.

    What is made by name alone, such as a download, DVC never sees. Before the first commit everything counts as stored.
    """
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        outs = [str(out["path"]) for stage in stages.values() for out in stage["outs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return True
    left_out = []
    with contextlib.suppress(OSError):
        left_out = [line.strip("/ ") for line in ignored.read_text(encoding="utf-8").splitlines() if line[:1] == "/"]

    def within(folders: Iterable[str]) -> bool:
        return any(path == folder or path.startswith(f"{folder}/") for folder in folders)

    return within(outs) and not within(left_out)


def commit_results(policy: Policy) -> None:
    """Let DVC take the results of a finished run.

    Raises:
        EqaError: `dvc commit` failed; what it said, and the command to run once that is mended.
    """
    mark_uncommitted()
    absent = absent_folders(policy)
    command = [*dvc_command(), "commit", "-f"]  # without -q, which hides the reason of a failure
    if absent:
        command = [sys.executable, "-m", "scripts.lib.dvc_commit_present", *absent]
    for attempt in range(LOCK_TRIES):
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        errors = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("ERROR")]
        # DVC 3.67.1 ends with 0 after a full disk, saying so for each file that it could not store
        if done.returncode == 0 and not errors:
            PENDING.unlink(missing_ok=True)
            return
        said = (done.stderr or done.stdout).strip()
        if "lock" not in said.lower() or attempt == LOCK_TRIES - 1:
            break
        time.sleep(LOCK_WAIT_S)
    line = " ".join((errors or [said])[0].split())[:400]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise EqaError(
        f"dvc commit failed: {line}{more}; the results are in place: mend that, then `dvc commit -f` or `snakemake`"
    )


def link_environments(root: Path) -> list[str]:
    """In a temporary folder of `dvc exp run --temp`, use the environments of the checkout that it was made from.

    They are git-ignored, so DVC does not bring them; uv would build each again. Only where the lock files are equal.

    Returns:
        The linked folders, relative to `root`.
    """
    parts = root.resolve().parts
    if ".dvc" not in parts or "exps" not in parts[parts.index(".dvc") :]:
        return []
    home = Path(*parts[: parts.index(".dvc")])
    linked = []
    for lock in sorted([root / "uv.lock", *root.glob("envs/*/uv.lock")]):
        here = lock.parent / ".venv"
        there = home / lock.parent.relative_to(root) / ".venv"
        twin = there.with_name("uv.lock")
        if not os.path.lexists(here) and there.is_dir() and twin.is_file() and twin.read_bytes() == lock.read_bytes():
            here.symlink_to(there.resolve(), target_is_directory=True)
            linked.append(here.relative_to(root).as_posix())
    return linked


def _in_git() -> bool:
    try:
        return subprocess.run(["git", "rev-parse", "--git-dir"], capture_output=True).returncode == 0
    except OSError:
        return False


__all__ = [
    "LOCK",
    "PENDING",
    "commit_results",
    "dvc_command",
    "dvc_commits",
    "is_stored",
    "link_environments",
    "mark_uncommitted",
]
