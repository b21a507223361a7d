"""Time and memory of every step that reads all episodes at once, at 1,000, 10,000 and 100,000 of them.   By hand:

    python -m bench.scale [--episodes 1000 10000 100000] [--shards 300] [--base models/base/manifest.json]

The episodes are frame folders of 8 tiny pictures in a user's folder, 11 questions each; every frame of an episode is a
link to one file, in the source and in results/frames. Steps: index, split, join (join_frames), start (what each start
of Snakemake looks at in results/frames), sft (build_sft, in envs/train, where a base model is at hand), score (one
model), compare, report (pictures linked) and plan (`snakemake -n` in a copy of this project). `baseline` is what all of them would take
at the largest size if they grew by the number of episodes from the smallest one: a ratio of 1 is linear growth.
`bytes` holds the sizes of the files that a step wrote. docs/scale.md goes on from these numbers; `--table` prints its table
from the results that are committed.
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
STEPS = ("index", "split", "join", "start", "sft", "score", "compare", "report", "plan")
TOLD = {
    "index": "`list_source`, `index_episodes`",
    "split": "`split_questions`",
    "join": "`join_frames`",
    "start": "each start of Snakemake: the look at results/frames",
    "sft": "`build_sft`",
    "score": "`score`, one model",
    "compare": "`compare_models`",
    "report": "`write_report`, pictures linked",
    "plan": "`snakemake -n`, 300 shards",
}
COMMITTED = tuple(ROOT / "bench/results" / name for name in ("scale-2core.json", "scale-100000-2core.json"))
MODELS = ("base", "tuned", "blind", "majority")
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
                    "question": f"What is thing {k} of room {i}?",
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
    config["report"] |= {"frames": "link", "dvc_remote": "unshared"}
    config["frames"]["shards"] = shards
    recipe.write_text(yaml.safe_dump(config))


def configuration(source: Path, shards: int) -> str:
    """What the rules would pass: the 80 GB recipe on the user's folder, with a vision budget that the demo's model has."""
    import yaml

    config = yaml.safe_load((ROOT / "config/presets/openeqa-80gb.yaml").read_text())
    demo = yaml.safe_load((ROOT / "config/presets/demo.yaml").read_text())
    config["data"] |= {"source": str(source), "require": "all", "demo_episodes": 0}
    config["frames"] |= {"count": FRAMES, "short": "refuse", "shards": shards}
    config["vision"] = demo["vision"]
    config["report"]["frames"] = "link"
    return json.dumps(config)


def make_frames(results: Path) -> None:
    """What sample_frames would leave of every usable episode: pictures (one file, linked), record, shard manifest."""
    from scripts.lib.files import sha256_file, write_json
    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    import numpy as np

    picture = cv2.imencode(".jpg", np.full((128, 192, 3), 90, np.uint8))[1].tobytes()
    shards: dict[str, dict] = {}
    facts: dict = {}
    for record in json.loads((results / "index/episodes.json").read_text())["episodes"]:
        name = record["episode_history"]
        place = results / "frames" / name
        place.mkdir(parents=True)
        names = [f"{name}/{k:03d}.jpg" for k in range(FRAMES)]
        first = results / "frames" / names[0]
        first.write_bytes(picture)
        facts = facts or {"size": len(picture), "sha256": sha256_file(first)}
        for other in names[1:]:
            os.link(first, results / "frames" / other)
        entry = {"frames": names, "indices": list(range(FRAMES)), "total": FRAMES, "width": 192, "height": 128}
        entry |= {"root": record["root"], "source_sha256": "0" * 32}
        (place / "episode.json").write_text(json.dumps(entry))
        shard = shards.setdefault(record["shard"], {"files": {}, "episodes": {}})
        shard["files"] |= dict.fromkeys(names, facts)
        shard["episodes"][name] = entry
    for name, shard in shards.items():
        write_json(results / f"frames/shards/{name}.json", shard)


def make_predictions(results: Path) -> None:
    """An answer to every test question, the same for all models; right for one in three."""
    from scripts.lib.files import write_json, write_jsonl

    test = json.loads((results / "split/split.json").read_text())["parts"]["test"]
    for model in MODELS:
        rows = (
            {"question_id": name, "prediction": f"a thing of room {name.split('-')[0] if i % 3 == 0 else 'none'}"}
            for i, name in enumerate(test)
        )
        write_jsonl(results / f"predictions/{model}.jsonl", rows)
        write_json(results / f"predictions/{model}.meta.json", {"model": model, "count": len(test)})


def look_at_frames(results: Path) -> None:
    """What a start of Snakemake does for the largest manifest, by the same function and with its stat cache."""
    from scripts.lib.provenance import Policy, folder_fault
    from scripts.lib.statcache import StatCache

    cache = StatCache(results.parent / "stat.json")
    fault = folder_fault(str(results / "frames/manifest.json"), Policy(), cache)
    cache.save()
    if fault:
        raise SystemExit(fault)


def work(step: str, folder: Path, shards: int) -> float:
    """Seconds of one step, in this process."""
    source, project, results = folder / "user", folder / "project", folder / "results"
    config = configuration(source, shards)
    index, questions, split = (
        results / "index/episodes.json",
        results / "index/questions.json",
        results / "split/split.json",
    )
    frames, listing = results / "frames/manifest.json", folder / "source.json"
    if step == "plan":
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-1500:])
        return time.perf_counter() - started
    asked = source / "open-eqa-v0.json"
    if step == "index":
        from scripts import index_episodes, list_source

        demo = ["--demo-questions", folder / "none.json", "--demo-manifest", folder / "off.json"]
        listed = ["--questions", asked, "--config", config, "--output", listing]
        user = ["--questions", asked, "--source", listing, "--config", config]
        calls = [(list_source, listed)]
        calls += [(index_episodes, [*demo, *user, "--episodes", index, "--output-questions", questions])]
    elif step == "split":
        from scripts import split_questions

        options = ["--episodes", index, "--questions", questions, "--config", config, "--output", split]
        calls = [(split_questions, options)]
    elif step == "join":
        from scripts import join_frames

        manifests = sorted((results / "frames/shards").glob("*.json"))
        calls = [(join_frames, ["--shards", *manifests, "--frames-dir", results / "frames", "--output", frames])]
    elif step == "sft":
        from scripts import build_sft

        options = [
            "--questions",
            questions,
            "--split",
            split,
            "--frames",
            frames,
            "--base",
            folder / "base/manifest.json",
        ]
        options += ["--prompt", ROOT / "config/prompts/short_answer.txt", "--config", config]
        calls = [(build_sft, [*options, "--output-dir", results / "sft"])]
    elif step in ("score", "compare"):
        from scripts import compare_models, score

        metrics = results / "metrics"
        if step == "score":
            options = ["--model", "base", "--predictions", results / "predictions/base.jsonl"]
            options += ["--meta", results / "predictions/base.meta.json", "--questions", questions, "--split", split]
            options += ["--config", config, "--output", metrics / "base.json"]
            calls = [(score, [*options, "--rows", metrics / "base.questions.jsonl"])]
        else:
            options = ["--metrics-dir", metrics, "--config", config, "--output", results / "metrics.json"]
            calls = [(compare_models, [*options, "--comparison", metrics / "comparison.json"])]
    elif step == "report":
        from scripts import write_report

        options = ["--results-dir", results, "--config", config, "--output", results / "report/index.html"]
        calls = [(write_report, options)]
    started = time.perf_counter()
    if step == "start":
        look_at_frames(results)
        return time.perf_counter() - started
    for script, options in calls:
        if script.main([str(option) for option in options]):
            raise SystemExit(f"{step} failed")
    return time.perf_counter() - started


def measure(folder: Path, count: int, shards: int, base: Path) -> dict[str, dict]:
    """All steps for so many episodes, each in a process of its own: {step: {"seconds", "peak_mb", ...}}."""
    results = folder / "results"
    (folder / "user").mkdir()
    (folder / "none.json").write_text("[]")
    (folder / "off.json").write_text('{"status": "disabled", "key": "data.demo_episodes"}')
    make_source(folder / "user", count)
    copy_project(folder / "project", folder / "user", shards)
    found: dict[str, dict] = {}

    def take(step: str, **how: Sequence[str]) -> None:
        found[step] = side("scale", step, folder, shards, **how)
        print(f"{count} episodes: {step} {json.dumps(found[step])}", file=sys.stderr, flush=True)

    for step in STEPS:
        if step == "join":
            make_frames(results)
        if step == "start":
            time.sleep(3)  # a file younger than the stat cache's patience is read again
            side("scale", step, folder, shards)  # the first start reads; every later one looks
        if step == "sft":
            if not base.is_file():
                continue
            (folder / "base").symlink_to(base.parent.resolve(), target_is_directory=True)
            take(step, python=(str(ROOT / "envs/train/.venv/bin/python"),))
            continue
        if step == "score":
            make_predictions(results)
        if step == "compare":
            for model in MODELS[1:]:
                for name in (".json", ".questions.jsonl"):
                    shutil.copyfile(results / f"metrics/base{name}", results / f"metrics/{model}{name}")
            for model in MODELS[:2]:
                off = '{"status": "disabled", "key": "deliver.llm_match"}'
                (results / f"metrics/llm_match_{model}.json").write_text(off)
        take(step)
    return found


def table(files: Sequence[Path] = COMMITTED) -> list[str]:
    """docs/scale.md's table: peak memory of each step by the number of episodes, and processor time at the most of them.

    Args:
        files: results of this bench; where two have the same size, the later one counts. A dash is not measured.
    """
    sizes: dict[int, dict[str, dict]] = {}
    for file in files:
        sizes |= {int(count): steps for count, steps in json.loads(file.read_text())["sizes"].items()}
    counts = sorted(sizes)
    least, most = counts[0], counts[-1]
    head = [f"{count:,}" + (" episodes" if count == least else "") for count in counts]
    lines = [f"| step | {' | '.join(head)} | processor time at {most:,} |", "|---" * (len(counts) + 2) + "|"]
    for step, name in TOLD.items():
        peaks = [f"{sizes[count][step]['peak_mb']:,} MiB" if step in sizes[count] else "-" for count in counts]
        spent = sizes[most].get(step, {}).get("cpu_s")
        lines.append(f"| {name} | {' | '.join(peaks)} | {'-' if spent is None else f'{spent:.0f} s'} |")
    return lines


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the large files that the steps wrote."""
    names = ("index/episodes.json", "index/questions.json", "split/split.json", "frames/manifest.json")
    names += ("sft/train.json", "sft/test.json", "metrics/base.questions.jsonl", "report/index.html")
    files = {name: folder / "results" / name for name in names}
    files |= {"source.json": folder / "source.json", "stat.json": folder / "stat.json"}
    return {name: file.stat().st_size for name, file in files.items() if file.is_file()}


