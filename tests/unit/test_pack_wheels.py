"""Which wheels an offline GPU host needs, and wheels without the files it does not."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from bench import rehearse
from scripts.lib.errors import EqaError
from tests.gpu import pack_wheels

EXPORT = """\
numpy==2.4.6
colorama==0.4.6 ; sys_platform == 'win32'
tomli==2.0.1 ; python_full_version < '3.11'
torch==2.11.0
nvidia-nccl-cu13==2.28 ; sys_platform == 'linux'
Typing_Extensions==4.15.0
"""


def test_markers_are_those_of_the_host():
    assert pack_wheels.locked(EXPORT, "3.12") == {
        "numpy": "2.4.6",
        "torch": "2.11.0",
        "nvidia-nccl-cu13": "2.28",
        "typing-extensions": "4.15.0",
    }


def test_what_the_host_has_in_the_locks_version_stays_there():
    wanted = pack_wheels.locked(EXPORT, "3.12")
    have = pack_wheels.read_have("torch==2.10.1+cu130\nnumpy==2.4.6\ntyping_extensions==4.0.0\nnvidia-nccl-cu13\n")
    assert pack_wheels.lacking(wanted, have) == {"typing-extensions": "4.15.0"}


def test_what_no_step_imports_is_not_packed():
    wanted = {"lmdeploy": "0.18.0", "nvidia-cublas-cu12": "12.9", "ray": "2.60", "gradio": "5.50.0"}
    assert pack_wheels.lacking(wanted, {}) == {"lmdeploy": "0.18.0"}


def test_deepspeed_and_what_it_needs_are_packed_by_their_pins(root):
    pins = pack_wheels.pinned((root / pack_wheels.ZERO2).read_text(encoding="utf-8"))
    assert pins.keys() == {"deepspeed", "hjson", "msgpack", "ninja", "py-cpuinfo"}
    assert pins["deepspeed"] == "0.18.9"
    assert set(pack_wheels.BUILT) <= set(pins)


def test_without_a_list_everything_is_packed():
    wanted = pack_wheels.locked(EXPORT, "3.12")
    assert pack_wheels.lacking(wanted, {}) == wanted


def test_light_packages_bring_what_they_depend_on_and_no_more():
    lock = {
        "package": [
            {"name": "a", "dependencies": [{"name": "b"}], "optional-dependencies": {"x": [{"name": "c"}]}},
            {"name": "b", "dependencies": [{"name": "a"}]},
            {"name": "c"},
            {"name": "d", "dependencies": [{"name": "a"}]},
        ]
    }
    assert pack_wheels.closure(lock, ["a"]) == {"a", "b", "c"}


def write_wheel(folder: Path) -> Path:
    """A wheel with one module and one heavy file."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("thing/__init__.py", "answer = 42\n")
        file.writestr("thing/lib/heavy.so", bytes(100_000))
        file.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        file.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ("thing/__init__.py", "thing/lib/heavy.so", "thing-1.0.dist-info/METADATA", "thing-1.0.dist-info/WHEEL")
        rows = [f"{name},," for name in (*names, "thing-1.0.dist-info/RECORD")]
        file.writestr("thing-1.0.dist-info/RECORD", "\n".join(rows))
    return wheel


def test_trimmed_wheel_keeps_a_true_record(tmp_path):
    wheel = write_wheel(tmp_path)
    pack_wheels.trim(wheel, ["thing/lib/*"])
    with zipfile.ZipFile(wheel) as file:
        assert "thing/lib/heavy.so" not in file.namelist()
        record = file.read("thing-1.0.dist-info/RECORD").decode()
    assert "heavy" not in record
    assert record.count("sha256=") == 3
    assert record.endswith("thing-1.0.dist-info/RECORD,,\n")
    before = wheel.read_bytes()
    assert pack_wheels.trim(wheel, ["thing/lib/*"]) == 0
    assert wheel.read_bytes() == before


def test_rehearsal_installs_trimmed_wheels_without_an_index_once(tmp_path):
    pack_wheels.trim(write_wheel(tmp_path / "wheels/train"), ["thing/lib/*"])
    write_wheel(tmp_path / "wheels/zero2")
    work = tmp_path / "work"
    rehearse.install(tmp_path / "wheels", work, sys.executable)
    module = work / "site/train/thing/__init__.py"
    assert module.read_text() == "answer = 42\n"
    assert not (work / "site/train/thing/lib").exists()
    assert (work / "site/zero2/thing/lib/heavy.so").is_file()
    module.write_text("answer = 43\n")
    rehearse.install(tmp_path / "wheels", work, sys.executable)
    assert module.read_text() == "answer = 43\n"


def test_folder_without_wheels_is_refused_by_name(tmp_path):
    (tmp_path / "wheels/other").mkdir(parents=True)
    with pytest.raises(EqaError, match="none of the folders light, serve, train"):
        rehearse.install(tmp_path / "wheels", tmp_path / "work", sys.executable)
    (tmp_path / "wheels/serve").mkdir()
    with pytest.raises(EqaError, match=r"serve: no wheel in it"):
        rehearse.install(tmp_path / "wheels", tmp_path / "work", sys.executable)
