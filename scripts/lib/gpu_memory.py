"""Whether an error says that a GPU has too little memory."""

from __future__ import annotations


def ran_out(error: BaseException) -> bool:
    """torch's own error, or LMDeploy's where its cache or a step does not fit.

    Source: LMDeploy 0.18.0 pytorch/engine/executor/base.py ("No enough gpu memory for kv cache.", "... for runtime.").
    """
    return type(error).__name__ == "OutOfMemoryError" or "gpu memory" in str(error).lower()
