"""Where an engine's text parts from the float32 reference of tests.lib.serving_reference."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

TIE = 0.06  # log-probability; 16-bit logits of a few units are off by a few hundredths


def equal_tokens(answer: str, wanted: Mapping) -> int:
    """How many of the reference's tokens an answer begins with.

    Args:
        answer: an engine's text, without surrounding space.
        wanted: one row of the reference, with "pieces".
    """
    return sum(answer.startswith(text.strip()) for text in itertools.accumulate(wanted["pieces"]))


def partings(answers: Sequence[str], reference: Sequence[Mapping]) -> list[tuple[int, float]]:
    """(token, lead of the reference's choice over its second best) where an answer parts from the reference.

    Answers that are the reference's, whole, are left out.
    """
    found = []
    for answer, wanted in zip(answers, reference, strict=True):
        same = equal_tokens(answer.strip(), wanted)
        if same < len(wanted["pieces"]):
            found.append((same, round(wanted["leads"][same], 4)))
    return found
