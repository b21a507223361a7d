"""The report says what made each file that it shows, also in a first run, when no lock is written yet."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from scripts import write_report
from scripts.lib import report_data
from scripts.lib.files import sha256_file
from scripts.lib.provenance import LOCK, RECORD_FORMATS, Job, lock_text, write_record
from scripts.lineage import jobs_behind, jobs_so_far


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(output: str, text: str, *inputs: str, rule: str = "make_it", log: str = "logs/make_it.log") -> None:
    """A file and Snakemake's record of the job that wrote it."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    sums = {name: f"sha256:{sha256_file(Path(name))}" for name in inputs}
    record = {"rule": rule, "code": "echo", "params": [f"'{output}'"], "input": sorted(inputs), "input_checksums": sums}
    end = os.lstat(path).st_mtime
    times = {"starttime": end - 2, "endtime": end}
    write_record(output, {**record, **times, "log": [log], "record_format_version": max(RECORD_FORMATS)})


def run_of_three(here: Path) -> None:
    """raw -> index -> metrics, as a first run leaves them before its report."""
    make("data/raw/questions.json", "[]", rule="fetch_questions", log="logs/fetch_questions.log")
    index = ("results/index/questions.json", '{"questions": []}', "data/raw/questions.json")
    make(*index, rule="index_episodes", log="logs/index_episodes.log")
    scores = ("results/metrics/base.json", "{}", "results/index/questions.json")
    make(*scores, rule="score", log="logs/score/base.log")


def locked(*outputs: str, sha256: str = "") -> None:
    """A lock with a job for each file, with its hash or another."""
    jobs = [
        Job({name: sha256 or sha256_file(Path(name))}, {}, "old_rule", "echo", [], [], {"commit": "c0ffee"})
        for name in outputs
    ]
    LOCK.write_text(lock_text(jobs))


def page(here: Path) -> str:
    arguments = ["--results-dir", "results", "--benchmarks-dir", "benchmarks", "--logs-dir", "logs"]
    config = ["--config", '{"report": {"frames": "none"}}', "--output", "results/report/index.html"]
    assert write_report.main([*arguments, "--lock", str(LOCK), *config]) == 0
    return (here / "results/report/index.html").read_text()


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the lineage table by artifact."""
    found = re.search(r'<details id="lineage">(.*?)</table>', text, flags=re.DOTALL)
    lines = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", found.group(1) if found else "", flags=re.DOTALL)
    cells = [[re.sub(r"<[^>]+>", "", cell) for cell in re.split(r"</?t[hd][^>]*>", line)] for line in lines]
    return {line[0]: [cell for cell in line[1:] if cell] for line in cells}


def test_first_run_shows_lineage_from_raw_data_to_metrics(here):
    run_of_three(here)
    found = rows(page(here))
    names = ["data/raw/questions.json", "results/index/questions.json", "results/metrics/base.json"]
    assert list(found) == names
    for name in names:
        assert sha256_file(Path(name))[:12] in found[name]
    assert found["results/metrics/base.json"][:2] == ["score", "results/index/questions.json"]


def test_file_that_its_job_did_not_write_is_named_and_has_no_lineage(here):
    run_of_three(here)
    Path("results/metrics/base.json").write_text('{"overall": {}}')
    text = page(here)
    assert "results/metrics/base.json" not in rows(text)
    assert "Not what their job wrote, so nobody knows what made them: <code>results/metrics/base.json</code>." in text


def test_record_of_this_run_is_believed_before_an_older_lock(here):
    run_of_three(here)
    locked("results/metrics/base.json", sha256="0" * 64)
    text = page(here)
    assert rows(text)["results/metrics/base.json"][0] == "score"
    assert "Not what their job wrote" not in text


def test_lock_is_believed_where_dvc_put_its_file_back(here):
    run_of_three(here)
    Path("results/metrics/base.json").write_text('{"overall": {}}')  # another time than the record's
    locked("results/metrics/base.json")
    text = page(here)
    assert rows(text)["results/metrics/base.json"][:2] == ["old_rule", "c0ffee"]
    assert "Not what their job wrote" not in text


def test_lock_of_another_file_is_not_shown(here):
    Path("results/metrics").mkdir(parents=True)
    Path("results/metrics/base.json").write_text("{}")
    locked("results/metrics/base.json", sha256="0" * 64)
    text = page(here)
    assert rows(text) == {}
    assert "nobody knows what made them: <code>results/metrics/base.json</code>" in text


def test_damaged_lock_is_named_on_the_page(here):
    Path("results").mkdir()
    LOCK.write_text("<<<<<<< HEAD\n")
    text = page(here)
    assert "provenance.lock.json" in text
    assert "merge conflict" in text


def test_looking_for_lineage_writes_nothing(here):
    run_of_three(here)
    before = sorted(path for path in here.rglob("*"))
    jobs_so_far()
    assert sorted(path for path in here.rglob("*")) == before


def test_jobs_behind_a_file_go_back_to_the_raw_data_and_no_further(here):
    run_of_three(here)
    make("results/other.json", "{}", "data/raw/questions.json", rule="other")
    jobs, unknown = jobs_so_far()
    assert unknown == []
    behind = [job.rule for job in jobs_behind(jobs, ["results/metrics/base.json", "results/never.json"])]
    assert sorted(behind) == ["fetch_questions", "index_episodes", "score"]


def test_times_of_other_recipes_are_not_counted(here):
    run_of_three(here)
    for name, seconds in (
        ("score/base", 3.0),
        ("score/base4bit", 50.0),
        ("predict/base/0007", 90.0),
        ("index_episodes", 1.0),
    ):
        log = Path(f"logs/{name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps({"script": name.split("/")[0], "seconds": seconds, "peak_mb": 10}))
    benchmark = Path("benchmarks/predict/base/0007.tsv")
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\tmax_rss\n90\t800\n")
    text = page(here)
    assert "2 jobs took 4.0 s of work; the largest held 10 MB." in text
    assert "base4bit" not in text
    # by hand, without records, nobody knows which are of this run
    assert len(report_data.timing(Path("benchmarks"), Path("logs"))["rows"]) == 4


def test_commit_with_edits_keeps_its_mark_when_shortened():
    assert report_data.short_commit("0123456789abcdef+") == "0123456789+"
    assert report_data.short_commit("0123456789abcdef") == "0123456789"
    assert report_data.short_commit("") == ""


def test_scripts_and_locks_are_left_to_the_commit():
    inputs = dict.fromkeys(("data/b.json", "scripts/make_a.py", "envs/train/uv.lock"), "sha256:0")
    job = Job({"results/a.json": "ab" * 32}, inputs, "make_a", "echo", [], [], {"commit": "c0ffee" * 6})
    row = {"artifact": "results/a.json", "sha256": "ab" * 32, "made_by": "make_a", "commit": "c0ffeec0ff"}
    assert report_data.lineage_rows([job]) == [row | {"used": ["data/b.json"]}]
