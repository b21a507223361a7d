"""list_source, index_episodes, sample_frames, extract_archive and join_frames by their third doors."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from scripts import extract_archive, index_episodes, join_frames, list_source, sample_frames
from scripts.lib.errors import EqaError
from scripts.lib.files import check_manifest, sha256_file
from scripts.lib.sources import folder_fingerprint, source_archive, source_fingerprint
from tests.lib import raw_data as raw

HM3D = "hm3d-v0/000-hm3d-BFRyYbPCCPE"
SCAN = "scannet-v0/002-scannet-scene0709_00"


class Project:
    """A project's data folders in a temporary place, and its scripts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source = folder / "user"
        self.source.mkdir()
        self.questions = folder / "questions.json"
        self.listing = folder / "source.json"
        self.index = folder / "index/episodes.json"
        self.kept = folder / "index/questions.json"
        self.frames = folder / "frames"
        demo = folder / "demo"
        demo.mkdir()
        (demo / "questions.json").write_text("[]")
        (demo / "manifest.json").write_text('{"status": "disabled", "key": "data.demo_episodes"}')
        self.demo = demo
        self.changes: dict = {}

    def ask(self, *episodes: str) -> Project:
        raw.write_questions(self.questions, episodes)
        return self

    def config(self) -> str:
        return json.dumps(raw.config(self.source, **self.changes))

    def list(self) -> int:
        arguments = ["--questions", self.questions, "--config", self.config(), "--output", self.listing]
        return list_source.main([str(a) for a in arguments])

    def make_index(self, *extra: object) -> int:
        arguments = ["--demo-questions", self.demo / "questions.json", "--demo-manifest", self.demo / "manifest.json"]
        arguments += ["--questions", self.questions, "--source", self.listing, "--config", self.config()]
        arguments += extra or ["--episodes", self.index, "--output-questions", self.kept]
        return index_episodes.main([str(a) for a in arguments])

    def sample(self, shard: str) -> int:
        output = self.frames / f"shards/{shard}.json"
        output.unlink(missing_ok=True)  # as Snakemake does before a rerun
        arguments = ["--episodes", self.index, "--shard", shard, "--config", self.config(), "--frames-dir", self.frames]
        return sample_frames.main([str(a) for a in [*arguments, "--output", output, "--demo-root", self.demo]])

    def extract(self) -> int:
        arguments = ["--episodes", self.index, "--source", self.listing, "--config", self.config()]
        arguments += ["--frames-dir", self.frames, "--work-dir", self.folder / "work"]
        return extract_archive.main([str(a) for a in [*arguments, "--output", self.frames / "archive.json"]])

    def join(self) -> int:
        shards = sorted((self.frames / "shards").glob("*.json"))
        arguments = ["--shards", *shards, "--frames-dir", self.frames, "--output", self.frames / "manifest.json"]
        return join_frames.main([str(a) for a in arguments])

    def run(self) -> int:
        for step in (self.list, self.make_index, lambda: self.sample("0000"), lambda: self.sample("0001"), self.join):
            if code := step():
                return code
        return 0

    def records(self) -> dict[str, dict]:
        return {record["episode_history"]: record for record in json.loads(self.index.read_text())["episodes"]}

    def manifest(self) -> dict:
        return check_manifest(self.frames / "manifest.json")


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def _line(capsys) -> str:
    error = capsys.readouterr().err.strip()
    assert "\n" not in error, error
    return error


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("start", ["", "data"])
@pytest.mark.parametrize(
    ("episode", "place", "kind"),
    [
        (HM3D, f"frames/{HM3D}", "frames"),
        (HM3D, HM3D, "frames"),
        (HM3D, f"frames/{HM3D}.mp4", "video"),
        (HM3D, f"frames/{HM3D}.mkv", "video"),
        (HM3D, f"{HM3D}.avi", "video"),
        (HM3D, "000-hm3d-BFRyYbPCCPE.mp4", "video"),
        (SCAN, "scannet/scans/scene0709_00/scene0709_00.sens", "sens"),
        (SCAN, "scannet/scans_test/scene0709_00/scene0709_00.sens", "sens"),
        (SCAN, "raw/scannet/scans/scene0709_00/scene0709_00.sens", "sens"),
        (SCAN, "raw/scannet/scans_test/scene0709_00/scene0709_00.sens", "sens"),
    ],
)
def test_each_layout_is_found_and_sampled(project, start, episode, place, kind):
    path = project.source / start / place
    if kind == "frames":
        raw.frame_folder(path, 10)
    elif kind == "video":
        raw.video(path, 10, "MJPG" if path.suffix == ".avi" else "mp4v")
    else:
        path.parent.mkdir(parents=True)
        path.write_bytes(raw.sens([raw.encoded(i, ".jpg") for i in range(10)]))
    assert project.ask(episode).run() == 0
    record = project.records()[episode]
    assert (record["kind"], record["path"]) == (kind, f"{start}/{place}".lstrip("/"))
    assert (record["frames"], record["width"], record["height"], record["status"]) == (10, 96, 64, "ok")
    assert project.manifest()["episodes"][episode]["indices"] == [0, 1, 3, 4, 5, 6, 8, 9]


