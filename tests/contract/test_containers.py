"""Containerfiles say what the locks, the Makefile and the README say; they are parsed here, not built."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from scripts.prepare_environments import STAMP
from tests.lib.project import ROOT

FILES = sorted((ROOT / "containers").glob("*.Containerfile"))
LOCKS = {
    "pipeline": ["."],
    "train": ["envs/train"],
    "gguf": ["envs/gguf"],
    "serve": ["envs/serve"],
    "kubernetes": [".", "envs/train", "envs/gguf", "envs/serve"],
}


def instructions(file: Path) -> list[dict]:
    """{"instruction", "value"} of each, comments and line continuations resolved."""
    parser = DockerfileParser(fileobj=file.open("rb"))
    return [part for part in parser.structure if part["instruction"] != "COMMENT"]


def values(file: Path, name: str) -> list[str]:
    return [part["value"] for part in instructions(file) if part["instruction"] == name]


def copied(file: Path) -> list[str]:
    return [source for value in values(file, "COPY") for source in value.split()[:-1]]


def test_there_is_one_for_each_environment_and_one_for_all():
    assert {file.stem for file in FILES} == set(LOCKS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_python_is_one_that_every_project_allows_and_no_tag_moves(file):
    image = next(v for v in values(file, "ARG") if v.startswith("PYTHON_IMAGE=")).partition("=")[2]
    version = re.search(r"python:(\d+)\.(\d+)-slim-[a-z]+$", image)
    assert version, image
    assert "latest" not in file.read_text()
    for folder in LOCKS[file.stem]:
        wanted = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["requires-python"]
        least, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", wanted).groups()
        assert int(least) <= int(version[2]) < int(below)
    assert values(file, "FROM") == ["${PYTHON_IMAGE}"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_uv_is_the_makefiles(file):
    wanted = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    assert re.findall(r"\buv==(\S+)", file.read_text()) == [wanted]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_source_exists_is_tracked_and_passes_the_ignore_file(file):
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for source in copied(file):
        assert (ROOT / source).exists(), source
        assert any(name == source or name.startswith(f"{source}/") for name in tracked.stdout.splitlines()), source
        assert any(Path(source).match(pattern) for pattern in allowed), source


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_environments_are_made_from_their_locks_alone(file):
    text = " ".join(values(file, "RUN"))
    for folder in LOCKS[file.stem]:
        assert f"{folder}/uv.lock".removeprefix("./") in copied(file)
        assert f"{folder}/pyproject.toml".removeprefix("./") in copied(file)
    syncs = re.findall(r"uv sync [^&;|]*", text)
    assert syncs
    assert all("--frozen" in sync for sync in syncs)
    assert not re.search(r"pip install (?!--no-cache-dir uv==)", text)
    assert text.count(STAMP) >= len(syncs)  # so that Snakemake does not sync again


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_runs_as_root_and_nothing_secret_is_copied(file):
    assert values(file, "USER") == ["1000:1000"]
    order = [part["instruction"] for part in instructions(file)]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")
    assert not re.search(r"(?i)password|token|secret|api_key|netrc", "".join(values(file, "ENV") + values(file, "ARG")))
    assert not {"ADD", "VOLUME"} & set(order)
    json.loads(values(file, "CMD")[0])
    assert json.loads(values(file, "ENTRYPOINT")[0]) == ["enter"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_debian_packages_hold_what_the_project_asks_of_a_machine(file):
    text = " ".join(values(file, "RUN"))
    packages = re.search(r"--no-install-recommends ([a-z0-9 .+-]+?) &&", text)[1].split()
    assert packages == sorted(packages)
    wanted = {"git"} | ({"make"} if "." in LOCKS[file.stem] else set())
    # triton, which LLaMA-Factory's and LMDeploy's kernels go through, calls a C compiler
    wanted |= {"gcc", "libc6-dev"} if {"envs/train", "envs/serve"} & set(LOCKS[file.stem]) else set()
    assert wanted <= set(packages)


def test_the_stamp_is_the_one_that_snakemake_looks_for(tmp_path):
    """`sha256sum LOCK | head -c 64` writes what scripts.prepare_environments compares with."""
    lock = ROOT / "uv.lock"
    made = subprocess.run(f"sha256sum {lock} | head -c 64", shell=True, capture_output=True, text=True).stdout
    assert made == hashlib.sha256(lock.read_bytes()).hexdigest()


@pytest.fixture
def entered(tmp_path):
    """containers/enter.sh with a baked folder of its own, and a project to enter."""
    baked, project = tmp_path / "baked", tmp_path / "project"
    for folder in (".", "envs/train", "envs/gguf"):
        (project / folder).mkdir(parents=True, exist_ok=True)
        (project / folder / "uv.lock").write_text("lock")
    for folder in (".", "envs/train"):
        (baked / folder / ".venv").mkdir(parents=True)
    script = tmp_path / "enter"
    script.write_text((ROOT / "containers/enter.sh").read_text().replace("/opt/embodied-qa", str(baked)))
    script.chmod(0o755)

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script, *command], cwd=project, capture_output=True, text=True)

    return call, project, baked


def test_enter_lends_the_images_environments_and_runs_the_command(entered):
    call, project, baked = entered
    (project / "envs/train/.venv").mkdir()  # the project's own
    done = call("sh", "-c", "echo $1; exit 3", "-", "two words")
    assert (done.returncode, done.stdout) == (3, "two words\n")
    assert (project / ".venv").resolve() == (baked / ".venv").resolve()
    assert not (project / "envs/train/.venv").is_symlink()
    assert not (project / "envs/gguf/.venv").exists()
    assert call("true").returncode == 0  # a second time


def test_enter_works_where_there_is_no_project(entered, tmp_path):
    call, project, _ = entered
    for lock in project.rglob("uv.lock"):
        lock.unlink()
    assert call("true").returncode == 0
    assert not (project / ".venv").exists()