def main(argv: Sequence[str] | None = None) -> int:
    """All sizes, a table, one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").split(".   ")[0])
    parser.add_argument("--episodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument(
        "--base", type=Path, default=ROOT / "models/base/manifest.json", help="base model for sft; absent: no sft"
    )
    parser.add_argument("--folder", type=Path, help="where the episodes go: 1.9 million names for 100,000 episodes")
    parser.add_argument(
        "--side", nargs=3, metavar=("STEP", "DIR", "SHARDS"), help="one step alone, on data that is there"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing: the table of the committed results")
    args = parser.parse_args(argv)
    if args.table:
        print("\n".join(table()))
        return 0
    if args.side:
        step, folder, shards = args.side
        seconds = work(step, Path(folder), int(shards))
        if step == "plan":
            import resource

            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            facts = {"seconds": round(seconds, 3), "peak_mb": used.ru_maxrss // 1024}
            print(json.dumps(facts | {"cpu_s": round(used.ru_utime + used.ru_stime, 2)}))
        else:
            report(seconds)
        return 0
    found: dict[int, dict[str, dict]] = {}
    written: dict[str, dict[str, int]] = {}
    for count in args.episodes:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            found[count] = measure(Path(name), count, args.shards, args.base)
            written[str(count)] = file_sizes(Path(name))
        line = ", ".join(f"{step} {m['seconds']:.2f} s {m['peak_mb']} MiB" for step, m in found[count].items())
        print(f"{count} episodes: {line}", flush=True)
    least, most = min(args.episodes), max(args.episodes)
    total = {c: sum(m["seconds"] for step, m in steps.items() if step != "plan") for c, steps in found.items()}
    peak = max(m["peak_mb"] for m in found[most].values())
    ours = {"seconds": round(total[most], 2), "peak_mb": peak}
    linear = {"seconds": round(total[least] * most / least, 2), "peak_mb": peak}
    sizes = {str(count): steps for count, steps in found.items()}
    return finish("scale", linear, ours, shards=args.shards, sizes=sizes, bytes=written)


if __name__ == "__main__":
    sys.exit(main())
