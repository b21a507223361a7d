"""One record an episode (kind, frames, size, space, status) and the checked questions of demo and user.   By hand:

    python -m scripts.index_episodes --demo-questions data/raw/demo/questions.json \
        --demo-manifest data/raw/demo/manifest.json --questions data/raw/openeqa/questions.json \
        --source data/raw/openeqa/source.json --config JSON --report-only episodes.json

--report-only writes the records of all episodes, the missing and broken ones with their reasons, and stops nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.episode_frames import choose
from scripts.lib.errors import EqaError
from scripts.lib.files import is_disabled, read_json, read_manifest, write_json
from scripts.lib.frame_choice import check_enough, midpoint_indices, uniform_indices
from scripts.lib.progress import track
from scripts.lib.questions import check_nesting, read_questions
from scripts.lib.readers import open_reader
from scripts.lib.sources import FRAME_SUFFIXES, find_episodes, short_hash
from scripts.lib.spaces import source_of, space_of

ROOTS = ("demo", "source")
NAMED = 3  # episodes that a message names; --report-only has them all


# ------------------------------------------------------------------------------------------------ pure


def shard_of(episode: str, shards: int) -> str:
    """The shard of an episode, four digits: stable, whatever other episodes there are."""
    return f"{int(hashlib.sha256(episode.encode('utf-8')).hexdigest()[:12], 16) % shards:04d}"


def join_questions(demo: list[dict], user: list[dict], demo_path: Path, user_path: Path) -> list[dict]:
    """All questions with root, source and space (added in place), sorted by episode and id.

    Raises:
        EqaError: an id or an episode is in both files, or one episode's folder would hold another's.
    """
    ids = {row["question_id"] for row in demo}
    episodes = {row["episode_history"] for row in demo}
    for row in user:
        if row["question_id"] in ids:
            raise EqaError(
                f"{user_path}: question_id {row['question_id']!r} is also in {demo_path}; give it another one"
            )
        if row["episode_history"] in episodes:
            raise EqaError(
                f"{user_path}: episode {row['episode_history']} is also in {demo_path}; two episodes need two names"
            )
    check_nesting(user_path, episodes | {row["episode_history"] for row in user})
    places: dict[str, dict[str, str]] = {}
    for root, part in zip(ROOTS, (demo, user), strict=True):
        for row in part:
            episode = row["episode_history"]
            if episode not in places:
                places[episode] = {"root": root, "source": source_of(episode), "space": space_of(episode)}
            row.update(places[episode])
    return sorted([*demo, *user], key=lambda row: (row["episode_history"], row["question_id"]))


def summarise(episodes: list[dict], questions: list[dict]) -> dict:
    """Counts for episodes.json; questions of unusable episodes are those that fall out."""
    status = Counter(episode["status"] for episode in episodes)
    usable = {episode["episode_history"] for episode in episodes if episode["status"] == "ok"}
    kept = sum(row["episode_history"] in usable for row in questions)
    return {
        "episodes": len(episodes),
        "ok": status["ok"],
        "missing": status["missing"],
        "broken": status["broken"],
        "spaces": len({episode["space"] for episode in episodes if episode["status"] == "ok"}),
        "questions": len(questions),
        "questions_kept": kept,
        "questions_dropped": len(questions) - kept,
        "kinds": dict(Counter(episode["kind"] for episode in episodes if episode["status"] == "ok")),
        "sources": dict(Counter(episode["source"] for episode in episodes if episode["status"] == "ok")),
    }


def check_required(episodes: list[dict], require: str, source: str) -> None:
    """Whether the run may go on.

    Raises:
        EqaError: an unusable episode and require "all", or no usable one; with count, first few and way out.
    """
    bad = [episode for episode in episodes if episode["status"] != "ok"]
    if not episodes:
        raise EqaError("no question at all; name a folder in data.source or set data.demo_episodes to 44")
    if not bad or (require == "available" and len(bad) < len(episodes)):
        return
    missing = [episode for episode in bad if episode["status"] == "missing"]
    parts = [f"{len(bad)} of {len(episodes)} episodes cannot be used"]
    named = [episode for episode in bad if episode["status"] == "broken"][:NAMED]
    parts += [episode["reason"] for episode in named]
    if missing:
        some = ", ".join(episode["episode_history"] for episode in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        parts.append(f"missing in data.source={source!r}: {some}{more}")
    way_out = "set data.require: available to go on without them" if len(bad) < len(episodes) else "correct data.source"
    raise EqaError(f"{'; '.join(parts)}; mend them or {way_out} (--report-only FILE lists all)")


# ------------------------------------------------------------------------------------------------ files


def demo_records(manifest_path: Path, episodes: Iterable[str]) -> dict[str, dict]:
    """What the demo's folder holds, each with a digest of its files' sha256 in the manifest."""
    manifest = read_manifest(manifest_path)
    if is_disabled(manifest):
        return {}
    hashes: dict[str, list[str]] = {}
    for name, record in sorted(manifest["files"].items()):
        hashes.setdefault(name, []).append(record["sha256"])
        if name.endswith(FRAME_SUFFIXES):
            hashes.setdefault(name.rpartition("/")[0], []).append(record["sha256"])
    found = find_episodes(manifest_path.parent, episodes)
    for record in found.values():
        if record["path"] not in hashes:
            raise EqaError(f"{manifest_path.parent / record['path']}: not in {manifest_path}; make the demo again: "
                           f"snakemake --force {manifest_path}")  # fmt: skip
        record["digest"] = short_hash("\n".join(hashes[record["path"]]))
    return found


def source_records(path: Path) -> dict[str, dict]:
    """What list_source found in the user's folder; {} where it is switched off.

    Raises:
        EqaError: no listing.
    """
    listing = read_json(path, "listing")
    if is_disabled(listing):
        return {}
    if not isinstance(listing, dict) or not isinstance(listing.get("episodes"), dict):
        raise EqaError(f"{path}: not a listing of the source; write it again: snakemake --force {path}")
    return listing["episodes"]


def examine(episode: str, record: dict, root: Path, wanted: Mapping, decode: bool) -> tuple[int, int, int, str]:
    """(frames, width, height, reason): opens the source and looks at the frames that will be taken.

    Args:
        record: of `find_episodes`.
        root: folder that its path is relative to.
        wanted: config frames.count, frames.choice and frames.short.
        decode: decode them too, which takes as long as storing them: an episode that only then turns out damaged could no
            longer be left out. Otherwise head and end of each are looked at (choice `cluster`: of those that uniform takes).
            Frames inside the archive are not opened.
    Returns:
        The reason is "" for a usable episode.
    """
    count, short = wanted["count"], wanted["short"]
    frames, width, height = record.get("frames", 0), record.get("width", 0), record.get("height", 0)
    try:
        if record["kind"] == "archive":
            if "fault" in record:
                raise EqaError(record["fault"])
            check_enough(episode, frames, count, short)
            return frames, width, height, ""
        reader = open_reader(episode, record["kind"], root / record["path"])
        try:
            frames, width, height = reader.count, reader.width, reader.height
            check_enough(episode, frames, count, short)
            if decode:
                for _ in reader.read(sorted(set(choose(reader, wanted)))):
                    pass
            elif wanted["choice"] == "midpoint":
                reader.check(midpoint_indices(frames, count))
            else:
                reader.check(uniform_indices(frames, count))
        finally:
            reader.close()
    except EqaError as error:
        return frames, width, height, str(error)
    return frames, width, height, ""


def index(
    questions: list[dict], found: dict[str, dict[str, dict]], roots: dict[str, Path | None], config: dict
) -> list[dict]:
    """One record an episode, sorted."""
    frames, decode = config["frames"], config["data"]["require"] == "available"
    episodes = []
    for episode, root in track(sorted({(row["episode_history"], row["root"]) for row in questions}), "episodes"):
        record = found[root].get(episode)
        folder = roots[root]
        entry_ = {
            "episode_history": episode,
            "root": root,
            "kind": record["kind"] if record else "",
            "path": record["path"] if record else "",
            "digest": record["digest"] if record else "",
            "source": source_of(episode),
            "space": space_of(episode),
            "shard": shard_of(episode, frames["shards"]),
            "frames": 0,
            "width": 0,
            "height": 0,
            "status": "missing",
            "reason": f"{episode}: no frames, video, .sens or archive member",
        }
        if record and folder is not None:
            count, width, height, reason = examine(episode, record, folder, frames, decode)
            entry_ |= {"frames": count, "width": width, "height": height, "reason": reason}
            entry_["status"] = "broken" if reason else "ok"
            entry_["reason"] = _relative(reason, folder, root)
        episodes.append(entry_)
    return episodes


def _relative(reason: str, folder: Path, root: str) -> str:
    """`reason` without the machine's folder, so that the index is the same everywhere."""
    return reason.replace(f"{folder}/", "" if root == "demo" else "data.source/")


