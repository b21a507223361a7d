"""Files written whole or not at all, their hashes, and the manifests that stand for folders."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TextIO

from scripts.lib.errors import EqaError

# Snakemake drops this into directory outputs; it is no content
IGNORED_NAMES = frozenset({".snakemake_timestamp", ".gitignore"})
# whether a process of another host or container still runs cannot be asked; what nobody touched for a day is nobody's
FOREIGN_LEFTOVER_S = 24 * 3600
# NAME, then place.process.run-number; NAME.process.part is of older versions, which did not say where
_WRITER = re.compile(r"(?:([0-9a-f]{8})\.)?([0-9]{1,10})(?:\.([0-9a-f]{6})-[0-9]+)?(?:\.old)?\.part")
_LONGEST_KEPT_NAME = 200  # bytes; file systems allow 255, and the writer's part of the name takes up to 50
_RUN = os.urandom(3).hex()  # tells this process from an earlier one of its number, as in a container started again
_numbers = itertools.count()


def hash_file(path: Path, name: str) -> str:
    """Hex digest of a file's bytes, read in blocks, by hashlib's name of the algorithm."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    return hash_file(path, "sha256")


def read_json(path: Path, what: str = "file", hook: Callable[[dict], object] | None = None) -> object:
    """Parse a JSON file.

    Args:
        what: what messages call it.
        hook: takes the place of each object, from the inside out: what a caller does not keep is freed while the
            file is parsed, which is most of the memory of a large one.
    Raises:
        EqaError: missing, not UTF-8, or not JSON; names the file, and the line where it can.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"), object_hook=hook)
    except FileNotFoundError:
        raise EqaError(f"{path}: this {what} does not exist") from None
    except IsADirectoryError:
        raise EqaError(f"{path}: this {what} is a folder; a JSON file is wanted") from None
    except UnicodeDecodeError as error:
        raise EqaError(f"{path}: this {what} is not UTF-8 (byte {error.start}); save it as UTF-8 JSON") from None
    except json.JSONDecodeError as error:
        raise EqaError(
            f"{path}: this {what} is not JSON (line {error.lineno}: {error.msg}); mend or fetch it again"
        ) from None
    except RecursionError:
        raise EqaError(f"{path}: this {what} is nested too deeply to be read; mend or fetch it again") from None
    except ValueError:  # a whole number of more digits than Python converts
        raise EqaError(f"{path}: this {what} has a number of thousands of digits; mend or fetch it again") from None


def part_path(path: Path) -> Path:
    """A new name beside `path`, NAME.PLACE.PROCESS.RANDOM-NUMBER.part, after what ended writers of it left is removed.

    A killed Snakemake leaves its job running beside the next run's job for the same file, and containers that share a
    volume have equal process numbers: with one name for two writers, the first to finish would publish what the other
    has written so far. Writers of another place are believed alive until nothing of theirs changed for
    FOREIGN_LEFTOVER_S.
    """
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_KEPT_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    start = f"{name}."
    try:
        beside = os.listdir(path.parent)
    except PermissionError:  # a folder that may be written but not listed
        beside = []
    for other in beside:
        writer = other.startswith(start) and other.endswith(".part") and _WRITER.fullmatch(other, len(start))
        if writer and _has_ended(*writer.groups(), path.with_name(other)):
            remove(path.with_name(other))
    return path.with_name(f"{start}{_place()}.{os.getpid()}.{_RUN}-{next(_numbers)}.part")


def _has_ended(place: str | None, pid: str, run: str | None, left: Path) -> bool:
    """Whether the process that wrote a .part file or folder will not go on with it."""
    if place != _place():
        return time.time() - _last_change(left) > FOREIGN_LEFTOVER_S
    if int(pid) == os.getpid():
        return run != _RUN  # else another thread's
    return not is_alive(int(pid))


@functools.cache
def _place() -> str:
    """8 hex digits for where a process number means one process: the host, since its start, and the container."""
    words = [os.uname().nodename]
    with contextlib.suppress(OSError):  # no Linux, or no /proc: the host's name alone
        words.append(os.readlink("/proc/self/ns/pid"))
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def _last_change(path: Path) -> float:
    """Seconds since 1970 of the newest change under a path; now where it is gone.

    By ctime: files that are copied or fetched may bear old times.
    """
    try:
        newest = os.lstat(path).st_ctime
    except OSError:
        return time.time()
    for here, folders, names in os.walk(path):
        for name in (*folders, *names):
            with contextlib.suppress(OSError):
                newest = max(newest, os.lstat(os.path.join(here, name)).st_ctime)
    return newest


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine, whosever it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield `part_path(path)` to write to; renamed onto `path` on success, removed on failure. Makes parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        remove(part)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_path` for a folder: yields an empty one, swapped for `path` on success.

    The old folder stays whole until the new one is complete.

    Raises:
        PermissionError: the old folder may not be emptied; before anything is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_replaceable(path)
    part = part_path(path)
    part.mkdir()
    try:
        yield part
        _swap(part, path)
    except BaseException:
        remove(part)
        raise


def _check_replaceable(path: Path) -> None:
    """Refuse a folder that may not be emptied. By one handle: its name may mean another folder a moment later."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    finally:
        os.close(folder)


