"""What the provenance lock adds to Snakemake's start, with gigabytes of artifacts.   python -m bench.startup [--gb 20]

Baseline: `snakemake -n` of a small pipeline without rules/provenance.smk's work; ours: with it. Both on a project that
is complete: every artifact is there (sparse files of the wanted size behind manifests), so nothing is to be done. The
artifacts' hashes are in the stat cache, as after any earlier start; a wrong one would be seen, since it is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import finish
from scripts.lib.provenance import STAT_CACHE, listed_files
from tests.lib.mini import make_mini, plan, snakemake

ROUNDS = 7
FILES = 40
FRAMES = 1216  # the pictures of Open-EQA's 152 episodes
OFF = "if workflow.is_main_process and False:"


def grow(folder: Path, gigabytes: float) -> int:
    """Hang `gigabytes` of files into the merged model's manifest and many small ones into another; bytes hung in."""
    sizes = {f"results/merged/big-{i:02d}.safetensors": int(gigabytes * 1e9 / FILES) for i in range(FILES)}
    sizes |= {f"models/base/frame-{i:04d}.jpg": 4096 for i in range(FRAMES)}
    entries = {}
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
        os.utime(folder / name, (1e9, 1e9))
        stat = (folder / name).stat()
        # the hash of a sparse file is as good as another: only equality with the manifest is asked
        entries[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ino, "0" * 64]
    for manifest in ("results/merged/manifest.json", "models/base/manifest.json"):
        path = folder / manifest
        content = json.loads(path.read_text())
        for name, entry in entries.items():
            if Path(name).parent == path.parent.relative_to(folder):
                content["files"][Path(name).name] = {"size": entry[0], "sha256": entry[3]}
        path.write_text(json.dumps(content))
    cache = json.loads((folder / STAT_CACHE).read_text())
    cache["files"] |= entries
    (folder / STAT_CACHE).write_text(json.dumps(cache))
    return sum(sizes.values())


def start(folder: Path) -> float:
    """Seconds of one `snakemake -n` in `folder`, which must have nothing to do."""
    started = time.perf_counter()
    done = subprocess.run(["snakemake", "-n", "--cores", "2"], cwd=folder, capture_output=True, text=True)
    took = time.perf_counter() - started
    if "Nothing to be done" not in done.stdout + done.stderr:
        raise SystemExit(done.stderr[-2000:])
    return took


def least(baseline: Path, ours: Path) -> tuple[dict, dict]:
    """Both sides in turn, the least of each: what other work on the machine adds belongs to neither."""
    times: dict[Path, list[float]] = {baseline: [], ours: []}
    for _ in range(ROUNDS):
        for folder in times:
            times[folder].append(start(folder))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    first, second = ({"seconds": round(min(times[folder]), 3), "peak_mb": peak} for folder in (baseline, ours))
    return first, second


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="startup", description="What the provenance lock adds to a start.")
    parser.add_argument("--gb", type=float, default=20.0, help="size of all artifacts (GB)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        ours = make_mini(Path(scratch) / "ours")
        snakemake(ours)
        time.sleep(2.5)  # files younger than a clock tick are not remembered
        plan(ours)
        size = grow(ours, args.gb)
        # the grown manifests are what the jobs wrote: run nothing, take them as made
        snakemake(ours, "--touch", "--no-hooks")
        snakemake(ours, EQA_DVC_COMMIT="0")
        assert plan(ours) == []
        baseline = Path(scratch) / "baseline"
        shutil.copytree(ours, baseline, symlinks=True, ignore=shutil.ignore_patterns("big-*", "frame-*"))
        rules = baseline / "rules/provenance.smk"
        text, changed = re.subn(r"^if workflow\.is_main_process:", OFF, rules.read_text(), flags=re.MULTILINE)
        assert changed == 1
        rules.write_text(text)
        listed = sum(len(listed_files(str(path))[1]) for path in ours.rglob("manifest.json") if listed_files(str(path)))
        sides = least(baseline, ours)
    added = round(sides[1]["seconds"] - sides[0]["seconds"], 3)
    return finish("startup", *sides, added_s=added, artifacts_gb=round(size / 1e9, 1), files=listed)


if __name__ == "__main__":
    sys.exit(main())
