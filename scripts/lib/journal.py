"""An append-only file of JSON lines that survives a kill at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)


def read_journal(path: Path) -> list[dict]:
    """Whole lines of an interrupted run. A torn end is cut off the file, so that what is appended starts afresh.

    Returns:
        JSON objects in the order written; empty where there is no such file.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    rows: list[dict] = []
    kept = 0
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break  # torn in the middle: nothing after it is trusted
        if not isinstance(row, dict):
            break
        rows.append(row)
        kept += len(line)
    if kept < len(data):
        log.info("%s: dropped %d bytes of an unfinished line", path, len(data) - kept)
        with path.open("r+b") as file:
            file.truncate(kept)
    return rows


def append_journal(path: Path, rows: Iterable[Mapping]) -> None:
    """Append rows in one write and wait until they are on the disk."""
    lines = "".join(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in rows)
    with path.open("a", encoding="ascii") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
