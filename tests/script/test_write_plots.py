"""Door 3 of scripts/write_plots.py."""

from __future__ import annotations

import json

from scripts.write_plots import main


def test_tables_are_flat_and_skip_points_without_a_value(tmp_path):
    curves = {"train": [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}], "val": []}
    values = {"exact_match": {"value": 50.0}, "f1": {"value": 60.0}, "rougeL": {"value": 70.0}}
    scores = {"by_category": {"b": {"count": 2, **values}, "a": {"count": 1, **values, "f1": {"value": None}}}}
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    (tmp_path / "tuned.json").write_text(json.dumps(scores))
    arguments = ["--curves", f"{tmp_path}/curves.json", "--scores", f"{tmp_path}/tuned.json"]
    assert main([*arguments, "--output-dir", f"{tmp_path}/plots"]) == 0
    assert (tmp_path / "plots/train_loss.csv").read_text() == "step,loss\n1,2.5\n"
    assert (tmp_path / "plots/val_loss.csv").read_text() == "step,loss\n"
    assert (tmp_path / "plots/tuned_categories.csv").read_text() == "category,exact_match,f1,rougeL\nb,50.0,60.0,70.0\n"


def test_other_file_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "curves.json").write_text('{"train": [{"x": 1}]}')
    (tmp_path / "tuned.json").write_text("{}")
    arguments = ["--curves", f"{tmp_path}/curves.json", "--scores", f"{tmp_path}/tuned.json"]
    assert main([*arguments, "--output-dir", f"{tmp_path}/plots"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "tuned.json: not what its rule writes" in line


def test_scores_of_each_question_become_a_table(tmp_path):
    (tmp_path / "curves.json").write_text('{"train": [], "val": []}')
    (tmp_path / "tuned.json").write_text('{"by_category": {}}')
    row = {"category": "c", "exact_match": 100.0, "f1": 50.0, "rougeL": 25.0, "question": "?"}
    rows = [{**row, "question_id": key} for key in ("q2", "q1")]
    (tmp_path / "tuned.questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ["--curves", f"{tmp_path}/curves.json", "--scores", f"{tmp_path}/tuned.json"]
    words += ["--rows", f"{tmp_path}/tuned.questions.jsonl", "--output-dir", f"{tmp_path}/plots"]
    assert main(words) == 0
    assert (tmp_path / "plots/tuned_questions.csv").read_text() == (
        "question_id,category,exact_match,f1,rougeL\nq1,c,100.0,50.0,25.0\nq2,c,100.0,50.0,25.0\n"
    )
