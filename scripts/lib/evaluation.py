"""What the scripts of evaluation share: accepted answers of the test part, predictions joined by question_id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.answer_scores import check_answer
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, read_jsonl

SHOWN_IDS = 3  # ids that a message names; the rest is counted


@dataclass(frozen=True)
class Gold:
    """One test question with its accepted answers; `accepted[0]` is the answer, the rest the extra answers."""

    question_id: str
    question: str
    accepted: tuple[str, ...]
    category: str
    source: str
    space: str
    episode_history: str


def read_gold(questions: Path, split: Path, part: str = "test") -> list[Gold]:
    """The questions of one part, sorted by question_id.

    Raises:
        EqaError: a file is broken, an id of the split is unknown, the part is empty.
    """
    wanted = read_part(split, part)
    known = {row["question_id"]: row for row in read_questions(questions)}
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise EqaError(f"{split}: part {part} names {listed(unknown)} not in {questions}; run the split again")
    if not wanted:
        raise EqaError(f"{split}: part {part} is empty; raise split.{part} so that there is something to score")
    return [_gold(known[name]) for name in sorted(wanted)]


def _gold(row: dict) -> Gold:
    accepted = [row["answer"], *(row.get("extra_answers") or [])]
    return Gold(
        row["question_id"],
        row["question"],
        tuple(dict.fromkeys(text for text in accepted if isinstance(text, str) and text.strip())) or ("",),
        row["category"],
        row["source"],
        row["space"],
        row["episode_history"],
    )


def read_questions(path: Path) -> list[dict]:
    """results/index/questions.json's records.

    Raises:
        EqaError: not that file, or a record lacks a key.
    """
    data = read_json(path, "question index")
    rows = data.get("questions") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise EqaError(f"{path}: no list 'questions'; run again the rule index_episodes")
    keys = ("question_id", "question", "answer", "category", "episode_history", "source", "space")
    for number, row in enumerate(rows):
        missing = [key for key in keys if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if missing:
            raise EqaError(f"{path}: question {number} has no text {missing[0]!r}; run again the rule index_episodes")
    return rows


def read_part(split: Path, part: str) -> list[str]:
    """Question ids of one part of results/split/split.json.

    Raises:
        EqaError: not that file.
    """
    data = read_json(split, "split")
    parts = data.get("parts") if isinstance(data, dict) else None
    if not isinstance(parts, dict) or not isinstance(parts.get(part), list):
        raise EqaError(f"{split}: no list parts.{part}; run again the rule split_questions")
    return parts[part]


def listed(ids: Sequence[str]) -> str:
    """'question_id a, b, c and 4 more'."""
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f"question_id {', '.join(str(name)[:80] for name in ids[:SHOWN_IDS])}{more}"


def check_ids(found: Iterable[str], wanted: Iterable[str], path: Path) -> None:
    """Each wanted id exactly once and no other.

    Raises:
        EqaError: doubled, unknown or missing ids, in this order; names some and counts the rest.
    """
    found, expected = list(found), set(wanted)
    seen: set[str] = set()
    doubled: set[str] = set()
    for name in found:
        (doubled if name in seen else seen).add(name)
    faults = (
        (doubled, "answers more than once; keep one line each"),
        (seen - expected, "is no test question; predict again with this split"),
        (expected - seen, "has no answer; run the prediction to its end"),
    )
    for ids, what in faults:
        if ids:
            raise EqaError(f"{path}: {listed(sorted(ids))}: {what}")


def read_predictions(path: Path, wanted: Iterable[str] | None = None) -> dict[str, str]:
    """{question_id: prediction}, sorted by id.

    Args:
        wanted: ids that must be there, each once; None checks for doubles only.
    Raises:
        EqaError: broken file, unknown, missing or doubled ids, a prediction that is no text.
    """
    rows = read_jsonl(path, "prediction file")
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("question_id"), str):
            raise EqaError(f"{path}: line {number} has no text 'question_id'; predict again")
        if "prediction" not in row:
            raise EqaError(f"{path}: question_id {row['question_id']} has no 'prediction'; predict again")
        check_answer(row["prediction"], f"{path}: question_id {row['question_id']}")
    ids = [row["question_id"] for row in rows]
    check_ids(ids, set(ids) if wanted is None else wanted, path)
    return {row["question_id"]: row["prediction"] for row in sorted(rows, key=lambda row: row["question_id"])}
