"""Intervals by a bootstrap over spaces: questions about one space are not independent, so whole spaces are drawn.

Draws are counts (how often each space is drawn), so that a mean over questions is a ratio of two matrix products and a
hundred thousand questions cost no more than their spaces. The interval is BCa (bias-corrected and accelerated: Efron
1987), which keeps its coverage for skewed, bounded scores better than plain percentiles; where its corrections are
undefined the percentiles stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# draws x spaces of one block of weights; 2^22 float64 = 32 MiB
BLOCK = 1 << 22
TIE = 1e-9  # far under any real difference of means of scores, far over the rounding of their sums
POWER = 0.8  # share of studies that would see an effect of the minimum detectable size


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, in the unit of the scores.

    Attributes:
        value: the mean over questions.
        low, high: bounds; the widest possible range where fewer than two spaces leave nothing to draw from.
        spread: standard deviation of the drawn means (0 where there are none).
        spaces: spaces with at least one score.
        count: scores.
    """

    value: float
    low: float
    high: float
    spread: float
    spaces: int
    count: int


def draw_weights(spaces: int, draws: int, seed: int) -> np.ndarray:
    """How often each space is drawn: shape (draws, spaces), each row sums to `spaces`. Same seed, same draws."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((draws, spaces), dtype=np.int32)
    step = max(1, BLOCK // max(1, spaces))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        picks = generator.integers(0, spaces, size=(rows, spaces))
        flat = picks + np.arange(rows)[:, None] * spaces
        weights[start : start + rows] = np.bincount(flat.ravel(), minlength=rows * spaces).reshape(rows, spaces)
    return weights


def intervals(
    scores: np.ndarray, spaces: Sequence[str], draws: int, confidence: float, seed: int, bounds: tuple[float, float]
) -> list[Interval]:
    """Mean and interval of each column.

    Args:
        scores: shape (questions, columns); NaN where a column does not apply to a question.
        spaces: the space of each question. Shape (questions,).
        draws: bootstrap draws.
        confidence: coverage of the interval, between 0 and 1.
        seed: of the draws; the same draws serve every column, which pairs them.
        bounds: least and largest possible score, the interval where there is nothing to draw from.
    Returns:
        One Interval a column; value 0 and count 0 for a column without scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    names, owner = np.unique(np.asarray(spaces, dtype=object).astype(str), return_inverse=True)
    applies = ~np.isnan(scores)
    filled = np.where(applies, scores, 0.0)
    sums = np.zeros((len(names), scores.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, owner, filled)
    np.add.at(counts, owner, applies)
    means = _drawn_means(sums, counts, draws, seed)
    return [_interval(sums[:, i], counts[:, i], means[:, i], confidence, bounds) for i in range(scores.shape[1])]


def _drawn_means(sums: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    spaces = len(sums)
    if spaces == 0:
        return np.zeros((draws, sums.shape[1]))
    weights = draw_weights(spaces, draws, seed)
    means = np.empty((draws, sums.shape[1]))
    step = max(1, BLOCK // spaces)
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, draws, step):
            block = weights[start : start + step].astype(np.float64)
            means[start : start + step] = (block @ sums) / (block @ counts)  # NaN: a draw without such a question
    return means


def _interval(
    sums: np.ndarray, counts: np.ndarray, means: np.ndarray, confidence: float, bounds: tuple[float, float]
) -> Interval:
    present = counts > 0
    sums, counts, count = sums[present], counts[present], int(counts.sum())
    if count == 0:
        return Interval(0.0, *bounds, 0.0, 0, 0)
    value = float(sums.sum() / counts.sum())
    means = means[~np.isnan(means)]
    if len(sums) < 2 or len(means) < 2:
        return Interval(value, *bounds, 0.0, len(sums), count)
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    low, high = _bca(value, means, left_out, confidence)
    # a rounding error may not put the mean outside its own interval
    return Interval(value, min(low, value), max(high, value), float(means.std(ddof=1)), len(sums), count)


def _bca(value: float, means: np.ndarray, left_out: np.ndarray, confidence: float) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    # a mean that equals the value in exact arithmetic may differ in its last bits: counted as below or above, a few rooms
    # with many such draws would shift the whole interval
    equal = np.isclose(means, value, rtol=TIE, atol=TIE)
    below = (np.count_nonzero((means < value) & ~equal) + 0.5 * np.count_nonzero(equal)) / len(means)
    spread = left_out.mean() - left_out
    scale = float(np.square(spread).sum()) ** 1.5
    if 0 < below < 1 and scale > 0:
        bias, acceleration = ndtri(below), float((spread**3).sum()) / (6 * scale)
        shifted = bias + ndtri(tails)
        room = 1 - acceleration * shifted
        if np.all(room > 0):
            tails = ndtr(bias + shifted / room)
    low, high = np.quantile(means, tails)
    return float(low), float(high)


def minimum_detectable(spread: float, confidence: float) -> float:
    """Least true difference that a test set with this spread shows in 8 of 10 studies, in the unit of the scores."""
    from scipy.special import ndtri

    return float((ndtri((1 + confidence) / 2) + ndtri(POWER)) * spread)
