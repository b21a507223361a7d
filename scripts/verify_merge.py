"""Proof of the merge: base + adapter against the merged model on test questions.   By hand, in envs/train:

    uv run --frozen --project envs/train python -m scripts.verify_merge --base models/base/manifest.json \
        --adapter results/adapter/manifest.json --merged results/merged/manifest.json --test results/sft/test.json \
        --frames results/frames/manifest.json --config '{"merge":{...},"vision":{...},"predict":{...}}' \
        --output results/merged/verify.json
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.engines.pictures import open_picture
from scripts.lib.engines.transformers_engine import load_model, stop_tokens
from scripts.lib.errors import EqaError
from scripts.lib.files import check_manifest, read_json, read_manifest, remove, safe_join, sha256_file, write_json
from scripts.lib.ollama_folder import check_shards
from scripts.lib.progress import track
from scripts.lib.sharegpt import rendered_user
from scripts.lib.threads import one_thread

log = logging.getLogger(__name__)

# How much of the adapter's effect the merged model must have. A right merge has 1; where the adapter does less than the type
# of the weights rounds away, the shared rounding of the base makes it 0.5; one without the adapter has 0
STRENGTH = (0.25, 1.5)
COLUMNS = 8192  # words of each position that the strength is taken from, evenly spaced
LAST_POSITIONS = 32  # of each prompt whose logits are compared; with the answer's they cover the question's end


def spread_sample(rows: Sequence[Mapping], count: int) -> list[Mapping]:
    """`count` rows, evenly spaced in the order of their question_id; all of them if there are fewer."""
    ordered = sorted(rows, key=lambda row: row["question_id"])
    count = min(count, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]


def strength(products: Sequence[tuple[float, float]]) -> float | None:
    """The share of the adapter's effect that the merged model has, by least squares over the logits.

    The largest difference alone cannot tell a merge that left a weak adapter out: in bfloat16 its tolerance has to let
    rounding pass, which is as large.

    Args:
        products: of each question, (merged - base) . (adapted - base) and (adapted - base) . (adapted - base).
    Returns:
        1 for a right merge; None where the adapter changes nothing.
    """
    whole = sum(square for _, square in products)
    return sum(product for product, _ in products) / whole if whole > 0 else None


def verdict(
    differences: Sequence[float], same: Sequence[bool], merge: Mapping, found_strength: float | None = None
) -> dict:
    """What verify.json says.

    Args:
        differences: largest absolute logit difference of each question.
        same: whether its greedy answers are identical.
        merge: config merge.
        found_strength: of `strength`.
    Raises:
        EqaError: over merge.tolerance, or not a number; too little or too much of the adapter.
    """
    largest = max(differences)
    if not all(map(math.isfinite, differences)):
        raise EqaError(
            f"results/merged is not base + adapter: the logits of {sum(not math.isfinite(d) for d in differences)} of "
            f"{len(differences)} questions are no numbers ({merge['dtype']}); merge again, with merge.dtype bfloat16 or float32"
        )
    if largest > merge["tolerance"]:
        raise EqaError(
            f"results/merged is not base + adapter: logits differ by {largest:.3g} > "
            f"merge.tolerance={merge['tolerance']:g}, {sum(same)} of {len(same)} greedy answers are identical "
            f"({merge['dtype']}); merge again, or raise merge.tolerance if the type of the weights explains it"
        )
    if found_strength is not None and not STRENGTH[0] <= found_strength <= STRENGTH[1]:
        raise EqaError(
            f"results/merged is not base + adapter: it has {found_strength:.2f} times the adapter's effect on the logits, "
            f"{STRENGTH[0]:g} to {STRENGTH[1]:g} pass ({merge['dtype']}, largest difference {largest:.3g}); merge again: "
            "snakemake --force results/merged/manifest.json"
        )
    return {
        "adapter_strength": found_strength,
        "largest_logit_difference": largest,
        "mean_logit_difference": sum(differences) / len(differences),
        "tolerance": merge["tolerance"],
        "identical_answers": sum(same),
        "share_identical": sum(same) / len(same),
        "sample": len(same),
        "dtype": merge["dtype"],
    }


def run(args: argparse.Namespace) -> dict:
    """Compare; write verify.json only if they agree."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    one_thread()
    remove(args.output)
    base, adapter, merged = args.base.parent, args.adapter.parent, args.merged.parent
    for manifest in (args.base, args.adapter, args.merged):
        check_manifest(manifest)
    check_shards(merged)
    facts = read_manifest(args.merged)
    for key, manifest in (("base_sha256", args.base), ("adapter_sha256", args.adapter)):
        if facts.get(key) != sha256_file(manifest):
            raise EqaError(
                f"{args.merged}: {key} is not that of {manifest}; merge again: snakemake --force {args.merged}"
            )
    frames = (args.frames or args.test.parent.parent / "frames/manifest.json").parent
    rows = read_json(args.test, "test part")
    if not rows:
        raise EqaError(f"{args.test}: no test questions to compare on; raise split.test")
    rows = spread_sample(rows, args.config["merge"]["sample"])

    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = args.config["merge"]["dtype"]
    questions = list(_encoded(rows, base, frames, args.config["vision"]))
    limit = args.config["predict"]["max_new_tokens"]
    stops = stop_tokens(_processor(base).tokenizer)
    model = load_model(base, adapter, dtype, device)
    first = [
        _answer(model, question, limit, stops, device)
        for question in track(questions, "answers", name="base + adapter")
    ]
    wanted = [_logits(model, q, answer, device) for q, answer in zip(questions, first, strict=True)]
    with model.disable_adapter():
        plain = [_some(_logits(model, q, answer, device)) for q, answer in zip(questions, first, strict=True)]
    del model
    model = load_model(merged, None, dtype, device)
    differences, same, products = [], [], []
    pairs = list(zip(questions, first, wanted, plain, strict=True))
    for question, answer, logits, without in track(pairs, "answers", name="merged"):
        got = _logits(model, question, answer, device)
        differences.append(float((got - logits).abs().max()))
        effect = _some(logits) - without
        products.append((float(((_some(got) - without) * effect).sum()), float((effect * effect).sum())))
        same.append(_answer(model, question, limit, stops, device) == answer)
    found = verdict(differences, same, args.config["merge"], strength(products))
    write_json(args.output, found)
    return found | {"device": device}


