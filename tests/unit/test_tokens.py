"""Tokens of a picture: the table of known sizes, and what a refused sample is told to do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.lib import tokens
from scripts.lib.errors import EqaError

REAL = tokens.ProcessorLimits(65536, 16777216)


@pytest.mark.parametrize(
    ("max_pixels", "hm3d", "scannet", "vga"),
    [(147456, 144, 140, 140), (196608, 180, 192, 192), (240000, 220, 234, 234), (589824, 576, 588, 300)],
)
def test_tokens_of_open_eqas_frames(max_pixels, hm3d, scannet, vga):
    for size, wanted in (((1920, 1080), hm3d), ((1296, 968), scannet), ((640, 480), vga)):
        assert tokens.image_tokens(*size, max_pixels, 1024, *REAL) == wanted + tokens.MARKS_PER_IMAGE


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((500, 27), (500, 28)),
        ((1, 1), (32, 32)),
        ((6000, 28), (5040, 28)),  # 214 to 1 becomes 180 to 1
        ((28, 6000), (28, 5040)),
        ((1296, 968), (888, 663)),
    ],
)
def test_sizes_that_llamafactory_mends(size, wanted):
    assert tokens.llamafactory_size(*size, 589824, 1024) == wanted


def test_rounding_can_exceed_the_cap():
    """896x672 is 602,112 px under a cap of 589,824."""
    size = tokens.processor_size(*tokens.llamafactory_size(1296, 968, 589824, 1024), 65536)
    assert size == (896, 672)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1024, 600_000))
def test_any_picture_is_counted_or_refused_for_its_shape(width, height, max_pixels):
    try:
        count = tokens.image_tokens(width, height, max_pixels, 1024, 1024)
    except EqaError:
        count = None
    if count is None:
        assert max(width, height) > 28 * min(width, height)
    else:
        assert count > tokens.MARKS_PER_IMAGE


SIZES = st.lists(st.tuples(st.integers(64, 2000), st.integers(64, 2000)), min_size=1, max_size=4)


@settings(deadline=None)
@given(SIZES, st.integers(0, 3000), st.integers(80_000, 600_000))
def test_the_suggested_image_max_pixels_fits_and_the_next_larger_does_not(sizes, room, max_pixels):
    found = tokens.largest_max_pixels(sizes, room, max_pixels, 1024, REAL)

    def need(pixels: int) -> int:
        total = 0
        for size in sizes:
            stored = tokens.fitted_size(*size, pixels, REAL.min_pixels)
            now = tokens.image_tokens(*size, pixels, 1024, *REAL)
            total += max(now, tokens.image_tokens(*stored, pixels, 1024, *REAL))
        return total

    if found is None:
        assert need(REAL.min_pixels) > room
        return
    assert found < max_pixels
    assert need(found) <= room
    if found + 1024 < max_pixels:
        assert need(found + 1024) > room


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"size": {"shortest_edge": 65536}}, "two numbers of px are wanted"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "two numbers of px are wanted"),
        ({"size": {"shortest_edge": 1024, "longest_edge": 9000}, "patch_size": 14}, "patch_size x merge_size = 28 px"),
        ({}, "two numbers of px are wanted"),
    ],
)
def test_a_processor_of_another_kind_is_refused(tmp_path, content, part):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(EqaError, match=part):
        tokens.read_processor_limits(tmp_path)


def test_the_processors_own_part_goes_first(tmp_path):
    with pytest.raises(EqaError, match=r"no preprocessor_config\.json nor processor_config\.json"):
        tokens.read_processor_limits(tmp_path)
    old = {"size": {"shortest_edge": 1, "longest_edge": 2}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    (tmp_path / "processor_config.json").write_text("{}")
    assert tokens.read_processor_limits(tmp_path) == (1, 2)
    new = {"image_processor": {"size": {"shortest_edge": 3, "longest_edge": 4}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(new))
    assert tokens.read_processor_limits(tmp_path) == (3, 4)
