"""The question file: the user's own, or Open-EQA's at its pinned commit, or none.   By hand:

    python -m scripts.fetch_questions --lock config/data.lock.json --output data/raw/openeqa/questions.json \
        --config '{"data":{"source":"/data/open-eqa","questions":"open-eqa-v0.json"}}'
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.download import fetch
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_path, safe_join, write_json
from scripts.lib.pins import read_data_pin
from scripts.lib.questions import read_questions

OPEN_EQA = "open-eqa-v0.json"
FOLDERS = ("", "data")  # where a question file lies inside data.source; Open-EQA's own tree has it in data/


def find_in_source(root: Path, name: str, folders: Sequence[str] = FOLDERS) -> Path | None:
    """The file `name` in one of `folders` of the user's data, or None.

    Raises:
        EqaError: `name` would leave the folder.
    """
    for folder in folders:
        file = safe_join(root / folder, name)
        if file.is_file():
            return file
    return None


def check_questions(file: Path) -> int:
    """Check a question file whole, before it is copied.

    Returns:
        The number of questions.
    Raises:
        EqaError: the first fault (see `read_questions`), or no question at all.
    """
    count = len(read_questions(file))
    if not count:
        raise EqaError(f'{file}: this question file holds no question; correct data.questions or set data.source to ""')
    return count


def run(config: dict, lock: Path, output: Path) -> dict:
    """Write the question file, byte for byte, or [].

    Raises:
        EqaError: no such file, not a question list, not as pinned.
    """
    source, name = config["data"]["source"], config["data"]["questions"]
    root = resolve_source(source)
    if root is None:
        write_json(output, [])
        return {"questions": 0, "from": "none"}
    own = find_in_source(root, name)
    if own is None and name != OPEN_EQA:
        raise EqaError(
            f"{root / name}: no such question file, nor in {root / 'data'}; correct data.questions, "
            f"or set it to {OPEN_EQA} to have Open-EQA's own fetched"
        )
    if own is not None:
        count = check_questions(own)
        with atomic_path(output) as part:
            shutil.copyfile(own, part)
        return {"questions": count, "from": "data.source"}
    pin = read_data_pin(lock, OPEN_EQA)
    # beside the output, so that a broken download goes on at the next try
    download = output.with_name(f"download-{OPEN_EQA}")
    fetch(pin.address, download, sha256=pin.sha256, md5=pin.md5, size=pin.size)
    count = check_questions(download)
    download.replace(output)
    return {"questions": count, "from": "download"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fetch_questions", description="Bring the question file.")
    parser.add_argument("--lock", type=path_argument, required=True, help="config/data.lock.json")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: data.source, data.questions")
    parser.add_argument("--output", type=path_argument, required=True, help="data/raw/openeqa/questions.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("fetch_questions", build_parser, lambda a: run(a.config, a.lock, a.output), argv)


if __name__ == "__main__":
    sys.exit(main())