def _processor(base: Path) -> object:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base, trust_remote_code=False)


def _encoded(rows: Sequence[Mapping], base: Path, frames: Path, vision: Mapping) -> Iterator[Mapping]:
    """Model inputs of each question, batch of one."""
    processor = _processor(base)
    for row in rows:
        names = row["images"]
        pictures = [
            open_picture(safe_join(frames, n), vision["image_max_pixels"], vision["image_min_pixels"]) for n in names
        ]
        text = rendered_user(row["messages"][0]["content"])
        yield processor(text=[text], images=pictures or None, return_tensors="pt")


def _answer(model: object, inputs: Mapping, limit: int, stops: Sequence[int], device: str) -> list[int]:
    """Greedy tokens after the prompt."""
    import torch

    with torch.inference_mode():
        out = model.generate(
            **inputs.to(device), max_new_tokens=limit, do_sample=False, eos_token_id=list(stops), pad_token_id=stops[0]
        )
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def _logits(model: object, inputs: Mapping, answer: Sequence[int], device: str) -> object:
    """Logits of the prompt's end and of the given answer, float32 on the CPU. Shape (positions, words)."""
    import torch

    inputs = dict(inputs.to(device))
    extra = torch.tensor([list(answer)], dtype=torch.long, device=device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], extra], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(extra)], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(extra)], dim=1)
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False, logits_to_keep=LAST_POSITIONS + len(answer)).logits
    return logits[0].float().cpu()


def _some(logits):
    """Every n-th word of each position, float64: enough to tell how strong the adapter is, in little memory."""
    return logits[:, :: max(1, logits.shape[1] // COLUMNS)].double()


def build_parser() -> argparse.ArgumentParser:
    """Options of the terminal and of the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=path_argument, required=True, help="models/base/manifest.json")
    parser.add_argument("--adapter", type=path_argument, required=True, help="results/adapter/manifest.json")
    parser.add_argument("--merged", type=path_argument, required=True, help="results/merged/manifest.json")
    parser.add_argument("--test", type=path_argument, required=True, help="results/sft/test.json")
    parser.add_argument(
        "--frames", type=path_argument, help="manifest of the frames; frames/ beside the test part's folder if left out"
    )
    parser.add_argument(
        "--config", type=json_argument, required=True, help="JSON: merge, vision, predict.max_new_tokens"
    )
    parser.add_argument("--output", type=path_argument, required=True, help="results/merged/verify.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Door of the terminal and of Snakemake."""
    return entry("verify_merge", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
