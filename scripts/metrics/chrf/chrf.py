"""Mean sentence chrF2 (sacrebleu) against the best accepted answer. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/chrf").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from scripts.lib import answer_metric
from scripts.lib.answer_scores import chrf


class Chrf(answer_metric.AnswerMetric):
    """Mean sentence chrF2 (sacrebleu) against the best accepted answer. 0..100."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"chrf": answer_metric.mean_score(chrf, predictions, references)}
