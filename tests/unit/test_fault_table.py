"""The fault matrix's table says by which sources its cells were made, and what it does not show."""

from __future__ import annotations

import re

from tests.faults import matrix, table
from tests.faults.jobs import Job
from tests.lib.project import ROOT


def result(key: str, commit: str, day: str) -> dict:
    return {"outcome": "made again", "key": key, "good": True, "commit": commit, "day": day}


def test_table_names_the_commits_and_days_of_its_cells():
    one = {("r", "f"): result("new", "aaa", "2026-11-25")}
    assert "Run at commit aaa (2026-11-25)." in table.text(["r"], ["f"], one, {"r": "new"})
    two = one | {("r", "g"): result("old", "bbb+", "2026-11-24")}
    text = table.text(["r"], ["f", "g"], two, {"r": "new"})
    assert "Run at commits bbb+ (2026-11-24) to aaa (2026-11-25)." in text
    assert "made again | made again * |" in text
    assert text.endswith(table.STARRED)


def test_commits_of_one_day_come_in_the_order_of_history(monkeypatch):
    monkeypatch.setattr(table, "ancestors", {"ccc": 7, "aaa": 9, "bbb+": 8}.get)
    results = {("r", name): result("k", name, "2026-11-26") for name in ("aaa", "bbb+", "ccc")}
    text = table.text(["r"], ["aaa", "bbb+", "ccc"], results, {"r": "k"})
    assert "Run at commits ccc (2026-11-26) to aaa (2026-11-26)." in text


def test_history_of_a_commit_is_counted_and_an_unknown_one_comes_first():
    assert table.ancestors("HEAD") > 0
    assert table.ancestors("no-such-commit+") == 0


def test_table_of_results_without_a_commit_names_none():
    old = {("r", "f"): {"outcome": "made again", "key": "k", "good": True}}
    assert "Run at" not in table.text(["r"], ["f"], old, {"r": "k"})


def test_pages_table_says_when_it_was_run_and_what_its_stars_mean():
    body = (ROOT / "docs/reliability.md").read_text().split(table.BEGIN)[1].split(table.END)[0]
    assert re.search(r"^Run at commits? [0-9a-f]{7,}\+? \(2\d{3}-\d\d-\d\d\)", body, re.MULTILINE)
    assert (" * |" in body) == (table.STARRED in body)


def test_commit_of_the_sources_is_short_and_says_whether_files_differ():
    assert re.fullmatch(r"[0-9a-f]{7,12}\+?", matrix.source_commit())


class Fixed:
    """A case with the demo's figures: the model takes minutes to make again, the rest seconds."""

    def __init__(self, rule: str):
        self.job = Job(rule, (matrix.WEIGHTS, "results/sft/train.json", "scripts/x.py"), ("out",), ())
        model, sft = Job("model", (), (matrix.WEIGHTS,), ()), Job("sft", (), ("results/sft/train.json",), ())
        self.makers = {matrix.WEIGHTS: model, "results/sft/train.json": sft}
        self.demo = self
        self.jobs = [self.job, model, sft]
        self.seconds = {matrix.WEIGHTS: 267.0, "results/sft/train.json": 7.0, "out": 1.0}


def test_base_weights_are_struck_for_training_and_prediction_and_only_there():
    assert matrix.chosen_inputs(Fixed("predict")) == (matrix.WEIGHTS, "results/sft/train.json")
    assert matrix.chosen_inputs(Fixed("train_adapter")) == (matrix.WEIGHTS, "results/sft/train.json")
    assert matrix.chosen_inputs(Fixed("write_report")) == ("results/sft/train.json", "results/sft/train.json")
