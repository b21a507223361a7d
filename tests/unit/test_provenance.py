"""The lock, Snakemake's record paths, the stat cache and the marks."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import lineage
from scripts.lib import provenance, versions
from scripts.lib.errors import EqaError
from scripts.lib.files import sha256_file, write_manifest
from scripts.lib.provenance import Job, Policy, folder_fault, lock_text, marked, parse_lock, unmarked
from scripts.lib.statcache import StatCache


def job(output: str, sha256: str = "a" * 64, **more: object) -> Job:
    return Job({output: sha256}, {"in": "sha256:" + "b" * 64}, "rule_x", "echo", ["'p'"], ["log"], **more)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- lock ---


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


paths = words.filter(lambda w: provenance.is_path(w) and not os.path.isabs(w) and ".." not in Path(w).parts)


@given(st.dictionaries(paths, words, max_size=6))
@settings(max_examples=100, deadline=None)
def test_lock_survives_writing_and_reading(outputs):
    jobs = {name: job(name, text, made={"commit": text}) for name, text in outputs.items()}
    text = lock_text(jobs.values())
    assert parse_lock(text) == jobs
    assert lock_text(parse_lock(text).values()) == text


def test_lock_does_not_depend_on_order():
    jobs = [job("b"), job("a"), job("c")]
    assert lock_text(jobs) == lock_text(reversed(jobs))


def test_git_merges_locks_that_changed_different_jobs(tmp_path):
    base = [job(name) for name in "abcd"]
    left = [job("a", "1" * 64), *base[1:], job("e")]
    right = [*base[:1], job("b", "2" * 64), *base[2:], job("aa")]
    for name, jobs in (("base", base), ("left", left), ("right", right)):
        (tmp_path / name).write_text(lock_text(jobs))
    done = subprocess.run(
        ["git", "merge-file", "-p", "left", "base", "right"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    wanted = [job("a", "1" * 64), job("b", "2" * 64), *base[2:], job("e"), job("aa")]
    assert parse_lock(done.stdout) == {one.key: one for one in wanted}


ONE = lock_text([job("a")])
DAMAGED = {
    "empty": "",
    "open list": "[",
    "empty list": "[]",
    "no list": "{}",
    "null": "null",
    "no header": "[1]",
    "deep": "[" * 100000,
    "empty job": '[{"lock_format": 1, "snakemake_record_format": 6}, {}]',
    "text after the end": ONE + "]",
    "output above the project": ONE.replace('"a": "', '"../a": "'),
    "output anywhere": ONE.replace('"a": "', '"/a": "'),
    "twice": ONE * 2,
    "one output, two jobs": lock_text([job("a"), Job({"a": "1", "A": "2"}, {}, "s", None, [], [])]),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_lock_is_one_line(text):
    with pytest.raises(EqaError) as caught:
        parse_lock(text)
    assert "\n" not in str(caught.value)
    assert "it is not used" in str(caught.value)


def changed(**values: object) -> str:
    """ONE with some values of its job replaced."""
    head, body = json.loads(ONE)
    return json.dumps([head, body | values])


MISSHAPEN = {
    "seconds are text": changed(made={"seconds": "abc"}),
    "seconds are a list": changed(made={"seconds": [1]}),
    "seconds are true": changed(made={"seconds": True}),
    "seconds are no number": changed(made={"seconds": float("nan")}),
    "seconds of 400 digits": changed(made={"seconds": 10**400}),
    "seconds below 0": changed(made={"seconds": -1}),
    "commit is a number": changed(made={"commit": 1}),
    "sha256 is a number": changed(outputs={"a": 1}),
    "outputs are a list": changed(outputs=["a"]),
    "log is text": changed(log="log"),
    "params are text": changed(params="p"),
    "inputs are text": changed(inputs="in"),
    "input list of numbers": changed(input_list=[1]),
    "input with a NUL": changed(inputs={"in\0": "sha256:1"}),
    "input of half a character": changed(inputs={"\ud800": "sha256:1"}),
    "output that forges a line": changed(outputs={"a\nprovenance: all is well": "1"}),
    "output without a name": changed(outputs={"": "1"}),
    "format of 5000 letters": ONE.replace('"lock_format": 1', f'"lock_format": "{"x" * 5000}"'),
}


@pytest.mark.parametrize("text", MISSHAPEN.values(), ids=MISSHAPEN)
def test_start_with_a_misshapen_lock_goes_on_and_says_one_short_line(here, text):
    (here / "a").write_text("1")
    (here / "in").write_text("2")
    text = text.replace("a" * 64, sha256_file(here / "a"))
    provenance.LOCK.write_text(text)
    said: list[str] = []
    assert provenance.restore(Policy(), said.append) == []
    assert len(said) == 1
    assert said[0].startswith("provenance.lock.json: ")
    assert "it is not used" in said[0]
    assert "\n" not in said[0]
    assert len(said[0]) < 500


def test_seconds_that_are_not_known_are_no_damage():
    for made in ({}, {"seconds": None}, {"seconds": 0}, {"seconds": 1.5, "machine": "m", "commit": ""}):
        assert parse_lock(changed(made=made))["a"].made == made


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes_in_place_of_the_lock_are_an_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.lock.json"
    path.write_bytes(content)
    with pytest.raises(EqaError):
        provenance.read_lock(path)


# --- Snakemake's records ---


@pytest.mark.parametrize("key", ["a", "results/adapter/manifest.json", "x" * 300, "ü/é " * 90])
def test_record_path_is_snakemakes_own(tmp_path, key):
    from snakemake.persistence.file import FilePersistence

    theirs = FilePersistence(path=tmp_path / ".snakemake")
    assert Path(theirs._record_path(str(tmp_path), key)) == provenance.record_path(tmp_path, key)


def test_known_record_format_is_that_of_the_pinned_snakemake():
    from snakemake.persistence import RECORD_FORMAT_VERSION

    assert RECORD_FORMAT_VERSION in provenance.RECORD_FORMATS


def test_local_keys_finds_long_names(here):
    keys = ["a/b.json", "y" * 400]
    for key in keys:
        provenance.write_record(key, {"rule": "r"})
    assert sorted(provenance.local_keys()) == sorted(keys)
    assert provenance.read_record(keys[1]) == {"rule": "r"}


def test_mark_can_be_taken_back():
    record = {"rule": "r", "params": ["1"]}
    twice = marked(marked(record, "one"), "two")
    assert twice["params"] == ["<two>"]
    assert unmarked(twice) == record
    assert unmarked(record) is record


def test_half_written_record_is_no_record(here):
    provenance.write_record("a", {"rule": "r"})
    provenance.record_path(provenance.METADATA, "a").write_text('{"rule": "r')
    assert provenance.read_record("a") == {}


@pytest.mark.parametrize("record", [{"rule": 1}, {"endtime": "soon"}, {"input_checksums": None}, {"params": None}])
def test_strange_local_record_stops_nothing(here, record):
    (here / "a").write_text("x")
    provenance.write_record("a", record)
    assert provenance.restore(Policy(), lambda line: None) == ["a"]


# --- restore ---


def old_file(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9, 1e9))
    return sha256_file(path)


def test_record_is_put_back_only_where_the_file_is_the_locks(here):
    sha256 = old_file(here / "out", "right")
    (here / "provenance.lock.json").write_text(lock_text([job("out", sha256)]))
    assert provenance.restore(Policy()) == []
    assert provenance.read_record("out")["rule"] == "rule_x"
    old_file(here / "out", "wrong")
    os.utime(here / "out", (2e9, 2e9))
    said: list[str] = []
    assert provenance.restore(Policy(), said.append) == ["out"]
    assert provenance.restore(Policy(), said.append) == ["out"]
    assert "dvc checkout" in said[0]
    old_file(here / "out", "right")
    assert provenance.restore(Policy()) == []
    assert provenance.read_record("out")["params"] == ["'p'"]


def test_foreign_file_in_a_clone_without_records_is_marked(here):
    old_file(here / "out", "foreign")
    (here / "provenance.lock.json").write_text(lock_text([job("out")]))
    assert provenance.restore(Policy(), lambda line: None) == ["out"]
    assert provenance.restore(Policy(), lambda line: None) == ["out"]


def test_running_job_is_left_alone(here):
    old_file(here / "out", "foreign")
    (here / "provenance.lock.json").write_text(lock_text([job("out")]))
    marker = provenance.record_path(provenance.INCOMPLETE, "out")
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert provenance.restore(Policy()) == []
    assert provenance.read_record("out") == {}


def test_changed_input_that_looks_old_is_seen(here):
    sha256 = old_file(here / "out", "x")
    (here / "in").write_text("changed")
    os.utime(here / "in", (5e8, 5e8))
    (here / "provenance.lock.json").write_text(lock_text([job("out", sha256)]))
    provenance.restore(Policy())
    assert "input in changed" in provenance.read_record("out")["params"][0]


# --- folders ---


def test_folder_fault_names_the_missing_and_the_changed_file(here):
    old_file(here / "f/a", "a")
    old_file(here / "f/b", "b")
    write_manifest(here / "f")
    fault = lambda policy=None: folder_fault("f/manifest.json", policy or Policy(), StatCache(Path("cache")))  # noqa: E731
    assert fault() is None
    (here / "f/a").write_text("A")
    assert "f/a is not the file" in fault()
    (here / "f/a").unlink()
    assert "f/a, which it lists, is missing" in fault()
    assert fault(Policy({"f": ("*",)})) is not None, "some are here: that is damage"
    (here / "f/b").unlink()
    assert fault(Policy({"f": ("*",)})) is None, "none is here: pinned, not stored"
    assert fault() is not None


NO_MANIFESTS = [
    "{}",
    "[]",
    '{"files": 3}',
    '{"files": {"a": 1}}',
    '{"files": {"a\\u0000": {}}}',
    '{"files": {"\\ud800": {}}}',
    '{"status": "disabled"}',
    "{",
]


@pytest.mark.parametrize("content", NO_MANIFESTS)
def test_what_is_no_manifest_has_no_fault(here, content):
    old_file(here / "f/manifest.json", content)
    assert folder_fault("f/manifest.json", Policy(), StatCache(Path("cache"))) is None


# --- stat cache ---


def test_stat_cache_reads_a_file_once_and_again_when_it_changed(here):
    old_file(here / "a", "one")
    first = StatCache(Path("cache"))
    sha256 = first.sha256("a")
    first.save()
    second = StatCache(Path("cache"))
    assert second.sha256("a") == sha256
    assert second.hashed_bytes == 0
    (here / "b").write_text("two")
    os.utime(here / "b", (1e9, 1e9))
    os.replace(here / "b", here / "a")  # same size and time, another inode
    third = StatCache(Path("cache"))
    assert third.sha256("a") == sha256_file(here / "a") != sha256


def test_fresh_file_is_not_remembered(here):
    """It could change again within the same tick of the file system's clock."""
    (here / "a").write_text("one")
    cache = StatCache(Path("cache"))
    cache.sha256("a")
    cache.save()
    assert not (here / "cache").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 1}', '{"version": 1, "files": 3}', '{"version": 1, "files": {"a": 3}}', "\0"]
)
def test_damaged_stat_cache_is_an_empty_one(here, content):
    sha256 = old_file(here / "a", "one")
    (here / "cache").write_text(content)
    assert StatCache(Path("cache")).sha256("a") == sha256


