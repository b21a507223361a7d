"""What has to be true of a loaded model and its data before the first training step, counted and compared.

LLaMA-Factory accepts recipes that train something else than they say: an unknown quantization method trains
unquantized, a sample over the cutoff loses its question. Each check here raises EqaError; what it counted goes into
results/adapter/guards.json.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.errors import EqaError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token without loss
# parts of Qwen3VLForConditionalGeneration, by the path of a module or parameter
LANGUAGE, TOWER, PROJECTOR = "language model", "vision tower", "projector"
_PARTS = (
    (PROJECTOR, re.compile(r"(^|\.)visual\.(merger|deepstack_merger_list)(\.|$)")),
    (TOWER, re.compile(r"(^|\.)visual(\.|$)")),
    (LANGUAGE, re.compile(r"(^|\.)(language_model|lm_head)(\.|$)")),
)
_ADAPTER = re.compile(r"\.(lora_[A-Za-z_]+|modules_to_save)(\.|$)")
_FSDP_MARK = "_fsdp_wrapped_module"  # a part of its own in a name, at any depth


def part_of(name: str) -> str:
    """Which part of the model a module or parameter belongs to; "" for none."""
    name = _without_mark(name)
    return next((part for part, pattern in _PARTS if pattern.search(name)), "")


def plain_name(name: str) -> str:
    """A module's name as in the base model, without what PEFT, DDP and FSDP put around it."""
    name = _without_mark(name)  # first: FSDP's mark stands before PEFT's prefix too
    for prefix in ("module.", "base_model.model."):
        name = name.removeprefix(prefix)
    return name.removesuffix(".base_layer")


def _without_mark(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _FSDP_MARK)


