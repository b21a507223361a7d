"""Mean sentence BLEU up to 4-grams with effective order (sacrebleu) against the best accepted answer. 0..100.

By path, without a network, from the project's folder:
    evaluate.load("scripts/metrics/bleu4").compute(predictions=["two"], references=[["2", "a pair"]])
"""

from __future__ import annotations

from statistics import fmean as mean

import datasets
import evaluate

from scripts.lib.answer_scores import bleu4

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


class Bleu4(evaluate.Metric):
    """Mean sentence BLEU up to 4-grams with effective order (sacrebleu) against the best accepted answer. 0..100."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="texts; lists of accepted texts", features=FEATURES
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"bleu4": mean(bleu4(p, r) for p, r in pairs)}
