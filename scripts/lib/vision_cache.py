"""Features of a frozen vision tower, computed once before the first step instead of in every epoch.

With tower, projector and DeepStack mergers frozen a picture's features never change, and its file need not be read again
either. Pictures of the training and validation parts go through the tower in sorted order and fixed groups, so that a
resumed training sees the same bits. A batch then carries, in place of pixels, the numbers of its features' rows.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType, SimpleNamespace
from typing import Any

from scripts.lib.errors import EqaError

GROUP = 32  # pictures that pass the tower together
_DEVICE_SHARE = 0.25  # of the free GPU memory; more than that lies in host memory


class VisionCache:
    """Features of pictures, one row a token: the merged one, then one for each DeepStack layer, side by side.

    Attributes:
        rows: picture's path -> (its grid (t, h, w) in patches, its first row, one past its last).
        store: shape (tokens, hidden x (1 + DeepStack layers)).
        facts: pictures, mb, place, seconds.
    """

    def __init__(self) -> None:
        self.rows: dict[str, tuple[tuple[int, int, int], int, int]] = {}
        self.store: Any = None
        self.facts: dict = {}

    def inputs(self, images: Sequence[str]) -> dict:
        """What a batch carries for `images`: row numbers under the name of pixels, and the grids.

        Raises:
            KeyError: a picture that is not in it.
        """
        import torch

        found = [self.rows[image] for image in images]
        rows = torch.cat([torch.arange(first, end) for _, first, end in found])
        return {"pixel_values": rows, "image_grid_thw": torch.tensor([grid for grid, _, _ in found])}

    def features(self, rows: Any) -> SimpleNamespace:
        """Features as Qwen3VLModel.get_image_features returns them, for row numbers of shape (tokens,)."""
        found = self.store.index_select(0, rows.to(self.store.device)).to(rows.device, non_blocking=True)
        hidden, *deep = found.split(self.hidden, dim=1)
        return SimpleNamespace(pooler_output=(hidden,), deepstack_features=deep)

    @property
    def hidden(self) -> int:
        return self.facts["hidden"]


def use_vision_cache(
    model: Any, collator: Any, pictures: Sequence[str], *, limit_gb: float, workers: int, precision: str
) -> VisionCache | None:
    """Compute the features of `pictures` and let `model` and `collator` use them, these two objects only.

    Args:
        model: a Qwen3-VL with frozen vision part, bare or under PEFT and DDP.
        collator: LLaMA-Factory's, which makes batches for it.
        pictures: files, as the data set names them.
        limit_gb: config `train.vision_cache_gb`. Unit: GB of features.
        workers: loader processes that read pictures.
        precision: config `train.precision`; the steps compute in it.
    Returns:
        None where the features would take more than `limit_gb`; nothing is changed then.
    Raises:
        EqaError: a weight of the vision part is trained.
    """
    inner = _inner(model)
    trained = [name for name, weight in inner.visual.named_parameters() if weight.requires_grad]
    if trained:
        raise EqaError(
            f"config: train.vision_cache_gb={limit_gb}, but {trained[0]} of the vision part is trained; "
            "set train.vision_cache_gb to 0"
        )
    cache = VisionCache()
    if not _fill(cache, inner, collator, sorted(set(pictures)), limit_gb * 1e9, workers, precision):
        return None
    collator.template = copy.copy(collator.template)  # LLaMA-Factory's own is shared by the whole process
    collator.template.mm_plugin = copy.copy(collator.template.mm_plugin)
    collator.template.mm_plugin.get_mm_inputs = _Lookup(cache, collator.template.mm_plugin.get_mm_inputs)
    inner.get_image_features = MethodType(_features_of(cache), inner)
    return cache


def check_unchanged(cache: VisionCache, model: Any, collator: Any, precision: str) -> None:
    """The vision part still gives what was kept.

    Raises:
        EqaError: other features for the first pictures, beyond rounding.
    """
    inner = _inner(model)
    plugin = collator.template.mm_plugin
    first = sorted(cache.rows)[:GROUP]
    grids, found = _through_tower(inner, _pixels(plugin.get_mm_inputs.original, collator.processor, first), precision)
    rows = sum(int(grid.prod()) for grid in grids) // inner.visual.spatial_merge_size**2
    kept = cache.store[:rows].to(found.device)
    apart = float((kept.float() - found.float()).abs().max())
    if not apart <= 0.02 * float(kept.float().abs().max()):
        raise EqaError(
            f"guard: features of {first[0]} and others differ by {apart:.3g} from those kept at the start; the vision "
            "part has changed during training: set train.vision_cache_gb to 0 and run again"
        )


class _Lookup:
    """LLaMA-Factory's get_mm_inputs, answered from the cache; a picture that is not in it is read as ever."""

    def __init__(self, cache: VisionCache, original: Any) -> None:
        self.cache, self.original = cache, original

    def __call__(self, images: Sequence, videos: Sequence, audios: Sequence, *rest: Any) -> dict:
        if videos or audios or not all(isinstance(image, str) and image in self.cache.rows for image in images):
            return self.original(images, videos, audios, *rest)
        return self.cache.inputs(images)