def test_unwritable_stat_cache_costs_only_speed(here):
    sha256 = old_file(here / "a", "one")
    (here / "file").write_text("")
    cache = StatCache(Path("file/cache"))
    assert cache.sha256("a") == sha256
    cache.save()


def test_gone_folder_and_unreadable_are_none(here):
    (here / "folder").mkdir()
    (here / "dangling").symlink_to("nowhere")
    cache = StatCache(Path("cache"))
    assert [cache.sha256(name) for name in ("gone", "folder", "dangling")] == [None, None, None]


# --- export ---


def ran(output: str, text: str, **more: object) -> None:
    """What Snakemake leaves after a job."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    end = path.stat().st_mtime
    body = {"rule": "r", "code": "c", "params": ["1"], "input": [], "input_checksums": {}, "log": ["l"]}
    provenance.write_record(output, {**body, "record_format_version": 6, "starttime": end - 2, "endtime": end, **more})


def test_export_keeps_what_is_not_here_and_replaces_what_was_made_again(here):
    ran("a", "one", params=["a"])
    ran("b", "two", params=["b"])
    assert provenance.export(Policy())
    assert sorted(provenance.read_lock()) == ["a", "b"]
    assert not provenance.export(Policy()), "nothing new"
    Path("a").unlink()
    ran("b", "three", params=["b2"])
    provenance.export(Policy())
    jobs = provenance.read_lock()
    assert jobs["b"].params == ["b2"]
    assert "a" in jobs, "a partial clone forgets nothing"
    provenance.export(Policy(), alive=["b"])
    assert sorted(provenance.read_lock()) == ["b"], "no rule makes it, no file is here"


def test_job_whose_input_the_lock_cannot_name_is_left_out_of_it(here):
    ran("a", "1")
    ran("b", "2", input=["x\ny"], input_checksums={"x\ny": "sha256:1"})
    provenance.export(Policy())
    assert list(provenance.read_lock()) == ["a"]


def test_tampered_and_marked_files_are_not_exported(here):
    ran("a", "one", params=["a"])
    ran("b", "two", params=["b"])
    os.utime("a", (1e9, 1e9))
    provenance.write_record("b", marked(provenance.read_record("b"), "why"))
    provenance.export(Policy())
    assert provenance.read_lock() == {}


def test_same_thing_made_again_keeps_its_first_maker(here):
    ran("a", "one")
    provenance.export(Policy())
    before = Path("provenance.lock.json").read_bytes()
    time.sleep(0.01)
    ran("a", "one", starttime=0.0)
    provenance.export(Policy())
    assert Path("provenance.lock.json").read_bytes() == before


def test_job_that_ended_while_another_run_wrote_the_lock_keeps_its_record(here, monkeypatch):
    """The lock does not know that job, although it is written after the job's end."""
    ran("a", "same", params=["before"])
    provenance.export(Policy())
    ran("b", "of this run")
    real = provenance._local_jobs

    def looks_just_before(*arguments: object) -> list:
        jobs = real(*arguments)
        ran("a", "same", params=["after"])
        return jobs

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_local_jobs", looks_just_before)
        assert provenance.export(Policy())
    assert provenance.read_lock()["a"].params == ["before"]
    provenance.restore(Policy())
    assert provenance.read_record("a")["params"] == ["after"]
    assert provenance.export(Policy())
    assert provenance.read_lock()["a"].params == ["after"]


