"""Score one model's answers against all accepted answers: overall, by category, by source; intervals over spaces.

By hand:
    python -m scripts.score --model tuned --predictions results/predictions/tuned.jsonl \
        --meta results/predictions/tuned.meta.json --questions results/index/questions.json \
        --split results/split/split.json --config '{"score":{"bootstrap_draws":1000,"confidence":0.95,"seed":7}}' \
        --output results/metrics/tuned.json --rows results/metrics/tuned.questions.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.evaluation import Gold, read_gold, read_predictions
from scripts.lib.files import read_json, write_json, write_jsonl
from scripts.lib.progress import track

DIGITS = 6  # of a score on 0..100: far below any interval, and the same on every processor


def question_row(gold: Gold, prediction: str) -> dict:
    """One line of results/metrics/{model}.questions.jsonl."""
    from scripts.lib.answer_scores import score_answer

    scores = score_answer(prediction, gold.accepted)
    return {
        "question_id": gold.question_id,
        "category": gold.category,
        "source": gold.source,
        "space": gold.space,
        "episode_history": gold.episode_history,
        "question": gold.question,
        "answer": gold.accepted[0],
        "accepted": list(gold.accepted),
        "prediction": prediction,
        **{name: None if value is None else round(value, DIGITS) for name, value in scores.items()},
    }


def summarise(rows: Sequence[Mapping], settings: Mapping) -> dict:
    """Means and intervals of every metric, overall and by group.

    Args:
        rows: lines of `question_row`.
        settings: config section `score` (bootstrap_draws, confidence, seed).
    Returns:
        {"overall": {metric: {"value", "low", "high"}}, "by_category": {category: {"count", "spaces", metric: {...}}},
        "by_source": the same by source}. A metric that applies to no question of a group is left out there.
    """
    return {
        "overall": _metrics(rows, settings),
        "by_category": grouped(rows, "category", lambda part: _group(part, settings)),
        "by_source": grouped(rows, "source", lambda part: _group(part, settings)),
    }


def grouped(rows: Sequence[Mapping], key: str, make: Callable[[list[Mapping]], dict]) -> dict[str, dict]:
    """{value of `key`: make(its rows)}, sorted."""
    parts: dict[str, list[Mapping]] = {}
    for row in rows:
        parts.setdefault(row[key], []).append(row)
    return {name: make(parts[name]) for name in sorted(parts)}


def figures(rows: Sequence[Mapping], names: Sequence[str], settings: Mapping) -> dict[str, dict[str, float]]:
    """{name: {"value", "low", "high"}} of those `names` that some row has a score for, rounded.

    Args:
        rows: each with "space" and, under each name, a score from 0 to 100 or None.
        settings: config `score`.
    """
    import numpy as np

    from scripts.lib.bootstrap import intervals

    found = intervals(
        np.array([[row[name] for name in names] for row in rows], dtype=np.float64),  # None becomes NaN
        [row["space"] for row in rows],
        settings["bootstrap_draws"],
        settings["confidence"],
        settings["seed"],
        (0.0, 100.0),
    )
    return {
        name: {"value": round(one.value, DIGITS), "low": round(one.low, DIGITS), "high": round(one.high, DIGITS)}
        for name, one in zip(names, found, strict=True)
        if one.count
    }


def _group(rows: Sequence[Mapping], settings: Mapping) -> dict:
    return {"count": len(rows), "spaces": len({row["space"] for row in rows}), **_metrics(rows, settings)}


def _metrics(rows: Sequence[Mapping], settings: Mapping) -> dict:
    from scripts.lib.answer_scores import METRICS

    return figures(rows, METRICS, settings)


def ceiling(golds: Sequence[Gold]) -> dict[str, float]:
    """What a perfect model reaches on these questions: under 100 for ROUGE-2, which one-word answers cannot earn."""
    from scripts.lib.answer_scores import METRICS, perfect_score

    perfect = [perfect_score(gold.accepted) for gold in golds]
    means = {}
    for name in METRICS:
        values = [scores[name] for scores in perfect if scores[name] is not None]
        if values:
            means[name] = round(sum(values) / len(values), DIGITS)
    return means


def run(args: argparse.Namespace) -> dict:
    """Read, score, write; returns facts for stdout."""
    settings = args.config["score"]
    golds = read_gold(args.questions, args.split)
    predictions = read_predictions(args.predictions, [gold.question_id for gold in golds])
    rows = [question_row(gold, predictions[gold.question_id]) for gold in track(golds, "answers")]
    result = {
        "model": args.model,
        "count": len(rows),
        "spaces": len({row["space"] for row in rows}),
        **summarise(rows, settings),
        "ceiling": ceiling(golds),
        "meta": {"predictions": read_json(args.meta, "record of the predictions"), "score": settings},
    }
    write_jsonl(args.rows, rows)
    write_json(args.output, result)
    return {"model": args.model, "count": len(rows), "exact_match": result["overall"]["exact_match"]["value"]}


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="score", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name of the model, as in results/predictions/NAME.jsonl")
    parser.add_argument("--predictions", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--meta", type=path_argument, required=True, help="record of how they were made")
    parser.add_argument("--questions", type=path_argument, required=True, help="results/index/questions.json")
    parser.add_argument("--split", type=path_argument, required=True, help="results/split/split.json")
    parser.add_argument("--config", type=json_argument, required=True, help='{"score": {...}} as JSON')
    parser.add_argument("--output", type=path_argument, required=True, help="scores with intervals")
    parser.add_argument("--rows", type=path_argument, required=True, help="scores of each question")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("score", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
