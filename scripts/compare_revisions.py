"""Compare the tuned models of two git revisions on one page, in the design of the report.   By hand:

    python -m scripts.compare_revisions --a HEAD~1 --b HEAD --output work/compare.html

Reads results at both revisions from git and the DVC cache (or its remote); nothing is checked out. A revision is
anything that git knows, or `workspace` for the files as they lie here. Differences are paired over the questions that
both test parts hold.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.compare_models import compare
from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.report_data import (
    JUDGED,
    MODELS,
    Reader,
    add_judgement,
    base_summary,
    clean,
    compose,
    flat_config,
    listing,
    mapping,
    number,
    text,
)
from scripts.score import figures, grouped, summarise
from scripts.write_report import FRAMES, write_page

WORKSPACE = "workspace"
FILES = (
    "results/config.json",
    "results/metrics.json",
    *(f"results/metrics/{model}.json" for model in MODELS),
    *(f"results/metrics/{model}.questions.jsonl" for model in MODELS),
    *(f"results/metrics/llm_match_{model}.json" for model in ("base", "tuned")),
    "results/index/questions.json",
    "results/index/episodes.json",
    "results/split/split.json",
    "models/base/manifest.json",
)
# of a file that a revision may lack without a word: it is switched off, or older recipes did not make it
OPTIONAL = ("llm_match", "models/base", "blind", "majority", "results/index/episodes", "results/metrics.json")
SETTINGS = {"bootstrap_draws": 1000, "confidence": 0.95, "seed": 7}  # where a revision's recipe names none
LONGEST_NAME = 40  # characters of a revision in headings
SHORT_COMMIT = 10  # digits


# ------------------------------------------------------------------------------------------------ reading


def resolve(root: Path, revision: str, option: str) -> str:
    """The commit that a revision names, or `workspace`.

    Raises:
        EqaError: empty, unknown to git, or no git repository.
    """
    if not revision:
        raise EqaError(f"{option} names no revision; for example: make compare A=HEAD~1 B=HEAD")
    if revision == WORKSPACE:
        return WORKSPACE
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise EqaError(f"{option}={revision!r} is no revision of this repository; `git log --oneline --all` lists them")
    return done.stdout.strip()


def fetch(root: Path, commit: str, target: Path) -> dict[str, str]:
    """Copy the wanted files of a revision to `target`.

    Args:
        root: the repository.
        commit: of `resolve`.
        target: an empty folder.
    Returns:
        Why a file could not be had, by file.
    """
    if commit == WORKSPACE:
        return {name: "not here" for name in FILES if not copy(root / name, target / name)}
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    faults = {}
    files = DVCFileSystem(str(root), rev=commit)
    for name in FILES:
        try:
            data = files.read_bytes(name)
        except (FileNotFoundError, DataIndexDirError):
            faults[name] = f"neither in git nor in the DVC cache; `dvc fetch` at {commit[:10]} brings what a remote has"
            continue
        except (DvcException, OSError) as error:
            faults[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return faults


def copy(source: Path, target: Path) -> bool:
    """Copy a file; whether it was there."""
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return True


def read_side(folder: Path, faults: Mapping[str, str], name: str) -> dict:
    """Scores, rows, recipe and split of one revision.

    Args:
        folder: of `fetch`.
        faults: what `fetch` could not get.
        name: what the page calls the revision.
    """
    reader = Reader(folder / "results", f"{name}: results")
    optional = {file.removeprefix("results/") for file in FILES if any(word in file for word in OPTIONAL)}
    side = {
        "scores": {m: reader.mapping(f"metrics/{m}.json", optional=True) for m in MODELS},
        "rows": {m: reader.rows(f"metrics/{m}.questions.jsonl", optional=True) for m in MODELS},
        "flat": reader.mapping("metrics.json", optional=True),
        "config": reader.mapping("config.json", optional=True),
        "index": reader.mapping("index/questions.json", optional=True),
        "episodes": reader.mapping("index/episodes.json", optional=True),
        "split": reader.mapping("split/split.json", optional=True),
        "base": Reader(folder / "models/base").mapping("manifest.json", optional=True),
    }
    for model in ("base", "tuned"):
        judged = reader.mapping(f"metrics/llm_match_{model}.json", optional=True)
        add_judgement(side["scores"][model], side["rows"][model], judged)
    for file, why in faults.items():
        if file.removeprefix("results/") not in optional:
            reader.note(file.removeprefix("results/"), str(clean(why)))
    side["missing"] = reader.missing
    for model in ("base", "tuned"):
        if not side["scores"][model]:
            side["scores"][model] = {"overall": from_flat(side["flat"], model)}
    return side


# ------------------------------------------------------------------------------------------------ pure


def from_flat(flat: Mapping, model: str) -> dict:
    """Overall scores of a model out of results/metrics.json, which git holds even where the DVC cache is empty."""
    found: dict[str, dict] = {}
    for key, value in flat.items():
        metric = key.removeprefix(f"{model}_")
        if metric == key or metric.startswith("minus_") or metric.endswith(("_low", "_high")) or metric == "count":
            continue
        if number(value) is not None:
            low, high = (number(flat.get(f"{key}_{end}")) for end in ("low", "high"))
            found[metric] = {"value": number(value), "low": low, "high": high}
    return found


def config_changes(a: Mapping, b: Mapping) -> list[tuple[str, str | None, str | None]]:
    """(key, value in a, value in b) of every key that differs, in b's order, then what only a has."""
    before, after = dict(flat_config(a)), dict(flat_config(b))
    keys = [*after, *(key for key in before if key not in after)]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def shared_rows(a: Sequence[Mapping], b: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping], int]:
    """Rows of the questions that both hold with the same accepted answers, in the same order, and how many changed.

    Returns:
        Rows of a, rows of b, and the questions of both whose accepted answers differ, which cannot be compared.
    """
    first = {row["question_id"]: row for row in a if text(row.get("question_id"))}
    second = {row["question_id"]: row for row in b if text(row.get("question_id"))}
    both = sorted(set(first) & set(second))
    same = [name for name in both if first[name].get("accepted") == second[name].get("accepted")]
    return [first[name] for name in same], [second[name] for name in same], len(both) - len(same)


