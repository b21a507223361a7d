"""Each guard of scripts.lib.guards trips on what it is for, and lets a right model pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs envs/train")

from scripts.lib import guards, sharegpt  # noqa: E402
from scripts.lib.answer_loss import use_answer_only_loss  # noqa: E402
from scripts.lib.errors import EqaError  # noqa: E402
from tests.train.prediction_data import PROMPT, make_base  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FSDP = """
import functools, json, sys
from pathlib import Path
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import BitsAndBytesConfig, Qwen3VLForConditionalGeneration
from scripts.lib import guards, trainer

import os
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=2)
base = Path(sys.argv[1])
storage = {"bnb_4bit_compute_dtype": torch.bfloat16, "bnb_4bit_quant_storage": torch.bfloat16}
settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", **storage)
LANGUAGE = r".*language_model.*\\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

count = []

def wrapped():
    model = Qwen3VLForConditionalGeneration.from_pretrained(base, quantization_config=settings, device_map={"": "cpu"})
    model = get_peft_model(model, LoraConfig(r=2, target_modules=LANGUAGE))
    guards.keep_quantized(model)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    count.append(sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
    plugin = FullyShardedDataParallelPlugin(sync_module_states=False, cpu_ram_efficient_loading=False)
    plugin.set_mixed_precision(torch.bfloat16, override=True)  # as transformers does for a 4-bit base
    return FullyShardedDataParallel(
        model, auto_wrap_policy=fsdp_auto_wrap_policy(model), mixed_precision=plugin.mixed_precision_policy,
        use_orig_params=True, device_id=torch.device("cpu"),
    )

def rotary(model):
    with torch.autocast("cpu", torch.bfloat16):  # as the trainer's steps are
        model(input_ids=torch.ones(1, 8, dtype=torch.long))
    return str(next(b for name, b in model.named_buffers() if "language_model" in name and name.endswith("inv_freq")).dtype)

found = {"rounded": rotary(wrapped())}
with trainer.fsdp_buffers_in_float32():
    model = wrapped()
found["kept"] = rotary(model)
train = {"freeze_vision_tower": True, "freeze_multi_modal_projector": True, "quantization_bit": 4}
train |= {"double_quantization": True, "lora_target": "all"}
facts = guards.check_loaded(model, None, train, base) | {"buffers": found, "before": count[-1]}
facts["all_trained_parameters"] = sum(trainer.every_rank(facts["trained_parameters"]))
print(json.dumps(facts))
"""
FROZEN = {"tower_frozen": True, "projector_frozen": True}
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("guards") / "base", scale=1.0).parent


def load(base: Path, bits: int = 4, double: bool = True, targets: str | None = LANGUAGE) -> object:
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, Qwen3VLForConditionalGeneration

    options = {}
    if bits:
        settings = {"load_in_8bit": True}
        if bits == 4:
            settings = {"load_in_4bit": True, "bnb_4bit_use_double_quant": double, "bnb_4bit_quant_type": "nf4"}
            settings["bnb_4bit_compute_dtype"] = torch.bfloat16
        options = {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": "cpu"}}
    model = Qwen3VLForConditionalGeneration.from_pretrained(base, **options)
    for weight in model.parameters():
        weight.requires_grad_(False)
    return get_peft_model(model, LoraConfig(r=2, target_modules=targets)) if targets else model


@pytest.fixture(scope="module")
def layers(base: Path) -> int:
    """Layers of the language model; each has seven linear modules."""
    return json.loads((base / "config.json").read_text())["text_config"]["num_hidden_layers"]


@pytest.fixture(scope="module")
def model(base: Path) -> object:
    return load(base)


@pytest.fixture(scope="module")
def linear(base: Path) -> list[str]:
    return guards.linear_modules(base)


def test_right_model_passes_and_is_counted(model: object, linear: list[str], layers: int) -> None:
    facts = guards.check_quantization(model, linear, 4, True)
    assert facts["linear4bit"] == facts["nested"] == len(linear)
    assert "lm_head" not in linear
    assert any("deepstack_merger_list" in name for name in linear)
    assert guards.check_adapter(model, linear, "all", **FROZEN)["adapters"] == 7 * layers
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    assert guards.check_frozen(model, optimizer, **FROZEN)["trained_tensors"] == 14 * layers


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        (
            "_fsdp_wrapped_module.base_model.model.model.language_model.layers.0._fsdp_wrapped_module.mlp.up_proj.base_layer",
            "model.language_model.layers.0.mlp.up_proj",
        ),
        ("_fsdp_wrapped_module.base_model.model.model.visual.merger.linear_fc1", "model.visual.merger.linear_fc1"),
        ("module.base_model.model.model.visual.merger.linear_fc1", "model.visual.merger.linear_fc1"),
        ("base_model.model.lm_head._fsdp_wrapped_module", "lm_head"),
    ],
)
def test_names_are_those_of_the_base_under_fsdp_and_ddp(wrapped: str, plain: str) -> None:
    assert guards.plain_name(wrapped) == plain


def test_model_under_fsdp_passes_and_its_rotary_table_is_not_rounded(tmp_path: Path) -> None:
    """Real FSDP of two processes on the CPU, laid out by PEFT's rule and accelerate's types, each a process of its own."""
    base = make_base(tmp_path / "base", scale=1.0, dtype="bfloat16").parent
    environ = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environ |= {"MEETING": f"file://{tmp_path / 'meeting'}"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", FSDP, str(base)],
            env=environ | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"{rank}.log").open("w"),
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
    found = [json.loads(text.splitlines()[-1]) for text in said]
    for facts in found:
        assert facts["linear4bit"] == facts["linear_layers"] == facts["nested"]
        assert facts["buffers"] == {"kept": "torch.float32", "rounded": "torch.bfloat16"}
        assert facts["all_trained_parameters"] == sum(one["trained_parameters"] for one in found)
        assert facts["all_trained_parameters"] == facts["before"]


def test_unquantized_model_trips(base: Path, linear: list[str]) -> None:
    with pytest.raises(EqaError, match=r"0 layers are 4-bit, \d+ of \d+ should be"):
        guards.check_quantization(load(base, bits=0), linear, 4, True)


def test_quantized_model_trips_where_none_was_asked_for(model: object, linear: list[str]) -> None:
    with pytest.raises(EqaError, match=r"\d+ layers are 4-bit, 0 of"):
        guards.check_quantization(model, linear, 0, True)


def test_single_quantization_trips(base: Path, linear: list[str]) -> None:
    with pytest.raises(EqaError, match=r"0 of \d+ 4-bit layers have nested statistics"):
        guards.check_quantization(load(base, double=False), linear, 4, True)
    assert guards.check_quantization(load(base, double=False), linear, 4, False)["nested"] == 0


def test_one_layer_left_in_full_precision_trips(base: Path, linear: list[str]) -> None:
    model = load(base, targets=None)
    mlp = model.model.language_model.layers[1].mlp
    mlp.down_proj = torch.nn.Linear(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)
    with pytest.raises(EqaError, match=r"layers\.1\.mlp\.down_proj"):
        guards.check_quantization(model, linear, 4, True)


def test_validation_would_repack_the_base_unless_told_not_to(base: Path, linear: list[str]) -> None:
    model = load(base, targets=None)
    layer = model.model.language_model.layers[0].mlp.up_proj
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes leaves the weights alone")
    other = load(base, targets=None)
    assert guards.keep_quantized(other) == len(linear)
    for changed in (model, other):
        changed.eval()
        with torch.no_grad():
            changed.model.language_model.layers[0].mlp.up_proj(torch.zeros(1, 4, 256, dtype=torch.bfloat16))
    assert not layer.weight.quant_state.nested, "the fault is gone from bitsandbytes; keep_quantized can go"
    guards.check_quantization(other, linear, 4, True)


@pytest.mark.parametrize(
    ("targets", "word"),
    [(LANGUAGE + r"|.*visual\.blocks.*qkv", "vision tower"), (LANGUAGE + r"|.*merger.*linear_fc1", "projector")],
)
def test_adapter_on_a_frozen_part_trips(base: Path, linear: list[str], targets: str, word: str) -> None:
    with pytest.raises(EqaError, match=word):
        guards.check_adapter(load(base, targets=targets), linear, "all", **FROZEN)


def test_missing_adapter_trips(base: Path, linear: list[str], layers: int) -> None:
    with pytest.raises(EqaError, match=f"{4 * layers} adapters on the language model, {7 * layers} expected"):
        guards.check_adapter(load(base, targets=r".*language_model.*self_attn\..*_proj"), linear, "all", **FROZEN)
    model = load(base, targets=r".*language_model.*(q_proj|v_proj)")
    assert guards.check_adapter(model, linear, "q_proj,v_proj", **FROZEN)["adapters"] == 2 * layers


@pytest.mark.parametrize(
    "part",
    ["visual.deepstack_merger_list.0.norm", "visual.merger.norm", "visual.blocks.0.norm1", "language_model.norm"],
)
def test_base_weight_that_takes_gradients_trips(model: object, part: str) -> None:
    weight = dict(model.named_parameters())[f"base_model.model.model.{part}.weight"]
    weight.requires_grad_(True)
    with pytest.raises(EqaError, match=rf"{part}.*would be trained"):
        guards.check_frozen(model, None, **FROZEN)
    weight.requires_grad_(False)


def test_optimizer_over_other_weights_trips(model: object, layers: int) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(EqaError, match=f"moves {14 * layers - 1} tensors, {14 * layers} are trainable"):
        guards.check_frozen(model, torch.optim.AdamW(trained[1:]), **FROZEN)


# ------------------------------------------------------------------------------------------------ samples


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def tokenized(sample: dict, tokenizer: object, pads: int = 6) -> dict:
    """A row as LLaMA-Factory makes it."""
    ids: list[int] = []
    labels: list[int] = []
    for message in sample["messages"]:
        if message["role"] == "user":
            text = sharegpt.rendered_user(message["content"]).replace("<|image_pad|>", "<|image_pad|>" * pads)
            new = tokenizer.encode(text, add_special_tokens=False)
            labels += [-100] * len(new)
        else:
            new = tokenizer.encode(sharegpt.rendered_assistant(message["content"]), add_special_tokens=False)
            labels += new
        ids += new
    return {"input_ids": ids, "labels": labels}


TURNS = [
    ("q-1", "which colour is the wall", "red"),
    ("q-2", "how many lamps", "two"),
    ("q-3", "où est la porte?", "près du mur"),
]
SAMPLE = sharegpt.sample(TURNS, PROMPT, ["a/000.jpg", "a/001.jpg"], "a")


def test_whole_samples_pass(tokenizer: object) -> None:
    facts = guards.check_samples([tokenized(SAMPLE, tokenizer)], [SAMPLE], tokenizer, 768, "train")
    assert facts["train_samples"] == 1
    assert facts["train_longest"] == len(tokenized(SAMPLE, tokenizer)["input_ids"])


def cut(row: dict, start: int, end: int | None) -> dict:
    return {key: value[:start] + (value[end:] if end is not None else []) for key, value in row.items()}


@pytest.mark.parametrize("lost", ["last answer", "an end", "a question", "a picture"])
def test_cut_sample_trips(tokenizer: object, lost: str) -> None:
    row = tokenized(SAMPLE, tokenizer)
    answer = len(tokenizer.encode(sharegpt.rendered_assistant("près du mur"), add_special_tokens=False))
    first = row["input_ids"].index(tokenizer.convert_tokens_to_ids("<|vision_start|>"))
    question = next(i for i, label in enumerate(row["labels"]) if label != -100) - 12
    where = {
        "last answer": (-answer, None),
        "an end": (-1, None),
        "a question": (question, question + 3),
        "a picture": (first, first + 8),
    }
    with pytest.raises(EqaError, match=r"guard: train sample 1 \(q-1\)"):
        guards.check_samples([cut(row, *where[lost])], [SAMPLE], tokenizer, 768, "train")


def test_sample_over_the_cutoff_trips(tokenizer: object) -> None:
    with pytest.raises(EqaError, match=r"tokens > train\.cutoff_len=40"):
        guards.check_samples([tokenized(SAMPLE, tokenizer)], [SAMPLE], tokenizer, 40, "val")


def test_dropped_sample_trips(tokenizer: object) -> None:
    with pytest.raises(EqaError, match="has 2 samples but 1 were tokenized"):
        guards.check_samples([tokenized(SAMPLE, tokenizer)], [SAMPLE, SAMPLE], tokenizer, 768, "train")


# ------------------------------------------------------------------------------------------------ loss


def test_answer_only_loss_is_the_same_loss(base: Path) -> None:
    """Loss and gradients of one batch of two, padded, in float32, with and without the logits of every token."""
    torch.manual_seed(3)
    model = load(base, bits=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    ids = torch.randint(0, 200, (2, 30))
    labels = torch.full_like(ids, -100)
    labels[0, 5:9], labels[0, 20:22], labels[1, 28:], labels[1, 0] = 7, 11, 3, 9
    mask = torch.ones_like(ids)
    mask[1, 25:27] = 0

    def measured() -> tuple[float, list, object]:
        model.zero_grad()
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
        out.loss.backward()
        return out.loss.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad], out.logits

    loss, gradients, logits = measured()
    use_answer_only_loss(model)
    other, others, none = measured()
    assert logits.shape[:2] == (2, 30)
    assert none is None, "the wrapper was not used"
    assert abs(loss - other) < 1e-6
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True)) < 1e-6
    assert model(input_ids=ids, attention_mask=mask).logits.shape[:2] == (2, 30), "without labels nothing changes"


def test_devices_that_share_batches_get_the_loss_of_whole_batches(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of two samples on four ranks, one each; what the ranks average to is the mean of both batches."""
    model = load(base, bits=0, targets=None)
    torch.manual_seed(3)
    ids = torch.randint(0, 200, (4, 30))
    labels = torch.full_like(ids, -100)
    for row, count in enumerate((2, 25, 9, 1)):  # answers of very different length
        labels[row, 3 : 3 + count] = ids[row, 3 : 3 + count]
    use_answer_only_loss(model)
    model.train()
    with torch.no_grad():
        wanted = sum(model(input_ids=ids[i : i + 2], labels=labels[i : i + 2]).loss for i in (0, 2)) / 2
    use_answer_only_loss(model, together=2)

    def all_gather(counts: list, count: object) -> None:
        for there, row in zip(counts, labels, strict=True):
            there.fill_(int((row != -100).sum()))

    losses = []
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
        with torch.no_grad():
            losses.append(model(input_ids=ids[rank : rank + 1], labels=labels[rank : rank + 1]).loss)
    assert abs(sum(losses) / 4 - wanted) < 1e-5
    model.eval()
    with torch.no_grad():
        alone = model(input_ids=ids[:1], labels=labels[:1]).loss
    assert abs(alone * 2 / 27 * 2 - losses[0]) < 1e-5, "validation is the mean over its own tokens, and asks nobody"


def test_fp16_that_overflows_is_told_of_a_wider_type(tmp_path: Path) -> None:
    with pytest.raises(EqaError, match=r"or set train\.precision to bf16 or fp32, then run again"):
        guards.check_finite("the training loss", float("nan"), 3, tmp_path, "fp16")
    with pytest.raises(EqaError, match=r"train\.max_grad_norm, then run again"):
        guards.check_finite("the training loss", float("nan"), 3, tmp_path, "bf16")


def test_answer_only_loss_refuses_another_architecture() -> None:
    with pytest.raises(EqaError, match=r"train\.answer_only_loss=true wants one"):
        use_answer_only_loss(torch.nn.Linear(2, 2))
