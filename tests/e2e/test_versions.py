"""Every checkout is believed, every change reruns what it touches and nothing else; DVC's own commands agree.

Most of the proof runs on a pipeline in miniature (tests/lib/mini.py): the project's own provenance code around rules
that take no time. The last part repeats it on the finished demo.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib.files import read_json
from scripts.lib.versions import is_stored
from tests.lib.mini import cache_hashes, edit, make_mini, plan, save, snakemake
from tests.lib.project import ROOT, call, copy_clone, environment, link_environments

AFTER_TRAIN = ["compare_models", "merge_adapter", "predict", "score", "train_adapter"]
AFTER_SFT = sorted([*AFTER_TRAIN, "build_sft"])
AFTER_SAMPLE = sorted([*AFTER_SFT, "join_frames", "sample_frames"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, run and committed; copy it, never change it."""
    folder = make_mini(tmp_path_factory.mktemp("built") / "mini")
    snakemake(folder)
    save(folder, "first run")
    return folder


@pytest.fixture
def mini(built: Path, tmp_path: Path) -> Path:
    """A copy of the run miniature."""
    return copy_clone(built, tmp_path / "mini")


@pytest.fixture(scope="module")
def three(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experiments on three branches, all pushed to a folder beside the repository."""
    folder = copy_clone(built, tmp_path_factory.mktemp("three") / "mini")
    for branch, old, new in (
        ("rate", "learning_rate: 0.1", "learning_rate: 0.2"),
        ("count", "count: 8", "count: 4"),
    ):
        call(folder, "git", "checkout", "-q", "-b", branch, "main")
        call(folder, "dvc", "checkout", "-q")
        edit(folder / "config/config.yaml", old, new)
        snakemake(folder)
        save(folder, branch)
    call(folder, "git", "checkout", "-q", "main")
    call(folder, "dvc", "checkout", "-q")
    call(folder, "dvc", "remote", "add", "-q", "-d", "store", str(folder.parent / "store"))
    save(folder, "remote")
    for branch in ("rate", "count"):
        call(folder, "git", "checkout", "-q", branch)
        call(folder, "git", "cherry-pick", "main")
        call(folder, "dvc", "checkout", "-q")
    call(folder, "dvc", "push", "-q", "-A")
    call(folder, "git", "checkout", "-q", "main")
    call(folder, "dvc", "checkout", "-q")
    return folder


def clone(source: Path, target: Path, cache_type: str = "copy", branch: str = "main") -> Path:
    """A fresh clone with its own cache, pulled."""
    call(source.parent, "git", "clone", "-q", "-b", branch, source, target)
    call(target, "dvc", "config", "--local", "cache.type", cache_type)
    call(target, "dvc", "pull", "-q")
    return target


# --- a run, and nothing after it -------------------------------------------------------------------------------------


def test_second_run_does_nothing_and_dvc_agrees(mini):
    assert plan(mini) == []
    assert "up to date" in call(mini, "dvc", "status").stdout
    assert call(mini, "git", "status", "--porcelain").stdout == ""


def test_first_run_leaves_only_what_git_keeps(tmp_path):
    folder = make_mini(tmp_path / "mini")
    snakemake(folder)
    listed = call(folder, "git", "status", "--porcelain", "-uall").stdout.split()[1::2]
    assert sorted(listed) == [
        "dvc.lock",
        "provenance.lock.json",
        "results/metrics.json",
        "results/plots/train_loss.csv",
    ]


def test_running_everything_again_changes_nothing_that_git_keeps(mini):
    snakemake(mini, "--forceall")
    assert call(mini, "git", "status", "--porcelain").stdout == ""


# --- checkouts and clones --------------------------------------------------------------------------------------------


def test_checkout_back_and_forth_between_three_experiments(three, tmp_path):
    folder = copy_clone(three, tmp_path / "mini")
    for branch in ("rate", "count", "main", "count", "rate", "main"):
        call(folder, "git", "checkout", "-q", branch)
        call(folder, "dvc", "checkout", "-q")
        assert plan(folder) == [], branch


def test_git_checkout_without_dvc_checkout_reruns_the_difference(three, tmp_path):
    folder = copy_clone(three, tmp_path / "mini")
    call(folder, "git", "checkout", "-q", "rate")
    assert plan(folder) == AFTER_TRAIN
    snakemake(folder)
    assert call(folder, "git", "status", "--porcelain").stdout == "", "the rerun made the branch's own results again"


@pytest.mark.parametrize("cache_type", ["copy", "symlink", "hardlink"])
def test_fresh_clone_has_nothing_to_do_and_never_writes_through(three, tmp_path, cache_type):
    folder = clone(three, tmp_path / "clone", cache_type)
    assert plan(folder) == []
    call(folder, "git", "checkout", "-q", "count")
    call(folder, "dvc", "pull", "-q")
    assert plan(folder) == []
    edit(folder / "config/config.yaml", "count: 4", "count: 5")
    snakemake(folder)
    snakemake(folder, "--forceall")
    stored = cache_hashes(folder / ".dvc/cache")
    assert len(stored) > 60
    assert {name: real for name, real in stored.items() if name != real} == {}
    call(folder, "git", "checkout", "-q", "-f", "rate")
    call(folder, "dvc", "pull", "-q")
    assert plan(folder) == []


def test_scrambled_times_mean_nothing(three, tmp_path):
    folder = clone(three, tmp_path / "clone")
    assert plan(folder) == []
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not {".git", ".dvc"} & set(path.parts)]
    for number, path in enumerate(files):
        if ".snakemake" not in path.parts:
            stamp = 1_700_000_000 + number * 7919 % 100_000
            os.utime(path, (stamp, stamp))
    assert plan(folder) == []


def test_other_ways_to_call_snakemake(mini, tmp_path):
    shutil.copytree(mini / "profiles/default", tmp_path / "other")
    assert plan(mini, "--workflow-profile", str(tmp_path / "other")) == []
    assert plan(mini, "results/metrics.json") == []
    assert plan(mini, "merge_adapter") == []
    (mini / "sub").mkdir()
    done = call(mini / "sub", "snakemake", "-n", "--cores", "2", "-s", "../Snakefile", "-d", "..")
    assert "Nothing to be done" in done.stdout + done.stderr


# --- each kind of change: exactly these rules ------------------------------------------------------------------------

CHANGES = {
    "learning rate": (
        lambda f: edit(f / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.3"),
        AFTER_TRAIN,
    ),
    "frame count": (lambda f: edit(f / "config/config.yaml", "count: 8", "count: 4"), AFTER_SAMPLE),
    "a script": (lambda f: _append(f / "scripts/score.py", "# edited\n"), ["compare_models", "score"]),
    "a script, with an old time": (
        lambda f: _append(f / "scripts/score.py", "# edited\n", 1e9),
        ["compare_models", "score"],
    ),
    "a script, touched only": (lambda f: (f / "scripts/score.py").touch(), []),
    "a lock file": (lambda f: _append(f / "envs/train/uv.lock", "# other\n"), sorted([*AFTER_TRAIN, "make_model"])),
    "a rule's shell text": (
        lambda f: edit(f / "rules/pipeline.smk", "python -m scripts.step predict ", "python  -m scripts.step predict "),
        ["compare_models", "predict", "score"],
    ),
    "raw data": (
        lambda f: (f / "data/source/ep4.txt").write_text("pixels of room 4\n"),
        sorted([*AFTER_SAMPLE, "list_source"]),
    ),
    "a deleted file": (lambda f: (f / "results/metrics/base.json").unlink(), ["compare_models", "score"]),
    "a deleted folder": (lambda f: shutil.rmtree(f / "results/merged"), ["merge_adapter"]),
    "a deleted second output": (
        lambda f: (f / "results/predictions/base.meta.json").unlink(),
        ["compare_models", "predict", "score"],
    ),
    "a file deleted inside a folder": (
        lambda f: (f / "results/merged/model.safetensors").unlink(),
        ["merge_adapter"],
    ),
    "a tampered file": (lambda f: _append(f / "results/sft/test.json", " "), AFTER_SFT),
    "a tampered last file": (lambda f: _append(f / "results/metrics.json", " "), ["compare_models"]),
    "a tampered file inside a folder": (
        lambda f: _append(f / "results/adapter/adapter_model.safetensors", "x"),
        AFTER_TRAIN,
    ),
    "a tampered frame": (lambda f: _append(f / "results/frames/ep1/003.jpg", "x"), AFTER_SAMPLE),
    "a tampered manifest": (lambda f: _append(f / "results/merged/manifest.json", " "), ["merge_adapter"]),
    "a foreign file beside the listed ones": (lambda f: (f / "results/merged/notes.txt").write_text("mine"), []),
}


def _append(path: Path, text: str, stamp: float | None = None) -> None:
    path.write_bytes(path.read_bytes() + text.encode())
    if stamp is not None:
        os.utime(path, (stamp, stamp))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_reruns_exactly(mini, name):
    change, rules = CHANGES[name]
    change(mini)
    assert plan(mini) == rules
    call(mini, "git", "checkout", "-q", "--", ".")
    if "tampered" in name or "deleted" in name:
        call(mini, "dvc", "checkout", "-q", "--force")
    elif name == "raw data":
        (mini / "data/source/ep4.txt").unlink()
    assert plan(mini) == [], "once it is taken back, nothing is left to do"


@pytest.mark.parametrize("name", ["a script, with an old time", "a tampered frame", "a tampered last file", "raw data"])
def test_the_same_in_a_fresh_clone(three, tmp_path, name):
    folder = clone(three, tmp_path / "clone")
    change, rules = CHANGES[name]
    change(folder)
    assert plan(folder) == rules
    assert plan(folder) == rules, "a second dry run says the same"


@pytest.mark.parametrize("name", ["a tampered frame", "a tampered file", "a deleted second output"])
def test_a_run_mends_it(mini, name):
    lock = (mini / "provenance.lock.json").read_bytes()
    CHANGES[name][0](mini)
    snakemake(mini)
    assert plan(mini) == []
    assert (mini / "provenance.lock.json").read_bytes() == lock, "the same results again: the lock stays"
    assert call(mini, "git", "status", "--porcelain").stdout == ""


def test_a_tampered_file_is_named_with_its_way_out(mini):
    _append(mini / "results/adapter/adapter_model.safetensors", "x")
    said = snakemake(mini, "-n").stderr
    (line,) = [line for line in said.splitlines() if line.startswith("provenance:")]
    assert "results/adapter/adapter_model.safetensors" in line
    assert "dvc checkout" in line
    assert (mini / "results/adapter/manifest.json").exists(), "a dry run deletes nothing"


# --- the lock file ---------------------------------------------------------------------------------------------------


def test_branches_that_changed_different_steps_merge_without_conflict(built, tmp_path):
    folder = copy_clone(built, tmp_path / "mini")
    call(folder, "git", "checkout", "-q", "-b", "left")
    edit(
        folder / "rules/pipeline.smk",
        "python -m scripts.step make_folder --inputs",
        "python  -m scripts.step make_folder --inputs",
    )
    snakemake(folder)
    save(folder, "left")
    call(folder, "git", "checkout", "-q", "-b", "right", "main")
    call(folder, "dvc", "checkout", "-q")
    _append(folder / "scripts/score.py", "# edited\n")
    snakemake(folder)
    save(folder, "right")
    merged = call(folder, "git", "merge", "-q", "left", check=False)
    conflicts = call(folder, "git", "diff", "--name-only", "--diff-filter=U").stdout.split()
    assert "provenance.lock.json" not in conflicts
    assert conflicts in ([], ["dvc.lock"]), merged.stdout
    # dvc.lock is one record for the one stage: take a side, get the files, let Snakemake make what is missing
    if conflicts:
        call(folder, "git", "checkout", "--ours", "dvc.lock")
    call(folder, "dvc", "checkout", "-q", "--force")
    assert plan(folder) == []


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda text: text.replace('\n "rule"', '\n<<<<<<< HEAD\n "rule"', 1), "merge conflict"),
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: text.replace('"inputs": {', '"inputs": 7, "x": {', 1), "damaged"),
        (lambda text: text.replace('"outputs": {\n  "', '"outputs": {\n  "../../', 1), "damaged"),
        (
            lambda text: text.replace('"snakemake_record_format": 6', '"snakemake_record_format": 99', 1),
            "record format 99",
        ),
    ],
)
def test_bad_lock_is_reported_and_not_trusted(three, tmp_path, harm, word):
    folder = clone(three, tmp_path / "clone")
    lock = folder / "provenance.lock.json"
    lock.write_text(harm(lock.read_text()))
    done = snakemake(folder, "-n")
    lines = [line for line in done.stderr.splitlines() if line.startswith("provenance:")]
    assert len(lines) == 1
    assert word in lines[0]
    assert "Nothing to be done" not in done.stdout + done.stderr or "metadata" in done.stderr
    # what it says helps: taking git's own copy back
    call(folder, "git", "checkout", "-q", "--", "provenance.lock.json")
    assert plan(folder) == []


def test_unknown_record_format_steps_aside_loudly(mini):
    edit(mini / "scripts/lib/provenance.py", "frozenset({6})", "frozenset({5})")
    before = (mini / "provenance.lock.json").read_bytes()
    done = snakemake(mini, "--forcerun", "compare_models")
    assert "record format 6" in done.stderr
    assert "is neither read nor written" in done.stderr
    assert (mini / "provenance.lock.json").read_bytes() == before


# --- faults ----------------------------------------------------------------------------------------------------------


def test_failed_dvc_commit_fails_the_run(mini):
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    _append(mini / "dvc.yaml", "  nonsense: [\n")
    done = snakemake(mini, check=False)
    assert done.returncode == 1
    assert re.search(r"dvc commit failed: \S.*dvc\.yaml", done.stdout + done.stderr), "with DVC's reason"
    call(mini, "git", "checkout", "-q", "--", "dvc.yaml")
    done = snakemake(mini)  # nothing to run: the commit is made up for
    assert "recording them now" in done.stderr
    assert "up to date" in call(mini, "dvc", "status").stdout
    assert plan(mini) == []


def test_commit_refused_for_a_file_in_a_folder_is_made_up_for_when_that_is_mended(mini):
    """Something wrote into a frame while jobs ran; only the manifest lists it, so no job counts as unrecorded."""
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    damage = "open('results/frames/ep0/000.jpg', 'ab').write(b'x')\n"
    edit(
        mini / "scripts/score.py",
        "parser = argparse.ArgumentParser()\n",
        f"{damage}parser = argparse.ArgumentParser()\n",
    )
    done = snakemake(mini, check=False)
    assert done.returncode == 1
    assert "nothing is committed to DVC" in done.stdout + done.stderr
    call(mini, "dvc", "checkout", "--force", "results/frames")
    done = snakemake(mini)
    assert "recording them now" in done.stderr
    assert "up to date" in call(mini, "dvc", "status").stdout


def test_a_file_made_by_name_alone_that_went_away_keeps_nothing_from_dvc(mini):
    """Its record stays in the lock; DVC never stored it."""
    assert is_stored("results/frames/ep0/000.jpg", mini / "dvc.lock", mini / ".dvcignore")
    assert not is_stored("data/raw/download/manifest.json", mini / "dvc.lock", mini / ".dvcignore")
    assert not is_stored("results/sft/parquet/a.parquet", mini / "dvc.lock", ROOT / ".dvcignore")
    assert is_stored("anything", mini / "no.lock", mini / ".dvcignore"), "before the first commit all counts"


def test_a_cut_run_of_a_partial_clone_removes_no_record(three, tmp_path):
    call(three.parent, "git", "clone", "-q", "-b", "main", three, tmp_path / "part")
    before = len(read_json(tmp_path / "part/provenance.lock.json"))
    call(tmp_path / "part", "dvc", "pull", "-q", "data/raw/openeqa")
    snakemake(tmp_path / "part", "--until", "sample_frames")
    assert len(read_json(tmp_path / "part/provenance.lock.json")) == before


def test_missed_commit_that_fails_again_is_an_error_again(mini):
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    _append(mini / "dvc.yaml", "  nonsense: [\n")
    assert snakemake(mini, check=False).returncode == 1
    assert snakemake(mini, check=False).returncode == 1


def test_kill_between_jobs_and_export_is_made_up_for(mini):
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    snakemake(mini, "--no-hooks")  # leaves exactly what a kill before the hook leaves
    assert "0.4" not in (mini / "provenance.lock.json").read_text()
    done = snakemake(mini)
    assert "recording them now" in done.stderr
    assert "0.4" in (mini / "provenance.lock.json").read_text()
    assert "up to date" in call(mini, "dvc", "status").stdout


def test_killed_run_goes_on_and_records_everything(mini):
    edit(mini / "config/config.yaml", "count: 8", "count: 4")
    run = _start(mini, MINI_TRAIN_S="60")
    deadline = time.monotonic() + 60
    log, text = mini / "logs/build_sft.log", mini / "results/sft/train.json"
    log.unlink()
    while not (log.exists() and text.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)  # Snakemake takes note of the job's end
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    snakemake(mini, "--unlock")
    left = plan(mini)
    assert "sample_frames" not in left, "finished jobs stay finished"
    assert "train_adapter" in left
    snakemake(mini)
    assert plan(mini) == []
    save(mini, "after the kill")
    call(mini, "git", "clone", "-q", str(mini), str(mini.with_name("other")))
    other = mini.with_name("other")
    call(other, "dvc", "cache", "dir", "--local", str(mini / ".dvc/cache"))
    call(other, "dvc", "checkout", "-q")
    assert plan(other) == []


def test_two_dry_runs_and_a_run_at_once(mini):
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    run = subprocess.Popen(
        ["snakemake", "--cores", "2"],
        cwd=mini,
        env=environment(MINI_TRAIN_S="4"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while run.poll() is None:
        call(mini, "snakemake", "-n", "--cores", "2", check=False)
    assert run.returncode == 0, run.stderr.read()
    assert plan(mini) == []
    json.loads((mini / "provenance.lock.json").read_text())


def test_two_runs_of_different_targets_at_once_keep_both_records(mini):
    _append(mini / "scripts/score.py", "# edited\n")
    edit(mini / "rules/pipeline.smk", "scripts.step make_folder --inputs", "scripts.step  make_folder --inputs")
    runs = [
        subprocess.Popen(
            ["snakemake", "--cores", "1", target],
            cwd=mini,
            env=environment(EQA_DVC_COMMIT="0"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for target in ("results/metrics.json", "results/merged/manifest.json")
    ]
    assert [run.wait() for run in runs] == [0, 0], [run.stderr.read() for run in runs]
    assert "scripts.step  make_folder --inputs" in (mini / "provenance.lock.json").read_text()
    assert plan(mini) == []


def test_read_only_cache_is_an_error_of_the_run_that_says_so(mini):
    if os.geteuid() == 0:
        pytest.skip("root writes to read-only folders")
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    for folder in (mini / ".dvc/cache/files/md5", *(mini / ".dvc/cache/files/md5").iterdir()):
        folder.chmod(0o555)
    done = snakemake(mini, check=False)
    for folder in ((mini / ".dvc/cache/files/md5"), *(mini / ".dvc/cache/files/md5").iterdir()):
        folder.chmod(0o755)
    assert done.returncode == 1
    assert "dvc commit failed" in done.stdout + done.stderr
    snakemake(mini)
    assert "up to date" in call(mini, "dvc", "status").stdout


def test_cache_that_cannot_be_written_is_an_error_of_the_run(mini):
    """A cache on a full or foreign disk, also for root: its folder is a file."""
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    cache = mini / ".dvc/cache"
    cache.rename(mini / ".dvc/kept")
    cache.write_text("no folder")
    done = snakemake(mini, check=False)
    assert done.returncode == 1
    assert "dvc commit failed" in done.stdout + done.stderr
    assert json.loads((mini / "results/metrics.json").read_text()), "the results are in place"
    cache.unlink()
    (mini / ".dvc/kept").rename(cache)
    snakemake(mini)
    assert "up to date" in call(mini, "dvc", "status").stdout


def _start(folder: Path, **extra: str) -> subprocess.Popen:
    """A run in a session of its own, to be killed with all its children."""
    return subprocess.Popen(
        ["snakemake", "--cores", "2"],
        cwd=folder,
        env=environment(**extra),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _children_named(words: str, cwd: Path) -> list[int]:
    """Processes in `cwd` whose command line holds `words`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.readlink(process / "cwd") == str(cwd.resolve()):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if words in line:
                    found.append(int(process.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.3, 0.45, 0.6])
def test_kill_during_dvc_commit_is_made_up_for(mini, delay_s):
    """At several moments of the command: while it starts, among its files, over its lock."""
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    before = cache_hashes(mini)
    run = _start(mini)
    while run.poll() is None and not _children_named("dvc commit", mini):
        time.sleep(0.005)
    assert run.poll() is None, "the run ended before its dvc commit was seen"
    time.sleep(delay_s)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    snakemake(mini, "--unlock")
    snakemake(mini)
    assert "up to date" in call(mini, "dvc", "status").stdout
    assert plan(mini) == []
    after = cache_hashes(mini)
    assert {name: after.get(name) for name in before} == before, "nothing that was committed is lost or changed"


def test_full_disk_under_the_cache_is_an_error_that_the_next_run_mends(mini, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        (disk / "cache").mkdir()
        with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
            while True:
                file.write(b"x" * 1024)
                file.flush()
        call(mini, "dvc", "cache", "dir", "--local", str(disk / "cache"))
        edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
        done = snakemake(mini, check=False)
        assert done.returncode == 1
        assert "dvc commit failed" in done.stdout + done.stderr
        call(mini, "dvc", "config", "--local", "--unset", "cache.dir")
        snakemake(mini)
        assert "up to date" in call(mini, "dvc", "status").stdout
        assert plan(mini) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_during_export_leaves_the_old_lock_whole(mini, tmp_path):
    """The lock is written beside itself and renamed: here the writing fails half-way."""
    before = (mini / "provenance.lock.json").read_bytes()
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    edit(
        mini / "scripts/lib/provenance.py",
        "            with atomic_path(lock) as part:\n",
        "            import resource\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "            with atomic_path(lock) as part:\n",
    )
    done = snakemake(mini, check=False)
    assert done.returncode == 1
    assert "provenance: " in done.stdout + done.stderr
    assert (mini / "provenance.lock.json").read_bytes() == before
    call(mini, "git", "checkout", "-q", "--", "scripts")
    snakemake(mini)
    assert "0.4" in (mini / "provenance.lock.json").read_text()


def test_without_dvc_or_git_snakemake_still_runs(mini, tmp_path):
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    off = snakemake(copy_clone(mini, tmp_path / "off"), EQA_DVC_COMMIT="0")
    assert "EQA_DVC_COMMIT=0" in off.stderr
    bare = tmp_path / "bare"
    copy_clone(mini, bare)
    shutil.rmtree(bare / ".git")
    shutil.rmtree(bare / ".dvc")
    done = snakemake(bare, GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert "no git and DVC repository" in done.stderr
    assert plan(bare) == []


# --- DVC's own commands ----------------------------------------------------------------------------------------------


def test_dvc_repro_equals_snakemake(mini, tmp_path):
    edit(mini / "config/config.yaml", "learning_rate: 0.1", "learning_rate: 0.4")
    other = copy_clone(mini, tmp_path / "other")
    snakemake(mini)
    call(other, "dvc", "repro", "-q")
    assert plan(other) == []
    for name in ("dvc.lock", "provenance.lock.json", "results/metrics.json"):
        ours, theirs = (re.sub(r'"seconds": .*', "", (folder / name).read_text()) for folder in (mini, other))
        assert ours == theirs, name
    assert "up to date" in call(other, "dvc", "status").stdout


@pytest.mark.parametrize("where", [(), ("--temp",)])
def test_experiment_runs_shows_applies_and_branches(mini, where):
    key = "config/config.yaml:train.learning_rate=0.7"
    call(mini, "dvc", "exp", "run", "-q", *where, "-n", "hot", "-S", key)
    shown = json.loads(call(mini, "dvc", "exp", "show", "--json").stdout)
    assert "hot" in json.dumps(shown)
    assert "tuned_exact_match" in json.dumps(shown)
    if where:
        assert call(mini, "git", "status", "--porcelain").stdout == ""
        call(mini, "dvc", "exp", "apply", "-q", "hot")
    assert "0.7" in (mini / "config/config.yaml").read_text()
    assert plan(mini) == []
    call(mini, "dvc", "exp", "branch", "-q", "hot", "hot-branch")
    call(mini, "git", "checkout", "-q", "-f", "main")
    call(mini, "dvc", "checkout", "-q", "--force")
    assert plan(mini) == []
    call(mini, "git", "checkout", "-q", "hot-branch")
    call(mini, "dvc", "checkout", "-q")
    assert plan(mini) == []


def test_queued_experiment(mini):
    call(mini, "dvc", "exp", "run", "-q", "--queue", "-n", "warm", "-S", "config/config.yaml:train.learning_rate=0.5")
    call(mini, "dvc", "exp", "run", "-q", "--run-all")
    call(mini, "dvc", "exp", "apply", "-q", "warm")
    assert "learning_rate: 0.5" in (mini / "config/config.yaml").read_text()
    assert plan(mini) == []


def test_unknown_parameter_is_refused_by_dvc(mini):
    done = call(mini, "dvc", "exp", "run", "-S", "config/config.yaml:train.learning_rat=0.7", check=False)
    assert done.returncode != 0


def test_metrics_params_and_plots_differ_between_branches_without_a_pull(three, tmp_path):
    folder = tmp_path / "clone"
    call(three.parent, "git", "clone", "-q", three, folder)
    metrics = json.loads(call(folder, "dvc", "metrics", "diff", "--json", "origin/main", "origin/rate").stdout)
    assert "tuned_exact_match" in metrics["results/metrics.json"]
    params = json.loads(call(folder, "dvc", "params", "diff", "--json", "origin/main", "origin/rate").stdout)
    assert params["config/config.yaml"]["train.learning_rate"]["new"] == 0.2
    done = call(folder, "dvc", "plots", "diff", "origin/main", "origin/rate", "-o", "page")
    page = (folder / "page/index.html").read_text()
    assert "origin/rate" in page, done.stderr
    assert '"loss": "2.0"' in page, "the other learning rate's first point"


def test_partial_pull_of_the_adapter(three, tmp_path):
    folder = tmp_path / "clone"
    call(three.parent, "git", "clone", "-q", three, folder)
    call(folder, "dvc", "pull", "-q", "results/adapter")
    assert (folder / "results/adapter/adapter_model.safetensors").is_file()
    assert not (folder / "results/merged").exists()
    before = (folder / "provenance.lock.json").read_bytes()
    snakemake(folder, "-n")
    assert (folder / "provenance.lock.json").read_bytes() == before


def test_dvc_exp_save_and_gc_keep_what_branches_need(three, tmp_path):
    folder = copy_clone(three, tmp_path / "mini")
    edit(folder / "config/config.yaml", "count: 8", "count: 2")
    snakemake(folder)
    call(folder, "git", "checkout", "-q", "-f", "main")
    call(folder, "dvc", "checkout", "-q", "--force")
    before = set(cache_hashes(folder / ".dvc/cache"))
    call(folder, "dvc", "gc", "-q", "-f", "--all-branches")
    after = set(cache_hashes(folder / ".dvc/cache"))
    assert after < before, "what no branch needs is gone"
    for branch in ("rate", "count", "main"):
        call(folder, "git", "checkout", "-q", branch)
        call(folder, "dvc", "checkout", "-q")
        assert plan(folder) == [], branch


# --- what is not published -------------------------------------------------------------------------------------------


@pytest.fixture
def licensed(built: Path, tmp_path: Path) -> Path:
    """The miniature with frames that may not be published and a pinned base model; pushed to a folder."""
    folder = copy_clone(built, tmp_path / "licensed")
    edit(folder / "config/config.yaml", 'frames_remote: ""', "frames_remote: unshared")
    edit(folder / "config/config.yaml", "dvc_out: models/base", "dvc_out: models/base/manifest.json")
    call(folder, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    snakemake(folder, "--forcerun", "join_frames")
    save(folder, "licensed")
    call(folder, "dvc", "push", "-q")
    return folder


def test_frames_and_base_weights_are_not_published(licensed, tmp_path):
    published = b"".join(path.read_bytes() for path in sorted((tmp_path / "store").rglob("*")) if path.is_file())
    frame = (licensed / "results/frames/ep0/000.jpg").read_bytes()
    assert frame not in published
    assert b"weights " in published, "the merged model is"
    base = (licensed / "models/base/model.safetensors").read_bytes()
    assert base not in published
    assert "up to date" in call(licensed, "dvc", "status").stdout
    own = {path.read_bytes() for path in (licensed / ".dvc/cache/files/md5").rglob("*") if path.is_file()}
    assert frame in own, "the own cache keeps frames for checkouts"


def test_clone_without_unpublished_files_has_nothing_to_do(licensed, tmp_path):
    folder = tmp_path / "clone"
    call(tmp_path, "git", "clone", "-q", licensed, folder)
    call(folder, "dvc", "pull", "-q", "--allow-missing")
    assert not (folder / "results/frames/ep0").exists()
    assert not (folder / "models/base/model.safetensors").exists()
    assert plan(folder) == []
    # a step that needs neither runs, and DVC takes its result without forgetting the frames
    entry = _out(folder, "results/frames")
    _append(folder / "scripts/score.py", "# edited\n")
    assert plan(folder) == ["compare_models", "score"]
    snakemake(folder)
    assert plan(folder) == []
    assert _out(folder, "results/frames") == entry
    # tampering with what is there is still seen
    _append(folder / "results/merged/model.safetensors", "x")
    assert plan(folder) == ["merge_adapter"]


def _out(folder: Path, path: str) -> dict:
    import yaml

    outs = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["pipeline"]["outs"]
    return next(out for out in outs if out["path"] == path)


# --- remotes and registry --------------------------------------------------------------------------------------------


def test_interrupted_push_is_completed_by_the_next(three, tmp_path):
    folder = copy_clone(three, tmp_path / "mini")
    store = tmp_path / "store2"
    call(folder, "dvc", "remote", "add", "-q", "-d", "-f", "store", store)
    push = subprocess.Popen(["dvc", "push", "-q"], cwd=folder, env=environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while push.poll() is None and len(list(store.rglob("files/md5/*/*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    if push.poll() is None:
        os.killpg(push.pid, signal.SIGKILL)
    push.wait()
    call(folder, "dvc", "push", "-q")
    stored = cache_hashes(store)
    assert {name: real for name, real in stored.items() if name != real} == {}
    save(folder, "other remote")
    assert plan(clone(folder, tmp_path / "clone")) == []


def test_s3_remote_with_credentials_from_the_environment(three, tmp_path):
    pytest.importorskip("moto.server", reason="moto is in the dev group; `make setup-test` installs it")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "test-id", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(**keys),
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _make_bucket(url, keys)
        folder = copy_clone(three, tmp_path / "mini")
        call(folder, "dvc", "remote", "add", "-q", "-f", "-d", "store", "s3://models/eqa")
        call(folder, "dvc", "remote", "modify", "store", "endpointurl", url)
        save(folder, "S3")
        call(folder, "dvc", "push", "-q", **keys)
        assert "test-secret" not in (folder / ".dvc/config").read_text()
        other = tmp_path / "clone"
        call(tmp_path, "git", "clone", "-q", folder, other)
        call(other, "dvc", "pull", "-q", **keys)
        assert plan(other) == []
        assert call(tmp_path / "mini", "dvc", "push", "-q", check=False, AWS_ACCESS_KEY_ID="x").returncode in (
            0,
            1,
            255,
        )
    finally:
        server.terminate()
        server.wait()


def _make_bucket(url: str, keys: dict[str, str]) -> None:
    import boto3
    from botocore.exceptions import EndpointConnectionError

    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name=keys["AWS_DEFAULT_REGION"],
    )
    for _ in range(100):
        try:
            client.create_bucket(Bucket="models")
            return
        except EndpointConnectionError:
            time.sleep(0.2)
    raise AssertionError("the S3 server did not start")


def test_adapter_is_fetched_from_another_folder_by_its_version_tag(three, tmp_path):
    folder = copy_clone(three, tmp_path / "mini")
    call(folder, "git", "tag", "-a", "adapter@v1.0.0", "-m", "first", "main")
    call(folder, "git", "tag", "-a", "adapter@v1.1.0", "-m", "second", "rate")
    for version, branch in (("1.0.0", "main"), ("1.1.0", "rate")):
        target = tmp_path / f"adapter-{version}"
        call(tmp_path, "dvc", "artifacts", "get", str(folder), "adapter", "--rev", f"v{version}", "-o", str(target))
        call(folder, "git", "checkout", "-q", branch)
        call(folder, "dvc", "checkout", "-q")
        wanted = (folder / "results/adapter/adapter_model.safetensors").read_bytes()
        assert (target / "adapter_model.safetensors").read_bytes() == wanted
    got = call(tmp_path, "dvc", "get", str(folder), "results/adapter", "--rev", "adapter@v1.0.0", "-o", "by-get")
    assert got.returncode == 0
    program = (
        "import dvc.api, json, sys;"
        "print(dvc.api.read('results/adapter/manifest.json', repo=sys.argv[1], rev='adapter@v1.1.0'));"
        "print(json.dumps(dvc.api.artifacts_show('adapter', version='v1.1.0', repo=sys.argv[1])))"
    )
    said = call(tmp_path, ROOT / ".venv/bin/python", "-c", program, folder).stdout
    assert "adapter_model.safetensors" in said
    assert call(folder, "git", "rev-parse", "rate").stdout.strip() in said


# --- the finished demo -----------------------------------------------------------------------------------------------


def test_demo_survives_a_clone_and_reruns_what_a_change_touches(demo_copy, tmp_path):
    assert plan(demo_copy) == []
    store = tmp_path / "store"
    call(demo_copy, "dvc", "remote", "add", "-q", "-d", "store", store)
    save(demo_copy, "remote")
    call(demo_copy, "dvc", "push", "-q")
    folder = tmp_path / "fresh"
    call(tmp_path, "git", "clone", "-q", demo_copy, folder)
    link_environments(folder)
    call(folder, "dvc", "pull", "-q")
    assert plan(folder) == []
    edit(folder / "config/config.yaml", "  bootstrap_draws:", "  bootstrap_draws: 250 #")
    assert set(plan(folder)) >= {"score", "compare_models", "write_plots", "write_report"}
    assert not set(plan(folder)) & {"train_adapter", "predict", "merge_adapter", "sample_frames", "make_demo_model"}
    call(folder, "git", "checkout", "-q", "--", ".")
    _append(folder / "results/adapter/adapter_model.safetensors", "x")
    rules = set(plan(folder))
    assert {"train_adapter", "predict", "merge_adapter"} <= rules
    assert not rules & {"build_sft", "sample_frames", "make_demo_model"}
