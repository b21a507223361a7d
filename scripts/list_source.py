"""List what the user's data folder holds for the questions' episodes: names and sizes, no pixels.   By hand:

    python -m scripts.list_source --questions data/raw/openeqa/questions.json \
        --config '{"data":{"source":"/data/open-eqa"}}' --output data/raw/openeqa/source.json

The layout is told in scripts/lib/sources.py. Where the HM3D archive is there and an episode lies nowhere else, it is
read through once to count its frames. Paths in the output are relative to data.source.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.files import disabled, write_json
from scripts.lib.questions import read_questions
from scripts.lib.sources import find_archive, find_episodes, folder_fingerprint


def list_folder(root: Path, episodes: set[str]) -> dict:
    """The listing of one folder.

    Args:
        root: the folder that data.source names.
        episodes: checked episode_history of all questions.
    Returns:
        {"fingerprint", "episodes": {episode: record}, "missing": [episode]}, and "archive": {"path", "bytes"} where
        there is one.
    Raises:
        EqaError: a folder that cannot be read, two episodes with one file, a bad archive.
    """
    found = find_episodes(root, episodes)
    listing: dict = {"fingerprint": folder_fingerprint(root)}
    if archive := find_archive(root):
        listing["archive"] = {"path": archive, "bytes": (root / archive).stat().st_size}
        rest = episodes - found.keys()
        if rest:
            from scripts.lib.archive import list_archive

            for episode, record in list_archive(root / archive, rest).items():
                found[episode] = record | {"path": archive}
    listing["episodes"] = found
    listing["missing"] = sorted(episodes - found.keys())
    return listing


def run(questions: Path, source: str, output: Path) -> dict:
    """Write the listing, or the record of a switched-off source."""
    root = resolve_source(source)
    rows = read_questions(questions)
    if root is None:
        write_json(output, disabled("data.source"))
        return {"episodes": 0}
    listing = list_folder(root, {row["episode_history"] for row in rows})
    write_json(output, listing)
    kinds: dict[str, int] = {}
    for record in listing["episodes"].values():
        kinds[record["kind"]] = kinds.get(record["kind"], 0) + 1
    return {"episodes": len(listing["episodes"]), "missing": len(listing["missing"]), "kinds": kinds}


def build_parser() -> argparse.ArgumentParser:
    """Long options only; the rule and a person type the same."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.list_source", description=(__doc__ or "").split("\n")[0].partition("   ")[0]
    )
    parser.add_argument("--questions", type=path_argument, required=True, metavar="FILE", help="question file")
    parser.add_argument("--config", type=json_argument, required=True, metavar="JSON", help="data.source of the config")
    parser.add_argument("--output", type=path_argument, required=True, metavar="FILE", help="the listing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry(
        "list_source", build_parser, lambda args: run(args.questions, args.config["data"]["source"], args.output), argv
    )


if __name__ == "__main__":
    sys.exit(main())
