"""Where the user's raw data lies and what is there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from scripts.lib.config import resolve_source
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json


def source_fingerprint(source: str, recorded: Path) -> str:
    """A hash over relative paths and sizes of the user's folder, so that changed raw data is noticed.

    Args:
        source: config `data.source`.
        recorded: the listing that an earlier run made (data/raw/openeqa/source.json).
    Returns:
        Hex hash; "disabled" for no source; the recorded one where the folder is not on this machine, so that results
        pulled onto a laptop stay valid.
    Raises:
        EqaError: neither folder nor listing is there.
    """
    if not source:
        return "disabled"
    try:
        root = resolve_source(source)
    except EqaError:
        if recorded.is_file():
            return read_json(recorded, "listing").get("fingerprint", "")
        raise
    digest = hashlib.sha256()
    for here, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(here) / name
            digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:32]