def recomputed(rows: Sequence[Mapping], settings: Mapping) -> dict:
    """Means and intervals of scored rows as `score.summarise` gives them, LLM-Match among them where rows have marks."""

    def judged(part: Sequence[Mapping]) -> dict:
        return figures(part, [JUDGED[0]], settings)[JUDGED[0]]

    scores = summarise(rows, settings)
    marked = [row for row in rows if number(row.get(JUDGED[0])) is not None]
    if marked:
        by = {f"by_{key}": grouped(marked, key, judged) for key in ("category", "source")}
        add_judgement(scores, (), {"overall": judged(marked), **by})
    return scores


def without_intervals(scores: Mapping) -> dict:
    """Overall scores without the ends of their intervals."""
    return {
        "overall": {key: {"value": mapping(one).get("value")} for key, one in mapping(scores.get("overall")).items()}
    }


def settings_note(own: Mapping, settings: Mapping, names: tuple[str, str], recomputed: bool) -> str:
    """What the page says where two recipes score with other settings.

    Args:
        own, settings: config section `score` of the first and of the second revision.
        names: what the page calls them.
        recomputed: whether the first one's intervals could be made anew.
    """
    differ = [
        f"score.{key} is {own[key]} in {names[0]}, {settings[key]} in {names[1]}"
        for key in settings
        if own[key] != settings[key]
    ]
    if recomputed:
        return f"{'; '.join(differ)}. All intervals here are computed with the settings of {names[1]}."
    return (
        f"{'; '.join(differ)}. Intervals here are those of {names[1]}; the scored questions of {names[0]} are not here, so "
        "its own could not be computed anew and are left out."
    )


