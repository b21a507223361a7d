"""Small inputs for the delivery scripts: a model folder that Ollama reads, a test part with frames, a recipe."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import yaml

from scripts.lib.files import write_json, write_manifest
from tests.lib.project import ROOT

# what Qwen2's tokenizer.json splits words by; Ollama and llama.cpp both know it by its hash
QWEN2_SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def recipe() -> dict:
    """The demo preset."""
    return yaml.safe_load((ROOT / "config/presets/demo.yaml").read_text())


def write_safetensors(path: Path, names: list[str]) -> None:
    """A safetensors file with one float32 of each name."""
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 4 * len(names))


def write_model_folder(folder: Path, shards: int = 2) -> Path:
    """A Qwen3-VL folder as transformers 5 writes it (not mended), with weights of one number a tensor.

    Returns:
        Its manifest.
    """
    folder.mkdir(parents=True)
    rope = {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_theta": 5000000, "rope_type": "default"}
    text = {"num_hidden_layers": 3, "max_position_embeddings": 32768, "hidden_size": 256, "intermediate_size": 512}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6}
    vision = {"depth": 3, "hidden_size": 128, "num_heads": 4, "in_channels": 3, "patch_size": 16}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [1]}
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "dtype": "bfloat16", "vision_config": vision}
    write_json(folder / "config.json", {**config, "text_config": {**text, "rope_parameters": rope}})
    image = {"size": {"shortest_edge": 1024, "longest_edge": 16777216}, "patch_size": 16, "merge_size": 2}
    image |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_json(folder / "processor_config.json", {"image_processor": image, "processor_class": "Qwen3VLProcessor"})
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "added_tokens": [{"id": 2, "content": "<|im_end|>", "special": True}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    parts = {f"model-{n + 1:05d}-of-{shards:05d}.safetensors": [f"t{n}.a", f"t{n}.b"] for n in range(shards)}
    for name, tensors in parts.items():
        write_safetensors(folder / name, tensors)
    weight_map = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    write_manifest(folder)
    return folder / "manifest.json"


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (192, 128)) -> list[Path]:
    """JPEGs of coloured squares, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    paths = []
    for number in range(count):
        squares = (random.random((4, 6, 3)) * 255).astype(np.uint8)
        paths.append(folder / f"{number:03d}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.resize(squares, size, interpolation=cv2.INTER_NEAREST))
    return paths


def write_test_part(results: Path, questions: list[str], pictures: int = 8) -> Path:
    """results/sft/test.json with one episode a question, and results/frames; returns the test part."""
    rows = []
    for number, question in enumerate(questions):
        episode = f"hm3d-v0/{number:03d}-space{number}"
        frames = write_pictures(results / "frames" / episode, pictures)
        content = "<image>" * pictures + question
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
        names = [f"{episode}/{path.name}" for path in frames]
        row = {"question_id": f"q{number:03d}", "question_ids": [f"q{number:03d}"], "episode_history": episode}
        rows.append({**row, "messages": messages, "images": names})
    path = results / "sft/test.json"
    write_json(path, rows)
    write_json(results / "sft/token_budget.json", {"cutoff_len": 768, "longest": 700, "max_new_tokens": 16})
    return path
