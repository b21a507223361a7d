"""Checkpoints that can be trusted: marked when complete, checked before use, removed when they are neither.

A run folder (work/train/HASH) holds checkpoint-N folders, `finished.json` once training has ended, and locks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.lib.errors import EqaError
from scripts.lib.files import file_record, folder_files, remove, write_json

log = logging.getLogger(__name__)

COMPLETE = "complete.json"  # in a checkpoint: size and sha256 of each of its files
FINISHED = "finished.json"  # in a run folder: the same of what training left, and its facts
STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-([0-9]+)")


def step_of(folder: Path) -> int:
    """Optimizer steps after which a checkpoint was written."""
    return int(_NAME.fullmatch(folder.name).group(1))


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first, complete or not."""
    found = [path for path in run_dir.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def mark_complete(folder: Path) -> None:
    """Record every file of a checkpoint just written; from here on it may be resumed from."""
    write_json(folder / COMPLETE, {name: file_record(folder / name) for name in folder_files(folder, {COMPLETE})})


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was marked and every file still is what it was."""
    try:
        files = json.loads((folder / COMPLETE).read_bytes())
        return bool(files) and all(file_record(folder / name) == record for name, record in files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def best_of(folder: Path) -> Path | None:
    """The checkpoint that a checkpoint's trainer state calls the best so far; None if it names none."""
    try:
        step = json.loads((folder / STATE).read_bytes()).get("best_global_step")
    except (OSError, ValueError, AttributeError):
        return None
    return folder.with_name(f"checkpoint-{step}") if step else None


def newest_complete(run_dir: Path, needs_best: bool) -> Path | None:
    """The checkpoint to go on from; incomplete and corrupt ones are removed, with a line each.

    Args:
        run_dir: folder of the run.
        needs_best: config `train.load_best`: the best checkpoint so far has to be whole as well, else the end of the
            training would hand over another one in silence.
    """
    good = {}
    for folder in checkpoints(run_dir):
        if is_complete(folder):
            good[folder] = None
        else:
            log.info("%s is incomplete or corrupt; removed", folder)
            remove(folder)
    for folder in reversed(list(good)):
        best = best_of(folder)
        if not needs_best or best is None or best in good:
            return folder
        log.info("%s is the best of %s and gone; looking further back", best, folder)
        remove(folder)
    return None


def rotate(run_dir: Path, keep: int) -> None:
    """Remove old checkpoints: the newest `keep` complete ones stay, and what each of them calls the best.

    Without its best an older one could not be gone on from (`newest_complete`), should the newest be damaged.
    """
    complete = [folder for folder in checkpoints(run_dir) if (folder / COMPLETE).is_file()]
    if not complete:
        return
    kept = complete[-keep:]
    stay = {*kept, *map(best_of, kept)}
    for folder in complete:
        if folder not in stay:
            (folder / COMPLETE).unlink()  # first, so that a half-removed one is never taken for whole
            remove(folder)


def write_finished(run_dir: Path, names: list[str], facts: dict) -> None:
    """Mark a training as ended.

    Args:
        names: files in `run_dir` that later steps take over.
        facts: kept beside their hashes.
    """
    write_json(run_dir / FINISHED, {**facts, "files": {name: file_record(run_dir / name) for name in sorted(names)}})


def read_finished(run_dir: Path) -> dict | None:
    """Facts of a training that has ended and whose files are whole; None otherwise."""
    try:
        facts = json.loads((run_dir / FINISHED).read_bytes())
        if all(file_record(run_dir / name) == record for name, record in facts["files"].items()):
            return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


@contextlib.contextmanager
def held(path: Path, what: str, patience_s: float = -1) -> Iterator[None]:
    """Hold a lock that dies with its holder; wait for whoever has it, saying so in one line.

    The lock lies on the open file, so kill -9 frees it; an orphan whose parent was killed keeps it while it lives.

    Args:
        path: lock file.
        what: what the lock guards, for the line.
        patience_s: longest wait; 0 for none, -1 for ever. Unit: seconds.
    Raises:
        EqaError: still held after `patience_s`.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    holder = path.with_name(path.name + ".holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = _read(holder) or "unknown"
        if patience_s:
            log.info("%s: process %s is still at it (%s); waiting for it, kill it to start over", what, pid, path)
        try:
            lock.acquire(timeout=patience_s, poll_interval=0.5)
        except Timeout:
            raise EqaError(
                f"{path}: {what} is still held by process {pid} after {patience_s:g} s; wait for it or kill it"
            ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
