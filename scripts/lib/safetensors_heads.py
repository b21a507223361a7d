"""What safetensors files say about their tensors, without reading the tensors."""

from __future__ import annotations

import json
from pathlib import Path

MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


_MOST = 2**64 - 1  # the library counts in 64 bits
# bits of a number, by safetensors 0.8
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class CutShort(ValueError):
    """The file is shorter or longer than its header says."""


def read_head(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of one file, after checking that the file is whole.

    Raises:
        CutShort: the length differs from what the header says.
        ValueError: no safetensors file, or tensors that overlap, leave a hole or are not as large as shape and dtype
            say. Callers add the file's name and the way out.
    Source:
        The safetensors format: uint64 little endian n, n bytes of JSON, then the data without holes; no name twice.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(f"header of {length} bytes in {size}")
        text = file.read(length)
    try:
        head = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except _Refused:
        raise
    except (ValueError, RecursionError):
        raise ValueError("its header is garbled") from None
    if not isinstance(head, dict):
        raise ValueError("its header is no JSON object")
    about = head.pop("__metadata__", None) or {}
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError("its __metadata__ is more than texts")
    places = [(*_place(name, record), name) for name, record in head.items()]
    end = 0
    for first, last, name in sorted(places):
        if first != end:
            raise ValueError(f"tensor {name[:60]!r} starts at byte {first}, the one before ends at {end}")
        end = last
    if size != 8 + length + end:
        raise CutShort(f"{size} bytes, its header says {8 + length + end}")
    return {name: tuple(record["shape"]) for name, record in head.items()}


class _Refused(ValueError):
    """A fault of the header that has a line of its own."""


def _object(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Refused(f"{twice[:60]!r} is in its header twice")
    return made


def _place(name: str, record: object) -> tuple[int, int]:
    """(first byte, byte after the last) of a tensor, after comparing them with its shape and dtype."""
    label = f"tensor {name[:60]!r}"
    if not isinstance(record, dict) or not {"dtype", "shape", "data_offsets"} <= set(record):
        raise ValueError(f"{label} lacks dtype, shape or data_offsets")
    bits = DTYPE_BITS.get(record["dtype"]) if isinstance(record["dtype"], str) else None
    if bits is None:
        raise ValueError(f"{label} has dtype {repr(record['dtype'])[:20]}, which safetensors does not know")
    shape, offsets = record["shape"], record["data_offsets"]
    for numbers in (shape, offsets):
        # not isinstance: true is an int
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= _MOST for n in numbers):
            raise ValueError(f"{label} has a shape or place that is not made of whole numbers from 0")
    if len(offsets) != 2 or any("\ud800" <= c <= "\udfff" for c in name):
        raise ValueError(f"{label} has a place of {len(offsets)} numbers or a name with half a character")
    count = 1
    for side in shape:  # as the library multiplies, so that a 0 at the end does not hide an overflow
        count *= side
        if count > _MOST:
            raise ValueError(f"{label} claims more numbers than 64 bits count")
    if count * bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"{label} takes {offsets[1] - offsets[0]} bytes, its shape and dtype say {count * bits / 8:g}")
    return offsets[0], offsets[1]


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, over all model*.safetensors of a folder. Files were checked before."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= read_head(path)
    return found
