"""Where the user's raw data lies and what is there: names and sizes only, no file is opened.

Layout, for a root or its folder data/ (a checkout of Open-EQA, its data/ and its data/frames/ all do as root). The
first that exists is the episode:

    frames/<episode>/*-rgb.png or .jpg        frames, as Open-EQA extracts them
    <episode>/*-rgb.png or .jpg
    frames/<episode>.mp4, .mkv, .avi          video
    <episode>.mp4, .mkv, .avi
    <last part of the episode>.mp4, ...       directly in the root
    scannet/{scans,scans_test}/<scan>/<scan>.sens, also under raw/
    open-eqa-hm3d-frames-v0.tgz, also under raw/

Depth pictures, poses and intrinsics are not frames. Nothing else is looked at; a .pkl is never opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from scripts.lib.config import resolve_source
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, safe_join, sha256_file
from scripts.lib.spaces import scan_of

FRAME_SUFFIXES = ("-rgb.png", "-rgb.jpg", "-rgb.jpeg")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi")
SENS_SUFFIX = ".sens"
ARCHIVE_NAME = "open-eqa-hm3d-frames-v0.tgz"
ARCHIVE_FOLDERS = ("", "raw")
SCAN_FOLDERS = ("scannet/scans", "scannet/scans_test", "raw/scannet/scans", "raw/scannet/scans_test")
# data/raw/scannet/scans/<scan>/<scan>.sens is the deepest of Open-EQA's own; one more for ids of three parts
MAX_DEPTH = 6
_WANTED = (*FRAME_SUFFIXES, *VIDEO_SUFFIXES, SENS_SUFFIX)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def source_fingerprint(source: str, recorded: Path) -> str:
    """A hash over relative paths and sizes of what the layout can hold, so that changed raw data is noticed.

    Args:
        source: config `data.source`.
        recorded: the listing that an earlier run made (data/raw/openeqa/source.json).
    Returns:
        Hex hash; "disabled" for no source; the recorded one where the folder is not on this machine, so that results
        pulled onto a laptop stay valid.
    Raises:
        EqaError: neither folder nor listing is there, or a folder cannot be read.
    """
    if not source:
        return "disabled"
    try:
        root = resolve_source(source)
    except EqaError:
        if recorded.is_file():
            return _recorded(recorded).get("fingerprint", "")
        raise
    return folder_fingerprint(root)


def folder_fingerprint(root: Path) -> str:
    """See `source_fingerprint`. Runs at each start of Snakemake: one scan of each folder, one stat of each frame."""
    digest = hashlib.sha256()
    _scan(str(root), "", MAX_DEPTH, digest, ())
    return digest.hexdigest()[:32]


def _scan(folder: str, relative: str, depth: int, digest: hashlib._Hash, above: tuple[tuple[int, int], ...]) -> None:
    lines, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(_WANTED) or name == ARCHIVE_NAME:
                    lines.append(f"{name}\0{_size(entry)}")
                elif name[0] != "." and entry.is_dir():
                    folders.append(name)
    except OSError as error:
        raise _unreadable(folder, error) from None
    if lines:
        lines.sort()
        digest.update(f"{relative}\n{chr(10).join(lines)}\n".encode("utf-8", "surrogateescape"))
    if not depth or not folders:
        return
    info = os.stat(folder)
    here = (info.st_dev, info.st_ino)
    if here in above:  # a link that leads back up
        return
    for name in sorted(folders):
        _scan(f"{folder}/{name}", f"{relative}/{name}", depth - 1, digest, (*above, here))


def _size(entry: os.DirEntry) -> int:
    """Size in bytes; -1 for a link that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError as error:
        if error.errno in (*_ABSENT, errno.ELOOP):
            return -1
        raise


def _unreadable(path: str | Path, error: OSError) -> EqaError:
    return EqaError(f"{path}: cannot be read ({error.strerror}); mend its permissions or correct data.source")


def _recorded(path: Path) -> dict:
    listing = read_json(path, "listing")
    if not isinstance(listing, dict):
        raise EqaError(f"{path}: not a listing of the source; delete it, the next run writes it again")
    return listing


def bases(root: Path) -> list[tuple[str, Path]]:
    """The folders that the layout may start in, as (prefix of relative paths, folder): the root and its data/."""
    found = [("", root)]
    if (root / "data").is_dir():
        found.append(("data/", root / "data"))
    return found


def source_archive(source: str, recorded: Path) -> str:
    """Path of the HM3D archive relative to the source's folder; "" where there is none.

    Where the folder is not on this machine, what the earlier listing says.
    """
    if not source:
        return ""
    try:
        root = resolve_source(source)
    except EqaError:
        return _recorded(recorded).get("archive", {}).get("path", "") if recorded.is_file() else ""
    return find_archive(root)


