"""LLaMA-Factory's own BLEU-4 and ROUGE, recomputed: comparable with the usual tutorials' numbers, with nothing else.

BLEU is taken over characters and ROUGE over jieba's words, both case-sensitive, a question at a time, and the reference
ends in a line break, as its labels do. One-word answers have no bigram and few 4-grams: a perfect model scores about
60 ROUGE-2 and 95 BLEU-4 on Open-EQA.

Source: LLaMA-Factory 0.9.5 train/sft/metric.py (ComputeSimilarity). Needs jieba, rouge-chinese and nltk (envs/train).
"""

from __future__ import annotations

from collections.abc import Sequence

NAMES = {"bleu-4": "predict_bleu-4", "rouge-1": "predict_rouge-1", "rouge-2": "predict_rouge-2"}
NAMES |= {"rouge-l": "predict_rouge-l"}
PLACES = 4  # each question's score is rounded so before the mean is taken


def tutorial_score(prediction: str, reference: str) -> dict[str, float]:
    """Scores of one answer, 0..100.

    Args:
        prediction: as decoded.
        reference: the label as decoded, its final line break included.
    """
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    mine, wanted = " ".join(jieba.cut(prediction)), " ".join(jieba.cut(reference))
    scores = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    if mine.split() and wanted.split():
        found = Rouge().get_scores(mine, wanted)[0]
        scores = {name: found[name]["f"] for name in scores}
    scores["bleu-4"] = sentence_bleu(
        [list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3
    )
    return {name: round(value * 100, PLACES) for name, value in scores.items()}


def tutorial_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means over all answers, named as in LLaMA-Factory's predict_results.json.

    Raises:
        ValueError: no answers, or not as many as references.
    """
    if not predictions:
        raise ValueError("no predictions")
    rows = [tutorial_score(mine, wanted) for mine, wanted in zip(predictions, references, strict=True)]
    return {NAMES[name]: sum(row[name] for row in rows) / len(rows) for name in sorted(NAMES)}
