"""What the lock files in config/ pin: addresses and hashes of Open-EQA's data, revisions and hashes of base models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.errors import EqaError
from scripts.lib.files import read_json

MODELS_LOCK = Path("config/models.lock.json")
DATA_LOCK = Path("config/data.lock.json")
HUBS = ("huggingface", "modelscope")
PIN_COMMAND = "make pin-model"


@dataclass(frozen=True)
class DataPin:
    """One file of Open-EQA's: where it is and what it must be. "" or None where that is not known."""

    name: str
    address: str
    sha256: str = ""
    md5: str = ""
    size: int | None = None


def read_data_pin(lock: Path, name: str) -> DataPin:
    """The pin of one file.

    Raises:
        EqaError: the lock file does not list it with an address and a hash.
    """
    content = read_json(lock, "data lock")
    listed = content.get("files") if isinstance(content, dict) else None
    record = listed.get(name) if isinstance(listed, dict) else None
    if not isinstance(record, dict) or not isinstance(record.get("address"), str):
        raise EqaError(f"{lock}: no pin of {name}; restore it: git checkout {lock}")
    sha256, md5, size = (record.get(key, default) for key, default in (("sha256", ""), ("md5", ""), ("size", None)))
    if not isinstance(sha256, str) or not isinstance(md5, str) or not isinstance(size, int | None):
        raise EqaError(f"{lock}: {name}: sha256 and md5 are texts, size is a number; restore it: git checkout {lock}")
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256) and not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise EqaError(f"{lock}: {name} has neither a sha256 nor an md5; restore it: git checkout {lock}")
    return DataPin(name, record["address"], sha256, md5, size)


def read_model_pins(lock: Path) -> dict[str, dict]:
    """Pins by "SOURCE:NAME": {"revision", "files": {name: {"size", "sha256"}}}.

    Raises:
        EqaError: not such a file, a file name that leaves its folder, a hash that is none.
    """
    content = read_json(lock, "model lock")
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise EqaError(f'{lock}: not a model lock; write {{"models": {{}}}} and run `{PIN_COMMAND}`')
    for key, pin in models.items():
        files = pin.get("files") if isinstance(pin, dict) else None
        if not isinstance(files, dict) or not files or not isinstance(pin.get("revision"), str):
            raise EqaError(f"{lock}: {key} has no revision or no files; remove it and run `{PIN_COMMAND}`")
        for name, record in files.items():
            if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
                raise EqaError(f"{lock}: {key} lists a file {name!r}; only plain names are fetched, remove it")
            good = isinstance(record, dict) and isinstance(record.get("size"), int)
            if not good or not re.fullmatch("[0-9a-f]{64}", str(record.get("sha256"))):
                raise EqaError(f"{lock}: {key}: {name} has no size and sha256; remove {key} and run `{PIN_COMMAND}`")
    return models


def find_model_pin(pins: Mapping[str, dict], source: str, name: str) -> tuple[str, dict] | None:
    """The pin that a model is held to: its own; for a local folder also that of the hub it was copied from."""
    keys = [f"{source}:{name}"]
    if source == "local":
        keys += [f"{hub}:{name}" for hub in HUBS]
    return next(((key, pins[key]) for key in keys if key in pins), None)


def check_pinned(config: Mapping, root: Path) -> None:
    """A real base model must be pinned before any job starts.

    Args:
        config: the whole recipe.
        root: the project's folder.
    Raises:
        EqaError: it is not; names the command that pins it.
    """
    model = config["model"]
    if model["source"] == "demo":
        return
    lock = root / MODELS_LOCK
    pins = read_model_pins(lock) if lock.is_file() else {}
    if find_model_pin(pins, model["source"], model["name"]) is None:
        raise EqaError(
            f"config: model.name={model['name']} from model.source={model['source']} is not pinned in {MODELS_LOCK}; "
            f"run `{PIN_COMMAND}` once and commit that file"
        )
