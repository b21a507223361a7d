"""A results folder as a finished run leaves it: rendered rooms, made-up answers, scores by the real rules."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

from scripts import compare_models, predict_majority, score
from scripts.lib.files import disabled, write_json, write_jsonl, write_manifest
from scripts.make_demo_episodes import ask_questions, plan_episodes, scene_of
from scripts.split_questions import count_part, leakage_report
from tests.lib.project import ROOT

FRAME_PX = (192, 128)
FRAMES = 8
SETTINGS = {"bootstrap_draws": 400, "confidence": 0.95, "seed": 7}
BENCHMARK = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def make_results(
    folder: Path,
    episodes: int = 16,
    test_episodes: int = 6,
    copies: int = 1,
    real: str = "",
    pictures: int = FRAMES,
    most: int | None = None,
) -> Path:
    """Fill `folder` with results/, models/, benchmarks/ and logs/.

    Args:
        episodes, test_episodes: rendered episodes, the last of which are the test part.
        copies: how often each test episode's questions occur, under new ids and episodes, to make a large page.
        real: name of a test episode that is told to be real.
        pictures: frames rendered for each test episode; copies share them.
        most: test questions kept.
    """
    plan = plan_episodes(episodes, 7)
    rows, owners = [], {}
    for row in ask_questions(plan, 7):
        history = row["episode_history"]
        source, space = history.split("/")[0], history.rpartition("-")[2].removesuffix("_00").removesuffix("_01")
        rows.append(
            {**row, "extra_answers": row.get("extra_answers", []), "root": "demo", "source": source, "space": space}
        )
    test_names = [one.history for one in plan[-test_episodes:]]
    extra = []
    for copy in range(1, copies):
        for row in rows:
            if row["episode_history"] in test_names:
                owners[f"{row['episode_history']}x{copy}"] = row["episode_history"]
                extra.append(
                    {
                        **row,
                        "question_id": f"{row['question_id']}-{copy}",
                        "episode_history": f"{row['episode_history']}x{copy}",
                        "space": f"{row['space']}x{copy}",
                    }
                )
    rows = sorted(rows + extra, key=lambda row: (row["episode_history"], row["question_id"]))
    for row in rows:
        if real and row["episode_history"] == real:
            row["root"] = "source"
    names = {row["episode_history"]: row for row in rows}
    test_set = {*test_names, *owners}
    val_names = {one.history for one in plan[: max(1, episodes // 8)]}
    parts = {
        "test": [row for row in rows if row["episode_history"] in test_set][:most],
        "val": [row for row in rows if row["episode_history"] in val_names],
    }
    kept = {row["space"] for part in parts.values() for row in part}
    parts["train"] = [row for row in rows if row["space"] not in kept]
    results = folder / "results"
    recipe = yaml.safe_load((ROOT / "config/presets/demo.yaml").read_text())
    write_json(results / "config.json", recipe | {"score": SETTINGS})
    write_json(results / "index/questions.json", {"questions": rows, "summary": {"questions": len(rows)}})
    records = [
        {"episode_history": name, "root": row["root"], "kind": "frames", "frames": 14, "status": "ok", "reason": ""}
        for name, row in sorted(names.items())
    ]
    lost = {"episode_history": "hm3d-v0/999-hm3d-LOST", "root": "source", "kind": "video", "status": "broken"}
    records.append({**lost, "reason": "the video ends after 3 of 20 frames"})
    write_json(results / "index/episodes.json", {"episodes": records, "summary": {"ok": len(names), "broken": 1}})
    write_json(
        results / "split/split.json",
        {
            "by": "space",
            "salt": "3",
            "parts": {part: sorted(row["question_id"] for row in own) for part, own in parts.items()},
            "counts": {part: count_part(own) for part, own in parts.items()},
            "leakage": leakage_report(parts),
        },
    )
    write_frames(folder, [one for one in plan if one.history in test_set], owners, pictures)
    write_answers(folder, parts)
    write_training(folder)
    return folder


def write_frames(folder: Path, episodes: list, owners: dict[str, str], count: int) -> None:
    """Rendered pictures of the test part, and a manifest that gives copies the pictures of their original."""
    import cv2

    from scripts.lib.demo_scenes import frame_times, render_frame

    frames = folder / "results/frames"
    known = {}
    for episode in episodes:
        scene, paths = scene_of(episode), []
        for i, t in enumerate(frame_times(count)):
            path = frames / episode.history / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = render_frame(scene, t, FRAME_PX)[:, :, ::-1]
            path.write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
            paths.append(f"{episode.history}/{i:03d}.jpg")
        known[episode.history] = {"frames": paths, "indices": [2 * i for i in range(count)], "total": 2 * count}
    manifest = known | {copy: known[owner] for copy, owner in owners.items()}
    write_manifest(frames, {"episodes": manifest})


def write_answers(folder: Path, parts: dict[str, list[dict]]) -> None:
    """Predictions of four models, scored and compared by the rules' own scripts."""
    results, rng = folder / "results", random.Random(11)
    pool = sorted({row["answer"] for row in parts["train"]} | {row["answer"] for row in parts["test"]})
    ordered = sorted(parts["test"], key=lambda row: row["question_id"])
    for model, skill in (("base", 0.25), ("tuned", 0.6), ("blind", 0.2)):
        answers = [
            {
                "question_id": row["question_id"],
                "prediction": row["answer"] if rng.random() < skill else rng.choice(pool),
            }
            for row in ordered
        ]
        write_jsonl(results / f"predictions/{model}.jsonl", answers)
        weights = {"base": "base", "tuned": "base+adapter", "blind": "base"}[model]
        meta = {"model": model, "engine": "transformers", "dtype": "float32", "weights": weights, "decoding": "greedy"}
        write_json(results / f"predictions/{model}.meta.json", {**meta, "max_new_tokens": 16, "count": len(answers)})
    shared = ["--questions", str(results / "index/questions.json"), "--split", str(results / "split/split.json")]
    predictions = results / "predictions/majority.jsonl"
    meta = ["--meta", str(results / "predictions/majority.meta.json")]
    assert predict_majority.main([*shared, "--output", str(predictions), *meta]) == 0
    for model in ("base", "tuned", "blind", "majority"):
        score_model(folder, model)
    for model in ("base", "tuned"):
        write_json(results / f"metrics/llm_match_{model}.json", disabled("deliver.llm_match"))
    compare(folder)


