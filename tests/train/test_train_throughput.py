"""bench/train_throughput on a CPU: both sides train for real; nothing here is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from bench import train_throughput as bench


def test_base_and_two_of_ours_in_one_run_and_a_third_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["--preset", "demo", "--episodes", "4", "--questions", "2", "--baseline-steps", "4", "--steps", "15"]
    line += ["--also", "demo train.batch_size=1", "--also", "demo train.learning_rate=-1", "--work-dir", str(tmp_path)]
    assert bench.main(line) == 1
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    one, two = result["runs"]
    assert [run["recipe"]["batch_size"] for run in (one, two)] == [2, 1]
    assert [run["updates_an_epoch"] for run in (one, two)] == [300, 601]  # batch 2 and 1, two questions each
    for run in (one, two):
        assert run["ratio"] == pytest.approx(run["ours"] / result["baseline"], rel=0.01)
        assert run["loss"]["ours"] > 0
        assert run["vision_cache"]["mb"] > 0
    (failed,) = result["failed"]
    assert failed["variant"] == "demo train.learning_rate=-1"
    assert "learning rate" in failed["why"]
    assert out[1].endswith("baseline")
    assert len(list(tmp_path.glob("ours*/adapter/adapter_model.safetensors"))) == 2


def test_one_and_two_processes_take_the_same_steps_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["--preset", "demo", "--episodes", "4", "--questions", "2", "--steps", "8", "--skip-baseline", "2.5"]
    assert bench.main([*line, "--gpus", "1", "2", "--work-dir", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, two = result["runs"]
    assert result["baseline"] == 2.5
    assert (one["gpus"], two["gpus"]) == (1, 2)
    assert one["recipe"]["gradient_accumulation"] == 2, "two have as many samples at once as one"
    assert len(one["losses"]) == len(two["losses"]) == 8
    assert two["losses_apart"]["largest"] < 0.01
    assert two["ratio_to_first"] == pytest.approx(two["ours"] / one["ours"], rel=0.01)
    assert two["torch_peak_mb_each"] == two["gpu_mb_each"] == [0, 0]


def test_the_bound_on_memory_acts_in_the_processes_that_torchrun_starts(tmp_path: Path) -> None:
    """A stand-in for torch writes down what it was told."""
    (tmp_path / "sitecustomize.py").write_text(bench.LIMITED_CHILD.format(gib=24.0))
    (tmp_path / "torch.py").write_text(
        "class cuda:\n"
        "    get_device_properties = lambda n: type('Card', (), {'total_memory': 96 * 2**30})\n"
        "    set_per_process_memory_fraction = lambda share, n: print(share, n)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", ""], env=environ | extra, capture_output=True, text=True).stdout
        for extra in ({"LOCAL_RANK": "1"}, {})
    ]
    assert said == ["0.25 1\n", ""]


def test_gpus_are_the_first_of_those_shown() -> None:
    assert bench.chosen_gpus(2, {}) == "0,1"
    assert bench.chosen_gpus(1, {"CUDA_VISIBLE_DEVICES": "GPU-b, GPU-a"}) == "GPU-b"
    with pytest.raises(SystemExit, match="shows 1; show more"):
        bench.chosen_gpus(2, {"CUDA_VISIBLE_DEVICES": "3"})


@pytest.mark.parametrize("text", ["nosuch", "demo train.nosuch=1", "demo merge.sample=1", "demo batch=1"])
def test_unknown_preset_or_key_is_named(text: str) -> None:
    with pytest.raises(SystemExit, match=text.split()[-1]):
        bench.variant(text)


def test_a_bound_on_memory_is_no_key_of_the_recipe() -> None:
    chosen = bench.variant("openeqa-t4 train.batch_size=2 gpu_gib=14.6")
    assert chosen.gpu_gib == 14.6
    assert chosen.config["train"]["batch_size"] == 2
