"""Every rule of the demo under every fault.   By hand:

    make test-faults                          all cases that have no result yet, then docs/reliability.md
    make test-faults RULE=score FAULT=full_disk
    make test-faults SIXTH=day                one case of each rule, another one each day, without the slowest rules

A case copies the finished demo, removes what one job made, lets Snakemake make it again while something breaks, then
runs Snakemake once more and looks: every artifact has the bytes of the undisturbed run, Snakemake has nothing to do, the
DVC cache holds what its names say and all that it held before. Results lie in work/faults, one file a case; a case is run
again when its job, the code that records and commits, or this folder changes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from scripts.lib.files import sha256_file, write_json
from scripts.lib.imports import code_files
from tests.faults import table
from tests.faults.jobs import Job, artifact_inputs, chosen, listed, own_files, plan, producers, repair_seconds
from tests.lib import project
from tests.lib.mini import cache_hashes

ROOT = project.ROOT
WORK = ROOT / "work/faults"
HOOK = Path(__file__).parent / "hook"
FAULTS = ("kill_job", "kill_snakemake", "full_disk", "truncated_input", "garbage_input", "no_permission")
# a job longer than this is killed by the clock, at half its time; a shorter one at its middle rename
LONG_S = 12.0
# an input whose repair costs more is not chosen for the second input fault
REPAIR_LIMIT_S = 30.0
# but these are struck for what reads them at length, whatever that costs; a sixth leaves those cases out
WEIGHTS = "models/base/manifest.json"
READ_WEIGHTS = ("train_adapter", "predict")
KILL_TRIES = 3
SIXTH_LIMIT_S = 45.0
NOBODY = 65534
TOPS = ("results", "models", "data/raw")
TIMEOUT_S = 1200
NOTHING = "Nothing to be done"


class Broken(Exception):
    """A promise that a case found broken; becomes the table's cell."""


class NotRun(Exception):
    """Why a case cannot be had here or makes no sense for its rule."""


@dataclass
class Result:
    """One cell of the table and how it came about."""

    rule: str
    fault: str
    key: str
    outcome: str = ""
    good: bool | None = None  # None: not run
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    commit: str = ""  # of this project when the case ran, "+" where files differed from it
    day: str = ""
    cpu_s: float = 0.0  # of all commands that were waited for; with several workers also of the cases beside it


# ------------------------------------------------------------------------------------------------ the finished demo


@dataclass
class Demo:
    """The undisturbed run, and what is known about it."""

    folder: Path
    jobs: list[Job]
    seconds: dict[str, float]
    hashes: dict[str, str]
    cache: dict[str, str]
    copies: Path

    @classmethod
    def at(cls, folder: Path, copies: Path) -> Demo:
        """Read a finished demo; its copies are to lie under `copies`."""
        lock = json.loads((folder / "provenance.lock.json").read_text())
        seconds = {block["job"]: float(block["made"].get("seconds") or 0) for block in lock if "job" in block}
        return cls(folder, plan(folder), seconds, artifact_hashes(folder), cache_hashes(folder / ".dvc/cache"), copies)


