"""The LLaMA-Factory files as Hugging Face datasets: JSON as it is, and Parquet with the pictures inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import export_parquet
from scripts.lib import sharegpt
from tests.lib.sft_data import question_rows, write_frames


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """results/sft and results/frames: conversations of 5 turns to train on, single questions else."""
    rows = question_rows(spaces=4, each=5)
    by_episode: dict[str, list[dict]] = {}
    for row in rows:
        by_episode.setdefault(row["episode_history"], []).append(row)
    write_frames(tmp_path / "frames", sorted(by_episode))
    parts: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for number, (episode, own) in enumerate(sorted(by_episode.items())):
        images = [f"{episode}/{i:03d}.jpg" for i in range(2)]
        turns = [(row["question_id"], row["question"], row["answer"]) for row in own]
        if number < 2:
            parts["train"].append(sharegpt.sample(turns, "P {question}", images, episode))
        else:
            part = ("val", "test")[number - 2]
            parts[part] += [
                {**sharegpt.sample([turn], "P {question}", images, episode), "question_id": turn[0]} for turn in turns
            ]
    (tmp_path / "sft").mkdir()
    for part, content in parts.items():
        (tmp_path / "sft" / f"{part}.json").write_text(json.dumps(content))
    return tmp_path


def export(folder: Path) -> int:
    line = ["--dataset-dir", folder / "sft", "--frames", folder / "frames/manifest.json"]
    return export_parquet.main([str(word) for word in [*line, "--output-dir", folder / "sft/parquet"]])


@pytest.mark.parametrize("part", export_parquet.PARTS)
def test_the_json_loads_with_the_documented_features(built, part):
    import datasets

    file = str(built / "sft" / f"{part}.json")
    loaded = datasets.load_dataset("json", data_files=file, split="train", cache_dir=str(built / "cache"))
    assert loaded.features == export_parquet.features(False, part != "train")
    assert loaded.to_list() == json.loads(Path(file).read_text())


def test_all_json_parts_load_at_once_with_the_documented_features(built):
    import datasets

    files = {part: str(built / "sft" / f"{part}.json") for part in export_parquet.PARTS}
    columns = export_parquet.features(False)
    loaded = datasets.load_dataset("json", data_files=files, features=columns, cache_dir=str(built / "cache"))
    assert {part: len(rows) for part, rows in loaded.items()} == {"train": 2, "val": 5, "test": 5}
    assert loaded["train"][0]["question_id"] is None
    assert loaded["val"]["question_id"][:2] == ["q-001-00", "q-001-01"]


def test_parquet_holds_the_same_rows_and_the_very_bytes_of_the_pictures(built):
    import datasets

    assert export(built) == 0
    loaded = datasets.load_dataset("parquet", data_dir=str(built / "sft/parquet"), cache_dir=str(built / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 2, "validation": 5, "test": 5}
    for part, rows in (("train", loaded["train"]), ("val", loaded["validation"]), ("test", loaded["test"])):
        assert rows.features == export_parquet.features(True)
        wanted = json.loads((built / "sft" / f"{part}.json").read_text())
        assert rows.remove_columns("images").to_list() == [
            {k: v for k, v in {"question_id": None, **row}.items() if k != "images"} for row in wanted
        ]
        for row, raw in zip(
            wanted, rows.cast_column("images", datasets.List(datasets.Image(decode=False))), strict=True
        ):
            assert [image["path"] for image in raw["images"]] == row["images"]
            assert [image["bytes"] for image in raw["images"]] == [
                (built / "frames" / name).read_bytes() for name in row["images"]
            ]
    assert loaded["test"][0]["images"][1].size == (192, 128)


def test_pictures_are_inside_so_that_the_frames_may_be_gone(built):
    import shutil

    import datasets

    assert export(built) == 0
    shutil.rmtree(built / "frames")
    file = str(built / "sft/parquet/test.parquet")
    row = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(built / "cache"))[0]
    assert row["images"][0].convert("RGB").getpixel((0, 0)) == pytest.approx((0, 90, 120), abs=3)


def test_two_exports_are_byte_identical(built):
    assert export(built) == 0
    first = (built / "sft/parquet/manifest.json").read_bytes()
    assert export(built) == 0
    assert (built / "sft/parquet/manifest.json").read_bytes() == first
    assert set(json.loads(first)["files"]) == {"train.parquet", "val.parquet", "test.parquet"}


@pytest.mark.parametrize(
    ("how", "part"),
    [("changed", "differs from"), ("missing", "no such picture"), ("outside", "may not leave"), ("empty", "no rows")],
)
def test_a_fault_is_one_line_and_leaves_the_old_export_whole(built, capsys, how, part):
    assert export(built) == 0
    before = (built / "sft/parquet/manifest.json").read_bytes()
    capsys.readouterr()
    picture = built / "frames/hm3d-v0/000-room000/000.jpg"
    rows = json.loads((built / "sft/train.json").read_text())
    if how == "changed":
        picture.write_bytes(picture.read_bytes() + b"x")
    elif how == "missing":
        picture.unlink()
    elif how == "outside":
        rows[0]["images"][0] = "../../x.jpg"
    else:
        rows = []
    (built / "sft/train.json").write_text(json.dumps(rows))
    assert export(built) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert (built / "sft/parquet/manifest.json").read_bytes() == before
    assert not (built / "sft/parquet.part").exists()
