"""Make random weights in the exact shape of Qwen3-VL-2B, without a network.   By hand:

    uv run --frozen --project envs/train python -m bench.make_2b --output DIR --device cuda

What takes time and memory in the real model takes as much in this one; its answers are noise. The tokenizer is the
demo's, its added tokens at their real ids, so that every token id of a prompt is one that the real shape has. With
--text its words are learnt from that file too: a question then has about as many tokens as in the real vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, write_manifest
from scripts.lib.tokens import PROCESSOR_MIN_PIXELS

MERGES_VOCAB = 1024  # bytes, merges and added tokens of the demo's BPE
MERGES_OF_TEXT = 8192  # with --text: enough for every word that occurs twice
PROMPT = Path(__file__).resolve().parents[1] / "config/prompts/short_answer.txt"


def run(output: Path, device: str, seed: int, text: Path | None = None) -> dict[str, Any]:
    """Write the folder `output`, 4.3 GB of bfloat16.

    Raises:
        EqaError: no such device.
    """
    import torch

    from scripts.lib import demo_model, tiny_qwen

    if device == "cuda" and not torch.cuda.is_available():
        raise EqaError("--device cuda: torch sees no CUDA device here; use --device cpu")
    texts = demo_model.corpus(PROMPT.read_text(encoding="utf-8"))
    size = MERGES_VOCAB
    if text:
        # twice: a merge wants a pair that occurs twice
        texts, size = [*texts, *text.read_text(encoding="utf-8").splitlines() * 2], MERGES_OF_TEXT
    tokenizer = tiny_qwen.make_tokenizer(texts, size, tiny_qwen.REAL_FIRST_ADDED_ID)
    model = tiny_qwen.make_model(tiny_qwen.real_2b_config(tokenizer), seed, torch.bfloat16, device)
    parameters = tiny_qwen.count_parameters(model)
    min_pixels = PROCESSOR_MIN_PIXELS["qwen3-vl"]
    with atomic_folder(output) as part:
        tiny_qwen.save_base(part, model, tiny_qwen.make_processor(tokenizer, min_pixels))
        extra = {
            "name": "random-qwen3-vl-2b",
            "source": "random",
            "revision": f"seed {seed}, {device}",
            "architecture": "Qwen3VLForConditionalGeneration",
            "parameters": parameters,
            "processor_min_pixels": min_pixels,
        }
        write_manifest(part, extra)
    return {"parameters": parameters, "as_real": parameters == tiny_qwen.REAL_2B_PARAMETERS}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_2b", description="Random weights in the shape of Qwen3-VL-2B.")
    parser.add_argument("--output", type=path_argument, required=True, help="folder that is written whole")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the weights are drawn")
    parser.add_argument("--seed", type=int, default=7, help="of the weights")
    parser.add_argument(
        "--text", type=path_argument, help="file whose words the tokenizer learns, such as a question file"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("make_2b", build_parser, lambda args: run(args.output, args.device, args.seed, args.text), argv)


if __name__ == "__main__":
    sys.exit(main())
