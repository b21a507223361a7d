"""The ZeRO-2 recipe against DeepSpeed itself, installed for this test as `make zero2` installs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch", reason="needs envs/train")

from scripts import train_adapter
from scripts.lib import llamafactory_args as la
from tests.train import training_data as data

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import json, sys, yaml
from llamafactory.hparams import get_train_args
training = get_train_args(yaml.safe_load(open("train.yaml")))[2]
from deepspeed.runtime.config import DeepSpeedConfig
filled = training.hf_deepspeed_config.config
taken = DeepSpeedConfig(filled | {"train_batch_size": 4, "gradient_clipping": 1.0})
print("FACTS", json.dumps({
    "stage": taken.zero_optimization_stage, "plugin": training.deepspeed_plugin.zero_stage,
    "bf16": taken.bfloat16_config.enabled, "batch": taken.train_micro_batch_size_per_gpu,
    "mode": training.parallel_mode.name, "unfilled": sorted(k for k, v in filled.items() if v == "auto"),
}))
"""


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of envs/train/zero2.txt."""
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    folder = tmp_path_factory.mktemp("deepspeed")
    line = [uv, "pip", "install", "--python", sys.executable, "--no-build-isolation", "--no-deps", "--require-hashes"]
    line += ["--target", str(folder), "--requirements", str(ROOT / "envs/train/zero2.txt")]
    try:
        done = subprocess.run(line, env=os.environ | {"DS_BUILD_OPS": "0"}, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"DeepSpeed cannot be installed here: {error}")
    if done.returncode and any(word in done.stderr for word in ("Failed to fetch", "Could not connect", "Network")):
        pytest.skip(f"DeepSpeed is not in uv's cache and there is no network: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder


def test_zero2_recipe_passes_llamafactorys_parser_and_deepspeeds_own(deepspeed: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "config/presets/openeqa-80gb.yaml").read_text())
    config["train"]["distributed"] = "zero2"
    args = la.render(
        config, base="base", dataset_dir="sft", media_dir="frames", output_dir="out", use_cpu=True, settings_dir="."
    )
    (tmp_path / "train.yaml").write_text(la.to_yaml(args | {"ddp_backend": "gloo"}))
    (tmp_path / "zero2.json").write_text(json.dumps(la.ZERO2))
    # the arguments are only taken in a process that torchrun started
    env = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": "29713", "PYTHONPATH": str(deepspeed), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.split("FACTS", 1)[1].splitlines()[0])
    assert facts.pop("unfilled") in ([], ["gradient_clipping", "train_batch_size"])
    assert facts == {"stage": 2, "plugin": 2, "bf16": True, "batch": 4, "mode": "DISTRIBUTED"}


@pytest.mark.parametrize(
    ("kind", "words"),
    [("zero2", "deepspeed is not installed; install it by `make zero2`"), ("fsdp", "needs a GPU, none is visible")],
)
def test_what_cannot_start_here_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, kind: str, words: str
) -> None:
    data.make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_adapter, "visible_devices", lambda: ("cpu", 1))
    found = la.importlib.util.find_spec
    monkeypatch.setattr(la.importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name))
    assert train_adapter.main(data.arguments(data.config(distributed=kind))) == 2
    assert f"config: train.distributed={kind}" in (said := capsys.readouterr().err.strip().splitlines()[-1])
    assert words in said


def test_fsdp_of_one_gpu_is_one_line_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data.make_workspace(tmp_path, dtype="bfloat16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_adapter, "visible_devices", lambda: ("cuda", 1))
    recipe = data.config(distributed="fsdp", precision="bf16")
    assert train_adapter.main(data.arguments(recipe, work="alone", out="alone_out")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train.distributed=fsdp shares the model among GPUs, and 1 takes part here" in said
    assert not list((tmp_path / "alone").glob("*"))
    assert not (tmp_path / "alone_out").exists()
