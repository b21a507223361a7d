"""Two processes on the CPU (gloo) share a training: it is what one process trains, and it survives like one.

train_adapter starts torchrun, torchrun starts the ranks; each of the three is killed once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import train_adapter
from scripts.lib import checkpoints, trainer
from scripts.lib.files import read_json
from tests.train import training_data as data

# in rank 1 alone: its random state is written two seconds after rank 0 has written all of its own
LATE = """
import os
if os.environ.get("RANK") == "1":
    import time, torch
    save = torch.save
    def late(value, path, *rest, **options):
        if str(path).endswith("rng_state_1.pth"):
            time.sleep(2)
        save(value, path, *rest, **options)
    torch.save = late
"""
LONG = "red blue chair table lamp window door sofa kitchen bedroom near on wall which colour is the there"


def start(folder: Path, line: list[str], log: str, **environ: str) -> subprocess.Popen:
    return data.start(folder, line, log, EQA_TRAIN_PROCESSES="2", **environ)


def wait_for(condition: Callable[[], object], seconds: float = 240, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes that `pid` has started, by any of its threads."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in file.read_text().split()]
    return sorted(found)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def family(process: subprocess.Popen) -> tuple[int, dict[int, int]]:
    """(torchrun, {rank: its process}) of a running train_adapter."""
    (launcher,) = [pid for pid in children(process.pid) if b"torch.distributed.run" in command(pid)]
    ranks = {}
    for pid in children(launcher):
        if b"scripts.lib.trainer" in command(pid):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks[next(int(word[5:]) for word in words if word.startswith(b"RANK="))] = pid
    return launcher, ranks


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which two processes have trained to the end, the second a slow writer."""
    folder = data.make_workspace(tmp_path_factory.mktemp("two"))
    (folder / "late").mkdir()
    (folder / "late/sitecustomize.py").write_text(LATE)
    line = data.arguments(data.config(keep_checkpoints=4))
    environ = {"PYTHONPATH": os.pathsep.join([str(data.ROOT), str(folder / "late")])}
    process = start(folder, line, "whole.log", **environ)
    assert process.wait(timeout=400) == 0, (folder / "whole.log").read_text()
    return folder


def test_a_checkpoint_is_complete_when_the_slowest_process_has_written_its_part(space: Path) -> None:
    (run_dir,) = data.run_dirs(space / "work")
    found = checkpoints.checkpoints(run_dir)
    assert [folder.name for folder in found] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    for folder in found:
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(read_json(folder / "complete.json")), folder.name


def test_memory_of_each_process_is_asked_for(space: Path) -> None:
    speed = read_json(space / "out/train_log/speed.json")
    assert speed["devices"] == 2
    assert speed["peak_gpu_mb_each"] == [0, 0]


def interrupted(space: Path, name: str, victim: Callable[[subprocess.Popen], int]) -> tuple[subprocess.Popen, dict]:
    """Start, and kill -9 whom `victim` names once checkpoint-4 is complete: (train_adapter, its ranks)."""
    line = data.arguments(data.config(keep_checkpoints=4), work=name, out=f"{name}_out")
    process = start(space, line, f"{name}.log")
    wait_for(lambda: list((space / name).glob("*/checkpoint-4/complete.json")), process=process)
    launcher, ranks = family(process)
    assert sorted(ranks) == [0, 1]
    os.kill(victim(process), signal.SIGKILL)
    return process, {"launcher": launcher, **ranks}


def goes_on(space: Path, name: str) -> str:
    """The same command again, to the bytes of the training that nobody disturbed; what it said."""
    line = data.arguments(data.config(keep_checkpoints=4), work=name, out=f"{name}_out")
    again = start(space, line, f"{name}-again.log")
    assert again.wait(timeout=400) == 0, (space / f"{name}-again.log").read_text()
    said = (space / f"{name}-again.log").read_text()
    assert "going on from" in said
    assert "from step 0" not in said
    assert data.contents(space / f"{name}_out/adapter") == data.contents(space / "out/adapter")
    assert read_json(space / f"{name}_out/train_log/curves.json") == read_json(space / "out/train_log/curves.json")
    return said


def test_one_killed_process_of_two_ends_both_and_the_same_command_goes_on_to_the_same_bytes(space: Path) -> None:
    process, pids = interrupted(space, "rank", lambda process: family(process)[1][1])
    assert process.wait(timeout=120) == 2
    assert "run again to go on from the newest complete checkpoint" in (space / "rank.log").read_text()
    assert all(gone(pid) for pid in pids.values())
    assert not (space / "rank_out").exists()
    goes_on(space, "rank")


