"""Index, split and plan (`snakemake -n`) of 1,000, 10,000 and 60,000 episodes in 300 shards.   By hand:

    python -m bench.scale [--episodes 1000 10000 60000] [--shards 300]

The episodes are frame folders of 8 tiny pictures in a user's folder, 11 questions each; every frame of an episode is a
link to one file. The plan runs in a copy of this project. `baseline` is what index and split of the largest size
would take if they grew by the number of episodes from the smallest one: a ratio of 1 is linear growth. The plan, which
hardly grows, is in `sizes`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import finish, report, side

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = 11  # an episode, as Open-EQA's 1,636 / 152
FRAMES = 8
CATEGORIES = ("object recognition", "object state recognition", "attribute recognition", "spatial understanding",
              "functional reasoning", "world knowledge", "object localization")  # fmt: skip


def make_source(folder: Path, count: int) -> None:
    """The user's folder: frames of `count` episodes, two thirds of them HM3D-style, and their questions."""
    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    import numpy as np

    picture = cv2.imencode(".png", np.full((64, 96, 3), 90, np.uint8))[1].tobytes()
    rows = []
    for i in range(count):
        episode = (
            f"hm3d-v0/{i:06d}-hm3d-room{i}" if i % 3 else f"scannet-v0/{i:06d}-scannet-scene{i // 6:06d}_{i % 2:02d}"
        )
        place = folder / "frames" / episode
        place.mkdir(parents=True)
        first = place / "000000-rgb.png"
        first.write_bytes(picture)
        for k in range(1, FRAMES):
            os.link(first, place / f"{k:06d}-rgb.png")
        for k in range(QUESTIONS):
            rows.append(
                {
                    "question_id": f"{i}-{k}",
                    "question": f"What is thing {k}?",
                    "answer": f"a thing of room {i}",
                    "category": CATEGORIES[(i + k) % len(CATEGORIES)],
                    "episode_history": episode,
                }
            )
    (folder / "open-eqa-v0.json").write_text(json.dumps(rows))


def copy_project(folder: Path, source: Path, shards: int) -> None:
    """The tracked files, with a recipe for the user's folder alone."""
    import yaml

    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    recipe = folder / "config/config.yaml"
    config = yaml.safe_load(recipe.read_text())
    config["data"] |= {"source": str(source), "demo_episodes": 0}
    if "frames_remote" in config["data"]:
        config["data"]["frames_remote"] = "unshared"
    config["report"]["frames"] = "link"
    config["frames"]["shards"] = shards
    recipe.write_text(yaml.safe_dump(config))


def configuration(source: Path, shards: int) -> str:
    """What the rules would pass."""
    import yaml

    split = yaml.safe_load((ROOT / "config/presets/openeqa-80gb.yaml").read_text())["split"]
    frames = {"count": FRAMES, "short": "refuse", "shards": shards}
    return json.dumps({"data": {"source": str(source), "require": "all"}, "frames": frames, "split": split})


def work(step: str, folder: Path, shards: int) -> float:
    """Seconds of one step, in this process."""
    source, project = folder / "user", folder / "project"
    config = configuration(source, shards)
    index, questions, listing = folder / "episodes.json", folder / "kept.json", folder / "source.json"
    if step == "plan":
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-1500:])
        return time.perf_counter() - started
    from scripts import index_episodes, list_source, split_questions

    started = time.perf_counter()
    if step == "index":
        asked = source / "open-eqa-v0.json"
        code = list_source.main(["--questions", str(asked), "--config", config, "--output", str(listing)])
        demo = ["--demo-questions", str(folder / "none.json"), "--demo-manifest", str(folder / "off.json")]
        user = ["--questions", str(asked), "--source", str(listing), "--config", config]
        code = code or index_episodes.main(
            [*demo, *user, "--episodes", str(index), "--output-questions", str(questions)]
        )
    else:
        inputs = ["--episodes", str(index), "--questions", str(questions)]
        code = split_questions.main([*inputs, "--config", config, "--output", str(folder / "split.json")])
    if code:
        raise SystemExit(f"{step} failed")
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """All sizes, a table, one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").split(".   ")[0])
    parser.add_argument("--episodes", type=int, nargs="+", default=[1000, 10_000, 60_000])
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument(
        "--side", nargs=3, metavar=("STEP", "DIR", "SHARDS"), help="one step alone, on data that is there"
    )
    args = parser.parse_args(argv)
    if args.side:
        step, folder, shards = args.side
        seconds = work(step, Path(folder), int(shards))
        if step == "plan":
            import resource

            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
            print(json.dumps({"seconds": round(seconds, 3), "peak_mb": peak}))
        else:
            report(seconds)
        return 0
    found: dict[int, dict[str, dict]] = {}
    for count in args.episodes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "user").mkdir()
            (folder / "none.json").write_text("[]")
            (folder / "off.json").write_text('{"status": "disabled", "key": "data.demo_episodes"}')
            make_source(folder / "user", count)
            copy_project(folder / "project", folder / "user", args.shards)
            found[count] = {step: side("scale", step, folder, args.shards) for step in ("index", "split", "plan")}
        line = ", ".join(f"{step} {m['seconds']:.2f} s {m['peak_mb']} MiB" for step, m in found[count].items())
        print(f"{count} episodes: {line}", flush=True)
    least, most = min(args.episodes), max(args.episodes)
    total = {count: steps["index"]["seconds"] + steps["split"]["seconds"] for count, steps in found.items()}
    peak = max(m["peak_mb"] for m in found[most].values())
    ours = {"seconds": round(total[most], 2), "peak_mb": peak}
    linear = {"seconds": round(total[least] * most / least, 2), "peak_mb": peak}
    sizes = {str(count): steps for count, steps in found.items()}
    return finish("scale", linear, ours, shards=args.shards, sizes=sizes)


if __name__ == "__main__":
    sys.exit(main())
