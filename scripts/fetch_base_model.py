"""The pinned base model, every file checked against config/models.lock.json.   By hand:

    python -m scripts.fetch_base_model --pins config/models.lock.json --output-dir models/base \
        --config '{"model":{"source":"huggingface","name":"Qwen/Qwen3-VL-2B-Instruct","path":""}}'
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.base_model import (
    ARCHITECTURE,
    check_model_folder,
    check_name,
    check_pinned_file,
    hub_address,
    hub_headers,
    stage_of,
)
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import resolve_source
from scripts.lib.download import check_disk, fetch
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, remove, write_manifest
from scripts.lib.pins import PIN_COMMAND, find_model_pin, read_model_pins
from scripts.lib.tokens import read_processor_limits

log = logging.getLogger(__name__)


def download(
    source: str,
    name: str,
    revision: str,
    files: Mapping[str, Mapping],
    stage: Path,
    tries: int = 5,
    pause_s: float = 1.0,
) -> None:
    """Bring the files of one revision into `stage`; what is there already is not fetched again.

    Args:
        files: {name: {"size", "sha256"}}; sha256 may be "".
        tries, pause_s: see `download.fetch`.
    Raises:
        EqaError: no disk, no connection, not as pinned.
    """
    stage.mkdir(parents=True, exist_ok=True)
    here = {path.name: path.stat().st_size for path in stage.iterdir() if path.is_file()}
    missing = sum(
        max(0, record["size"] - here.get(file, here.get(file + ".part", 0))) for file, record in files.items()
    )
    check_disk(stage, missing, name)
    headers = hub_headers(source)
    for file, record in sorted(files.items()):
        log.info("%s (%.1f MB)", file, record["size"] / 1e6)
        fetch(
            hub_address(source, name, revision, file),
            stage / file,
            sha256=record["sha256"],
            size=record["size"],
            headers=headers,
            tries=tries,
            pause_s=pause_s,
        )


def run(config: dict, pins: Path, output: Path) -> dict:
    """Write the model's folder and its manifest.

    Raises:
        EqaError: not pinned, not as pinned, not a Qwen3-VL, pickle weights, no disk, no connection.
    """
    model = config["model"]
    source, name = model["source"], model["name"]
    check_name(name)
    found = find_model_pin(read_model_pins(pins), source, name)
    if found is None:
        raise EqaError(
            f"config: model.name={name} from model.source={source} is not pinned in {pins}; run `{PIN_COMMAND}` once"
        )
    key, pin = found
    if source == "local":
        folder = resolve_source(model["path"], "model.path")
        if folder is None:
            raise EqaError('config: model.path="" names no folder; write that of the base model')
    else:
        folder = stage_of(output, source, name, pin["revision"])
        download(source, name, pin["revision"], pin["files"], folder)
    for file, record in sorted(pin["files"].items()):
        check_pinned_file(folder / file, record, key)
    parameters = check_model_folder(folder)
    limits = read_processor_limits(folder)
    if source == "local":
        check_disk(output.parent, sum(record["size"] for record in pin["files"].values()), name)
    with atomic_folder(output) as part:
        for file in sorted(pin["files"]):
            if source == "local":
                shutil.copyfile(folder / file, part / file)
            else:
                os.replace(folder / file, part / file)
        write_manifest(
            part,
            {
                "name": name,
                "source": source,
                "revision": pin["revision"],
                "architecture": ARCHITECTURE,
                "parameters": parameters,
                "processor_min_pixels": limits.min_pixels,
            },
        )
    if source != "local":
        remove(folder)
    return {"name": name, "revision": pin["revision"], "parameters": parameters, "files": len(pin["files"])}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fetch_base_model", description="Bring the pinned base model.")
    parser.add_argument("--pins", type=path_argument, required=True, help="config/models.lock.json")
    parser.add_argument(
        "--config", type=json_argument, required=True, help="JSON: model.source, model.name, model.path"
    )
    parser.add_argument("--output-dir", type=path_argument, required=True, help="models/base")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("fetch_base_model", build_parser, lambda a: run(a.config, a.pins, a.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
