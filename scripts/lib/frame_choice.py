"""Which frames of an episode the model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from scripts.lib.errors import EqaError

if TYPE_CHECKING:
    import numpy as np

# `cluster` looks at no more frames than these, evenly spaced: a minute of walking at two a second
CLUSTER_CANDIDATES = 120
THUMBNAIL_PX = (16, 12)  # layout of colours, not detail
# weight of time among 576 colour values of 0 to 255: too little to matter unless the camera stands still
CLUSTER_TIME = 100.0


class TooFewFrames(EqaError):
    """An episode is shorter than `frames.count`."""


def uniform_indices(total: int, count: int) -> list[int]:
    """Evenly spaced frames, first and last included.

    Args:
        total: frames in the episode, >= 1.
        count: frames wanted, >= 1.
    Returns:
        `count` ascending indices in [0, total - 1]; repeats only where total < count.
    Source:
        Open-EQA's own baselines: round(linspace(0, n - 1, k)), numpy's rounding of halves to even included, so that
        results compare.
    """
    import numpy as np

    return np.round(np.linspace(0, total - 1, count)).astype(int).tolist()


def midpoint_indices(total: int, count: int) -> list[int]:
    """The middle frames of `count` equal parts of the episode; the ends, often a blurred start or stop, are left out.

    Returns:
        `count` ascending indices in [0, total - 1]; repeats only where total < count.
    Source:
        Temporal Segment Networks (Wang et al. 2016, arXiv:1608.00859): one snippet of each of K equal segments, at test
        time its middle.
    """
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def cluster_indices(total: int, count: int, thumbnails: Callable[[Sequence[int]], Iterator[np.ndarray]]) -> list[int]:
    """Frames spread over visual change: the walk is cut where the picture changes, each part gives its middle frame.

    Args:
        total: frames in the episode, >= count.
        count: frames wanted, >= 1.
        thumbnails: gives a small picture (12, 16, 3), uint8, for each of the given frames; frames come one by one, so
            that memory stays small.
    Returns:
        `count` ascending indices without repeats. Deterministic; no weights, no randomness.
    Source:
        Clusters of successive frames with the least squared distance to their means (Fisher 1958, On Grouping for
        Maximum Homogeneity), as Potapov et al. 2014 (Category-Specific Video Summarization, ECCV) cut videos; here over
        colour thumbnails. Of each cluster the middle frame: the one nearest to the mean is often a bare wall.
    """
    import numpy as np

    candidates = uniform_indices(total, min(total, CLUSTER_CANDIDATES))
    n = len(candidates)
    if count >= n:
        return uniform_indices(total, count)
    colours = np.stack([picture.reshape(-1) for picture in thumbnails(candidates)]).astype(np.float64)
    points = np.column_stack([colours, np.linspace(0, CLUSTER_TIME, n)])
    return [candidates[(start + stop - 1) // 2] for start, stop in _segments(points, count)]


def _segments(points: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Cut `points` (n, d) into `count` successive parts, (start, stop) each, with the least squares in all."""
    import numpy as np

    n = len(points)
    sums = np.vstack([np.zeros(points.shape[1]), points.cumsum(axis=0)])
    squares = np.concatenate([[0.0], (points**2).sum(axis=1).cumsum()])
    cost = np.full((n + 1, n + 1), np.inf)  # cost[a, b]: squared distances of points a..b-1 to their mean
    for a in range(n):
        lengths = np.arange(1, n - a + 1)
        cost[a, a + 1 :] = squares[a + 1 :] - squares[a] - ((sums[a + 1 :] - sums[a]) ** 2).sum(axis=1) / lengths
    best = cost[0].copy()  # best[b]: least cost of the first b points in the parts so far
    cuts = []
    for _ in range(count - 1):
        ways = best[:, None] + cost
        cuts.append(ways.argmin(axis=0))
        best = ways.min(axis=0)
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    ends.append(0)
    ends.reverse()
    return list(pairwise(ends))


def check_enough(episode: str, total: int, count: int, short: str) -> None:
    """Refuse an episode without frames, and one with fewer than `count` unless `short` is "repeat".

    Raises:
        TooFewFrames: names the episode, both numbers and the way out.
    """
    if total < 1:
        raise TooFewFrames(f"{episode}: no frames; frames.count={count} are wanted")
    if total < count and short != "repeat":
        raise TooFewFrames(
            f"{episode}: {total} frames, frames.count={count} are wanted; set frames.short: repeat to show some "
            f"of them twice, or lower frames.count"
        )
