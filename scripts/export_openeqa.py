"""Write predictions in Open-EQA's own results format: a JSON list of {question_id, answer}.

The official evaluator refuses a list that lacks some of its 1,636 questions, as a test part does: give it --force.

By hand:
    python -m scripts.export_openeqa --predictions results/predictions/tuned.jsonl \
        --output results/predictions/tuned.openeqa.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from scripts.lib.cli import entry, path_argument
from scripts.lib.evaluation import read_predictions
from scripts.lib.files import write_json


def official_rows(predictions: Mapping[str, str]) -> list[dict]:
    """The official list, sorted by question_id."""
    return [{"question_id": name, "answer": predictions[name]} for name in sorted(predictions)]


def run(args: argparse.Namespace) -> dict:
    """Read, write; returns facts for stdout."""
    rows = official_rows(read_predictions(args.predictions))
    write_json(args.output, rows)
    return {"count": len(rows)}


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="export_openeqa", description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--output", type=path_argument, required=True, help="list of question_id and answer")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("export_openeqa", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
