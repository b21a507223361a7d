"""docs/reliability.md and the fault matrix speak of the demo's own rules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.faults import matrix, table
from tests.faults.jobs import artifact_inputs, chosen, parse_plan, plan, producers, repair_seconds
from tests.lib.project import ROOT

PLAN = """
[Tue Nov 24 20:10:16 2026]
rule sample:
    input: scripts/sample.py, raw.json
    output: frames/0.json, frames/0.jpg
    log: logs/sample.log
    jobid: 1
[Tue Nov 24 20:10:16 2026]
rule raw:
    output: raw.json
    jobid: 2
localrule all:
    input: end.json
    jobid: 0
rule train:
    input: frames/0.json, raw.json
    output: end.json
    jobid: 3
"""


@pytest.fixture(scope="module")
def demo_jobs():
    return plan(ROOT)


def test_table_lists_exactly_the_demos_rules_and_the_matrixs_faults(demo_jobs):
    rules, faults = table.read(ROOT / "docs/reliability.md")
    assert rules == list(chosen(demo_jobs))
    assert tuple(faults) == matrix.FAULTS


def test_no_cell_of_the_table_says_broken():
    page = (ROOT / "docs/reliability.md").read_text()
    assert "BROKEN" not in page.split(table.BEGIN)[1].split(table.END)[0]


def test_each_sixth_has_every_rule_once_and_all_six_have_every_case(demo_jobs):
    rules = list(chosen(demo_jobs))
    parts = [[(r, f) for r in rules for f in matrix.FAULTS if matrix.sixth_of(rules, r, f) == n] for n in range(6)]
    assert all([rule for rule, _ in part] == rules for part in parts)
    assert sorted(case for part in parts for case in part) == sorted((r, f) for r in rules for f in matrix.FAULTS)


def test_jobs_are_read_from_snakemakes_words():
    jobs = parse_plan(PLAN)
    assert [(job.rule, job.outputs) for job in jobs] == [
        ("sample", ("frames/0.json", "frames/0.jpg")),
        ("raw", ("raw.json",)),
        ("train", ("end.json",)),
    ]
    makers = producers(jobs)
    assert artifact_inputs(jobs[0], makers) == ["raw.json"]
    seconds = {"raw.json": 2.0, "frames/0.jpg": 30.0, "end.json": 100.0}
    assert repair_seconds("raw.json", jobs[2], jobs, seconds) == 32.0, "raw.json is read by a rule between the two"
    assert repair_seconds("frames/0.json", jobs[2], jobs, seconds) == 30.0


def test_a_result_of_another_source_is_marked_and_a_missing_one_is_not_run():
    results = {("r", "f"): {"outcome": "made again", "key": "old", "good": True}}
    assert table.cell(results, "r", "f", "old") == "made again"
    assert table.cell(results, "r", "f", "new") == "made again *"
    assert table.cell(results, "r", "g", "new") == "not run"
    assert "2 cases: 1 kept every promise, 0 broke one, 1 not run." in table.text(
        ["r"], ["f", "g"], results, {"r": "x"}
    )


HOOKED = """
import os, sys
open("x.part", "w").write("1")
os.replace("x.part", "x")
open("y.part", "w").write("2")
os.replace("y.part", "y")
"""


@pytest.mark.parametrize(("at", "left"), [(1, ["x.part"]), (2, ["x", "y.part"]), (3, ["x", "y"])])
def test_kill_comes_between_writing_and_naming(tmp_path, at, left):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/toy.py").write_text(HOOKED)
    told = tmp_path / "told"
    told.mkdir()
    armed = {
        "PYTHONPATH": str(matrix.HOOK),
        "PYTHONDONTWRITEBYTECODE": "1",
        "FAULT_RULE": "toy",
        "FAULT_MODE": "kill_job",
        "FAULT_AT": str(at),
        "FAULT_DIR": str(told),
    }
    done = subprocess.run([sys.executable, "-m", "scripts.toy"], cwd=tmp_path, env=os.environ | armed)
    assert done.returncode == (-signal.SIGKILL if at < 3 else 0)
    assert (told / "fired.json").exists() == (at < 3), "a kill that never came is told as such"
    assert sorted(set(os.listdir(tmp_path)) - {"scripts", "told"}) == left
