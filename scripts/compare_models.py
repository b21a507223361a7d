"""Compare models on the same questions by a paired bootstrap over spaces; flat numbers for `dvc metrics diff`.

By hand:
    python -m scripts.compare_models --metrics-dir results/metrics \
        --config '{"score":{"bootstrap_draws":1000,"confidence":0.95,"seed":7}}' \
        --output results/metrics.json --comparison results/metrics/comparison.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import check_ids
from scripts.lib.files import is_disabled, read_json, read_jsonl, write_json
from scripts.lib.llm_match import match_score
from scripts.score import DIGITS, grouped

MODELS = ("base", "tuned", "blind", "majority")
PAIRS = (("tuned", "base"), ("tuned", "blind"), ("tuned", "majority"), ("base", "blind"))
JUDGED = "llm_match"  # compared where the judge marked both models' answers
NO_DIFFERENCE = "no detectable difference"


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says: "better", "worse", or that no difference can be seen."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else NO_DIFFERENCE


def compare(ours: Sequence[Mapping], theirs: Sequence[Mapping], settings: Mapping) -> dict:
    """Differences ours - theirs with intervals, overall and by group.

    Args:
        ours, theirs: lines of {model}.questions.jsonl; the same questions in the same order.
        settings: config section `score`.
    Returns:
        {"overall": {metric: {...}}, "by_category": {category: {"count", "spaces", metric: {...}}}, "by_source": ...}
    """
    pairs = [{**mine, "other": other} for mine, other in zip(ours, theirs, strict=True)]

    def group(part: Sequence[Mapping]) -> dict:
        return {"count": len(part), "spaces": len({row["space"] for row in part}), **_differences(part, settings)}

    return {
        "overall": _differences(pairs, settings),
        "by_category": grouped(pairs, "category", group),
        "by_source": grouped(pairs, "source", group),
    }


def _differences(pairs: Sequence[Mapping], settings: Mapping) -> dict:
    import numpy as np

    from scripts.lib.answer_scores import METRICS
    from scripts.lib.bootstrap import intervals, minimum_detectable

    metrics = (*METRICS, JUDGED)
    mine = np.array([[row.get(name) for name in metrics] for row in pairs], dtype=np.float64)
    other = np.array([[row["other"].get(name) for name in metrics] for row in pairs], dtype=np.float64)
    confidence = settings["confidence"]
    found = intervals(
        mine - other,
        [row["space"] for row in pairs],
        settings["bootstrap_draws"],
        confidence,
        settings["seed"],
        (-100.0, 100.0),
    )
    result = {}
    for name, one in zip(metrics, found, strict=True):
        if one.count:
            low, high = round(one.low, DIGITS), round(one.high, DIGITS)
            what = verdict(low, high)
            # fewer than two spaces: any difference could be chance, whatever its size
            least = minimum_detectable(one.spread, confidence) if one.spaces > 1 else 100.0
            result[name] = {
                "difference": round(one.value, DIGITS),
                "low": low,
                "high": high,
                "detectable": what != NO_DIFFERENCE,
                "verdict": what,
                "minimum_detectable": round(min(least, 100.0), DIGITS),
            }
    return result


def flat_metrics(scores: Mapping[str, Mapping], pairs: Mapping[str, Mapping], judged: Mapping[str, Mapping]) -> dict:
    """One level of numbers with stable names.

    {model}_{metric} and its _low and _high; {pair}_{metric} likewise; llm_match where the judge ran. Keys
    depend on what is switched on and on whether the test part has yes/no questions, on nothing else.
    """
    flat: dict[str, float] = {}
    for model, result in scores.items():
        flat[f"{model}_count"] = result["count"]
        for metric, one in result["overall"].items():
            flat |= _three(f"{model}_{metric}", one["value"], one)
    for name, result in pairs.items():
        for metric, one in result["overall"].items():
            flat |= _three(f"{name}_{metric}", one["difference"], one)
    for model, result in judged.items():
        if not is_disabled(result):
            flat |= _three(f"{model}_llm_match", result["overall"]["value"], result["overall"])
    return flat


def _three(name: str, value: float, one: Mapping) -> dict[str, float]:
    return {name: value, f"{name}_low": one["low"], f"{name}_high": one["high"]}


def read_rows(path: Path) -> list[dict]:
    """Lines of {model}.questions.jsonl, sorted by question_id.

    Raises:
        EqaError: a line lacks a key.
    """
    from scripts.lib.answer_scores import METRICS

    rows = read_jsonl(path, "file of scored questions")
    for number, row in enumerate(rows, 1):
        missing = [key for key in ("question_id", "category", "source", "space", *METRICS) if key not in row]
        if missing:
            raise EqaError(f"{path}: line {number} has no {missing[0]!r}; score again")
    return sorted(rows, key=lambda row: row["question_id"])


def run(args: argparse.Namespace) -> dict:
    """Read, compare, write; returns facts for stdout."""
    settings = args.config["score"]
    folder: Path = args.metrics_dir
    scores = {model: read_json(folder / f"{model}.json", "scores") for model in MODELS}
    rows = {model: read_rows(folder / f"{model}.questions.jsonl") for model in MODELS}
    wanted = [row["question_id"] for row in rows["base"]]
    for model in MODELS:
        check_ids((row["question_id"] for row in rows[model]), wanted, folder / f"{model}.questions.jsonl")
    judged = {model: read_json(folder / f"llm_match_{model}.json", "judgement") for model in ("base", "tuned")}
    for model, result in judged.items():
        marks = {} if is_disabled(result) else result.get("marks", {})
        for row in rows[model]:
            if row["question_id"] in marks:
                row[JUDGED] = match_score(marks[row["question_id"]])
    pairs = {f"{mine}_minus_{other}": compare(rows[mine], rows[other], settings) for mine, other in PAIRS}
    write_json(args.comparison, {"pairs": pairs, "score": settings, "count": len(wanted)})
    write_json(args.output, flat_metrics(scores, pairs, judged))
    headline = pairs["tuned_minus_base"]["overall"]["exact_match"]
    return {
        "count": len(wanted),
        "tuned_minus_base_exact_match": headline["difference"],
        "verdict": headline["verdict"],
    }


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="compare_models", description=__doc__.splitlines()[0])
    parser.add_argument("--metrics-dir", type=path_argument, required=True, help="folder of the scores")
    parser.add_argument("--config", type=json_argument, required=True, help='{"score": {...}} as JSON')
    parser.add_argument("--output", type=path_argument, required=True, help="flat metrics")
    parser.add_argument("--comparison", type=path_argument, required=True, help="differences with intervals")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("compare_models", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
