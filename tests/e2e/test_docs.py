"""The commands of README and docs/, run as they stand in a copy of the finished demo.

A block belongs here if its page marks it `<!-- tested: tests/e2e/test_docs.py -->`. Where a block shows output, that
output has to come, numbers aside.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from scripts.lib.files import read_json
from tests.lib.docs import Block, blocks, commands, pages
from tests.lib.project import ENVIRONMENTS, ROOT, call, copy_clone, environment, link_environments

pytestmark = pytest.mark.demo
HERE = "tests/e2e/test_docs.py"
POINTS = 3.75  # three of the demo's 80 test questions


def runnable(path: str) -> list[Block]:
    """The blocks of all pages that name a test file."""
    name = str(Path(path).resolve().relative_to(ROOT))
    return [block for page in pages() for block in blocks(page) if name in block.tests]


MINE = runnable(__file__)
SEEN: set[str] = set()


def block_of(page: str, word: str) -> Block:
    """The one block of a page that holds `word` and is marked with this file."""
    found = [block for block in MINE if block.page == page and word in block.text]
    assert len(found) == 1, f"{page}: {len(found)} blocks marked with {HERE} hold {word!r}"
    SEEN.add(found[0].name)
    return found[0]


def run(folder: Path, text: str, timeout: float = 1200) -> str:
    """Run a command by bash as a reader would, and give what it printed on both streams."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment(PAGER="cat", GIT_PAGER="cat", DVC_PAGER="cat"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{text}\nexit {done.returncode}\n{done.stdout[-5000:]}"
    return done.stdout


def bare(text: str) -> str:
    """Text without what differs from run to run: numbers, hashes, spacing, table rules."""
    text = re.sub(r"[+-]?\d[\d.,]*", "N", text)
    return " ".join(re.sub(r"[-─|]{2,}", " ", text).split())


def shown(block: Block) -> list[tuple[str, list[str]]]:
    """(command, lines of output that the page shows below it) of a console block."""
    steps: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            steps.append((line.removeprefix("$ "), []))
        elif steps and not steps[-1][1] and steps[-1][0].endswith("\\"):
            steps[-1] = (steps[-1][0][:-1] + line, [])
        elif steps and line.strip():
            steps[-1][1].append(line)
    return steps


def follow(folder: Path, block: Block, **replace: str) -> Path:
    """Do a console block step by step, checking the output that it shows. Returns the folder it ends in."""
    for command, expected in shown(block):
        for old, new in replace.items():
            command = command.replace(old, new)
        said = run(folder, f"{command}\npwd").rstrip().splitlines()
        folder, printed = Path(said[-1]), bare("\n".join(said[:-1]))
        if (folder / ".git").exists():
            link_environments(folder)
            exclude = folder / ".git/info/exclude"
            exclude.write_text("".join(f"/{name}\n" for name in ENVIRONMENTS))
        for line in expected:
            for part in line.split("..."):
                assert bare(part) in printed, f"{block.name}: {command}\npage shows {line!r}, it printed\n{printed}"
    return folder


