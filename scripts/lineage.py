"""What made each artifact, as W3C PROV JSON.   By hand:
python -m scripts.lineage --output results/lineage.json

Read from provenance.lock.json: rule, code, parameters, inputs, environment lock, kind of machine, seconds, git commit.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import write_text
from scripts.lib.provenance import (
    KEPT,
    LOCK,
    RECORD_FORMATS,
    STAT_CACHE,
    Job,
    code_hash,
    commit,
    is_running,
    local_keys,
    machine,
    read_lock,
    read_record,
    wrote_it_here,
)
from scripts.lib.statcache import StatCache

NAMESPACE = "urn:embodied-qa:"


def parameters_hash(job: Job) -> str:
    """sha256 of the parameters as Snakemake records them."""
    return hashlib.sha256(json.dumps(job.params).encode()).hexdigest()


def document(jobs: Mapping[str, Job], adopted: Mapping[str, str] | None = None) -> object:
    """A PROV document: files are entities, jobs are activities, the project's scripts and locks are used entities.

    Args:
        jobs: jobs of the lock.
        adopted: {path: sha256} of files that were made elsewhere and entered by hand (scripts/adopt.py).
    """
    from prov.model import ProvDocument

    doc = ProvDocument()
    doc.add_namespace("file", f"{NAMESPACE}file:")
    doc.add_namespace("job", f"{NAMESPACE}job:")
    doc.add_namespace("eqa", f"{NAMESPACE}terms:")
    made = {output: job for job in jobs.values() for output in job.outputs}
    entities: dict[str, object] = {}

    def entity(path: str, sha256: str) -> object:
        if path not in entities:
            entities[path] = doc.entity(f"file:{path}", {"eqa:sha256": sha256})
        return entities[path]

    for output, job in sorted(made.items()):
        entity(output, job.outputs[output])
    for job in sorted(jobs.values(), key=lambda job: job.key):
        facts = {
            "prov:type": "eqa:Job",
            "eqa:rule": job.rule,
            "eqa:codeSha256": code_hash(job.code),
            "eqa:parametersSha256": parameters_hash(job),
            "eqa:machine": job.made.get("machine", ""),
            "eqa:seconds": job.made.get("seconds", 0.0),
            "eqa:gitCommit": job.made.get("commit", ""),
        }
        pairs = [("prov:type", facts.pop("prov:type")), *facts.items()]
        pairs += [("eqa:parameter", text) for text in job.params]
        pairs += [("eqa:environmentLock", path) for path in job.inputs if path.endswith("uv.lock")]
        activity = doc.activity(f"job:{job.rule}:{job.key}", other_attributes=pairs)
        for path, checksum in sorted(job.inputs.items()):
            doc.used(activity, entity(path, checksum.removeprefix("sha256:")))
        for output in sorted(job.outputs):
            doc.wasGeneratedBy(entities[output], activity)
    for path, sha256 in sorted((adopted or {}).items()):
        doc.entity(f"file:{path}", {"eqa:sha256": sha256, "eqa:origin": "adopted: made elsewhere, checked on entry"})
    return doc


def strangers(jobs: Mapping[str, Job], cache: StatCache) -> list[str]:
    """Outputs in the workspace that are not those of the lock: their lineage is not known."""
    outputs = [(output, sha256) for job in jobs.values() for output, sha256 in job.outputs.items()]
    return sorted(output for output, sha256 in outputs if cache.sha256(output) not in (None, sha256))


def jobs_so_far(lock: Path = LOCK) -> tuple[dict[str, Job], list[str]]:
    """The jobs that made the files that are here, also in the middle of a run.

    The lock is written when Snakemake ends; of jobs that ended since, Snakemake has records of its own. Run it in the
    project's folder; it writes nothing.

    Returns:
        Jobs by key, and the outputs that are neither the lock's nor what a job here wrote last, sorted: what made them is
        not known.
    Raises:
        EqaError: the lock is damaged; see `provenance.read_lock`.
    """
    old = read_lock(lock)
    cache = StatCache(STAT_CACHE)
    groups: dict[str, dict[str, dict]] = {}
    altered = set()
    for key in local_keys():
        record = read_record(key)
        if is_running(key) or record.get("record_format_version") not in RECORD_FORMATS or not record.get("rule"):
            continue
        if KEPT in record or not wrote_it_here(record, key):
            altered.add(key)
            continue
        recipe = [record.get(name) for name in ("rule", "code", "params", "input", "input_checksums", "log")]
        groups.setdefault(json.dumps(recipe), {})[key] = record
    jobs: dict[str, Job] = {}
    known_commit = None
    for records in groups.values():
        outputs = {key: sha256 for key in sorted(records) if (sha256 := cache.sha256(key))}
        if not outputs:
            continue
        record = next(iter(records.values()))
        inputs = dict(sorted((record.get("input_checksums") or {}).items()))
        job = Job(
            outputs, inputs, record["rule"], record.get("code"), record.get("params") or [], record.get("log") or []
        )
        before = old.get(job.key)
        if before is not None and (before.outputs, before.inputs, before.params) == (outputs, inputs, job.params):
            job = before  # the same thing made again: the first maker stays
        else:
            known_commit = commit() if known_commit is None else known_commit
            seconds = max(r["endtime"] - (r.get("starttime") or r["endtime"]) for r in records.values())
            job.made = {"seconds": round(max(seconds, 0.0), 1), "machine": machine(), "commit": known_commit}
        jobs[job.key] = job
    taken = {output for job in jobs.values() for output in job.outputs}
    unknown = {output for output in altered - taken if cache.sha256(output)}
    for key, job in old.items():
        wrong = {output for output, sha256 in job.outputs.items() if cache.sha256(output) not in (None, sha256)}
        if taken.intersection(job.outputs):
            continue
        if wrong:
            unknown |= wrong
        else:
            jobs[key] = job
            unknown -= set(job.outputs)  # what DVC put back: older than the record of the last job here
    return jobs, sorted(unknown)


def jobs_behind(jobs: Mapping[str, Job], files: Iterable[str]) -> list[Job]:
    """The jobs that made `files`, the inputs of those jobs, and so on back to the raw data."""
    made_by = {output: job for job in jobs.values() for output in job.outputs}
    found: dict[str, Job] = {}
    waiting = [made_by[name] for name in files if name in made_by]
    while waiting:
        job = waiting.pop()
        if job.key not in found:
            found[job.key] = job
            waiting += [made_by[name] for name in job.inputs if name in made_by]
    return [found[key] for key in sorted(found)]


def adopted_files(folder: Path) -> dict[str, str]:
    """{path: sha256} of all files that scripts/adopt.py entered under `folder`."""
    from scripts.lib.files import read_manifest

    found = {}
    for manifest in sorted(folder.glob("*/manifest.json")):
        files = read_manifest(manifest).get("files", {})
        found |= {(manifest.parent / name).as_posix(): record["sha256"] for name, record in files.items()}
    return found


def run(lock: Path, output: Path, adopted: Path = Path("adopted")) -> dict:
    """Write the lineage of the lock's jobs.

    Raises:
        EqaError: no lock, an unreadable one, or files in the workspace that are not the lock's.
    """
    from prov.serializers.provjson import ProvJSONSerializer

    jobs = read_lock(lock)
    if not jobs:
        raise EqaError(f"{lock}: no records yet; run `snakemake --cores 8` first")
    wrong = strangers(jobs, StatCache(Path(".snakemake/provenance/stat.json")))
    if wrong:
        raise EqaError(
            f"{wrong[0]} (and {len(wrong) - 1} more) is not the file of {lock}; run `snakemake` or `dvc checkout`"
        )
    doc = document(jobs, adopted_files(adopted))
    text = io.StringIO()
    ProvJSONSerializer(doc).serialize(text)  # doc.serialize() would load the RDF serializer, which wants rdflib
    write_text(output, json.dumps(json.loads(text.getvalue()), indent=1, sort_keys=True) + "\n")
    return {"jobs": len(jobs), "artifacts": sum(len(job.outputs) for job in jobs.values())}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lineage", description="What made each artifact, as W3C PROV JSON.")
    parser.add_argument("--lock", type=path_argument, default=LOCK, help="provenance.lock.json")
    parser.add_argument("--output", type=path_argument, required=True, help="file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("lineage", build_parser, lambda args: run(args.lock, args.output), argv)


if __name__ == "__main__":
    sys.exit(main())
