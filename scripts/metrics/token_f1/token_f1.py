"""Mean word F1 (SQuAD) against the best accepted answer. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/token_f1").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from scripts.lib import answer_metric
from scripts.lib.answer_scores import token_f1


class TokenF1(answer_metric.AnswerMetric):
    """Mean word F1 (SQuAD) against the best accepted answer. 0..100."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"f1": answer_metric.mean_score(token_f1, predictions, references)}