def test_first_place_wins(project):
    raw.frame_folder(project.source / "frames" / HM3D, 10)
    raw.video(project.source / "frames" / f"{HM3D}.mp4", 20)
    assert project.ask(HM3D).run() == 0
    assert project.records()[HM3D]["kind"] == "frames"


def test_a_linked_folder_is_fine(project, tmp_path):
    raw.frame_folder(tmp_path / "elsewhere" / HM3D, 10)
    (project.source / "frames").symlink_to(tmp_path / "elsewhere")
    before = folder_fingerprint(project.source)
    assert project.ask(HM3D).run() == 0
    (tmp_path / "elsewhere" / HM3D / "000010-rgb.png").write_bytes(raw.encoded(1))
    assert folder_fingerprint(project.source) != before


def test_real_clip_is_found_by_its_name(project, openeqa):
    project.source = openeqa
    project.questions = openeqa / "open-eqa-demo-data.json"
    project.changes = {"vision_image_max_pixels": 147456}
    assert project.run() == 0
    episode = project.manifest()["episodes"]["assets/open-eqa-hm3d-demo"]
    assert episode["indices"] == [0, 24, 48, 72, 95, 119, 143, 167]
    assert (episode["width"], episode["height"], episode["total"]) == (512, 288, 168)
    assert json.loads(project.kept.read_text())["summary"]["questions_kept"] == 3


# ------------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_sees_frames_and_not_the_rest(project):
    folder = raw.frame_folder(project.source / "frames" / HM3D, 3)
    before = folder_fingerprint(project.source)
    (folder / "000000-depth.png").write_bytes(b"other depth")
    (folder / "agent_state.pkl").write_bytes(b"never opened")
    (project.source / ".git").mkdir()
    (project.source / ".git/x.mp4").write_bytes(b"x")
    assert folder_fingerprint(project.source) == before
    (folder / "000000-rgb.png").write_bytes(b"longer or shorter")
    assert folder_fingerprint(project.source) != before


def test_fingerprint_ends_although_a_link_leads_back_up(project):
    (project.source / "frames").mkdir()
    (project.source / "frames/loop").symlink_to(project.source)
    assert len(folder_fingerprint(project.source)) == 32


def test_recorded_listing_stands_in_where_the_folder_is_not_here(project):
    raw.frame_folder(project.source / "frames" / HM3D, 8)
    assert project.ask(HM3D).list() == 0
    here = source_fingerprint(str(project.source), project.listing)
    shutil.rmtree(project.source)
    assert source_fingerprint(str(project.source), project.listing) == here
    with pytest.raises(EqaError, match="does not exist"):
        source_fingerprint(str(project.source), project.folder / "none.json")
    assert source_fingerprint("", project.listing) == "disabled"


