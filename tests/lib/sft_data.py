"""A small index, split and set of frames, in the formats that pass between rules, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

CATEGORIES = [
    "attribute recognition",
    "functional reasoning",
    "object localization",
    "object recognition",
    "object state recognition",
    "spatial understanding",
    "world knowledge",
]
CONFIG = {
    "data": {"conversation": "episode"},
    "frames": {"count": 2},
    "vision": {"image_max_pixels": 24576, "image_min_pixels": 1024},
    "train": {"cutoff_len": 768, "template": "qwen3_vl_nothink", "seed": 7},
    "predict": {"max_new_tokens": 16, "prompt": "short_answer"},
}


def question_rows(spaces: int = 12, each: int = 8) -> list[dict]:
    """Rows of results/index/questions.json: two sources in turn, one episode a space, categories in turn."""
    rows = []
    for space in range(spaces):
        source = ("hm3d-v0", "scannet-v0")[space % 2]
        for number in range(each):
            rows.append(
                {
                    "question_id": f"q-{space:03d}-{number:02d}",
                    "question": f"What colour is thing {number}?",
                    "answer": ["red", "green", "blue"][number % 3],
                    "extra_answers": [],
                    "category": CATEGORIES[(space + number) % 7],
                    "episode_history": f"{source}/{space:03d}-room{space:03d}",
                    "root": "demo",
                    "source": source,
                    "space": f"room{space:03d}",
                }
            )
    return rows


def write_index(folder: Path, rows: list[dict], absent: dict[str, tuple[str, str]] | None = None) -> tuple[Path, Path]:
    """episodes.json and questions.json; `absent` maps further episodes to (status, reason)."""
    folder.mkdir(parents=True, exist_ok=True)
    episodes = [
        {"episode_history": name, "status": "ok", "reason": "", "frames": 12, "kind": "frames"}
        for name in sorted({row["episode_history"] for row in rows})
    ]
    episodes += [
        {"episode_history": name, "status": status, "reason": reason, "frames": 0, "kind": "frames"}
        for name, (status, reason) in (absent or {}).items()
    ]
    (folder / "episodes.json").write_text(json.dumps({"episodes": episodes, "summary": {}}))
    (folder / "questions.json").write_text(json.dumps({"questions": rows, "summary": {}}))
    return folder / "episodes.json", folder / "questions.json"


def write_frames(
    folder: Path,
    episodes: list[str],
    count: int = 2,
    size: Callable[[str, int], tuple[int, int]] = lambda *_: (192, 128),
) -> Path:
    """results/frames with JPEGs of the given sizes and its manifest."""
    from PIL import Image

    from scripts.lib.files import file_record

    files, listed = {}, {}
    for episode in episodes:
        names = [f"{episode}/{i:03d}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size(episode, i), (40 * i % 255, 90, 120)).save(folder / name)
            files[name] = file_record(folder / name)
        listed[episode] = {"frames": names, "indices": list(range(count)), "total": 12, "root": "demo"}
    (folder / "manifest.json").write_text(json.dumps({"files": files, "episodes": listed}))
    return folder / "manifest.json"


def write_split(file: Path, rows: list[dict], test: int = 2, val: int = 2) -> Path:
    """A split by space: the first spaces are test, the next val, the rest train."""
    spaces = sorted({row["space"] for row in rows})
    part_of = dict.fromkeys(spaces, "train") | dict.fromkeys(spaces[:test], "test")
    part_of |= dict.fromkeys(spaces[test : test + val], "val")
    parts: dict[str, list] = {"train": [], "val": [], "test": []}
    for row in rows:
        parts[part_of[row["space"]]].append(row["question_id"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"by": "space", "parts": parts}))
    return file
