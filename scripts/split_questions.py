"""Divide the questions into train, val and test so that no room is in two parts.   By hand:

    python -m scripts.split_questions --episodes results/index/episodes.json --questions results/index/questions.json \
        --config '{"split":{"by":"space","file":"","val":0.15,"test":0.2,"salts":64}}' --output results/split/split.json
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, write_json

PARTS = ("train", "val", "test")
DRAWN = ("test", "val")  # order in which parts are drawn; train takes what is left
# salts x spaces looked at, so that 60,000 spaces take seconds: Open-EQA's 137 spaces would allow 3,649 salts
MOST_VISITS = 500_000
FEWEST_SALTS = 4
# the tutorial's sizes: 1,378 to train and validate and 258 to test of Open-EQA's 1,636; val_size 0.125 of the first
TUTORIAL_TEST = (258, 1636)
TUTORIAL_VAL = 0.125
RANDOM_SALT = "0"  # the tutorial's own seed is not known
GAIN = 1e-9  # a group must lower the distance by more than rounding


@dataclass(frozen=True)
class Group:
    """What stays together: a space (or, for a random split, a question) with its questions' counts by stratum."""

    name: str
    counts: tuple[tuple[int, int], ...]  # (stratum, questions), ascending


# ------------------------------------------------------------------------------------------------ pure


def group_questions(questions: Sequence[Mapping]) -> tuple[list[Group], list[int]]:
    """Spaces with their counts by stratum (source x category).

    Args:
        questions: rows of the index, with space, source, category.
    Returns:
        Groups sorted by name, and the questions of each stratum over all groups. Strata are numbered in sorted order.
    """
    strata = {key: i for i, key in enumerate(sorted({(q["source"], q["category"]) for q in questions}))}
    by_space: dict[str, Counter] = defaultdict(Counter)
    totals = [0] * len(strata)
    for question in questions:
        stratum = strata[question["source"], question["category"]]
        by_space[question["space"]][stratum] += 1
        totals[stratum] += 1
    return [Group(name, tuple(sorted(counts.items()))) for name, counts in sorted(by_space.items())], totals


def order_by_hash(names: Iterable[str], salt: str) -> list[str]:
    """`names` by sha256 of salt and name: a shuffle that is the same on every machine."""
    return sorted(
        names, key=lambda name: (hashlib.sha256((salt + name).encode("utf-8", "surrogatepass")).digest(), name)
    )


def chi_square(groups: Iterable[Group], targets: Sequence[float]) -> float:
    """Distance of the groups' counts from their targets: sum over strata of (count - target)^2 / target."""
    counts = [0] * len(targets)
    for group in groups:
        for stratum, count in group.counts:
            counts[stratum] += count
    return sum((count - target) ** 2 / target for count, target in zip(counts, targets, strict=True))


def draw_part(groups: Sequence[Group], targets: Sequence[float]) -> list[int]:
    """Take each group in turn if that lowers the chi-square to the targets.

    Args:
        groups: in the order in which they are offered.
        targets: wanted questions of each stratum, > 0.
    Returns:
        Positions of the groups taken, ascending.
    """
    slope = [-2.0] * len(targets)  # d chi-square / d count = 2 (count - target) / target
    half_question = [-1.0 / target for target in targets]
    short = set(range(len(targets)))  # strata that lack half a question or more; none left: no group can help
    taken = []
    for position, group in enumerate(groups):
        change = 0.0
        for stratum, count in group.counts:
            change += count * (slope[stratum] + count / targets[stratum])
        if change < -GAIN:
            taken.append(position)
            for stratum, count in group.counts:
                slope[stratum] += 2.0 * count / targets[stratum]
                if slope[stratum] > half_question[stratum]:
                    short.discard(stratum)
            if not short:
                break
    return taken


def nearest_group(groups: Sequence[Group], targets: Sequence[float]) -> int:
    """Position of the one group that is closest to the targets: the least evil where none comes closer than nothing."""
    changes = [sum(c * (c / targets[s] - 2.0) for s, c in group.counts) for group in groups]
    return min(range(len(groups)), key=lambda i: (round(changes[i], 9), i))


