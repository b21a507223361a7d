"""Accuracy on questions whose accepted answers say yes or no, by the first word. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/yes_no").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from statistics import fmean as mean

from scripts.lib import answer_metric
from scripts.lib.answer_scores import yes_no


class YesNo(answer_metric.AnswerMetric):
    """Accuracy on questions whose accepted answers say yes or no, by the first word. 0..100."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        found = [yes_no(p, r) for p, r in zip(predictions, references, strict=True)]
        scores = [score for score in found if score is not None]
        return {"yes_no": mean(scores) if scores else None, "count": len(scores)}
