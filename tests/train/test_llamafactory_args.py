"""The rendered recipe passes LLaMA-Factory's own parser, and train.extra is checked without importing torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("llamafactory", reason="needs envs/train")

from scripts.lib import llamafactory_args as la
from scripts.lib.errors import EqaError

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "config/presets").glob("*.yaml"))
# the recipe that everybody starts from, argument by argument
USUAL = [
    "model_name_or_path",
    "trust_remote_code",
    "stage",
    "do_train",
    "finetuning_type",
    "lora_target",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "use_unsloth",
    "flash_attn",
    "quantization_bit",
    "quantization_method",
    "double_quantization",
    "dataset",
    "template",
    "cutoff_len",
    "max_samples",
    "overwrite_cache",
    "preprocessing_num_workers",
    "output_dir",
    "logging_steps",
    "save_steps",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "num_train_epochs",
    "lr_scheduler_type",
    "warmup_ratio",
    "fp16",
    "ddp_timeout",
    "optim",
    "report_to",
    "plot_loss",
    "video_max_pixels",
    "video_min_pixels",
    "freeze_multi_modal_projector",
    "freeze_vision_tower",
    "image_max_pixels",
    "image_min_pixels",
    "do_eval",
    "per_device_eval_batch_size",
    "val_size",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "prediction_loss_only",
    "load_best_model_at_end",
]


def recipe(preset: str, **changes: object) -> dict:
    config = yaml.safe_load((ROOT / f"config/presets/{preset}.yaml").read_text())
    return {"train": config["train"] | changes, "vision": config["vision"]}


def rendered(config: dict, **options: object) -> dict:
    places = {
        "base": "models/base",
        "dataset_dir": "results/sft",
        "media_dir": "results/frames",
        "output_dir": "work/x",
    }
    return la.render(config, **places | options)


def test_every_key_of_the_usual_recipe_is_rendered_or_accounted_for() -> None:
    args = rendered(recipe("openeqa-t4"))
    gone = set(la.GONE) | {"warmup_ratio"}  # transformers 5 calls it warmup_steps
    assert [key for key in USUAL if key not in args and key not in gone] == []


def test_every_key_of_the_usual_recipe_has_its_row_in_the_docs() -> None:
    page = (ROOT / "docs/training.md").read_text()
    rows = [line.split("|")[1] for line in page.split("## Every key")[1].splitlines() if line.startswith("| `")]
    named = re.findall(r"`([a-z_0-9]+)(?::[^`]*)?`", " ".join(rows))
    assert sorted(named) == sorted(USUAL), "each once"


def test_every_key_of_the_config_has_a_place() -> None:
    known = set(la.PASSED) | set(la.OURS)
    assert set(recipe("demo")["train"]) - known == set()
    assert known - set(recipe("demo")["train"]) == {"vision.image_max_pixels", "vision.image_min_pixels"}


@pytest.mark.parametrize("preset", PRESETS)
def test_rendered_recipe_passes_the_parser(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.hparams import get_train_args

    monkeypatch.chdir(tmp_path)
    config = recipe(preset, precision="bf16")
    args = rendered(config, use_cpu=True)
    (tmp_path / "train.yaml").write_text(la.to_yaml(args))
    model, data, training, finetuning, _ = get_train_args(yaml.safe_load((tmp_path / "train.yaml").read_text()))
    assert (model.quantization_bit, str(model.quantization_method)) == (4, "bnb")
    assert (data.cutoff_len, data.eval_dataset) == (config["train"]["cutoff_len"], ["openeqa_val"])
    assert training.learning_rate == config["train"]["learning_rate"]
    assert training.get_warmup_steps(1000) == 1000 * config["train"]["warmup_ratio"]
    assert finetuning.lora_rank == config["train"]["lora_rank"]
    assert finetuning.freeze_vision_tower


def test_fsdp_recipe_passes_the_parser_of_a_distributed_process(tmp_path: Path) -> None:
    """FSDP's arguments are only taken in a process that torchrun started."""
    args = rendered(recipe("openeqa-80gb", distributed="fsdp", gradient_checkpointing=False), use_cpu=True) | {
        "ddp_backend": "gloo"
    }
    (tmp_path / "train.yaml").write_text(la.to_yaml(args))
    check = (
        "import sys, yaml; from llamafactory.hparams import get_train_args; "
        "t = get_train_args(yaml.safe_load(open(sys.argv[1])))[2]; "
        "print('FSDP', [str(o.value) for o in t.fsdp], t.fsdp_config['transformer_layer_cls_to_wrap'])"
    )
    env = os.environ | {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29712",
    }
    done = subprocess.run(
        [sys.executable, "-c", check, "train.yaml"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "FSDP ['full_shard', 'auto_wrap'] ['Qwen3VLTextDecoderLayer', 'Qwen3VLVisionBlock']" in done.stdout


def test_wrapped_layers_of_fsdp_exist() -> None:
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    assert all(hasattr(modeling_qwen3_vl, name) for name in la.FSDP["transformer_layer_cls_to_wrap"])


def test_zero2_names_its_file() -> None:
    assert rendered(recipe("openeqa-80gb", distributed="zero2"))["deepspeed"] == "results/adapter/zero2.json"


def test_arguments_are_known_without_importing_torch() -> None:
    check = "import sys; from scripts.lib import llamafactory_args as la; "
    check += "print(len(la.known_arguments()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    count, imported = done.stdout.split()
    assert imported == "False"
    assert int(count) > 250


def test_known_arguments_are_those_of_the_parser() -> None:
    from llamafactory.hparams.parser import _TRAIN_ARGS
    from transformers import HfArgumentParser

    real = {option for action in HfArgumentParser(_TRAIN_ARGS)._actions for option in [action.dest]} - {"help"}
    known = set(la.known_arguments())
    assert {name for name in real if name not in known and not name.startswith("no_")} == set()
    assert sorted(known - real) == []


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"use_rslorra": True}, "near matches: use_rslora"),
        ({"learning_rate": 1.0}, "set train.learning_rate"),
        ({"output_dir": "x"}, "it is set by train_adapter itself"),
        ({"val_size": 0.1}, "random split by question"),
        ({"trust_remote_code": True}, "no foreign code"),
        ({"compute_dtype": "float32"}, "no argument"),
        ({"use_dora": "yes"}, "bool is wanted"),
        ({"loraplus_lr_ratio": "16"}, "wrong type"),
        ({"warmup_steps": 3}, "set train.warmup_ratio"),
    ],
)
def test_bad_extra_is_refused(extra: dict, words: str) -> None:
    with pytest.raises(EqaError, match=re.escape(words)):
        la.check_extra(extra)


