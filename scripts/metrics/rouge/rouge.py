"""Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (rouge-score), each against its best accepted answer. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/rouge").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from statistics import fmean as mean

from scripts.lib import answer_metric
from scripts.lib.answer_scores import rouge


class Rouge(answer_metric.AnswerMetric):
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (rouge-score), each against its best accepted answer. 0..100."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        rows = [rouge(p, r) for p, r in zip(predictions, references, strict=True)]
        return {name: mean(row[name] for row in rows) for name in ("rouge1", "rouge2", "rougeL")}