def score_model(folder: Path, model: str, changes: dict | None = None) -> None:
    """results/metrics/{model}.* by the rule's script; `changes` of the settings."""
    results = folder / "results"
    code = score.main(
        [
            *("--model", model, "--predictions", str(results / f"predictions/{model}.jsonl")),
            *("--meta", str(results / f"predictions/{model}.meta.json")),
            *("--questions", str(results / "index/questions.json"), "--split", str(results / "split/split.json")),
            *(
                "--config",
                json.dumps({"score": SETTINGS | (changes or {})}),
                "--output",
                str(results / f"metrics/{model}.json"),
            ),
            *("--rows", str(results / f"metrics/{model}.questions.jsonl")),
        ]
    )
    assert code == 0


def compare(folder: Path, changes: dict | None = None) -> None:
    """results/metrics.json and comparison.json by the rule's script; `changes` of the settings."""
    metrics = folder / "results/metrics"
    code = compare_models.main(
        [
            *("--metrics-dir", str(metrics), "--config", json.dumps({"score": SETTINGS | (changes or {})})),
            *("--output", str(folder / "results/metrics.json"), "--comparison", str(metrics / "comparison.json")),
        ]
    )
    assert code == 0


def write_training(folder: Path) -> None:
    """Base model, adapter, curves, merge and the rest, in small."""
    results = folder / "results"
    (folder / "models/base").mkdir(parents=True)
    (folder / "models/base/config.json").write_text("{}")
    write_manifest(
        folder / "models/base",
        {
            "name": "demo",
            "source": "demo",
            "revision": "seed 7",
            "architecture": "Qwen3VLForConditionalGeneration",
            "parameters": 712480,
        },
    )
    guards = {
        "linear4bit": 26,
        "linear_layers": 26,
        "linear8bit": 0,
        "nested": 26,
        "types": ["nf4"],
        "trained_parameters": 53248,
    }
    write_json(results / "adapter/guards.json", guards)
    write_manifest(
        results / "adapter", {"base_sha256": "0" * 64, "steps": 120, "best_step": 100, "epochs": 8.0, "samples": 28}
    )
    train = [
        {"step": s, "epoch": s / 15, "loss": 0.35 + 3.2 * 0.97**s + 0.05 * (s % 3), "learning_rate": 1e-3}
        for s in range(2, 121, 2)
    ]
    val = [{"step": s, "loss": 0.62 + 2.6 * 0.97**s} for s in range(25, 121, 25)]
    write_json(results / "train_log/curves.json", {"train": train, "val": val})
    write_json(
        results / "train_log/speed.json",
        {
            "samples_per_s": 3.1,
            "steps_per_s": 1.55,
            "device": "cpu",
            "peak_rss_mb": 1667,
            "peak_gpu_mb": 0,
            "versions": {"torch": "2.11.0"},
        },
    )
    write_json(
        results / "sft/token_budget.json",
        {
            "cutoff_len": 768,
            "longest": 655,
            "mean": 402.5,
            "image_tokens": 208,
            "text_tokens": 447,
            "longest_prompt": 268,
            "max_new_tokens": 16,
            "sizes": {"160x128": {"pictures": 352, "tokens": 20}},
        },
    )
    (results / "merged").mkdir(parents=True, exist_ok=True)
    (results / "merged/model.safetensors").write_bytes(b"0" * 2_850_000)
    write_manifest(results / "merged")
    write_json(
        results / "merged/verify.json",
        {
            "largest_logit_difference": 3.6e-7,
            "tolerance": 1e-4,
            "identical_answers": 8,
            "share_identical": 1.0,
            "sample": 8,
            "dtype": "float32",
        },
    )
    (results / "gguf").mkdir()
    for name in ("model-f16", "model-q8_0", "model-q4_K_M", "mmproj-f16"):
        (results / f"gguf/{name}.gguf").write_bytes(b"GGUF" * 90_000)
    write_manifest(results / "gguf")
    write_json(results / "ollama/import.json", disabled("deliver.ollama"))
    write_json(results / "serve/lmdeploy.json", disabled("deliver.lmdeploy"))
    for name, seconds, peak in (
        ("make_demo_episodes", 31.2, 180),
        ("sample_frames/0000", 2.1, 210),
        ("sample_frames/0001", 2.4, 208),
        ("make_demo_model", 74.9, 1430),
        ("train_adapter", 96.3, 2210),
        ("predict/base", 21.6, 1510),
        ("predict/tuned", 24.0, 1560),
        ("predict/blind", 9.8, 1490),
        ("merge_adapter", 33.0, 1890),
        ("export_gguf", 14.2, 1210),
    ):
        path = folder / f"benchmarks/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{BENCHMARK}{seconds}\t0:00:00\t{peak}\t0\t0\t0\t0\t0\t0\t0\n")
    for name, facts in (
        ("split_questions", {"script": "split_questions", "seconds": 0.31, "peak_mb": 64}),
        ("score/tuned", {"script": "score", "seconds": 1.94, "peak_mb": 240}),
    ):
        path = folder / f"logs/{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"some words\n{json.dumps(facts)}\n")


def page_arguments(folder: Path, frames: str = "embed") -> list[str]:
    """Arguments of scripts.write_report for a folder of `make_results`."""
    return [
        *("--results-dir", str(folder / "results"), "--base", str(folder / "models/base/manifest.json")),
        *("--benchmarks-dir", str(folder / "benchmarks"), "--logs-dir", str(folder / "logs")),
        *(
            "--config",
            json.dumps({"report": {"frames": frames}}),
            "--output",
            str(folder / "results/report/index.html"),
        ),
    ]
