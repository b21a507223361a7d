"""Snakemake's records, carried by git in provenance.lock.json and believed only where the files are those of the lock.

Snakemake judges an output by .snakemake/metadata: code, parameters, list of inputs and their sha256, all local and
keyed by path alone. After `git checkout` and `dvc checkout`, or in a fresh clone, those records are of other files, or
missing.

* `restore` (when Snakemake starts) looks at each job of the lock. Where its outputs have the recorded sha256, its
  record is put back. Where a file is neither the lock's nor what a job here wrote last, the record is marked: Snakemake
  then reruns that job and what depends on it, and says why. Nothing is deleted, so `dvc checkout` still brings the
  right file back, and the next start takes the mark away.
* `export` (when Snakemake ends) writes the records of this workspace's jobs into the lock.

Files are compared through a stat cache (scripts/lib/statcache.py), so a start costs no reading of gigabytes.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_path, part_path, write_text
from scripts.lib.statcache import StatCache

LOCK = Path("provenance.lock.json")
LOCK_FORMAT = 1
METADATA = Path(".snakemake/metadata")
INCOMPLETE = Path(".snakemake/incomplete")
STATE = Path(".snakemake/provenance")
STAT_CACHE = STATE / "stat.json"
WRITTEN = STATE / "written.json"  # what jobs here wrote or DVC put back: output -> [time of the record, sha256]
RECORD_FORMATS = frozenset({6})  # values of snakemake.persistence.RECORD_FORMAT_VERSION known here (9.27.1)
NAME_MAX = 254  # Snakemake cuts the encoded key into folders of this length (os.pathconf PC_NAME_MAX - 1)
KEPT = "eqa_params"  # extra key of a marked record: the parameters before the mark; Snakemake ignores unknown keys
CLOCK_TICK_S = 0.05  # times of files lag behind the clock by a tick of the kernel, 10 ms at most
SAME_TIME_S = 1e-6  # a float of seconds since 1970 holds a quarter of a microsecond
MAX_LINES = 12
MAX_SECONDS = 1e9  # of one job: 30 years
_NO_PATH = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of characters


@dataclass
class Job:
    """One job of the lock: what went in, what came out, and who made it first."""

    outputs: dict[str, str]  # path -> sha256
    inputs: dict[str, str]  # path -> "sha256:..." as Snakemake writes it
    rule: str
    code: str | None
    params: list
    log: list[str]
    made: dict = field(default_factory=dict)
    input_list: list[str] | None = None  # only where it is not sorted(inputs)

    @property
    def key(self) -> str:
        """First output: the job's name in the lock."""
        return min(self.outputs)

    def recipe(self) -> list:
        """All that decides whether Snakemake reruns the job."""
        return [self.rule, self.code, self.params, self.inputs, self.input_list, self.log]


@dataclass(frozen=True)
class Policy:
    """What the recipe says about files that need not be here."""

    # folder -> patterns of files that may all be absent together (too large, or not to be published)
    absent_ok: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pins: Path = Path("results/pins")  # copies of the manifests of those folders, which DVC does publish


# --- the lock file -------------------------------------------------------------------------------------------------


def lock_text(jobs: Iterable[Job]) -> str:
    """The lock as JSON with one key a line and a comma line between jobs.

    Sorted, so equal jobs give equal bytes; a job's lines touch no other job's, so two branches that changed different
    steps merge without a conflict.
    """
    blocks = [json.dumps({"lock_format": LOCK_FORMAT, "snakemake_record_format": max(RECORD_FORMATS)}, sort_keys=True)]
    for job in sorted(jobs, key=lambda job: job.key):
        body = {
            "job": job.key,
            "rule": job.rule,
            "code": job.code,
            "params": job.params,
            "inputs": job.inputs,
            "log": job.log,
            "outputs": job.outputs,
            "made": job.made,
        }
        if job.input_list is not None:
            body["input_list"] = job.input_list
        blocks.append(json.dumps(body, indent=1, ensure_ascii=False))
    return "[\n" + "\n,\n".join(blocks) + "\n]\n"