def linear_modules(base_dir: Path) -> list[str]:
    """Names of all linear layers of the base model but its output head, from its configuration, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base_dir))
    head = model.get_output_embeddings()
    return sorted(
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    )


def check_quantization(model: torch.nn.Module, expected: Sequence[str], bits: int, double: bool) -> dict:
    """Every linear layer but the head is quantized, in the type asked for, with nested statistics if asked for.

    Args:
        model: as loaded, with or without adapter.
        expected: names from `linear_modules`.
        bits: config `train.quantization_bit`: 0, 4 or 8.
        double: config `train.double_quantization`.
    Returns:
        Counts for guards.json.
    Raises:
        EqaError: the number of quantized layers, their type or their statistics differ.
    """
    import bitsandbytes

    kinds = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}
    found = {
        n: {plain_name(name): m for name, m in model.named_modules() if isinstance(m, kind)}
        for n, kind in kinds.items()
    }
    counts = {"linear_layers": len(expected), "linear4bit": len(found[4]), "linear8bit": len(found[8])}
    for n in kinds:
        wanted = set(expected) if n == bits else set()
        if set(found[n]) != wanted:
            odd = sorted(set(found[n]) ^ wanted)
            raise EqaError(
                f"guard: {len(found[n])} layers are {n}-bit, {len(wanted)} of {len(expected)} should be ({odd[0]}), "
                f"train.quantization_bit={bits}; train.quantization_method must be bnb, all else trains unquantized"
            )
    if bits == 4:
        states = {name: getattr(module.weight, "quant_state", None) for name, module in found[4].items()}
        bare = sorted(name for name, state in states.items() if state is None)
        if bare:
            raise EqaError(f"guard: {bare[0]} is a 4-bit layer without quantized weights; load the base model again")
        counts["nested"] = sum(bool(state.nested) for state in states.values())
        counts["types"] = sorted({state.quant_type for state in states.values()})
        if counts["nested"] != (len(states) if double else 0):
            raise EqaError(
                f"guard: {counts['nested']} of {len(states)} 4-bit layers have nested statistics, but "
                f"train.double_quantization={str(double).lower()}; correct one of the two"
            )
    return counts


def keep_quantized(model: torch.nn.Module) -> int:
    """Stop bitsandbytes from repacking 4-bit weights in the middle of a training on the CPU.

    On a CPU with AVX512-BF16, the first validation turns each layer's weights into a layout for inference, in place: the
    nested statistics are gone, the block scales are rounded to bfloat16, and training goes on from another base than it
    began with. A resumed run then differs from an uninterrupted one, and one machine from another.

    Returns:
        Layers that would have been repacked.
    Source: bitsandbytes 0.50.2 nn/modules.py Linear4bit.forward, functional.py _convert_weight_packed_for_cpu.
    """
    touched = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    for module in touched:
        module.support_avx512bf16_for_cpu = False
    return len(touched)


def check_adapter(
    model: torch.nn.Module, expected: Sequence[str], target: str, tower_frozen: bool, projector_frozen: bool
) -> dict:
    """Adapters sit on the intended modules, all of them and no other.

    Args:
        expected: names from `linear_modules`.
        target: config `train.lora_target`: "all", or names separated by commas.
    Raises:
        EqaError: a module with an adapter that should have none, or the other way round.
    """
    adapted = sorted(
        plain_name(name) for name, module in model.named_modules() if hasattr(module, "lora_A") and len(module.lora_A)
    )
    counts = {part: sum(part_of(name) == part for name in adapted) for part in (LANGUAGE, TOWER, PROJECTOR)}
    for part, frozen, key in (
        (TOWER, tower_frozen, "freeze_vision_tower"),
        (PROJECTOR, projector_frozen, "freeze_multi_modal_projector"),
    ):
        if frozen and counts[part]:
            first = next(name for name in adapted if part_of(name) == part)
            raise EqaError(
                f"guard: {counts[part]} adapters sit on the {part}, such as {first}, although train.{key}=true"
            )
    language = {name for name in expected if part_of(name) == LANGUAGE}
    if target != "all":
        ends = tuple(entry.strip() for entry in target.split(","))
        language = {name for name in language if name.endswith(ends)}
    differing = sorted({name for name in adapted if part_of(name) != TOWER and part_of(name) != PROJECTOR} ^ language)
    if differing or not adapted:
        first = differing[0] if differing else "none"
        raise EqaError(
            f"guard: {counts[LANGUAGE]} adapters on the language model, {len(language)} expected, such as {first}; "
            f"correct train.lora_target={target}"
        )
    return {"adapters": len(adapted), **{f"adapters_{part.replace(' ', '_')}": count for part, count in counts.items()}}


def check_frozen(model: torch.nn.Module, optimizer: object, tower_frozen: bool, projector_frozen: bool) -> dict:
    """Only adapter weights are trained, and the optimizer moves exactly what is trained.

    Raises:
        EqaError: a base weight that takes gradients, or an optimizer over other weights.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in sorted(trained):
        part = part_of(name)
        if (part == TOWER and tower_frozen) or (part == PROJECTOR and projector_frozen) or not _ADAPTER.search(name):
            raise EqaError(
                f"guard: {name} ({part or 'base model'}) would be trained although it is frozen; "
                "check train.freeze_* and train.extra"
            )
    if not trained:
        raise EqaError("guard: no weight would be trained; check train.lora_target")
    groups = getattr(optimizer, "param_groups", None)
    moved = {id(p) for group in groups for p in group["params"]} if groups is not None else None
    if moved is not None and moved != {id(p) for p in trained.values()}:
        raise EqaError(
            f"guard: the optimizer moves {len(moved)} tensors, {len(trained)} are trainable; "
            "check train.optimizer and train.extra"
        )
    totals = {part: sum(part_of(name) == part for name, _ in model.named_parameters()) for part in (TOWER, PROJECTOR)}
    return {
        "trained_tensors": len(trained),
        "trained_parameters": sum(p.numel() for p in trained.values()),
        "frozen_tensors_vision_tower": totals[TOWER],
        "frozen_tensors_projector": totals[PROJECTOR],
    }


