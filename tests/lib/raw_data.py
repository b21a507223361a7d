"""Small raw episodes for tests and benches: pictures, frame folders, videos, .sens files, archives, question files."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from scripts.lib.video import load_cv2

cv2 = load_cv2()


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A smooth BGR picture whose colour tells its number."""
    x = np.linspace(0, 60, width)[None, :, None]
    y = np.linspace(0, 60, height)[:, None, None]
    base = np.array([(number * 37) % 128, (number * 11) % 128, (number * 71) % 128], dtype=float)
    return (base + x + y).astype(np.uint8)


def encoded(number: int, suffix: str = ".png", width: int = 96, height: int = 64) -> bytes:
    return cv2.imencode(suffix, picture(number, width, height))[1].tobytes()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of some bytes, whole and with right checksums, that claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def frame_folder(
    folder: Path, count: int, suffix: str = ".png", width: int = 96, height: int = 64, first: int = 0
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:06d}-rgb{suffix}").write_bytes(encoded(first + i, suffix, width, height))
        (folder / f"{i:06d}-depth.png").write_bytes(b"not a frame")
        (folder / f"{i:06d}.txt").write_text("1 0 0 0")
    (folder / "intrinsic_color.txt").write_text("1 0 0 0")
    return folder


def video(file: Path, count: int, fourcc: str = "mp4v", width: int = 96, height: int = 64) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*fourcc), 10, (width, height))
    assert writer.isOpened()
    for i in range(count):
        writer.write(picture(i, width, height))
    writer.release()
    return file


def boxes(data: bytes) -> Iterable[tuple[bytes, int, int]]:
    """(type, offset, size) of an mp4's top-level boxes."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, at, size
        at += size


def index_first(data: bytes) -> bytes:
    """An mp4 with its index in front, as for streaming: cut off, it still opens."""
    parts = {kind: (at, size) for kind, at, size in boxes(data)}
    at, size = parts[b"moov"]
    head = parts[b"ftyp"][1]
    moov = bytearray(data[at : at + size])
    table = moov.find(b"stco")
    while table != -1:
        count = struct.unpack(">I", moov[table + 8 : table + 12])[0]
        for k in range(table + 12, table + 12 + 4 * count, 4):
            moov[k : k + 4] = struct.pack(">I", struct.unpack(">I", moov[k : k + 4])[0] + size)
        table = moov.find(b"stco", table + 4)
    return data[:head] + bytes(moov) + data[head:at] + data[at + size :]


def sens(
    blobs: Iterable[bytes],
    *,
    width: int = 96,
    height: int = 64,
    version: int = 4,
    compression: int = 2,
    claimed: int | None = None,
    claim_bytes: Callable[[int, int], int] = lambda index, size: size,
    depth: bytes = b"depth",
) -> bytes:
    """A .sens file of the given colour blobs, honest unless told otherwise."""
    blobs = list(blobs)
    name = b"StructureSensor"
    data = struct.pack("<IQ", version, len(name)) + name + struct.pack("<64f", *range(64))
    data += struct.pack("<iiIIIIf", compression, 1, width, height, 640, 480, 1000.0)
    data += struct.pack("<Q", len(blobs) if claimed is None else claimed)
    for i, blob in enumerate(blobs):
        data += struct.pack("<16fQQQQ", *range(16), i, i, claim_bytes(i, len(blob)), len(depth)) + blob + depth
    return data


def archive(file: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz", compresslevel=1) as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def question(episode: str, number: int = 0, **changes: object) -> dict:
    row = {
        "question_id": f"{episode}-{number}",
        "question": "What is on the table?",
        "answer": "A lamp",
        "category": "object recognition",
        "episode_history": episode,
    }
    return row | changes


def write_questions(file: Path, episodes: Iterable[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([question(episode) for episode in episodes]))
    return file


def config(source: Path | str = "", **changes: object) -> dict:
    """The parts of a recipe that the data rules read."""
    frames = {"count": 8, "choice": "uniform", "short": "refuse", "jpeg_quality": 95, "shards": 2}
    made = {
        "data": {"source": str(source), "require": "all"},
        "frames": frames,
        "vision": {"image_max_pixels": 24576, "image_min_pixels": 1024},
        "model": {"source": "demo"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("_")
        made[section][name] = value
    return made
