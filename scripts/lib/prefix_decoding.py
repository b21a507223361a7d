"""Decode many questions about few episodes: each episode's pictures are encoded and prefilled once.

For transformers' Qwen3VLForConditionalGeneration (5.6.0). Three things would go wrong without an error, so this module
never leaves them to the library:

* Positions. A picture takes fewer rotary positions than tokens. The library keeps the difference (`rope_deltas`) as
  state of the model, where a second prompt finds the first one's. Here each prefix carries the position of its next
  token, and every call gets explicit `position_ids`.
* Mask. With padding it has to cover the cache and the new tokens. Here it is built over both and grows with each token.
* Pixels. They belong to the prefix alone and are never passed again.

Episodes of one batch may have prefixes of different lengths: shorter ones are padded on the left, as are the questions,
so that every row's next token is the last column. Padded keys are masked; positions are explicit, so padding moves
nothing. In float32 the answers are those of whole prompts token by token; in bfloat16 no two batch shapes agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ATTENTION = "eqa_grouped"  # name under which the library finds `_attend`
# chooses the next token of each active row: (logits (rows, vocabulary), row numbers, step) -> token ids (rows,)
Chooser = Callable[["torch.Tensor", Sequence[int], int], "torch.Tensor"]


@dataclass(frozen=True)
class Prefix:
    """What all prompts of an episode begin with, run through the model.

    Attributes:
        keys, values: one tensor a layer, shape (1, key-value heads, length, head size).
        length: tokens.
        next_position: rotary position of the token that follows, the same on all three axes.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    length: int
    next_position: int


@dataclass
class Work:
    """Tokens that the language model computed, and what whole prompts would have cost: for benches and records."""

    prefix: int = 0
    suffix: int = 0
    whole: int = 0
    steps: int = 0
    pictures: int = 0

    def prefilled(self) -> int:
        """Prompt tokens computed."""
        return self.prefix + self.suffix


@dataclass
class Prompt:
    """One question's tokens: the index of its prefix in the batch, and what follows the prefix (one token at least)."""

    prefix: int
    suffix: list[int] = field(default_factory=list)


def shared_length(prompts: Sequence[Sequence[int]], pictures_end: int) -> int:
    """Longest common beginning of some prompts that leaves each at least one token.

    Args:
        prompts: token ids; one or more prompts.
        pictures_end: index after the last picture's tokens; 0 without pictures.
    Raises:
        ValueError: the common beginning ends before the last picture does: the prompts show different pictures.
    """
    length = min(map(len, prompts)) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    if length < pictures_end:
        raise ValueError(f"prompts share {length} tokens, their pictures end at {pictures_end}")
    return length


def prefill(
    model: object,
    ids: Sequence[int],
    token_types: Sequence[int] | None = None,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
) -> Prefix:
    """Run a prefix through the model.

    Args:
        model: Qwen3VLForConditionalGeneration, or a PeftModel around it.
        ids: its tokens, pictures' placeholders included.
        token_types: 1 for a picture's token, else 0; None without pictures.
        pixel_values, image_grid_thw: the image processor's output for all pictures of the prefix.
    """
    import torch

    inner = _inner(model)
    device = inner.device
    tokens = torch.tensor([list(ids)], device=device)
    with torch.inference_mode():
        pictures = {}
        if pixel_values is None:
            positions = torch.arange(tokens.shape[1], device=device).expand(3, 1, -1)
        else:
            types = torch.tensor([list(token_types)])
            # counted on the CPU: one .item() a picture would wait for the GPU each time
            positions, _ = inner.model.get_rope_index(tokens.cpu(), types, image_grid_thw=image_grid_thw.cpu())
            positions = positions.to(device)
            pictures = {
                "pixel_values": pixel_values.to(device),
                "image_grid_thw": image_grid_thw.to(device),
            }
        out = inner(input_ids=tokens, position_ids=positions, use_cache=True, logits_to_keep=1, **pictures)
    layers = out.past_key_values.layers
    return Prefix(
        tuple(layer.keys for layer in layers),
        tuple(layer.values for layer in layers),
        tokens.shape[1],
        int(positions.max()) + 1,
    )


