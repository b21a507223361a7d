"""scripts.lib.safetensors_heads takes what the safetensors library takes, and names what is wrong with the rest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts.lib.safetensors_heads import DTYPE_BITS, CutShort, read_head
from tests.lib.project import ROOT

PYTHON = ROOT / "envs/train/.venv/bin/python"


def tensor(dtype: str, shape: list, start: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


A = tensor("F32", [2], 0, 8)


def written(path: Path, head: object, size: int, pad: bytes = b"") -> Path:
    text = (head if isinstance(head, bytes) else json.dumps(head).encode()) + pad
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


FINE = {
    "nothing": ({}, 0),
    "metadata only": ({"__metadata__": {"format": "pt"}}, 0),
    "metadata": ({"__metadata__": {"format": "pt"}, "a": A}, 8),
    "metadata is null": ({"__metadata__": None, "a": A}, 8),
    "scalar": ({"a": tensor("F64", [], 0, 8)}, 8),
    "no number": ({"a": tensor("F32", [0], 0, 0)}, 0),
    "no number of a long side": ({"a": tensor("F32", [0, 2**63], 0, 0)}, 0),
    "no number in the middle": ({"a": A, "z": tensor("F32", [0, 4], 8, 8), "b": tensor("F32", [1], 8, 12)}, 12),
    "no number at the start": ({"a": A, "z": tensor("F32", [0], 0, 0)}, 8),
    "other order": ({"b": tensor("I64", [1], 8, 16), "a": A}, 16),
    "another key": ({"a": A | {"note": 1}}, 8),
    "half bytes": ({"a": tensor("F4", [2, 2], 0, 2)}, 2),
    **{f"dtype {name}": ({"a": tensor(name, [8], 0, bits)}, bits) for name, bits in DTYPE_BITS.items()},
}
WRONG = {
    "overlap": ({"a": A, "b": tensor("F32", [2], 4, 12)}, 12, "starts at byte 4"),
    "same place": ({"a": A, "b": A}, 8, "starts at byte 0"),
    "hole in front": ({"a": tensor("F32", [2], 4, 12)}, 12, "starts at byte 4, the one before ends at 0"),
    "hole between": ({"a": A, "b": tensor("F32", [1], 12, 16)}, 16, "starts at byte 12, the one before ends at 8"),
    "start behind end": ({"a": tensor("F32", [2], 8, 0)}, 8, "takes -8 bytes"),
    "below 0": ({"a": tensor("F32", [-2], 0, 8)}, 8, "whole numbers from 0"),
    "two below 0": ({"a": tensor("F32", [-1, -2], 0, 8)}, 8, "whole numbers from 0"),
    "offset below 0": ({"a": tensor("F32", [2], -8, 0)}, 0, "whole numbers from 0"),
    "astronomic": ({"a": tensor("F32", [2**62], 0, 8)}, 8, "takes 8 bytes"),
    "4000 digits": ({"a": tensor("F32", [10**4000], 0, 8)}, 8, "whole numbers from 0"),
    "astronomic, then 0": ({"a": tensor("F32", [2**40, 2**40, 0], 0, 0)}, 0, "64 bits"),
    "other size": ({"a": tensor("F32", [3], 0, 8)}, 8, "its shape and dtype say 12"),
    "half a byte": ({"a": tensor("F4", [3], 0, 2)}, 2, "say 1.5"),
    "truth": ({"a": tensor("F32", [True, 2], 0, 8)}, 8, "whole numbers"),
    "fraction": ({"a": tensor("F32", [2.0], 0, 8)}, 8, "whole numbers"),
    "three offsets": ({"a": A | {"data_offsets": [0, 8, 8]}}, 8, "3 numbers"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, "lacks dtype"),
    "unknown dtype": ({"a": A | {"dtype": "F33"}}, 8, "dtype 'F33'"),
    "dtype is a list": ({"a": A | {"dtype": ["F32"]}}, 8, "dtype"),
    "tensor is null": ({"a": None}, 0, "lacks dtype"),
    "list": ([], 0, "no JSON object"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "half a character": ({"\ud800": A}, 8, "half a character"),
    "NUL behind": (b"{}\0\0", 0, "garbled"),
    "deep": (b"[" * 100_000, 0, "garbled"),
}
# the library lets the last one win
TWICE = b'{"a":%b,"a":%b}' % (json.dumps(A).encode(), json.dumps(A).encode())
TWICE_WITHIN = b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

LIBRARY = """
import json, sys
from safetensors import safe_open
found = {}
for path in sys.argv[1:]:
    try:
        with safe_open(path, "np") as file:
            found[path] = {name: file.get_slice(name).get_shape() for name in file.keys()}
    except Exception as error:
        found[path] = None
print(json.dumps(found))
"""


def library(*paths: Path) -> dict[str, dict | None]:
    """Shapes as the safetensors library of envs/train finds them; None where it refuses."""
    command = [str(PYTHON), "-c", LIBRARY, *map(str, paths)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("head", "size"), FINE.values(), ids=FINE)
def test_valid_head_is_read(tmp_path, head, size):
    shapes = {name: tuple(record["shape"]) for name, record in head.items() if name != "__metadata__"}
    assert read_head(written(tmp_path / "x", head, size)) == shapes
    assert read_head(written(tmp_path / "x", head, size, b" \n ")) == shapes, "padded to whole words"


@pytest.mark.parametrize(("head", "size", "word"), WRONG.values(), ids=WRONG)
def test_invalid_head_is_refused_and_says_why(tmp_path, head, size, word):
    with pytest.raises(ValueError, match=word) as told:
        read_head(written(tmp_path / "x", head, size))
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("head", [TWICE, TWICE_WITHIN], ids=["tensor", "key"])
def test_name_that_is_there_twice_is_refused(tmp_path, head):
    with pytest.raises(ValueError, match="in its header twice"):
        read_head(written(tmp_path / "x", head, 8))


@pytest.mark.parametrize("size", [0, 7, 9])
def test_file_of_another_length_is_cut_short(tmp_path, size):
    with pytest.raises(CutShort):
        read_head(written(tmp_path / "x", {"a": A}, size))


@pytest.mark.skipif(not PYTHON.exists(), reason="no environment in envs/train: `make setup`")
def test_the_safetensors_library_agrees_on_each_of_them(tmp_path):
    paths = {name: written(tmp_path / str(i), head, size) for i, (name, (head, size)) in enumerate(FINE.items())}
    for name, shapes in zip(paths, library(*paths.values()).values(), strict=True):
        found = read_head(paths[name])
        assert shapes == {tensor: list(shape) for tensor, shape in found.items()}, name
    wrong = {name: written(tmp_path / f"w{i}", head, size) for i, (name, (head, size, _)) in enumerate(WRONG.items())}
    accepted = [
        name for name, shapes in zip(wrong, library(*wrong.values()).values(), strict=True) if shapes is not None
    ]
    assert accepted == [], "stricter than the library without need"
