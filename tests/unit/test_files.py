"""scripts.lib.files: two writers of one file, and what killed ones leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.lib.files import atomic_folder, atomic_path, folder_files

OTHER = """
import os, sys
from pathlib import Path
from scripts.lib.files import atomic_folder, atomic_path
target = Path(sys.argv[2])
with globals()[sys.argv[1]](target) as part:
    (part / "a" if part.is_dir() else part).write_text("other")
    print("written", flush=True)
    sys.stdin.readline()
"""


def other_writer(how: str, target) -> subprocess.Popen:
    """Another process that has written all of `target` and gives it its name when told."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, how, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "written\n"
    return process


def test_orphan_of_a_killed_run_does_not_publish_the_next_runs_half_file(tmp_path):
    target = tmp_path / "x.json"
    orphan = other_writer("atomic_path", target)
    with atomic_path(target) as part:
        part.write_text("ha")
        orphan.communicate("go\n")
        assert orphan.returncode == 0
        assert target.read_text() == "other"
        with part.open("a") as file:
            file.write("lf")
    assert target.read_text() == "half"
    assert os.listdir(tmp_path) == ["x.json"]


def test_orphan_of_a_killed_run_does_not_publish_the_next_runs_half_folder(tmp_path):
    target = tmp_path / "model"
    orphan = other_writer("atomic_folder", target)
    with atomic_folder(target) as part:
        (part / "b").write_text("mine")
        orphan.communicate("go\n")
        assert orphan.returncode == 0
        assert folder_files(target) == ["a"]
    assert folder_files(target) == ["b"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("how", ["atomic_path", "atomic_folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path, how):
    target = tmp_path / "x"
    killed = other_writer(how, target)
    killed.kill()
    killed.wait()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    with {"atomic_path": atomic_path, "atomic_folder": atomic_folder}[how](target) as part:
        (part / "a" if part.is_dir() else part).write_text("whole")
    assert os.listdir(tmp_path) == ["x"]


def test_a_neighbour_with_a_longer_name_is_left_alone(tmp_path):
    (tmp_path / "x.json.bak.part").write_text("a user's own")
    (tmp_path / "x.json.7x.part").write_text("a user's own")
    with atomic_path(tmp_path / "x.json") as part:
        part.write_text("1")
    assert sorted(os.listdir(tmp_path)) == ["x.json", "x.json.7x.part", "x.json.bak.part"]


def test_the_part_file_of_the_longest_allowed_name_has_room(tmp_path):
    with atomic_path(tmp_path / ("n" * 240)) as part:
        part.write_text("1")
    assert os.listdir(tmp_path) == ["n" * 240]
