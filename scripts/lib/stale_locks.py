"""Snakemake's lock of a folder outlives a killed Snakemake; a lock of the system on an open file does not.

Each Snakemake of this project shares a system lock for as long as it lives. Whoever can have it alone is the only one
alive, so what lies in .snakemake/locks was left by a killed one and is taken away: the same command then goes on, without
`snakemake --unlock`. Where that cannot be known, nothing is touched and Snakemake says itself that the folder is locked:
a Snakemake of another machine in the same folder, a file system without such locks, or a job of the killed run that still
writes, here or on a node of Slurm's. Training and prediction on this machine have locks of their own and may be waited for
(scripts/lib/checkpoints.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from scripts.lib.files import remove

WAITED_FOR = ("scripts.train_adapter", "scripts.lib.trainer", "scripts.lib.slurm_node", "scripts.predict")
SQUEUE_S = 10.0  # patience with a controller that does not answer
_MODULE = re.compile(rb"\0-m\0(scripts\.[a-z_.]+)(?=\0)")
_HELD: list[int] = []  # stays open while this process lives


def jobs_alive(folder: Path, proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Running `python -m scripts.X` whose working folder is `folder`: (process id, scripts.X), by id.

    X is the last one of the command line: scripts.lib.devices starts another script.
    """
    found = []
    for process in proc.iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if os.readlink(process / "cwd") != str(folder.resolve()):
                continue
            named = _MODULE.findall((process / "cmdline").read_bytes() + b"\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        if named:
            found.append((int(process.name), named[-1].decode()))
    return sorted(found)


def slurm_jobs(folder: Path) -> list[str]:
    """Ids of this user's Slurm jobs, waiting or running, whose working folder is `folder`; not the one we are in.

    [] where there is no Slurm, or none that answers within SQUEUE_S seconds: local runs do not depend on it.
    """
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    listed = [line.strip().partition("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    ours, here = os.environ.get("SLURM_JOB_ID", ""), folder.resolve()
    return [job for job, _, place in listed if place and job != ours and Path(place).resolve() == here]


def release(folder: Path, jobs: Iterable[tuple[int, str]] | None = None) -> str:
    """Take the system lock of `folder` for this process's life; remove a dead Snakemake's locks.

    Args:
        folder: Snakemake's working folder.
        jobs: what `jobs_alive` says; a test may say it.
    Returns:
        What was done or why it was not, one line; "" where there was nothing to do.
    """
    locks, mine = folder / ".snakemake/locks", folder / ".snakemake/running" / (platform.node() or "unknown")
    try:
        mine.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(mine, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by jobs, which may outlive this process
    except OSError:
        return ""  # a read-only folder: nothing is run here
    _HELD.append(handle)
    said = ""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elsewhere = sorted(path.name for path in mine.parent.iterdir() if path != mine and path.stat().st_size)
        if locks.is_dir() and any(locks.iterdir()):
            alive = [job for job in (jobs_alive(folder) if jobs is None else jobs) if job[1] not in WAITED_FOR]
            if elsewhere:
                said = f"a Snakemake of machine {elsewhere[0]} may be at work here; if not, remove {mine.with_name(elsewhere[0])}"
            elif alive:
                said = f"process {alive[0][0]} ({alive[0][1]}) of a killed run still works here; wait for it or kill it"
            elif submitted := slurm_jobs(folder):
                said = (
                    f"{len(submitted)} Slurm job(s) of a killed run may still write here; wait for their end or run "
                    f"`scancel {' '.join(submitted)}`"
                )
            else:
                remove(locks)
                said = "an earlier Snakemake was killed here; its lock is removed"
    except OSError:
        pass  # another Snakemake is alive, or there are no such locks here
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)
        os.pwrite(handle, b"alive", 0)
    return said


def tell(folder: Path) -> None:
    """`release`, its line on stderr."""
    said = release(folder)
    if said:
        print(f"lock: {said}", file=sys.stderr)


def forget() -> None:
    """At the end of a Snakemake: its machine is no longer at work here, unless another one shares the lock."""
    for handle in _HELD:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
        os.close(handle)
    _HELD.clear()