def run(args: argparse.Namespace) -> dict:
    """Write the index and the questions, or with --report-only the index alone.

    Raises:
        EqaError: bad questions; an unusable episode where data.require is "all"; no usable episode.
    """
    config = args.config
    if not args.report_only and not (args.episodes and args.output_questions):
        raise EqaError("--episodes and --output-questions are wanted, or --report-only FILE")
    demo, user = read_questions(args.demo_questions), read_questions(args.questions)
    questions = join_questions(demo, user, args.demo_questions, args.questions)
    found = {
        "demo": demo_records(args.demo_manifest, {row["episode_history"] for row in demo}),
        "source": source_records(args.source),
    }
    source = config["data"]["source"]
    roots = {"demo": args.demo_manifest.parent, "source": resolve_source(source) if found["source"] else None}
    episodes = index(questions, found, roots, config)
    summary = summarise(episodes, questions)
    if args.report_only:
        write_json(args.report_only, {"episodes": episodes, "summary": summary})
        return summary
    check_required(episodes, config["data"]["require"], source)
    usable = {episode["episode_history"] for episode in episodes if episode["status"] == "ok"}
    kept = [row for row in questions if row["episode_history"] in usable]
    write_json(args.episodes, {"episodes": episodes, "summary": summary})
    write_json(args.output_questions, {"questions": kept, "summary": summary})
    return summary


def build_parser() -> argparse.ArgumentParser:
    """Long options only; the rule and a person type the same."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.index_episodes", description=(__doc__ or "").split("\n")[0].partition("   ")[0]
    )
    parser.add_argument(
        "--demo-questions", type=path_argument, required=True, metavar="FILE", help="the demo's questions"
    )
    parser.add_argument(
        "--demo-manifest", type=path_argument, required=True, metavar="FILE", help="in the demo's folder"
    )
    parser.add_argument("--questions", type=path_argument, required=True, metavar="FILE", help="the user's questions")
    parser.add_argument(
        "--source", type=path_argument, required=True, metavar="FILE", help="listing of the user's folder"
    )
    parser.add_argument(
        "--config", type=json_argument, required=True, metavar="JSON", help="the rule's part of the config"
    )
    parser.add_argument("--episodes", type=path_argument, metavar="FILE", help="output: one record an episode")
    parser.add_argument(
        "--output-questions", type=path_argument, metavar="FILE", help="output: questions of usable episodes"
    )
    parser.add_argument(
        "--report-only", type=path_argument, metavar="FILE", help="write the records of all episodes, stop nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("index_episodes", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
