"""Tokens of a picture: LLaMA-Factory's scaling, then the Qwen3-VL processor's rounding, replayed without torch.

Sources: LLaMA-Factory 0.9.5 data/mm_plugin.py (scaling to image_max_pixels / image_min_pixels), transformers 5.6.0
models/qwen2_vl/image_processing_qwen2_vl.py `smart_resize` (rounding each side to 32 px,
scaling again to its own bounds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from scripts.lib.errors import EqaError
from scripts.lib.files import read_json

TOKEN_SIDE_PX = 32  # patch 16 x merge 2: one visual token covers 32x32 px
MARKS_PER_IMAGE = 2  # <|vision_start|> and <|vision_end|>
# least px that each processor scales up to: the real Qwen3-VL's size.shortest_edge, and the demo model's
PROCESSOR_MIN_PIXELS = {"qwen3-vl": 65536, "demo": 1024}
PROCESSOR_MAX_PIXELS = 16777216
TEXT_ALLOWANCE = (
    160  # longest Open-EQA question with prompt, marks and answer: 127 tokens, rounded up to a multiple of 32
)


LEAST_SIDE_PX = 28  # LLaMA-Factory widens a picture to this (Qwen2VLPlugin, which Qwen3VLPlugin inherits)
LONGEST_RATIO = 200  # both LLaMA-Factory and the processor draw the line here
SQUEEZED_RATIO = 180  # what LLaMA-Factory makes of a longer one


class ProcessorLimits(NamedTuple):
    """Bounds of the base model's picture processor. Unit: px."""

    min_pixels: int
    max_pixels: int


def read_processor_limits(folder: Path) -> ProcessorLimits:
    """Bounds from a model folder, without importing transformers.

    The `image_processor` part of processor_config.json goes before preprocessor_config.json, as in transformers 5.6.0
    image_processing_base.py.

    Raises:
        EqaError: neither file has the bounds, or one visual token does not cover 32x32 px.
    """
    content: object = None
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name, "processor configuration")
        if name == "processor_config.json":
            content = content.get("image_processor") if isinstance(content, dict) else None
        if isinstance(content, dict):
            break
    else:
        raise EqaError(f"{folder}: no preprocessor_config.json nor processor_config.json; fetch the base model again")
    size = content.get("size") or {}
    low, high = size.get("shortest_edge"), size.get("longest_edge")
    if not isinstance(low, int) or not isinstance(high, int) or not 0 < low <= high:
        raise EqaError(
            f"{folder / name}: size.shortest_edge={low} and size.longest_edge={high}; two numbers of px are wanted"
        )
    side = content.get("patch_size", 16) * content.get("merge_size", 2)
    if side != TOKEN_SIDE_PX:
        raise EqaError(
            f"{folder / name}: patch_size x merge_size = {side} px, {TOKEN_SIDE_PX} is wanted; use a Qwen3-VL model"
        )
    return ProcessorLimits(low, high)


def llamafactory_size(width: int, height: int, max_pixels: int, min_pixels: int) -> tuple[int, int]:
    """Size in px after LLaMA-Factory's own scaling, which keeps the ratio and truncates to whole px.

    Raises:
        EqaError: so long and thin that no whole px is left of the short side.
    """
    before = width, height
    if width * height > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        width, height = int(width * factor), int(height * factor)
    if 0 < width * height < min_pixels:
        factor = math.sqrt(min_pixels / (width * height))
        width, height = int(width * factor), int(height * factor)
    if not width * height:
        raise EqaError(f"a picture of {before[0]}x{before[1]} px scaled to {max_pixels} px has a side of 0 px; crop it")
    if min(width, height) < LEAST_SIDE_PX:
        width, height = max(width, LEAST_SIDE_PX), max(height, LEAST_SIDE_PX)
    if width / height > LONGEST_RATIO:
        width = height * SQUEEZED_RATIO
    if height / width > LONGEST_RATIO:
        height = width * SQUEEZED_RATIO
    return width, height


def processor_size(width: int, height: int, min_pixels: int, max_pixels: int = PROCESSOR_MAX_PIXELS) -> tuple[int, int]:
    """Size in px after the processor: multiples of 32 on both sides within its own bounds.

    Raises:
        EqaError: sides differ more than 200 to 1, which the processor refuses.
    """
    if max(width, height) / max(1, min(width, height)) > 200:
        raise EqaError(
            f"a picture of {width}x{height} px is more than 200 times as long as wide; the processor refuses it"
        )
    side = TOKEN_SIDE_PX
    new_height, new_width = round(height / side) * side, round(width / side) * side
    if new_height * new_width > max_pixels:
        factor = math.sqrt(height * width / max_pixels)
        new_height = max(side, math.floor(height / factor / side) * side)
        new_width = max(side, math.floor(width / factor / side) * side)
    elif new_height * new_width < min_pixels:
        factor = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * factor / side) * side
        new_width = math.ceil(width * factor / side) * side
    return new_width, new_height


