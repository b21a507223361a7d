"""LLaMA-Factory's own BLEU-4 and ROUGE: to compare with the usual tutorials. Needs jieba, rouge-chinese and nltk.

By path, without a network, from the project's folder, in envs/train:
    evaluate.load("scripts/metrics/tutorial").compute(predictions=["two"], references=["two\\n"])
"""

from __future__ import annotations

import datasets
import evaluate

from scripts.lib.tutorial_scores import tutorial_scores

FEATURES = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class Tutorial(evaluate.Metric):
    """LLaMA-Factory's own BLEU-4 and ROUGE."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="texts; label texts with their final line break",
            features=FEATURES,
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return tutorial_scores(predictions, references)
