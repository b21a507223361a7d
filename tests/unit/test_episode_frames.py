"""What an episode's stored frames depend on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.lib.episode_frames import check_disk, encode, frames_config, frames_key, stored_record
from scripts.lib.errors import EqaError
from tests.lib import raw_data as raw

EPISODE = {"episode_history": "a/b", "root": "source", "kind": "frames", "path": "a/b", "frames": 9, "digest": "1"}


def test_key_changes_with_source_and_recipe_and_with_nothing_else():
    wanted = frames_config(raw.config())
    key = frames_key(EPISODE, wanted)
    assert frames_key(EPISODE | {"shard": "0001", "status": "ok"}, wanted) == key
    for name, value in {"digest": "2", "root": "demo", "path": "b", "frames": 8, "kind": "video"}.items():
        assert frames_key(EPISODE | {name: value}, wanted) != key
    for name in wanted:
        assert frames_key(EPISODE, wanted | {name: "other"}) != key


def test_smallest_picture_is_the_processors_or_the_recipes():
    recipe = raw.config(model_source="huggingface", vision_image_max_pixels=147456)
    assert frames_config(recipe)["min_pixels"] == 65536
    recipe = raw.config(vision_image_min_pixels=4096)
    assert frames_config(recipe)["min_pixels"] == 4096
    assert frames_config(raw.config())["min_pixels"] == 1024


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"key": "k"}', '{"key": "k", "files": []}', '{"key": "k", "files": {"../x": {}}}']
)
def test_a_garbled_record_is_no_record(tmp_path, text):
    (tmp_path / "episode.json").write_text(text)
    assert stored_record(tmp_path, "k") is None


def test_a_record_with_another_key_is_no_record(tmp_path):
    (tmp_path / "episode.json").write_text(json.dumps({"key": "k", "files": {}}))
    assert stored_record(tmp_path, "k") is not None
    assert stored_record(tmp_path, "other") is None


@pytest.mark.parametrize("size", [(64, 32), (96, 64), (160, 96)])
def test_encoded_picture_has_the_wanted_size_and_looks_alike(size):
    data = encode(raw.picture(3), size, 95)
    got = raw.cv2.imdecode(np.frombuffer(data, np.uint8), raw.cv2.IMREAD_COLOR)
    assert got.shape == (size[1], size[0], 3)
    assert abs(got.mean() - raw.picture(3).mean()) < 3


def test_a_full_disk_is_told_before_the_work(tmp_path):
    wanted = frames_config(raw.config())
    check_disk(tmp_path / "not/there/yet", 10, wanted)
    with pytest.raises(EqaError, match="MiB free"):
        check_disk(tmp_path, 10**12, wanted)