def test_listing_holds_no_absolute_path(project):
    raw.frame_folder(project.source / "frames" / HM3D, 8)
    (project.source / "frames" / HM3D / "000003-rgb.png").write_text("text")
    assert project.ask(HM3D, SCAN).list() == 0
    assert project.make_index("--report-only", project.folder / "report.json") == 0
    for file in (project.listing, project.folder / "report.json"):
        assert str(project.folder) not in file.read_text()


def test_missing_raw_folder_is_one_line(project, capsys):
    project.ask(HM3D)
    project.source = project.folder / "nowhere"
    assert project.list() == 2
    assert "data.source" in _line(capsys)
    assert not project.listing.exists()


def test_unreadable_folder_is_one_line(project, capsys, monkeypatch):
    folder = raw.frame_folder(project.source / "frames" / HM3D, 8)
    if os.geteuid():
        folder.chmod(0)
    else:  # root may read everything: the kernel's answer is put in
        real = os.scandir

        def refuse(path):
            if str(path) == str(folder):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", refuse)
    assert project.ask(HM3D).list() == 2
    line = _line(capsys)
    folder.chmod(0o755)
    assert str(folder) in line
    assert "Permission denied" in line
    assert not project.listing.exists()


def test_two_episodes_with_one_file_are_refused(project, capsys):
    raw.video(project.source / "clip.mp4", 10)
    assert project.ask("a/clip", "b/clip").list() == 2
    line = _line(capsys)
    assert "a/clip" in line
    assert "b/clip" in line
    assert not project.listing.exists()


# ------------------------------------------------------------------------------------------------ require


def test_all_152_real_episodes_are_named_as_missing(project, openeqa, capsys):
    project.questions = openeqa / "open-eqa-v0.json"
    assert project.list() == 0
    capsys.readouterr()
    assert project.make_index() == 2
    line = _line(capsys)
    assert "152 of 152" in line
    assert HM3D in line
    assert "data.source" in line
    assert not project.index.parent.exists()
    report = project.folder / "report.json"
    assert project.make_index("--report-only", report) == 0
    found = json.loads(report.read_text())
    assert len(found["episodes"]) == 152
    assert {record["status"] for record in found["episodes"]} == {"missing"}
    assert all(record["episode_history"] in record["reason"] for record in found["episodes"])
    assert found["summary"] | {"missing": 152, "ok": 0, "questions": 1636, "questions_kept": 0} == found["summary"]


def test_no_usable_episode_stops_even_where_available_would_do(project, capsys):
    project.changes = {"data_require": "available"}
    assert project.ask(HM3D).list() == 0
    capsys.readouterr()
    assert project.make_index() == 2
    assert "1 of 1" in _line(capsys)


def test_available_shrinks_the_data_and_says_by_how_much(project, capsys):
    raw.frame_folder(project.source / "frames" / HM3D, 8)
    raw.frame_folder(project.source / "frames/hm3d-v0/text", 8)
    (project.source / "frames/hm3d-v0/text/000000-rgb.png").write_text("text")
    project.ask(HM3D, SCAN, "hm3d-v0/text").list()
    capsys.readouterr()
    assert project.make_index() == 2
    line = _line(capsys)
    assert "2 of 3 episodes" in line
    assert "data.require: available" in line
    assert "000000-rgb.png" in line
    assert not project.index.exists()
    project.changes = {"data_require": "available"}
    assert project.run() == 0
    records = project.records()
    assert {name: record["status"] for name, record in records.items()} == {
        HM3D: "ok",
        SCAN: "missing",
        "hm3d-v0/text": "broken",
    }
    kept = json.loads(project.kept.read_text())
    assert [row["episode_history"] for row in kept["questions"]] == [HM3D]
    assert kept["summary"] | {"questions": 3, "questions_kept": 1, "questions_dropped": 2} == kept["summary"]
    assert list(project.manifest()["episodes"]) == [HM3D]


