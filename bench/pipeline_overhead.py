"""What Snakemake costs on top of the work.   python -m bench.pipeline_overhead [--slurm]

Baseline: a shell script of the demo's own commands, one after the other, as `snakemake -n -p` prints them; ours:
`snakemake --cores 1`, which also looks at every file, keeps its records and hands the results to DVC. Both really run, in
clones of their own. With --slurm a third run goes through a real Slurm on this machine (Debian's slurm-wlm and munge, as
root); what it costs is given for each level of dependencies, since each waits for a submission and a status check.
"""

from __future__ import annotations

import argparse
import re
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import finish
from tests.lib import project

BLOCK = re.compile(r"^\[[A-Z][a-z]{2} .*\]\n", re.M)  # the time before each job
SLURM_EDITS = (
    ("# slurm-no-account:", "slurm-no-account:"),
    ("# slurm-status-command:", "slurm-status-command:"),
)
# the demo with less to compute, which leaves Snakemake the larger share
SHORT_EDITS = (("demo_steps: 600", "demo_steps: 40"), ("demo_episodes: 44", "demo_episodes: 20"))


def commands(told: str) -> list[tuple[str, list[str], str]]:
    """(rule, files that it writes, shell text) of each job, in an order that respects dependencies.

    Args:
        told: what `snakemake -n -p --forceall` prints.
    """
    found = []
    for block in BLOCK.split(told.partition("\nJob stats:")[2])[1:]:
        block = block.partition("\nJob stats:")[0]
        rule = re.match(r"(?:local)?rule (\w+):\n", block)
        facts, asked, shell = block.partition("\nShell command: ")
        if not rule or not asked or rule[1] == "all":
            continue
        lists = re.findall(r"^    (?:output|log|benchmark): (.*)$", facts, flags=re.M)
        files = [name.strip() for line in lists for name in line.split(",")]
        found.append((rule[1], files, shell.strip()))
    return found


def script(jobs: Sequence[tuple[str, list[str], str]]) -> str:
    """The demo as a person would write it down: make the folders, run the commands, stop at the first that fails."""
    lines = ["#!/usr/bin/env bash", "set -euo pipefail"]
    for rule, files, shell in jobs:
        folders = sorted({str(Path(name.split(" ")[0]).parent) for name in files})
        lines += [f"# {rule}", f"mkdir -p {shlex.join(folders)}", shell]
    return "\n".join(lines) + "\n"


def levels(dot: str) -> int:
    """Jobs on the longest chain of dependencies.

    Args:
        dot: what `snakemake --forceall --dag dot` prints.
    """
    before: dict[str, set[str]] = {}
    for first, second in re.findall(r"^\s*(\d+) -> (\d+)", dot, flags=re.M):
        before.setdefault(second, set()).add(first)
    depth: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((of(other) for other in before.get(node, ())), default=0)
        return depth[node]

    return max(of(node) for node in list(before)) - 1  # `all` is no job


def measured(folder: Path, *command: str, **environment: str) -> dict:
    """Wall time of a command in a clone; it has to make the report."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    project.call(folder, *command, timeout=7200, **environment)
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if not (folder / "results/report/index.html").is_file():
        raise SystemExit(f"{command[0]}: no report in {folder}")
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(took, 2), "peak_mb": after.ru_maxrss // 1024, "cpu_s": round(busy, 2)}


def edit(path: Path, edits: Sequence[tuple[str, str]]) -> None:
    """Replace texts that have to be there."""
    text = path.read_text()
    for old, new in edits:
        if old not in text:
            raise SystemExit(f"{path}: no {old!r}")
        text = text.replace(old, new)
    path.write_text(text)


def through_slurm(folder: Path, state: Path) -> dict:
    """The demo through a Slurm that is started for it."""
    from tests.slurm import cluster

    reason = cluster.missing()
    if reason:
        raise SystemExit(f"--slurm: {reason}")
    edit(folder / "profiles/slurm/config.yaml", SLURM_EDITS)
    with cluster.Cluster(state) as started:
        command = ["snakemake", "--workflow-profile", "profiles/slurm", "--latency-wait", "15"]
        return measured(folder, *command, **started.environment)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pipeline_overhead", description="What Snakemake costs on top of the work.")
    parser.add_argument("--slurm", action="store_true", help="also through a real Slurm")
    parser.add_argument("--short", action="store_true", help="a base model and rooms of a minute, not the whole demo")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clones = {name: project.make_clone(folder / name) for name in ("shell", "snakemake", "slurm")}
        if args.short:
            for clone in clones.values():
                edit(clone / "config/config.yaml", SHORT_EDITS)
        told = project.call(clones["shell"], "snakemake", "-n", "-p", "--forceall", "--cores", "1")
        jobs = commands(told.stdout + told.stderr)
        planned = int(re.search(r"^total +(\d+)$", told.stdout + told.stderr, flags=re.M)[1]) - 1
        if len(jobs) != planned:
            raise SystemExit(f"{len(jobs)} of {planned} commands found in what snakemake -n -p prints")
        depth = levels(project.call(clones["shell"], "snakemake", "--forceall", "--dag", "dot").stdout)
        (clones["shell"] / "demo.sh").write_text(script(jobs))
        baseline = measured(clones["shell"], "bash", "demo.sh")
        ours = measured(clones["snakemake"], "snakemake", "--cores", "1")
        facts = {
            "recipe": "short demo" if args.short else "demo",
            "jobs": planned,
            "levels": depth,
            "overhead": round(ours["seconds"] / baseline["seconds"], 3),
        }
        # other work on the machine lengthens a wall time, hardly a processor's
        facts["overhead_cpu"] = round(ours["cpu_s"] / baseline["cpu_s"], 3)
        others = {}
        if args.slurm:
            others["slurm"] = through_slurm(clones["slurm"], folder / "state")
            facts["slurm_s"] = others["slurm"]["seconds"]
            facts["slurm_s_a_level"] = round((facts["slurm_s"] - 1.15 * baseline["seconds"]) / depth, 2)
    return finish("pipeline_overhead", baseline, ours, others, **facts)


if __name__ == "__main__":
    sys.exit(main())