def parse_lock(text: str, name: str = str(LOCK)) -> dict[str, Job]:
    """Jobs by key.

    Raises:
        EqaError: merge conflict, damage or an unknown format; nothing of such a file is believed.
    """
    way_out = (
        "it is not used, so files that this checkout did not make are judged by age alone; take one side with "
        f"`git checkout --ours {name}` (or --theirs, or HEAD), or let a whole `snakemake --forceall` write it anew"
    )
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("<<<<<<<", "=======", ">>>>>>>", "|||||||")):
            raise EqaError(f"{name}: line {number} is a merge conflict; {way_out}")
    try:
        blocks = json.loads(text)
        head, *rest = blocks
        if head["lock_format"] != LOCK_FORMAT or head["snakemake_record_format"] not in RECORD_FORMATS:
            formats = [repr(head[key])[:20] for key in ("lock_format", "snakemake_record_format")]
            raise EqaError(
                f"{name}: lock format {formats[0]}, record format {formats[1]}; "
                f"{LOCK_FORMAT} and {', '.join(map(str, sorted(RECORD_FORMATS)))} are known; {way_out}"
            )
        jobs = [_job(block) for block in rest]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EqaError(f"{name}: damaged ({type(error).__name__}: {str(error)[:80]}); {way_out}") from None
    owners: dict[str, str] = {}
    for job in jobs:
        for output in job.outputs:
            if output in owners:
                raise EqaError(f"{name}: damaged ({output} belongs to two jobs); {way_out}")
            owners[output] = job.key
    return {job.key: job for job in jobs}


