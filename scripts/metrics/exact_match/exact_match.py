"""Share of answers that equal an accepted one but for case, punctuation, articles, number words. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/exact_match").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from scripts.lib import answer_metric
from scripts.lib.answer_scores import exact_match


class ExactMatch(answer_metric.AnswerMetric):
    """Share of answers that equal an accepted one but for case, punctuation, articles, number words. 0..100."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"exact_match": answer_metric.mean_score(exact_match, predictions, references)}
