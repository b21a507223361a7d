"""A clone of this checkout, with its uncommitted edits, to run Snakemake and DVC in."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = (".venv", "envs/train/.venv", "envs/gguf/.venv")
# files that cannot change what a run makes
INDIFFERENT = (
    "docs/",
    "tests/",
    "bench/",
    ".ci/",
    "README",
    "CHANGELOG",
    "LICENSE",
    "CONTRIBUTING",
    "Makefile",
    ".github/",
)


def openeqa_folder() -> Path:
    """Where Open-EQA's real questions and prompts would lie; they may be absent."""
    return Path(os.environ.get("OPENEQA_DATA") or ROOT.parent / "shared/data/openeqa")


def environment(**extra: str) -> dict[str, str]:
    """Environment variables of a command in a clone: a git identity, few threads, bytecode, this project's tools first."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "OPENEQA_", "EQA_", "GIT_"))}
    keep.pop("PYTHONDONTWRITEBYTECODE", None)
    keep |= {
        "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "GIT_AUTHOR_NAME": "tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        # no environment of the test run may leak into `uv run`
        "VIRTUAL_ENV": "",
    }
    del keep["VIRTUAL_ENV"]
    return keep | extra


def call(
    folder: Path, *command: str, check: bool = True, timeout: float = 1500, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a clone; with `check`, a failure shows what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
        logs = ""
        for line in done.stderr.splitlines():
            if line.strip().startswith("log:"):
                for name in line.split("log:")[1].split("(")[0].split(","):
                    path = folder / name.strip()
                    if path.is_file():
                        logs += f"\n--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
        raise AssertionError(
            f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}{logs}"
        )
    return done


def source_files() -> list[str]:
    """Tracked and untracked, not ignored files of the checkout that exist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def source_key() -> str:
    """Hash of all that decides what a run makes."""
    digest = hashlib.sha256()
    for name in source_files():
        if not name.startswith(INDIFFERENT) and name not in ("dvc.lock", "provenance.lock.json"):
            digest.update(name.encode() + b"\0" + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def link_environments(folder: Path) -> None:
    """Let a clone use this checkout's environments."""
    for name in ENVIRONMENTS:
        if (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(ROOT / name)


def make_clone(folder: Path) -> Path:
    """A committed git repository at `folder` with the checkout's present files and its environments linked in."""
    folder.mkdir(parents=True)
    for name in source_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    link_environments(folder)
    call(folder, "git", "init", "-q", "-b", "main")
    exclude = folder / ".git/info/exclude"
    exclude.parent.mkdir(parents=True, exist_ok=True)
    # a link is no folder for git's pattern ".venv/"
    exclude.write_text("".join(f"/{name}\n" for name in ENVIRONMENTS))
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", "clone")
    return folder


def copy_clone(source: Path, target: Path) -> Path:
    """Copy a clone with everything it made; links to environments stay links."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
    return target
