"""bench/train_throughput on a CPU: both sides train for real; nothing here is timed."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("text", ["nosuch", "demo train.nosuch=1", "demo merge.sample=1", "demo batch=1"])
def test_unknown_preset_or_key_is_named(text: str) -> None:
    with pytest.raises(SystemExit, match=text.split()[-1]):
        bench.variant(text)


def test_a_bound_on_memory_is_no_key_of_the_recipe() -> None:
    chosen = bench.variant("openeqa-t4 train.batch_size=2 gpu_gib=14.6")
    assert chosen.gpu_gib == 14.6
    assert chosen.config["train"]["batch_size"] == 2
