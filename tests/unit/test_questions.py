"""Question files: what is taken, what is refused and how."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.lib.errors import EqaError
from scripts.lib.questions import check_episode_history, read_questions
from scripts.lib.sources import questions_content
from scripts.lib.spaces import scan_of, source_of, space_of
from tests.lib.raw_data import question


def _refusal(tmp_path, content) -> str:
    file = tmp_path / "questions.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(EqaError) as refused:
        read_questions(file)
    message = str(refused.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_texts_are_stripped_and_extra_answers_kept(tmp_path):
    file = tmp_path / "q.json"
    file.write_text(json.dumps([question("a/b", question=" Why? ", answer="\tyes\n", extra_answers=["", " sure "])]))
    (row,) = read_questions(file)
    assert (row["question"], row["answer"], row["extra_answers"]) == ("Why?", "yes", ["sure"])


def test_an_empty_list_is_no_fault(tmp_path):
    (tmp_path / "q.json").write_text("[]")
    assert read_questions(tmp_path / "q.json") == []


def test_real_question_file_is_accepted_whole(openeqa):
    rows = read_questions(openeqa / "open-eqa-v0.json")
    assert len(rows) == 1636
    episodes = {row["episode_history"] for row in rows}
    assert len(episodes) == 152
    assert len({space_of(episode) for episode in episodes}) == 137
    assert sum(bool(row["extra_answers"]) for row in rows) == 263
    assert all(row["answer"] == row["answer"].strip() for row in rows)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(EqaError, match=r"nowhere\.json"):
        read_questions(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested"),
        (b'[{"question": "\xff"}]', "not UTF-8"),
        ({"questions": []}, "is an object"),
        ("text", "is a text"),
        (None, "is null"),
        ([["question"]], "question 1: is a list"),
        (["question"], "question 1: is a text"),
        ([{"question": "What?"}], "lacks question_id"),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_refused(tmp_path, content, says):
    assert says in _refusal(tmp_path, content)


@pytest.mark.parametrize("key", ["question_id", "question", "answer", "category", "episode_history"])
@pytest.mark.parametrize("value", ["", "   ", None, 3, ["a"], {"a": 1}, True])
def test_every_key_needs_a_text(tmp_path, key, value):
    message = _refusal(tmp_path, [question("good/one"), question("bad/one") | {key: value}])
    assert "question 2" in message
    assert key in message


@pytest.mark.parametrize("key", ["question_id", "question", "answer", "category", "episode_history"])
def test_a_missing_key_is_named(tmp_path, key):
    row = question("a/b")
    del row[key]
    assert f"lacks {key}" in _refusal(tmp_path, [row])


@pytest.mark.parametrize("extra", ["text", {"a": 1}, [1], [["a"]], [None]])
def test_extra_answers_need_a_list_of_texts(tmp_path, extra):
    assert "extra_answers" in _refusal(tmp_path, [question("a/b", extra_answers=extra)])


def test_a_repeated_question_id_is_refused_with_both_places(tmp_path):
    message = _refusal(
        tmp_path, [question("a/b", question_id="x"), question("a/c"), question("a/d", question_id=" x ")]
    )
    assert "question 3 repeats question_id 'x' of question 1" in message


def test_half_a_character_is_refused(tmp_path):
    assert "half a character" in _refusal(tmp_path, b"[%s]" % json.dumps(question("a/b", answer="\ud800")).encode())


@pytest.mark.parametrize("mark", ["<image>", "<video>", "<|im_end|>", "<|vision_start|>"])
def test_marks_that_the_model_obeys_are_refused(tmp_path, mark):
    assert mark in _refusal(tmp_path, [question("a/b", question=f"What {mark} is it?")])


@pytest.mark.parametrize(
    "episode",
    ["..", "../x", "a/../../x", "/etc", "//x", "a//b", "a/", "./a", "a/./b", "a\\b", "a\0b", "a\nb", "a/.hidden",
     "shards/0000", "manifest.json", "a/b.part", "a.old/b", "x" * 300, "a/" + "ü" * 130],
)  # fmt: skip
def test_an_episode_that_could_leave_its_folder_is_refused(tmp_path, episode):
    assert "episode_history" in _refusal(tmp_path, [question(episode, question_id="q")])


@pytest.mark.parametrize(
    "episode", ["hm3d-v0/000-hm3d-BFRyYbPCCPE", "assets/open-eqa-hm3d-demo", "a", "a b/c", "ünï/x..y"]
)
def test_plain_episodes_are_accepted(episode):
    check_episode_history(episode)


@given(st.text(max_size=40))
def test_an_accepted_episode_stays_under_its_root(tmp_path_factory, episode):
    try:
        check_episode_history(episode)
    except EqaError:
        return
    root = tmp_path_factory.getbasetemp()
    assert (root / episode).resolve().is_relative_to(root.resolve())
    assert (root / episode).resolve() != root.resolve()


def test_an_episode_inside_another_ones_folder_is_refused(tmp_path):
    assert "inside the folder" in _refusal(tmp_path, [question("a/b"), question("a/b/c")])


@pytest.mark.parametrize(
    ("episode", "space"),
    [
        ("hm3d-v0/000-hm3d-BFRyYbPCCPE", "BFRyYbPCCPE"),
        ("scannet-v0/002-scannet-scene0709_00", "scene0709"),
        ("scannet-v0/102-scannet-scene0709_01", "scene0709"),
        ("scannet-v0/scene0000_00", "scene0000"),
        ("scannet-v0/scene0000_01", "scene0000"),
        ("mine/scene0000_01", "mine/scene0000_01"),
        ("assets/open-eqa-hm3d-demo", "assets/open-eqa-hm3d-demo"),
        ("mine/kitchen", "mine/kitchen"),
    ],
)
def test_space_of_an_episode(episode, space):
    assert space_of(episode) == space


def test_source_and_scan_of_an_episode():
    assert source_of("scannet-v0/002-scannet-scene0709_00") == "scannet-v0"
    assert scan_of("scannet-v0/002-scannet-scene0709_00") == "scene0709_00"
    assert scan_of("hm3d-v0/000-hm3d-BFRyYbPCCPE") is None


def test_an_edited_question_file_is_noticed_and_a_pulled_project_is_left_alone(tmp_path, monkeypatch):
    root, recorded = tmp_path / "user", tmp_path / "questions.json"
    (root / "data").mkdir(parents=True)
    ask = functools.partial(questions_content, str(root), "mine.json", recorded)
    assert ask("pinned") == "", "nothing of the user's own: the pinned file is fetched"
    (root / "data/mine.json").write_text("[1]")
    first = ask("pinned")
    assert len(first) == 64
    recorded.write_text("[1]")
    (root / "data/mine.json").write_text("[2]")
    assert ask("pinned") not in ("", first)
    assert ask(ask("pinned")) == "", "the user's copy of the pinned file is the pinned file"
    shutil.rmtree(root)
    assert ask("pinned") == first, "the folder is not on this machine: what was made of it stays"
    assert questions_content("", "mine.json", recorded, "pinned") == ""