def test_good_extra_is_passed_on() -> None:
    extra = {"use_rslora": True, "loraplus_lr_ratio": 16, "early_stopping_steps": None, "neftune_noise_alpha": 5.0}
    assert rendered(recipe("demo", extra=extra)).items() >= extra.items()


@pytest.mark.parametrize(
    ("batch", "accumulation", "devices", "wanted"),
    [
        (2, 4, 1, (1, 2, 4)),
        (2, 4, 2, (2, 2, 2)),
        (2, 4, 8, (8, 1, 1)),
        (4, 1, 8, (4, 1, 1)),
        (2, 3, 4, (3, 2, 1)),
        (4, 3, 2, (2, 2, 3)),  # three at once would cut across batches of four
        (4, 6, 8, (8, 1, 3)),
        (3, 1, 2, (1, 3, 1)),
    ],
)
def test_devices_share_a_step_without_changing_it(batch: int, accumulation: int, devices: int, wanted: tuple) -> None:
    assert la.spread(batch, accumulation, devices) == wanted
    used, at_once, times = wanted
    assert used * at_once * times == batch * accumulation
    assert batch % at_once == 0
    assert used * at_once % batch == 0, "whole batches at any moment"


def base_of(folder: Path, dtype: str, named: bool = True) -> Path:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, dtype=getattr(torch, dtype))}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dtype": dtype} if named else {}))
    return folder


@pytest.mark.parametrize(
    ("dtype", "changes", "words"),
    [
        ("float32", {}, "its weights are float32, and train.distributed=fsdp shares layers of one type only"),
        ("float16", {}, "set train.precision to fp16, or train.distributed to ddp"),
        ("bfloat16", {"precision": "fp32"}, "set train.precision to bf16"),
        ("bfloat16", {"quantization_bit": 8}, "set train.quantization_bit to 4"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_fsdp_of_mixed_types_or_eight_bits_is_one_line(
    tmp_path: Path, dtype: str, changes: dict, words: str, named: bool
) -> None:
    train = recipe("openeqa-80gb", distributed="fsdp", **changes)["train"]
    with pytest.raises(EqaError, match=re.escape(words)) as told:
        la.check_fsdp(train, base_of(tmp_path, dtype, named))
    assert "\n" not in str(told.value)


def test_fsdp_of_a_base_of_the_type_of_the_steps_may_start(tmp_path: Path) -> None:
    train = recipe("openeqa-80gb", distributed="fsdp")["train"]
    la.check_fsdp(train, base_of(tmp_path, "bfloat16", named=False))
    la.check_fsdp(train | {"quantization_bit": 0}, base_of(tmp_path, "float32"))
    la.check_fsdp(train | {"distributed": "ddp"}, tmp_path)


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "zero2"])
def test_recipe_file_says_how_it_is_started_by_hand(kind: str) -> None:
    head = la.to_yaml(rendered(recipe("openeqa-80gb", distributed=kind)), devices=2)
    assert ("# " + "  FORCE_TORCHRUN=1 uv run" in head) == (kind != "ddp")
    assert "meant for 2 device(s)" in head


def test_nodes_get_equal_shares_of_a_step() -> None:
    assert la.spread(2, 4, 16, nodes=2) == (8, 1, 1)
    assert la.spread(6, 1, 8, nodes=2) == (6, 1, 1)
    for batch, nodes in ((3, 2), (6, 4)):
        with pytest.raises(EqaError, match=rf"train\.nodes={nodes} cannot share .*={batch} samples equally"):
            la.spread(batch, 1, 8, nodes=nodes)
