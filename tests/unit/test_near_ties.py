"""Where a text parts from the reference's tokens."""

from __future__ import annotations

from tests.lib.near_ties import equal_tokens, partings

WANTED = {"pieces": ["the", " red", "", " chair"], "leads": [1.0, 0.01, 0.5, 2.0]}


def test_a_whole_answer_does_not_part():
    assert partings(["the red chair"], [WANTED]) == []


def test_an_answer_parts_at_its_first_other_token():
    assert equal_tokens("the blue chair", WANTED) == 1
    assert partings(["the blue chair", "a red chair"], [WANTED, WANTED]) == [(1, 0.01), (0, 1.0)]


def test_an_answer_cut_short_parts_where_it_ends():
    assert partings(["the red"], [WANTED]) == [(3, 2.0)]