def check_samples(
    rows: Iterable[Mapping], samples: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase, cutoff_len: int, part: str
) -> dict:
    """What will be trained on is what the data says: no sample dropped, cut, or with another answer under the loss.

    Args:
        rows: tokenized, {"input_ids", "labels"}, in file order.
        samples: rows of results/sft/PART.json.
        cutoff_len: config `train.cutoff_len`. Unit: tokens.
        part: for messages.
    Raises:
        EqaError: names the part, the sample's first question_id, and what is missing.
    """
    longest = answer_tokens = count = 0
    for count, row in enumerate(rows, 1):
        if count > len(samples):
            break
        sample = samples[count - 1]
        where = f"guard: {part} sample {count} ({sample['question_ids'][0]})"
        ids, labels = list(row["input_ids"]), list(row["labels"])
        longest = max(longest, len(ids))
        if len(ids) > cutoff_len:
            raise EqaError(
                f"{where} has {len(ids)} tokens > train.cutoff_len={cutoff_len}; "
                "raise it or lower vision.image_max_pixels"
            )
        text = tokenizer.decode(_one_pad_an_image(ids, tokenizer), skip_special_tokens=False)
        runs = _label_runs(labels)
        answer_tokens += sum(len(run) for run in runs)
        answers = [message["content"] for message in sample["messages"] if message["role"] == "assistant"]
        under_loss = [tokenizer.decode(run, skip_special_tokens=False) for run in runs]
        if [_nfc(t) for t in under_loss] != [_nfc(f"{answer}<|im_end|>\n") for answer in answers]:
            raise EqaError(
                f"{where} has {len(runs)} answers under the loss, {len(answers)} expected, or other words; "
                f"it was cut: raise train.cutoff_len={cutoff_len}"
            )
        wanted = _nfc("".join(_rendered(message) for message in sample["messages"]))
        if _nfc(text) != wanted:
            raise EqaError(
                f"{where} lost text or pictures while being tokenized, or got other words (train.extra, train.template); "
                f"correct these, or raise train.cutoff_len={cutoff_len}"
            )
    if count != len(samples):
        raise EqaError(
            f"guard: {part} has {len(samples)} samples but {count} were tokenized; some were dropped, see trainer.log"
        )
    return {f"{part}_samples": count, f"{part}_longest": longest, f"{part}_answer_tokens": answer_tokens}


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)  # Qwen's tokenizer does the same


def _rendered(message: Mapping) -> str:
    if message["role"] == "assistant":
        return f"{message['content']}<|im_end|>\n"
    content = message["content"].replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def _one_pad_an_image(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return [token for i, token in enumerate(ids) if token != pad or i == 0 or ids[i - 1] != pad]


def _label_runs(labels: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    before = IGNORED
    for label in labels:
        if label != IGNORED:
            if before == IGNORED:
                runs.append([])
            runs[-1].append(label)
        before = label
    return runs


def check_finite(name: str, value: float, step: int, run_dir: Path, precision: str = "") -> None:
    """A loss that is a number.

    Args:
        name: of the loss, for the message.
        value: mean cross-entropy of answer tokens.
        step: optimizer steps done with this one.
        run_dir: folder of the run.
        precision: config `train.precision`.
    Raises:
        EqaError: it is not; names the step and the checkpoint that is kept.
    """
    if math.isfinite(value):
        return
    from scripts.lib.checkpoints import COMPLETE, checkpoints

    # one that was just written is not yet marked, and holds what went wrong
    kept = [folder for folder in checkpoints(run_dir) if (folder / COMPLETE).is_file()]
    last = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
    raise EqaError(
        f"{name} is {value} at step {step}; {last}. Lower train.learning_rate or train.max_grad_norm"
        f"{wider(precision)}, then run again"
    )


def wider(precision: str) -> str:
    """What else may help against a number that is none: fp16 ends at 65,504."""
    return ", or set train.precision to bf16 or fp32" if precision == "fp16" else ""


def check_loaded(model: torch.nn.Module, optimizer: object, train: Mapping, base_dir: Path) -> dict:
    """All checks of a loaded model; see the single ones."""
    expected = linear_modules(base_dir)
    frozen = {"tower_frozen": train["freeze_vision_tower"], "projector_frozen": train["freeze_multi_modal_projector"]}
    return {
        **check_quantization(model, expected, train["quantization_bit"], train["double_quantization"]),
        **check_adapter(model, expected, train["lora_target"], **frozen),
        **check_frozen(model, optimizer, **frozen),
    }


def read_samples(path: Path) -> list[dict]:
    """Rows of a sharegpt file that `check_samples` compares with."""
    return json.loads(path.read_text(encoding="utf-8"))