def test_conflicted_lock_is_left_alone_by_a_failed_run_and_written_anew_by_a_good_one(here):
    ran("a", "one")
    Path("provenance.lock.json").write_text("<<<<<<< HEAD\n")
    provenance.export(Policy(), success=False)
    assert Path("provenance.lock.json").read_text() == "<<<<<<< HEAD\n"
    provenance.export(Policy(), success=True)
    assert sorted(provenance.read_lock()) == ["a"]


def test_pins_are_copies_of_unpublished_manifests_and_come_back(here):
    policy = Policy({"f": ("*",)})
    old_file(here / "f/a", "a")
    write_manifest(here / "f")
    ran("f/manifest.json", (here / "f/manifest.json").read_text())
    provenance.export(policy)
    assert (here / "results/pins/f/manifest.json").read_bytes() == (here / "f/manifest.json").read_bytes()
    for path in (here / "f/a", here / "f/manifest.json"):
        path.unlink()
    provenance.restore(policy)
    assert (here / "f/manifest.json").is_file()
    assert provenance.absent_folders(policy) == ["f"]
    (here / "f/manifest.json").unlink()
    (here / "results/pins/f/manifest.json").write_text("{}")
    provenance.restore(policy, lambda line: None)
    assert not (here / "f/manifest.json").exists(), "a pin that is not the lock's is not believed"
    provenance.export(Policy())
    assert sorted(path.name for path in (here / "results/pins").rglob("*") if path.is_file()) == ["README.txt"]


