"""Render the embedded demo: rooms walked through, laid out as Open-EQA's own episodes, with questions.   By hand:

    python -m scripts.make_demo_episodes --config '{"demo_episodes":44,"demo_seed":7}' --output-dir data/raw/demo

Writes OUTPUT/questions.json (the schema of open-eqa-v0.json), OUTPUT/frames/<episode>/NNNNNN-rgb.png or
OUTPUT/frames/<episode>.mp4, one OUTPUT/scannet/scans/<scan>/<scan>.sens, and OUTPUT/manifest.json.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import struct
import sys
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, disabled, write_json, write_manifest
from scripts.lib.progress import track

if TYPE_CHECKING:
    from scripts.lib.demo_scenes import Scene

SIZE_PX = (320, 240)  # 4:3 like ScanNet; more than the demo's token budget keeps
DEPTH_PX = (80, 60)  # nobody reads the depth; it is there because the format has it
FPS = 10  # as the real HM3D clip
JPEG_QUALITY = 92
QUESTIONS_AN_EPISODE = 10  # the seven categories once, one more on colour, purpose and knowledge
FRAMES_OF_KIND = {"frames": (12, 16), "video": (16, 24), "sens": (16, 20)}  # fewest and most of an episode
FIRST_EPISODE_NUMBER = 900  # the real ones end at 189
FIRST_SCAN_NUMBER = 900  # the real ones end at scene0806
SEEDS_A_SPACE = 64  # seeds tried for a space, so that the kinds of room take turns
OWN_NAMES = frozenset({"frames", "scannet", "questions.json", "manifest.json", ".snakemake_timestamp"})


@dataclass(frozen=True)
class Episode:
    """One walk through one room: its id, how it is stored, its scene's seed, which walk, how many frames."""

    history: str
    kind: str  # frames, video or sens
    scene_seed: int
    path: int
    frames: int


# ------------------------------------------------------------------------------------------------ pure


def scene_seed(demo_seed: int, space: int) -> int:
    """Seed of the `space`-th room: the first of its own block whose kind of room is due.

    Args:
        demo_seed: config `data.demo_seed`.
        space: 0, 1, 2, ...
    """
    from scripts.lib.demo_scenes import ROOM_KINDS, make_scene

    first = (demo_seed * 10_000 + space) * SEEDS_A_SPACE
    due = ROOM_KINDS[space % len(ROOM_KINDS)]
    return next((s for s in range(first, first + SEEDS_A_SPACE) if make_scene(s).kind == due), first)


def plan_episodes(count: int, demo_seed: int) -> list[Episode]:
    """What to render.

    Every other episode is HM3D-style, every other one ScanNet-style; a quarter of the latter are second scans
    (`_01`) of a space that has a first one. Folders of frames and videos take turns in both; the first ScanNet-style
    episode is a .sens file.

    Args:
        count: config `data.demo_episodes`, >= 0.
        demo_seed: config `data.demo_seed`, >= 0.
    """
    rng = random.Random(demo_seed * 1_000_003 + 17)
    scans = count // 2
    spaces = scans - scans // 4
    episodes = []
    for i in range(count):
        style, turn = i % 2, i // 2
        number = FIRST_EPISODE_NUMBER + i
        path = 0
        if style == 0:
            space = turn
            code = hashlib.sha256(f"demo room {demo_seed} {turn}".encode()).hexdigest()[:7]
            history = f"hm3d-v0/{number:03d}-hm3d-DEMO{code}"
        else:
            path, scan = (0, turn) if turn < spaces else (1, turn - spaces)
            space = count + scan  # numbers beyond the HM3D-style ones
            history = f"scannet-v0/{number:03d}-scannet-scene{FIRST_SCAN_NUMBER + scan:04d}_{path:02d}"
        kind = "sens" if i == 1 else ("frames", "video")[(turn + style) % 2]
        low, high = FRAMES_OF_KIND[kind]
        frames = low + int(rng.random() * (high - low + 1))
        episodes.append(Episode(history, kind, scene_seed(demo_seed, space), path, frames))
    return episodes


def scene_of(episode: Episode) -> Scene:
    """The episode's room, with its walk."""
    from scripts.lib.demo_scenes import make_scene, second_scan

    scene = make_scene(episode.scene_seed)
    return second_scan(scene) if episode.path else scene


