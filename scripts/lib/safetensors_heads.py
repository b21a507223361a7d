"""What safetensors files say about their tensors, without reading the tensors."""

from __future__ import annotations

import json
from pathlib import Path


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, over all model*.safetensors of a folder. Files were checked before."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found |= {name: tuple(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__"}
    return found
