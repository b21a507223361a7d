"""The split's pure functions: properties that hold for any question file."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import split_questions as split
from scripts.lib.errors import EqaError
from scripts.lib.report_data import split_summary
from tests.lib.sft_data import CATEGORIES, question_rows

CONFIG = {"by": "space", "file": "", "val": 0.15, "test": 0.2, "salts": 16}


def divide(rows: list[dict], **changes: object) -> dict:
    return split.split_questions(rows, CONFIG | changes, {}, False, "")


@st.composite
def question_sets(draw: st.DrawFn) -> list[dict]:
    spaces = draw(st.integers(3, 25))
    rows = []
    for space in range(spaces):
        for number in range(draw(st.integers(1, 6))):
            source = draw(st.sampled_from(["hm3d-v0", "scannet-v0", "x"]))
            rows.append(
                {
                    "question_id": f"{space}-{number}",
                    "question": draw(st.sampled_from(["A?", "B?"])),
                    "category": draw(st.sampled_from(CATEGORIES)),
                    "episode_history": f"{source}/{space}-{draw(st.integers(0, 1))}",
                    "source": source,
                    "space": f"s{space}",
                }
            )
    return rows


@settings(max_examples=60, deadline=None)
@given(question_sets(), st.floats(0.01, 0.5), st.floats(0.01, 0.4), st.randoms(use_true_random=False))
def test_any_split_by_space_is_a_partition_without_leakage_whatever_the_order(rows, test, val, rng):
    result = divide(rows, test=test, val=val)
    ids = [i for part in result["parts"].values() for i in part]
    assert sorted(ids) == sorted(row["question_id"] for row in rows)
    assert all(result["parts"].values())
    assert not any(value for key, value in result["leakage"].items())
    shuffled = rng.sample(rows, len(rows))
    assert divide(shuffled, test=test, val=val) == result


@settings(max_examples=30, deadline=None)
@given(question_sets())
def test_a_random_split_is_a_partition_and_says_what_leaks(rows):
    result = divide(rows, by="question")
    by_id = {row["question_id"]: row for row in rows}
    ids = [i for part in result["parts"].values() for i in part]
    assert sorted(ids) == sorted(by_id)
    other = {by_id[i]["space"] for part in ("train", "val") for i in result["parts"][part]}
    leaking = sum(by_id[i]["space"] in other for i in result["parts"]["test"])
    assert result["leakage"]["leaking_test_questions"] == leaking
    assert result["leakage"]["leaks"] == (result["leakage"]["shared_spaces"] > 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=30),
    st.lists(st.floats(0.5, 20), min_size=3, max_size=3),
)
def test_every_group_taken_lowered_the_distance_and_none_left_out_would_have(counts, targets):
    groups = [split.Group(str(i), tuple((s, c) for s, c in enumerate(row) if c)) for i, row in enumerate(counts)]
    taken = split.draw_part(groups, targets)
    inside, chosen = set(taken), []
    for position, group in enumerate(groups):
        before, after = split.chi_square(chosen, targets), split.chi_square([*chosen, group], targets)
        if position in inside:
            assert after < before
            chosen.append(group)
        else:
            assert after > before - 1e-6


def test_strata_come_close_to_their_share():
    rows = question_rows(spaces=60, each=10)
    result = divide(rows, salts=64)
    for category, count in Counter(row["category"] for row in rows).items():
        assert abs(result["counts"]["test"]["by_category"][category] - 0.2 * count) <= 2
        assert abs(result["counts"]["val"]["by_category"][category] - 0.15 * count) <= 3


def test_more_salts_are_never_worse():
    rows = [row | {"category": random.Random(row["question_id"]).choice(CATEGORIES)} for row in question_rows(40, 9)]
    distances = [divide(rows, salts=salts)["chi_square"] for salts in (1, 8, 64)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < distances[0]


def test_many_spaces_try_fewer_salts(monkeypatch):
    monkeypatch.setattr(split, "MOST_VISITS", 120)
    rows = question_rows(12, 2)
    assert divide(rows, salts=64)["salts_tried"] == 10
    assert divide(rows, salts=3)["salts_tried"] == 3
    monkeypatch.setattr(split, "MOST_VISITS", 12)
    assert divide(rows, salts=64)["salts_tried"] == split.FEWEST_SALTS


def test_three_spaces_fill_three_parts_and_two_cannot():
    result = divide(question_rows(spaces=3, each=8))
    assert [result["counts"][part]["spaces"] for part in split.PARTS] == [1, 1, 1]
    with pytest.raises(EqaError, match=r"2 spaces with 16 questions cannot fill 3 parts .*; add episodes"):
        divide(question_rows(spaces=2, each=8))


def test_one_huge_space_among_small_ones_is_not_forced_into_the_test_part():
    rows = question_rows(spaces=9, each=2) + [
        row | {"question_id": f"big-{i}", "space": "big", "episode_history": "hm3d-v0/big"}
        for i, row in enumerate(question_rows(1, 200))
    ]
    assert not any(i.startswith("big") for i in divide(rows)["parts"]["test"])


def test_no_validation_share_is_refused_by_its_key():
    with pytest.raises(EqaError, match=r"config: split\.val=0 leaves val empty"):
        divide(question_rows(), val=0)


def test_the_same_question_under_two_ids_counts_as_leakage_by_text():
    parts = {
        "train": [{"question_id": "a", "question": "What is it?", "episode_history": "e", "space": "s"}],
        "val": [],
        "test": [{"question_id": "b", "question": " what  IS it?", "episode_history": "e", "space": "s"}],
    }
    assert split.leakage_report(parts) == {
        "shared_spaces": 1,
        "shared_episodes": 1,
        "shared_questions": 0,
        "shared_question_texts": 1,
        "leaking_test_questions": 1,
        "leaking_test_questions_by_episode": 1,
        "leaks": True,
    }


def test_a_page_tells_leakage_by_what_there_is_and_not_by_what_is_allowed():
    clean = {"shared_spaces": 0, "leaks": False, "allowed": True}
    assert split_summary({"leakage": clean})["leaks"] is False
    assert split_summary({"leakage": clean | {"shared_spaces": 1, "leaks": True}})["leaks"] is True
