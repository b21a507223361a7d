"""tests/gpu/several.sh, whole, with two processes on the CPU and the demo's model; ZeRO-2 where DeepSpeed is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")
pytest.importorskip("llamafactory", reason="needs envs/train")

ROOT = Path(__file__).resolve().parents[2]
# two cards that are not there, as nvidia-smi -L lists them
SMI = """#!/bin/sh
echo "GPU 0: Made up (UUID: GPU-aaaaaaaa-0000-0000-0000-000000000000)"
echo "GPU 1: Made up (UUID: GPU-bbbbbbbb-0000-0000-0000-000000000000)"
"""


def rehearse(work: Path, parts: str, **environ: str) -> tuple[int, list[dict]]:
    """Exit code of several.sh, and its lines."""
    env = os.environ | {"PARTS": parts, "PYTHON": sys.executable, "OUT": str(work / "lines")} | environ
    env.pop("PYTHONPATH", None)
    (work / "lines").mkdir(parents=True, exist_ok=True)
    command = ["bash", str(ROOT / "tests/gpu/several.sh"), "-", str(work), "--device", "cpu", "--small"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1100)
    lines = (work / "lines/several.jsonl").read_text().splitlines()
    return done.returncode, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


def test_every_part_runs_on_two_processes(work: Path) -> None:
    code, lines = rehearse(work, "model ddp fsdp zero2 predict")
    found = {line["part"]: line for line in lines}
    assert code == 0, lines
    assert list(found) == ["model", "ddp", "fsdp", "zero2", "predict"]
    predict = found["predict"]
    for kind in ("ddp", "fsdp"):
        facts = found[kind]
        assert facts["status"] == predict["status"] == "ok"
        assert facts["steps"] == 8
        assert facts["gone_on_from"] == "checkpoint-6"
        assert facts["same_bytes"], f"{kind}: on a CPU what went on ends with the bytes of the whole training"
        assert facts["merge"]["share_identical"] == 1
    assert found["fsdp"]["losses_apart_from_ddp"]["largest"] < 0.02
    assert predict["questions"] == 12
    assert predict["written_before_the_kill"] == predict["resumed"] > 0


def test_a_part_that_went_well_is_not_run_again(work: Path) -> None:
    log = work / "logs/ddp-whole.log"
    before = log.stat().st_mtime_ns
    code, lines = rehearse(work, "ddp")
    assert code == 0
    assert log.stat().st_mtime_ns == before
    assert [line["part"] for line in lines][:2] == ["model", "ddp"]


def test_bench_and_two_jobs_at_once_have_their_lines(work: Path) -> None:
    smi = work / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(SMI)
    smi.chmod(0o755)
    locks = work / "locks"
    locks.mkdir()
    path = os.pathsep.join([str(smi.parent), os.environ["PATH"]])
    code, lines = rehearse(work, "bench devices", PATH=path, TMPDIR=str(locks))
    found = {line["part"]: line for line in lines}
    assert code == 0, lines
    assert sorted(name[:12] for name in found["devices"]["devices"]) == ["GPU-aaaaaaaa", "GPU-bbbbbbbb"]
    assert found["bench"]["losses_apart"]["largest"] < 0.01
    assert json.loads((work / "lines/train_throughput-2gpu.json").read_text())["runs"][1]["gpus"] == 2


def test_a_part_that_fails_is_a_line_and_exit_code_1(tmp_path: Path) -> None:
    code, (line,) = rehearse(tmp_path, "predict")
    assert code == 1
    assert (line["status"], line["why"]) == ("failed", "predict: no adapter; run the part ddp first")