def image_tokens(
    width: int,
    height: int,
    max_pixels: int,
    min_pixels: int,
    processor_min: int,
    processor_max: int = PROCESSOR_MAX_PIXELS,
) -> int:
    """Tokens of one picture in the prompt, its two marks included."""
    scaled = llamafactory_size(width, height, max_pixels, min_pixels)
    width, height = processor_size(*scaled, processor_min, processor_max)
    return (width // TOKEN_SIDE_PX) * (height // TOKEN_SIDE_PX) + MARKS_PER_IMAGE


def fitted_size(
    width: int, height: int, max_pixels: int, processor_min: int = PROCESSOR_MIN_PIXELS["demo"]
) -> tuple[int, int]:
    """Size that a frame is stored at: multiples of 32 within `max_pixels`, so that every later step leaves it alone.

    Among the multiples of 32 around the exact fit, the one with the best balance of area and shape: a squeeze of 1 % is
    worth 2 % of the area, which gives the sizes that the processor would come to (1296x968 at 240,000 px: 576x416), but
    never more than `max_pixels`. A frame is enlarged to the next multiple of 32 at most, unless it is under the
    processor's minimum.

    Args:
        processor_min: the larger of the processor's minimum and config `vision.image_min_pixels`; <= `max_pixels`.
    Raises:
        EqaError: sides differ more than 200 to 1, which the processor refuses.
    """
    side = TOKEN_SIDE_PX
    processor_size(width, height, processor_min)  # refuses what no size can mend
    least, most = math.ceil(processor_min / side**2), max(1, max_pixels // side**2)
    ratio = width / height
    scale = math.sqrt(min(max(width * height, processor_min), max_pixels) / (width * height))
    around = [(c, r) for c in _around(width * scale / side) for r in _around(height * scale / side)]
    candidates = [(c, r) for c, r in around if least <= c * r <= most]
    if not candidates:  # a long, narrow picture, or a budget equal to the minimum: any sides that fit
        for c in range(1, most + 1):
            r = min(max(round(c / ratio), math.ceil(least / c), 1), most // c)
            if least <= c * r <= most:
                candidates.append((c, r))
    if not candidates:  # no multiple of 32 lies between the two bounds
        return processor_size(*llamafactory_size(width, height, max_pixels, processor_min), processor_min)
    best = max(candidates, key=lambda cr: (math.log(cr[0] * cr[1]) - 2 * abs(math.log(cr[0] / cr[1] / ratio)), cr))
    return best[0] * side, best[1] * side


def largest_max_pixels(
    sizes: Iterable[tuple[int, int]], room: int, max_pixels: int, min_pixels: int, limits: ProcessorLimits
) -> int | None:
    """The largest `vision.image_max_pixels` under `max_pixels` with which the pictures of a sample fit.

    Both what LLaMA-Factory makes of the pictures as they are and of pictures stored anew for the lower value must fit.

    Args:
        sizes: stored width and height of each picture of the sample. Unit: px.
        room: tokens left for pictures.
        max_pixels: the value that does not fit. Unit: px.
        min_pixels: config `vision.image_min_pixels`. Unit: px.
        limits: the processor's bounds.
    Returns:
        A multiple of 1,024 px, or None where even the smallest does not fit.
    """
    sizes = list(sizes)
    area = TOKEN_SIDE_PX**2
    least = max(area, math.ceil(max(min_pixels, limits.min_pixels) / area) * area)
    for pixels in range((max_pixels - 1) // area * area, least - 1, -area):
        need = 0
        for width, height in sizes:
            stored = fitted_size(width, height, pixels, limits.min_pixels)
            now = image_tokens(width, height, pixels, min_pixels, *limits)
            need += max(now, image_tokens(*stored, pixels, min_pixels, *limits))
        if need <= room:
            return pixels
    return None


def _around(value: float) -> list[int]:
    return sorted({max(1, math.floor(value)), max(1, math.ceil(value))})


def check_token_budget(count: int, max_pixels: int, cutoff_len: int) -> None:
    """Whether the pictures and one question fit a sample, whatever the frames' shape.

    Raises:
        EqaError: they do not; names the keys, the sum, and both ways out.
    """
    per_frame = max_pixels // TOKEN_SIDE_PX**2 + MARKS_PER_IMAGE
    need = count * per_frame + TEXT_ALLOWANCE
    if need <= cutoff_len:
        return
    fits = ((cutoff_len - TEXT_ALLOWANCE) // count - MARKS_PER_IMAGE) * TOKEN_SIDE_PX**2
    lower = f" or lower vision.image_max_pixels to {fits}" if fits >= TOKEN_SIDE_PX**2 else " or lower frames.count"
    raise EqaError(
        f"config: frames.count={count} x {per_frame} + {TEXT_ALLOWANCE} text = {need} tokens > "
        f"train.cutoff_len={cutoff_len}; "
        f"raise train.cutoff_len to {math.ceil(need / 64) * 64}{lower}"
    )
