"""Scoring 100,000 predictions with 1,000 bootstrap draws, against the usual way.   By hand:

    python -m bench.score_throughput [--predictions 100000] [--draws 1000]

Ours is scripts.score on files. The baseline is what a user would write: the same libraries question by question, and a
bootstrap that gathers the questions of the drawn spaces and takes numpy's means, overall and by category; it is timed
on a share of the predictions and of the draws and multiplied, since the whole would take
long. Both sides know no repeated answers.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import machine
from scripts.lib.cli import peak_mb

TEXT = "red blue chair table lamp window door sofa kitchen bedroom the a brown wooden near left right two three of on"
WORDS = TEXT.split()
CATEGORIES = 7
PER_SPACE = 12  # questions about one space: Open-EQA's 1,636 / 137
SHARE = 50  # the baseline does one 50th of the predictions, and of the draws


def make_data(folder: Path, count: int) -> dict[str, Path]:
    """Index, split and predictions of `count` questions; every text is different."""
    dice = random.Random(7)
    rows, predictions = [], []
    for number in range(count):
        space = f"space{number // PER_SPACE:06d}"
        answer = " ".join(dice.choices(WORDS, k=dice.randint(1, 5))) + f" {number}"
        guess = answer if dice.random() < 0.3 else " ".join(dice.choices(WORDS, k=dice.randint(1, 6))) + f" {number}"
        rows.append(
            {
                "question_id": f"q{number:07d}",
                "question": "What is it?",
                "answer": answer,
                "extra_answers": [],
                "category": f"category {dice.randrange(CATEGORIES)}",
                "episode_history": f"hm3d-v0/{space}",
                "source": "hm3d-v0",
                "space": space,
            }
        )
        predictions.append(json.dumps({"question_id": f"q{number:07d}", "prediction": guess}))
    paths = {name: folder / file for name, file in (("questions", "questions.json"), ("split", "split.json"))}
    paths |= {"predictions": folder / "predictions.jsonl", "meta": folder / "meta.json"}
    paths["questions"].write_text(json.dumps({"questions": rows}))
    paths["split"].write_text(json.dumps({"parts": {"test": [row["question_id"] for row in rows]}}))
    paths["predictions"].write_text("\n".join(predictions) + "\n")
    paths["meta"].write_text("{}")
    return paths


def ours(folder: Path, paths: dict[str, Path], draws: int) -> float:
    """Seconds of scripts.score."""
    from scripts import score

    settings = {"score": {"bootstrap_draws": draws, "confidence": 0.95, "seed": 7}}
    line = ["--model", "bench", "--config", json.dumps(settings)]
    for name, path in paths.items():
        line += [f"--{name}", str(path)]
    started = time.perf_counter()
    if score.main([*line, "--output", str(folder / "bench.json"), "--rows", str(folder / "rows.jsonl")]):
        raise SystemExit("scripts.score failed")
    return time.perf_counter() - started


def baseline(folder: Path, paths: dict[str, Path], count: int, draws: int) -> float:
    """Seconds of the usual way for all predictions and draws, from a share of both."""
    import numpy as np
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu, sentence_chrf

    answers = [row["answer"] for row in json.loads(paths["questions"].read_text())["questions"]]
    guesses = [json.loads(line)["prediction"] for line in paths["predictions"].read_text().splitlines()]
    part = max(1, count // SHARE)
    started = time.perf_counter()
    for guess, answer in zip(guesses[:part], answers[:part], strict=True):
        sentence_bleu(guess, [answer], use_effective_order=True)
        sentence_chrf(guess, [answer])
        RougeScorer(["rouge1", "rouge2", "rougeL"]).score(answer, guess)
        _ = guess.lower() == answer.lower()
    scoring = (time.perf_counter() - started) * count / part

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    scores = {name: np.array([row[name] for row in rows]) for name in ("exact_match", "f1", "bleu4", "chrf")}
    scores |= {name: np.array([row[name] for row in rows]) for name in ("rouge1", "rouge2", "rougeL")}
    groups = np.array([int(row["category"].split()[1]) for row in rows])
    members: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        members.setdefault(row["space"], []).append(place)
    spaces = [np.array(places) for places in members.values()]
    generator = np.random.default_rng(7)
    some = max(1, draws // SHARE)
    started = time.perf_counter()
    for _ in range(some):
        picked = np.concatenate([spaces[i] for i in generator.integers(0, len(spaces), len(spaces))])
        drawn = groups[picked]
        for values in scores.values():
            sample = values[picked]
            sample.mean()
            for number in range(CATEGORIES):
                sample[drawn == number].mean()
    return scoring + (time.perf_counter() - started) * draws / some


def main(argv: Sequence[str] | None = None) -> int:
    """Both sides, a table, one JSON line."""
    parser = argparse.ArgumentParser(prog="score_throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_data(folder, args.predictions)
        took = ours(folder, paths, args.draws)
        peak = peak_mb()
        usual = baseline(folder, paths, args.predictions, args.draws)
    print(f"{'':10} {'seconds':>10}\n{'usual':10} {usual:10.1f}\n{'ours':10} {took:10.1f}   peak {peak} MiB")
    result = {"bench": "score_throughput", "unit": "s", "baseline": round(usual, 1), "ours": round(took, 1)}
    result |= {"ratio": round(usual / took, 2), "peak_mb": peak, "machine": machine()}
    result |= {"predictions": args.predictions, "draws": args.draws}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
