"""Door 3 of scripts/adopt.py: a tutorial's saves/ folder is checked, copied and marked."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from scripts.adopt import join_predictions, main
from scripts.lib.files import check_manifest


def safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of float32 zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def saves(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train, predict = tmp_path / "saves/train", tmp_path / "saves/eval"
    train.mkdir(parents=True)
    predict.mkdir()
    (train / "training_args.yaml").write_text(
        "lora_rank: 8\nquantization_bit: 4\nquantization_method: bitsandbytes\nval_size: 0.125\n"
    )
    (train / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA"}))
    safetensors(train / "adapter_model.safetensors", {"m.q.lora_A.weight": [8, 4], "m.q.lora_B.weight": [4, 8]})
    rows = [
        {"prompt": "user\nWhat colour is the sofa?\nassistant", "predict": " red\n", "label": "red\n"},
        {"prompt": "user\nIs it dark?\nassistant", "predict": "no", "label": "maybe"},
    ]
    (predict / "generated_predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"question_id": "q1", "question": "What colour is the sofa?", "answer": "red"}]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    return tmp_path / "saves"


def adopt(*more: str) -> int:
    return main(["--train", "saves/train", "--predict", "saves/eval", "--questions", "questions.json", *more])


def test_tutorial_results_are_copied_checked_and_marked(saves, tmp_path):
    assert adopt("--name", "tutorial") == 0
    manifest = check_manifest(tmp_path / "adopted/tutorial/manifest.json")
    assert manifest["origin"] == "adopted"
    assert manifest["predictions"] == {"joined": 1, "without_question": 1}
    assert "trained without quantization" in manifest["checked"]["notes"][0]
    row = json.loads((tmp_path / "adopted/tutorial/predictions.jsonl").read_text())
    assert row == {"question_id": "q1", "prediction": "red"}
    assert adopt("--name", "tutorial") == 0, "the same again is fine"


def test_a_name_is_not_taken_twice_by_different_results(saves, capsys):
    assert adopt("--name", "tutorial") == 0
    (saves / "train/training_args.yaml").write_text("lora_rank: 8\n")
    assert adopt("--name", "tutorial") == 2
    assert "holds other results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda f: (f / "train/adapter_model.safetensors").write_bytes(b"12345678"), "no whole safetensors"),
        (lambda f: _cut(f / "train/adapter_model.safetensors"), "no whole safetensors"),
        (lambda f: (f / "train/adapter_model.safetensors").unlink(), "missing"),
        (lambda f: (f / "train/adapter_config.json").write_text("{}"), "no LoRA configuration"),
        (lambda f: (f / "train/adapter_config.json").write_text('{"r": 16}'), "two runs"),
        (lambda f: (f / "train/training_args.yaml").write_text("lora_rank: 4\n"), "two runs"),
        (lambda f: (f / "train/training_args.yaml").write_text("- a\n"), "no list of arguments"),
        (lambda f: (f / "eval/generated_predictions.jsonl").write_text('{"predict": 1}\n'), "line 1"),
    ],
)
def test_contradiction_or_damage_is_refused_in_one_line(saves, tmp_path, capsys, harm, word):
    harm(saves)
    assert adopt("--name", "x") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line
    assert not (tmp_path / "adopted").exists()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in ("ab", "bc", "cd", "de", "ef", "fg", "gh")
)


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("questions.json", "{}", "no list of questions"),
        ("questions.json", '[{"question_id": "q1", "question": "Is it dark?"}]', "question 1 has no text answer"),
        ("questions.json", '{"questions": [1]}', "question 1 has no text question_id"),
        ("questions.json", '[{"question_id": "\\ud800", "question": "a", "answer": "b"}]', "no text question_id"),
        ("saves/train/training_args.yaml", "a: " + "[" * 600 + "]" * 600, "nested too deeply"),
        ("saves/train/training_args.yaml", "a: 2024-99-99", "not what it says"),
        ("saves/train/training_args.yaml", "a: !!bool x", "not what it says"),
        ("saves/train/training_args.yaml", "a: !!timestamp x", "not what it says"),
        ("saves/train/training_args.yaml", f"lora_rank: {'9' * 4000}", "two runs"),
        ("saves/train/training_args.yaml", f"{BOMB}lora_rank: *h", "lora_rank=a list, adapter: r=8"),
        ("saves/train/adapter_config.json", '{"r": true}', "no LoRA configuration"),
        ("saves/train/adapter_config.json", f'{{"r": {"9" * 4000}}}', "a number of"),
        ("saves/eval/generated_predictions.jsonl", '{"prompt": "", "predict": "\\ud800", "label": ""}', "line 1"),
        ("adopted/x/manifest.json", "[]", "no manifest; choose another --name"),
        ("adopted/x/manifest.json", '{"files": []}', "no manifest; choose another --name"),
        ("adopted/x/manifest.json", '{"files": {"README.md": 1}}', "no manifest; choose another --name"),
    ],
)
def test_foreign_file_of_another_shape_is_refused_in_one_short_line(saves, tmp_path, capsys, file, content, word):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    assert adopt("--name", "x") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line
    assert len(line) < 500
    assert not (tmp_path / "adopted/x/NOTES.txt").exists()


def test_tensor_without_a_side_has_no_rank(saves, capsys):
    safetensors(saves / "train/adapter_model.safetensors", {"m.q.lora_A.weight": []})
    assert adopt("--name", "x") == 2
    assert "LoRA rank 0, adapter_config.json says r=8" in capsys.readouterr().err


def test_raw_question_file_gives_rows_their_ids_too(saves, tmp_path):
    index = json.loads((tmp_path / "questions.json").read_text())
    (tmp_path / "questions.json").write_text(json.dumps(index["questions"]))
    assert adopt("--name", "x") == 0
    assert check_manifest(tmp_path / "adopted/x/manifest.json")["predictions"]["joined"] == 1


def test_notes_on_some_bytes_of_aliases_are_short(saves, tmp_path):
    (saves / "train/training_args.yaml").write_text(
        f"{BOMB}val_size: *h\nquantization_bit: 4\nquantization_method: *h\n"
    )
    assert len((saves / "train/training_args.yaml").read_text()) < 400
    assert adopt("--name", "x") == 0
    notes = (tmp_path / "adopted/x/NOTES.txt").read_text()
    assert "val_size=a list" in notes
    assert "quantization_method=a list" in notes
    assert len(notes) < 300


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def test_name_may_not_leave_its_folder(saves, capsys):
    assert adopt("--name", "../x") == 2


def test_of_two_rows_for_one_question_neither_is_believed():
    """One is about another room, whose question of the same words this index lacks."""
    questions = [{"question_id": "a", "question": "Is it on?", "answer": "yes"}]
    rows = [{"prompt": "Is it on?", "predict": text, "label": "yes"} for text in ("no", "yes")]
    assert join_predictions(rows, questions, Path("p")) == ([], 2)


def test_longest_question_wins_and_ambiguity_is_counted():
    questions = [
        {"question_id": "a", "question": "Is it on?", "answer": "yes"},
        {"question_id": "b", "question": "Where? Is it on?", "answer": "yes"},
        {"question_id": "c", "question": "Same?", "answer": "no"},
        {"question_id": "d", "question": "Same?", "answer": "no"},
    ]
    rows = [
        {"prompt": "Where? Is it on?", "predict": "1", "label": "yes"},
        {"prompt": "Same?", "predict": "2", "label": "no"},
    ]
    joined, lost = join_predictions(rows, questions, Path("p"))
    assert joined == [{"question_id": "b", "prediction": "1"}]
    assert lost == 1