def _job(block: dict) -> Job:
    """A job as `lock_text` wrote it.

    Raises:
        KeyError, TypeError, ValueError: anything else; `restore` takes what comes out of here without another look.
    """
    job = Job(
        outputs=block["outputs"],
        inputs=block["inputs"],
        rule=block["rule"],
        code=block["code"],
        params=block["params"],
        log=block["log"],
        made=block["made"],
        input_list=block.get("input_list"),
    )
    shapes = ((job.outputs, dict), (job.inputs, dict), (job.made, dict), (job.params, list), (job.log, list))
    texts = (job.rule, *job.params, *job.log, *job.inputs, *job.inputs.values(), *job.outputs, *job.outputs.values())
    optional = (job.code, job.made.get("machine"), job.made.get("commit"))
    if (
        not all(isinstance(value, shape) for value, shape in shapes)
        or not isinstance(job.input_list, list | None)
        or not all(isinstance(text, str) for text in (*texts, *(job.input_list or ())))
        or not all(isinstance(text, str | None) for text in optional)
        or not job.outputs
    ):
        raise TypeError(f"job {block.get('job')!r} has the wrong shape")
    seconds = job.made.get("seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds <= MAX_SECONDS):
        raise ValueError(f"made.seconds={repr(seconds)[:20]} of {job.key!r}, 0 to {MAX_SECONDS:.0e} are possible")
    for path in (*job.inputs, *job.outputs, *job.log, *(job.input_list or ())):
        if not is_path(path):
            raise ValueError(f"{path!r} is no path")
    for path in job.outputs:
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise ValueError(f"output {path!r} leaves the project")
    return job


def is_path(text: str) -> bool:
    """Whether the system takes a text as a path, and a message shows it on one line."""
    return bool(text) and not _NO_PATH.search(text)


def read_lock(path: Path = LOCK) -> dict[str, Job]:
    """The jobs of the lock file; none where there is no file.

    Raises:
        EqaError: see `parse_lock`; also where the file is no UTF-8 text or cannot be read.
    """
    try:
        return parse_lock(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise EqaError(f"{path}: damaged (not UTF-8); it is not used; `snakemake` writes it anew") from None
    except OSError as error:
        raise EqaError(f"{path}: cannot be read ({error.strerror}); it is not used; make it a readable file") from None


# --- Snakemake's records -------------------------------------------------------------------------------------------


def record_path(folder: Path, key: str) -> Path:
    """Where Snakemake keeps the record of output `key` (snakemake.persistence.file.FilePersistence._record_path)."""
    text = base64.urlsafe_b64encode(key.encode()).decode()
    parts = [text[start : start + NAME_MAX] for start in range(0, len(text), NAME_MAX)]
    return folder.joinpath(*[f"@{part}" for part in parts[:-1]], parts[-1])


def read_record(key: str) -> dict:
    """Snakemake's record of an output; {} where there is none or a half-written one."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(record_path(METADATA, key).read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def write_record(key: str, record: dict) -> None:
    """Replace a record in one step, readable and writable for the group as Snakemake's own."""
    path = record_path(METADATA, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    STATE.mkdir(parents=True, exist_ok=True)
    part = part_path(STATE / "record")
    part.write_text(json.dumps(record), encoding="utf-8")
    part.chmod(0o664)
    os.replace(part, path)


def local_keys() -> Iterator[str]:
    """Outputs that Snakemake has a record of here."""
    for here, folders, names in os.walk(METADATA):
        folders.sort()
        parts = [part.removeprefix("@") for part in Path(here).relative_to(METADATA).parts]
        for name in sorted(names):
            with contextlib.suppress(ValueError, UnicodeDecodeError):
                yield base64.urlsafe_b64decode("".join([*parts, name])).decode()


def is_running(key: str) -> bool:
    """Whether a job that writes `key` has started and not ended (another Snakemake's, or a killed one's)."""
    return record_path(INCOMPLETE, key).exists()


def unmarked(record: dict) -> dict:
    """The record as it was before `marked`."""
    if KEPT not in record:
        return record
    return {**{key: value for key, value in record.items() if key != KEPT}, "params": record[KEPT]}


def marked(record: dict, why: str) -> dict:
    """The record with parameters that no job has, so that Snakemake reruns the job and prints `why` as its reason."""
    plain = unmarked(record)
    return {**plain, "params": [f"<{why}>"], KEPT: plain.get("params") or []}


def wrote_it_here(record: dict, path: str) -> bool:
    """Whether the file still is what this workspace's last job wrote: Snakemake records its mtime as the job's end."""
    end = record.get("endtime")
    with contextlib.suppress(OSError):
        return isinstance(end, float | int) and abs(os.lstat(path).st_mtime - end) <= SAME_TIME_S
    return False


def read_written() -> dict[str, list]:
    """What the jobs of this workspace wrote, as seen when their run ended; {} where nothing is known."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(WRITTEN.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return {key: entry for key, entry in content.items() if isinstance(entry, list) and len(entry) == 2}
    return {}


def is_known(record: dict, entry: list | None) -> bool:
    """Whether an entry of `read_written` is about the job that this record is about."""
    ends = (record.get("endtime"), entry[0] if entry else None)
    return all(isinstance(end, float | int) for end in ends) and abs(ends[0] - ends[1]) <= SAME_TIME_S


def changed_quietly(record: dict, path: str, entry: list | None, cache: StatCache) -> bool:
    """Whether a file keeps the time that its job gave it, but not the content: a broken disk does that."""
    return is_known(record, entry) and wrote_it_here(record, path) and cache.sha256(path) not in (None, entry[1])


# --- restore -------------------------------------------------------------------------------------------------------


def restore(policy: Policy, say: Callable[[str], None] | None = None, lock: Path = LOCK) -> list[str]:
    """Make .snakemake/metadata say the truth about the files that are here.

    Returns:
        The outputs whose records are marked, sorted: Snakemake will make them again if they are asked for.
    """
    say = say or _say
    if not supported(say):
        return []
    try:
        jobs = read_lock(lock)
    except EqaError as error:
        say(str(error))
        jobs = {}
    cache = StatCache(STAT_CACHE)
    _put_pins_back(jobs, policy, cache)
    before, started = read_written(), time.time()
    written = dict(before)
    owned = {output for job in jobs.values() for output in job.outputs}
    lock_age = lock.stat().st_mtime if jobs else 0.0
    groups: list[tuple[Job | None, list[str]]] = [(job, list(job.outputs)) for job in jobs.values()]
    groups += [(None, [key]) for key in sorted(set(local_keys()) - owned)]
    faults: dict[str, str] = {}
    for job, outputs in groups:
        faults.update(_restore_job(job, outputs, policy, cache, lock_age, written, started))
    cache.save()
    _save_written(before, written)
    for output, why in list(faults.items())[:MAX_LINES]:
        say(f"{output}: {why}; the rule that makes it runs again, unless `dvc checkout` brings the recorded file back")
    if len(faults) > MAX_LINES:
        say(f"... and {len(faults) - MAX_LINES} more")
    return sorted(faults)


def _restore_job(
    job: Job | None,
    outputs: list[str],
    policy: Policy,
    cache: StatCache,
    lock_age: float,
    written: dict[str, list],
    started: float,
) -> dict[str, str]:
    """Restore or mark the records of one job; returns {output: why} for those that are marked.

    What is found right enters `written`: `dvc checkout`, and `dvc commit` for a file that is an output of its own, give
    it a new time, so that a quiet change of it would not be seen.
    """
    present = [output for output in outputs if os.path.lexists(output)]
    if not present or any(is_running(output) for output in outputs):
        return {}
    missing = [output for output in outputs if output not in present]
    why = dict.fromkeys(present, f"{missing[0]} of the same job is missing") if missing else {}
    from_lock = job is not None and not missing and all(cache.sha256(out) == job.outputs[out] for out in outputs)
    for output in present:
        current = read_record(output)
        plain = unmarked(current)
        if from_lock and not (wrote_it_here(plain, output) and plain["endtime"] > lock_age):
            wanted = _record_of(job, output, plain)
            # a younger file may have been made again by another run since it was hashed
            if wanted["endtime"] < started - CLOCK_TICK_S:
                written[output] = [wanted["endtime"], job.outputs[output]]
        elif not plain and job is None:
            continue  # a record without content
        elif not plain:
            # no end time: this is not what a job here wrote, and the next start shall see that too
            wanted = {**_record_of(job, output, plain), "endtime": 0.0}
            why.setdefault(output, "not the recorded file")
        else:
            wanted = plain
            # the condition on the age: a newer recipe made the same bytes again, and a kill came before the export
            if output not in why and not wrote_it_here(plain, output):
                why[output] = "not the recorded file" if job else "changed since it was made"
            elif changed_quietly(plain, output, written.get(output), cache):
                why.setdefault(output, "changed since it was made, without a new time")
        fault = why.get(output) or folder_fault(output, policy, cache) or _input_fault(wanted, output, cache)
        if fault:
            why[output] = fault
            wanted = marked(wanted, f"{output}: {fault}")
        if wanted != current:
            write_record(output, wanted)
    return {output: fault for output, fault in why.items() if not fault.startswith("input ")}


def _record_of(job: Job, output: str, current: dict) -> dict:
    """Snakemake's record of an output of a job in the lock, with the times of the file that is here."""
    end = os.lstat(output).st_mtime
    same = all(current.get(name) == value for name, value in _body(job).items())
    if same and wrote_it_here(current, output):
        return current
    start = end - float(job.made.get("seconds") or 0)
    return {**current, **_body(job), "incomplete": False, "job_hash": None, "starttime": start, "endtime": end}


def _body(job: Job) -> dict:
    return {
        "rule": job.rule,
        "code": job.code,
        "params": job.params,
        "input": job.input_list if job.input_list is not None else sorted(job.inputs),
        "input_checksums": job.inputs,
        "log": job.log,
        "record_format_version": max(RECORD_FORMATS),
    }


def _input_fault(record: dict, output: str, cache: StatCache) -> str | None:
    """An input whose content changed but whose age hides it: Snakemake hashes only inputs newer than the outputs."""
    end = os.lstat(output).st_mtime
    for path, checksum in sorted((record.get("input_checksums") or {}).items()):
        sha256 = cache.sha256(path)
        if sha256 is None or f"sha256:{sha256}" == checksum or not checksum.startswith("sha256:"):
            continue
        if max(os.stat(path).st_mtime, os.lstat(path).st_mtime) <= end:
            return f"input {path} changed"
    return None


def listed_files(output: str) -> tuple[Path, dict] | None:
    """Folder and {relative path: {"size", "sha256"}} that a manifest vouches for; None for any other file.

    FOLDER/manifest.json and FOLDER/shards/NNNN.json name files relative to FOLDER.
    """
    path = Path(output)
    if path.name == "manifest.json":
        folder = path.parent
    elif path.parent.name == "shards" and path.suffix == ".json":
        folder = path.parent.parent
    else:
        return None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content.get("files") if isinstance(content, dict) else None
        fine = isinstance(files, dict) and all(isinstance(record, dict) for record in files.values())
        # names that the system takes as paths; one look at all of them, for there may be thousands
        if fine and b"\0" not in "/".join(files).encode():
            return folder, files
    return None


def folder_fault(output: str, policy: Policy, cache: StatCache) -> str | None:
    """What is wrong with the files that a manifest lists: one is missing or differs; None where all is well."""
    listed = listed_files(output)
    if listed is None:
        return None
    folder, files = listed
    optional = {
        name
        for name in files
        for pattern in policy.absent_ok.get(folder.as_posix(), ())
        if fnmatch.fnmatch(name, pattern)
    }
    if optional and not any(os.path.lexists(folder / name) for name in optional):
        files = {name: record for name, record in files.items() if name not in optional}
    cache.sha256_all([str(folder / name) for name in files])
    for name, record in sorted(files.items()):
        sha256 = cache.sha256(str(folder / name))
        if sha256 is None:
            return f"{folder / name}, which it lists, is missing"
        if sha256 != record.get("sha256"):
            return f"{folder / name} is not the file that it lists"
    return None


def _put_pins_back(jobs: Mapping[str, Job], policy: Policy, cache: StatCache) -> None:
    """In a clone without unpublished folders, copy their published manifests into place, if they are the lock's."""
    for job in jobs.values():
        for output, sha256 in job.outputs.items():
            if not _is_pinned(output, policy) or os.path.lexists(output):
                continue
            pin = policy.pins / output
            if cache.sha256(str(pin)) == sha256:
                write_text(Path(output), pin.read_text(encoding="utf-8"))


def _is_pinned(output: str, policy: Policy) -> bool:
    return any(output.startswith(f"{folder}/") for folder in policy.absent_ok)


def absent_folders(policy: Policy) -> list[str]:
    """Folders of the policy whose optional files are not here."""
    absent = []
    for folder, patterns in sorted(policy.absent_ok.items()):
        listed = listed_files(f"{folder}/manifest.json")
        names = [name for name in (listed[1] if listed else {}) if any(fnmatch.fnmatch(name, p) for p in patterns)]
        if not any(os.path.lexists(Path(folder) / name) for name in names):
            absent.append(folder)
    return absent


# --- export --------------------------------------------------------------------------------------------------------


def export(policy: Policy, alive: Iterable[str] | None = None, success: bool = True, lock: Path = LOCK) -> bool:
    """Write the records of this workspace into the lock, and the pins beside it.

    Args:
        alive: outputs of the whole rule graph: jobs that are neither in it nor on disk are dropped. None keeps all.
        success: whether the run succeeded; only then is a conflicted or damaged lock written anew.
    Returns:
        Whether the lock changed.
    """
    from filelock import FileLock

    if not supported(lambda line: None):
        return False
    STATE.mkdir(parents=True, exist_ok=True)
    with FileLock(STATE / "export.lock", timeout=60):
        try:
            old = read_lock(lock)
        except EqaError as error:
            if not success:
                _say(str(error))
                return False
            old = {}
        cache = StatCache(STAT_CACHE)
        looked = time.time() - CLOCK_TICK_S
        jobs = _merge(old, _local_jobs(old, cache), alive)
        _write_written(jobs)
        text = lock_text(jobs.values())
        changed = not lock.exists() or lock.read_bytes() != text.encode()
        if changed:
            # as old as the look: what another run's job ended since then is not in it, and `restore` leaves that alone
            with atomic_path(lock) as part:
                part.write_text(text, encoding="utf-8")
                os.utime(part, (looked, looked))
        _write_pins(jobs, policy)
        cache.save()
    return changed


def unexported() -> bool:
    """Whether a job that ended here is not in the lock: an earlier Snakemake was killed before its export."""
    try:
        old = read_lock()
    except EqaError:
        return True
    cache = StatCache(STAT_CACHE)
    return any(old.get(job.key) != job for job in _local_jobs(old, cache))


def _write_written(jobs: Mapping[str, Job]) -> None:
    """Remember what this workspace's jobs wrote."""
    before = read_written()
    now = {}
    for job in jobs.values():
        for output, sha256 in job.outputs.items():
            record = read_record(output)
            if is_known(unmarked(record), before.get(output)):
                now[output] = before[output]
            elif KEPT not in record and wrote_it_here(record, output):
                now[output] = [record["endtime"], sha256]
    _save_written(before, now)


def _save_written(before: Mapping[str, list], now: Mapping[str, list]) -> None:
    """A full or read-only disk loses only the memory."""
    with contextlib.suppress(OSError):
        if now != before:
            write_text(WRITTEN, json.dumps(now, sort_keys=True))


def _local_jobs(old: Mapping[str, Job], cache: StatCache) -> list[Job]:
    """Jobs that ran here and whose outputs are all still as written."""
    groups: dict[str, dict[str, dict]] = {}
    for key in local_keys():
        record = read_record(key)
        if record.get("record_format_version") not in RECORD_FORMATS or not record.get("rule"):
            continue
        # a mark on one output of a job does not make it another job
        plain = unmarked(record)
        group = json.dumps([plain.get(name) for name in ("rule", "code", "params", "input", "input_checksums", "log")])
        groups.setdefault(group, {})[key] = record
    jobs = []
    written = read_written()
    for records in groups.values():
        if any(KEPT in record or is_running(key) or not wrote_it_here(record, key) for key, record in records.items()):
            continue
        if any(changed_quietly(record, key, written.get(key), cache) for key, record in records.items()):
            continue
        for key, record in records.items():
            if not is_known(record, written.get(key)):
                _believe_listed(key, cache)
        outputs = {key: cache.sha256(key) for key in sorted(records)}
        if any(sha256 is None for sha256 in outputs.values()):
            continue  # a folder, or gone
        record = next(iter(records.values()))
        inputs = dict(sorted((record.get("input_checksums") or {}).items()))
        input_list = record.get("input") or []
        if not all(map(is_path, (*outputs, *inputs, *input_list))):
            continue  # the lock would be refused for it
        job = Job(
            outputs=outputs,
            inputs=inputs,
            rule=record["rule"],
            code=record.get("code"),
            params=record.get("params") or [],
            log=record.get("log") or [],
            input_list=None if input_list == sorted(inputs) else input_list,
        )
        known = old.get(job.key)
        if known is not None and known.recipe() == job.recipe() and known.outputs == job.outputs:
            job.made = known.made  # the same thing made again: the first maker stays, and the lock as it is
        else:
            seconds = max(r["endtime"] - (r.get("starttime") or r["endtime"]) for r in records.values())
            job.made = {"seconds": round(max(seconds, 0.0), 1), "machine": machine(), "commit": commit()}
        jobs.append(job)
    return jobs


def _believe_listed(output: str, cache: StatCache) -> None:
    """Files that a manifest written here lists, and that are older than it, were hashed by the job itself."""
    listed = listed_files(output)
    if listed is None:
        return
    written = os.lstat(output).st_mtime_ns
    for name, record in listed[1].items():
        path = str(listed[0] / name)
        with contextlib.suppress(OSError):
            if os.lstat(path).st_mtime_ns <= written and isinstance(record.get("sha256"), str):
                cache.believe(path, record["sha256"], record.get("size"))


def _merge(old: Mapping[str, Job], new: Iterable[Job], alive: Iterable[str] | None) -> dict[str, Job]:
    """Old jobs with the new ones in their place."""
    fresh = {job.key: job for job in new}
    taken = {output for job in fresh.values() for output in job.outputs}
    wanted = None if alive is None else set(alive)
    kept = dict(fresh)
    for key, job in old.items():
        if taken.intersection(job.outputs):
            continue
        if wanted is None or wanted.intersection(job.outputs) or any(os.path.lexists(output) for output in job.outputs):
            kept[key] = job
    return kept


def _write_pins(jobs: Mapping[str, Job], policy: Policy) -> None:
    """Copies of the manifests of unpublished folders, and nothing else, under the pins folder (which always exists)."""
    pinned = [output for job in jobs.values() for output in job.outputs if _is_pinned(output, policy)]
    texts = {output: Path(output).read_text(encoding="utf-8") for output in sorted(pinned) if os.path.isfile(output)}
    readme = "Manifests of folders that are not published; see docs/versions.md.\n"
    for name, text in {"README.txt": readme, **texts}.items():
        pin = policy.pins / name
        if not pin.is_file() or pin.read_text(encoding="utf-8") != text:
            write_text(pin, text)
    for path in sorted(policy.pins.rglob("*.json")):
        output = path.relative_to(policy.pins).as_posix()
        if output not in texts and not (_is_pinned(output, policy) and not os.path.lexists(output)):
            path.unlink()


def machine() -> str:
    """What kind of machine this is; no host name."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def commit() -> str:
    """git's HEAD, "+" appended where tracked files differ from it; "" outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if dirty else "")


def code_hash(code: str | None) -> str:
    """sha256 of a rule's shell text, for people: the lock holds the text."""
    return hashlib.sha256((code or "").encode()).hexdigest()


# --- the version guard ---------------------------------------------------------------------------------------------


def supported(say: Callable[[str], None]) -> bool:
    """Whether this Snakemake's record format is known; otherwise one loud line, and Snakemake runs without the lock."""
    from snakemake.persistence import RECORD_FORMAT_VERSION

    if RECORD_FORMAT_VERSION in RECORD_FORMATS:
        return True
    say(
        f"this Snakemake writes record format {RECORD_FORMAT_VERSION}, scripts/lib/provenance.py knows "
        f"{', '.join(map(str, sorted(RECORD_FORMATS)))}: {LOCK} is neither read nor written; "
        "`uv sync --frozen` installs the Snakemake that fits"
    )
    return False


def _say(line: str) -> None:
    print(f"provenance: {line}", file=sys.stderr, flush=True)
