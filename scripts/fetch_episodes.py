"""Open-EQA's archive of HM3D frames (12 GB), asked for by name.   By hand:

    python -m scripts.fetch_episodes --lock config/data.lock.json --output-dir data/raw/download

Then `data.source: data/raw/download`. ScanNet has a licence agreement of its own and is not fetched here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.download import fetch
from scripts.lib.files import file_record, write_json
from scripts.lib.pins import read_data_pin

ARCHIVE = "open-eqa-hm3d-frames-v0.tgz"


def run(lock: Path, output: Path) -> dict:
    """Bring the archive, going on where an earlier try stopped, and write a manifest.

    Raises:
        EqaError: no disk, no connection, or not as pinned. Nothing that was there is deleted.
    """
    pin = read_data_pin(lock, ARCHIVE)
    file = fetch(pin.address, output / ARCHIVE, sha256=pin.sha256, md5=pin.md5, size=pin.size)
    record = file_record(file) | ({"md5": pin.md5} if pin.md5 else {})
    write_json(output / "manifest.json", {"files": {ARCHIVE: record}})
    return {"file": ARCHIVE, "size": record["size"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fetch_episodes", description="Bring Open-EQA's archive of HM3D frames.")
    parser.add_argument("--lock", type=path_argument, required=True, help="config/data.lock.json")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="data/raw/download")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("fetch_episodes", build_parser, lambda a: run(a.lock, a.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
