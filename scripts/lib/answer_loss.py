"""The same loss without the logits that nobody reads.

Qwen3VLForConditionalGeneration computes logits over all words for every token and then ignores those without a label.
In a conversation about eight pictures some 5 % of the tokens carry loss, and 151,936 words x 4 bytes x 1,361 tokens are
0.8 GB a sample, several times over in the backward pass. Here the output head sees only the positions whose next token
has a label. The loss is the same mean over the same tokens; in float32 it agrees to the last few bits (tested to 1e-6).

Where devices share one batch of the recipe, each sees some of its samples, and the mean of their means is not the mean
over the tokens of the batch: a short answer would weigh as much as a long one. They tell each other how many labels they
have, and each divides by the count of the whole batch.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from scripts.lib.base_model import ARCHITECTURE
from scripts.lib.errors import EqaError

IGNORED = -100


def use_answer_only_loss(model: Any, together: int = 1) -> None:
    """Replace the forward pass of the Qwen3-VL inside `model` (bare, or under PEFT and DDP), on this object only.

    Args:
        together: neighbouring ranks that hold one batch of the recipe between them; their losses are averaged by
            whoever averages gradients. All ranks call the model equally often then.
    Source: transformers 5.6.0 models/qwen3_vl/modeling_qwen3_vl.py, loss/loss_utils.py ForCausalLMLoss.

    Raises:
        EqaError: there is no Qwen3-VL in it.
    """
    inner = [module for module in model.modules() if type(module).__name__ == ARCHITECTURE]
    if len(inner) != 1:
        raise EqaError(
            f"config: train.answer_only_loss=true wants one {ARCHITECTURE}, found {len(inner)}; set it to false"
        )
    inner[0].forward = MethodType(_forward, inner[0])
    inner[0].ranks_together = together


def _labels_of_batch(count: Any, together: int) -> Any:
    """Labels of the batch that this rank holds a part of, from those of this rank; shape (), int64."""
    import torch
    from torch import distributed

    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    first = distributed.get_rank() // together * together
    return sum(counts[first : first + together])


def _forward(self: Any, *args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
    """Loss of the labelled tokens, logits None; without labels the original forward pass."""
    from torch.nn import functional
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLCausalLMOutputWithPast

    if labels is None:
        return type(self).forward(self, *args, **kwargs)
    kwargs.setdefault("use_cache", False)  # keys and values of a training step are never read again
    hidden = self.model(*args, **kwargs)[0]
    following = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    kept = following != IGNORED
    logits = self.lm_head(hidden[kept]).float()
    if num_items_in_batch is None and self.ranks_together > 1 and self.training:
        whole = _labels_of_batch(kept.sum(), self.ranks_together)
        loss = functional.cross_entropy(logits, following[kept], reduction="sum") * self.ranks_together / whole
    elif num_items_in_batch is None:
        loss = functional.cross_entropy(logits, following[kept])
    else:
        loss = functional.cross_entropy(logits, following[kept], reduction="sum") / num_items_in_batch
    return Qwen3VLCausalLMOutputWithPast(loss=loss)
