"""Intervals over spaces: pairing, seeds, edge cases, coverage."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.lib import bootstrap


def one(scores: list[float], spaces: list[str], draws: int = 1000, seed: int = 7) -> bootstrap.Interval:
    column = np.array(scores, dtype=float)[:, None]
    return bootstrap.intervals(column, spaces, draws, 0.95, seed, (0.0, 100.0))[0]


def test_weights_draw_as_many_spaces_as_there_are_and_the_seed_decides() -> None:
    weights = bootstrap.draw_weights(9, 500, 7)
    assert weights.shape == (500, 9)
    assert (weights.sum(axis=1) == 9).all()
    assert (weights == bootstrap.draw_weights(9, 500, 7)).all()
    assert (weights != bootstrap.draw_weights(9, 500, 8)).any()
    assert abs(weights.mean() - 1) < 1e-12


def test_blocks_of_weights_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(1)
    scores, spaces = dice.random((60, 3)) * 100, [f"s{i % 12}" for i in range(60)]
    whole = bootstrap.intervals(scores, spaces, 300, 0.95, 7, (0, 100))
    monkeypatch.setattr(bootstrap, "BLOCK", 100)
    means = [i.value for i in bootstrap.intervals(scores, spaces, 300, 0.95, 7, (0, 100))]
    assert means == [i.value for i in whole]


def test_the_order_of_questions_does_not_matter() -> None:
    dice = np.random.default_rng(2)
    scores, spaces = list(dice.random(40) * 100), [f"s{i % 8}" for i in range(40)]
    order = dice.permutation(40)
    again = one([scores[i] for i in order], [spaces[i] for i in order])
    first = one(scores, spaces)
    assert (again.low, again.high) == pytest.approx((first.low, first.high))


def test_equal_scores_have_no_width_and_one_space_has_no_interval() -> None:
    same = one([50.0] * 10, [f"s{i % 5}" for i in range(10)])
    assert (same.value, same.low, same.high) == (50, 50, 50)
    alone = one([0.0, 100.0, 100.0], ["s"] * 3)
    assert (alone.low, alone.high, alone.spaces) == (0, 100, 1)
    assert alone.value == pytest.approx(200 / 3)


def test_a_column_without_scores_is_told_by_its_count() -> None:
    empty, full = bootstrap.intervals(np.array([[np.nan, 1.0]] * 4), list("abab"), 200, 0.95, 7, (0, 100))
    assert empty.count == 0
    assert full.count == 4


def test_nan_is_left_out_of_mean_and_draws() -> None:
    found = one([100.0, np.nan, 0.0, np.nan, 100.0, 0.0], list("aabbcc"))
    assert found.value == 50
    assert found.count == 4
    assert 0 <= found.low <= 50 <= found.high <= 100


def test_clusters_widen_the_interval() -> None:
    """Twenty copies of one space's outcome carry no more knowledge than one."""
    dice = np.random.default_rng(3)
    outcomes = dice.integers(0, 2, 20) * 100.0
    clustered = one(list(np.repeat(outcomes, 20)), list(np.repeat([f"s{i}" for i in range(20)], 20)))
    independent = one(list(np.repeat(outcomes, 20)), [f"s{i}" for i in range(400)])
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    dice = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        rates = dice.beta(2, 2, 25)
        scores = (dice.random((25, 6)) < rates[:, None]) * 100.0
        found = one(list(scores.ravel()), list(np.repeat([f"s{i}" for i in range(25)], 6)), draws=400, seed=trial)
        hits += found.low <= 50 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_minimum_detectable_effect_by_hand() -> None:
    # 1.96 + 0.84 standard errors
    assert bootstrap.minimum_detectable(1.0, 0.95) == pytest.approx(2.8016, abs=1e-3)


def test_ties_do_not_hang_on_the_rounding_of_sums() -> None:
    """Four rooms draw the mean itself often; thirds do not add up exactly, hundredfold whole numbers do."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        spaces = [f"s{i % 4}" for i in range(18)]
        whole = rng.integers(-3, 4, 18)
        exact = one([float(300 * n) for n in whole], spaces, draws=4000)
        thirds = one([100 * n / 3 for n in whole], spaces, draws=4000)
        assert (thirds.low, thirds.high) == pytest.approx((exact.low / 9, exact.high / 9), abs=0.5)
