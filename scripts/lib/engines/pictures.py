"""Pictures as LLaMA-Factory hands them to the processor, so that every engine sees the same ones.

Source: LLaMA-Factory 0.9.5 data/mm_plugin.py (BasePlugin and Qwen2VLPlugin._preprocess_image). Frames of this pipeline
are stored at their final size, so that all of this leaves them alone; it matters for pictures from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.errors import EqaError
from scripts.lib.tokens import llamafactory_size

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_SIDE_PX = 28
LARGEST_RATIO = 200  # a longer picture is squeezed to 180 to 1
SQUEEZED_RATIO = 180


def open_picture(path: Path, max_pixels: int, min_pixels: int) -> Image:
    """One picture, scaled and in RGB.

    Raises:
        EqaError: no readable picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise EqaError(
            f"{path}: this frame does not exist; `dvc checkout` or run again the rule sample_frames"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise EqaError(f"{path}: no readable picture ({error}); run again the rule sample_frames") from None
    size = llamafactory_size(image.width, image.height, max_pixels, min_pixels)
    if size != image.size:
        image = image.resize(size)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if min(image.size) < LEAST_SIDE_PX:
        image = image.resize((max(image.width, LEAST_SIDE_PX), max(image.height, LEAST_SIDE_PX)))
    if image.width / image.height > LARGEST_RATIO:
        image = image.resize((image.height * SQUEEZED_RATIO, image.height))
    if image.height / image.width > LARGEST_RATIO:
        image = image.resize((image.width, image.width * SQUEEZED_RATIO))
    return image
