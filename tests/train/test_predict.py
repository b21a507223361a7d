"""scripts.predict with the transformers engine on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import join_predictions, predict
from tests.lib import raw_data
from tests.train import prediction_data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prediction_data.make_tiny(tmp_path_factory.mktemp("tiny"), questions=5)


def predicted(folder: Path, tiny: dict, model: str = "base", **changes: object) -> dict[str, str]:
    extra = {"adapter": tiny["adapter"]} if model == "tuned" else {}
    line = prediction_data.arguments(
        folder, tiny["base"], tiny["test"], prediction_data.config(**changes), model, **extra
    )
    assert predict.main(line) == 0
    return prediction_data.answers(folder / f"{model}.jsonl")


def test_models_answer_every_question_and_differently(
    tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = {model: predicted(tmp_path, tiny, model) for model in ("base", "tuned", "blind", "base4bit")}
    for model, answers in found.items():
        assert list(answers) == [f"q{e}-{q:02d}" for e in range(3) for q in range(5)], model
        assert any(answers.values()), model
    assert found["base"] != found["tuned"]
    assert found["base"] != found["blind"]
    assert found["base"] != found["base4bit"], "four bits change this model's answers"
    metas = {model: json.loads((tmp_path / f"{model}.meta.json").read_text()) for model in found}
    assert {model: meta["weights"] for model, meta in metas.items()} == {
        "base": "base",
        "tuned": "base+adapter",
        "blind": "base",
        "base4bit": "base",
    }
    assert [metas[model]["images"] for model in ("base", "blind")] == [True, False]
    assert metas["base4bit"]["dtype"] == "nf4"
    assert metas["base"]["dtype"] == "float32"
    assert not list((tmp_path / "work").glob("*/")), "nothing unfinished is left"
    facts = json.loads(capsys.readouterr().out.splitlines()[0])
    assert facts["pictures_encoded"] == 24, "8 pictures of 3 episodes, once each"
    assert facts["prefill_tokens"] < facts["whole_prompt_tokens"] / 3


def test_batch_size_changes_nothing_in_float32(tiny: dict, tmp_path: Path) -> None:
    wanted = predicted(tmp_path / "a", tiny, batch_size=1)
    assert predicted(tmp_path / "b", tiny, batch_size=4) == wanted
    assert predicted(tmp_path / "c", tiny, batch_size=100) == wanted


def test_sampling_is_seeded(tiny: dict, tmp_path: Path) -> None:
    wanted = predicted(tmp_path / "a", tiny, decoding="tutorial", batch_size=4)
    assert predicted(tmp_path / "b", tiny, decoding="tutorial", batch_size=7) == wanted
    assert predicted(tmp_path / "c", tiny, decoding="tutorial", batch_size=7, seed=8) != wanted


def test_an_interrupted_run_goes_on(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = predicted(tmp_path / "whole", tiny, batch_size=4)
    line = prediction_data.arguments(tmp_path, tiny["base"], tiny["test"], prediction_data.config(batch_size=4))
    append, calls = predict.append_journal, []

    def dies(path: Path, answers: list) -> None:
        append(path, answers)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(predict, "append_journal", dies)
    with pytest.raises(KeyboardInterrupt):
        predict.main(line)
    monkeypatch.undo()
    assert not (tmp_path / "base.jsonl").exists()
    (partial,) = (tmp_path / "work").glob("*/answers.jsonl")
    assert len(partial.read_text().splitlines()) == 8
    with partial.open("a") as file:
        file.write('{"question_id": "q2-00", "predi')
    first = partial.read_text().splitlines()[0]
    changed = json.loads(first) | {"prediction": "kept from before"}
    partial.write_text(partial.read_text().replace(first, json.dumps(changed)))
    assert predict.main(line) == 0
    found = prediction_data.answers(tmp_path / "base.jsonl")
    assert found == wanted | {changed["question_id"]: "kept from before"}, "finished batches are not generated again"


def test_another_recipe_does_not_go_on_from_it(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(path: Path, answers: list) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "append_journal", dies)
    for tokens in (8, 9):
        line = prediction_data.arguments(
            tmp_path, tiny["base"], tiny["test"], prediction_data.config(max_new_tokens=tokens)
        )
        with pytest.raises(KeyboardInterrupt):
            predict.main(line)
    assert len(list((tmp_path / "work").glob("*/"))) == 2


def test_a_prompt_over_cutoff_len_is_refused(tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = prediction_data.config() | {"train": {"template": "qwen3_vl_nothink", "cutoff_len": 200}}
    assert predict.main(prediction_data.arguments(tmp_path, tiny["base"], tiny["test"], settings)) == 2
    assert "train.cutoff_len=200" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "base.jsonl").exists()


@pytest.mark.parametrize(
    "content",
    [b"\xff\xd8\xff broken", raw_data.png_claiming(60000, 60000)],
    ids=["cut", "of too many pixels"],
)
def test_an_unreadable_frame_is_named(
    tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes
) -> None:
    test = prediction_data.make_test_part(tmp_path, episodes=1, questions=1)
    (tmp_path / "frames/hm3d-v0/000-room/003.jpg").write_bytes(content)
    assert predict.main(prediction_data.arguments(tmp_path, tiny["base"], test, prediction_data.config())) == 2
    assert "000-room/003.jpg: no readable picture" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_the_same_bytes_for_any_number_of_shards(tiny: dict, tmp_path: Path, dtype: str) -> None:
    """In bfloat16 a batch's shape decides ties: a shard keeps the batches and the prefixes of the whole."""
    predicted(tmp_path, tiny, "tuned", batch_size=4, dtype=dtype)
    wanted = (tmp_path / "tuned.jsonl").read_bytes(), (tmp_path / "tuned.meta.json").read_bytes()
    for shards in (1, 2, 5):
        folder = tmp_path / str(shards)
        settings = prediction_data.config(batch_size=4, dtype=dtype, shards=shards)
        for shard in range(shards):
            line = prediction_data.arguments(
                folder, tiny["base"], tiny["test"], settings, "tuned", adapter=tiny["adapter"]
            )
            line += ["--shard", f"{shard:04d}", "--output", str(folder / f"shards/tuned/{shard:04d}.jsonl")]
            assert predict.main([*line, "--meta", str(folder / f"shards/tuned/{shard:04d}.meta.json")]) == 0
        line = ["--model", "tuned", "--test", str(tiny["test"]), "--shards-dir", str(folder / "shards")]
        line += ["--output", str(folder / "tuned.jsonl"), "--meta", str(folder / "tuned.meta.json")]
        assert join_predictions.main([*line, "--config", json.dumps({"predict": {"shards": shards}})]) == 0
        assert ((folder / "tuned.jsonl").read_bytes(), (folder / "tuned.meta.json").read_bytes()) == wanted
    empty = tmp_path / "5/shards/tuned/0000.jsonl"
    assert empty.read_bytes() == b"", "four batches are too few for five shards: no model is loaded for the fifth"


