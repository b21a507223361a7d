"""The demo's jobs as Snakemake itself plans them: nothing about rules is typed in here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.provenance import listed_files
from tests.lib.project import environment

BLOCK = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):\n((?: {4}.*\n)+)", flags=re.MULTILINE)
FIELD = re.compile(r"^ {4}(\w+): (.*)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One planned job; paths as the rules write them."""

    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    log: tuple[str, ...]

    @property
    def key(self) -> str:
        """First output: the job's name, as in provenance.lock.json."""
        return min(self.outputs)


def parse_plan(text: str) -> list[Job]:
    """Jobs of a dry run's text, in its order; jobs without output (`all`) are left out."""
    jobs = []
    for rule, body in BLOCK.findall(text):
        fields = {name: tuple(value.split(", ")) for name, value in FIELD.findall(body)}
        if "output" in fields:
            jobs.append(Job(rule, fields.get("input", ()), fields["output"], fields.get("log", ())))
    return jobs


def plan(folder: Path) -> list[Job]:
    """All jobs of the recipe in `folder`, by `snakemake -n --forceall`."""
    done = subprocess.run(
        ["snakemake", "-n", "--forceall", "--nocolor"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{folder}: the dry run failed: {done.stderr[-2000:]}")
    jobs = parse_plan(done.stdout + done.stderr)
    assert jobs, done.stderr[-2000:]
    return jobs


def producers(jobs: Iterable[Job]) -> dict[str, Job]:
    """Who makes each artifact."""
    return {output: job for job in jobs for output in job.outputs}


def artifact_inputs(job: Job, makers: Mapping[str, Job]) -> list[str]:
    """Inputs of a job that another job makes; the others are sources, which git holds."""
    return [name for name in job.inputs if name in makers]


def chosen(jobs: Iterable[Job]) -> dict[str, Job]:
    """One job a rule: the one with the most inputs, so `predict` with an adapter; of equals the first by name."""
    jobs = list(jobs)
    best: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: (-len(job.inputs), job.key)):
        best.setdefault(job.rule, job)
    return dict(sorted(best.items()))


def downstream(start: Job, jobs: Iterable[Job]) -> set[str]:
    """Keys of `start` and of all jobs that need it, however indirectly."""
    reached = {start.key}
    files = set(start.outputs)
    grown = True
    jobs = list(jobs)
    while grown:
        grown = False
        for job in jobs:
            if job.key not in reached and files.intersection(job.inputs):
                reached.add(job.key)
                files.update(job.outputs)
                grown = True
    return reached


def upstream(end: Job, makers: Mapping[str, Job]) -> set[str]:
    """Keys of `end` and of all jobs that it needs, however indirectly."""
    reached: set[str] = set()
    waiting = [end]
    while waiting:
        job = waiting.pop()
        if job.key not in reached:
            reached.add(job.key)
            waiting += [makers[name] for name in artifact_inputs(job, makers)]
    return reached


def repair_seconds(name: str, job: Job, jobs: Iterable[Job], seconds: Mapping[str, float]) -> float:
    """What it costs to make an input of `job` again, and all between the two."""
    jobs = list(jobs)
    makers = producers(jobs)
    between = downstream(makers[name], jobs) & upstream(job, makers)
    return sum(seconds.get(key, 1.0) for key in between - {job.key})


def own_files(folder: Path, job: Job, makers: Mapping[str, Job]) -> list[str]:
    """Files under `folder` that this job made: its outputs, and what its manifests list unless an input lists it."""
    found = set(job.outputs)
    for output in job.outputs:
        found.update(listed(folder, output))
    for name in artifact_inputs(job, makers):
        found.difference_update(listed(folder, name))
    return sorted(found)


def listed(folder: Path, name: str) -> list[str]:
    """Files that a manifest lists, relative to `folder`; [] for any other file."""
    entry = listed_files(str(folder / name))
    return [] if entry is None else sorted((entry[0] / file).relative_to(folder).as_posix() for file in entry[1])
