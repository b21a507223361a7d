"""Readers of raw episodes: right frames, and one line for what is broken."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.lib import video_decoder
from scripts.lib.errors import EqaError
from scripts.lib.readers import FrameFolder, SensFile, VideoFile, decode_image, frame_limit, image_size, open_reader
from tests.lib import raw_data as raw

ROOT = Path(__file__).resolve().parents[2]


def progressive_jpeg() -> bytes:
    picture = np.random.default_rng(7).integers(0, 256, (64, 96, 3), np.uint8)
    return raw.cv2.imencode(".jpg", picture, [raw.cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def _refusal(call, *args) -> str:
    with pytest.raises(EqaError) as refused:
        call(*args)
    message = str(refused.value)
    assert "\n" not in message
    return message


def _same(got: np.ndarray, number: int, tolerance: int) -> bool:
    return np.abs(got.astype(int) - raw.picture(number).astype(int)).mean() <= tolerance


# ------------------------------------------------------------------------------------------------ frame folders


def test_frame_folder_gives_its_colour_frames_in_order(tmp_path):
    reader = open_reader("hm3d-v0/x", "frames", raw.frame_folder(tmp_path / "e", 12))
    assert (reader.count, reader.width, reader.height) == (12, 96, 64)
    for index, got in zip([0, 5, 11], reader.read([0, 5, 11]), strict=True):
        assert np.array_equal(got, raw.picture(index))


def test_frame_folder_of_jpeg_is_read_too(tmp_path):
    reader = FrameFolder(raw.frame_folder(tmp_path / "e", 9, ".jpg"))
    assert reader.count == 9
    assert _same(next(reader.read([4])), 4, 4)


def test_scannet_folder_counts_its_first_600_frames(tmp_path):
    folder = tmp_path / "e"
    folder.mkdir()
    data = raw.encoded(0)
    for i in range(605):
        (folder / f"{i:06d}-rgb.png").write_bytes(data)
    assert open_reader("scannet-v0/002-scannet-scene0709_00", "frames", folder).count == 600
    assert open_reader("hm3d-v0/000-hm3d-x", "frames", folder).count == 605
    assert frame_limit("mine/x", "sens") == 600


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"this is text\n" * 50, "no PNG or JPEG"), (b"", "0 bytes"), (raw.encoded(3)[:200], "ends early")],
)
def test_a_bad_frame_is_named(tmp_path, content, says):
    folder = raw.frame_folder(tmp_path / "e", 9)
    bad = folder / "000003-rgb.png"
    bad.write_bytes(content)
    reader = FrameFolder(folder)
    for call in (lambda: list(reader.read([3])), lambda: reader.check([3])):
        message = _refusal(call)
        assert str(bad) in message
        assert says in message


def test_a_frame_of_another_size_is_refused(tmp_path):
    folder = raw.frame_folder(tmp_path / "e", 9)
    (folder / "000003-rgb.png").write_bytes(raw.encoded(3, width=64))
    assert "64x64 px" in _refusal(FrameFolder(folder).check, [3])


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_frame_that_is_an_endless_device_is_refused(tmp_path):
    folder = raw.frame_folder(tmp_path / "e", 9)
    (folder / "000003-rgb.png").unlink()
    (folder / "000003-rgb.png").symlink_to("/dev/zero")
    assert "no regular file" in _refusal(FrameFolder(folder).check, [3])


def test_damage_inside_a_picture_is_told_once_and_not_painted_grey(tmp_path, capfd):
    png, jpg = bytearray(raw.encoded(1)), bytearray(raw.encoded(1, ".jpg", 320, 240))
    png[len(png) // 2] ^= 1
    middle = len(jpg) // 2
    jpg[middle : middle + 200] = bytes(200)
    for data in (bytes(png), raw.encoded(1, ".jpg", 320, 240)[:middle] + b"\xff\xd9"):
        assert "damaged" in _refusal(decode_image, data, "frame")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [(60000, 60000), (16384, 1), (16384, 8192), (0, 5)])
def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding(size):
    message = _refusal(decode_image, raw.png_claiming(*size), "frame")
    # a thin one is possible; it is only not what the file holds
    assert ("damaged" if size == (16384, 1) else f"claims {size[0]}x{size[1]} px") in message


@pytest.mark.parametrize("claimed", [2**20, 2**31, 2**32 - 1])
def test_a_png_part_that_claims_more_than_the_file_holds_is_refused_before_decoding(claimed):
    whole = raw.encoded(1)
    at = whole.index(b"IDAT") - 4
    assert "ends early" in _refusal(decode_image, whole[:at] + struct.pack(">I", claimed) + whole[at + 4 :], "frame")


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize(
    "pictures", [b"", png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 96, 64, 0, 0, 1, 10, 0, 0))], ids=["", "first"]
)
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.0], ids=["whole", "half", "none"])
def test_an_animated_png_is_refused_by_name_before_decoding(tmp_path, pictures, kept):
    """OpenCV gives a whole picture for one that is cut short, black where it ends."""
    rows = bytes(64 * (1 + 3 * 96))
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 0))
    body = png_chunk(b"acTL", struct.pack(">II", 2, 0)) + pictures
    body += png_chunk(b"IDAT", zlib.compress(rows[: int(len(rows) * kept)])) + png_chunk(b"IEND", b"")
    (tmp_path / "000000-rgb.png").write_bytes(head + body)
    reader = FrameFolder(tmp_path)
    for read in (lambda: reader.check([0]), lambda: next(reader.read([0]))):
        message = _refusal(read)
        assert message.startswith(f"{tmp_path}/000000-rgb.png: an animated PNG")


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_decoding():
    whole = progressive_jpeg()
    assert decode_image(whole, "frame").shape == (64, 96, 3)
    last = whole.rindex(b"\xff\xda")
    assert "101 scans" in _refusal(
        decode_image, whole[:-2] + whole[last:-2] * (101 - whole.count(b"\xff\xda")) + whole[-2:], "frame"
    )


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff\xe1"]))
def test_any_bytes_give_a_size_or_one_line(data, head):
    try:
        width, height = image_size(head + data, "x")
    except EqaError:
        return
    assert 1 <= width <= 16384
    assert 1 <= height <= 16384
    assert width * height <= 2**26


# ------------------------------------------------------------------------------------------------ .sens


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [raw.encoded(i, ".jpg") for i in range(12)]


def test_sens_gives_the_wanted_frames_and_their_untouched_bytes(tmp_path, jpegs):
    file = tmp_path / "a.sens"
    file.write_bytes(raw.sens(jpegs))
    reader = open_reader("scannet-v0/x", "sens", file)
    assert (reader.count, reader.width, reader.height) == (12, 96, 64)
    assert reader.jpeg([0, 7, 11]) == [jpegs[0], jpegs[7], jpegs[11]]
    assert all(_same(got, i, 4) for i, got in zip([0, 7, 11], reader.read([0, 7, 11]), strict=True))
    reader.check(range(12))
    reader.close()


def test_sens_counts_its_first_600_frames_and_knows_of_the_rest(tmp_path, jpegs):
    file = tmp_path / "a.sens"
    file.write_bytes(raw.sens([jpegs[0]] * 700, depth=b""))
    reader = SensFile(file)
    assert (reader.count, reader.total) == (600, 700)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 3}, "version 3"),
        ({"claimed": 2**60}, f"claims {2**60} frames"),
        ({"claimed": 0}, "0 frames"),
        ({"compression": 0}, "raw"),
        ({"compression": 1}, "png"),
        ({"compression": -1}, "unknown"),
        ({"width": 0}, "0x64"),
        ({"width": 2**31}, "claims colour"),
        ({"claim_bytes": lambda i, n: 2**40 if i == 5 else n}, "frame 5 claims"),
        ({"claim_bytes": lambda i, n: 2**64 - 1 if i == 5 else n}, "frame 5 claims"),
    ],
)
def test_a_hostile_sens_is_refused_at_once(tmp_path, jpegs, changes, says):
    file = tmp_path / "bad.sens"
    file.write_bytes(raw.sens(jpegs, **changes))
    message = _refusal(SensFile, file)
    assert str(file) in message
    assert says in message


def test_a_sens_frame_that_is_damaged_in_between_is_not_copied(tmp_path):
    """Head and end are right; the pixels are cut short within, which only decoding sees."""
    good = raw.encoded(0, ".jpg", 640, 480)
    start = good.index(b"\xff\xda") + 14
    bad = good[: start + 40] + b"\0" * 40 + good[-2:]
    file = tmp_path / "bad.sens"
    file.write_bytes(raw.sens([good, bad], width=640, height=480))
    reader = SensFile(file)
    assert reader.jpeg([0, 0]) == [good, good]
    assert "frame 1: damaged picture" in _refusal(reader.jpeg, [0, 1])


def test_a_sens_frame_that_is_no_jpeg_or_lies_about_its_size_is_refused(tmp_path, jpegs):
    file = tmp_path / "bad.sens"
    file.write_bytes(raw.sens([*jpegs[:3], b"text", raw.encoded(4, ".jpg", 64, 64), jpegs[5][:-40]]))
    reader = SensFile(file)
    assert "no PNG or JPEG" in _refusal(reader.check, [3])
    assert "64x64 px, the header says 96x64" in _refusal(reader.check, [4])
    assert "ends early" in _refusal(reader.check, [5])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_a_sens_cut_off_anywhere_is_refused(tmp_path, jpegs, data):
    whole = raw.sens(jpegs[:4])
    cut = data.draw(st.integers(0, len(whole) - 1))
    file = tmp_path / "cut.sens"
    file.write_bytes(whole[:cut])
    assert str(file) in _refusal(SensFile, file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.data())
def test_a_sens_with_any_flipped_byte_is_read_or_refused_in_one_line(tmp_path, jpegs, data):
    whole = bytearray(raw.sens(jpegs[:2]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    file = tmp_path / "flip.sens"
    file.write_bytes(whole)
    message = ""
    try:
        reader = SensFile(file)
        assert all(picture.shape == (reader.height, reader.width, 3) for picture in reader.read(range(reader.count)))
    except EqaError as error:
        message = str(error)
    assert "\n" not in message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=64), st.binary(max_size=64)), min_size=1, max_size=30), st.data())
def test_sens_offsets_are_right_for_any_blob_sizes(tmp_path, rows, data):
    file = tmp_path / "any.sens"
    parts = [raw.sens([b""], depth=b"")[: -(64 + 32)]]
    parts[0] = parts[0][:-8] + struct.pack("<Q", len(rows))
    for color, depth in rows:
        parts.append(struct.pack("<16fQQQQ", *range(16), 0, 0, len(color), len(depth)) + color + depth)
    file.write_bytes(b"".join(parts))
    reader = SensFile(file)
    index = data.draw(st.integers(0, len(rows) - 1))
    offset, size = reader._places[index]
    assert file.read_bytes()[offset : offset + size] == rows[index][0]


# ------------------------------------------------------------------------------------------------ video


@pytest.mark.parametrize(
    ("name", "fourcc"), [("v.mp4", "mp4v"), ("v.avi", "MJPG"), ("v.avi", "XVID"), ("v.mkv", "mp4v")]
)
def test_video_gives_the_wanted_frames(tmp_path, name, fourcc):
    reader = open_reader("hm3d-v0/x", "video", raw.video(tmp_path / name, 20, fourcc))
    assert (reader.count, reader.width, reader.height) == (20, 96, 64)
    assert all(_same(got, i, 8) for i, got in zip([0, 13, 19], reader.read([0, 13, 19]), strict=True))
    reader.check([0, 19])


def test_real_clip_by_seeking_equals_the_clip_decoded_from_its_start(openeqa):
    reader = VideoFile(openeqa / "open-eqa-hm3d-demo.mp4")
    assert (reader.count, reader.width, reader.height) == (168, 1280, 720)
    wanted = [0, 24, 48]
    capture = raw.cv2.VideoCapture(str(openeqa / "open-eqa-hm3d-demo.mp4"))
    start = [capture.read()[1] for _ in range(49)]
    for index, got in zip(wanted, reader.read(wanted), strict=True):
        assert np.abs(got.astype(int) - start[index].astype(int)).max() <= 3


def _bad_video(folder: Path, name: str) -> bytes:
    good = raw.video(folder / "good.mp4", 20).read_bytes()
    return {
        "empty": b"",
        "text": b"this is no video\n" * 100,
        "cut": good[: len(good) // 2],
        "cut, index first": raw.index_first(good)[:-400],
        "head only": good[:40],
        "no frames": raw.video(folder / "none.mp4", 0).read_bytes(),
    }[name]


@pytest.mark.parametrize("name", ["empty", "text", "cut", "cut, index first", "head only", "no frames"])
def test_a_bad_video_is_named_in_one_line(tmp_path, name, capfd):
    file = tmp_path / "bad.mp4"
    file.write_bytes(_bad_video(tmp_path, name))
    capfd.readouterr()
    message = _refusal(lambda: VideoFile(file).check([0]))
    assert str(file) in message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("name", "fourcc"), [("v.avi", "MJPG"), ("v.mkv", "mp4v")])
def test_a_cut_off_avi_or_mkv_is_refused(tmp_path, name, fourcc):
    file = raw.video(tmp_path / name, 20, fourcc)
    file.write_bytes(file.read_bytes()[:-300])
    assert "cut off" in _refusal(VideoFile, file)


FLIPS = """
import contextlib, random, sys
from pathlib import Path
from scripts.lib.errors import EqaError
from scripts.lib.readers import VideoFile
good, bad = Path(sys.argv[1]), Path(sys.argv[2])
rng, whole = random.Random(7), good.read_bytes()
refused = 0
for _ in range(150):
    data = bytearray(whole)
    data[rng.randrange(whole.find(b"moov"), len(whole))] ^= rng.randrange(1, 256)
    bad.write_bytes(data)
    try:
        with contextlib.closing(VideoFile(bad)) as reader:
            list(reader.read([0, reader.count - 1]))
    except EqaError as error:
        assert "\\n" not in str(error)
        refused += 1