def decode(
    model: object,
    prefixes: Sequence[Prefix],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    choose: Chooser | None = None,
) -> list[list[int]]:
    """Continue every prompt from its prefix's cache, all in one batch.

    Args:
        prefixes: from `prefill`; unchanged by the call.
        prompts: which prefix, and the tokens after it.
        max_new_tokens: most tokens of an answer.
        stop_ids: tokens that end an answer.
        pad_id: filler; masked.
        choose: picks tokens; None is greedy.
    Returns:
        Token ids of each answer, without the stop token.
    """
    import torch

    choose = choose or greedy
    inner = _inner(model)
    device = inner.device
    rows, longest = len(prompts), max(len(prompt.suffix) for prompt in prompts)
    past = max(prefixes[prompt.prefix].length for prompt in prompts)
    # the last chosen token is never fed: hence the -1
    cache = _joined_cache(prefixes, [prompt.prefix for prompt in prompts], past, longest + max_new_tokens - 1)
    ids = torch.full((rows, longest), pad_id)
    mask = torch.zeros((rows, past + longest + max_new_tokens - 1), dtype=torch.long)
    positions = torch.zeros((rows, longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        prefix, size = prefixes[prompt.prefix], len(prompt.suffix)
        ids[row, longest - size :] = torch.tensor(prompt.suffix)
        mask[row, past - prefix.length : past] = 1
        mask[row, past + longest - size :] = 1
        positions[row, longest - size :] = torch.arange(size) + prefix.next_position
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(rows))
    filled = past
    with torch.inference_mode(), _grouped_attention(inner):
        for step in range(max_new_tokens):
            filled += ids.shape[1]
            logits = inner(
                input_ids=ids,
                position_ids=positions.expand(3, *positions.shape),
                attention_mask=mask[:, :filled],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = choose(logits, active, step)
            stopped = torch.isin(tokens, stops).tolist()
            for row, token, stop in zip(active, tokens.tolist(), stopped, strict=True):
                if not stop:
                    answers[row].append(token)
            keep = [place for place, stop in enumerate(stopped) if not stop]
            if not keep or step == max_new_tokens - 1:
                break
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            if len(keep) < len(active):
                chosen = torch.tensor(keep, device=device)
                ids, positions, mask = ids[chosen], positions[chosen], mask[chosen]
                active = [active[place] for place in keep]
                cache.batch_select_indices(chosen)
    return answers


def greedy(logits: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def sampler(names: Sequence[str], seed: int, temperature: float, top_p: float, top_k: int) -> Chooser:
    """Seeded sampling whose draw depends on the question and the step alone, not on the batch or its order.

    Args:
        names: a stable name of each row of the batch (its question_id).
        seed: config `predict.seed`.
        temperature: over 0; divides the logits.
        top_p: smallest set of likeliest tokens that holds this share.
        top_k: at most that many likeliest tokens; 0 for all.
    """

    def choose(logits: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
        import torch

        scores = logits.double() / temperature
        ranked, order = scores.topk(min(top_k or scores.shape[-1], scores.shape[-1]), dim=-1)
        share = ranked.softmax(-1)
        before = share.cumsum(-1) - share
        share = torch.where(before < top_p, share, 0.0)
        edges = share.cumsum(-1)
        draws = torch.tensor(
            [[uniform(seed, names[row], step)] for row in rows], dtype=edges.dtype, device=edges.device
        )
        picks = (edges < draws * edges[:, -1:]).sum(-1, keepdim=True).clamp(max=edges.shape[-1] - 1)
        return order.gather(-1, picks)[:, 0]

    return choose


def uniform(seed: int, name: str, step: int) -> float:
    """A number in (0, 1) that is a function of its arguments only."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{step}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") + 0.5) / math.ldexp(1.0, 64)


def _inner(model: object) -> object:
    """The Qwen3-VL model itself; LoRA layers sit inside it and stay at work."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def _grouped_attention(inner: object) -> Iterator[None]:
    """Let the language model attend by `_attend` while it decodes.

    PyTorch's fused attention is made for long queries: with one new token a row and a cache that grows, cuDNN plans
    anew at each step, and grouped heads with a mask first copy the whole cache (measured on an H100: 90 % of the time).
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
    config = inner.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: object,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of few new tokens over a long cache, as two matrix products a key-value head, scores in float32.

    Args:
        query: shape (rows, heads, new, size).
        key, value: shape (rows, key-value heads, all, size); views of the cache, not copied.
        attention_mask: True where a token may look, shape (rows, 1, new, all); None for everywhere.
    Returns:
        Shape (rows, new, heads, size), and None for the weights, which nobody reads.
    """
    import torch

    rows, heads, new, size = query.shape
    groups = key.shape[1]
    # heads that share a key-value head become more rows of the same product
    stacked = query.reshape(rows * groups, heads // groups * new, size)
    keys = key.reshape(rows * groups, -1, size).transpose(1, 2)
    if query.is_cuda and query.dtype != torch.float32:
        scores = torch.bmm(stacked, keys, out_dtype=torch.float32)
    else:
        scores = torch.bmm(stacked, keys).float()
    scores = scores.view(rows, heads, new, -1).mul_(scaling)
    if attention_mask is not None:
        scores.masked_fill_(~attention_mask, torch.finfo(torch.float32).min)
    weights = scores.softmax(-1).to(value.dtype).view(rows * groups, heads // groups * new, -1)
    found = torch.bmm(weights, value.reshape(rows * groups, -1, size))
    return found.view(rows, heads, new, size).transpose(1, 2).contiguous(), None


def _joined_cache(prefixes: Sequence[Prefix], owners: Sequence[int], past: int, room: int) -> object:
    """A cache with one row a prompt: its prefix at the right end of `past` columns, then `room` for new tokens.

    Buffers are allocated once; the library's own cache copies all keys at every token.
    """
    from transformers.cache_utils import Cache

    layers = []
    for number in range(len(prefixes[0].keys)):
        layers.append(
            _buffered_layer(
                _buffer([prefix.keys[number] for prefix in prefixes], owners, past, room),
                _buffer([prefix.values[number] for prefix in prefixes], owners, past, room),
                past,
            )
        )
    return Cache(layers=layers)


def _buffer(parts: Sequence[torch.Tensor], owners: Sequence[int], past: int, room: int) -> torch.Tensor:
    _, heads, _, size = parts[0].shape
    # zeros, not empty: 0 x NaN of an uninitialised padded value would be NaN
    buffer = parts[0].new_zeros((len(owners), heads, past + room, size))
    for row, owner in enumerate(owners):
        part = parts[owner]
        buffer[row, :, past - part.shape[-2] : past] = part[0]
    return buffer


def _buffered_layer(keys: torch.Tensor, values: torch.Tensor, filled: int) -> object:
    from transformers.cache_utils import DynamicLayer

    class BufferedLayer(DynamicLayer):
        """A cache layer that writes into room allocated beforehand."""

        def __init__(self) -> None:
            super().__init__()
            self.is_initialized = True
            self.dtype, self.device = keys.dtype, keys.device
            self._show(keys, values, filled)

        def _show(self, all_keys: torch.Tensor, all_values: torch.Tensor, end: int) -> None:
            self.all_keys, self.all_values, self.end = all_keys, all_values, end
            self.keys, self.values = all_keys[:, :, :end], all_values[:, :, :end]

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
        ) -> tuple:
            end = self.end + key_states.shape[-2]
            self.all_keys[:, :, self.end : end] = key_states
            self.all_values[:, :, self.end : end] = value_states
            self._show(self.all_keys, self.all_values, end)
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            self._show(self.all_keys[indices], self.all_values[indices], self.end)

    return BufferedLayer()
