"""scripts.lib.files: two writers of one file, and what killed ones leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from scripts.lib import files
from scripts.lib.files import atomic_folder, atomic_path, folder_files, part_path

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


def left_by(pid: int, name: str = "x", place: str = "", run: str = "0123ab") -> str:
    """Name of a .part that a process left; of this place by default."""
    return f"{name}.{place or files._place()}.{pid}.{run}-0.part"


def ended_process() -> int:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return int(done.stdout)


def test_what_a_process_killed_between_the_two_renames_left_is_removed(tmp_path):
    part = left_by(ended_process())
    for name in (part, part.replace(".part", ".old.part")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("left")
    with atomic_folder(tmp_path / "x") as part:
        (part / "a").write_text("whole")
    assert os.listdir(tmp_path) == ["x"]


def test_what_an_earlier_process_of_our_number_left_is_removed_and_what_another_thread_writes_is_not(tmp_path):
    (tmp_path / left_by(os.getpid())).write_text("of a container before its restart")
    with atomic_path(tmp_path / "x") as one:
        one.write_text("one")
        with atomic_path(tmp_path / "x") as two:
            two.write_text("two")
            assert one.read_text() == "one"
        assert (tmp_path / "x").read_text() == "two"
    assert (tmp_path / "x").read_text() == "one"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("name", [left_by(7, place="00000000"), "x.7.part", "x.7.old.part"], ids=["other", "v1", "old"])
def test_what_a_process_of_another_place_wrote_is_removed_only_after_a_day_without_change(tmp_path, monkeypatch, name):
    (folder := tmp_path / name).mkdir()
    (folder / "a").write_text("of a pod that may run or not")
    for path in (folder / "a", folder):
        os.utime(path, (1e9, 1e9))  # copied files bear old times
    part_path(tmp_path / "x")
    assert folder_files(folder) == ["a"]
    now = time.time()
    monkeypatch.setattr(files.time, "time", lambda: now + files.FOREIGN_LEFTOVER_S + 60)
    part_path(tmp_path / "x")
    assert not folder.exists()


# the first process of its namespace has number 1, whatever runs beside it
POD = """
import os, sys, time
from pathlib import Path
from scripts.lib.files import atomic_folder, atomic_path
assert os.getpid() < 10, os.getpid()
how, target, me = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
with globals()[how](target) as part:
    file = part / "a" if how == "atomic_folder" else part
    with file.open("w") as stream:
        stream.write(me * 1000)
        stream.flush()
        print("half", flush=True)
        sys.stdin.readline()
        stream.write(me * 1000)
print("published", flush=True)
"""


def pods(how: str, target, count: int) -> list[subprocess.Popen]:
    """Processes of equal number in namespaces of their own, as containers on one volume; each has written half."""
    probe = ["unshare", "--fork", "--pid", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*probe, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make a process namespace (unshare --pid)")
    started = []
    for number in range(count):
        command = [*probe, "--kill-child", sys.executable, "-c", POD, how, str(target), "ab"[number]]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "half\n"
    return started


@pytest.mark.parametrize("how", ["atomic_path", "atomic_folder"])
def test_two_containers_with_equal_process_numbers_publish_whole_files(tmp_path, how):
    (tmp_path / "volume").mkdir()
    target = tmp_path / "volume/x"
    content = target / "a" if how == "atomic_folder" else target
    first, second = pods(how, target, 2)
    for pod, letter in ((first, "a"), (second, "b")):
        assert pod.communicate("go\n")[0] == "published\n"
        assert content.read_text() == letter * 2000
    assert os.listdir(target.parent) == ["x"]


def test_a_container_does_not_remove_what_a_process_outside_is_writing(tmp_path):
    target = tmp_path / "x"
    outside = other_writer("atomic_path", target)  # its number means nothing within the container
    (pod,) = pods("atomic_path", target, 1)
    assert pod.communicate("go\n")[0] == "published\n"
    assert target.read_text() == "a" * 2000
    outside.communicate("go\n")
    assert outside.returncode == 0
    assert target.read_text() == "other"


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


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "n" * 200])
def test_the_part_folder_of_the_longest_possible_name_has_room_for_the_longest_process_number(
    tmp_path, monkeypatch, name
):
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "getpid", lambda: 2**22)
        for _ in range(2):  # the second time there is an old folder to move aside
            with atomic_folder(tmp_path / name) as part:
                (part / "a").write_text("1")
    assert os.listdir(tmp_path) == [name]
    killed = other_writer("atomic_path", tmp_path / "gone" / name)
    killed.kill()
    killed.wait()
    assert len(os.listdir(tmp_path / "gone")) == 1
    with atomic_path(tmp_path / "gone" / name) as part:
        part.write_text("1")
    assert os.listdir(tmp_path / "gone") == [name]