def _features_of(cache: VisionCache) -> Any:
    def get_image_features(self: Any, pixel_values: Any, image_grid_thw: Any = None, **kwargs: Any) -> Any:
        if pixel_values.is_floating_point():
            return type(self).get_image_features(self, pixel_values, image_grid_thw, **kwargs)
        return cache.features(pixel_values)

    return get_image_features


def _inner(model: Any) -> Any:
    found = [module for module in model.modules() if type(module).__name__ == "Qwen3VLModel"]
    if len(found) != 1:
        raise EqaError(
            f"config: train.vision_cache_gb wants one Qwen3VLModel, found {len(found)}; set train.vision_cache_gb to 0"
        )
    return found[0]


def _pixels(get_mm_inputs: Any, processor: Any, images: Sequence[str]) -> tuple:
    found: Mapping = get_mm_inputs(list(images), [], [], [len(images)], [0], [0], [[]], processor)
    return found["pixel_values"], found["image_grid_thw"]


def _through_tower(inner: Any, pixels: tuple, precision: str) -> tuple:
    """(grids, features side by side) of one group, computed as a step computes them."""
    import torch

    device = inner.visual.device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    same = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
    values, grids = pixels
    alike = len(grids) > 1 and bool((grids == grids[0]).all()) and int(grids[0, 0]) == 1
    with torch.no_grad(), same, _attention_at_once(inner.visual) if alike else contextlib.nullcontext():
        out = type(inner).get_image_features(
            inner, values.to(device, non_blocking=True), grids.to(device), return_dict=True
        )
        found = torch.cat([torch.cat(out.pooler_output), *out.deepstack_features], dim=1)
        # the model casts the merged features to this type itself, and DeepStack's to that of its hidden states: the same,
        # but for fp16 steps over a bf16 base, where it is float32 and DeepStack's lose bits here
        return grids, found.to(inner.get_input_embeddings().weight.dtype)


@contextlib.contextmanager
def _attention_at_once(visual: Any) -> Iterator[None]:
    """One attention call a layer for pictures of one size; the tower's own takes one a picture, which is most of its time.

    Source: transformers 5.6.0 models/qwen3_vl/modeling_qwen3_vl.py Qwen3VLVisionAttention.
    """
    from torch.nn import functional
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    def attend(self: Any, hidden: Any, cu_seqlens: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        tokens, pictures = hidden.shape[0], len(cu_seqlens) - 1
        query, key, value = self.qkv(hidden).view(tokens, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        split = [part.view(pictures, tokens // pictures, self.num_heads, -1) for part in (query, key, value)]
        mixed = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in split), scale=self.scaling)
        return self.proj(mixed.transpose(1, 2).reshape(tokens, -1))

    layers = [block.attn for block in visual.blocks]
    for layer in layers:
        layer.forward = MethodType(attend, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fill(
    cache: VisionCache,
    inner: Any,
    collator: Any,
    pictures: Sequence[str],
    limit: float,
    workers: int,
    precision: str,
) -> bool:
    """Whether all features of `pictures` fit within `limit` bytes and are in `cache`."""
    import torch
    from torch.utils.data import DataLoader

    began = time.monotonic()
    groups = [pictures[i : i + GROUP] for i in range(0, len(pictures), GROUP)]
    reader = _Reader(groups, collator.template.mm_plugin.get_mm_inputs, collator.processor)
    # an own generator: the loader draws a seed, and training's random numbers must not depend on it
    loader = DataLoader(
        reader, batch_size=None, num_workers=min(workers, len(groups)), generator=torch.Generator().manual_seed(0)
    )
    done, used = 0, 0
    on_device = inner.visual.device.type != "cpu"
    parts = []
    for group, pixels in zip(groups, loader, strict=True):
        grids, found = _through_tower(inner, pixels, precision)
        if not parts:
            whole = found.nbytes / len(group) * len(pictures)
            if whole > limit:
                return False
            if on_device:
                on_device = whole < _DEVICE_SHARE * torch.cuda.mem_get_info(found.device)[0]
            cache.facts["hidden"] = found.shape[1] // (1 + len(inner.visual.deepstack_visual_indexes))
        used += found.nbytes
        if used > limit:
            return False
        for path, grid in zip(group, grids.tolist(), strict=True):
            tokens = grid[0] * grid[1] * grid[2] // inner.visual.spatial_merge_size**2
            cache.rows[path] = (tuple(grid), done, done + tokens)
            done += tokens
        parts.append(found if on_device else found.cpu())
    if not parts:
        return False
    cache.store = torch.cat(parts)
    cache.facts |= {
        "pictures": len(pictures),
        "mb": round(used / 1e6, 1),
        "place": str(cache.store.device.type),
        "seconds": round(time.monotonic() - began, 2),
    }
    return True


class _Reader:
    """Groups of pictures -> pixels, for a torch DataLoader."""

    def __init__(self, groups: Sequence[Sequence[str]], get_mm_inputs: Any, processor: Any) -> None:
        self.groups, self.get_mm_inputs, self.processor = groups, get_mm_inputs, processor

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> tuple:
        return _pixels(self.get_mm_inputs, self.processor, self.groups[number])
