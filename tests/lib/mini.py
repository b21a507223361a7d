"""A pipeline in miniature that runs in seconds, around the project's own provenance code (tests/e2e/data/mini)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.lib.project import ROOT, call

SOURCE = ROOT / "tests/e2e/data/mini"
SHARED = (
    "rules/provenance.smk",
    "profiles/default/config.yaml",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
)
JOB = re.compile(r"^(?:rule|localrule|checkpoint) (\w+):$", flags=re.MULTILINE)


def make_mini(folder: Path) -> Path:
    """A committed git and DVC repository with the miniature; nothing has run yet."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "gitignore").rename(folder / ".gitignore")
    for name in SHARED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "scripts/lib").mkdir()
    for path in sorted((ROOT / "scripts/lib").glob("*.py")):
        if path.stem in ("__init__", "provenance", "versions", "statcache", "dvc_commit_present", "files", "errors"):
            shutil.copy(path, folder / "scripts/lib" / path.name)
    (folder / "scripts/__init__.py").touch()
    call(folder, "git", "init", "-q", "-b", "main")
    save(folder, "miniature")
    return folder


def save(folder: Path, message: str) -> None:
    """Commit everything to git."""
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "--allow-empty", "-m", message)


def snakemake(folder: Path, *options: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the miniature."""
    return call(folder, "snakemake", "--cores", "2", *options, check=check, **extra)


def plan(folder: Path, *options: str) -> list[str]:
    """Rules that a dry run would run, sorted, each once; [] only where Snakemake says that nothing is to be done."""
    done = snakemake(folder, "-n", *options)
    rules = sorted(set(JOB.findall(done.stdout + done.stderr)) - {"all"})
    said = "Nothing to be done" in done.stdout + done.stderr
    assert said == (not rules), done.stdout + done.stderr
    return rules


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text that occurs once."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def cache_hashes(folder: Path) -> dict[str, str]:
    """md5 that each file of a DVC cache or remote really has, by the md5 that its name says.

    What a killed transfer leaves lies beside the objects under a hidden name of its own, and is none.
    """
    import hashlib

    found = {}
    for path in sorted(folder.rglob("files/md5/*/*")):
        if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".tmp")):
            found[path.parent.name + path.name.removesuffix(".dir")] = hashlib.md5(path.read_bytes()).hexdigest()
    return found
