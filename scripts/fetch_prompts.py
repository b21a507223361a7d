"""Open-EQA's own prompts, where the recipe uses one: from the user's folder, or at their pinned commit.   By hand:

    python -m scripts.fetch_prompts --lock config/data.lock.json --output-dir data/raw/openeqa/prompts \
        --config '{"data":{"source":""},"predict":{"prompt":"official"},"deliver":{"llm_match":false}}'
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.fetch_questions import find_in_source
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.download import fetch, matches
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, disabled, write_json, write_manifest
from scripts.lib.pins import read_data_pin

PROMPTS = ("gpt4v.txt", "mmbench-extra.txt", "mmbench.txt")


def run(config: dict, lock: Path, output: Path) -> dict:
    """Write the prompts and a manifest; only a switched-off record where no prompt of Open-EQA's is used.

    Raises:
        EqaError: a prompt is not as pinned, wherever it comes from.
    """
    if config["predict"]["prompt"] != "official" and not config["deliver"]["llm_match"]:
        with atomic_folder(output) as part:
            write_json(part / "manifest.json", disabled("predict.prompt"))
        return {"prompts": 0}
    root = resolve_source(config["data"]["source"])
    with atomic_folder(output) as part:
        for name in PROMPTS:
            pin = read_data_pin(lock, f"prompts/{name}")
            own = find_in_source(root, name, ("prompts",)) if root else None
            if own is None:
                fetch(pin.address, part / name, sha256=pin.sha256, md5=pin.md5, size=pin.size)
                continue
            fault = matches(own, pin.sha256, pin.md5, pin.size)
            if fault:
                raise EqaError(f"{own}: {fault}; it is not Open-EQA's prompt: move it away to have it fetched")
            shutil.copyfile(own, part / name)
        write_manifest(part)
    return {"prompts": len(PROMPTS)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fetch_prompts", description="Bring Open-EQA's own prompts.")
    parser.add_argument("--lock", type=path_argument, required=True, help="config/data.lock.json")
    parser.add_argument(
        "--config", type=json_argument, required=True, help="JSON: data.source, predict.prompt, deliver.llm_match"
    )
    parser.add_argument("--output-dir", type=path_argument, required=True, help="data/raw/openeqa/prompts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("fetch_prompts", build_parser, lambda a: run(a.config, a.lock, a.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
