"""Bring the locked environments up to date with their lock files, once, before jobs run.

By hand:
    python -m scripts.prepare_environments --environment envs/train

Rules run `uv run --no-sync`. uv would reinstall decord at every sync, because its wheel names another Python in its
metadata than on the index, and a job would import a package while another job's sync replaces it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.errors import EqaError
from scripts.lib.files import sha256_file

STAMP = "synced-lock.sha256"  # in each .venv: hash of the lock file that it was made from


def needed_environments(config: Mapping) -> list[str]:
    """Folders whose environment a recipe's rules use, "." being the light one."""
    names = [".", "envs/train"]
    if config["deliver"]["gguf"]:
        names.append("envs/gguf")
    if config["deliver"]["lmdeploy"] or config["predict"]["engine"] == "lmdeploy":
        names.append("envs/serve")
    return names


def is_current(root: Path, name: str) -> bool:
    """Whether an environment was made from its present lock file."""
    stamp = root / name / ".venv" / STAMP
    return stamp.is_file() and stamp.read_text() == sha256_file(root / name / "uv.lock")


def prepare(root: Path, names: Iterable[str]) -> list[str]:
    """Sync those environments that are not current; others cost a hash of their lock file.

    Args:
        root: the project's folder.
        names: folders as in `needed_environments`.
    Returns:
        Names of the environments that were synced.
    Raises:
        EqaError: uv is missing or fails; names the environment and its last line.
    """
    from filelock import FileLock

    done = []
    for name in names:
        if is_current(root, name):
            continue
        folder = root / name
        uv = shutil.which("uv") or str(root / ".venv/bin/uv")
        (root / "work").mkdir(exist_ok=True)
        with FileLock(root / f"work/environment-{name.replace('/', '-').strip('.') or 'light'}.lock"):
            if is_current(root, name):
                continue  # another run did it meanwhile
            print(f"environments: {name} follows its lock file", file=sys.stderr)
            # a sync that fails or is killed leaves neither environment: nothing may vouch for it
            (folder / ".venv" / STAMP).unlink(missing_ok=True)
            environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
            try:
                run = subprocess.run(
                    [uv, "sync", "--frozen", "--inexact", "--project", str(folder)],
                    env=environment,
                    capture_output=True,
                    text=True,
                )
            except FileNotFoundError:
                raise EqaError(
                    "uv is not on the PATH; activate the environment (. .venv/bin/activate) or run `make setup`"
                ) from None
            if run.returncode:
                last = (run.stderr.strip().splitlines() or ["no message"])[-1].strip()
                raise EqaError(
                    f"{name}/.venv does not match {name}/uv.lock and uv sync failed ({last}); "
                    f"run `make setup` where the package index can be reached"
                )
            (folder / ".venv" / STAMP).write_text(sha256_file(folder / "uv.lock"))
            done.append(name)
    return done


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="prepare_environments", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--environment", action="append", required=True, help="folder with pyproject.toml and uv.lock; repeatable"
    )
    return parser


def run(args: argparse.Namespace) -> dict:
    """Door 2."""
    for name in args.environment:
        if not Path(name, "uv.lock").is_file():
            raise EqaError(f"--environment {name}: no uv.lock there; one of ., envs/train, envs/gguf, envs/serve")
    return {"synced": prepare(Path.cwd(), args.environment)}


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("prepare_environments", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
