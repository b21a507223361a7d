"""scripts.lib.devices: real processes and real Snakemake jobs with locks; the GPUs are a list in a stand-in nvidia-smi."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.lib import devices
from scripts.lib.devices import Device, parse_listing, take, visible
from scripts.lib.errors import EqaError
from tests.lib.project import ROOT

TWO = "GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)\nGPU 1: NVIDIA H200 (UUID: GPU-abbb-2)\n"
SLICED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
  MIG 3g.40gb     Device  0: (UUID: MIG-11-22)
  MIG 3g.40gb     Device  1: (UUID: MIG-GPU-aaaa-1/2/0)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
"""
PAIR = parse_listing(TWO)
ASK = [sys.executable, "-m", "scripts.lib.devices", "--gpus"]
SHOW = ["--", "sh", "-c"]


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """Environment of a machine with two GPUs and a folder of locks of its own."""
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\ncat <<'EOF'\n{TWO}EOF\n")
    smi.chmod(0o755)
    (tmp_path / "locks").mkdir()
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA_", "SLURM_"))}
    return keep | {"PATH": f"{smi.parent}:{ROOT / '.venv/bin'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "locks")}


def told(machine: dict, count: int | str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [*ASK, str(count), *SHOW, 'echo "${CUDA_VISIBLE_DEVICES-unset}"']
    return subprocess.run(command, cwd=ROOT, env=machine | extra, capture_output=True, text=True, timeout=60)


def test_listing_takes_slices_instead_of_their_gpu() -> None:
    assert [device.name for device in PAIR] == ["GPU-aaaa-1", "GPU-abbb-2"]
    assert [device.name for device in parse_listing(SLICED)] == ["MIG-11-22", "MIG-GPU-aaaa-1/2/0", "GPU-bbbb-2"]
    assert parse_listing("No devices were found\n") == []


@pytest.mark.parametrize(
    ("shown", "names", "keys"),
    [
        (None, ["GPU-aaaa-1", "GPU-abbb-2"], ["GPU-aaaa-1", "GPU-abbb-2"]),
        ("1", ["1"], ["GPU-abbb-2"]),
        ("1,0", ["1", "0"], ["GPU-abbb-2", "GPU-aaaa-1"]),
        ("1,1", ["1"], ["GPU-abbb-2"]),
        ("GPU-ab", ["GPU-ab"], ["GPU-abbb-2"]),
        ("GPU-a", [], []),  # either could be meant
        ("0,7,1", ["0"], ["GPU-aaaa-1"]),  # CUDA stops at what it does not know
        ("", [], []),
        ("-1", [], []),
    ],
)
def test_what_cuda_visible_devices_hides_is_not_chosen(shown: str | None, names: list, keys: list) -> None:
    found = visible({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}, PAIR)
    assert ([device.name for device in found], [device.key for device in found]) == (names, keys)


def test_devices_are_taken_all_or_none(tmp_path: Path) -> None:
    first = take(PAIR, 1, tmp_path)
    assert [device for device, _ in first] == PAIR[:1]
    assert take(PAIR, 2, tmp_path) is None
    second = take(PAIR, 1, tmp_path)
    assert [device for device, _ in second] == PAIR[1:], "the failed try for both has let the second go"
    assert take(PAIR, 1, tmp_path) is None
    for _, file in first + second:
        os.close(file)
    both = take([Device("0", "a/b"), Device("1", "../../c")], 2, tmp_path)
    assert len(both) == 2
    assert not list(tmp_path.parent.glob("c*")), "a name leaves the folder of locks"


def test_a_job_gets_as_many_devices_as_it_asks_for(machine: dict) -> None:
    assert told(machine, 1).stdout == "GPU-aaaa-1\n"
    assert told(machine, 2).stdout == "GPU-aaaa-1,GPU-abbb-2\n"
    assert told(machine, 1, CUDA_VISIBLE_DEVICES="1").stdout == "1\n"
    assert told(machine, 0).stdout == "unset\n"
    assert told(machine, 0, CUDA_VISIBLE_DEVICES="1").stdout == "1\n"


@pytest.mark.parametrize("count", [2, 4])  # 4: two nodes with two each
def test_slurm_s_choice_stays_where_all_of_it_is_wanted(machine: dict, count: int) -> None:
    done = told(machine, count, SLURM_JOB_ID="7", CUDA_VISIBLE_DEVICES="0,1")
    assert (done.returncode, done.stdout) == (0, "0,1\n")


def test_jobs_in_one_slurm_allocation_share_no_device(machine: dict, tmp_path: Path) -> None:
    """`salloc --gpus=2`, then a local Snakemake with two GPUs: each job has one of Slurm's two."""
    inside = machine | {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "1,0"}
    jobs = [start(inside, 1, tmp_path / "a")]
    try:
        first = wait_for(tmp_path / "a")
        jobs.append(start(inside, 1, tmp_path / "b"))
        assert {first, wait_for(tmp_path / "b")} == {"0", "1"}
    finally:
        for job in jobs:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job.stderr.close()


def test_numbers_count_as_nvidia_smi_does(machine: dict) -> None:
    """The locks go by nvidia-smi's order; CUDA would begin with the fastest GPU unless told otherwise."""
    show = [*ASK, "1", *SHOW, 'echo "$CUDA_VISIBLE_DEVICES ${CUDA_DEVICE_ORDER-unset}"']
    for shown, said in (("1", "1 PCI_BUS_ID\n"), ("GPU-ab", "GPU-ab unset\n")):
        environ = machine | {"CUDA_VISIBLE_DEVICES": shown}
        environ.pop("CUDA_DEVICE_ORDER", None)
        done = subprocess.run(show, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
        assert done.stdout == said


def test_a_number_means_a_gpu_also_after_one_that_is_sliced() -> None:
    sliced = parse_listing(SLICED)
    assert [device.gpu for device in sliced] == [0, 0, 1]
    found = visible({"CUDA_VISIBLE_DEVICES": "1,0,2"}, sliced)
    assert [(device.name, device.key) for device in found] == [("1", "GPU-bbbb-2"), ("0", "MIG-11-22")]


def test_a_machine_without_gpu_is_left_as_it_is(machine: dict, tmp_path: Path) -> None:
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    if devices.listing():
        pytest.skip("this machine has a GPU's device files")
    assert told(machine, 1).stdout == "unset\n"


def test_more_than_there_are_is_one_line(machine: dict) -> None:
    done = told(machine, 3)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "resources: gpu=3, but 2 GPU(s) are visible" in line
    assert "--set-resources RULE:gpu=2" in line


def test_a_folder_of_locks_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"embodied-qa-devices-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(EqaError, match="not a folder of this user"):
        devices.lock_folder()


def test_the_exit_code_is_the_command_s(machine: dict) -> None:
    done = subprocess.run([*ASK, "1", *SHOW, "exit 7"], cwd=ROOT, env=machine, timeout=60)
    assert done.returncode == 7


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not path.is_file() or not path.read_text().endswith("\n"):
        assert time.monotonic() < deadline, f"{path} is not written"
        time.sleep(0.02)
    return path.read_text().strip()


def start(machine: dict, count: int, out: Path) -> subprocess.Popen:
    """A job that writes its devices and stays."""
    command = [*ASK, str(count), *SHOW, f'echo "$CUDA_VISIBLE_DEVICES" > {out}; sleep 60; true']
    return subprocess.Popen(command, cwd=ROOT, env=machine, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_kill_frees_the_device_for_who_waits(machine: dict, tmp_path: Path) -> None:
    jobs = [start(machine, 1, tmp_path / "a")]
    try:
        assert wait_for(tmp_path / "a") == "GPU-aaaa-1"
        jobs.append(start(machine, 1, tmp_path / "b"))
        assert wait_for(tmp_path / "b") == "GPU-abbb-2"
        jobs.append(start(machine, 1, tmp_path / "c"))
        assert "waiting for 1 of 2 GPU(s)" in jobs[2].stderr.readline()
        assert not (tmp_path / "c").exists()
        os.killpg(jobs[1].pid, signal.SIGKILL)
        assert wait_for(tmp_path / "c") == "GPU-abbb-2"
    finally:
        for job in jobs:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job.stderr.close()


def test_an_orphan_keeps_its_device(machine: dict, tmp_path: Path) -> None:
    """Snakemake killed, the trainer lives on: its GPU is not free."""
    job = start(machine, 1, tmp_path / "a")
    try:
        assert wait_for(tmp_path / "a") == "GPU-aaaa-1"
        os.kill(job.pid, signal.SIGKILL)  # the shell; its child sleeps on
        job.wait()
        assert told(machine, 1).stdout == "GPU-abbb-2\n"
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.stderr.close()


MIDDLE = """
import os, subprocess, sys
from scripts.lib.devices import locks_held
passed = locks_held() if sys.argv[2] == "passed" else ()
worker = "import sys, time; print(1, file=open(sys.argv[1], 'w')); time.sleep(60)"
subprocess.run([sys.executable, "-c", worker, sys.argv[1]], pass_fds=passed)
"""


@pytest.mark.parametrize(("how", "left"), [("passed", "GPU-abbb-2\n"), ("closed", "GPU-aaaa-1\n")])
def test_a_grandchild_keeps_the_device_when_the_process_between_is_killed(
    machine: dict, tmp_path: Path, how: str, left: str
) -> None:
    """As a trainer under train_adapter. `closed` is what subprocess does by itself: the device looks free."""
    command = [*ASK, "1", "--", sys.executable, "-c", MIDDLE, str(tmp_path / "a"), how]
    job = subprocess.Popen(command, cwd=ROOT, env=machine, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(tmp_path / "a")
        job.kill()
        job.wait()
        assert told(machine, 1).stdout == left
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.stderr.close()


def test_only_locks_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    ((_, lock),) = take(PAIR, 1, devices.lock_folder())
    other = os.open(tmp_path, os.O_RDONLY)
    assert devices.locks_held({devices.HELD: f"{lock},{other},9999,x"}) == (lock,)
    assert devices.locks_held({}) == ()
    os.close(lock)
    os.close(other)


@pytest.mark.parametrize("file", ["scripts/train_adapter.py", "scripts/lib/engines/llamafactory_engine.py"])
def test_whoever_starts_a_process_for_the_device_hands_the_lock_on(file: str) -> None:
    calls = re.findall(r"subprocess\.(?:run|Popen)\((.*?)\n {0,12}\)\n", (ROOT / file).read_text(), flags=re.DOTALL)
    assert calls
    assert all("pass_fds=locks_held()" in call for call in calls)


SNAKEFILE = """
rule all:
    input: "one", "two", "three"

rule job:
    output: "{name}"
    resources: gpu=1
    shell: "cd ROOT && python -m scripts.lib.devices --gpus {resources.gpu:q} -- "
           "sh -c 'echo $(date +%s.%N) $CUDA_VISIBLE_DEVICES; sleep 1.5; date +%s.%N' > HERE/{output}"
"""


def test_jobs_of_one_snakemake_run_side_by_side_on_devices_of_their_own(machine: dict, tmp_path: Path) -> None:
    """gpu=3 lets all three start at once: two share the time, the third waits for a device of the two."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("ROOT", str(ROOT)).replace("HERE", str(tmp_path)))
    done = subprocess.run(
        ["snakemake", "--cores", "3", "--resources", "gpu=3"], cwd=tmp_path, env=machine, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spans: dict[str, list] = {"GPU-aaaa-1": [], "GPU-abbb-2": []}
    for name in ("one", "two", "three"):
        began, device, ended = (tmp_path / name).read_text().split()
        spans[device].append((float(began), float(ended)))
    assert sorted(map(len, spans.values())) == [1, 2], "both devices are used"
    for times in spans.values():
        assert all(first[1] <= second[0] for first, second in pairwise(sorted(times))), "never shared"
    early = sorted(times[0] for times in map(sorted, spans.values()))
    assert early[1][0] < early[0][1], "two jobs ran at the same time"