def artifact_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file under results, models and data/raw."""
    found = {}
    for top in TOPS:
        for path in sorted((folder / top).rglob("*")):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = sha256_file(path)
    return found


@cache
def exempt() -> tuple[str, ...]:
    """Files and folders whose bytes may differ between runs (tests/exempt.txt)."""
    lines = (ROOT / "tests/exempt.txt").read_text().splitlines()
    return tuple(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))


def is_exempt(name: str) -> bool:
    """Whether tests/exempt.txt names a file or a folder above it."""
    return any(name == entry or (entry.endswith("/") and name.startswith(entry)) for entry in exempt())


def same_kind(name: str, other: str) -> bool:
    """Whether two paths differ in digits only."""
    return re.sub(r"[0-9]+", "0", name) == re.sub(r"[0-9]+", "0", other)


@cache
def shared_sources() -> str:
    """Hash of what every case depends on: the records, the commit, the profile, this folder."""
    names = [
        "Snakefile",
        "rules/common.smk",
        "rules/provenance.smk",
        "profiles/default/config.yaml",
        "config/config.yaml",
        "dvc.yaml",
        *code_files("scripts.lib.provenance", ROOT),
        *code_files("scripts.lib.versions", ROOT),
        *(f"tests/faults/{name}" for name in ("jobs.py", "matrix.py", "hook/sitecustomize.py")),
    ]
    return hashlib.sha256("".join(sha256_file(ROOT / name) for name in sorted(set(names))).encode()).hexdigest()


def case_key(job: Job, jobs: Sequence[Job]) -> str:
    """Changes when a result is no longer about this source: the job's own sources, and what all cases share."""
    makers = producers(jobs)
    sources = [name for name in job.inputs if name not in makers]
    text = json.dumps([asdict(job), [sha256_file(ROOT / name) for name in sorted(sources)], shared_sources()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------ one case


class Case:
    """A copy of the finished demo with one job undone, and the means to disturb its making."""

    def __init__(self, demo: Demo, job: Job, fault: str, result: Result) -> None:
        """Copy, and remove what the job made."""
        self.demo, self.job, self.fault, self.result = demo, job, fault, result
        self.makers = producers(demo.jobs)
        self.folder = demo.copies / f"{job.rule}-{fault}"
        self.told = self.folder / ".git/fault"
        self.user: list[str] = []
        self.environment: dict[str, str] = {}
        self.mounted: Path | None = None
        self.begin()

    def begin(self) -> None:
        """A copy afresh, without what the job made."""
        self.clear()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        project.copy_clone(self.demo.folder, self.folder)
        self.told.mkdir()
        self.own = own_files(self.folder, self.job, self.makers)
        self.undo()

    def undo(self) -> None:
        """Remove what the job made; folders that this empties go too."""
        for name in self.own:
            path = self.folder / name
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent.relative_to(self.folder).as_posix() in TOPS or any(parent.iterdir()):
                    break
                parent.rmdir()

    def forget_work(self) -> None:
        """Remove checkpoints and journals of finished work, so that there is work to interrupt."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    def note(self, text: str) -> None:
        """Keep a line for the result."""
        self.result.notes.append(text)

    def clear(self) -> None:
        """End what still runs in the copy, unmount, delete."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.mounted)], check=False)
            self.mounted = None
        if self.folder.exists():
            subprocess.run(["chmod", "-R", "u+rwX", str(self.folder)], check=False)
            shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """Processes whose working folder is the copy."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    where = os.readlink(entry / "cwd").removesuffix(" (deleted)")
                    if where == str(self.folder):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def call(self, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, as the case's user; its process id is told to the hook."""
        environment = project.environment(**self.environment, **extra)
        process = subprocess.Popen(
            [*self.user, *command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if extra.get("FAULT_MODE") == "kill_snakemake":
            (self.told / "snakemake.pid").write_text(str(process.pid))
        return self.finish(process, command)

    def finish(self, process: subprocess.Popen, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Wait for a command without waiting for orphans that hold its pipes."""
        texts = {"out": [], "err": []}

        def read(stream, into: list[str]) -> None:
            for line in stream:
                into.append(line)

        readers = [
            threading.Thread(target=read, args=(process.stdout, texts["out"]), daemon=True),
            threading.Thread(target=read, args=(process.stderr, texts["err"]), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Broken(f"{' '.join(command)} did not end within {TIMEOUT_S} s") from None
        for reader in readers:
            reader.join(2.0)
        return subprocess.CompletedProcess(command, code, "".join(texts["out"]), "".join(texts["err"]))

    def make(self, **extra: str) -> subprocess.CompletedProcess[str]:
        """`snakemake` for this job's outputs."""
        return self.call("snakemake", "--cores", "2", "--nocolor", *self.job.outputs, **extra)

    def hook(self, mode: str, **values: str) -> dict[str, str]:
        """Environment that arms the hook."""
        for name in ("fired.json", "count.json"):
            (self.told / name).unlink(missing_ok=True)
        return {
            "PYTHONPATH": str(HOOK),
            "FAULT_RULE": self.job.rule,
            "FAULT_MODE": mode,
            "FAULT_DIR": str(self.told),
            **{f"FAULT_{name.upper()}": value for name, value in values.items()},
        }

    def fired(self) -> dict | None:
        """What the hook did, if it did."""
        path = self.told / "fired.json"
        return json.loads(path.read_text()) if path.exists() else None

    # ---- what is asked afterwards

    def log_text(self, done: subprocess.CompletedProcess[str]) -> str:
        """What the job and Snakemake said."""
        logs = [
            (self.folder / name).read_text(errors="replace") for name in self.job.log if (self.folder / name).exists()
        ]
        return "\n".join([*logs, done.stdout, done.stderr])

    def refused(self, done: subprocess.CompletedProcess[str], words: str) -> str:
        """A failed run's own line; it must be one line, name a file or the rule, and leave no output behind."""
        text = self.log_text(done)
        if done.returncode == 0:
            raise Broken("ended with 0")
        lines = re.findall(rf"^(?:{self.job.rule}: |PermissionError: |.*{words}).*$", text, flags=re.MULTILINE)
        if "Traceback" in text:
            last = [line for line in text.splitlines() if re.match(r"^[\w.]*(Error|Exception)\b", line)]
            raise Broken(f"a traceback instead of a line: {(last or lines or ['?'])[0].strip()[:160]}")
        told = [line for line in lines if line.startswith(f"{self.job.rule}: ") and "INFO" not in line]
        line = (told or lines or [""])[-1].strip()
        if not line:
            raise Broken(f"no line says why: {text.strip()[-200:]}")
        self.note(line[:300])
        left = [name for name in self.job.outputs if os.path.lexists(self.folder / name)]
        if left:
            raise Broken(f"{left[0]} is there after the failure")
        return line

    def recover(self, tries: int = 1, **extra: str) -> subprocess.CompletedProcess[str]:
        """The next `snakemake` finishes; where it finds the folder locked, `--unlock` is what a hasty user does."""
        done = None
        for attempt in range(1, tries + 1):
            done = self.make(**extra)
            if done.returncode and "cannot be locked" in done.stdout + done.stderr:
                self.note("locked, as a job of the killed run still wrote; unlocked by force")
                self.call("snakemake", "--unlock")
                done = self.make(**extra)
            if done.returncode == 0:
                if attempt > 1:
                    self.note(f"finished at run {attempt}")
                return done
            self.note(f"next run: {self.last_line(done)}")
            extra = {}
            self.wait_for_orphans()
        raise Broken(f"the next snakemake failed: {self.last_line(done)}")

    def last_line(self, done: subprocess.CompletedProcess[str]) -> str:
        """The line of a failed run that says most."""
        lines = [line.strip() for line in self.log_text(done).splitlines() if line.strip()]
        for words in (f"{self.job.rule}: ", "provenance: ", "Error"):
            found = [line for line in lines if line.startswith(words) or (words == "Error" and words in line)]
            if found:
                return found[-1][:300]
        return (lines or ["silent"])[-1][:300]

    def wait_for_orphans(self, patience_s: float = 300.0) -> None:
        """Let processes that a killed run left behind end."""
        end = time.monotonic() + patience_s
        while self.processes() and time.monotonic() < end:
            time.sleep(0.1)

    def verify(self) -> None:
        """Every promise: artifacts, records, cache."""
        planned = self.call("snakemake", "-n", "--nocolor")
        said = planned.stdout + planned.stderr
        if planned.returncode:
            raise Broken(f"snakemake -n failed: {self.last_line(planned)}")
        if NOTHING not in said:
            from tests.faults.jobs import parse_plan

            again = parse_plan(said)
            gone = self.gone_with_the_folder()
            if not gone and not any(is_exempt(name) for name in self.job.outputs):
                raise Broken(f"snakemake -n wants {', '.join(sorted({job.rule for job in again}))}: {said[-300:]}")
            rules = sorted({job.rule for job in again})
            run = self.call("snakemake", "--cores", "2", "--nocolor")
            planned = self.call("snakemake", "-n", "--nocolor")
            if run.returncode or NOTHING not in planned.stdout + planned.stderr:
                raise Broken(f"the run after it does not finish: {self.last_line(run)}")
            why = f"{', '.join(gone)} went with its folder" if gone else "an exempt file differs"
            self.note(f"{why}, so {', '.join(rules)} ran again")
            if gone:
                self.result.outcome += f"; {why}, a whole run made it again"
        now = artifact_hashes(self.folder)
        for name in sorted(set(self.demo.hashes) | set(now)):
            if name not in now:
                # a file whose name holds a time (TensorBoard's) has another one after a second training
                if is_exempt(name) and any(is_exempt(other) and same_kind(name, other) for other in now):
                    continue
                raise Broken(f"{name} is lost")
            if name not in self.demo.hashes:
                if not is_exempt(name):
                    raise Broken(f"{name} is left over")
            elif is_exempt(name):
                if name.endswith(".json"):
                    json.loads((self.folder / name).read_text())
                elif not (self.folder / name).stat().st_size:
                    raise Broken(f"{name} is empty")
            elif now[name] != self.demo.hashes[name]:
                raise Broken(f"{name} is not what the undisturbed run made")
        held = cache_hashes(self.folder / ".dvc/cache")
        for name, content in held.items():
            if name != content:
                raise Broken(f"DVC cache object {name} holds {content}")
        lost = set(self.demo.cache) - set(held)
        if lost:
            raise Broken(f"DVC cache lost {min(lost)}")
        for name in re.findall(r"md5: ([0-9a-f]{32})(?:\.dir)?$", (self.folder / "dvc.lock").read_text(), re.MULTILINE):
            if name not in held and f"{name}" not in self.uncached():
                raise Broken(f"dvc.lock names {name}, which the cache does not hold")
        leftovers = self.processes()
        if leftovers:
            raise Broken(f"{len(leftovers)} processes still run")

    def gone_with_the_folder(self) -> list[str]:
        """Files of other jobs that lay in a folder which this job replaces whole, and are not there now."""
        folders = tuple(
            f"{Path(name).parent.as_posix()}/" for name in self.job.outputs if name.endswith("/manifest.json")
        )
        others = sorted(name for name, job in self.makers.items() if job.key != self.job.key)
        return [name for name in others if name.startswith(folders) and not (self.folder / name).exists()]

    def uncached(self) -> set[str]:
        """md5 of outputs and dependencies that git holds instead of the cache."""
        import yaml

        stage = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]["pipeline"]
        in_git = {"results/metrics.json", "results/plots"}
        entries = stage.get("deps", []) + [out for out in stage["outs"] if out["path"] in in_git]
        return {entry["md5"].removesuffix(".dir") for entry in entries}


# ------------------------------------------------------------------------------------------------ faults


def calibrate(case: Case) -> dict:
    """Renames of the job's script when nothing disturbs it; also a control: the same bytes come out."""
    store = WORK / "calibration" / f"{case.job.rule}-{case.result.key}.json"
    if store.exists():
        return json.loads(store.read_text())
    done = case.make(**case.hook("count"))
    counted = case.told / "count.json"
    if done.returncode or not counted.exists():
        raise Broken(f"the undisturbed run failed: {case.last_line(done)}")
    case.verify()
    facts = json.loads(counted.read_text())
    write_json(store, facts)
    shutil.rmtree(case.folder / "work", ignore_errors=True)
    case.undo()
    return facts


def moment(case: Case) -> dict[str, str]:
    """When to strike: the middle rename of a short job, half the time of a long one."""
    case.forget_work()
    seconds = case.demo.seconds.get(case.job.key, 0.0)
    if seconds > LONG_S:
        return {"at": "0", "after_s": f"{seconds / 2:.1f}"}
    if set(case.own) == set(case.job.outputs):
        # each declared output is written beside itself and renamed, one after the other
        return {"at": str(len(case.own) // 2 + 1)}
    facts = calibrate(case)
    if not facts["renames"]:
        raise Broken("the script renames nothing: what it writes is not whole at once")
    return {"at": str(facts["renames"] // 2 + 1)}


def strike(
    case: Case, mode: str, midway: Callable[[], object] = lambda: True
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the job and kill midway; earlier where it was done by then, for a job may be quicker than it was.

    Args:
        mode: what the hook does.
        midway: asked after a kill by the clock; false where the job was ending just then, so that nothing was tested.
    Returns:
        The struck run, and the moment as the hook was told it.
    """
    when = moment(case)
    for attempt in range(KILL_TRIES):
        done = case.make(**case.hook(mode, **when))
        fired = case.fired()
        if fired is not None and (when["at"] != "0" or midway()):
            case.note(fired["where"])
            return done, when
        if fired is None and done.returncode:
            raise Broken(f"the undisturbed run failed: {case.last_line(done)}")
        case.note("finished before the kill; tried earlier" if fired is None else "ended at the kill; tried earlier")
        if when["at"] == "0" and attempt < KILL_TRIES - 2:
            when = {"at": "0", "after_s": f"{float(when['after_s']) / 3:.1f}"}
        else:
            # its first rename, if it has one at all, cannot be missed
            when = {"at": "1"}
        case.begin()
        case.forget_work()
    raise NotRun("finished before the kill")


def kill_job(case: Case) -> str:
    """SIGKILL to the script midway; its children, if any, are left alone."""
    done, _ = strike(case, "kill_job")
    if done.returncode == 0:
        raise Broken("snakemake ended with 0 although its job was killed")
    for name in case.job.outputs:
        if os.path.lexists(case.folder / name):
            raise Broken(f"{name} is there after the kill")
    orphans = len(case.processes())
    if orphans:
        case.note(f"{orphans} orphans")
    case.recover(tries=2)
    case.wait_for_orphans()
    return "made again"


def kill_snakemake(case: Case) -> str:
    """SIGKILL to Snakemake midway; its job goes on as an orphan beside the next run's job for the same output."""
    orphans: list[int] = []

    def job_goes_on() -> list[int]:
        orphans[:] = case.processes()
        return orphans

    done, when = strike(case, "kill_snakemake", job_goes_on)
    if done.returncode == 0:
        raise Broken("snakemake ended with 0 although it was killed")
    if not orphans and not job_goes_on():
        raise Broken("the job died with Snakemake: nothing was tested")
    case.note(f"{len(orphans)} orphans")
    extra = case.hook("meet", **when) if when["at"] != "0" else {}
    case.recover(tries=2, **extra)
    met = case.fired() if extra else None
    if met:
        case.note("both jobs were midway at once" if met.get("orphan_alive") else "the orphan had ended")
    case.wait_for_orphans()
    return "made again"


def full_disk(case: Case) -> str:
    """The folder of the outputs on a small tmpfs with room for half of what the job writes."""
    top = next(top for top in TOPS if case.job.key.startswith(f"{top}/"))
    folder = case.folder / top
    size = sum((case.demo.folder / name).stat().st_size for name in case.own if name.startswith(f"{top}/"))
    beside = folder.with_name(folder.name + ".beside")
    folder.rename(beside)
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8g", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        raise NotRun("mounting is not allowed here")
    case.mounted = folder
    subprocess.run(["cp", "-a", f"{beside}/.", str(folder)], check=True)
    shutil.rmtree(beside)
    page = os.sysconf("SC_PAGE_SIZE")
    usage = os.statvfs(folder)
    used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    # a folder of many small files takes a page each
    pages = sum(-(-(case.demo.folder / name).stat().st_size // page) for name in case.own if name.startswith(f"{top}/"))
    room = page * (pages // 2)
    # a tmpfs of size 0 has no limit, so it is never asked for
    subprocess.run(["mount", "-o", f"remount,size={max(used + room, page)}", str(folder)], check=True)
    if not used + room:
        raise NotRun("nothing else lies in this folder")
    done = case.make()
    case.note(f"room for {room} of {size} bytes")
    case.refused(done, "No space left")
    subprocess.run(["mount", "-o", "remount,size=8g", str(folder)], check=True)
    case.recover()
    return "refused in one line, then made"


def chosen_inputs(case: Case) -> tuple[str, str]:
    """(to truncate, to replace by garbage): of the artifacts that the job reads, cheap ones, different if possible."""
    names = artifact_inputs(case.job, case.makers)
    if not names:
        raise NotRun("no artifact goes into this rule")
    cost = {name: repair_seconds(name, case.job, case.demo.jobs, case.demo.seconds) for name in names}
    ordered = sorted(names, key=lambda name: (cost[name], name))
    affordable = [name for name in ordered if cost[name] <= REPAIR_LIMIT_S] or ordered[:1]
    costly = WEIGHTS if case.job.rule in READ_WEIGHTS and WEIGHTS in names else affordable[-1]
    return costly, ordered[0]


def _input(case: Case, path: str, how: str) -> str:
    done = case.make(**case.hook("input", input=path, how=how))
    fired = case.fired()
    if fired is None:
        raise Broken("the job never started")
    case.note(fired["where"])
    if done.returncode == 0:
        same = all(
            is_exempt(name) or sha256_file(case.folder / name) == case.demo.hashes[name] for name in case.job.outputs
        )
        if not same:
            raise Broken(f"the job took {path} {how} for right")
        raise Broken(f"the run ended with 0 and committed {path} {how}")
    if all((case.folder / name).exists() for name in case.job.outputs):
        if "provenance: " not in done.stderr:
            raise Broken("failed, and its outputs are there")
        case.note(next(line for line in done.stderr.splitlines() if line.startswith("provenance: ")))
        outcome = "not read by the job; the run's end refuses it"
    else:
        case.refused(done, re.escape(Path(path).name))
        outcome = "refused in one line"
    done = case.recover()
    if path not in done.stdout + done.stderr:
        raise Broken("the next run does not name the damaged input")
    return f"{outcome}; input and output made again"


def truncated_input(case: Case) -> str:
    """An input is cut in half after Snakemake found it right; of a manifest, the largest file that it lists."""
    name = chosen_inputs(case)[0]
    files = [file for file in listed(case.folder, name) if (case.folder / file).is_file()]
    path = max(files, key=lambda file: ((case.folder / file).stat().st_size, file)) if files else name
    return _input(case, path, "truncated")


def garbage_input(case: Case) -> str:
    """An input is replaced by random bytes after Snakemake found it right."""
    return _input(case, chosen_inputs(case)[1], "garbage")


def as_nobody() -> list[str]:
    """How to run as an unprivileged user who can read the environments."""
    if os.getuid() or not shutil.which("setpriv"):
        raise NotRun("no root and setpriv here to change the user")
    plain = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # where the interpreter lies in root's home: leave to read everything, but to write nothing
    reader = [*plain, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        for words in (plain, reader):
            command = [*words, "uv", "run", "--frozen", "--no-sync", "--project", str(ROOT), "python", "-c", ""]
            if not subprocess.run(command, env=project.environment(HOME=home), capture_output=True).returncode:
                return words
    raise NotRun("an unprivileged user cannot start this Python")


def no_permission(case: Case) -> str:
    """The folder of the outputs may not be written; everything runs as nobody."""
    case.user = as_nobody()
    home = case.folder / ".git/home"
    home.mkdir()
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(case.folder)], check=True)
    case.environment = {"HOME": str(home), "TMPDIR": str(home)}
    shut = set()
    for name in case.job.outputs:
        parent = (case.folder / name).parent
        while not parent.exists():
            parent = parent.parent
        shut.add(parent)
    modes = {path: path.stat().st_mode for path in shut}
    for path in shut:
        path.chmod(0o555)
    done = case.make()
    case.note(f"{', '.join(sorted(path.relative_to(case.folder).as_posix() for path in shut))} read-only")
    case.refused(done, "[Pp]ermission")
    for path, mode in modes.items():
        path.chmod(mode)
    case.recover()
    return "refused in one line, then made"


RUN: Mapping[str, Callable[[Case], str]] = {
    "kill_job": kill_job,
    "kill_snakemake": kill_snakemake,
    "full_disk": full_disk,
    "truncated_input": truncated_input,
    "garbage_input": garbage_input,
    "no_permission": no_permission,
}
assert tuple(RUN) == FAULTS


# ------------------------------------------------------------------------------------------------ the matrix


def run_case(demo: Demo, job: Job, fault: str, key: str, keep: bool = False) -> Result:
    """One cell; never raises for what it finds."""
    result = Result(job.rule, fault, key, commit=source_commit(), day=str(datetime.datetime.now(datetime.UTC).date()))
    started, used = time.monotonic(), cpu_seconds()
    case = None
    try:
        case = Case(demo, job, fault, result)
        result.outcome = RUN[fault](case)
        case.verify()
        result.good = True
    except NotRun as reason:
        result.outcome = f"not run: {reason}"
    except Broken as promise:
        result.outcome, result.good = f"BROKEN: {promise}", False
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        result.outcome, result.good = f"BROKEN: {type(error).__name__}: {error}", False
    finally:
        result.seconds = round(time.monotonic() - started, 1)
        result.cpu_s = round(cpu_seconds() - used, 1)
        if case is not None and not (keep and result.good is False):
            case.clear()
    return result


@cache
def source_commit() -> str:
    """git's HEAD of this project, shortened; "+" appended where tracked files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty=+"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip()


def cpu_seconds() -> float:
    """Processor time of this process and of its ended children, in seconds."""
    return sum(os.times()[:4])


def sixth_of(rules: Sequence[str], rule: str, fault: str) -> int:
    """Which sixth a case belongs to: each sixth has every rule once, and all six have every case."""
    return (sorted(rules).index(rule) + FAULTS.index(fault)) % len(FAULTS)


def todays_sixth(words: str) -> int:
    """'day' or a number from 0 to 5."""
    if words == "day":
        return datetime.datetime.now(datetime.UTC).date().toordinal() % len(FAULTS)
    return int(words) % len(FAULTS)


def result_path(rule: str, fault: str) -> Path:
    """Where a cell is kept."""
    return WORK / "results" / f"{rule}-{fault}.json"


def read_results() -> dict[tuple[str, str], dict]:
    """All kept cells."""
    found = {}
    for path in sorted((WORK / "results").glob("*.json")):
        cell = json.loads(path.read_text())
        found[cell["rule"], cell["fault"]] = cell
    return found


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="tests.faults.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--rule", default="", help="only this rule")
    parser.add_argument("--fault", default="", choices=("", *FAULTS), help="only this fault")
    parser.add_argument("--sixth", default="", help="day, or 0 to 5")
    parser.add_argument("--workers", type=int, default=1, help="cases at once")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument("--keep", action="store_true", help="keep the copy of a case that found a promise broken")
    parser.add_argument("--demo", default="", help="a finished demo; the one of this source by default")
    parser.add_argument(
        "--copies", default=str(WORK / "copies"), help="where copies lie, 100 MB each; a tmpfs is quick"
    )
    parser.add_argument("--document", default="", help="page to write the table into")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for and has no result yet; 1 if a promise was found broken."""
    args = build_parser().parse_args(argv)
    if os.getuid() == 0 and not os.environ.get("FAULT_NAMESPACE") and shutil.which("unshare"):
        # mounts of our own end with us, however we end
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
        if probe.returncode == 0:
            words = ["unshare", "--mount", sys.executable, "-m", "tests.faults.matrix", *(argv or sys.argv[1:])]
            os.environ["FAULT_NAMESPACE"] = "1"
            os.execvp(words[0], words)
    jobs = plan(ROOT)
    rules = chosen(jobs)
    if args.rule and args.rule not in rules:
        print(f"RULE={args.rule}: no such rule in the demo; one of {', '.join(rules)}", file=sys.stderr)
        return 2
    wanted = [(rule, fault) for rule in rules for fault in FAULTS]
    if args.sixth:
        number = todays_sixth(args.sixth)
        wanted = [case for case in wanted if sixth_of(list(rules), *case) == number]
        print(f"sixth {number} of 0 to 5: {len(wanted)} cases", flush=True)
    wanted = [(r, f) for r, f in wanted if args.rule in ("", r) and args.fault in ("", f)]
    keys = {rule: case_key(job, jobs) for rule, job in rules.items()}
    kept = read_results()
    todo = [c for c in wanted if args.fresh or kept.get(c, {}).get("key") != keys[c[0]] or not kept[c]["good"]]
    status = 0
    if todo:
        from tests.conftest import make_finished_demo

        folder = Path(args.demo).resolve() if args.demo else make_finished_demo()
        demo = Demo.at(folder, Path(args.copies).resolve())
        if args.sixth:
            # a minute and more a run, twice a case: the whole matrix has them, a sixth in every CI run has not
            slow = sorted({rule for rule, _ in todo if demo.seconds.get(rules[rule].key, 0.0) > SIXTH_LIMIT_S})
            slow += [f"{rule} {fault}" for rule, fault in todo if rule in READ_WEIGHTS and fault == "truncated_input"]
            todo = [case for case in todo if not {case[0], " ".join(case)} & set(slow)]
            print(f"left to the whole matrix, as slow: {', '.join(slow) or 'none'}", flush=True)
        # cheap rules first: an interrupted matrix has most of its cells
        todo.sort(
            key=lambda c: (demo.seconds.get(rules[c[0]].key, 0.0) > LONG_S, demo.seconds.get(rules[c[0]].key, 0.0))
        )

        def one(case: tuple[str, str]) -> Result:
            result = run_case(demo, rules[case[0]], case[1], keys[case[0]], args.keep)
            write_json(result_path(*case), asdict(result))
            print(
                f"{result.seconds:6.1f} s {result.cpu_s:6.1f} CPU s  {case[0]:20} {case[1]:16} {result.outcome}",
                flush=True,
            )
            for line in result.notes if result.good is False else []:
                print(f"          {line}", flush=True)
            return result

        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(one, todo))
    results = read_results()
    status = int(any(results.get(case, {}).get("good") is False for case in wanted))
    print(table.text(list(rules), FAULTS, results, keys))
    if args.document:
        table.write(ROOT / args.document, list(rules), FAULTS, results, keys)
    return status


if __name__ == "__main__":
    sys.exit(main())