print(refused)
"""


def test_videos_with_a_flipped_byte_in_their_index_are_read_or_refused(tmp_path):
    good = raw.video(tmp_path / "good.mp4", 9)
    command = [sys.executable, "-c", FLIPS, str(good), str(tmp_path / "bad.mp4")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert 0 < int(done.stdout) < 150


def test_a_video_that_ends_decord_is_named_and_the_next_one_read(tmp_path):
    (bad := tmp_path / "bad.mp4").write_bytes((ROOT / "tests/fuzz/crashes/video/index_that_ends_decord").read_bytes())
    assert re.fullmatch(rf"{bad}: decord fails on it \(SIG[A-Z]+\); .*", _refusal(VideoFile, bad))
    assert VideoFile(raw.video(tmp_path / "good.mp4", 5)).count == 5


def test_a_decoder_killed_midway_is_told_and_replaced(tmp_path):
    file = raw.video(tmp_path / "v.mp4", 20)
    reader = VideoFile(file)
    reader._decoder._process.kill()
    assert f"{file}: decord fails on it (SIGKILL)" in _refusal(lambda: reader.check([19]))
    reader.close()
    with contextlib.closing(VideoFile(file)) as again:
        assert _same(next(again.read([19])), 19, 8)


HANGS = """
import sys, time
from multiprocessing.connection import Connection
import numpy as np
connection = Connection(int(sys.argv[2]))
hangs_at = sys.argv[1]
while True:
    what, _ = connection.recv()
    if what == hangs_at:
        time.sleep(600)
    if what == "open":
        connection.send((True, 20))
    elif what == "frames":
        connection.send((True, (1, 64, 96, 3)))
        if hangs_at == "pictures":
            time.sleep(600)
        connection.send_bytes(bytes(64 * 96 * 3))
    else:
        connection.send((True, None))
