"""Stored frames of one episode: chosen, scaled to the model's own size, written as JPEG, recorded for the next run."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, file_record, write_json
from scripts.lib.frame_choice import THUMBNAIL_PX, check_enough, cluster_indices, midpoint_indices, uniform_indices
from scripts.lib.readers import Reader
from scripts.lib.tokens import PROCESSOR_MIN_PIXELS, fitted_size

if TYPE_CHECKING:
    import numpy as np

RECORD = "episode.json"
# what decides the bytes of a stored frame: a change in these makes every episode anew
_CODE = ("episode_frames", "frame_choice", "readers", "tokens", "video", "video_decoder")
_MARGIN_BYTES = 64 * 2**20


@functools.cache
def code_version() -> str:
    """Hash over the modules and libraries that decide the bytes of a stored frame."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    for package in ("opencv-python-headless", "decord", "numpy"):
        digest.update(f"{package}=={version(package)}".encode())
    return digest.hexdigest()[:32]


def frames_config(config: Mapping) -> dict:
    """The part of the config that decides the frames, as it enters an episode's record.

    Args:
        config: "frames", "vision" and "model.source" of the recipe.
    """
    frames, vision = config["frames"], config["vision"]
    processor = PROCESSOR_MIN_PIXELS["demo" if config["model"]["source"] == "demo" else "qwen3-vl"]
    return {
        "count": frames["count"],
        "choice": frames["choice"],
        "short": frames["short"],
        "jpeg_quality": frames["jpeg_quality"],
        "max_pixels": vision["image_max_pixels"],
        "min_pixels": min(max(processor, vision["image_min_pixels"]), vision["image_max_pixels"]),
    }


def frames_key(episode: Mapping, config: Mapping) -> str:
    """What an episode's stored frames depend on, as one hash: source record, `frames_config`, code."""
    source = {name: episode.get(name) for name in ("episode_history", "root", "kind", "path", "frames", "digest")}
    text = json.dumps({"source": source, "config": dict(config), "code": code_version()}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def stored_record(folder: Path, key: str) -> dict | None:
    """The record of an earlier run, if it has this key and its files are as it wrote them; None otherwise."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if record["key"] != key:
            return None
        for name, expected in record["files"].items():
            if "/" in name or file_record(folder / name) != expected:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record


def choose(reader: Reader, config: Mapping) -> list[int]:
    """Indices of the frames to store, ascending; see scripts.lib.frame_choice."""
    if config["choice"] == "midpoint":
        return midpoint_indices(reader.count, config["count"])
    if config["choice"] == "cluster" and reader.count > config["count"]:
        return cluster_indices(reader.count, config["count"], lambda indices: _thumbnails(reader, indices))
    return uniform_indices(reader.count, config["count"])


def _thumbnails(reader: Reader, indices: Sequence[int]) -> Iterator[np.ndarray]:
    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    for picture in reader.read(indices):
        yield cv2.resize(picture, THUMBNAIL_PX, interpolation=cv2.INTER_AREA)


def encode(picture: np.ndarray, size: tuple[int, int], quality: int) -> bytes:
    """Scale to `size` (width, height) in px and encode as JPEG."""
    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    height, width = picture.shape[:2]
    if (width, height) != size:
        shrinks = size[0] * size[1] < width * height
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise EqaError(f"OpenCV could not encode a picture of {size[0]}x{size[1]} px; reinstall opencv-python-headless")
    return data.tobytes()


def write_episode(reader: Reader, episode: Mapping, config: Mapping, frames_dir: Path) -> dict:
    """Store the frames of one episode in frames_dir/<episode>/, swapped in when complete.

    Args:
        reader: an open source.
        episode: its record in episodes.json.
        config: `frames_config`.
    Returns:
        The record, also written to the folder.
    Raises:
        EqaError: too few frames, or one that cannot be read; names the episode and the file.
    """
    name = episode["episode_history"]
    check_enough(name, reader.count, config["count"], config["short"])
    indices = choose(reader, config)
    size = fitted_size(reader.width, reader.height, config["max_pixels"], config["min_pixels"])
    as_they_are = reader.jpeg(indices) if size == (reader.width, reader.height) else None
    pictures = as_they_are or (encode(picture, size, config["jpeg_quality"]) for picture in _unique(reader, indices))
    with atomic_folder(frames_dir / name) as part:
        for i, data in enumerate(pictures):
            (part / f"{i:03d}.jpg").write_bytes(data)
        record = {
            "key": frames_key(episode, config),
            "files": {f"{i:03d}.jpg": file_record(part / f"{i:03d}.jpg") for i in range(len(indices))},
            "indices": indices,
            "total": reader.count,
            "width": size[0],
            "height": size[1],
            "root": episode["root"],
        }
        write_json(part / RECORD, record)
    return record


def _unique(reader: Reader, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Pictures of ascending indices; one that repeats is read once."""
    last: tuple[int, np.ndarray] | None = None
    fresh = reader.read(sorted(set(indices)))
    for i in indices:
        if last is None or last[0] != i:
            last = (i, next(fresh))
        yield last[1]


def check_disk(folder: Path, episodes: int, config: Mapping) -> None:
    """Refuse to start where the frames would not fit the disk.

    Raises:
        EqaError: names both sizes.
    """
    # measured: JPEG of quality 95 takes under a byte a px
    need = episodes * config["count"] * config["max_pixels"] + _MARGIN_BYTES
    near = folder
    while not near.exists():
        near = near.parent
    free = shutil.disk_usage(near).free
    if free < need:
        raise EqaError(
            f"{folder}: {free >> 20} MiB free, {need >> 20} MiB may be needed for {episodes} episodes; free space"
        )


def manifest_entry(episode: str, record: Mapping) -> dict:
    """What the frames' manifest says about one episode."""
    return {
        "frames": [f"{episode}/{name}" for name in sorted(record["files"])],
        "indices": record["indices"],
        "total": record["total"],
        "width": record["width"],
        "height": record["height"],
        "root": record["root"],
    }
