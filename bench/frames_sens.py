"""8 frames of a ScanNet .sens, against extracting it as Open-EQA's tool does.   By hand:

    python -m bench.frames_sens [--frames 600]

The file is synthetic: 1296x968 JPEG colour and 640x480 packed depth, as ScanNet's. The baseline does what the official
extractor does for the colour pictures (reads the file whole, decodes each of its first 600 frames, writes each as
PNG), with OpenCV, which is faster than the library that the extractor uses. Ours opens the file, decodes 8 frames,
scales them and writes 8 JPEGs with their record. Both are timed after their imports.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import finish, report, side

COLOUR_PX = (1296, 968)
DEPTH_PX = (640, 480)
DISTINCT = 12  # pictures that take turns
CONFIG = {
    "count": 8,
    "choice": "uniform",
    "short": "refuse",
    "jpeg_quality": 95,
    "max_pixels": 147456,
    "min_pixels": 65536,
}


def make_file(file: Path, frames: int) -> None:
    """A .sens with pictures of about ScanNet's size in bytes."""
    import zlib

    import numpy as np

    from scripts.lib.video import load_cv2
    from scripts.make_demo_episodes import sens_frame, sens_header

    cv2 = load_cv2()
    generator = np.random.default_rng(7)
    blobs = []
    for _ in range(DISTINCT):
        coarse = generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, COLOUR_PX, interpolation=cv2.INTER_CUBIC)
        picture = cv2.add(picture, generator.integers(0, 12, picture.shape, dtype=np.uint8))
        colour = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        depth = cv2.resize(generator.integers(500, 5000, (12, 16), dtype=np.uint16), DEPTH_PX).tobytes()
        blobs.append((colour, zlib.compress(depth, 1)))
    with file.open("wb") as stream:
        stream.write(sens_header(COLOUR_PX, DEPTH_PX, 0.9, frames))
        for i in range(frames):
            stream.write(sens_frame([0.0] * 16, i, *blobs[i % DISTINCT]))


def extract_all(file: Path, folder: Path) -> float:
    """Seconds of the official way: whole file in memory, every frame decoded and written as PNG."""
    import numpy as np

    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    started = time.perf_counter()
    with file.open("rb") as stream:
        _, name = struct.unpack("<IQ", stream.read(12))
        stream.read(name + 256 + 28)
        count = struct.unpack("<Q", stream.read(8))[0]
        frames = []
        for _ in range(count):
            *_, colour, depth = struct.unpack("<16fQQQQ", stream.read(96))
            frames.append((stream.read(colour), stream.read(depth)))
    for i, (colour, _) in enumerate(frames[:600]):
        picture = cv2.imdecode(np.frombuffer(colour, np.uint8), cv2.IMREAD_COLOR)
        cv2.imwrite(str(folder / f"{i:06d}-rgb.png"), picture)
    return time.perf_counter() - started


def sample(file: Path, folder: Path) -> float:
    """Seconds of ours."""
    from scripts.lib.episode_frames import code_version, write_episode
    from scripts.lib.readers import SensFile
    from scripts.lib.video import load_cv2

    load_cv2()
    code_version()
    started = time.perf_counter()
    reader = SensFile(file)
    write_episode(reader, {"episode_history": "scan", "root": "source"}, CONFIG, folder)
    reader.close()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Both sides, a table, one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.frames_sens", description=(__doc__ or "").split(".   ")[0])
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument(
        "--side", nargs=3, metavar=("SIDE", "FILE", "DIR"), help="one side alone, on a file that is there"
    )
    args = parser.parse_args(argv)
    if args.side:
        work = {"baseline": extract_all, "ours": sample}[args.side[0]]
        report(work(Path(args.side[1]), Path(args.side[2])))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "scan.sens"
        make_file(file, args.frames)
        for part in ("ours", "baseline"):
            (folder / part).mkdir()
        # ours first, on a file that no process has read: the page cache favours the baseline
        ours = side("frames_sens", "ours", file, folder / "ours")
        baseline = side("frames_sens", "baseline", file, folder / "baseline")
        written = len(list((folder / "baseline").glob("*.png")))
        if written != min(args.frames, 600) or len(list((folder / "ours/scan").glob("*.jpg"))) != CONFIG["count"]:
            raise SystemExit("bench.frames_sens: a side did not write what it should")
        return finish("frames_sens", baseline, ours, frames=args.frames, file_mb=round(file.stat().st_size / 1e6))


if __name__ == "__main__":
    sys.exit(main())
