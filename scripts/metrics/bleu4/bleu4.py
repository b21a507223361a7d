"""Mean sentence BLEU up to 4-grams with effective order (sacrebleu) against the best accepted answer. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/bleu4").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from scripts.lib import answer_metric
from scripts.lib.answer_scores import bleu4


class Bleu4(answer_metric.AnswerMetric):
    """Mean sentence BLEU up to 4-grams with effective order (sacrebleu) against the best accepted answer. 0..100."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"bleu4": answer_metric.mean_score(bleu4, predictions, references)}