def combine(a: Mapping, b: Mapping, names: tuple[str, str]) -> dict:
    """The page's context from two sides of `read_side`.

    Args:
        a, b: the sides.
        names: what the page calls them.
    """
    settings = {**SETTINGS, **mapping(b["config"].get("score"))}
    own = {**settings, **mapping(a["config"].get("score"))}
    rows_a, rows_b, changed = shared_rows(a["rows"]["tuned"], b["rows"]["tuned"])
    count_a, count_b = len(a["rows"]["tuned"]), len(b["rows"]["tuned"])
    scores = {"a": a["scores"]["tuned"], "b": b["scores"]["tuned"], "base": b["scores"]["base"]}
    shown_rows = {"a": a["rows"]["tuned"], "b": b["rows"]["tuned"], "base": b["rows"]["base"]}
    notes, pair, missing = [], {}, [*a["missing"], *b["missing"]]
    same_part = len(rows_a) == count_a and len(rows_b) == count_b
    try:
        if own != settings:
            # one caption speaks of all intervals of the page
            can = bool(count_a)
            old = scores["a"]
            scores["a"] = old | recomputed(a["rows"]["tuned"], settings) if can else without_intervals(old)
            notes.append(settings_note(own, settings, names, can))
        if rows_a:
            pair = compare(rows_b, rows_a, settings)
        if rows_a and not same_part:
            # one number must be about one set of questions
            scores |= {"a": recomputed(rows_a, settings), "b": recomputed(rows_b, settings)}
            ids = {row["question_id"] for row in rows_b}
            scores["base"] = recomputed([r for r in b["rows"]["base"] if r.get("question_id") in ids], settings)
            shown_rows = {key: [r for r in part if r.get("question_id") in ids] for key, part in shown_rows.items()}
    except (KeyError, TypeError, ValueError) as error:
        missing.append(
            {"path": "results/metrics", "why": f"rows of the two revisions do not match ({clean(repr(error))})"}
        )
        pair = {}
    absent = [name for name, count in zip(names, (count_a, count_b), strict=True) if not count]
    if absent:
        notes.append(
            f"The scored questions of {' and '.join(absent)} are not here, so nothing is compared question by question."
        )
    elif not same_part:
        notes.append(
            f"The test parts differ: {count_a:,} question{'s' * (count_a != 1)} in {names[0]}, {count_b:,} in {names[1]}. Scores here are on "
            f"the {len(rows_a):,} that both hold with the same accepted answers."
            if rows_a
            else "The two test parts share no question: their scores cannot be compared."
        )
    if changed:
        many = "1 question has" if changed == 1 else f"{changed:,} questions have"
        left = "is" if changed == 1 else "are"
        notes.append(f"{many} other accepted answers in {names[1]} and {left} left out.")
    if text(a["base"].get("name")) != text(b["base"].get("name")):
        notes.append("The two revisions start from different base models.")
    labels = {
        "a": {"key": "a", "label": names[0], "name": names[0], "help": "the tuned model of this revision"},
        "b": {"key": "b", "label": names[1], "name": names[1], "help": "the tuned model of this revision"},
        "base": {"key": "base", "label": "Base", "name": "base", "help": f"the base model of {names[1]}"},
    }
    ids = sorted({r["question_id"] for part in shown_rows.values() for r in part if text(r.get("question_id"))})
    context = compose(
        scores=scores,
        rows=shown_rows,
        predictions={},
        pair=pair,
        labels=labels,
        left="a",
        right="b",
        confidence=number(settings.get("confidence")) or SETTINGS["confidence"],
        index=b["index"],
        split={"parts": {"test": ids}},
        shown=("a", "b", "base"),
    )
    records = listing(b["episodes"].get("episodes"))
    return context | {
        "kind": "comparison",
        "notes": notes,
        "preset": text(b["config"].get("preset")),
        "config": flat_config(b["config"]),
        "config_changes": config_changes(a["config"], b["config"]),
        "demo": mapping(b["config"].get("model")).get("source") == "demo",
        "base": base_summary(b["base"], b["config"]),
        "missing": missing,
        "origins": {text(r.get("episode_history")): text(r.get("root")) for r in records if isinstance(r, dict)},
        "frames": {},
    }


def short(revision: str) -> str:
    """A revision for headings: ten digits of a commit, at most 40 characters in all."""
    revision = re.sub(r"\b[0-9a-f]{11,64}\b", lambda found: found.group()[:SHORT_COMMIT], revision)
    return revision if len(revision) <= LONGEST_NAME else f"{revision[: LONGEST_NAME - 1]}…"


def headings(a: str, b: str) -> tuple[str, str]:
    """What the page calls two revisions: two different names."""
    first, second = short(a), short(b)
    return (first, second) if first != second else (f"{first} (A)", f"{second} (B)")


# ------------------------------------------------------------------------------------------------ files


def here(root: Path) -> dict:
    """Pictures of the working tree: they are big, and episodes look the same at every revision."""
    manifest = Reader(root / "results").mapping("frames/manifest.json", optional=True)
    return {
        name: {
            "frames": [text(frame) for frame in listing(mapping(one).get("frames"))],
            "indices": [i for i in listing(mapping(one).get("indices")) if isinstance(i, int)],
            "total": number(mapping(one).get("total")),
        }
        for name, one in mapping(manifest.get("episodes")).items()
    }


def run(args: argparse.Namespace) -> dict:
    """Fetch both sides, compare, write the page."""
    root = args.root.resolve()
    commits = [resolve(root, args.a, "A"), resolve(root, args.b, "B")]
    names = headings(args.a, args.b)
    sides = []
    with tempfile.TemporaryDirectory() as scratch:
        for commit, name, letter in zip(commits, names, "ab", strict=True):
            folder = Path(scratch) / letter
            folder.mkdir()
            sides.append(read_side(folder, fetch(root, commit, folder), name))
    for name, side in zip(names, sides, strict=True):
        if not side["flat"] and not side["rows"]["tuned"]:
            raise EqaError(
                f"{name}: no results at this revision, neither in git nor in the DVC cache; "
                f"`dvc fetch` there, or run the pipeline and commit"
            )
    context = combine(*sides, names)
    context["frames"] = here(root)
    mode = mapping(sides[1]["config"].get("report")).get("frames")
    mode = mode if mode in FRAMES and context["frames"] else "none"
    facts = write_page(context, root / "results/frames", args.output, mode)
    top = context["overall"][0] if context["overall"] else {}
    return {**facts, "title": context["headline"]["title"], "metric": top.get("key", ""), "page": str(args.output)}


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="compare_revisions", description=__doc__.splitlines()[0])
    parser.add_argument("--a", required=True, help="git revision to compare with, or `workspace`")
    parser.add_argument("--b", required=True, help="git revision that is compared, or `workspace`")
    parser.add_argument("--root", type=path_argument, default=Path(), help="the repository")
    parser.add_argument("--output", type=path_argument, required=True, help="the page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal."""
    return entry("compare_revisions", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
