"""Sizes that frames are stored at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.lib.tokens import fitted_size, llamafactory_size, processor_size


@pytest.mark.parametrize(
    ("max_pixels", "hm3d", "scannet", "vga"),
    [
        (147456, (512, 288), (448, 320), (448, 320)),
        (196608, (576, 320), (512, 384), (512, 384)),
        (240000, (640, 352), (576, 416), (576, 416)),
        (589824, (1024, 576), (864, 640), (640, 480)),  # the processor itself would take 896x672, over the cap
    ],
)
@pytest.mark.parametrize("least", [1024, 65536])
def test_open_eqas_frames_get_the_processors_own_sizes(max_pixels, hm3d, scannet, vga, least):
    assert fitted_size(1920, 1080, max_pixels, least) == hm3d
    assert fitted_size(1296, 968, max_pixels, least) == scannet
    assert fitted_size(640, 480, max_pixels, least) == vga


def test_demo_frames_use_their_whole_budget():
    assert fitted_size(320, 240, 24576, 1024) == (192, 128)


def test_a_cap_equal_to_the_processors_minimum_is_kept():
    width, height = fitted_size(1920, 1080, 65536, 65536)
    assert width * height == 65536


@given(st.integers(32, 4000), st.integers(32, 4000), st.sampled_from([1024, 65536]), st.integers(0, 600_000))
def test_later_steps_leave_a_stored_frame_alone(width, height, least, more):
    max_pixels = least + more
    size = fitted_size(width, height, max_pixels, least)
    assert size[0] % 32 == size[1] % 32 == 0
    assert least <= size[0] * size[1] <= max_pixels
    assert processor_size(*llamafactory_size(*size, max_pixels, least), least) == size
