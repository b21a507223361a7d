"""Pin the base model that the recipe names: resolve its revision, fetch it, write its hashes.   By hand:

    python -m scripts.pin_model                      (what `make pin-model` does; then commit config/models.lock.json)
    python -m scripts.pin_model --revision v1.0      (another revision than the newest)

What was fetched stays in models/.download, where fetch_base_model takes it from.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.fetch_base_model import download
from scripts.lib.base_model import (
    DEFAULT_REVISION,
    check_model_folder,
    check_name,
    list_hub,
    stage_of,
    wanted_files,
)
from scripts.lib.cli import entry, path_argument
from scripts.lib.config import load_yaml, resolve_source
from scripts.lib.errors import EqaError
from scripts.lib.files import file_record, write_json
from scripts.lib.pins import HUBS, MODELS_LOCK, read_model_pins
from scripts.lib.tokens import read_processor_limits

log = logging.getLogger(__name__)


def read_model_section(file: Path) -> dict:
    """Section `model` of the recipe.

    Raises:
        EqaError: none there, or the demo, which is made and not fetched.
    """
    config = load_yaml(file)
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(isinstance(model.get(k), str) for k in ("source", "name", "path")):
        raise EqaError(
            f"{file}: no section model with source, name, path; `make use PRESET=openeqa-t4` writes a whole recipe"
        )
    if model["source"] not in (*HUBS, "local"):
        raise EqaError(
            f"{file}: model.source={model['source']} is not fetched and needs no pin; `make use PRESET=openeqa-t4`"
        )
    return model


def run(config_file: Path, lock: Path, output: Path, revision: str) -> dict:
    """Write the pin into `lock`.

    Raises:
        EqaError: no such model or revision, not a Qwen3-VL, pickle weights, no disk, no connection.
    """
    model = read_model_section(config_file)
    source, name = model["source"], model["name"]
    check_name(name)
    pins = read_model_pins(lock) if lock.exists() else {}
    revision = revision or DEFAULT_REVISION[source]
    if source == "local":
        folder = resolve_source(model["path"], "model.path")
        if folder is None:
            raise EqaError(f'{config_file}: model.path="" names no folder; write that of the base model')
        names = wanted_files((path.name for path in folder.iterdir() if path.is_file()), str(folder))
        revision = ""
    else:
        revision, listing = list_hub(source, name, revision)
        by_name = {file.name: file for file in listing}
        names = wanted_files(by_name, f"{source}:{name}")
        files = {n: {"size": by_name[n].size, "sha256": by_name[n].sha256} for n in names}
        folder = stage_of(output, source, name, revision)
        download(source, name, revision, files, folder)
    parameters = check_model_folder(folder)
    read_processor_limits(folder)
    key = f"{source}:{name}"
    pin = {"revision": revision, "files": {n: file_record(folder / n) for n in names}}
    before = pins.get(key)
    if before is not None and before != pin:
        log.warning("%s: %s was pinned at %r before, now at %r", lock, key, before["revision"], revision)
    write_json(lock, {"models": {**pins, key: pin}})
    log.info("%s: pinned %s; commit it", lock, key)
    return {"model": key, "revision": revision, "files": len(names), "parameters": parameters, "changed": before != pin}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pin_model", description="Pin the base model that the recipe names.")
    parser.add_argument("--config-file", type=path_argument, default=Path("config/config.yaml"), help="the recipe")
    parser.add_argument("--lock", type=path_argument, default=MODELS_LOCK, help="config/models.lock.json")
    parser.add_argument("--output-dir", type=path_argument, default=Path("models/base"), help="where the model will be")
    parser.add_argument("--revision", default="", help="branch, tag or commit; the hub's main branch by default")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("pin_model", build_parser, lambda a: run(a.config_file, a.lock, a.output_dir, a.revision), argv)


if __name__ == "__main__":
    sys.exit(main())
