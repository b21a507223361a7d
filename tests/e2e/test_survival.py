"""kill -9 of Snakemake, of the trainer, of both, while the demo trains: the same command ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts.lib.files import file_record, read_json
from tests.lib.project import call, copy_clone, environment

pytestmark = pytest.mark.demo
TARGET = "results/adapter/manifest.json"
COMMAND = ("snakemake", "--cores", "2", TARGET)
SHORT = {"max_steps: -1": "max_steps: 24", "save_steps: 25": "save_steps: 4", "eval_steps: 25": "eval_steps: 4"}


@pytest.fixture(scope="module")
def ready(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished demo with a recipe of 24 steps that has not been trained."""
    folder = copy_clone(finished_demo, tmp_path_factory.mktemp("ready") / "demo")
    config = folder / "config/config.yaml"
    text = config.read_text()
    for old, new in SHORT.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config.write_text(text)
    shutil.rmtree(folder / "work/train")  # the demo's own training
    return folder


@pytest.fixture(scope="module")
def undisturbed(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """Hashes of the adapter's files and the curves of a training that nobody disturbed."""
    folder = copy_clone(ready, tmp_path_factory.mktemp("undisturbed") / "demo")
    call(folder, *COMMAND, EQA_DVC_COMMIT="0")
    return made(folder)


def made(folder: Path) -> tuple[dict, dict]:
    """What a training has left: {file: record} of the adapter, and the curves."""
    files = {path.name: file_record(path) for path in sorted((folder / "results/adapter").iterdir())}
    return files, read_json(folder / "results/train_log/curves.json")


def start(folder: Path) -> tuple[subprocess.Popen, int]:
    """Snakemake in a session of its own, and the trainer's process id; returns after the second checkpoint."""
    log = (folder / "run.log").open("w")
    options = {"cwd": folder, "env": environment(EQA_DVC_COMMIT="0"), "stdout": log, "stderr": log}
    run = subprocess.Popen(COMMAND, start_new_session=True, **options)
    end = time.monotonic() + 600
    while not (found := sorted((folder / "work/train").glob("*/checkpoint-8/complete.json"))):
        assert run.poll() is None, (folder / "run.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not sorted((folder / "work/train").glob("*/finished.json")), "it was too quick to be killed"
    return run, int((found[0].parents[1] / "trainer.lock.holder").read_text())


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    """Return when the process has ended; fail where it does not."""
    end = time.monotonic() + 120
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} runs on"
        time.sleep(0.1)


@pytest.mark.parametrize("victim", ["snakemake", "trainer", "both"])
def test_same_command_after_a_kill_gives_the_same_adapter(ready, undisturbed, tmp_path, victim):
    folder = copy_clone(ready, tmp_path / "demo")
    run, trainer = start(folder)
    if victim == "trainer":
        os.kill(trainer, signal.SIGKILL)
        assert run.wait(timeout=120) == 1
        assert not (folder / TARGET).exists()
    elif victim == "snakemake":
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert alive(trainer), "an orphan trains on"
    else:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        wait_for_end(trainer)  # a killed process frees its memory first
    again = call(folder, *COMMAND, EQA_DVC_COMMIT="0")
    if victim != "trainer":
        assert "an earlier Snakemake was killed here; its lock is removed" in again.stderr
    assert made(folder) == undisturbed
    assert len(sorted((folder / "work/train").glob("*/job.json"))) == 1, "one training, not two"
    resumed = read_json(folder / "results/train_log/speed.json")["resumed_from_step"]
    if victim == "snakemake":
        assert resumed == 0, "the orphan ended by itself; its adapter was taken over"
        wait_for_end(trainer)  # it lets its lock go before Python has shut down
    else:
        assert resumed >= 8, "from the newest whole checkpoint"
    done = call(folder, *COMMAND, EQA_DVC_COMMIT="0")
    assert "Nothing to be done" in done.stdout + done.stderr