def ask_questions(episodes: Sequence[Episode], demo_seed: int) -> list[dict[str, Any]]:
    """Questions of all episodes in the schema of open-eqa-v0.json; a second scan is asked other things."""
    from scripts.lib.demo_scenes import make_questions

    asked: dict[int, list[str]] = {}
    rows = []
    for episode in episodes:
        rng = random.Random(f"questions {demo_seed} {episode.history}")
        before = asked.setdefault(episode.scene_seed, [])
        for draft in make_questions(scene_of(episode), QUESTIONS_AN_EPISODE, rng, tuple(before)):
            before.append(draft["question"])
            name = f"embodied-qa-demo/{demo_seed}/{episode.history}/{draft['category']}/{draft['question']}"
            row = {
                "question": draft["question"],
                "answer": draft["answer"],
                "category": draft["category"],
                "question_id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
                "episode_history": episode.history,
            }
            if "extra_answers" in draft:
                row["extra_answers"] = draft["extra_answers"]
            rows.append(row)
    return rows


def sens_header(color_px: tuple[int, int], depth_px: tuple[int, int], focal_share: float, frames: int) -> bytes:
    """Head of a version 4 .sens file, little endian.

    Args:
        focal_share: focal length divided by the picture's width.
    Source:
        ScanNet's SensReader, SensorData.py: version, sensor name, 4 matrices, compressions, sizes, depth shift, count.
    """
    name = b"StructureSensor"
    head = struct.pack("<IQ", 4, len(name)) + name
    unit = [float(i % 5 == 0) for i in range(16)]
    for width, height in (color_px, depth_px):
        focal = focal_share * width
        matrix = [focal, 0, width / 2, 0, 0, focal, height / 2, 0, 0, 0, 1, 0, 0, 0, 0, 1]
        head += struct.pack("<16f", *matrix) + struct.pack("<16f", *unit)
    jpeg, zlib_ushort, depth_shift = 2, 1, 1000.0  # depth in millimetres
    head += struct.pack("<iiIIIIf", jpeg, zlib_ushort, *color_px, *depth_px, depth_shift)
    return head + struct.pack("<Q", frames)


def sens_frame(pose: Sequence[float], time_us: int, color: bytes, depth: bytes) -> bytes:
    """One frame of a .sens file: camera-to-world matrix row by row, two times, two sizes, two blobs."""
    return struct.pack("<16fQQQQ", *pose, time_us, time_us, len(color), len(depth)) + color + depth


def stored_zlib(data: bytes) -> bytes:
    """`data`, at most 65,535 bytes, as a zlib stream of one stored block: equal bytes whatever zlib is installed."""
    size = len(data)
    return b"\x78\x01\x01" + struct.pack("<HH", size, size ^ 0xFFFF) + data + struct.pack(">I", zlib.adler32(data))


# ------------------------------------------------------------------------------------------------ files


def pictures(scene: Scene, count: int) -> Iterator[tuple[float, Any]]:
    """(t, BGR picture) of `count` evenly spaced frames."""
    from scripts.lib.demo_scenes import frame_times, render_frame

    for t in frame_times(count):
        yield t, render_frame(scene, t, SIZE_PX)[:, :, ::-1]


def pose_of(scene: Scene, t: float) -> list[float]:
    """Camera-to-world matrix at t, row by row: 16 numbers, metres."""
    from scripts.lib.demo_scenes import camera

    eye, look = camera(scene, t)
    rows = [[*look[:, i].tolist(), eye[i].item()] for i in range(3)]
    return [value for row in [*rows, [0.0, 0.0, 0.0, 1.0]] for value in row]


def write_frames(scene: Scene, count: int, folder: Path) -> None:
    """NNNNNN-rgb.png and, as in Open-EQA, NNNNNN.txt with the camera's pose."""
    import cv2

    folder.mkdir(parents=True)
    for i, (t, picture) in enumerate(pictures(scene, count)):
        ok, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 6])
        if not ok:
            raise EqaError(f"{folder}: OpenCV could not encode frame {i} as PNG; reinstall opencv-python-headless")
        (folder / f"{i:06d}-rgb.png").write_bytes(data.tobytes())
        pose = pose_of(scene, t)
        lines = [" ".join(f"{value:.6f}" for value in pose[row : row + 4]) for row in range(0, 16, 4)]
        (folder / f"{i:06d}.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def write_video(scene: Scene, count: int, file: Path) -> None:
    """MPEG-4 part 2 in mp4."""
    import cv2
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), FPS, SIZE_PX)
    if not writer.isOpened():
        raise EqaError(f"{file}: OpenCV could not open an mp4v writer; reinstall opencv-python-headless")
    for _, picture in pictures(scene, count):
        writer.write(np.ascontiguousarray(picture))
    writer.release()


