"""The demo made again on one core, by another user with another home, time zone, locale, umask and hash seed, in another
place: every artifact has the same bytes, but for those that tests/exempt.txt lists with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.lib.files import read_json, sha256_file
from tests.lib import project

pytestmark = pytest.mark.demo
OTHER_USER = 12345
# what this test compares; logs, benchmarks and work/ are no artifacts
FOLDERS = ("results", "models", "data/raw")


def exempt() -> tuple[str, ...]:
    """Paths of tests/exempt.txt."""
    lines = (project.ROOT / "tests/exempt.txt").read_text().splitlines()
    return tuple(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))


def artifacts(folder: Path) -> dict[str, str]:
    """sha256 by path of every artifact that has to be equal."""
    found = {}
    for top in FOLDERS:
        for path in sorted((folder / top).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and path.name != ".snakemake_timestamp" and not name.startswith(exempt()):
                found[name] = sha256_file(path)
    return found


def other_user(folder: Path) -> list[str]:
    """Prefix that runs a command as another user who owns `folder` and may read the environments; [] without root."""
    if os.getuid() or not shutil.which("setpriv"):
        return []
    subprocess.run(["chown", "-R", f"{OTHER_USER}:{OTHER_USER}", str(folder)], check=True)
    # the interpreter may lie in root's home: reading it is all that the capability allows
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--bounding-set=-all,+dac_read_search"]
    return ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups", *reading]


@pytest.fixture(scope="module")
def other_demo(finished_demo, tmp_path_factory) -> Path:
    """A second clone, run from nothing under other circumstances."""
    top = tmp_path_factory.mktemp("elsewhere")
    os.chmod(top, 0o755)
    for parent in top.parents:  # pytest's folders are its user's own
        if parent.owner() == top.owner() and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            os.chmod(parent, 0o755)
    folder = project.make_clone(top / "a-longer-folder-name-than-the-other/clone")
    home = top / "home"
    home.mkdir()
    prefix = other_user(top)
    changed = {
        "HOME": str(home),
        "USER": "somebody",
        "LOGNAME": "somebody",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "POSIX",
        "LANG": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONHASHSEED": "4711",
        "XDG_CACHE_HOME": str(home / "cache"),
        "UV_CACHE_DIR": str(home / "uv"),
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "TMPDIR": str(home),
    }
    done = project.call(
        folder, *prefix, "bash", "-c", "umask 077; exec snakemake --cores 1", check=False, timeout=1500, **changed
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


def test_every_artifact_has_the_same_bytes(finished_demo, other_demo):
    first, second = artifacts(finished_demo), artifacts(other_demo)
    assert len(first) > 400
    assert sorted(first) == sorted(second)
    assert {name for name in first if first[name] != second[name]} == set()


def test_the_other_run_was_really_another(finished_demo, other_demo):
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("no root and setpriv here: the same user made both")
    assert (other_demo / "results/metrics.json").stat().st_uid == OTHER_USER
    assert (other_demo / "results/metrics.json").stat().st_mode & 0o077 == 0
    assert (finished_demo / "results/metrics.json").stat().st_uid != OTHER_USER


def test_dvc_stores_the_same_objects(finished_demo, other_demo):
    """Equal bytes mean equal hashes: a team's runs share one cache and one remote."""

    folders = tuple(f"{path.rstrip('/')}/" for path in exempt())

    def hashes(folder: Path) -> dict[str, str]:
        outs = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["pipeline"]["outs"]
        return {out["path"]: out["md5"] for out in outs if not f"{out['path']}/".startswith(folders)}

    first, second = hashes(finished_demo), hashes(other_demo)
    assert len(first) > 10
    assert {name for name in first if first[name] != second.get(name)} == set()


def test_numbers_are_the_same(finished_demo, other_demo):
    assert read_json(finished_demo / "results/metrics.json") == read_json(other_demo / "results/metrics.json")


def test_python_took_the_other_circumstances(other_demo):
    """The variables above would change a program that depends on them: file names and texts are not ASCII only."""
    code = "import locale, sys; print(sys.flags.utf8_mode, locale.getpreferredencoding(False))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split()[0] == "0"
    assert said.split()[1].upper() != "UTF-8"
