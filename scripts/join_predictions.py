"""Join the answers of a model's shards by question_id.   By hand:

    python -m scripts.join_predictions --model tuned --test results/sft/test.json \
        --shards-dir results/predictions/shards --config '{"predict":{"shards":2}}' \
        --output results/predictions/tuned.jsonl --meta results/predictions/tuned.meta.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import check_ids, listed, read_predictions
from scripts.lib.files import read_json, remove, write_json, write_jsonl

AGAIN = "make it again: snakemake --forcerun predict"


def asked_ids(path: Path) -> list[str]:
    """Ids of results/sft/test.json's questions.

    Raises:
        EqaError: not that file.
    """
    rows = read_json(path, "test file")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "question_id" in row for row in rows):
        raise EqaError(f"{path}: no list of test questions; run again the rule build_sft")
    return [row["question_id"] for row in rows]


def join_answers(shards: Sequence[Path], wanted: Sequence[str], where: Path) -> dict[str, str]:
    """Answers of all shards, sorted by id.

    Args:
        shards: files of answers, one JSON object a line.
        wanted: ids of the test questions.
        where: folder of the shards, for the message about what is missing in all of them.
    Raises:
        EqaError: an id that no test question has, an answer in two shards, a question without an answer.
    """
    known = set(wanted)
    owner: dict[str, Path] = {}
    answers: dict[str, str] = {}
    for shard in shards:
        found = read_predictions(shard)
        foreign = sorted(set(found) - known)
        if foreign:
            raise EqaError(f"{shard}: {listed(foreign)}: no test question; {AGAIN}")
        doubled = sorted(set(found) & set(answers))
        if doubled:
            raise EqaError(f"{shard}: {listed(doubled)}: answered in {owner[doubled[0]]} too; {AGAIN}")
        owner |= dict.fromkeys(found, shard)
        answers |= found
    check_ids(answers, known, where)
    return {name: answers[name] for name in sorted(answers)}


def join_facts(shards: Sequence[Path], model: str) -> dict:
    """The one record of how the answers were made.

    Args:
        shards: their records, equal but for `count`.
        model: name that they have to carry.
    Raises:
        EqaError: two shards were made in different ways, or a record is none or another model's.
    """
    first: Mapping = {}
    count = 0
    for shard in shards:
        facts = read_json(shard, "record of a shard")
        if not isinstance(facts, dict) or not isinstance(facts.get("count"), int) or facts.get("model") != model:
            raise EqaError(f"{shard}: no record of a shard of the model {model}; {AGAIN}")
        count += facts["count"]
        facts = {key: value for key, value in facts.items() if key != "count"}
        first = first or facts
        if facts != first:
            key = next(key for key in sorted({*facts, *first}) if facts.get(key) != first.get(key))
            raise EqaError(
                f"{shard}: {key}={facts.get(key)!r}, but {first.get(key)!r} in {shards[0]}; both have to be made by one "
                f"recipe; {AGAIN}"
            )
    return {**first, "count": count}


def prune(folder: Path, kept: Sequence[Path]) -> int:
    """Remove shards of a former, larger number of shards; how many files."""
    stale = [path for path in sorted(folder.glob("[0-9][0-9][0-9][0-9].*")) if path not in kept]
    for path in stale:
        remove(path)
    return len(stale)


def run(args: argparse.Namespace) -> dict:
    """Join, write, and remove what no shard is any more."""
    folder = args.shards_dir / args.model
    numbers = range(args.config["predict"]["shards"])
    shards = [folder / f"{number:04d}.jsonl" for number in numbers]
    records = [folder / f"{number:04d}.meta.json" for number in numbers]
    answers = join_answers(shards, asked_ids(args.test), folder)
    facts = join_facts(records, args.model)
    if facts["count"] != len(answers):
        raise EqaError(f"{folder}: {len(answers)} answers, but the records say {facts['count']}; {AGAIN}")
    removed = prune(folder, [*shards, *records])
    write_jsonl(args.output, ({"question_id": name, "prediction": text} for name, text in answers.items()))
    write_json(args.meta, facts)
    return {"model": args.model, "count": len(answers), "shards": len(shards), "removed": removed}


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="join_predictions", description=__doc__.splitlines()[0].partition("   ")[0])
    parser.add_argument("--model", required=True, help="name of the model: a folder below --shards-dir")
    parser.add_argument("--test", type=path_argument, required=True, help="results/sft/test.json")
    parser.add_argument("--shards-dir", type=path_argument, required=True, help="MODEL/NNNN.jsonl and .meta.json")
    parser.add_argument("--config", type=json_argument, required=True, help="predict.shards as JSON")
    parser.add_argument("--output", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--meta", type=path_argument, required=True, help="record of how they were made")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("join_predictions", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