def test_what_is_shared_does_not_depend_on_which_questions_are_asked(tiny: dict, tmp_path: Path) -> None:
    """A lone question of an episode would share its whole prompt with itself, and round differently in half precision."""
    from scripts.lib.engines.base import Setup
    from scripts.lib.engines.transformers_engine import TransformersEngine

    whole = predict.read_test(tiny["test"], tiny["folder"] / "frames", blind=False)
    lengths = []
    for asked, known in ((whole[:5], ()), (whole[:1], tuple(whole)), (whole[:1], ())):
        engine = TransformersEngine(
            Setup(tiny["base"].parent, None, prediction_data.config(), tmp_path, questions=known)
        )
        (answers,) = engine.answer([asked])
        assert len(answers) == len(asked)
        lengths.append(engine.work.prefix)
    assert lengths[0] == lengths[1] < lengths[2]


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_weights_with_other_bytes_of_the_same_size_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, part: str
) -> None:
    """They load, and answer something else."""
    tiny = prediction_data.make_tiny(tmp_path / "own", questions=2)
    (file,) = tiny[part].parent.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    settings = prediction_data.config()
    line = prediction_data.arguments(tmp_path, tiny["base"], tiny["test"], settings, "tuned", adapter=tiny["adapter"])
    assert predict.main(line) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert file.name in said
    assert not (tmp_path / "tuned.jsonl").exists()


@pytest.mark.parametrize("says", ["torch", "LMDeploy"])
def test_too_little_gpu_memory_is_one_line(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, says: str
) -> None:
    import torch

    lmdeploy = RuntimeError("No enough gpu memory for kv cache.")
    error = torch.OutOfMemoryError("CUDA out of memory.") if says == "torch" else lmdeploy

    class Full:
        def answer(self, batches: list) -> Iterator[list[str]]:
            raise error
            yield []

    monkeypatch.setattr(predict, "open_engine", lambda name, setup: Full())
    line = prediction_data.arguments(tmp_path, tiny["base"], tiny["test"], prediction_data.config(batch_size=4))
    assert predict.main(line) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "predict.batch_size=4 not at once" in said
    assert not (tmp_path / "base.jsonl").exists()
