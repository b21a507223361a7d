"""Why config train.backend unsloth is refused: what LLaMA-Factory hands over, and what Unsloth makes of it.

Unsloth is in no environment of the project; docs/decisions.md says how to have the last test run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import train_adapter
from scripts.lib import llamafactory_args as la
from scripts.lib.errors import EqaError
from tests.train import training_data as data

ROOT = Path(__file__).resolve().parents[2]
TARGETS = """
import json, sys, torch
{first}
from transformers import AutoConfig, AutoModelForImageTextToText
from llamafactory.hparams import get_train_args
from llamafactory.model.model_utils.misc import find_all_linear_modules
from llamafactory.model.model_utils.visual import patch_target_modules
with torch.device("meta"):
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained("models/base"))
finetuning = get_train_args(json.load(open("train.json")))[3]
names = patch_target_modules(model, finetuning, {targets})
print("NAMES", json.dumps(names))
{last}
"""
ASK = """
from unsloth_zoo.peft_utils import get_peft_regex
try:
    print("TAKEN", get_peft_regex(model, finetune_vision_layers=False, target_modules=names))
except RuntimeError as error:
    print("REFUSED", error)
leaves = sorted({name.rpartition(".")[2] for name in names})
print("LEAVES", get_peft_regex(model, finetune_vision_layers=False, target_modules=leaves))
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data.make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(space: Path, targets: str, first: str = "", last: str = "") -> dict[str, str]:
    """What the program printed by its first words."""
    args = la.render(
        data.config(),
        base="models/base",
        dataset_dir="results/sft",
        media_dir="results/frames",
        output_dir="out",
        use_cpu=True,
    )
    (space / "train.json").write_text(json.dumps(args))
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_ALLOW_CPU": "1",
        "UNSLOTH_IS_PRESENT": "1",
    }
    code = TARGETS.format(targets=targets, first=first, last=last)
    done = subprocess.run([sys.executable, "-c", code], cwd=space, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.partition(" ")[0].isupper())


@pytest.mark.parametrize("targets", ["find_all_linear_modules(model, True)", '["q_proj", "v_proj"]'])
def test_llamafactory_names_layers_by_whole_paths_whatever_lora_target_says(space: Path, targets: str) -> None:
    names = json.loads(run(space, targets)["NAMES"])
    assert len(names) >= 4
    assert all(name.startswith("model.language_model.layers.") for name in names)


@pytest.mark.skipif(
    importlib.util.find_spec("unsloth_zoo") is None, reason="Unsloth is not installed; how: docs/decisions.md"
)
def test_unsloth_finds_no_layer_by_whole_paths(space: Path) -> None:
    """Fails on the day that Unsloth takes them: then train.backend unsloth is worth another look."""
    said = run(space, "find_all_linear_modules(model, True)", first="import unsloth_zoo", last=ASK)
    assert said["REFUSED"].startswith("Unsloth: No layers to finetune?")
    assert "q_proj" in said["LEAVES"]


def test_training_by_hand_refuses_it_and_starts_nothing(space: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = data.config(backend="unsloth")
    assert train_adapter.main(data.arguments(recipe, work="work", out="out")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train.backend=unsloth cannot train Qwen3-VL" in said
    assert said.endswith("set train.backend to llamafactory")
    assert not (space / "out").exists()
    assert not list((space / "work").glob("*/checkpoint-*"))


def test_rendering_refuses_it(space: Path) -> None:
    with pytest.raises(EqaError, match=r"^config: train\.backend=unsloth .*docs/decisions\.md"):
        la.render(data.config(backend="unsloth"), base="b", dataset_dir="d", media_dir="m", output_dir="o")
