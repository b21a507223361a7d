"""Which frames are chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.lib.frame_choice import TooFewFrames, check_enough, cluster_indices, midpoint_indices, uniform_indices


@given(st.integers(1, 20_000), st.integers(1, 64))
def test_uniform_is_open_eqas_formula(total, count):
    assert uniform_indices(total, count) == [int(i) for i in np.round(np.linspace(0, total - 1, count)).astype(int)]


@given(st.integers(1, 20_000), st.integers(1, 64))
def test_uniform_ascends_within_the_episode_and_repeats_only_when_short(total, count):
    indices = uniform_indices(total, count)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert indices[-1] == (total - 1 if count > 1 else 0)
    assert len(set(indices)) == min(total, count)


def test_uniform_of_known_episodes():
    assert uniform_indices(168, 8) == [0, 24, 48, 72, 95, 119, 143, 167]
    assert uniform_indices(600, 8) == [0, 86, 171, 257, 342, 428, 513, 599]
    assert uniform_indices(8, 8) == list(range(8))
    assert uniform_indices(9, 1) == [0]
    assert uniform_indices(6, 8) == [0, 1, 1, 2, 3, 4, 4, 5]


@given(st.integers(1, 20_000), st.integers(1, 64))
def test_midpoints_are_the_middles_of_equal_parts(total, count):
    indices = midpoint_indices(total, count)
    assert len(indices) == count
    assert all(0 <= i < total for i in indices)
    assert len(set(indices)) == min(total, count)
    for k, i in enumerate(indices):
        assert abs((i + 0.5) - (k + 0.5) * total / count) <= 0.5


def test_midpoint_leaves_out_the_ends():
    assert midpoint_indices(168, 8) == [10, 31, 52, 73, 94, 115, 136, 157]


def _scenes(lengths: list[int]) -> list[np.ndarray]:
    return [np.full((12, 16, 3), 20 * k, np.uint8) for k, length in enumerate(lengths) for _ in range(length)]


def test_cluster_takes_one_frame_of_each_scene_however_short():
    frames = _scenes([40, 2, 30, 1, 10, 3, 20, 4])
    chosen = cluster_indices(len(frames), 8, lambda indices: (frames[i] for i in indices))
    assert [frames[i][0, 0, 0] // 20 for i in chosen] == list(range(8))


@given(st.integers(8, 400), st.integers(1, 8))
def test_cluster_of_a_still_camera_is_spread_over_time(total, count):
    still = np.zeros((12, 16, 3), np.uint8)
    chosen = cluster_indices(total, count, lambda indices: (still for _ in indices))
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    gaps = np.diff([-1, *chosen, total])
    assert gaps.max() <= 2 * total / count + 4


@given(st.lists(st.integers(0, 255), min_size=9, max_size=150))
def test_cluster_never_repeats_a_frame(greys):
    chosen = cluster_indices(len(greys), 8, lambda indices: (np.full((12, 16, 3), greys[i], np.uint8) for i in indices))
    assert len(set(chosen)) == 8
    assert chosen == sorted(chosen)


def test_cluster_looks_at_a_bounded_number_of_frames():
    seen: list[int] = []

    def thumbnails(indices):
        for i in indices:
            seen.append(i)
            yield np.full((12, 16, 3), i % 256, np.uint8)

    cluster_indices(100_000, 8, thumbnails)
    assert len(seen) == 120


@pytest.mark.parametrize("total", [0, 6, 7])
def test_episode_with_too_few_frames_is_refused_by_name(total):
    with pytest.raises(TooFewFrames) as refused:
        check_enough("hm3d-v0/000-x", total, 8, "refuse")
    assert "hm3d-v0/000-x" in str(refused.value)
    assert "8" in str(refused.value)


def test_six_frames_may_be_repeated_but_none_may_not():
    check_enough("e", 6, 8, "repeat")
    check_enough("e", 8, 8, "refuse")
    with pytest.raises(TooFewFrames):
        check_enough("e", 0, 8, "repeat")
