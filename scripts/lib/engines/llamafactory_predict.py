"""Run LLaMA-Factory's prediction with the rotary positions of pictures put right.   By hand, in envs/train:

    python -m scripts.lib.engines.llamafactory_predict predict.yaml

LLaMA-Factory 0.9.5 gives its collator no model when it predicts (train/sft/workflow.py), so the batch carries neither
positions nor `mm_token_type_ids`; transformers 5 then numbers a picture's tokens like words, without an error: the
model was trained with one set of positions and is asked with another. The mark is added here to every batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from scripts.lib.stopping import end_children_with_parent


def with_token_types(collate: Callable) -> Callable:
    """A collator's __call__ whose batches say which tokens are a picture's."""

    def call(self: object, features: Sequence[dict]) -> dict:
        batch = collate(self, features)
        if "image_grid_thw" in batch and "mm_token_type_ids" not in batch:
            picture = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
            batch["mm_token_type_ids"] = (batch["input_ids"] == picture).int()
        return batch

    return call


def main(argv: Sequence[str] | None = None) -> int:
    """Predict as the YAML file says."""
    (recipe,) = sys.argv[1:] if argv is None else argv
    end_children_with_parent()  # tokenizing forks; an orphan would hold this prediction's devices
    import yaml
    from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq
    from llamafactory.train.tuner import run_exp

    MultiModalDataCollatorForSeq2Seq.__call__ = with_token_types(MultiModalDataCollatorForSeq2Seq.__call__)
    with open(recipe, encoding="utf-8") as file:
        run_exp(yaml.safe_load(file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
