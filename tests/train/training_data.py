"""A small training: eight episodes of two pictures, one conversation each, and a tiny base model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib import sharegpt
from scripts.lib.files import file_record, write_json
from tests.train.prediction_data import PROMPT, make_base

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["red", "blue"]
VISION = {"image_max_pixels": 24576, "image_min_pixels": 1024}


def config(**changes: object) -> dict:
    """The shipped recipe with few steps: 8 samples, 4 steps an epoch, a checkpoint every second step."""
    import yaml

    train = yaml.safe_load((ROOT / "config/presets/demo.yaml").read_text())["train"]
    train |= {"epochs": 2.0, "save_steps": 2, "eval_steps": 2, "logging_steps": 1, "lora_dropout": 0.1, "batch_size": 2}
    return {"train": train | {"gradient_accumulation": 1} | changes, "vision": VISION}


def make_workspace(folder: Path, dtype: str = "float32", answers: Sequence[str] = COLOURS) -> Path:
    """models/base, results/sft and results/frames under `folder`.

    Args:
        dtype: of the base's weights.
        answers: of the episodes in turn.
    """
    from PIL import Image

    make_base(folder / "models/base", scale=1.0, dtype=dtype)
    sft, frames = folder / "results/sft", folder / "results/frames"
    for part, numbers, together in (
        ("train", range(8), True),
        ("val", range(8, 10), False),
        ("test", range(10, 12), False),
    ):
        rows = []
        for number in numbers:
            episode, colour = f"demo-v0/{number:03d}-room{number}", COLOURS[number % 2]
            names = [f"{episode}/{i:03d}.jpg" for i in range(2)]
            for i, name in enumerate(names):
                (frames / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (96, 64), colour if i else (30 * number, 90, 40)).save(frames / name)
            answer = answers[number % len(answers)]
            turns = [
                (f"q{number:02d}-{k}", f"which colour is the wall near the {thing}", answer)
                for k, thing in enumerate(("door", "sofa"))
            ]
            chunks = [turns] if together else [[turn] for turn in turns]
            rows += [sharegpt.sample(chunk, PROMPT, names, episode) for chunk in chunks]
            if not together:
                rows[-2:] = [row | {"question_id": row["question_ids"][0]} for row in rows[-2:]]
        write_json(sft / f"{part}.json", rows)
    write_json(sft / "dataset_info.json", sharegpt.dataset_info(("train", "val", "test")))
    files = {path.relative_to(frames).as_posix(): file_record(path) for path in sorted(frames.rglob("*.jpg"))}
    write_json(frames / "manifest.json", {"files": files, "episodes": {}})
    return folder


def arguments(recipe: dict, work: str = "work", out: str = "out") -> list[str]:
    """Options of train_adapter, relative to the workspace."""
    line = [
        "--dataset-dir",
        "results/sft",
        "--frames",
        "results/frames/manifest.json",
        "--base",
        "models/base/manifest.json",
    ]
    line += ["--config", json.dumps(recipe), "--work-dir", work]
    return [*line, "--adapter-dir", f"{out}/adapter", "--log-dir", f"{out}/train_log"]


def start(folder: Path, line: list[str], log: str, **environ: str) -> subprocess.Popen:
    """train_adapter in a process of its own, its words in `log`."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder / log).open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.train_adapter", *line], cwd=folder, env=env, stdout=file, stderr=file
        )


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder."""
    return {
        p.relative_to(folder).as_posix(): file_record(p)["sha256"] for p in sorted(folder.rglob("*")) if p.is_file()
    }


def run_dirs(work: Path) -> list[Path]:
    """Run folders, which hold a job.json."""
    return sorted(path.parent for path in work.glob("*/job.json"))
