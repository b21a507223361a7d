"""Scores of one answer: normalisation, each metric against all accepted answers, ceilings, odd texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.lib import answer_scores as scores
from scripts.lib.errors import EqaError
from scripts.lib.normalise import normalised, normalised_words, yes_or_no


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Red chair.", "red chair"),
        ("two", "2"),
        ("It's a TV!", "its tv"),
        ("A", "a"),
        ("the", "the"),
        ("", ""),
        ("!!!", ""),
        ("Ｔｗｏ", "2"),  # full-width letters
        ("Straße", "strasse"),
        ("客厅 里", "客厅 里"),
        ("air-conditioning_unit", "air conditioning unit"),
    ],
)
def test_normalised(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    # a text of articles only keeps them; more steps must not remove them
    once = normalised(text)
    assert normalised(once) == once


def test_exact_match_takes_any_accepted_answer_and_never_an_empty_one() -> None:
    assert scores.exact_match("The sofa.", ["couch", "a sofa"]) == 100
    assert scores.exact_match("sofa", ["couch"]) == 0
    assert scores.exact_match("", ["!"]) == 0


def test_token_f1_by_hand() -> None:
    assert scores.token_f1("red chair", ["the red wooden chair"]) == pytest.approx(80)  # p 2/2, r 2/3
    assert scores.token_f1("red red", ["red"]) == pytest.approx(200 / 3)  # a word counts once
    assert scores.token_f1("blue", ["red", "blue"]) == 100
    assert scores.token_f1("", ["red"]) == 0


def test_yes_no_applies_where_all_accepted_answers_agree() -> None:
    assert scores.yes_no("Yes, it is.", ["yes"]) == 100
    assert scores.yes_no("It is.", ["Yes."]) == 0
    assert scores.yes_no("no", ["yes", "Yes, both"]) == 0
    assert scores.yes_no("yes", ["yes", "no"]) is None
    assert scores.yes_no("yes", ["red"]) is None
    assert yes_or_no("Nothing") is None


def test_bleu_and_chrf_are_the_library_s() -> None:
    from sacrebleu import sentence_bleu, sentence_chrf

    mine, wanted = "the red wooden chair by the window", "the red chair stands by the window"
    assert scores.bleu4(mine, [wanted]) == pytest.approx(sentence_bleu(mine, [wanted], use_effective_order=True).score)
    assert scores.chrf(mine, [wanted]) == pytest.approx(sentence_chrf(mine, [wanted]).score)
    assert scores.bleu4(mine, ["x", wanted]) == scores.bleu4(mine, [wanted]), "the best accepted answer counts"


def test_rouge_is_the_library_s_and_reads_any_script() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    mine, wanted = "red wooden chair by the window", "the red chair stands by the window"
    library = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(wanted, mine)
    assert scores.rouge(mine, [wanted]) == pytest.approx({name: 100 * s.fmeasure for name, s in library.items()})
    assert scores.rouge("红色 椅子", ["红色 桌子"])["rouge1"] == pytest.approx(50)


@pytest.mark.parametrize("text", ["No", "two", "red chair", "a b c d e f", "客厅", "It's", "air-conditioning"])
def test_the_short_cut_for_equal_texts_gives_what_the_library_gives(text: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu, sentence_chrf

    assert scores.bleu4(text, [text]) == pytest.approx(sentence_bleu(text, [text], use_effective_order=True).score)
    assert scores.chrf(text, [text]) == pytest.approx(sentence_chrf(text, [text]).score)
    if text.isascii():
        tokens = " ".join(normalised_words(text)) if "'" in text else text
        library = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(tokens, tokens)
        assert scores.rouge(text, [text]) == {name: pytest.approx(100 * s.fmeasure) for name, s in library.items()}


def test_a_perfect_model_has_a_ceiling_in_rouge_2_only() -> None:
    assert scores.perfect_score(("No",)) == {
        "exact_match": 100,
        "f1": 100,
        "bleu4": 100,
        "rouge1": 100,
        "rouge2": 0,
        "rougeL": 100,
        "chrf": 100,
        "yes_no": 100,
    }
    assert scores.perfect_score(("couch", "grey couch"))["rouge2"] == 100


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_scores_stay_between_0_and_100(prediction: str, accepted: list[str]) -> None:
    for name, value in scores.score_answer(prediction, accepted).items():
        assert value is None or 0 <= value <= 100, name


def test_ten_thousand_words_are_scored() -> None:
    text = "red chair " * 5000
    found = scores.score_answer(text, ["red chair"])
    assert found["exact_match"] == 0
    assert 0 < found["f1"] < 1
    both = scores.score_answer(text, [text + "x"])
    assert both["rougeL"] == 100, "judged by its beginning"


@pytest.mark.parametrize("value", [None, float("nan"), 3, ["red"], {"text": "red"}, True])
def test_a_prediction_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(EqaError, match="text is wanted"):
        scores.check_answer(value, "p.jsonl: question_id q")
    with pytest.raises(EqaError, match="half a character"):
        scores.check_answer("\ud800", "p.jsonl: question_id q")