# --- DVC ---


def test_no_commit_inside_dvc_nor_when_switched_off(here, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert versions.dvc_commits() == (False, "")
    (here / "dvc.yaml").write_text("")
    assert "no git and DVC" in versions.dvc_commits()[1]
    monkeypatch.setenv("EQA_DVC_COMMIT", "0")
    assert "EQA_DVC_COMMIT=0" in versions.dvc_commits()[1]
    monkeypatch.setenv("DVC_ROOT", "x")
    assert versions.dvc_commits() == (False, "")


def test_missing_dvc_is_said(here, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(versions, "dvc_command", list)
    (here / "dvc.yaml").write_text("")
    assert "dvc is not installed" in versions.dvc_commits()[1]


def test_temporary_experiment_borrows_environments_of_equal_locks(here):
    temporary = here / ".dvc/tmp/exps/standalone/x"
    for folder, text in ((here, "1"), (here / "envs/train", "2"), (here / "envs/gguf", "3")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "uv.lock").write_text(text)
        (folder / ".venv").mkdir()
    for folder, text in ((temporary, "1"), (temporary / "envs/train", "2"), (temporary / "envs/gguf", "changed")):
        folder.mkdir(parents=True)
        (folder / "uv.lock").write_text(text)
    assert versions.link_environments(temporary) == ["envs/train/.venv", ".venv"]
    assert (temporary / ".venv").resolve() == (here / ".venv").resolve()
    assert versions.link_environments(here) == []


# --- lineage ---


def test_lineage_says_what_made_each_artifact(here, capsys):
    ran("results/a.json", "one", input=["uv.lock"], input_checksums={"uv.lock": "sha256:" + "c" * 64})
    provenance.export(Policy())
    assert lineage.main(["--output", "results/lineage.json"]) == 0
    found = json.loads(Path("results/lineage.json").read_text())
    assert found["entity"]["file:results/a.json"]["eqa:sha256"] == sha256_file(Path("results/a.json"))
    (activity,) = found["activity"].values()
    assert activity["eqa:rule"] == "r"
    assert activity["eqa:environmentLock"] == "uv.lock"
    assert {"eqa:machine", "eqa:seconds", "eqa:gitCommit", "eqa:codeSha256", "eqa:parameter"} <= set(activity)
    assert [used["prov:entity"] for used in found["used"].values()] == ["file:uv.lock"]


def test_lineage_refuses_files_that_it_knows_nothing_of(here, capsys):
    assert lineage.main(["--output", "l.json"]) == 2
    ran("a", "one")
    provenance.export(Policy())
    Path("a").write_text("other")
    assert lineage.main(["--output", "l.json"]) == 2
    assert "is not the file of provenance.lock.json" in capsys.readouterr().err
