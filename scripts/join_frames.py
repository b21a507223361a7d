"""Join the shards' manifests to one, and remove the frames of episodes that are in none.   By hand:

    python -m scripts.join_frames --shards results/frames/shards/*.json --frames-dir results/frames \
        --output results/frames/manifest.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.episode_frames import RECORD
from scripts.lib.errors import EqaError
from scripts.lib.files import read_manifest, remove, write_json


def join(shards: Sequence[Path]) -> dict:
    """One manifest of several.

    Raises:
        EqaError: an episode is in two shards, or a file is no manifest.
    """
    files: dict[str, dict] = {}
    episodes: dict[str, dict] = {}
    owner: dict[str, Path] = {}
    for shard in sorted(shards):
        manifest = read_manifest(shard)
        if not isinstance(manifest.get("episodes"), dict):
            raise EqaError(
                f"{shard}: not a shard's manifest (no 'episodes'); write it again: snakemake --force {shard}"
            )
        for episode in manifest["episodes"]:
            first = owner.setdefault(episode, shard)
            if first != shard:
                raise EqaError(f"{shard}: episode {episode} is also in {first}; run snakemake --forcerun sample_frames")
        files |= manifest["files"]
        episodes |= manifest["episodes"]
    return {"files": files, "episodes": episodes}


def check_files(frames_dir: Path, files: dict[str, dict]) -> None:
    """Whether every file is there in its size.

    Raises:
        EqaError: names the first that is not.
    """
    for name, record in files.items():
        try:
            size = os.stat(frames_dir / name).st_size
        except FileNotFoundError:
            size = -1
        if size != record["size"]:
            what = "missing" if size < 0 else f"{size} bytes, its shard says {record['size']}"
            raise EqaError(f"{frames_dir / name}: {what}; make it again: snakemake --forcerun sample_frames")


def stale_folders(frames_dir: Path, episodes: set[str]) -> list[Path]:
    """Folders with an episode's record that no shard lists: left by another recipe."""
    found = []
    for here, folders, names in os.walk(frames_dir):
        folders.sort()
        path = Path(here)
        if RECORD in names and path.relative_to(frames_dir).as_posix() not in episodes:
            found.append(path)
    return found


def prune(frames_dir: Path, shards: Sequence[Path], episodes: set[str]) -> int:
    """Remove stale episodes, manifests of former shards and folders that became empty; the number of episodes."""
    stale = stale_folders(frames_dir, episodes)
    for folder in stale:
        remove(folder)
        for parent in folder.parents:
            if parent == frames_dir or any(parent.iterdir()):
                break
            parent.rmdir()
    current = {shard.resolve() for shard in shards}
    for manifest in sorted((frames_dir / "shards").glob("[0-9][0-9][0-9][0-9].json")):
        if manifest.resolve() not in current:
            remove(manifest)
    return len(stale)


def run(shards: Sequence[Path], frames_dir: Path, output: Path) -> dict:
    """Write the joined manifest."""
    manifest = join(shards)
    check_files(frames_dir, manifest["files"])
    removed = prune(frames_dir, shards, set(manifest["episodes"]))
    write_json(output, manifest)
    return {"episodes": len(manifest["episodes"]), "files": len(manifest["files"]), "removed": removed}


def build_parser() -> argparse.ArgumentParser:
    """Long options only; the rule and a person type the same."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.join_frames", description=(__doc__ or "").split("\n")[0].partition("   ")[0]
    )
    parser.add_argument(
        "--shards", type=path_argument, nargs="+", required=True, metavar="FILE", help="manifests of all shards"
    )
    parser.add_argument("--frames-dir", type=path_argument, required=True, metavar="DIR", help="where the frames are")
    parser.add_argument("--output", type=path_argument, required=True, metavar="FILE", help="the joined manifest")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("join_frames", build_parser, lambda args: run(args.shards, args.frames_dir, args.output), argv)


if __name__ == "__main__":
    sys.exit(main())