@pytest.mark.parametrize("choice", ["uniform", "midpoint", "cluster"])
def test_available_leaves_out_an_episode_whose_damage_only_decoding_finds(project, choice):
    """Head and end are right, so nothing but decoding tells; storing its frames later would have stopped the run."""
    project.changes = {"data_require": "available", "frames_choice": choice}
    for name in (HM3D, "hm3d-v0/damaged"):
        raw.frame_folder(project.source / "frames" / name, 40)
    for file in (project.source / "frames/hm3d-v0/damaged").glob("*-rgb.png"):
        content = bytearray(file.read_bytes())
        at = content.index(b"IDAT") + 8
        content[at : at + 8] = bytes(8)
        file.write_bytes(content)
    assert project.ask(HM3D, "hm3d-v0/damaged").run() == 0
    records = project.records()
    assert {name: record["status"] for name, record in records.items()} == {HM3D: "ok", "hm3d-v0/damaged": "broken"}
    assert "damaged picture" in records["hm3d-v0/damaged"]["reason"]
    assert list(project.manifest()["episodes"]) == [HM3D]


def test_six_frame_episode_is_refused_by_name_unless_repeated(project, capsys):
    raw.frame_folder(project.source / "frames" / HM3D, 6)
    project.ask(HM3D).list()
    capsys.readouterr()
    assert project.make_index() == 2
    line = _line(capsys)
    assert HM3D in line
    assert "6 frames" in line
    assert "frames.short: repeat" in line
    project.changes = {"frames_short": "repeat"}
    assert project.run() == 0
    assert project.manifest()["episodes"][HM3D]["indices"] == [0, 1, 1, 2, 3, 4, 4, 5]


def test_questions_carry_root_source_and_space_and_are_sorted(project):
    for episode in (SCAN, HM3D):
        raw.frame_folder(project.source / "frames" / episode, 8)
    rows = [raw.question(SCAN, 1), raw.question(HM3D, 2, question=" Where? "), raw.question(HM3D, 1)]
    project.questions.write_text(json.dumps(rows))
    assert project.run() == 0
    found = json.loads(project.kept.read_text())["questions"]
    assert [row["question_id"] for row in found] == [f"{HM3D}-1", f"{HM3D}-2", f"{SCAN}-1"]
    assert found[1]["question"] == "Where?"
    assert (found[2]["space"], found[2]["source"], found[2]["root"]) == ("scene0709", "scannet-v0", "source")


def test_an_episode_or_id_of_the_demo_may_not_come_again(project, capsys):
    raw.frame_folder(project.source / "frames" / HM3D, 8)
    (project.demo / "questions.json").write_text(json.dumps([raw.question(HM3D, 7)]))
    project.ask(HM3D).list()
    capsys.readouterr()
    assert project.make_index() == 2
    assert HM3D in _line(capsys)


# ------------------------------------------------------------------------------------------------ sampling


@pytest.fixture
def two(project) -> Project:
    """Two episodes in two shards, sampled."""
    names = iter(f"hm3d-v0/{i:03d}-hm3d-room{i}" for i in range(99))
    self_shards: dict[str, str] = {}
    while len(self_shards) < 2:
        name = next(names)
        self_shards.setdefault(index_episodes.shard_of(name, 2), name)
    for name in self_shards.values():
        raw.frame_folder(project.source / "frames" / name, 10)
    project.ask(*sorted(self_shards.values()))
    assert project.run() == 0
    return project