def write_sens(scene: Scene, count: int, file: Path) -> None:
    """ScanNet's raw stream: JPEG colour and zlib-packed uint16 depth."""
    import cv2

    from scripts.lib.demo_scenes import HALF_FOV, render_depth

    file.parent.mkdir(parents=True)
    with file.open("wb") as stream:
        stream.write(sens_header(SIZE_PX, DEPTH_PX, 0.5 / HALF_FOV, count))
        for i, (t, picture) in enumerate(pictures(scene, count)):
            ok, color = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not ok:
                raise EqaError(f"{file}: OpenCV could not encode frame {i} as JPEG; reinstall opencv-python-headless")
            depth = stored_zlib(render_depth(scene, t, DEPTH_PX).astype("<u2").tobytes())
            stream.write(sens_frame(pose_of(scene, t), i * 1_000_000 // FPS, color.tobytes(), depth))


def check_config(config: dict) -> tuple[int, int]:
    """(demo_episodes, demo_seed) from the rule's part of the config, nested under "data" or not.

    Raises:
        EqaError: a key is missing or no integer >= 0.
    """
    part = config.get("data", config)
    values = []
    for key in ("demo_episodes", "demo_seed"):
        value = part.get(key) if isinstance(part, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise EqaError(f"config: data.{key}={value!r}, an integer >= 0 is wanted; set it in config/config.yaml")
        values.append(value)
    return values[0], values[1]


def check_output(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a demo.

    Raises:
        EqaError: `folder` is a file, or holds foreign names.
    """
    if not folder.name or folder.name == "..":
        raise EqaError(f"{folder}: --output-dir is replaced as a whole; name a folder of its own")
    if folder.is_file():
        raise EqaError(f"{folder}: --output-dir is a file; name a folder")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in OWN_NAMES) if folder.is_dir() else []
    if foreign:
        raise EqaError(f"{folder}: --output-dir holds {foreign[0]!r}, no part of the demo; name another folder")


def run(config: dict, output: Path) -> dict:
    """Render everything into `output`, which is replaced as a whole.

    Raises:
        EqaError: bad config, or an output folder with foreign files.
    """
    count, demo_seed = check_config(config)
    check_output(output)
    if count == 0:
        with atomic_folder(output) as part:
            write_json(part / "questions.json", [])
            write_json(part / "manifest.json", disabled("data.demo_episodes"))
        return {"episodes": 0, "questions": 0}
    episodes = plan_episodes(count, demo_seed)
    with atomic_folder(output) as part:
        for episode in track(episodes, "episodes"):
            scene = scene_of(episode)
            target = part / "frames" / episode.history
            if episode.kind == "frames":
                write_frames(scene, episode.frames, target)
            elif episode.kind == "video":
                write_video(scene, episode.frames, target.with_name(target.name + ".mp4"))
            else:
                scan = episode.history.rpartition("-")[2]
                write_sens(scene, episode.frames, part / "scannet" / "scans" / scan / f"{scan}.sens")
        questions = ask_questions(episodes, demo_seed)
        write_json(part / "questions.json", questions)
        manifest = write_manifest(part)
    size = sum(record["size"] for record in manifest["files"].values())
    facts = {
        "episodes": count,
        "spaces": len({e.scene_seed for e in episodes}),
        "frames": sum(e.frames for e in episodes),
        "kinds": {kind: sum(e.kind == kind for e in episodes) for kind in FRAMES_OF_KIND},
        "questions": len(questions),
        "megabytes": round(size / 1e6, 2),
    }
    return facts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_demo_episodes", description="Render the embedded demo's episodes.")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: data.demo_episodes, data.demo_seed")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="folder that is written whole")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("make_demo_episodes", build_parser, lambda args: run(args.config, args.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
