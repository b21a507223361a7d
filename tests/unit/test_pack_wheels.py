"""Which wheels an offline GPU host needs, and wheels without the files it does not."""

from __future__ import annotations

import zipfile

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


def test_without_a_list_everything_is_packed():
    wanted = pack_wheels.locked(EXPORT, "3.12")
    assert pack_wheels.lacking(wanted, {}) == wanted


def test_trimmed_wheel_keeps_a_true_record(tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("thing/__init__.py", "answer = 42\n")
        file.writestr("thing/lib/heavy.so", bytes(100_000))
        file.writestr("thing-1.0.dist-info/METADATA", "Name: thing\n")
        rows = ["thing/__init__.py,sha256=x,12", "thing/lib/heavy.so,sha256=x,100000", "thing-1.0.dist-info/RECORD,,"]
        file.writestr("thing-1.0.dist-info/RECORD", "\n".join(rows))
    pack_wheels.trim(wheel, ["thing/lib/*"])
    with zipfile.ZipFile(wheel) as file:
        assert "thing/lib/heavy.so" not in file.namelist()
        record = file.read("thing-1.0.dist-info/RECORD").decode()
    assert "heavy" not in record
    assert record.count("sha256=") == 2
    assert record.endswith("thing-1.0.dist-info/RECORD,,\n")
