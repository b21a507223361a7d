"""write_report and what it gathers: files in, page out, whatever is missing."""

from __future__ import annotations

import json
import re

import pytest

from scripts import write_report
from scripts.lib import report_data

CONFIG = '{"report":{"frames":"embed"}}'


def arguments(folder, config=CONFIG) -> list[str]:
    return [
        *("--results-dir", str(folder / "results"), "--base", str(folder / "models/base/manifest.json")),
        *("--benchmarks-dir", str(folder / "benchmarks"), "--logs-dir", str(folder / "logs")),
        *("--config", config, "--output", str(folder / "report/index.html")),
    ]


def put(folder, name: str, value: object) -> None:
    path = folder / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_empty_results_folder_gives_a_page_that_names_what_is_missing(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert write_report.main(arguments(tmp_path)) == 0
    page = (tmp_path / "report/index.html").read_text()
    for part in ("metrics/base.json", "split/split.json", "train_log/curves.json", "merged/verify.json"):
        assert f"results/{part}" in page
    assert json.loads(capsys.readouterr().out)["questions"] == 0


def test_missing_results_folder_is_an_error_in_one_line(tmp_path, capsys):
    assert write_report.main(arguments(tmp_path)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no such folder" in told
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("config", ["{}", '{"report":{"frames":"inline"}}', '{"report":null}'])
def test_unknown_picture_mode_is_refused(tmp_path, capsys, config):
    (tmp_path / "results").mkdir()
    assert write_report.main(arguments(tmp_path, config)) == 2
    assert "report.frames=" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "broken", ["", "{", "[1, 2]", "null", '"text"', '{"overall": 3}', '{"pairs": [1]}', "\x00\xff"]
)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics/tuned.json",
        "metrics/tuned.questions.jsonl",
        "metrics/llm_match_base.json",
        "metrics/comparison.json",
        "predictions/base.jsonl",
        "index/questions.json",
        "index/episodes.json",
        "split/split.json",
        "frames/manifest.json",
        "sft/token_budget.json",
        "adapter/manifest.json",
        "adapter/guards.json",
        "train_log/curves.json",
        "merged/verify.json",
        "gguf/manifest.json",
    ],
)
def test_broken_file_does_not_stop_the_page(tmp_path, name, broken):
    put(tmp_path, name, broken)
    assert write_report.main(arguments(tmp_path)) == 0


@pytest.mark.parametrize("value", [None, 3, "x", [], [None], [3], {}, {"a": None}, {"train": 3}, {"test": [3]}])
def test_values_of_a_wrong_kind_do_not_stop_the_page(tmp_path, value):
    put(tmp_path, "split/split.json", {"parts": value, "counts": value, "leakage": value, "by": value})
    put(tmp_path, "index/questions.json", {"questions": value})
    put(tmp_path, "index/episodes.json", {"episodes": value})
    put(tmp_path, "frames/manifest.json", {"episodes": value})
    put(tmp_path, "metrics/base.json", {"overall": value, "by_category": value, "ceiling": value, "meta": value})
    put(tmp_path, "metrics/llm_match_base.json", {"overall": value, "by_category": value, "marks": value})
    put(tmp_path, "metrics/comparison.json", {"pairs": {"tuned_minus_base": value}, "score": value})
    put(tmp_path, "train_log/curves.json", {"train": value, "val": value})
    put(tmp_path, "sft/token_budget.json", {"longest": value, "cutoff_len": value, "sizes": value})
    assert write_report.main(arguments(tmp_path)) == 0


def test_scores_without_a_number_and_half_surrogates_are_shown_as_missing(tmp_path):
    row = {"question_id": "q", "question": "Why \ud800?", "accepted": ["a\u0000b"], "prediction": None, "category": "c"}
    put(tmp_path, "metrics/base.questions.jsonl", json.dumps(row | {"exact_match": None, "f1": float("nan")}))
    put(tmp_path, "metrics/base.json", {"overall": {"exact_match": {"value": None}, "f1": {"value": 12.5}}})
    assert write_report.main(arguments(tmp_path)) == 0
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    record = page_data(page)["questions"][0]
    assert record["p"] == [None, None, None]
    assert record["m"] == [[None, None], None, None]
    assert "\0" not in page