def test_ranks_end_with_a_killed_torchrun_and_the_same_command_goes_on_to_the_same_bytes(space: Path) -> None:
    process, pids = interrupted(space, "launcher", lambda process: family(process)[0])
    assert process.wait(timeout=120) == 2
    wait_for(lambda: gone(pids[0]) and gone(pids[1]), seconds=20)
    goes_on(space, "launcher")


def test_orphaned_torchrun_is_waited_for_and_not_doubled(space: Path) -> None:
    """train_adapter alone is killed: its torchrun trains on, holds the lock, and what it has made is taken over."""

    def stopped_first(process: subprocess.Popen) -> int:
        os.kill(family(process)[1][0], signal.SIGSTOP)  # so that it is at work when the second command looks
        return process.pid

    process, pids = interrupted(space, "orphan", stopped_first)
    process.wait()
    assert not gone(pids["launcher"])
    line = data.arguments(data.config(keep_checkpoints=4), work="orphan", out="never")
    second = start(space, line, "second.log")
    try:
        wait_for(lambda: "is still at it" in (space / "second.log").read_text(), process=second)
        assert f"process {pids[0]} is still at it" in (space / "second.log").read_text()
        assert len(children(second.pid)) == 0
    finally:
        second.kill()
        second.wait()
        os.kill(pids[0], signal.SIGCONT)
    said = goes_on(space, "orphan")
    assert gone(pids[0])
    assert "step 5/" not in said, "trained again by the second command"


def test_rank_that_finds_another_trainer_of_its_run_ends_with_a_line(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torchrun whose train_adapter was killed while it started has come in between; waiting would double it."""
    job = read_json(data.run_dirs(space / "work")[0] / "job.json") | {"run_dir": str(tmp_path)}
    (tmp_path / "job.json").write_text(json.dumps(job))
    environ = os.environ | {"RANK": "0", "PYTHONPATH": str(data.ROOT)}
    with checkpoints.held(tmp_path / "trainer.lock", "training"):
        done = subprocess.run(
            [sys.executable, "-m", "scripts.lib.trainer", str(tmp_path / "job.json")],
            env=environ,
            capture_output=True,
            timeout=100,
        )
    assert done.returncode == 2
    assert f"training is still held by process {os.getpid()}" in (tmp_path / trainer.FAULT).read_text()


def test_too_little_memory_of_one_device_of_several_is_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def run_out(job: dict, run_dir: Path) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    train = data.config(batch_size=4)["train"]
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    job = {"args": args, "train": train, "run_dir": str(tmp_path), "work_dir": str(tmp_path / "work")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    monkeypatch.setattr(trainer, "_run", run_out)
    monkeypatch.setattr(trainer, "_gpu_memory", lambda: (14.1, 15.8))
    monkeypatch.setattr(trainer, "end_with_launcher", lambda: None)
    monkeypatch.setattr(sys, "argv", ["trainer", str(tmp_path / "job.json")])
    assert trainer.main() == 2
    said = (tmp_path / trainer.FAULT).read_text()
    assert "this card has 15.8 GiB" in said
    assert (
        "train.batch_size=1 with train.gradient_accumulation=4 puts 1 samples on a device at once instead of 2" in said
    )


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of one word and of eighteen, in turn."""
    return data.make_workspace(tmp_path_factory.mktemp("uneven"), answers=["red", LONG])


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 2), (2, 1)])
def test_two_processes_train_what_one_trains(
    uneven: Path, monkeypatch: pytest.MonkeyPatch, batch: int, accumulation: int
) -> None:
    """The same samples a step, each in one process alone; a mean of two means would weigh a short answer like a long."""
    name = f"{batch}x{accumulation}"
    recipe = data.config(batch_size=batch, gradient_accumulation=accumulation, lora_dropout=0.0)
    two = start(uneven, data.arguments(recipe, work=f"two{name}", out=f"two{name}_out"), f"two{name}.log")
    monkeypatch.chdir(uneven)
    assert train_adapter.main(data.arguments(recipe, work=f"one{name}", out=f"one{name}_out")) == 0
    assert two.wait(timeout=300) == 0, (uneven / f"two{name}.log").read_text()
    found = []
    for side in ("one", "two"):
        (run_dir,) = data.run_dirs(uneven / f"{side}{name}")
        lines = [row for row in read_json(run_dir / "trainer_state.json")["log_history"] if "grad_norm" in row]
        found.append({key: [row[key] for row in lines] for key in ("loss", "grad_norm")})
    assert len(found[0]["loss"]) == 8
    for key in ("loss", "grad_norm"):
        assert found[1][key] == pytest.approx(found[0][key], rel=1e-2), key
    recipe_file = (uneven / f"two{name}_out/adapter/train.yaml").read_text()
    assert "per_device_train_batch_size: 1\n" in recipe_file
    assert "gradient_accumulation_steps: 1\n" in recipe_file
