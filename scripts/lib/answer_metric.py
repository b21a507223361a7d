"""What the metric modules of scripts/metrics share. Imported as a module: evaluate takes the first Metric class in a
metric file's namespace for its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import fmean as mean

import datasets
import evaluate

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


class AnswerMetric(evaluate.Metric):
    """A metric of texts against lists of accepted texts, described by its module's docstring."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=sys.modules[type(self).__module__].__doc__,
            citation="",
            inputs_description="texts; lists of accepted texts",
            features=FEATURES,
        )


def mean_score(
    score: Callable[[str, Sequence[str]], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Mean of `score(prediction, accepted)` over all pairs. 0..100."""
    return mean(score(p, r) for p, r in zip(predictions, references, strict=True))