def test_text_of_others_cannot_leave_its_place(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    row = {
        "question_id": evil,
        "question": evil,
        "accepted": [evil],
        "prediction": evil,
        "category": evil,
        "source": evil,
    }
    put(tmp_path, "metrics/tuned.questions.jsonl", json.dumps(row | {"episode_history": evil, "exact_match": 0}))
    put(tmp_path, "metrics/tuned.json", {"overall": {evil: {"value": 1}}, "by_category": {evil: {evil: {"value": 1}}}})
    put(tmp_path, "config.json", {"preset": evil, evil: evil})
    put(tmp_path, "adapter/guards.json", {evil: evil})
    put(tmp_path, "index/episodes.json", {"episodes": [{"episode_history": evil, "status": evil, "reason": evil}]})
    assert write_report.main(arguments(tmp_path)) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "<script>alert" not in page
    assert "<!--" not in page
    assert page_data(page)["questions"][0]["p"][1] == evil


def test_picture_outside_the_frames_folder_is_not_read(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8secret")
    put(tmp_path, "metrics/base.questions.jsonl", json.dumps({"question_id": "q", "episode_history": "e"}))
    names = ["../../secret.jpg", str(tmp_path / "secret.jpg"), "e\\..\\x.jpg", "a\u0000b.jpg"]
    put(tmp_path, "frames/manifest.json", {"files": {}, "episodes": {"e": {"frames": names}}})
    for mode in ("embed", "link"):
        assert write_report.main(arguments(tmp_path, json.dumps({"report": {"frames": mode}}))) == 0
        page = (tmp_path / "report/index.html").read_text()
        assert "c2VjcmV0" not in page  # base64 of "secret"
        assert not list((tmp_path / "report").rglob("secret.jpg"))
        assert f"and {len(names) - 1} more pictures" in page


def test_page_holds_no_path_of_this_machine(tmp_path):
    put(tmp_path, "metrics/base.json", "{")
    assert write_report.main(arguments(tmp_path)) == 0
    assert str(tmp_path) not in (tmp_path / "report/index.html").read_text()


def test_judgement_joins_the_other_scores(tmp_path):
    put(tmp_path, "metrics/base.questions.jsonl", json.dumps({"question_id": "q", "exact_match": 0}))
    put(tmp_path, "metrics/base.json", {"overall": {"exact_match": {"value": 0.0}}, "by_category": {"c": {"count": 1}}})
    judged = {"overall": {"value": 75.0}, "by_category": {"c": {"value": 75.0}}, "marks": {"q": 4}}
    put(tmp_path, "metrics/llm_match_base.json", judged)
    assert write_report.main(arguments(tmp_path)) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "LLM-Match" in page
    assert page_data(page)["questions"][0]["m"][0] == [0, 75]


def test_embedded_json_has_no_sign_that_ends_a_script():
    value = {"a": "</script><!-- & \u2028\u2029 é 沙"}
    packed = write_report.embed_json(value)
    assert not set("<>&\u2028\u2029") & set(packed)
    assert json.loads(packed) == value


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "under 0.1 s"),
        (9.9, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert write_report.duration(seconds) == words


def test_benchmark_of_snakemake_and_facts_of_the_log_are_joined(tmp_path):
    (tmp_path / "benchmarks/score").mkdir(parents=True)
    (tmp_path / "logs/score").mkdir(parents=True)
    (tmp_path / "benchmarks/score/base.tsv").write_text("s\th:m:s\tmax_rss\n0.5\t0:00:00\tNA\n0.7\t0:00:00\tNA\n")
    (tmp_path / "logs/score/base.log").write_text(
        'noise\n{"script": "score", "seconds": 0.4, "peak_mb": 99}\ntrailing\n'
    )
    (tmp_path / "logs/split_questions.log").write_text("no facts {here}\n")
    found = report_data.timing(tmp_path / "benchmarks", tmp_path / "logs")
    assert found["rows"] == [
        {"rule": "score", "job": "base", "seconds": 0.7, "peak_mb": 99, "share": 100, "long": False}
    ]


def test_step_run_twice_after_a_resume_is_drawn_once():
    curves = {"train": [{"step": 2, "loss": 3.0}, {"step": 4, "loss": 2.5}, {"step": 4, "loss": 2.0}], "val": []}
    chart = report_data.loss_chart(curves, 4)
    assert [(point["step"], point["loss"]) for point in chart["series"][0]["points"]] == [(2, 3.0), (4, 2.0)]


@pytest.mark.parametrize("losses", [[1.0], [2.0, 2.0], [0.0, 0.0], [-1.0, -2.0], [1e9, 1e-9]])
def test_every_point_of_a_curve_lies_inside_its_box(losses):
    chart = report_data.loss_chart({"train": [{"step": i, "loss": loss} for i, loss in enumerate(losses)]}, None)
    for point in chart["series"][0]["points"]:
        assert 0 <= point["x"] <= 100
        assert -0.001 <= point["y"] <= 100.001


@pytest.mark.parametrize(
    ("change", "tone", "words"),
    [
        ({"difference": 5.0, "low": 1.0, "high": 9.0}, "better", "Tuned is better than base by 5.0 points"),
        ({"difference": -5.0, "low": -9.0, "high": -1.0}, "worse", "Tuned is worse than base by 5.0 points"),
        ({"difference": 5.0, "low": -1.0, "high": 9.0}, "same", "No detectable difference"),
    ],
)
def test_headline_says_what_the_interval_says(change, tone, words):
    labels = report_data.model_labels()
    row = {
        "label": "Exact match",
        "scores": {"base": {"value": 20.0}, "tuned": {"value": 25.0}},
        "change": report_data.change_of(change),
    }
    told = report_data.headline(row, labels["base"], labels["tuned"], 50, 7, 0.95)
    assert told["tone"] == tone
    assert words in told["title"]
    assert "50 test questions about 7 rooms" in told["detail"]


def test_one_room_is_said_to_be_too_few():
    labels = report_data.model_labels()
    row = {
        "label": "Exact match",
        "scores": {"base": {"value": 0.0}, "tuned": {"value": 33.3}},
        "change": report_data.change_of({"difference": 33.3, "low": -100, "high": 100, "minimum_detectable": 100}),
    }
    told = report_data.headline(row, labels["base"], labels["tuned"], 3, 1, 0.95)
    assert "No detectable difference" in told["title"]
    assert "One room is too few" in told["detail"]
