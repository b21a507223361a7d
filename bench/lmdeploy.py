"""LMDeploy's offline engine on frames of the demo's rooms: scripts.bench_lmdeploy with a preset's settings.   By hand:

    python -m bench.lmdeploy --model DIR        # one CUDA GPU and LMDeploy (envs/serve); DIR by bench.make_2b

Every answer has --new-tokens tokens where the weights are random: they never choose the end token. A batch shares as few
pictures as the questions let it. The last line is one JSON object; what each number means stands in it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.lib import machine
from scripts import bench_lmdeploy
from scripts.lib.cli import path_argument
from scripts.lib.config import load_yaml
from scripts.lib.files import read_json, write_json, write_manifest
from scripts.lib.ollama_folder import mend_for_ollama

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 8


def write_part(results: Path, episodes: int, each: int, size: tuple[int, int]) -> Path:
    """results/sft/test.json with `each` questions about each of `episodes` rooms, and their frames; returns it."""
    import cv2

    from scripts.lib import demo_scenes

    prompt = (ROOT / "config/prompts/short_answer.txt").read_text(encoding="utf-8").rstrip("\n")
    rows = []
    for number in range(episodes):
        scene, episode = demo_scenes.make_scene(number), f"demo/{number:03d}"
        folder = results / "frames" / episode
        folder.mkdir(parents=True)
        names = [f"{episode}/{place:03d}.jpg" for place in range(FRAMES)]
        for name, t in zip(names, demo_scenes.frame_times(FRAMES), strict=True):
            picture = demo_scenes.render_frame(scene, t, size)[:, :, ::-1]
            cv2.imwrite(str(results / "frames" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        for asked in demo_scenes.make_questions(scene, each, random.Random(number)):
            content = "<image>" * FRAMES + prompt.replace("{question}", asked["question"])
            row = {"question_id": f"{len(rows):04d}", "episode_history": episode, "images": names}
            rows.append({**row, "messages": [{"role": "user", "content": content}]})
    write_json(results / "sft/test.json", rows)
    return results / "sft/test.json"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lmdeploy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=path_argument, required=True, help="Qwen3-VL folder; mended for LMDeploy")
    parser.add_argument("--preset", default="openeqa-80gb", help="of config/presets/")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--questions", type=int, default=6, help="an episode")
    parser.add_argument("--width", type=int, default=512, help="of a frame, px")
    parser.add_argument("--height", type=int, default=288, help="of a frame, px")
    parser.add_argument("--new-tokens", type=int, default=32, help="longest answer")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    recipe = load_yaml(ROOT / f"config/presets/{args.preset}.yaml")
    config = {"deliver": {"lmdeploy": True}, "serve": recipe["serve"], "predict": {"dtype": recipe["predict"]["dtype"]}}
    mend_for_ollama(args.model)
    about = {key: value for key, value in read_json(args.model / "manifest.json").items() if key != "files"}
    write_manifest(args.model, about)
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        test = write_part(results, args.episodes, args.questions, (args.width, args.height))
        budget, output = results / "sft/token_budget.json", results / "serve/lmdeploy.json"
        write_json(budget, {"cutoff_len": recipe["train"]["cutoff_len"], "max_new_tokens": args.new_tokens})
        bench_lmdeploy.run(args.model / "manifest.json", test, budget, config, output)
        record = read_json(output)
    record |= {"bench": "lmdeploy", "machine": machine(), "model": about.get("name", "")}
    record |= {"frame_px": [args.width, args.height], "max_new_tokens": args.new_tokens, "plot": None}
    print(json.dumps(record, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
