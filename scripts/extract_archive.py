"""Store the wanted frames of every episode that lies in the HM3D archive, in one pass.   By hand:

    python -m scripts.extract_archive --episodes results/index/episodes.json --source data/raw/openeqa/source.json \
        --config JSON --frames-dir results/frames --work-dir work/archive --output results/frames/archive.json

The rule exists only where data.source holds the archive. sample_frames then finds these episodes done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.lib.archive import episode_of, read_member, walk_archive
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.episode_frames import RECORD, check_disk, frames_config, frames_key, stored_record, write_episode
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, remove, safe_join, sha256_file, write_json
from scripts.lib.frame_choice import midpoint_indices, uniform_indices
from scripts.lib.progress import Progress
from scripts.lib.readers import SpooledFrames
from scripts.sample_frames import usable_episodes


def wanted_indices(total: int, config: dict) -> list[int]:
    """Frames that have to be kept until the episode is complete: the chosen ones, or all where pixels decide."""
    if config["choice"] == "midpoint":
        return sorted(set(midpoint_indices(total, config["count"])))
    if config["choice"] == "uniform":
        return sorted(set(uniform_indices(total, config["count"])))
    return list(range(total))


def listed_names(path: Path, listing: object, record: dict) -> list[str]:
    """Sorted names of an episode's frames in the archive.

    Args:
        path, listing: data/raw/openeqa/source.json and its content.
        record: the episode's in the index.
    Raises:
        EqaError: the listing and the index disagree.
    """
    found = listing.get("episodes", {}).get(record["episode_history"], {}) if isinstance(listing, dict) else {}
    names = found.get("names", [])
    if found.get("digest") != record["digest"] or len(names) != record["frames"]:
        raise EqaError(f"{path}: no longer what the index was made from; run snakemake --forcerun list_source")
    return names


def extract(
    archive: Path,
    waiting: dict[str, tuple[dict, list[str]]],
    episodes: Collection[str],
    config: dict,
    frames_dir: Path,
    spool: Path,
) -> None:
    """The pass: spools wanted frames and stores an episode as soon as its last one is in.

    Args:
        waiting: {episode: (its record in the index, its sorted frame names)}; emptied.
        episodes: all of the archive that the index has, so that a member is given to the episode that it was listed for.
        spool: an empty folder for frames that wait.
    Raises:
        EqaError: a bad archive, a bad frame, or an episode that is not there any more.
    """
    wanted = {}
    for episode, (_, names) in waiting.items():
        wanted[episode] = {names[i]: i for i in wanted_indices(len(names), config)}
    have: dict[str, dict[int, Path]] = {episode: {} for episode in waiting}
    # an id may be longer than a file's name, and two may differ in what a name cannot hold
    numbers = {episode: number for number, episode in enumerate(waiting)}
    with Progress(len(waiting), "episodes") as progress:
        for name, member, tar in walk_archive(archive):
            found = episode_of(name, episodes)
            if found is None or found[0] not in have or found[1] not in wanted[found[0]]:
                continue
            episode, file = found
            index = wanted[episode][file]
            target = spool / f"{numbers[episode]:06d}-{index:06d}"
            target.write_bytes(read_member(archive, tar, member))
            have[episode][index] = target
            if len(have[episode]) < len(wanted[episode]):
                continue
            record, names = waiting.pop(episode)
            try:
                write_episode(SpooledFrames(have[episode], len(names)), record, config, frames_dir)
            except EqaError as error:
                raise EqaError(f"{archive}: {_member(str(error), have[episode], episode, names)}") from None
            for path in have.pop(episode).values():
                path.unlink()
            progress.update()
    if waiting:
        raise EqaError(
            f"{archive}: frames of {min(waiting)} are not there any more; run snakemake --forcerun list_source"
        )


def _member(message: str, files: dict[int, Path], episode: str, names: list[str]) -> str:
    for index, path in files.items():
        message = message.replace(str(path), f"{episode}/{names[index]}")
    return message


def run(args: argparse.Namespace) -> dict:
    """Store what is missing or changed; write {episode: sha256 of its record} for all of the archive."""
    config = frames_config(args.config)
    records = [record for record in usable_episodes(args.episodes) if record["kind"] == "archive"]
    waiting = {}
    listing = None
    for record in records:
        episode = record["episode_history"]
        if stored_record(args.frames_dir / episode, frames_key(record, config)) is None:
            listing = read_json(args.source, "listing") if listing is None else listing
            waiting[episode] = (record, listed_names(args.source, listing, record))
    written = len(waiting)
    if waiting:
        root = resolve_source(args.config["data"]["source"])
        if root is None:
            raise EqaError('data.source is "", the index names an archive in it; set data.source to its folder')
        archive = safe_join(root, records[0]["path"])
        check_disk(args.frames_dir, written, config)
        remove(args.work_dir)
        args.work_dir.mkdir(parents=True)
        try:
            every = frozenset(record["episode_history"] for record in records)
            extract(archive, waiting, every, config, args.frames_dir, args.work_dir)
        finally:
            remove(args.work_dir)
    done = {
        record["episode_history"]: sha256_file(args.frames_dir / record["episode_history"] / RECORD)
        for record in records
    }
    write_json(args.output, {"episodes": done})
    return {"episodes": len(records), "written": written}


def build_parser() -> argparse.ArgumentParser:
    """Long options only; the rule and a person type the same."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.extract_archive", description=(__doc__ or "").split("\n")[0].partition("   ")[0]
    )
    parser.add_argument(
        "--episodes", type=path_argument, required=True, metavar="FILE", help="results/index/episodes.json"
    )
    parser.add_argument(
        "--source", type=path_argument, required=True, metavar="FILE", help="listing of the user's folder"
    )
    parser.add_argument(
        "--config", type=json_argument, required=True, metavar="JSON", help="the rule's part of the config"
    )
    parser.add_argument("--frames-dir", type=path_argument, required=True, metavar="DIR", help="where the frames go")
    parser.add_argument(
        "--work-dir", type=path_argument, required=True, metavar="DIR", help="emptied; frames wait here"
    )
    parser.add_argument("--output", type=path_argument, required=True, metavar="FILE", help="record of what was stored")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("extract_archive", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
