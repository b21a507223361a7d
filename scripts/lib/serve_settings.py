"""What the servers are told, out of the recipe and the token budget."""

from __future__ import annotations

from pathlib import Path

from scripts.lib.errors import EqaError

BLOCK = 64  # LMDeploy's cache block. Unit: tokens


def session_length(budget: object, path: Path) -> int:
    """Longest prompt and answer that a server must hold, rounded up to whole cache blocks.

    Args:
        budget: parsed token_budget.json; `cutoff_len` bounds every sample, `max_new_tokens` an answer.
        path: its file, for the message.
    Returns:
        Tokens.
    Raises:
        EqaError: no token budget.
    """
    cutoff = budget.get("cutoff_len") if isinstance(budget, dict) else None
    if not isinstance(cutoff, int):
        raise EqaError(f"{path}: no cutoff_len in this token budget; make it again: snakemake --force {path}")
    need = cutoff + budget.get("max_new_tokens", 128)
    return (need + BLOCK - 1) // BLOCK * BLOCK


def lmdeploy_dtype(dtype: str) -> str:
    """LMDeploy's type for config predict.dtype: it has no float32, "auto" is then float16."""
    return dtype if dtype in ("float16", "bfloat16") else "auto"