def _facts(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def _stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.jpg"))}


def test_frames_have_the_models_size_and_are_listed_with_their_hashes(two):
    manifest = two.manifest()
    assert len(manifest["files"]) == 16
    for episode, record in manifest["episodes"].items():
        assert record["frames"] == [f"{episode}/{i:03d}.jpg" for i in range(8)]
        picture = raw.cv2.imread(str(two.frames / record["frames"][0]))
        assert picture.shape == (record["height"], record["width"], 3) == (64, 96, 3)


def test_second_run_writes_nothing_and_is_byte_identical(two, capsys):
    stamps, manifest = _stamps(two.frames), (two.frames / "manifest.json").read_bytes()
    shard = (two.frames / "shards/0000.json").read_bytes()
    capsys.readouterr()
    assert two.sample("0000") == 0
    facts = _facts(capsys)
    assert (facts["kept"], facts["written"]) == (1, 0)
    assert two.join() == 0
    assert _stamps(two.frames) == stamps
    assert (two.frames / "manifest.json").read_bytes() == manifest
    assert (two.frames / "shards/0000.json").read_bytes() == shard


def test_all_frames_made_anew_have_the_same_bytes(two):
    manifest = (two.frames / "manifest.json").read_bytes()
    shutil.rmtree(two.frames)
    assert two.run() == 0
    assert (two.frames / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("damage", ["changed", "removed", "record"])
def test_only_the_damaged_episode_is_made_again(two, capsys, damage):
    folder = next(path.parent for path in sorted(two.frames.rglob("episode.json")))
    good = sha256_file(folder / "003.jpg")
    if damage == "changed":
        (folder / "003.jpg").write_bytes((folder / "003.jpg").read_bytes()[:-9] + b"x" * 9)
    elif damage == "removed":
        (folder / "003.jpg").unlink()
    else:
        (folder / "episode.json").write_text("[]")
    written = 0
    for shard in ("0000", "0001"):
        capsys.readouterr()
        assert two.sample(shard) == 0
        written += _facts(capsys)["written"]
    assert written == 1
    assert sha256_file(folder / "003.jpg") == good


@pytest.mark.parametrize(
    "changes",
    [
        {"frames_jpeg_quality": 80},
        {"frames_count": 4},
        {"frames_choice": "midpoint"},
        {"vision_image_max_pixels": 4096},
    ],
)
def test_another_recipe_makes_all_frames_again(two, capsys, changes):
    two.changes = changes
    capsys.readouterr()
    assert two.sample("0000") == 0
    assert _facts(capsys)["written"] == 1


def test_where_the_model_comes_from_matters_only_by_its_smallest_picture(two, capsys):
    two.changes = {"vision_image_max_pixels": 147456, "model_source": "huggingface"}
    assert two.sample("0000") == 0
    two.changes["model_source"] = "local"
    capsys.readouterr()
    assert two.sample("0000") == 0
    assert _facts(capsys)["kept"] == 1
    (record,) = json.loads((two.frames / "shards/0000.json").read_text())["episodes"].values()
    assert record["width"] * record["height"] >= 65536


def test_changed_raw_frames_are_noticed(two, capsys):
    episode = next(iter(two.manifest()["episodes"]))
    for i in range(10):
        (two.source / "frames" / episode / f"{i:06d}-rgb.png").write_bytes(raw.encoded(i + 50))
    before = two.manifest()["files"][f"{episode}/000.jpg"]
    assert two.run() == 0
    assert two.manifest()["files"][f"{episode}/000.jpg"] != before


def test_frames_of_episodes_that_left_the_data_are_removed(two):
    first, second = sorted(two.manifest()["episodes"])
    foreign = two.frames / "mine.txt"
    foreign.write_text("not ours")
    two.ask(first)
    assert two.run() == 0
    assert list(two.manifest()["episodes"]) == [first]
    assert not (two.frames / second).exists()
    assert foreign.exists()


def test_a_frame_that_breaks_after_the_index_leaves_no_part_behind(two, capsys):
    episode = next(iter(two.manifest()["episodes"]))
    shutil.rmtree(two.frames)
    bad = two.source / "frames" / episode / "000001-rgb.png"
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    capsys.readouterr()
    shard = two.records()[episode]["shard"]
    assert two.sample(shard) == 2
    line = _line(capsys)
    assert episode in line
    assert str(bad) in line
    assert not list(two.frames.rglob("*.part"))
    assert not (two.frames / f"shards/{shard}.json").exists()
    assert not (two.frames / episode).exists()


def test_jpeg_of_a_sens_is_copied_untouched_where_it_fits(project):
    blobs = [raw.encoded(i, ".jpg") for i in range(10)]
    file = project.source / "scannet/scans/scene0709_00/scene0709_00.sens"
    file.parent.mkdir(parents=True)
    file.write_bytes(raw.sens(blobs))
    assert project.ask(SCAN).run() == 0
    assert (project.frames / SCAN / "001.jpg").read_bytes() == blobs[1]


def test_an_index_that_points_outside_is_refused(two, capsys):
    index = json.loads(two.index.read_text())
    for record in index["episodes"]:
        record["path"] = "../../etc"
        record["digest"] = "other"
    two.index.write_text(json.dumps(index))
    assert two.sample("0000") == 2
    assert "may not leave" in capsys.readouterr().err


@pytest.mark.parametrize("choice", ["uniform", "midpoint", "cluster"])
def test_every_choice_gives_eight_different_frames(two, choice):
    two.changes = {"frames_choice": choice}
    assert two.run() == 0
    for record in two.manifest()["episodes"].values():
        assert len(set(record["indices"])) == 8


# ------------------------------------------------------------------------------------------------ archive

ARCHIVE = "open-eqa-hm3d-frames-v0.tgz"


def _members(prefix: str, *episodes: str, count: int = 10) -> list[tuple[str, bytes]]:
    members = []
    for episode in episodes:
        for i in reversed(range(count)):  # the order in an archive is nobody's promise
            members.append((f"{prefix}{episode}/{i:06d}-rgb.png", raw.encoded(i)))
            members.append((f"{prefix}{episode}/{i:06d}-depth.png", b"depth"))
            members.append((f"{prefix}{episode}/{i:06d}.pkl", b"cos\nsystem\n(S'false'\ntR."))
    return members


OTHER = "hm3d-v0/001-hm3d-TPhiubUHKcP"


@pytest.mark.parametrize("prefix", ["", "./", "data/frames/"])
@pytest.mark.parametrize("choice", ["uniform", "cluster"])
def test_archive_gives_the_same_frames_as_the_unpacked_folder(tmp_path, prefix, choice):
    manifests = []
    for name in ("packed", "unpacked"):
        (tmp_path / name).mkdir()
        project = Project(tmp_path / name).ask(HM3D, OTHER)
        project.changes = {"frames_choice": choice, "frames_count": 4}
        if name == "packed":
            raw.archive(project.source / ARCHIVE, _members(prefix, HM3D, OTHER, "hm3d-v0/not-asked-for"))
            assert project.list() == project.make_index() == project.extract() == 0
            assert not (project.folder / "work").exists()
        else:
            for episode in (HM3D, OTHER):
                raw.frame_folder(project.source / "frames" / episode, 10)
        assert project.run() == 0
        manifests.append(project.manifest())
    assert manifests[0] == manifests[1]


def test_episodes_whose_ids_look_alike_as_file_names_keep_their_own_frames(tmp_path):
    alike = ("hm3d-v0/a/b", "hm3d-v0/a_b", "hm3d-v0/" + "e" * 240)
    manifests = []
    for name in ("packed", "unpacked"):
        (tmp_path / name).mkdir()
        project = Project(tmp_path / name).ask(*alike)
        if name == "packed":
            # interleaved, so that frames of all wait at once
            members = [
                (f"{episode}/{i:06d}-rgb.png", raw.encoded(20 * number + i))
                for i in range(10)
                for number, episode in enumerate(alike)
            ]
            raw.archive(project.source / ARCHIVE, members)
            assert project.list() == project.make_index() == project.extract() == 0
        else:
            for number, episode in enumerate(alike):
                raw.frame_folder(project.source / "frames" / episode, 10, first=20 * number)
        assert project.run() == 0
        manifests.append(project.manifest())
    assert manifests[0] == manifests[1]


def test_an_episode_made_again_alone_takes_no_frames_of_one_whose_id_ends_alike(tmp_path):
    project = Project(tmp_path).ask("hm3d-v0/room", "room")
    members = [
        (f"{episode}/{i:06d}-rgb.png", raw.encoded(first + i))
        for episode, first in (("hm3d-v0/room", 20), ("room", 0))
        for i in range(10)
    ]
    raw.archive(project.source / ARCHIVE, members)
    assert project.list() == project.make_index() == project.extract() == 0
    assert project.run() == 0
    before = project.manifest()
    shutil.rmtree(project.frames / "room")
    assert project.extract() == 0
    assert project.run() == 0
    assert project.manifest() == before


def test_archive_is_read_once_for_all_shards_and_not_again(project, capsys):
    raw.archive(project.source / "raw" / ARCHIVE, _members("", HM3D, OTHER))
    project.ask(HM3D, OTHER)
    assert project.list() == project.make_index() == 0
    assert project.records()[HM3D]["kind"] == "archive"
    assert project.sample(project.records()[HM3D]["shard"]) == 2  # the pass has not been made yet
    assert "archive.json" in capsys.readouterr().err
    assert project.extract() == 0
    assert _facts(capsys)["written"] == 2
    for shard in ("0000", "0001"):
        assert project.sample(shard) == 0
        assert _facts(capsys)["written"] == 0
    assert project.extract() == 0
    assert _facts(capsys)["written"] == 0
    assert project.join() == 0
    assert len(project.manifest()["files"]) == 16


def test_whether_an_archive_is_there_is_known_without_the_folder(project):
    assert source_archive("", project.listing) == ""
    assert source_archive(str(project.source), project.listing) == ""
    raw.archive(project.source / ARCHIVE, _members("", HM3D))
    assert project.ask(HM3D).list() == 0
    assert source_archive(str(project.source), project.listing) == ARCHIVE
    shutil.rmtree(project.source)
    assert source_archive(str(project.source), project.listing) == ARCHIVE


def _link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("../evil-rgb.png", "could leave"),
        ("a/../../evil-rgb.png", "could leave"),
        ("/etc/evil-rgb.png", "could leave"),
        ("a\\b-rgb.png", "could leave"),
        (_link(f"{HM3D}/000003-rgb.png", tarfile.SYMTYPE), "link"),
        (_link(f"{HM3D}/000003-rgb.png", tarfile.LNKTYPE), "link"),
        (_link(f"{HM3D}/fifo", tarfile.FIFOTYPE), "device"),
        (f"{HM3D}/000002-rgb.png", "twice"),
    ],
)
def test_a_hostile_member_refuses_the_archive(project, capsys, member, says):
    raw.archive(project.source / ARCHIVE, [*_members("", HM3D), (member, b"")])
    if says == "twice":
        raw.archive(project.source / ARCHIVE, [*_members("", HM3D), (member, b"x")])
    assert project.ask(HM3D).list() == 2
    line = _line(capsys)
    assert ARCHIVE in line
    assert says in line
    assert not project.listing.exists()
    assert sorted(path.name for path in project.folder.iterdir()) == ["demo", "questions.json", "user"]


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9, -1, -9])
def test_an_archive_that_ends_early_is_refused(project, capsys, kept):
    file = raw.archive(project.source / ARCHIVE, _members("", HM3D, count=40))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    assert project.ask(HM3D).list() == 2
    assert ARCHIVE in _line(capsys)
    assert not project.listing.exists()


