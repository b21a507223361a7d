"""Containerfiles say what the locks, the Makefile and the README say; they are parsed here, not built."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
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
def test_python_is_one_that_every_project_allows_and_its_tag_names_version_and_release(file):
    image = next(v for v in values(file, "ARG") if v.startswith("PYTHON_IMAGE=")).partition("=")[2]
    version = re.search(r"python:(\d+)\.(\d+)-slim-[a-z]+$", image)
    assert version, image
    assert "latest" not in file.read_text()
    # what the tag means may still change: each file says how to hold it fast
    assert "--build-arg PYTHON_IMAGE=python@sha256:" in file.read_text()
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
    wanted |= {"libgomp1"} if "envs/gguf" in LOCKS[file.stem] else set()
    assert wanted <= set(packages)


def test_llama_cpp_is_linked_against_libgomp_and_nothing_else_that_a_slim_image_lacks():
    library = next((ROOT / "envs/gguf/.venv").glob("lib/python*/site-packages/xllamacpp/xllamacpp*.so"))
    # the names of needed libraries are plain text in an ELF file; glibc's, libstdc++ and libgcc are in every image
    needed = set(re.findall(rb"\0(lib[a-zA-Z0-9_+-]+\.so\.\d+)(?=\0)", library.read_bytes()))
    assert needed - {b"libpthread.so.0", b"libstdc++.so.6", b"libm.so.6", b"libc.so.6", b"libgcc_s.so.1"} == {
        b"libgomp.so.1"
    }


def test_the_stamp_is_the_one_that_snakemake_looks_for(tmp_path):
    """`sha256sum LOCK | head -c 64` writes what scripts.prepare_environments compares with."""
    lock = ROOT / "uv.lock"
    made = subprocess.run(f"sha256sum {lock} | head -c 64", shell=True, capture_output=True, text=True).stdout
    assert made == hashlib.sha256(lock.read_bytes()).hexdigest()


def own_environment(folder: Path, runs: str) -> None:
    """An environment of the project's own, whose interpreter is a shell script."""
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").write_text(f"#!/bin/sh\n{runs}\n")
    (folder / ".venv/bin/python").chmod(0o755)


@pytest.fixture
def entered(tmp_path):
    """containers/enter.sh with a baked folder of its own, and a project to enter."""
    baked, project = tmp_path / "baked", tmp_path / "project"
    for folder in (".", "envs/train", "envs/gguf"):
        (project / folder).mkdir(parents=True, exist_ok=True)
        (project / folder / "uv.lock").write_text("lock")
    for folder in (".", "envs/train"):
        own_environment(baked / folder, "exit 0")
    script = tmp_path / "enter"
    script.write_text((ROOT / "containers/enter.sh").read_text().replace("/opt/embodied-qa", str(baked)))
    script.chmod(0o755)

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script, *command], cwd=project, capture_output=True, text=True)

    return call, project, baked


def test_enter_refuses_an_environment_that_was_made_outside_of_the_image(entered):
    """uv would remove it, and the user's checkout would be without."""
    call, project, _ = entered
    (project / "envs/train/.venv/bin").mkdir(parents=True)
    (project / "envs/train/.venv/bin/python").symlink_to("/usr/bin/python-of-another-machine")
    done = call("sh", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "envs/train/.venv" in line
    assert "use a clone of its own" in line
    assert (project / "envs/train/.venv/bin/python").is_symlink()


def test_make_setup_replaces_what_a_container_lent(tmp_path):
    """Its links lead nowhere on the machine itself; uv fails on them, and a stamp says that all is ready."""
    for name in ("Makefile", "scripts/check_machine.sh", "uv.lock", "pyproject.toml", "envs/train/uv.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    for folder in ("envs/gguf", ".tools/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "envs/gguf/uv.lock").touch()
    uv = tmp_path / ".tools/bin/uv"
    uv.write_text("#!/bin/sh\nmkdir -p .venv/bin && echo '#!/bin/sh' > .venv/bin/python && chmod +x .venv/bin/python\n")
    uv.chmod(0o755)
    for folder in (".", "envs/train"):
        (tmp_path / folder / ".venv").symlink_to(f"/opt/embodied-qa-elsewhere/{folder}/.venv")
    (tmp_path / ".tools/ready").touch()
    command = ["make", "-s", "-C", tmp_path, "setup", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv/bin/python").is_file()
    assert not (tmp_path / ".venv").is_symlink()
    assert not (tmp_path / "envs/train/.venv").is_symlink()
    assert subprocess.run([*command, "-q"], capture_output=True, timeout=60).returncode == 0, "then all is ready"


def test_machine_check_tells_of_libgomp_and_goes_on(tmp_path):
    """A bare machine lacks it; only llama.cpp's server wants it."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *libgomp*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", "scripts/check_machine.sh", python], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "SERVER=llamacpp" in line
    assert "libgomp1" in line


def test_enter_lends_the_images_environments_and_runs_the_command(entered):
    call, project, baked = entered
    own_environment(project / "envs/train", "exit 0")
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
