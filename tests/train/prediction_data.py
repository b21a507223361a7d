"""A tiny Qwen3-VL whose answers differ from question to question, and a test part for it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from scripts.lib.files import write_json, write_manifest
from scripts.lib.sharegpt import sample

PROMPT = "Look at the pictures of a place and answer with a few words.\nQuestion: {question}"
TEXT = "red blue chair table lamp window door sofa kitchen bedroom which colour is the near how many are there on wall"
WORDS = TEXT.split()
# of its own, so that a change of the demo's model cannot make these tests prove nothing
TEXT_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
}
VISION_SHAPE = {
    "depth": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [0],
}
CONFIG = {
    "predict": {
        "engine": "transformers",
        "prompt": "short_answer",
        "decoding": "greedy",
        "max_new_tokens": 8,
        "batch_size": 11,
        "dtype": "float32",
        "url": "",
        "seed": 7,
    },
    "vision": {"image_max_pixels": 24576, "image_min_pixels": 1024},
    "train": {"template": "qwen3_vl_nothink", "cutoff_len": 768},
}


def make_base(folder: Path, scale: float = 6.0, dtype: str = "float32") -> Path:
    """A tiny model with random, enlarged weights: a plain random one repeats one token, wrong positions unseen."""
    import torch

    from scripts.lib import tiny_qwen

    tokenizer = tiny_qwen.make_tokenizer([PROMPT, " ".join(WORDS)], 420)
    text = {**TEXT_SHAPE, "vocab_size": tiny_qwen.padded(len(tokenizer))}
    model = tiny_qwen.make_model(tiny_qwen._config(text, VISION_SHAPE, (12, 10, 10), tokenizer), 7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(scale)
    folder.mkdir(parents=True)
    tiny_qwen.save_base(folder, model.to(getattr(torch, dtype)), tiny_qwen.make_processor(tokenizer))
    write_manifest(folder, {"name": "tiny", "source": "demo"})
    return folder / "manifest.json"


def make_adapter(base: Path, folder: Path) -> Path:
    """A LoRA adapter with random weights on both sides, so that it changes the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(5)
    model = Qwen3VLForConditionalGeneration.from_pretrained(base.parent)
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    adapted.save_pretrained(folder)
    write_manifest(folder, {"steps": 0})
    return folder / "manifest.json"


def make_tiny(folder: Path, questions: int = 11) -> dict[str, Path]:
    """Base, adapter and test part in one folder."""
    base = make_base(folder / "base")
    test = make_test_part(folder, questions=questions)
    return {"folder": folder, "base": base, "test": test, "adapter": make_adapter(base, folder / "adapter")}


def make_test_part(folder: Path, episodes: int = 3, questions: int = 11, frames: int = 8, longest: int = 12) -> Path:
    """test.json, dataset_info.json and frames of noise; the middle episode has pictures of another size.

    Returns:
        Path of results/sft/test.json; frames are in results/frames beside it.
    """
    import numpy as np
    from PIL import Image

    from scripts.lib.sharegpt import dataset_info

    dice, noise = random.Random(3), np.random.default_rng(3)
    rows = []
    for number in range(episodes):
        episode = f"hm3d-v0/{number:03d}-room"
        size = (128, 96) if number == 1 else (192, 128)
        images = []
        for frame in range(frames):
            path = folder / "frames" / episode / f"{frame:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = noise.integers(0, 255, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(path, quality=95)
            images.append(f"{episode}/{frame:03d}.jpg")
        for place in range(questions):
            text = " ".join(dice.choices(WORDS, k=dice.randint(1, longest))) + "?"
            name = f"q{number}-{place:02d}"
            rows.append({**sample([(name, text, "red")], PROMPT, images, episode), "question_id": name})
    write_json(folder / "sft/test.json", rows)
    write_json(folder / "sft/dataset_info.json", dataset_info(["test"]))
    write_manifest(folder / "frames")
    return folder / "sft/test.json"


def config(**predict: object) -> dict:
    """CONFIG with some keys of `predict` changed."""
    return {**CONFIG, "predict": {**CONFIG["predict"], **predict}}


def arguments(folder: Path, base: Path, test: Path, settings: dict, model: str = "base", **extra: Path) -> list[str]:
    """Command line of scripts.predict."""
    line = ["--model", model, "--test", test, "--base", base, "--frames-dir", test.parent.parent / "frames"]
    line += ["--frames", test.parent.parent / "frames/manifest.json", "--config", json.dumps(settings)]
    line += [
        "--work-dir",
        folder / "work",
        "--output",
        folder / f"{model}.jsonl",
        "--meta",
        folder / f"{model}.meta.json",
    ]
    for key, value in extra.items():
        line += [f"--{key}", value]
    return [str(word) for word in line]


def answers(path: Path) -> dict[str, str]:
    """{question_id: prediction} of a predictions file."""
    return {row["question_id"]: row["prediction"] for row in map(json.loads, path.read_text().splitlines())}
