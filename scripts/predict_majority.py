"""Answer every test question with the most common training answer of its category: what can be had without looking.

By hand:
    python -m scripts.predict_majority --questions results/index/questions.json --split results/split/split.json \
        --output results/predictions/majority.jsonl --meta results/predictions/majority.meta.json
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import Gold, read_gold
from scripts.lib.files import write_json, write_jsonl
from scripts.lib.normalise import normalised


def most_common(answers: Iterable[str]) -> str:
    """The answer given most often, equal up to normalisation; ties go to the first in alphabetical order.

    Returns:
        The most usual spelling of that answer.
    Raises:
        ValueError: no answers.
    """
    answers = list(answers)
    count = Counter(normalised(answer) for answer in answers)
    if not count:
        raise ValueError("no answers")
    best = min(count, key=lambda text: (-count[text], text))
    spellings = Counter(answer for answer in answers if normalised(answer) == best)
    return min(spellings, key=lambda text: (-spellings[text], text))


def majority_answers(train: Sequence[Gold], test: Sequence[Gold]) -> dict[str, str]:
    """{question_id: answer} of the test questions; a category unseen in training takes the answer of all training."""
    overall = most_common(gold.accepted[0] for gold in train)
    by_category: dict[str, list[str]] = {}
    for gold in train:
        by_category.setdefault(gold.category, []).append(gold.accepted[0])
    best = {category: most_common(answers) for category, answers in by_category.items()}
    return {gold.question_id: best.get(gold.category, overall) for gold in test}


def run(args: argparse.Namespace) -> dict:
    """Read, count, write; returns facts for stdout."""
    try:
        train = read_gold(args.questions, args.split, "train")
    except EqaError as error:
        raise EqaError(f"{error} (the majority baseline counts training answers)") from None
    answers = majority_answers(train, read_gold(args.questions, args.split))
    write_jsonl(args.output, ({"question_id": name, "prediction": answers[name]} for name in sorted(answers)))
    write_json(
        args.meta,
        {
            "model": "majority",
            "engine": "none",
            "dtype": "none",
            "weights": "none",
            "decoding": "most common training answer of the category",
            "max_new_tokens": 0,
            "prompt": "none",
            "images": False,
            "count": len(answers),
        },
    )
    return {"model": "majority", "count": len(answers), "train": len(train)}


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="predict_majority", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=path_argument, required=True, help="results/index/questions.json")
    parser.add_argument("--split", type=path_argument, required=True, help="results/split/split.json")
    parser.add_argument("--output", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--meta", type=path_argument, required=True, help="record of how they were made")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("predict_majority", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
