"""What safetensors files say about their tensors, without reading the tensors."""

from __future__ import annotations

import json
from pathlib import Path

MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


class CutShort(ValueError):
    """The file is shorter or longer than its header says."""


def read_head(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of one file, after checking that the file is whole.

    Raises:
        CutShort: the length differs from what the header says.
        ValueError: no safetensors file. Callers add the file's name and the way out.
    Source:
        The safetensors format: uint64 little endian n, n bytes of JSON, then the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(f"header of {length} bytes in {size}")
        try:
            head = json.loads(file.read(length).decode("utf-8"))
            tensors = {name: record for name, record in head.items() if name != "__metadata__"}
            end = max((record["data_offsets"][1] for record in tensors.values()), default=0)
            shapes_found = {name: tuple(record["shape"]) for name, record in tensors.items()}
            if not all(isinstance(side, int) for shape in shapes_found.values() for side in shape):
                raise TypeError("a shape of something else than whole numbers")
            wanted = 8 + length + end
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise ValueError("its header is garbled") from None
    if size != wanted:
        raise CutShort(f"{size} bytes, its header says {wanted}")
    return shapes_found


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, over all model*.safetensors of a folder. Files were checked before."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= read_head(path)
    return found