@pytest.fixture(scope="module")
def demo(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished demo for what leaves no trace, set up as `make` would have left it."""
    return set_up(copy_clone(finished_demo, tmp_path_factory.mktemp("docs") / "demo"))


def set_up(folder: Path) -> Path:
    """Leave the stamp of `make setup`: the environments are links to this checkout's."""
    tools = folder / ".tools"
    (tools / "bin").mkdir(parents=True)
    (tools / "bin/uv").symlink_to(ROOT / ".venv/bin/uv")
    time.sleep(1.1)  # make compares whole seconds on some file systems
    (tools / "ready").touch()
    return folder


# --- README.md and README.zh.md --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_make_demo_ends_as_the_readme_shows(demo, page):
    said = bare(run(demo, block_of(page, "make demo").text))
    (example,) = [block for block in blocks(ROOT / page) if "tuned - base" in block.text]
    for line in example.text.splitlines():
        assert bare(line) in said, f"{page} shows {line!r}; it printed\n{said}"


@pytest.fixture(scope="module")
def after_demo(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `make demo` leaves in a fresh clone, nothing of it committed, after the README's next block; what that said."""
    folder = set_up(copy_clone(finished_demo, tmp_path_factory.mktemp("after") / "demo"))
    call(folder, "git", "reset", "-q", "HEAD~1")  # the fixture's own commit
    untracked = call(folder, "git", "status", "--porcelain").stdout
    assert {line[3:] for line in untracked.splitlines()} >= {"dvc.lock", "provenance.lock.json", "results/"}
    block = block_of("README.md", "verify.json")
    assert commands(block) == commands(block_of("README.zh.md", "verify.json"))
    return folder, run(folder, block.text)


def test_what_follows_the_demo(after_demo):
    folder, said = after_demo
    assert "Nothing to be done" in said
    assert (folder / "work/report.zip").stat().st_size > 100_000
    assert call(folder, "git", "status", "--porcelain").stdout == ""


def test_an_experiment_and_the_way_back(after_demo, tmp_path):
    folder = copy_clone(after_demo[0], tmp_path / "demo")
    block = block_of("README.md", "git switch -c rank16")
    assert commands(block) == commands(block_of("README.zh.md", "git switch -c rank16"))
    said = run(folder, block.text)
    assert "Nothing to be done" in said.partition("Switched to branch 'main'")[2]
    assert "tuned_exact_match" in said
    assert "lora_rank: 16" in run(folder, "git show rank16:config/config.yaml")
    assert (folder / "work/compare.html").stat().st_size > 100_000


def figures(text: str) -> list[float]:
    """The numbers of a table's row or of an output line, in order."""
    return [float(found) for found in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", text.replace("95 %", ""))]


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_results_in_the_readme_are_those_of_the_demo(finished_demo, page):
    """Another processor rounds otherwise and may answer some of the 80 questions otherwise; the data is the same."""
    metrics = read_json(finished_demo / "results/metrics.json")
    text = (ROOT / page).read_text()
    (example,) = [block.text for block in blocks(ROOT / page) if "tuned - base" in block.text]
    names = {"majority": 0.0, "base": POINTS, "tuned": POINTS, "blind": POINTS}
    for name, most in names.items():
        row = re.search(rf"^\| {name}(?:（.+?）)? \| (.+?) \|", text, flags=re.MULTILINE).group(1)
        line = re.search(rf"^  {name} +exact match +(.+) %$", example, flags=re.MULTILINE).group(1)
        assert float(row) == float(line)
        # one decimal is shown
        assert abs(float(row) - metrics[f"{name}_exact_match"]) <= most + 0.051, name
    row = figures(re.search(r"^\| \*\*tuned - base\*\* \| (.+) \| .+ \|$", text, flags=re.MULTILINE).group(1))
    line = figures(re.search(r"^  tuned - base (.+): tuned is better$", example, flags=re.MULTILINE).group(1))
    assert row == line
    for shown, key in zip(row, ("", "_low", "_high"), strict=True):
        assert abs(shown - metrics[f"tuned_minus_base_exact_match{key}"]) <= 2 * POINTS + 0.051, key
    count = re.search(r"(\d+) (?:questions|个问题)", text).group(1)
    assert int(count) == metrics["base_count"]


# --- docs/versions.md ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def versions(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with two remotes, in which "Every day" was followed."""
    home = tmp_path_factory.mktemp("versions")
    folder = copy_clone(finished_demo, home / "demo")
    call(home, "git", "clone", "-q", "--bare", folder, home / "bare.git")
    call(folder, "git", "remote", "add", "origin", home / "bare.git")
    call(folder, "git", "config", "push.autoSetupRemote", "true")
    call(folder, "dvc", "remote", "add", "-q", "-d", "store", home / "store")
    call(folder, "git", "commit", "-q", "-am", "remote")
    call(folder, "git", "push", "-q", "origin", "main")
    call(folder, "dvc", "push", "-q")
    follow(folder, block_of("docs/versions.md", "git switch -c narrow"))
    return folder


def test_every_day(versions):
    assert "narrow" in run(versions, "git branch --list narrow")


def test_elsewhere(versions, tmp_path):
    where = follow(tmp_path, block_of("docs/versions.md", "git clone URL"), URL=str(versions))
    assert (where / "results/report/index.html").is_file()


def test_an_altered_artifact(versions):
    follow(versions, block_of("docs/versions.md", "adapter_model.safetensors"))


def test_dvc_experiments(versions):
    follow(versions, block_of("docs/versions.md", "dvc exp run --temp"))
    assert "wide-branch" in run(versions, "git branch --list wide-branch")


def test_parts_and_tags(versions):
    follow(versions, block_of("docs/versions.md", "dvc pull results/adapter"), URL=str(versions))
    wanted = (versions / "results/adapter/adapter_model.safetensors").read_bytes()
    for name in ("adapter", "adapter-too"):
        assert (versions / name / "adapter_model.safetensors").read_bytes() == wanted
        shutil.rmtree(versions / name)


def test_remotes(versions, tmp_path):
    folder = copy_clone(versions, tmp_path / "demo")
    call(folder, "dvc", "remote", "remove", "store")
    block = block_of("docs/versions.md", "dvc gc")
    text = "\n".join(commands(block)).replace("/mnt/share/eqa", str(tmp_path / "share")).replace("dvc gc", "dvc gc -f")
    run(folder, text)
    assert any((tmp_path / "share").rglob("*"))


# --- docs/data.md ----------------------------------------------------------------------------------------------------


def test_parquet(demo):
    run(demo, block_of("docs/data.md", "parquet").text)
    assert (demo / "results/sft/parquet/manifest.json").is_file()


# --- serving ---------------------------------------------------------------------------------------------------------


def use_free_port(folder: Path) -> str:
    """Give the recipe a port of its own; returns the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config/config.yaml"
    config.write_text(re.sub(r"^(  port:) \d+", rf"\1 {port}", config.read_text(), flags=re.MULTILINE))
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "docs/serving.md"])
def test_make_serve_answers_until_ctrl_c(demo, page):
    address = use_free_port(demo)
    server = subprocess.Popen(
        ["bash", "-c", "exec " + "\n".join(commands(block_of(page, "make serve SERVER=llamacpp")))],
        cwd=demo,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(480):
            try:
                with urllib.request.urlopen(f"{address}/v1/models", timeout=2) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert server.poll() is None, server.stdout.read()
                time.sleep(0.5)
        else:
            pytest.fail("the server did not answer within four minutes")
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        said = server.communicate(timeout=120)[0]
    assert address.removeprefix("http://") in said


def test_serving_in_the_background(demo):
    use_free_port(demo)
    run(demo, block_of("docs/serving.md", "--background true").text, timeout=300)
    assert not list((demo / "work/serve").glob("*.pid"))


# --- nothing is left out ---------------------------------------------------------------------------------------------


def test_every_block_that_names_this_file_was_run():
    """Stands last: the tests above name their blocks one by one."""
    if len(SEEN) < 5:
        pytest.skip("only a part of this file was run")
    assert {block.name for block in MINE} == SEEN
