"""Accuracy on questions whose accepted answers say yes or no, by the first word. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/yes_no").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from statistics import fmean as mean

import datasets
import evaluate

from scripts.lib.answer_scores import yes_no

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


class YesNo(evaluate.Metric):
    """Accuracy on questions whose accepted answers say yes or no, by the first word. 0..100."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="texts; lists of accepted texts", features=FEATURES
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        found = [yes_no(p, r) for p, r in zip(predictions, references, strict=True)]
        scores = [score for score in found if score is not None]
        return {"yes_no": mean(scores) if scores else None, "count": len(scores)}
