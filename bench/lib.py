"""What every bench says about itself."""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def machine() -> str:
    """Processor, cores and, where torch sees one, the GPU: "2x Intel Xeon, NVIDIA H100 80GB HBM3"."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch

        gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    except ImportError:
        gpu = ""
    return f"{cores}x {name}{gpu}"


def side(
    bench: str, name: str, *arguments: object, python: Sequence[str] = (sys.executable,), env: Mapping | None = None
) -> dict:
    """Run one side of a bench in a process of its own, so that its memory is its own.

    Args:
        bench: module under bench/, which takes `--side NAME ARGUMENTS...` and prints `report(...)` as its last line.
        name: the side.
        python: how to start Python, where the side needs another environment than the bench.
        env: its environment variables; this process's if left out.
    Returns:
        {"seconds", "peak_mb"}, and "process_s": the same with Python's start and imports.
    """
    command = [*python, "-m", f"bench.{bench}", "--side", name, *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1], env=env)
    took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"bench.{bench} --side {name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"process_s": round(took, 3)}


def drawn_picture(dice: random.Random, size: tuple[int, int], boxes: int) -> Image.Image:
    """A grey slope with boxes of random places and colours on it.

    Args:
        dice: source of the places and colours, three draws a box.
        size: (width, height) in px.
        boxes: how many.
    """
    from PIL import Image, ImageDraw

    width, height = size
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for _ in range(boxes):
        x, y = dice.randrange(width), dice.randrange(height)
        draw.rectangle((x, y, x + width // 8, y + height // 6), fill=tuple(dice.choices(range(256), k=3)))
    return picture


def report(seconds: float) -> None:
    """What a side prints."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    busy = used.ru_utime + used.ru_stime  # with Python's start; what other programs do does not lengthen it
    print(json.dumps({"seconds": round(seconds, 4), "peak_mb": used.ru_maxrss // 1024, "cpu_s": round(busy, 2)}))


def finish(bench: str, baseline: dict, ours: dict, others: dict[str, dict] | None = None, **facts: object) -> int:
    """Print a table of all sides and, last, one JSON object; the ratio is over 1 where ours is better."""
    sides = {"baseline": baseline, **(others or {}), "ours": ours}
    print(f"{'':16}{'seconds':>10}{'with start':>12}{'peak MiB':>10}")
    for name, measured in sides.items():
        started = measured.get("process_s", float("nan"))
        print(f"{name:16}{measured['seconds']:10.3f}{started:12.3f}{measured['peak_mb']:10}")
    result = {"bench": bench, "unit": "s", "baseline": baseline["seconds"], "ours": ours["seconds"]}
    result |= {
        "ratio": round(baseline["seconds"] / ours["seconds"], 2),
        "peak_mb": ours["peak_mb"],
        "machine": machine(),
    }
    print(json.dumps(result | facts))
    return 0
