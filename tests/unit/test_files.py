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


SWAPS = """
import sys
from pathlib import Path
from scripts.lib.files import atomic_folder
for _ in range(150):
    with atomic_folder(Path(sys.argv[1])) as part:
        (part / "a").write_text("whole")
"""


def test_processes_that_swap_the_same_folder_at_once_all_end_well(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", SWAPS, str(tmp_path / "x")], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, said
    assert os.listdir(tmp_path) == ["x"]
    assert folder_files(tmp_path / "x") == ["a"]


def test_what_a_process_killed_between_the_two_renames_left_is_removed(tmp_path):
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for name in (f"x.{killed.stdout.strip()}.part", f"x.{killed.stdout.strip()}.old.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("left")
    with atomic_folder(tmp_path / "x") as part:
        (part / "a").write_text("whole")
    assert os.listdir(tmp_path) == ["x"]


READ_ONLY = """
import os, sys
from pathlib import Path
from scripts.lib.files import atomic_folder
os.setuid(65534)
try:
    with atomic_folder(Path(sys.argv[1])) as part:
        print("written")
except PermissionError as error:
    print(error.filename)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_read_only_folder_is_refused_before_anything_is_written(tmp_path):
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o777)
    (folder := tmp_path / "x").mkdir()
    (folder / "kept").write_text("old")
    for path in (folder / "kept", folder):
        os.chown(path, 65534, 65534)
    folder.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", READ_ONLY, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}\n"
    assert folder_files(folder) == ["kept"]
    assert os.listdir(tmp_path) == ["x"]


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
