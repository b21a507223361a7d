"""Make the demo's base model: a seeded tiny Qwen3-VL, trained a little on rooms of other seeds.   By hand:

    python -m scripts.make_demo_model --prompt config/prompts/short_answer.txt --output-dir models/base \\
        --config '{"model":{"demo_seed":7,"demo_steps":0},"frames":{"count":8},"vision":{"image_max_pixels":24576}}'

Its scores mean nothing about Qwen3-VL. With demo_steps 0 the weights are random.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, write_manifest
from scripts.lib.tokens import PROCESSOR_MIN_PIXELS

NAME = "demo-qwen3-vl"
VOCAB_SIZE = 1152  # at most: bytes, added tokens of Qwen and whole words of the demo; the text has fewer


def check_config(config: dict) -> dict[str, int]:
    """The rule's part of the config, flat: seed, steps, frames, max_pixels.

    Raises:
        EqaError: a key is missing or out of bounds.
    """
    wanted = {  # name here: section, key, least value
        "seed": ("model", "demo_seed", 0),
        "steps": ("model", "demo_steps", 0),
        "frames": ("frames", "count", 1),
        "max_pixels": ("vision", "image_max_pixels", PROCESSOR_MIN_PIXELS["demo"]),
    }
    values = {}
    for name, (section, key, least) in wanted.items():
        part = config.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            where = f"config: {section}.{key}={value!r}"
            raise EqaError(f"{where}, an integer >= {least} is wanted; set it in config/config.yaml")
        values[name] = value
    return values


def read_prompt(path: Path) -> str:
    """The prompt with its {question}.

    Raises:
        EqaError: missing, not UTF-8, or without {question}.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise EqaError(f"{path}: this prompt does not exist; `git checkout {path}` brings it back") from None
    except UnicodeDecodeError as error:
        raise EqaError(f"{path}: this prompt is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if "{question}" not in text:
        raise EqaError(f"{path}: this prompt lacks {{question}}; write {{question}} where the question belongs")
    return text


def run(prompt: Path, config: dict, output: Path) -> dict[str, Any]:
    """Make the folder `output`, replaced as a whole.

    Raises:
        EqaError: bad config or prompt.
    """
    values = check_config(config)
    prompt_text = read_prompt(prompt)

    from scripts.lib import demo_model, tiny_qwen

    demo_model.make_deterministic()
    tokenizer = tiny_qwen.make_tokenizer(demo_model.corpus(prompt_text), VOCAB_SIZE)
    model = tiny_qwen.make_model(tiny_qwen.demo_config(tokenizer), values["seed"])
    processor = tiny_qwen.make_processor(tokenizer)
    facts: dict[str, Any] = {"parameters": tiny_qwen.count_parameters(model), "vocabulary": len(tokenizer)}
    if values["steps"]:
        facts |= demo_model.pretrain(model, processor, **values)
    with atomic_folder(output) as part:
        tiny_qwen.save_base(part, model, processor)
        extra = {
            "name": NAME,
            "source": "demo",
            "revision": f"seed {values['seed']}, {values['steps']} steps",
            "architecture": "Qwen3VLForConditionalGeneration",
            "parameters": facts["parameters"],
            "processor_min_pixels": PROCESSOR_MIN_PIXELS["demo"],
        }
        write_manifest(part, extra)
    return facts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_demo_model", description="Make the demo's tiny Qwen3-VL.")
    parser.add_argument("--prompt", type=path_argument, required=True, help="prompt file, for its words")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: sections model, frames, vision")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="folder that is written whole")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("make_demo_model", build_parser, lambda args: run(args.prompt, args.config, args.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
