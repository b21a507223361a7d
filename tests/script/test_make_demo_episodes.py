"""make_demo_episodes by its third door: the files that it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import struct
import uuid
import zlib
from collections import Counter
from pathlib import Path

import cv2  # before decord, which breaks OpenCV's PNG reader when it comes first
import numpy as np
import pytest

from scripts import make_demo_episodes as script
from scripts.lib.demo_scenes import CATEGORIES, frame_times, render_depth, render_frame
from scripts.lib.files import check_manifest, folder_files
from scripts.make_demo_episodes import main, plan_episodes, scene_of, stored_zlib

COUNT, SEED = 6, 7


def _main(folder: Path, count: object = COUNT, seed: object = SEED) -> int:
    config = {"data": {"demo_episodes": count, "demo_seed": seed}}
    return main(["--config", json.dumps(config), "--output-dir", str(folder)])


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "raw" / "demo"
    assert _main(folder) == 0
    return folder


@pytest.fixture(scope="module")
def questions(demo) -> list[dict]:
    return json.loads((demo / "questions.json").read_text())


def test_manifest_lists_every_file_with_its_hash(demo):
    manifest = check_manifest(demo / "manifest.json")
    assert sorted(manifest["files"]) == folder_files(demo, {"manifest.json"})
    assert "questions.json" in manifest["files"]


def test_two_runs_give_the_same_bytes(demo, tmp_path):
    assert _main(tmp_path / "again") == 0
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (demo / "manifest.json").read_bytes()


def test_another_seed_gives_other_rooms_and_ids(questions, tmp_path):
    assert _main(tmp_path / "other", count=2, seed=8) == 0
    other = json.loads((tmp_path / "other" / "questions.json").read_text())
    assert not {q["question_id"] for q in other} & {q["question_id"] for q in questions}


def test_flat_and_nested_config_mean_the_same(tmp_path):
    assert main(["--config", '{"demo_episodes":2,"demo_seed":7}', "--output-dir", str(tmp_path / "flat")]) == 0
    assert _main(tmp_path / "nested", count=2) == 0
    flat, nested = (tmp_path / name / "manifest.json" for name in ("flat", "nested"))
    assert flat.read_bytes() == nested.read_bytes()


def test_questions_follow_the_open_eqa_schema(questions):
    keys = {"question", "answer", "category", "question_id", "episode_history"}
    for q in questions:
        assert set(q) - {"extra_answers"} == keys
        assert ("extra_answers" in q) == (q["category"] == "object localization")
        assert str(uuid.UUID(q["question_id"])) == q["question_id"]
    assert len({q["question_id"] for q in questions}) == len(questions)
    by_episode = Counter(q["episode_history"] for q in questions)
    assert len(by_episode) == COUNT
    assert min(by_episode.values()) >= 6
    assert {q["category"] for q in questions} == set(CATEGORIES)


def test_every_episode_has_its_frames_on_disk(demo):
    pytest.importorskip("decord")
    import decord

    for episode in plan_episodes(COUNT, SEED):
        target = demo / "frames" / episode.history
        if episode.kind == "frames":
            names = [p.name for p in sorted(target.glob("*-rgb.png"))]
            assert names == [f"{i:06d}-rgb.png" for i in range(episode.frames)]
            assert 12 <= len(names) <= 16
        elif episode.kind == "video":
            reader = decord.VideoReader(str(target) + ".mp4", num_threads=1)
            assert len(reader) == episode.frames
            assert 16 <= len(reader) <= 24
            assert reader[0].shape == (240, 320, 3)


def test_pictures_on_disk_are_the_scene_in_true_colours(demo):
    pytest.importorskip("decord")
    import decord

    for episode in plan_episodes(COUNT, SEED):
        scene, target = scene_of(episode), demo / "frames" / episode.history
        middle = episode.frames // 2
        truth = render_frame(scene, frame_times(episode.frames)[middle], (320, 240)).astype(int)
        if episode.kind == "frames":
            png = cv2.imdecode(np.fromfile(target / f"{middle:06d}-rgb.png", np.uint8), cv2.IMREAD_COLOR)
            assert (png[:, :, ::-1] == truth).all()
        elif episode.kind == "video":
            frame = decord.VideoReader(str(target) + ".mp4", num_threads=1)[middle].asnumpy()
            assert np.abs(frame.astype(int) - truth).mean() < 8


def test_the_sens_file_reads_as_scannet_wrote_it(demo):
    (file,) = demo.rglob("*.sens")
    assert file.relative_to(demo).as_posix() == "scannet/scans/scene0900_00/scene0900_00.sens"
    (episode,) = (e for e in plan_episodes(COUNT, SEED) if e.kind == "sens")
    assert episode.history.endswith("scannet-scene0900_00")
    scene = scene_of(episode)
    with file.open("rb") as stream:
        version, length = struct.unpack("<IQ", stream.read(12))
        assert (version, stream.read(length)) == (4, b"StructureSensor")
        intrinsic = np.frombuffer(stream.read(64 * 4), "<f4").reshape(4, 4, 4)
        assert intrinsic[0, 0, 2] == 160
        assert (intrinsic[1] == np.eye(4)).all()
        color_codec, depth_codec = struct.unpack("<ii", stream.read(8))
        assert (color_codec, depth_codec) == (2, 1)
        assert struct.unpack("<IIII", stream.read(16)) == (320, 240, 80, 60)
        (shift,) = struct.unpack("<f", stream.read(4))
        (frames,) = struct.unpack("<Q", stream.read(8))
        assert (shift, frames) == (1000.0, episode.frames)
        times = []
        for i in range(frames):
            pose = np.frombuffer(stream.read(64), "<f4").reshape(4, 4)
            color_time, depth_time, color_size, depth_size = struct.unpack("<QQQQ", stream.read(32))
            color, depth = stream.read(color_size), stream.read(depth_size)
            times.append(color_time)
            assert depth_time == color_time
            t = frame_times(frames)[i]
            picture = cv2.imdecode(np.frombuffer(color, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
            assert np.abs(picture.astype(int) - render_frame(scene, t, (320, 240))).mean() < 6
            metres = np.frombuffer(zlib.decompress(depth), "<u2").reshape(60, 80) / shift
            assert (metres == render_depth(scene, t, (80, 60)) / 1000).all()
            assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
            assert 0 < pose[0, 3] < scene.width
        assert times == sorted(set(times))
        assert stream.read() == b""


def test_a_stored_zlib_stream_is_one():
    for data in (b"", b"abc", bytes(range(256)) * 30):
        assert zlib.decompress(stored_zlib(data)) == data


# ------------------------------------------------------------------------------------------------ the plan


def test_the_shipped_demo_has_44_episodes_in_39_spaces_half_folders_half_videos():
    episodes = plan_episodes(44, 7)
    assert len({e.history for e in episodes}) == 44
    spaces = {re.sub(r"_\d\d$", "", e.history.split("-", 3)[3]) for e in episodes}
    assert len(spaces) == 39
    assert len({e.scene_seed for e in episodes}) == 39
    assert Counter(e.kind for e in episodes) == {"frames": 22, "video": 21, "sens": 1}
    assert Counter(e.history.split("/")[0] for e in episodes) == {"hm3d-v0": 22, "scannet-v0": 22}
    mixed = Counter((e.history.split("/")[0], e.kind) for e in episodes)
    assert min(mixed["hm3d-v0", "frames"], mixed["hm3d-v0", "video"]) >= 10
    assert min(mixed["scannet-v0", "frames"], mixed["scannet-v0", "video"]) >= 10


def test_ids_follow_the_two_styles_of_open_eqa():
    for episode in plan_episodes(44, 7):
        assert re.fullmatch(
            r"hm3d-v0/9\d\d-hm3d-DEMO[0-9a-f]{7}|scannet-v0/9\d\d-scannet-scene09\d\d_0[01]", episode.history
        )


def test_a_second_scan_has_the_room_of_the_first_and_other_questions():
    episodes = plan_episodes(12, 7)
    by_history = {e.history.rpartition("-")[2]: e for e in episodes if e.history.startswith("scannet")}
    seconds = [name for name in by_history if name.endswith("_01")]
    assert seconds
    rows = script.ask_questions(episodes, 7)
    for name in seconds:
        first, second = by_history[name.replace("_01", "_00")], by_history[name]
        assert first.scene_seed == second.scene_seed
        assert (first.path, second.path) == (0, 1)
        asked = [{q["question"] for q in rows if q["episode_history"] == e.history} for e in (first, second)]
        assert len(asked[0] & asked[1]) <= 2


def test_kinds_of_room_take_turns():
    kinds = Counter(scene_of(e).kind for e in plan_episodes(20, 3) if not e.path)
    assert len(kinds) == 5
    assert max(kinds.values()) - min(kinds.values()) <= 2


# ------------------------------------------------------------------------------------------------ refusals


def test_no_episodes_leave_an_empty_list_and_a_note(tmp_path):
    folder = tmp_path / "demo"
    assert _main(folder, count=2) == 0
    assert _main(folder, count=0) == 0
    assert json.loads((folder / "questions.json").read_text()) == []
    note = {"status": "disabled", "key": "data.demo_episodes"}
    assert json.loads((folder / "manifest.json").read_text()) == note
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "questions.json"]  # old frames are gone


def test_one_episode_is_enough(tmp_path):
    assert _main(tmp_path / "demo", count=1) == 0
    assert len({q["episode_history"] for q in json.loads((tmp_path / "demo" / "questions.json").read_text())}) == 1


@pytest.mark.parametrize("value", [-1, 1.5, "44", True, None])
def test_a_count_that_is_no_number_is_refused_by_its_key(value, tmp_path, capsys):
    assert _main(tmp_path / "demo", count=value) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    assert "data.demo_episodes" in message
    assert repr(value) in message
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("config", [{}, {"data": 3}, {"data": {"demo_episodes": 1}}])
def test_a_config_without_its_keys_is_refused(config, tmp_path, capsys):
    assert main(["--config", json.dumps(config), "--output-dir", str(tmp_path / "demo")]) == 2
    assert "data.demo_" in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_replaced(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert _main(tmp_path) == 2
    message = capsys.readouterr().err.strip()
    assert "thesis.txt" in message
    assert str(tmp_path) in message
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_file_as_output_folder_is_refused(tmp_path, capsys):
    (tmp_path / "demo").write_text("a file")
    assert _main(tmp_path / "demo") == 2
    assert "is a file" in capsys.readouterr().err


def test_a_run_that_fails_leaves_the_old_demo_whole(tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    assert _main(folder, count=3) == 0
    before = (folder / "manifest.json").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(script, "write_video", full_disk)
    assert _main(folder, count=4) == 2
    assert (folder / "manifest.json").read_bytes() == before
    check_manifest(folder / "manifest.json")
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_without_a_name_of_its_own_is_refused(name, tmp_path, monkeypatch, capsys):
    inner = tmp_path / "empty"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert _main(Path(name)) == 2
    assert "--output-dir" in capsys.readouterr().err
    assert inner.is_dir()
