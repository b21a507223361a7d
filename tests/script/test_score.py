"""scripts.score, compare_models, predict_majority, export_openeqa: files in, files out, one line for each fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import compare_models, export_openeqa, predict_majority, score
from scripts.lib.files import disabled, write_json

SETTINGS = {"score": {"bootstrap_draws": 300, "confidence": 0.95, "seed": 7}}
MODELS = ("base", "tuned", "blind", "majority")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """24 test questions in 8 spaces, 2 categories, 2 sources; 6 training questions."""
    rows = []
    for number in range(30):
        source = ("hm3d-v0", "scannet-v0")[number % 2]
        rows.append(
            {
                "question_id": f"q{number:02d}",
                "question": "Is it red?" if number % 3 == 0 else "What is it?",
                "answer": "yes" if number % 3 == 0 else f"red thing {number % 5}",
                "extra_answers": ["a red one"] if number % 4 == 1 else [],
                "category": ("object", "state")[number % 2],
                "episode_history": f"{source}/e{number // 3}",
                "source": source,
                "space": f"s{number // 3}",
            }
        )
    write_json(tmp_path / "questions.json", {"questions": rows})
    ids = [row["question_id"] for row in rows]
    write_json(tmp_path / "split.json", {"parts": {"train": ids[24:], "val": [], "test": ids[:24]}})
    write_json(tmp_path / "meta.json", {"model": "m", "engine": "transformers"})
    right = {row["question_id"]: row["answer"] for row in rows[:24]}
    write_predictions(tmp_path / "tuned.jsonl", right)
    write_predictions(tmp_path / "base.jsonl", dict.fromkeys(right, "no idea"))
    write_predictions(tmp_path / "blind.jsonl", {n: t if i % 2 else "no" for i, (n, t) in enumerate(right.items())})
    return tmp_path


def write_predictions(path: Path, answers: dict[str, object]) -> None:
    path.write_text("".join(json.dumps({"question_id": n, "prediction": t}) + "\n" for n, t in answers.items()))


def scored(project: Path, model: str, settings: dict = SETTINGS) -> int:
    line = ["--model", model, "--predictions", project / f"{model}.jsonl", "--meta", project / "meta.json"]
    line += ["--questions", project / "questions.json", "--split", project / "split.json"]
    line += ["--config", json.dumps(settings), "--output", project / f"metrics/{model}.json"]
    return score.main([str(word) for word in [*line, "--rows", project / f"metrics/{model}.questions.jsonl"]])


def compared(project: Path) -> int:
    line = ["--metrics-dir", project / "metrics", "--config", json.dumps(SETTINGS)]
    line += ["--output", project / "metrics.json", "--comparison", project / "metrics/comparison.json"]
    return compare_models.main([str(word) for word in line])


def majority(project: Path) -> int:
    line = ["--questions", project / "questions.json", "--split", project / "split.json"]
    line += ["--output", project / "majority.jsonl", "--meta", project / "majority.meta.json"]
    return predict_majority.main([str(word) for word in line])


def everything(project: Path) -> None:
    assert majority(project) == 0
    for model in MODELS:
        assert scored(project, model) == 0
    for model in ("base", "tuned"):
        write_json(project / f"metrics/llm_match_{model}.json", disabled("deliver.llm_match"))


def test_a_perfect_model_reaches_the_ceiling(project: Path) -> None:
    assert scored(project, "tuned") == 0
    found = json.loads((project / "metrics/tuned.json").read_text())
    assert found["count"] == 24
    for metric, one in found["overall"].items():
        # rouge2: an extra answer of two words could earn more than the answer "yes"
        close = pytest.approx(found["ceiling"][metric], abs=10 if metric == "rouge2" else 1e-6)
        assert one["value"] == close, metric
    assert found["ceiling"]["exact_match"] == 100
    assert found["ceiling"]["rouge2"] < 100
    assert set(found["by_category"]) == {"object", "state"}
    assert found["by_category"]["object"]["count"] == 12
    assert found["meta"]["predictions"]["engine"] == "transformers"
    rows = [json.loads(line) for line in (project / "metrics/tuned.questions.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [f"q{i:02d}" for i in range(24)]
    assert rows[0]["yes_no"] == 100
    assert rows[1]["yes_no"] is None
    assert rows[1]["accepted"] == ["red thing 1", "a red one"]


def test_scoring_twice_gives_the_same_bytes(project: Path) -> None:
    assert scored(project, "blind") == 0
    first = [path.read_bytes() for path in sorted((project / "metrics").iterdir())]
    assert scored(project, "blind") == 0
    assert [path.read_bytes() for path in sorted((project / "metrics").iterdir())] == first


def test_another_seed_moves_the_interval_and_not_the_value(project: Path) -> None:
    assert scored(project, "blind") == 0
    first = json.loads((project / "metrics/blind.json").read_text())["overall"]["f1"]
    assert scored(project, "blind", {"score": SETTINGS["score"] | {"seed": 8}}) == 0
    second = json.loads((project / "metrics/blind.json").read_text())["overall"]["f1"]
    assert first["value"] == second["value"]
    assert first != second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("q03"), "question_id q03: has no answer"),
        (lambda a: a.update(q99="x"), "question_id q99: is no test question"),
        (lambda a: a.update(q03=None), "question_id q03: the prediction is None (NoneType)"),
        (lambda a: a.update(q03=float("nan")), "question_id q03: the prediction is nan (float)"),
        (lambda a: a.update(q03=["red"]), "question_id q03: the prediction is ['red'] (list)"),
        (lambda a: a.update(q03="\ud83d"), "question_id q03: the prediction holds half a character"),
    ],
)
def test_bad_predictions_are_one_line(
    project: Path, capsys: pytest.CaptureFixture, change: object, message: str
) -> None:
    answers: dict[str, object] = {f"q{i:02d}": "red" for i in range(24)}
    change(answers)
    write_predictions(project / "base.jsonl", answers)
    assert scored(project, "base") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "base.jsonl" in line
    assert not (project / "metrics/base.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": "q00", "prediction": "red"}\n' * 2, "q00: answers more than once"),
        ("", "q00, q01, q02 and 21 more: has no answer"),
        ("[1]\n", "line 1 of this prediction file is no JSON object"),
        ("{broken\n", "line 1 of this prediction file is not JSON"),
        ('{"prediction": "red"}\n', "line 1 has no text 'question_id'"),
        ('{"question_id": "q00"}\n', "question_id q00 has no 'prediction'"),
    ],
)
def test_broken_prediction_files_are_one_line(
    project: Path, capsys: pytest.CaptureFixture, text: str, message: str
) -> None:
    (project / "base.jsonl").write_text(text)
    assert scored(project, "base") == 2
    assert message in capsys.readouterr().err


def test_long_empty_and_foreign_answers_are_scored(project: Path) -> None:
    answers = {f"q{i:02d}": "" for i in range(24)} | {"q01": "word " * 10000, "q02": "红色 🪑\u0000\u202e", "q03": "."}
    write_predictions(project / "base.jsonl", answers)
    assert scored(project, "base") == 0
    assert json.loads((project / "metrics/base.json").read_text())["overall"]["exact_match"]["value"] == 0


def test_an_empty_test_part_is_told(project: Path, capsys: pytest.CaptureFixture) -> None:
    write_json(project / "split.json", {"parts": {"train": [], "test": []}})
    assert scored(project, "base") == 2
    assert "part test is empty" in capsys.readouterr().err


def test_a_difference_beyond_its_interval_is_told_and_no_other(project: Path) -> None:
    everything(project)
    assert compared(project) == 0
    pairs = json.loads((project / "metrics/comparison.json").read_text())["pairs"]
    assert set(pairs) == {"tuned_minus_base", "tuned_minus_blind", "tuned_minus_majority", "base_minus_blind"}
    better = pairs["tuned_minus_base"]["overall"]["exact_match"]
    assert better["difference"] == 100
    assert (better["verdict"], better["detectable"]) == ("better", True)
    assert pairs["base_minus_blind"]["overall"]["exact_match"]["verdict"] == "worse"
    assert set(pairs["tuned_minus_base"]["by_source"]) == {"hm3d-v0", "scannet-v0"}
    # the same answers twice
    write_predictions(project / "base.jsonl", {f"q{i:02d}": "red thing 1" for i in range(24)})
    write_predictions(project / "tuned.jsonl", {f"q{i:02d}": "red thing 2" for i in range(24)})
    everything(project)
    assert compared(project) == 0
    same = json.loads((project / "metrics/comparison.json").read_text())["pairs"]["tuned_minus_base"]["overall"]
    assert same["exact_match"]["verdict"] == "no detectable difference"
    assert not same["exact_match"]["detectable"]
    assert same["exact_match"]["low"] <= 0 <= same["exact_match"]["high"]
    assert 0 < same["exact_match"]["minimum_detectable"] < 100


def test_one_space_can_show_nothing(project: Path) -> None:
    data = json.loads((project / "questions.json").read_text())
    for row in data["questions"]:
        row["space"] = "only"
    write_json(project / "questions.json", data)
    everything(project)
    assert compared(project) == 0
    found = json.loads((project / "metrics/comparison.json").read_text())["pairs"]["tuned_minus_base"]["overall"]
    assert found["exact_match"]["verdict"] == "no detectable difference"
    assert (found["exact_match"]["low"], found["exact_match"]["high"]) == (-100, 100)


def test_flat_metrics_are_numbers_with_stable_names(project: Path) -> None:
    everything(project)
    assert compared(project) == 0
    flat = json.loads((project / "metrics.json").read_text())
    assert all(isinstance(value, int | float) for value in flat.values())
    names = {f"{m}_{s}" for m in MODELS for s in ("exact_match", "f1", "bleu4", "rouge1", "rouge2", "rougeL", "chrf")}
    names |= {f"{pair}_exact_match{end}" for pair in ("tuned_minus_base",) for end in ("", "_low", "_high")}
    assert names <= set(flat)
    assert not any("llm_match" in name for name in flat)
    judged = {"overall": {"value": 60.0, "low": 50.0, "high": 70.0}}
    write_json(project / "metrics/llm_match_tuned.json", judged)
    assert compared(project) == 0
    more = json.loads((project / "metrics.json").read_text())
    assert {name: more[name] for name in set(more) - set(flat)} == {
        "tuned_llm_match": 60.0,
        "tuned_llm_match_low": 50.0,
        "tuned_llm_match_high": 70.0,
    }
    assert {name: more[name] for name in flat} == flat
    for model, mark in (("base", 2), ("tuned", 4)):
        write_json(
            project / f"metrics/llm_match_{model}.json", judged | {"marks": {f"q{i:02d}": mark for i in range(23)}}
        )
    assert compared(project) == 0
    assert json.loads((project / "metrics.json").read_text())["tuned_minus_base_llm_match"] == 50


def test_models_scored_on_different_questions_are_not_compared(project: Path, capsys: pytest.CaptureFixture) -> None:
    everything(project)
    path = project / "metrics/tuned.questions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert compared(project) == 2
    assert "tuned.questions.jsonl: question_id q23: has no answer" in capsys.readouterr().err
    assert not (project / "metrics.json").exists()


def test_majority_takes_the_most_common_training_answer_of_the_category(project: Path) -> None:
    assert majority(project) == 0
    rows = [json.loads(line) for line in (project / "majority.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    # training is q24..q29: object has yes, red thing 1, red thing 3; state has red thing 0, yes, red thing 4
    assert {row["prediction"] for row in rows} == {"red thing 0", "red thing 1"}
    meta = json.loads((project / "majority.meta.json").read_text())
    assert (meta["weights"], meta["count"]) == ("none", 24)


def test_most_common_counts_up_to_normalisation_and_breaks_ties_by_alphabet() -> None:
    assert predict_majority.most_common(["Red.", "blue", "red", "the red", "red"]) == "red"
    assert predict_majority.most_common(["b", "c"]) == "b"


def test_majority_without_training_says_so(project: Path, capsys: pytest.CaptureFixture) -> None:
    write_json(project / "split.json", {"parts": {"train": [], "test": ["q00"]}})
    assert majority(project) == 2
    assert "part train is empty" in capsys.readouterr().err


def test_export_is_the_official_list(project: Path) -> None:
    line = ["--predictions", str(project / "blind.jsonl"), "--output", str(project / "blind.openeqa.json")]
    assert export_openeqa.main(line) == 0
    rows = json.loads((project / "blind.openeqa.json").read_text())
    assert len(rows) == 24
    assert rows[0] == {"question_id": "q00", "answer": "no"}


def test_metric_modules_load_by_path_without_a_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    monkeypatch.chdir(root)
    import evaluate

    given = {"predictions": ["Two.", "yes"], "references": [["2", "a pair"], ["yes, it is"]]}
    wanted = {
        "exact_match": {"exact_match": 50.0},
        "token_f1": {"f1": 75.0},
        "yes_no": {"yes_no": 100.0, "count": 1},
    }
    for name in ("exact_match", "token_f1", "yes_no", "bleu4", "chrf", "rouge"):
        found = evaluate.load(str(root / "scripts/metrics" / name)).compute(**given)
        assert found == wanted.get(name, found)
        assert all(0 <= value <= 100 for value in found.values())
