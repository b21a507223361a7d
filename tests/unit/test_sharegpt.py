"""Conversations and what may not happen to their structure."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.lib import sharegpt
from scripts.lib.errors import EqaError

PIECES = [*sharegpt.RESERVED, *sharegpt.SPECIAL_TOKENS, "<", ">", "|", "{", "}", "image", "im_end", " ", "a", "\n"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("<<image>image>")
@example("<|im_<|im_end|>end|>")
@example("{{{{idx}}}}")
def test_no_special_string_survives_and_a_second_pass_changes_nothing(text):
    clean = sharegpt.neutralize(text)
    assert not any(word in clean for word in (*sharegpt.RESERVED, *sharegpt.SPECIAL_TOKENS))
    assert sharegpt.neutralize(clean) == clean
    assert clean.replace(" ", "") == text.replace(" ", ""), "nothing but spaces is added"


@settings(deadline=None)
@given(st.text())
def test_text_without_special_strings_is_unchanged(text):
    if not any(word in text for word in (*sharegpt.RESERVED, *sharegpt.SPECIAL_TOKENS)):
        assert sharegpt.neutralize(text) == text


def test_what_llamafactory_fills_in_is_neutralized():
    assert sharegpt.neutralize("{{idx}} {{content}} <image>") == "{ {idx}} { {content}} < image>"


def test_the_tokenizers_own_special_tokens_are_neutralized_too():
    assert sharegpt.neutralize("a <|box_start|> b", ["<|box_start|>"]) == "a < |box_start|> b"


def test_real_questions_and_answers_are_unchanged(openeqa):
    import json

    for row in json.loads((openeqa / "open-eqa-v0.json").read_text()):
        for text in (row["question"], row["answer"]):
            assert sharegpt.neutralize(text) == text


@pytest.mark.parametrize("question", ["{question}", "{0} {a!r} %s", "\\1", "{{question}}", "}{"])
def test_braces_in_a_question_mean_nothing(question):
    assert sharegpt.prompt_text("Look. {question} End", question) == f"Look. {question} End"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 40)), min_size=1, max_size=30).map(
        lambda pairs: [(first + later, later) for first, later in pairs]
    )
)
def test_chunks_hold_every_turn_once_in_order_and_fit(turns):
    first, later = [f for f, _ in turns], [la for _, la in turns]
    limit = max(first)
    chunks = sharegpt.chunk_turns(first, later, limit)
    assert [i for chunk in chunks for i in chunk] == list(range(len(turns)))
    for chunk in chunks:
        assert first[chunk[0]] + sum(later[i] for i in chunk[1:]) <= limit
    for before, after in pairwise(chunks):
        used = first[before[0]] + sum(later[i] for i in before[1:])
        assert used + later[after[0]] > limit, "a conversation is ended only where the next turn does not fit"


def test_turns_are_shuffled_by_seed_and_episode_and_not_by_their_order():
    ids = [f"q{i}" for i in range(9)]
    order = sharegpt.order_turns(ids, "e/1", 7)
    assert sorted(order) == ids
    assert order != ids
    assert sharegpt.order_turns(ids[::-1], "e/1", 7) == order
    assert sharegpt.order_turns(ids, "e/2", 7) != order
    assert sharegpt.order_turns(ids, "e/1", 8) != order


def test_pictures_come_once_before_the_first_prompt():
    turns = [("a", "Who?", "He"), ("b", "What?", "It")]
    assert sharegpt.sample(turns, "P {question}", ["e/0.jpg", "e/1.jpg"], "e") == {
        "messages": [
            {"role": "user", "content": "<image><image>P Who?"},
            {"role": "assistant", "content": "He"},
            {"role": "user", "content": "P What?"},
            {"role": "assistant", "content": "It"},
        ],
        "images": ["e/0.jpg", "e/1.jpg"],
        "question_ids": ["a", "b"],
        "episode_history": "e",
    }


def test_a_prompt_that_is_not_there_or_not_utf8_is_one_line(tmp_path):
    with pytest.raises(EqaError, match=r"p\.txt: this prompt does not exist"):
        sharegpt.read_prompt(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff{question}")
    with pytest.raises(EqaError, match="not UTF-8"):
        sharegpt.read_prompt(tmp_path / "p.txt")


def test_the_shipped_prompt_is_read_without_its_last_line_break(root):
    prompt = sharegpt.read_prompt(root / "config/prompts/short_answer.txt")
    assert prompt.endswith("{question}")