"""


@pytest.mark.parametrize("at", ["open", "frames", "pictures", "close"])
def test_a_video_that_holds_decord_is_named_in_time_and_its_process_ended(tmp_path, monkeypatch, at):
    file = raw.video(tmp_path / "v.mp4", 20)
    started = []
    popen = subprocess.Popen

    def stand_in(command, **options):
        started.append(popen([sys.executable, "-c", HANGS, at, command[-1]], **options))
        return started[-1]

    monkeypatch.setattr(video_decoder, "_idle", [])
    monkeypatch.setattr(video_decoder.subprocess, "Popen", stand_in)
    monkeypatch.setattr(video_decoder, "ANSWER_S", 2.0)
    before = time.monotonic()
    if at == "close":
        VideoFile(file).close()  # all that was wanted is there: no error, and nobody else gets that process
    else:
        message = _refusal(VideoFile, file)
        assert message.startswith(f"{file}: decord fails on it (no answer within 2 s)")
        assert "\n" not in message
    assert time.monotonic() - before < 30
    assert [process.poll() for process in started] == [-9]
    assert video_decoder._idle == []


def test_one_decoder_serves_video_after_video_and_ends_with_its_process(tmp_path):
    videos = [raw.video(tmp_path / f"{i}.mp4", 5 + i) for i in range(3)]
    code = (
        "import os, sys; from pathlib import Path; from scripts.lib import readers, video_decoder\n"
        "for name in sys.argv[1:]:\n"
        "    reader = readers.VideoFile(Path(name))\n"
        "    print(reader.count, reader._decoder._process.pid)\n"
        "    reader.close()\n"
        "if sys.argv[1].endswith('2.mp4'): os.kill(os.getpid(), 9)\n"
    )
    for order in (videos, videos[::-1]):  # the second process ends without a chance to clear up
        done = subprocess.run([sys.executable, "-c", code, *map(str, order)], cwd=ROOT, capture_output=True, text=True)
        counts, pids = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
        assert counts == (("5", "6", "7") if order is videos else ("7", "6", "5")), done.stderr
        assert len(set(pids)) == 1
        ended = time.monotonic() + 10
        while Path(f"/proc/{pids[0]}").exists():
            assert time.monotonic() < ended, "the decoder outlives its job"
            time.sleep(0.02)


# ------------------------------------------------------------------------------------------------ the one door


def test_only_one_module_imports_decord():
    importers = []
    for file in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "decord" for name in names):
                importers.append(file.relative_to(ROOT).as_posix())
    assert importers == ["scripts/lib/video.py"]


def test_png_can_still_be_read_after_decord_came_in(tmp_path):
    code = (
        "from scripts.lib.video import load_cv2, load_decord; load_decord(); cv2 = load_cv2()\n"
        "from scripts.lib.readers import FrameFolder; from pathlib import Path; import sys\n"
        "print(next(FrameFolder(Path(sys.argv[1])).read([2])).shape)"
    )
    folder = raw.frame_folder(tmp_path / "e", 3)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "(64, 96, 3)", done.stderr


def test_decord_before_opencv_is_a_loud_fault():
    code = "import decord; from scripts.lib.video import load_cv2; load_cv2()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode != 0
    assert "decord was imported before cv2" in done.stderr