def test_an_archive_without_its_tars_end_is_refused(project, capsys):
    import gzip
    import io

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in _members("", HM3D):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    (project.source / ARCHIVE).write_bytes(gzip.compress(buffer.getvalue()[: end - 512 * 6]))
    assert project.ask(HM3D).list() == 2
    assert "early" in _line(capsys)


@pytest.mark.parametrize("content", [b"text, no archive", b"\x1f\x8b\x08\x00" + b"\xff" * 100])
def test_an_archive_that_is_none_is_refused(project, capsys, content):
    (project.source / ARCHIVE).write_bytes(content)
    assert project.ask(HM3D).list() == 2
    assert ARCHIVE in _line(capsys)


def test_a_picture_in_the_archive_that_is_text_is_named(project, capsys):
    members = [
        (name, b"text" if name.endswith("000004-rgb.png") else data) for name, data in _members("", HM3D, count=8)
    ]
    raw.archive(project.source / ARCHIVE, members)
    project.ask(HM3D)
    assert project.list() == project.make_index() == 0
    capsys.readouterr()
    assert project.extract() == 2
    line = _line(capsys)
    assert f"{HM3D}/000004-rgb.png" in line
    assert ARCHIVE in line
    assert not (project.frames / HM3D).exists()
    assert not (project.folder / "work").exists()
