"""Flat tables of the loss and of the scores by category and by question, for `dvc plots diff`.   By hand:
python -m scripts.write_plots --curves results/train_log/curves.json --scores results/metrics/tuned.json \
    --rows results/metrics/tuned.questions.jsonl --output-dir results/plots

DVC plots rows of one list; the curves and metrics of the project are nested, and live in folders that DVC stores whole.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_path, read_json, read_jsonl

METRICS = ("exact_match", "f1", "rougeL")


def loss_rows(curves: Mapping, part: str) -> list[dict]:
    """Rows {"step", "loss"} of one part ("train" or "val"), points without a loss left out."""
    points = curves.get(part) or []
    return [{"step": point["step"], "loss": point["loss"]} for point in points if point.get("loss") is not None]


def category_rows(scores: Mapping) -> list[dict]:
    """Rows {"category", metric...} of one model by category name; a category without a metric's value is left out."""
    rows = []
    for category, values in sorted(scores["by_category"].items()):
        found = {name: values[name]["value"] for name in METRICS if isinstance(values.get(name), Mapping)}
        if len(found) == len(METRICS) and None not in found.values():
            rows.append({"category": category, **found})
    return rows


def question_rows(scored: Sequence[Mapping]) -> list[dict]:
    """Rows {"question_id", "category", metric...} of one model, by question_id."""
    return [
        {"question_id": row["question_id"], "category": row["category"], **{name: row[name] for name in METRICS}}
        for row in sorted(scored, key=lambda row: row["question_id"])
    ]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping]) -> None:
    """Write a CSV file with a header, also for no rows."""
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run(curves: Path, scores: Sequence[Path], rows_of: Sequence[Path], output_dir: Path) -> dict:
    """Write {train,val}_loss.csv, MODEL_categories.csv and MODEL_questions.csv.

    Raises:
        EqaError: a file is missing or lacks the keys that are plotted.
    """
    written = 0
    name = curves
    try:
        table = read_json(curves, "loss curve")
        for part in ("train", "val"):
            rows = loss_rows(table, part)
            write_table(output_dir / f"{part}_loss.csv", ("step", "loss"), rows)
            written += len(rows)
        for name in scores:
            rows = category_rows(read_json(name, "metrics file"))
            write_table(output_dir / f"{name.stem}_categories.csv", ("category", *METRICS), rows)
            written += len(rows)
        for name in rows_of:
            rows = question_rows(read_jsonl(name, "file of scores"))
            model = name.name.removesuffix(".questions.jsonl")
            write_table(output_dir / f"{model}_questions.csv", ("question_id", "category", *METRICS), rows)
            written += len(rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise EqaError(
            f"{name}: not what its rule writes ({type(error).__name__}: {error}); `snakemake --force {name}` does"
        ) from None
    return {"rows": written}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="write_plots", description="Flat tables for dvc plots.")
    parser.add_argument("--curves", type=path_argument, required=True, help="results/train_log/curves.json")
    parser.add_argument("--scores", type=path_argument, nargs="+", required=True, help="results/metrics/MODEL.json")
    parser.add_argument(
        "--rows", type=path_argument, nargs="*", default=[], help="results/metrics/MODEL.questions.jsonl"
    )
    parser.add_argument("--output-dir", type=path_argument, required=True, help="folder for the tables")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry(
        "write_plots", build_parser, lambda args: run(args.curves, args.scores, args.rows, args.output_dir), argv
    )


if __name__ == "__main__":
    sys.exit(main())