def split_spaces(
    questions: Sequence[Mapping], shares: Mapping[str, float], salts: int
) -> tuple[dict[str, list[str]], dict]:
    """Divide spaces, stratified by source x category.

    For each salt the spaces are ordered by sha256(salt + space); test, then val, take what lowers their chi-square;
    the salt with the lowest sum is kept. With many spaces fewer salts are tried: at most MOST_VISITS / spaces, at
    least FEWEST_SALTS; sampling noise shrinks as data grows, so that few orders do.

    Args:
        questions: rows of the index.
        shares: share of the questions for each part that is wanted beside the last; the last key takes what is left.
        salts: orders tried (config `split.salts`).
    Returns:
        Spaces of each part, sorted; and {"salt", "salts_tried", "chi_square"}.
    Raises:
        EqaError: fewer spaces than parts.
    """
    *drawn, rest = shares
    groups, totals = group_questions(questions)
    if len(groups) < len(shares):
        raise EqaError(
            f"split: {len(groups)} spaces with {len(questions)} questions cannot fill {len(shares)} parts "
            f"({', '.join(shares)}); add episodes of other spaces, or set split.by to question"
        )
    by_name = {group.name: group for group in groups}
    targets = {part: [max(shares[part], 1e-9) * total for total in totals] for part in drawn}
    tries = max(min(FEWEST_SALTS, salts), min(salts, MOST_VISITS // len(groups))) if drawn else 1
    best: tuple | None = None
    for salt in range(tries):
        remaining = [by_name[name] for name in order_by_hash(by_name, str(salt))]
        distance, chosen = 0.0, {}
        for position, part in enumerate(drawn):
            later = len(shares) - 1 - position  # every later part needs a space too
            taken = draw_part(remaining, targets[part])[: len(remaining) - later]
            inside = set(taken or [nearest_group(remaining, targets[part])])
            distance += chi_square((remaining[i] for i in sorted(inside)), targets[part])
            chosen[part] = sorted(remaining[i].name for i in inside)
            remaining = [group for i, group in enumerate(remaining) if i not in inside]
        chosen[rest] = sorted(group.name for group in remaining)
        key = (round(distance, 9), salt)
        if best is None or key < best[0]:
            best = (key, chosen)
    (distance, salt), chosen = best
    return chosen, {"salt": str(salt), "salts_tried": tries, "chi_square": round(distance, 6)}


def split_at_random(questions: Sequence[Mapping], parts: Sequence[str]) -> dict[str, list[str]]:
    """A random split by question, of the tutorial's sizes, which leaks: rooms and pictures are in several parts.

    Args:
        questions: rows of the index.
        parts: which parts are wanted; the last takes what is left.
    Returns:
        Question ids of each part, sorted.
    """
    ids = order_by_hash((q["question_id"] for q in questions), RANDOM_SALT)
    test = round(len(ids) * TUTORIAL_TEST[0] / TUTORIAL_TEST[1])
    sizes = {"test": max(1, test), "val": max(1, round((len(ids) - test) * TUTORIAL_VAL))}
    chosen, start = {}, 0
    for part in parts[:-1]:
        chosen[part] = sorted(ids[start : start + sizes[part]])
        start += sizes[part]
    chosen[parts[-1]] = sorted(ids[start:])
    return chosen


def count_part(questions: Sequence[Mapping]) -> dict:
    """How much a part holds: questions, episodes, spaces, by category and by source."""
    return {
        "questions": len(questions),
        "episodes": len({q["episode_history"] for q in questions}),
        "spaces": len({q["space"] for q in questions}),
        "by_category": dict(sorted(Counter(q["category"] for q in questions).items())),
        "by_source": dict(sorted(Counter(q["source"] for q in questions).items())),
    }


def leakage_report(parts: Mapping[str, Sequence[Mapping]]) -> dict:
    """What two parts or more have in common.

    Returns:
        shared_spaces, shared_episodes, shared_questions: ids in two parts or more.
        shared_question_texts: the same question about the same episode under two ids, in two parts or more.
        leaking_test_questions: test questions about a space that train or val has too;
        leaking_test_questions_by_episode: the same by episode, that is, the very pictures were trained on.
        leaks: whether any of these is not zero.
    """

    def shared(key) -> int:
        owners = defaultdict(set)
        for part, rows in parts.items():
            for row in rows:
                owners[key(row)].add(part)
        return sum(len(owner) > 1 for owner in owners.values())

    def seen(key: str) -> int:
        others = {row[key] for part in ("train", "val") for row in parts[part]}
        return sum(row[key] in others for row in parts["test"])

    report = {
        "shared_spaces": shared(lambda q: q["space"]),
        "shared_episodes": shared(lambda q: q["episode_history"]),
        "shared_questions": shared(lambda q: q["question_id"]),
        "shared_question_texts": shared(lambda q: (q["episode_history"], " ".join(q["question"].lower().split()))),
        "leaking_test_questions": seen("space"),
        "leaking_test_questions_by_episode": seen("episode_history"),
    }
    return report | {"leaks": any(report.values())}


def read_split_file(
    content: object, name: str, questions: Sequence[Mapping], absent: Mapping[str, str]
) -> tuple[dict[str, list], bool]:
    """Check a user's split file.

    Args:
        content: parsed JSON: {"test": {"episodes": [...], "questions": [...], "spaces": [...]},
            "val": ..., "train": ...,
            "allow_leakage": false}; a part that is not named is drawn from what is left.
        name: the file, for messages.
        questions: rows of the index.
        absent: why an episode is not in the index, by episode_history.
    Returns:
        Question rows of each named part, and whether leakage is allowed.
    Raises:
        EqaError: wrong shape, unknown or doubled id, an empty part.
    """
    if not isinstance(content, dict) or not set(content) & set(PARTS):
        raise EqaError(f'{name}: a split file is a JSON object such as {{"test": {{"episodes": ["hm3d-v0/..."]}}}}')
    unknown = sorted(set(content) - {*PARTS, "allow_leakage"})
    if unknown:
        raise EqaError(f"{name}: unknown key {unknown[0]!r}; known here: train, val, test, allow_leakage")
    allowed = content.get("allow_leakage", False)
    if not isinstance(allowed, bool):
        raise EqaError(f"{name}: allow_leakage={allowed!r}; true or false is wanted")
    fields = {"episodes": "episode_history", "questions": "question_id", "spaces": "space"}
    rows: dict[str, dict[str, list]] = {kind: defaultdict(list) for kind in fields}
    for question in questions:
        for kind, field in fields.items():
            rows[kind][question[field]].append(question)
    owner: dict[str, str] = {}
    parts: dict[str, list] = {}
    for part in PARTS:
        if part not in content:
            continue
        lists = content[part]
        if not isinstance(lists, dict) or not lists or set(lists) - set(fields):
            raise EqaError(
                f'{name}: "{part}" wants an object with one or more of episodes, questions, spaces, each a list of ids'
            )
        parts[part] = []
        for kind in sorted(lists):
            ids = lists[kind]
            if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
                raise EqaError(f'{name}: "{part}.{kind}" is no list of strings; write ["...", "..."]')
            doubled = [i for i, count in Counter(ids).items() if count > 1]
            if doubled:
                raise EqaError(f'{name}: "{part}.{kind}" names {doubled[0]!r} twice; remove one')
            for i in ids:
                if i not in rows[kind]:
                    why = f" ({absent[i]})" if i in absent else ""
                    raise EqaError(
                        f'{name}: "{part}.{kind}" names {i!r}, which no usable question has{why}; correct or remove it'
                    )
                for row in rows[kind][i]:
                    before = owner.get(row["question_id"])
                    owner[row["question_id"]] = part
                    if before is not None:
                        where = f"in {before} and in {part}" if before != part else f"twice in {part}"
                        raise EqaError(
                            f"{name}: question {row['question_id']} is {where} (by {kind} {i!r}); name it once"
                        )
                parts[part] += rows[kind][i]
        if not parts[part]:
            raise EqaError(f'{name}: "{part}" names nothing; leave the part out to have it drawn, or name its episodes')
    return parts, allowed


def split_questions(
    questions: Sequence[Mapping], config: Mapping, named: Mapping[str, list], allow_leakage: bool, name: str
) -> dict:
    """The whole split.

    Args:
        questions: rows of the index.
        config: section `split`.
        named: parts fixed by a split file.
        allow_leakage: whether that file may share spaces between parts.
        name: the split file, for messages.
    Returns:
        Content of split.json.
    Raises:
        EqaError: parts share a space, questions are in no part, or a part is empty.
    """
    fixed = {row["question_id"] for rows in named.values() for row in rows}
    rest = [q for q in questions if q["question_id"] not in fixed]
    drawn = [part for part in (*DRAWN, "train") if part not in named]
    leak_wanted = allow_leakage or config["by"] == "question"
    if named and not leak_wanted:
        refuse_shared_spaces(named, rest, name)
    facts: dict = {"salt": "", "salts_tried": 0, "chi_square": 0.0}
    parts = {part: list(rows) for part, rows in named.items()}
    if not drawn and rest:
        raise EqaError(
            f"{name}: {len(rest)} questions are in no part (first: {rest[0]['question_id']}); name them, "
            "or leave out the part that takes the rest"
        )
    if drawn and not rest:
        raise EqaError(f"{name}: no question is left for {', '.join(drawn)}; name fewer, or name that part too")
    if drawn and config["by"] == "question":
        wanted = split_at_random(rest, drawn)
        by_id = {q["question_id"]: q for q in rest}
        parts |= {part: [by_id[i] for i in ids] for part, ids in wanted.items()}
        facts["salt"] = RANDOM_SALT
    elif drawn:
        shares = {part: config.get(part, 0.0) for part in drawn}
        if "train" not in drawn:  # no train to take the rest: the drawn parts keep their proportion
            total = sum(shares.values()) or 1.0
            shares = {part: share / total for part, share in shares.items()}
        for part in drawn[:-1]:
            if shares[part] <= 0:
                raise EqaError(f"config: split.{part}={shares[part]} leaves {part} empty; set it to 0.1 or so")
        spaces, facts = split_spaces(rest, shares, config["salts"])
        part_of = {space: part for part, names in spaces.items() for space in names}
        for part in drawn:
            parts[part] = []
        for question in rest:
            parts[part_of[question["space"]]].append(question)
    for part in PARTS:
        if not parts[part]:
            raise EqaError(
                f"split: {part} is empty with {len(questions)} questions; "
                f"add episodes or change split.{'test' if part == 'train' else part}"
            )
    return {
        "by": config["by"],
        "file": bool(named),
        **facts,
        "parts": {part: sorted(q["question_id"] for q in parts[part]) for part in PARTS},
        "counts": {part: count_part(parts[part]) for part in PARTS},
        "leakage": leakage_report(parts) | {"allowed": leak_wanted},
    }


def refuse_shared_spaces(named: Mapping[str, list], rest: Sequence[Mapping], name: str) -> None:
    """No space may be in two named parts, nor in a named part and in what is left.

    Raises:
        EqaError: names the first such space.
    """
    owner: dict[str, str] = {}
    for part, rows in named.items():
        for row in rows:
            before = owner.setdefault(row["space"], part)
            if before != part:
                raise EqaError(
                    f"{name}: space {row['space']!r} is in {before} and in {part}; put it into one, "
                    'or set "allow_leakage": true to have it reported'
                )
    left = Counter(q["space"] for q in rest if q["space"] in owner)
    if left:
        space, count = sorted(left.items())[0]
        raise EqaError(
            f"{name}: {count} more questions about space {space!r} of {owner[space]} are named nowhere and would leak; "
            f'name the whole space, or set "allow_leakage": true'
        )


# ------------------------------------------------------------------------------------------------ files


def read_index(episodes_file: Path, questions_file: Path) -> tuple[list[dict], dict[str, str]]:
    """Questions of the index, and why other episodes are absent from it.

    Raises:
        EqaError: no index, no question, a question_id twice.
    """
    content = read_json(questions_file, "index of questions")
    questions = content.get("questions") if isinstance(content, dict) else None
    fields = ("question_id", "question", "category", "episode_history", "source", "space")
    if not isinstance(questions, list) or not all(
        isinstance(q, dict) and all(isinstance(q.get(field), str) for field in fields) for q in questions
    ):
        raise EqaError(
            f"{questions_file}: not an index of questions ({', '.join(fields)}); "
            f"make it again: snakemake --force {questions_file}"
        )
    if not questions:
        raise EqaError(
            f"{questions_file}: no usable question; see data.source, data.demo_episodes and "
            "the index's list of missing episodes"
        )
    doubled = [i for i, count in Counter(q["question_id"] for q in questions).items() if count > 1]
    if doubled:
        raise EqaError(f"{questions_file}: question_id {doubled[0]!r} occurs twice; make the index again")
    records = read_json(episodes_file, "index of episodes")
    rows = records.get("episodes") if isinstance(records, dict) else None
    if not isinstance(rows, list):
        raise EqaError(f"{episodes_file}: not an index of episodes; make it again: snakemake --force {episodes_file}")
    absent = {
        r["episode_history"]: f"{r['status']}: {r.get('reason', '')}".rstrip(": ")
        for r in rows
        if r.get("status") != "ok"
    }
    return questions, absent


def run(episodes: Path, questions: Path, config: dict, output: Path) -> dict:
    """Read the index, write split.json.

    Raises:
        EqaError: see `read_index`, `read_split_file`, `split_questions`.
    """
    section = config["split"]
    rows, absent = read_index(episodes, questions)
    named, allow = {}, False
    if section["file"]:
        file = Path(section["file"])
        named, allow = read_split_file(read_json(file, "split file"), str(file), rows, absent)
    split = split_questions(rows, section, named, allow, section["file"])
    write_json(output, split)
    return {"counts": {part: split["counts"][part]["questions"] for part in PARTS}, "leakage": split["leakage"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="split_questions", description="Divide the questions into train, val and test."
    )
    parser.add_argument("--episodes", type=path_argument, required=True, help="results/index/episodes.json")
    parser.add_argument("--questions", type=path_argument, required=True, help="results/index/questions.json")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: section split")
    parser.add_argument("--output", type=path_argument, required=True, help="split.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("split_questions", build_parser, lambda a: run(a.episodes, a.questions, a.config, a.output), argv)


if __name__ == "__main__":
    sys.exit(main())