def questions_size(source: str, name: str, recorded: Path) -> int:
    """Bytes of the question file before any job has run: the user's own, else the copy of an earlier run, else 0.

    Args:
        source, name: config `data.source`, `data.questions`.
        recorded: data/raw/openeqa/questions.json.
    """
    candidates = [recorded]
    if source:
        with contextlib.suppress(EqaError):
            root = resolve_source(source)
            candidates = [safe_join(base, name) for _, base in bases(root)] + candidates
    for path in candidates:
        size = _file_size(path)
        if size is not None:
            return size
    return 0


def questions_content(source: str, name: str, recorded: Path, pinned: str) -> str:
    """sha256 of the user's own question file, so that an edited one is noticed; "" for Open-EQA's pinned one.

    Args:
        source, name: config `data.source`, `data.questions`.
        recorded: data/raw/openeqa/questions.json, looked at where the folder is not on this machine.
        pinned: sha256 of Open-EQA's file, which config/data.lock.json names.
    """
    if not source:
        return ""
    try:
        root = resolve_source(source)
    except EqaError:
        own = recorded
    else:
        own = next((path for _, base in bases(root) if (path := safe_join(base, name)).is_file()), None)
    if own is None or not own.is_file():
        return ""
    found = sha256_file(own)
    return "" if found == pinned else found


def find_archive(root: Path) -> str:
    """Path of the HM3D archive relative to `root`; "" where there is none."""
    for prefix, base in bases(root):
        for folder in ARCHIVE_FOLDERS:
            relative = f"{folder}/{ARCHIVE_NAME}".lstrip("/")
            if (base / relative).is_file():
                return prefix + relative
    return ""


def frame_files(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of an episode's frames, sorted by name: PNG if there is any, else JPEG; [] for no such folder.

    Raises:
        EqaError: the folder cannot be read.
    """
    png, jpg = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(FRAME_SUFFIXES[0]):
                    png.append((entry.name, _size(entry)))
                elif entry.name.endswith(FRAME_SUFFIXES[1:]):
                    jpg.append((entry.name, _size(entry)))
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise _unreadable(folder, error) from None
    return sorted(png or jpg)


def find_episode(root: Path, episode: str, starts: Iterable[tuple[str, Path]]) -> dict | None:
    """What is on disk for one episode, the archive aside.

    Args:
        root: the source's or the demo's folder.
        episode: a checked episode_history.
        starts: `bases(root)`.
    Returns:
        {"kind": "frames"|"video"|"sens", "path": relative to root, "bytes", "digest" over names and sizes} and for
        frames "frames", their number; None where nothing is there.
    Raises:
        EqaError: something is there and cannot be read.
    """
    for relative in ("frames/" + episode, episode):
        for prefix, base in starts:
            if files := frame_files(base / relative):
                lines = "".join(f"{name}\0{size}\n" for name, size in files)
                return {
                    "kind": "frames",
                    "path": prefix + relative,
                    "frames": len(files),
                    "bytes": sum(size for _, size in files),
                    "digest": short_hash(lines),
                }
    name = episode.rpartition("/")[2]
    videos = [f"{stem}{suffix}" for stem in ("frames/" + episode, episode, name) for suffix in VIDEO_SUFFIXES]
    scan = scan_of(episode)
    scans = [f"{folder}/{scan}/{scan}{SENS_SUFFIX}" for folder in SCAN_FOLDERS] if scan else []
    for kind, candidates in (("video", videos), ("sens", scans)):
        for relative in candidates:
            for prefix, base in starts:
                size = _file_size(base / relative)
                if size is not None:
                    return {"kind": kind, "path": prefix + relative, "bytes": size, "digest": short_hash(str(size))}
    return None


def _file_size(path: Path) -> int | None:
    try:
        info = os.stat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise _unreadable(path, error) from None
    return info.st_size if not os.path.isdir(path) else None


def find_episodes(root: Path, episodes: Iterable[str]) -> dict[str, dict]:
    """`find_episode` of each; those that are not there are left out.

    Raises:
        EqaError: two episodes are the same file or folder.
    """
    starts = bases(root)
    found: dict[str, dict] = {}
    owner: dict[str, str] = {}
    for episode in sorted(episodes):
        record = find_episode(root, episode, starts)
        if record is None:
            continue
        first = owner.setdefault(record["path"], episode)
        if first != episode:
            raise EqaError(
                f"{root / record['path']}: episodes {first} and {episode} are the same file; give each its own"
            )
        found[episode] = record
    return found


def short_hash(text: str) -> str:
    """32 hex digits of sha256: enough to tell records apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
