"""LLaMA-Factory's own BLEU-4 and ROUGE of any model's answers, to compare with the usual tutorials. Run by hand:

    uv run --frozen --project envs/train python -m scripts.score_tutorial \
        --predictions results/predictions/tuned.jsonl --test results/sft/test.json

Prints one JSON line with the scores, and with the `ceiling` that a perfect model reaches. Nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import read_predictions
from scripts.lib.files import read_json

LABEL_END = "\n"  # LLaMA-Factory's labels end in a line break


def read_references(test: Path) -> dict[str, str]:
    """{question_id: answer} of results/sft/test.json.

    Raises:
        EqaError: not such a file.
    """
    try:
        return {row["question_id"]: row["messages"][-1]["content"] for row in read_json(test, "test file")}
    except (KeyError, IndexError, TypeError):
        raise EqaError(f"{test}: a row lacks question_id or messages; run again the rule build_sft") from None


def run(args: argparse.Namespace) -> dict:
    """Scores and ceiling."""
    from scripts.lib.tutorial_scores import tutorial_scores

    references = read_references(args.test)
    predictions = read_predictions(args.predictions, references)
    labels = [references[name] + LABEL_END for name in predictions]
    scores = tutorial_scores(list(predictions.values()), labels)
    return {"count": len(labels), **scores, "ceiling": tutorial_scores([references[n] for n in predictions], labels)}


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="score_tutorial", description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--test", type=path_argument, required=True, help="results/sft/test.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal."""
    return entry("score_tutorial", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
