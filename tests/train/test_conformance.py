"""The same questions through LLaMA-Factory's own prediction and through the shared prefix: the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import predict, score_tutorial
from scripts.lib.engines import llamafactory_engine
from scripts.lib.engines.base import Question
from scripts.lib.errors import EqaError
from scripts.lib.tutorial_scores import tutorial_scores
from tests.train import prediction_data


def test_llamafactory_and_transformers_agree_on_the_tuned_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "remove", lambda path: None)  # keep LLaMA-Factory's own output
    tiny = prediction_data.make_tiny(tmp_path / "tiny", questions=5)
    found = {}
    for engine in ("transformers", "llamafactory"):
        settings = prediction_data.config(engine=engine, batch_size=4)
        line = prediction_data.arguments(
            tmp_path / engine, tiny["base"], tiny["test"], settings, "tuned", adapter=tiny["adapter"]
        )
        assert predict.main(line) == 0
        found[engine] = prediction_data.answers(tmp_path / engine / "tuned.jsonl")
        meta = json.loads((tmp_path / engine / "tuned.meta.json").read_text())
        assert (meta["engine"], meta["dtype"], meta["weights"]) == (engine, "float32", "base+adapter")
    assert found["llamafactory"] == found["transformers"]
    assert len(set(found["transformers"].values())) > 5, "a model that says one thing proves nothing"
    # its own metrics, recomputed from its own output
    (output,) = (tmp_path / "llamafactory/work").glob("*/llamafactory/output")
    rows = [json.loads(line) for line in (output / "generated_predictions.jsonl").read_text().splitlines()]
    ours = tutorial_scores([row["predict"] for row in rows], [row["label"] for row in rows])
    theirs = json.loads((output / "predict_results.json").read_text())
    assert ours == pytest.approx({name: theirs[name] for name in ours}, abs=1e-6)


def test_the_usual_tutorials_metrics_are_llamafactory_s_to_a_millionth() -> None:
    from llamafactory.train.sft.metric import ComputeSimilarity

    from scripts.lib.tiny_qwen import make_tokenizer

    predictions = ["No", "the red chair", "Red", "", "  ", "two chairs by the window.", "客厅里的椅子", "a b c d e f g"]
    labels = [
        "No\n",
        "red chair\n",
        "red\n",
        "sofa\n",
        "x\n",
        "two chairs near a window\n",
        "客厅的椅子\n",
        "a b c d e x g\n",
    ]
    tokenizer = make_tokenizer([prediction_data.PROMPT], 400)
    mine, wanted = (tokenizer(texts, padding=True, return_tensors="np")["input_ids"] for texts in (predictions, labels))
    theirs = ComputeSimilarity(tokenizer)(type("Pairs", (), {"predictions": mine, "label_ids": wanted}))
    ours = tutorial_scores(predictions, labels)
    assert theirs["bleu-4"] > 1
    assert theirs["rouge-2"] > 1
    assert ours == pytest.approx({f"predict_{name}": value for name, value in theirs.items()}, abs=1e-6)
    with pytest.raises(ValueError, match="no predictions"):
        tutorial_scores([], [])


def test_score_tutorial_prints_scores_and_the_ceiling(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        {"question_id": f"q{i}", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(["No", "a red chair"])
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    answers = ['{"question_id": "q1", "prediction": "a red chair"}', '{"question_id": "q0", "prediction": "No"}']
    (tmp_path / "p.jsonl").write_text("\n".join(answers))
    line = ["--predictions", str(tmp_path / "p.jsonl"), "--test", str(tmp_path / "test.json")]
    assert score_tutorial.main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 2
    assert found["predict_rouge-1"] == pytest.approx(100, abs=1e-3)
    assert found["predict_rouge-2"] == pytest.approx(50, abs=1e-3), "one word has no bigram"
    assert {name: found[name] for name in found["ceiling"]} == found["ceiling"], "a perfect model is at the ceiling"
    (tmp_path / "p.jsonl").write_text(answers[0])
    assert score_tutorial.main(line) == 2
    assert "question_id q0: has no answer" in capsys.readouterr().err


def test_a_row_that_llamafactory_dropped_is_named() -> None:
    questions = [Question(name, "e", "text", ()) for name in ("q-a", "q-b", "q-c")]
    rows = [{"label": "row 2\n", "predict": "red"}, {"label": "row 0\n", "predict": "blue"}]
    with pytest.raises(EqaError, match=r"dropped 1 of 3 questions without an error \(question_id q-b\)"):
        llamafactory_engine.joined(rows, questions, Path("g.jsonl"))
    whole = [*rows, {"label": "row 1\n", "predict": ""}]
    assert llamafactory_engine.joined(whole, questions, Path("g.jsonl")) == ["blue", "", "red"]
    for bad in ({"label": "row 9", "predict": "x"}, {"label": "row 0", "predict": "x"}, {"label": "row 1"}):
        with pytest.raises(EqaError, match="line 3 belongs to no question"):
            llamafactory_engine.joined([*rows, bad], questions, Path("g.jsonl"))
