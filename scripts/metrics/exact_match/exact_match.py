"""Share of answers that equal an accepted one but for case, punctuation, articles, number words. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/exact_match").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from statistics import fmean as mean

import datasets
import evaluate

from scripts.lib.answer_scores import exact_match

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


class ExactMatch(evaluate.Metric):
    """Share of answers that equal an accepted one but for case, punctuation, articles, number words. 0..100."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="texts; lists of accepted texts", features=FEATURES
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"exact_match": mean(exact_match(p, r) for p, r in pairs)}
