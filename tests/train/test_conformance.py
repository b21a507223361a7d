"""The same questions through LLaMA-Factory's own prediction and through the shared prefix: the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import predict
from scripts.lib.engines import llamafactory_engine
from scripts.lib.engines.base import Question
from scripts.lib.errors import EqaError
from tests.train import prediction_data


def test_llamafactory_and_transformers_agree_on_the_tuned_model(tmp_path: Path) -> None:
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