def _swap(part: Path, path: Path) -> None:
    """Put a folder in the place of `path`, whatever is there; another process may do the same at the same time."""
    old = part.with_name(f"{part.name.removesuffix('.part')}.old.part")
    for tries_left in range(9, -1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, old)
        try:
            os.replace(part, path)
            break
        except OSError as error:
            # the other process was between the two renames
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not tries_left:
                raise
            remove(old)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file, link or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_unless_gone)
    else:
        path.unlink(missing_ok=True)


def _unless_gone(_function: object, _path: object, error: tuple) -> None:
    """Whoever else removes the same folder may be faster."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write JSON atomically, keys sorted, so that equal content means equal bytes."""
    write_text(path, json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_list(file: TextIO, rows: Iterable[dict]) -> None:
    """Write a JSON list row by row: the bytes of `write_json(path, list(rows))`, the memory of one row."""
    empty = True
    for row in rows:
        text = json.dumps(row, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        file.write(("[\n " if empty else ",\n ") + text.replace("\n", "\n "))  # in JSON texts a line break is \\n
        empty = False
    file.write("[]\n" if empty else "\n]\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line, atomically, keys sorted."""
    with atomic_path(path) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path, what: str = "file") -> list[dict]:
    """Parse one JSON object a line.

    Raises:
        EqaError: missing file, or a line that is no JSON object; names file and line.
    """
    rows = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits
                    raise EqaError(
                        f"{path}: line {number} of this {what} is not JSON; remove it or make the file again"
                    ) from None
                if not isinstance(row, dict):
                    raise EqaError(f"{path}: line {number} of this {what} is no JSON object; make the file again")
                rows.append(row)
    except FileNotFoundError:
        raise EqaError(f"{path}: this {what} does not exist") from None
    return rows


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative`, refusing whatever could leave `root`.

    Raises:
        EqaError: empty, absolute, with '..', backslash or NUL.
    """
    pure = PurePosixPath(relative)
    if not relative or "\0" in relative or "\\" in relative or pure.is_absolute() or ".." in pure.parts:
        raise EqaError(f"path {relative!r} may not leave its folder {root}; use a relative path without '..'")
    return root / pure


def folder_files(folder: Path, exclude: Iterable[str] = ()) -> list[str]:
    """Relative POSIX paths of all regular files under `folder`, sorted; symlinked folders are not entered."""
    excluded = set(exclude)
    found = []
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            relative = (Path(here) / name).relative_to(folder).as_posix()
            if name not in IGNORED_NAMES and not name.endswith(".part") and relative not in excluded:
                found.append(relative)
    return sorted(found)


def file_record(path: Path) -> dict:
    """{"size": bytes, "sha256": hex} of one file."""
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def write_manifest(folder: Path, extra: dict | None = None, exclude: Iterable[str] = ()) -> dict:
    """Write folder/manifest.json: size and sha256 of every other file in the folder, plus `extra` keys.

    The manifest is the edge between two rules; the folder itself never is.
    """
    files = {name: file_record(folder / name) for name in folder_files(folder, {"manifest.json", *exclude})}
    manifest = {**(extra or {}), "files": files}
    write_json(folder / "manifest.json", manifest)
    return manifest


def read_manifest(path: Path, hook: Callable[[dict], object] | None = None) -> dict:
    """Read a manifest; `hook` as in `read_json`.

    Raises:
        EqaError: no JSON object with "files" (or a switched-off target's "status").
    """
    manifest = read_json(path, "manifest", hook)
    if not isinstance(manifest, dict) or ("status" not in manifest and not _lists_files(manifest)):
        raise EqaError(f"{path}: not a manifest (no 'files'); run again the rule that writes it: snakemake -R {path}")
    return manifest


def _lists_files(manifest: dict) -> bool:
    """Whether "files" is {name: {"size", "sha256"}}."""
    listed = manifest.get("files")
    return isinstance(listed, dict) and all(
        isinstance(record, dict) and {"size", "sha256"} <= set(record) for record in listed.values()
    )


def check_manifest(path: Path, deep: bool = True) -> dict:
    """Read a manifest and compare the folder beside it: sizes, and with `deep` the sha256 of each file.

    Raises:
        EqaError: a file is missing or differs; names it and the command that makes it again.
    """
    manifest = read_manifest(path)
    for name, record in manifest.get("files", {}).items():
        file = safe_join(path.parent, name)
        if not file.is_file():
            raise EqaError(
                f"{file}: listed in {path} but missing; `dvc checkout` or `snakemake --force {path}` brings it back"
            )
        if file.stat().st_size != record["size"] or (deep and sha256_file(file) != record["sha256"]):
            raise EqaError(f"{file}: differs from {path}; `dvc checkout` or `snakemake --force {path}` makes it right")
    return manifest


def disabled(key: str) -> dict:
    """What a switched-off target holds, so that dvc.yaml can list it always."""
    return {"status": "disabled", "key": key}


def is_disabled(value: object) -> bool:
    """Whether a parsed target says that it is switched off."""
    return isinstance(value, dict) and value.get("status") == "disabled"
