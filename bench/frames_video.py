"""8 frames of a video: against decoding the whole clip, and against decord's own random access, the limit.   By hand:

    python -m bench.frames_video [--clip FILE] [--repeats 7]

The clip is Open-EQA's demo clip where $OPENEQA_DATA has it, else a synthetic one. Each side opens the file and
yields the same 8 pictures; the median of several openings counts. `limit_ratio` is ours divided by decord's own access.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.lib import finish, report, side

CLIP = "open-eqa-hm3d-demo.mp4"
COUNT = 8


def make_clip(file: Path, frames: int = 300) -> None:
    """A moving 1280x720 pattern."""
    import numpy as np

    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    pattern = cv2.resize(np.random.default_rng(7).integers(0, 255, (90, 320, 3), dtype=np.uint8), (5120, 1440))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (1280, 720))
    for i in range(frames):
        writer.write(np.ascontiguousarray(pattern[i : i + 720, 8 * i : 8 * i + 1280]))
    writer.release()


def whole(file: Path) -> None:
    """Every frame in turn; the wanted ones are kept."""
    from scripts.lib.frame_choice import uniform_indices
    from scripts.lib.video import load_decord

    video = load_decord().VideoReader(str(file), num_threads=1)
    wanted = set(uniform_indices(len(video), COUNT))
    kept = [frame.asnumpy() for i, frame in ((i, video.next()) for i in range(len(video))) if i in wanted]
    assert len(kept) == COUNT


def random_access(file: Path) -> None:
    """decord's get_batch, as its own documentation shows."""
    from scripts.lib.frame_choice import uniform_indices
    from scripts.lib.video import load_decord

    video = load_decord().VideoReader(str(file), num_threads=1)
    assert len(video.get_batch(uniform_indices(len(video), COUNT)).asnumpy()) == COUNT


def ours(file: Path) -> None:
    """The pipeline's reader, BGR pictures out."""
    from scripts.lib.frame_choice import uniform_indices
    from scripts.lib.readers import VideoFile

    reader = VideoFile(file)
    assert len(list(reader.read(uniform_indices(reader.count, COUNT)))) == COUNT
    reader.close()


SIDES: dict[str, Callable[[Path], None]] = {"whole": whole, "decord": random_access, "ours": ours}


def main(argv: Sequence[str] | None = None) -> int:
    """All sides, a table, one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.frames_video", description=(__doc__ or "").split(".   ")[0])
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "FILE", "REPEATS"), help="one side alone")
    args = parser.parse_args(argv)
    if args.side:
        times = []
        for i in range(int(args.side[2]) + 1):
            started = time.perf_counter()
            SIDES[args.side[0]](Path(args.side[1]))
            times += [time.perf_counter() - started] if i else []  # the first pays for the imports
        report(statistics.median(times))
        return 0
    with tempfile.TemporaryDirectory() as name:
        clip = args.clip or Path(os.environ.get("OPENEQA_DATA", name)) / CLIP
        if not clip.is_file():
            clip = Path(name) / "synthetic.mp4"
            make_clip(clip)
        measured = {part: side("frames_video", part, clip.resolve(), args.repeats) for part in SIDES}
    limit = round(measured["ours"]["seconds"] / measured["decord"]["seconds"], 3)
    others = {"decord": measured["decord"]}
    facts = {"limit": measured["decord"]["seconds"], "limit_ratio": limit, "clip": clip.name}
    return finish("frames_video", measured["whole"], measured["ours"], others, **facts)


if __name__ == "__main__":
    sys.exit(main())
