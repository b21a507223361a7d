"""Hashes of files that did not change since they were read: start-up looks at stat, not at gigabytes."""

from __future__ import annotations

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.lib.files import sha256_file, write_text

# A file may change again within the tick of a coarse file system clock (2 s on FAT) and keep its stat; git calls such
# entries racy. Younger files are hashed but not remembered.
SETTLED_S = 2.0
VERSION = 1


class StatCache:
    """sha256 by path, believed only while size, mtime (ns) and inode are what they were when the bytes were read."""

    def __init__(self, store: Path) -> None:
        """Read `store`; a missing, damaged or foreign file is an empty cache (it costs one reading of the data)."""
        self.store = store
        self.hashed_bytes = 0  # read from disk by this process
        self._seen: dict[str, str | None] = {}
        self._entries: dict[str, list] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            content = json.loads(store.read_text(encoding="utf-8"))
            if content["version"] == VERSION:
                self._entries = dict(content["files"])

    def sha256(self, path: str) -> str | None:
        """Hex sha256 of a regular file (links are followed); None where there is none or it cannot be read."""
        if path not in self._seen:
            self._seen[path] = self._look(path)
        return self._seen[path]

    def sha256_all(self, paths: list[str], workers: int = 4) -> None:
        """Hash those of `paths` that are not known, several at once; hashlib gives up the interpreter lock."""
        unknown = []
        for path in paths:
            if path in self._seen:
                continue
            known = self._remembered(path)
            if known is None:
                unknown.append(path)
            else:
                self._seen[path] = known  # `sha256` need not look a second time
        if len(unknown) > 1:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(self.sha256, unknown):
                    pass

    def believe(self, path: str, sha256: str, size: int) -> None:
        """Take a hash that the job computed itself while it wrote the file, so that it is not read a second time."""
        with contextlib.suppress(OSError):
            stat = os.stat(path)
            if stat.st_size == size:
                self._remember(path, stat, sha256)

    def save(self) -> None:
        """Write atomically; entries of files that are gone are dropped. A full or read-only disk loses only speed."""
        if not self._changed:
            return
        kept = {path: entry for path, entry in sorted(self._entries.items()) if os.path.lexists(path)}
        with contextlib.suppress(OSError):
            write_text(self.store, json.dumps({"version": VERSION, "files": kept}, separators=(",", ":")))
            self._changed = False

    def _remembered(self, path: str) -> str | None:
        try:
            stat = os.stat(path)
        except OSError:
            return None
        entry = self._entries.get(path)
        if isinstance(entry, list) and len(entry) == 4 and entry[:3] == [stat.st_size, stat.st_mtime_ns, stat.st_ino]:
            return entry[3]
        return None

    def _remember(self, path: str, stat: os.stat_result, sha256: str) -> None:
        if abs(time.time() - stat.st_mtime) >= SETTLED_S:
            self._entries[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256]
            self._changed = True

    def _look(self, path: str) -> str | None:
        known = self._remembered(path)
        if known is not None:
            return known
        try:
            if not os.path.isfile(path):
                return None
            before = os.stat(path)
            sha256 = sha256_file(Path(path))
            after = os.stat(path)
        except OSError:
            return None
        self.hashed_bytes += before.st_size
        if (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino):
            self._remember(path, after, sha256)
        return sha256
