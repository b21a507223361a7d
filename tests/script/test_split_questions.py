"""split_questions by its command line: split files, hostile input, and the real question file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from scripts import split_questions
from scripts.lib.spaces import source_of, space_of
from tests.lib.sft_data import question_rows, write_index


def call(tmp_path: Path, rows: list[dict], file: object = None, absent: dict | None = None, **changes: object):
    episodes, questions = write_index(tmp_path / "index", rows, absent)
    section = {"by": "space", "file": "", "val": 0.15, "test": 0.2, "salts": 64} | changes
    if file is not None:
        path = tmp_path / "my-split.json"
        path.write_text(file if isinstance(file, str) else json.dumps(file))
        section["file"] = str(path)
    output = tmp_path / "split" / "split.json"
    line = ["--episodes", str(episodes), "--questions", str(questions), "--output", str(output)]
    return split_questions.main([*line, "--config", json.dumps({"split": section})]), output


def spaces_of(split: dict, rows: list[dict]) -> dict[str, set[str]]:
    space = {row["question_id"]: row["space"] for row in rows}
    return {part: {space[i] for i in ids} for part, ids in split["parts"].items()}


def test_parts_are_disjoint_by_space_and_two_runs_are_byte_identical(tmp_path):
    rows = question_rows(30, 8)
    code, output = call(tmp_path / "a", rows)
    assert code == 0
    parts = spaces_of(json.loads(output.read_text()), rows)
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["val"]
    assert not parts["val"] & parts["test"]
    assert call(tmp_path / "b", rows[::-1])[1].read_bytes() == output.read_bytes()


def test_a_file_names_the_test_part_and_the_rest_is_drawn(tmp_path):
    rows = question_rows(20, 6)
    code, output = call(tmp_path, rows, {"test": {"episodes": ["hm3d-v0/004-room004"]}})
    split = json.loads(output.read_text())
    assert code == 0
    assert split["parts"]["test"] == [f"q-004-{i:02d}" for i in range(6)]
    assert split["counts"]["val"]["questions"] == pytest.approx(0.15 * 114, abs=6)
    assert not split["leakage"]["leaks"]
    assert split["file"] is True


def test_all_three_parts_may_be_named_each_in_its_own_way(tmp_path):
    rows = question_rows(3, 4)
    file = {
        "test": {"spaces": ["room000"]},
        "val": {"questions": [f"q-001-{i:02d}" for i in range(4)]},
        "train": {"episodes": ["hm3d-v0/002-room002"]},
    }
    code, output = call(tmp_path, rows, file)
    assert code == 0
    assert [json.loads(output.read_text())["counts"][p]["questions"] for p in split_questions.PARTS] == [4, 4, 4]


def test_where_train_is_named_val_and_test_keep_their_proportion(tmp_path):
    rows = question_rows(60, 5)
    code, output = call(tmp_path, rows, {"train": {"spaces": [f"room{i:03d}" for i in range(4)]}})
    counts = json.loads(output.read_text())["counts"]
    assert code == 0
    assert counts["train"]["questions"] == 20
    assert counts["test"]["questions"] == pytest.approx(280 * 0.2 / 0.35, abs=10)


WHOLE = {"spaces": [f"room{i:03d}" for i in range(10)]}


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (
            {"test": {"episodes": ["hm3d-v0/none"]}},
            "\"test.episodes\" names 'hm3d-v0/none', which no usable question has",
        ),
        ({"test": {"episodes": ["scannet-v0/gone"]}}, "which no usable question has (missing: no such folder)"),
        ({"test": {"questions": ["q-999"]}}, "\"test.questions\" names 'q-999'"),
        ({"test": {"spaces": ["hall"]}}, "\"test.spaces\" names 'hall'"),
        ({"test": {"spaces": ["room001", "room001"]}}, "names 'room001' twice"),
        ({"test": {"spaces": ["room001"], "questions": ["q-001-00"]}}, "is twice in test"),
        ({"test": {"spaces": ["room001"]}, "val": {"spaces": ["room001"]}}, "is in val and in test"),
        (
            {"test": {"questions": ["q-001-00"]}},
            "5 more questions about space 'room001' of test are named nowhere and would leak",
        ),
        (
            {"test": {"questions": ["q-001-00"]}, "val": {"questions": [f"q-001-{i:02d}" for i in range(1, 6)]}},
            "space 'room001' is in val and in test",
        ),
        ({"test": {"spaces": []}}, '"test" names nothing'),
        ({"test": {}}, "wants an object with one or more of episodes, questions, spaces"),
        ({"test": ["q-001-00"]}, "wants an object with one or more"),
        ({"test": {"rooms": ["room001"]}}, "wants an object with one or more"),
        ({"test": {"spaces": "room001"}}, "is no list of strings"),
        ({"test": {"spaces": [1]}}, "is no list of strings"),
        ({"tset": {"spaces": ["room001"]}}, "a split file is a JSON object"),
        ({"test": {"spaces": ["room001"]}, "dev": {}}, "unknown key 'dev'"),
        ({"test": {"spaces": ["room001"]}, "allow_leakage": 1}, "allow_leakage=1; true or false"),
        ({}, "a split file is a JSON object"),
        ([], "a split file is a JSON object"),
        ("{", "not JSON"),
        ({"test": WHOLE}, "no question is left for val, train"),
        (
            {"test": {"spaces": ["room000"]}, "val": {"spaces": ["room001"]}, "train": {"spaces": ["room002"]}},
            "42 questions are in no part (first: q-003-00)",
        ),
    ],
)
def test_a_bad_split_file_is_one_line_that_names_it(tmp_path, capsys, file, part):
    absent = {"scannet-v0/gone": ("missing", "no such folder")}
    code, output = call(tmp_path, question_rows(10, 6), file, absent)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert "my-split.json" in lines[0]
    assert part in lines[0]
    assert not output.exists()


def test_allowed_leakage_is_counted(tmp_path):
    rows = question_rows(10, 6)
    code, output = call(tmp_path, rows, {"test": {"questions": ["q-001-00", "q-001-01"]}, "allow_leakage": True})
    leakage = json.loads(output.read_text())["leakage"]
    assert code == 0
    assert leakage["allowed"]
    assert leakage["leaks"]
    assert (leakage["shared_spaces"], leakage["leaking_test_questions"]) == (1, 2)


def test_a_split_file_that_is_not_there_is_one_line(tmp_path, capsys):
    code, _ = call(tmp_path, question_rows(10, 6), **{"file": None} | {"val": 0.15})
    assert code == 0
    episodes, questions = write_index(tmp_path / "index", question_rows(10, 6))
    config = {"split": {"by": "space", "file": "nowhere.json", "val": 0.1, "test": 0.2, "salts": 4}}
    line = ["--episodes", str(episodes), "--questions", str(questions), "--output", str(tmp_path / "s.json")]
    assert split_questions.main([*line, "--config", json.dumps(config)]) == 2
    assert "nowhere.json: this split file does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([], "no usable question"),
        ([{"question_id": "a"}], "not an index of questions"),
        (question_rows(4, 2) + question_rows(1, 1), "question_id 'q-000-00' occurs twice"),
        (question_rows(2, 5), "2 spaces with 10 questions cannot fill 3 parts"),
    ],
)
def test_an_index_that_cannot_be_divided_is_one_line(tmp_path, capsys, rows, part):
    episodes, questions = write_index(tmp_path / "index", [])
    questions.write_text(json.dumps({"questions": rows}))
    config = json.dumps({"split": {"by": "space", "file": "", "val": 0.15, "test": 0.2, "salts": 8}})
    line = ["--episodes", str(episodes), "--questions", str(questions), "--output", str(tmp_path / "s.json")]
    assert split_questions.main([*line, "--config", config]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert not (tmp_path / "s.json").exists()


@pytest.fixture(scope="module")
def real(openeqa) -> list[dict]:
    rows = json.loads((openeqa / "open-eqa-v0.json").read_text())
    return [
        {key: row[key].strip() for key in ("question_id", "question", "answer", "category", "episode_history")}
        | {"source": source_of(row["episode_history"]), "space": space_of(row["episode_history"])}
        for row in rows
    ]


def test_the_real_file_gives_260_test_questions_with_every_category_within_3_of_its_share(tmp_path, real):
    code, output = call(tmp_path / "a", real, val=0.106, test=0.159)
    split = json.loads(output.read_text())
    assert code == 0
    counts = split["counts"]
    assert counts["test"]["questions"] == pytest.approx(260, abs=5)
    assert counts["val"]["questions"] == pytest.approx(174, abs=5)
    for part, share in (("test", 0.159), ("val", 0.106)):
        for category, count in Counter(row["category"] for row in real).items():
            assert abs(counts[part]["by_category"][category] - share * count) <= 3
        for source, count in Counter(row["source"] for row in real).items():
            assert abs(counts[part]["by_source"][source] - share * count) <= 5
    assert not split["leakage"]["leaks"]
    assert call(tmp_path / "b", real[::-1], val=0.106, test=0.159)[1].read_bytes() == output.read_bytes()


def test_the_tutorials_random_split_of_the_real_file_leaks_nearly_every_test_question(tmp_path, real):
    _, output = call(tmp_path, real, by="question")
    split = json.loads(output.read_text())
    counts = split["counts"]
    assert counts["test"]["questions"] == 258
    assert counts["train"]["questions"] + counts["val"]["questions"] == 1378
    assert split["leakage"]["leaks"]
    assert split["leakage"]["leaking_test_questions"] >= split["leakage"]["leaking_test_questions_by_episode"] >= 250


def test_the_clips_split_file_puts_the_clip_alone_into_the_test_part(tmp_path, root, openeqa):
    clip = [
        row | {"source": source_of(row["episode_history"]), "space": space_of(row["episode_history"])}
        for row in json.loads((openeqa / "open-eqa-demo-data.json").read_text())
    ]
    file = json.loads((root / "config/splits/hm3d-clip.json").read_text())
    code, output = call(tmp_path, question_rows(38, 8) + clip, file)
    split = json.loads(output.read_text())
    assert code == 0
    assert split["parts"]["test"] == sorted(row["question_id"] for row in clip)
    assert split["counts"]["val"]["questions"] == pytest.approx(0.15 * 38 * 8, abs=10)
    assert not split["leakage"]["leaks"]


def test_the_demos_test_part_is_big_enough_to_mean_something(tmp_path):
    from scripts.make_demo_episodes import ask_questions, plan_episodes

    rows = [
        row | {"source": source_of(row["episode_history"]), "space": space_of(row["episode_history"])}
        for row in ask_questions(plan_episodes(44, 7), 7)
    ]
    code, output = call(tmp_path, rows)
    test = json.loads(output.read_text())["counts"]["test"]
    assert code == 0
    assert test["spaces"] >= 6
    assert test["questions"] >= 36
    assert len(test["by_category"]) == 7
