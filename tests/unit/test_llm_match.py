"""The official protocol on cases computed by hand."""

from __future__ import annotations

import pytest

from scripts.lib import llm_match


@pytest.mark.parametrize(("mark", "wanted"), [(1, 0), (2, 25), (3, 50), (4, 75), (5, 100), (0, 0), (7, 100), (-3, 0)])
def test_marks_become_scores_clipped_to_1_and_5(mark: int, wanted: float) -> None:
    assert llm_match.match_score(mark) == wanted


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("4", 4),
        (" 4\n", 4),
        ("Your mark: 4", 4),
        ("Some thought.\nYour mark: 2\nMore words 5", 2),
        ("Your mark:5", 5),
        ("7", 7),
        ("0", 0),
        ("four", None),
        ("4.5", None),
        ("4/5", None),
        ("Your mark: good", None),
        ("Mark 4", None),
        ("", None),
        ("²", None),
        ("9" * 400, None),
    ],
)
def test_replies_are_read_or_counted_never_guessed(reply: str, wanted: int | None) -> None:
    assert llm_match.parse_mark(reply) == wanted


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        ("A chair. And then", "A chair."),
        ("A chair.", "A chair."),
        ("A chair", "A chair"),
        ("1.5 m", "1."),
        (".", "."),
        ("", ""),
        (None, None),
    ],
)
def test_text_after_the_last_full_stop_is_cut(prediction: str | None, wanted: str | None) -> None:
    assert llm_match.shown_prediction(prediction) == wanted


def test_braces_in_texts_mean_nothing() -> None:
    template = "Q: {question} A: {answer} E: {extra_answers} R: {prediction}"
    filled = llm_match.fill(template, "{answer}?", "{prediction}", ["it's", "x"], "{0} {question}")
    assert filled == """Q: {answer}? A: {prediction} E: ["it's", 'x'] R: {0} {question}"""


def test_extra_answers_choose_the_prompt() -> None:
    assert llm_match.prompt_name([]) == "mmbench.txt"
    assert llm_match.prompt_name(["a"]) == "mmbench-extra.txt"


def test_the_estimate_names_requests_cost_and_time() -> None:
    line = llm_match.estimate(["x" * 4000] * 30, "gpt-4-1106-preview", 60)
    assert line.startswith("30 requests, about 30,000 prompt and 180 answer tokens, about 0.31 USD")
    assert "0.5 min at 60 requests" in line
    assert "price unknown" in llm_match.estimate(["x"], "local", 60)
