"""scripts.join_predictions: shards of answers become one file, whatever is wrong with them is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import join_predictions, predict
from scripts.lib.engines.base import Question
from scripts.lib.errors import EqaError
from scripts.lib.files import write_json, write_jsonl

META = {"model": "base", "engine": "transformers", "dtype": "float32"}
SHARDS = [["q5", "q0"], ["q3"], ["q1", "q2", "q4"]]


def make(folder: Path, shards: list[list[str]]) -> Path:
    """A test file of q0 to q5 in no order, and these shards of answers."""
    write_json(folder / "test.json", [{"question_id": f"q{number}"} for number in (3, 1, 5, 0, 2, 4)])
    for number, ids in enumerate(shards):
        path = folder / f"shards/base/{number:04d}.jsonl"
        write_jsonl(path, ({"question_id": name, "prediction": f"says {name}"} for name in ids))
        write_json(path.with_suffix(".meta.json"), {**META, "count": len(ids)})
    return folder


def run(folder: Path, shards: int) -> int:
    line = ["--model", "base", "--test", folder / "test.json", "--shards-dir", folder / "shards"]
    line += ["--config", json.dumps({"predict": {"shards": shards}})]
    line += ["--output", folder / "base.jsonl", "--meta", folder / "base.meta.json"]
    return join_predictions.main([str(word) for word in line])


def test_answers_are_sorted_by_id_and_counted(tmp_path: Path) -> None:
    assert run(make(tmp_path, SHARDS), 3) == 0
    rows = [json.loads(line) for line in (tmp_path / "base.jsonl").open()]
    assert rows == [{"question_id": f"q{number}", "prediction": f"says q{number}"} for number in range(6)]
    assert json.loads((tmp_path / "base.meta.json").read_text()) == {**META, "count": 6}


def test_shards_may_be_empty(tmp_path: Path) -> None:
    assert run(make(tmp_path, [[], [name for shard in SHARDS for name in shard], []]), 3) == 0
    assert len((tmp_path / "base.jsonl").read_text().splitlines()) == 6


def test_shards_of_a_former_larger_number_are_removed(tmp_path: Path) -> None:
    make(tmp_path, [*SHARDS, ["old"]])
    assert run(tmp_path, 3) == 0
    assert sorted(path.name for path in (tmp_path / "shards/base").glob("*.jsonl")) == [
        f"000{n}.jsonl" for n in range(3)
    ]
    assert not (tmp_path / "shards/base/0003.meta.json").exists()


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("shards", "edit", "words"),
    [
        ([["q0"], ["q3"], ["q1", "q2", "q4"]], None, ["shards/base: question_id q5", "has no answer"]),
        ([["q5", "q0"], ["q3", "q0"], ["q1", "q2", "q4"]], None, ["0001.jsonl", "q0", "answered in", "0000.jsonl too"]),
        ([["q5", "q0"], ["q3"], ["q1", "q1", "q2", "q4"]], None, ["0002.jsonl", "q1: answers more than once"]),
        ([["q5", "q0"], ["q3", "x", "y"], ["q1", "q2", "q4"]], None, ["0001.jsonl", "x, y: no test question"]),
        (SHARDS, lambda f: (f / "0001.jsonl").unlink(), ["0001.jsonl", "does not exist"]),
        (SHARDS, lambda f: (f / "0001.meta.json").unlink(), ["0001.meta.json", "does not exist"]),
        (SHARDS, lambda f: rewrite(f / "0002.jsonl", "says q2", 'says "q2'), ["0002.jsonl", "line 2", "not JSON"]),
        (SHARDS, lambda f: rewrite(f / "0001.meta.json", "32", "16"), ["0001.meta.json: dtype='float16'", "'float32'"]),
        (
            SHARDS,
            lambda f: rewrite(f / "0001.meta.json", "base", "tuned"),
            ["0001.meta.json", "shard of the model base"],
        ),
        (SHARDS, lambda f: rewrite(f / "0001.meta.json", ": 1", ": 2"), ["6 answers, but the records say 7"]),
        (SHARDS, lambda f: write_json(f.parents[1] / "test.json", {}), ["test.json: no list of test questions"]),
    ],
)
def test_faults_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, shards: list, edit: object, words: list
) -> None:
    make(tmp_path, shards)
    if edit:
        edit(tmp_path / "shards/base")
    assert run(tmp_path, 3) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line
    assert not (tmp_path / "base.jsonl").exists()


def questions(count: int) -> list[Question]:
    return [Question(f"q{number:03d}", "e", "?", ()) for number in range(count)]


@pytest.mark.parametrize("count", [1, 4, 5, 41])
@pytest.mark.parametrize("shards", [1, 2, 5, 60])
def test_shards_are_whole_batches_and_every_question_is_in_one(count: int, shards: int) -> None:
    parts = [predict.of_shard(questions(count), 4, shard, shards) for shard in range(shards)]
    assert [question for part in parts for question in part] == questions(count)
    assert [batch for part in parts for batch in predict.plan(part, 4)] == predict.plan(questions(count), 4)
    assert max(map(len, parts)) - min(map(len, parts)) <= 2 * 4


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_shard_that_the_recipe_does_not_have_is_refused(shard: int) -> None:
    with pytest.raises(EqaError, match=r"predict\.shards=2 has 0000 to 0001"):
        predict.of_shard(questions(5), 4, shard, 2)
