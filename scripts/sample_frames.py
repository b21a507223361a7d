"""Store the wanted frames of each episode of a shard as JPEG, at the model's own size.   By hand:

    python -m scripts.sample_frames --episodes results/index/episodes.json --shard 0000 --config JSON \
        --frames-dir results/frames --output results/frames/shards/0000.json

Each episode once, not once a question. An episode whose record and files are as an earlier run left them is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.episode_frames import (
    check_disk,
    frames_config,
    frames_key,
    manifest_entry,
    stored_record,
    write_episode,
)
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, safe_join, write_json
from scripts.lib.progress import track
from scripts.lib.questions import check_episode_history
from scripts.lib.readers import open_reader


def usable_episodes(path: Path, shard: str | None = None) -> list[dict]:
    """The usable records of episodes.json, of one shard or all.

    Raises:
        EqaError: no index, or an episode that may not be a folder.
    """
    index = read_json(path, "index")
    if not isinstance(index, dict) or not isinstance(index.get("episodes"), list):
        raise EqaError(f"{path}: not an index of episodes; write it again: snakemake --force {path}")
    found = []
    for record in index["episodes"]:
        if record["status"] == "ok" and shard in (None, record["shard"]):
            check_episode_history(record["episode_history"])
            found.append(record)
    return found


def root_of(record: dict, source: str, demo_root: Path) -> Path:
    """The folder that a record's path is relative to.

    Raises:
        EqaError: data.source is not there.
    """
    if record["root"] == "demo":
        return demo_root
    root = resolve_source(source)
    if root is None:
        raise EqaError(
            f'{record["episode_history"]}: comes from data.source, which is ""; name its folder in data.source'
        )
    return root


def make_episode(record: dict, config: dict, source: str, demo_root: Path, frames_dir: Path) -> dict:
    """Read one episode's source and store its frames.

    Raises:
        EqaError: names the episode and the file.
    """
    episode = record["episode_history"]
    if record["kind"] == "archive":
        raise EqaError(
            f"{episode}: its frames are written by extract_archive and are not there any more; "
            f"run snakemake --force {frames_dir / 'archive.json'}"
        )
    path = safe_join(root_of(record, source, demo_root), record["path"])
    try:
        reader = open_reader(episode, record["kind"], path)
    except EqaError as error:
        raise EqaError(f"episode {episode}: {error}") from None
    try:
        if reader.count != record["frames"]:
            raise EqaError(
                f"{path}: {reader.count} frames, the index says {record['frames']}; it changed meanwhile: "
                f"run snakemake --forcerun list_source make_demo_episodes"
            )
        return write_episode(reader, record, config, frames_dir)
    except EqaError as error:
        raise EqaError(f"episode {episode}: {error}") from None
    finally:
        reader.close()


def run(episodes: Path, shard: str, config: dict, frames_dir: Path, output: Path, demo_root: Path) -> dict:
    """Store the frames of a shard and write its manifest.

    Raises:
        EqaError: an episode that cannot be read; those before it stay stored and are kept by the next run.
    """
    wanted = frames_config(config)
    records = usable_episodes(episodes, shard)
    keys = {record["episode_history"]: frames_key(record, wanted) for record in records}
    stored = {name: stored_record(frames_dir / name, key) for name, key in keys.items()}
    check_disk(frames_dir, sum(record is None for record in stored.values()), wanted)
    files: dict[str, dict] = {}
    entries: dict[str, dict] = {}
    for record in track(records, "episodes"):
        name = record["episode_history"]
        made = stored[name] or make_episode(record, wanted, config["data"]["source"], demo_root, frames_dir)
        files |= {f"{name}/{file}": facts for file, facts in made["files"].items()}
        entries[name] = manifest_entry(name, made)
    write_json(output, {"files": files, "episodes": entries})
    kept = sum(record is not None for record in stored.values())
    return {"shard": shard, "episodes": len(records), "kept": kept, "written": len(records) - kept}


def build_parser() -> argparse.ArgumentParser:
    """Long options only; the rule and a person type the same."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.sample_frames", description=(__doc__ or "").split("\n")[0].partition("   ")[0]
    )
    parser.add_argument(
        "--episodes", type=path_argument, required=True, metavar="FILE", help="results/index/episodes.json"
    )
    parser.add_argument("--shard", required=True, metavar="NNNN", help="shard as in the index, such as 0000")
    parser.add_argument(
        "--config", type=json_argument, required=True, metavar="JSON", help="the rule's part of the config"
    )
    parser.add_argument("--frames-dir", type=path_argument, required=True, metavar="DIR", help="where the frames go")
    parser.add_argument("--output", type=path_argument, required=True, metavar="FILE", help="the shard's manifest")
    parser.add_argument(
        "--demo-root", type=path_argument, default=Path("data/raw/demo"), metavar="DIR", help="the demo's folder"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry(
        "sample_frames",
        build_parser,
        lambda a: run(a.episodes, a.shard, a.config, a.frames_dir, a.output, a.demo_root),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
