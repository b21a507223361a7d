"""One answer against all accepted answers: 0..100, the best accepted answer counts.

Each function is (prediction, accepted) -> float; scripts/metrics wraps them as `evaluate` modules. sacrebleu gives BLEU
and chrF, rouge-score gives ROUGE.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

from scripts.lib.errors import EqaError
from scripts.lib.normalise import normalised_words, plain, words, yes_or_no

# order of report tables and of metrics.json
METRICS = ("exact_match", "f1", "bleu4", "rouge1", "rouge2", "rougeL", "chrf", "yes_no")
# ROUGE-L fills a table of words x words: longer texts are judged by their beginning
LONGEST_ROUGE_WORDS = 2000


def check_answer(value: object, where: str) -> str:
    """`value` as text.

    Raises:
        EqaError: it is no string (null, NaN, a number, a list); says where and what it is.
    """
    if not isinstance(value, str):
        shown = repr(value)[:60]
        raise EqaError(f"{where}: the prediction is {shown} ({type(value).__name__}); text is wanted, predict again")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise EqaError(f"{where}: the prediction holds half a character (a lone surrogate); predict again")
    return value


def exact_match(prediction: str, accepted: Sequence[str]) -> float:
    """100 where the normalised prediction equals a normalised accepted answer, else 0; an empty one is wrong."""
    mine = normalised_words(prediction)
    return 100.0 if mine and any(mine == normalised_words(answer) for answer in accepted) else 0.0


def token_f1(prediction: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over normalised words (SQuAD), the best accepted answer."""
    return max(_f1(normalised_words(prediction), normalised_words(answer)) for answer in accepted)


def _f1(mine: Sequence[str], wanted: Sequence[str]) -> float:
    same = sum((Counter(mine) & Counter(wanted)).values())
    return 200.0 * same / (len(mine) + len(wanted)) if same else 0.0


def yes_no(prediction: str, accepted: Sequence[str]) -> float | None:
    """100 or 0 by the first word, on questions whose accepted answers all start with the same yes or no; else None."""
    wanted = {yes_or_no(answer) for answer in accepted}
    if len(wanted) != 1 or None in wanted:
        return None
    return 100.0 if yes_or_no(prediction) in wanted else 0.0


def bleu4(prediction: str, accepted: Sequence[str]) -> float:
    """Sentence BLEU up to 4-grams (sacrebleu, tokenizer 13a), orders over its length left out; best accepted answer.

    Leaving them out ("effective order") is what sacrebleu advises for sentences: an exact "No" scores 100, not 0.
    """
    return _best(prediction, accepted, lambda mine, wanted: _bleu().sentence_score(mine, [wanted]).score)


def chrf(prediction: str, accepted: Sequence[str]) -> float:
    """chrF2 of sacrebleu: character 6-grams, recall weighted twice; the best accepted answer."""
    return _best(prediction, accepted, lambda mine, wanted: _chrf().sentence_score(mine, [wanted]).score)


def _best(prediction: str, accepted: Sequence[str], score: Callable[[str, str], float]) -> float:
    mine, wanted = plain(prediction), [plain(answer) for answer in accepted]
    if not mine:
        return 0.0
    if mine in wanted:
        return 100.0  # what the library gives, in a thousandth of the time
    # sacrebleu's exp(log) gives 100.00000000000004
    return max(min(100.0, max(0.0, score(mine, answer))) for answer in wanted)


def rouge(prediction: str, accepted: Sequence[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (rouge-score, no stemming, words of any script), each its own best."""
    mine = _tokens(prediction)
    best = dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.0)
    for answer in accepted:
        wanted = _tokens(answer)
        if mine == wanted:  # what the library gives, in a thousandth of the time
            found = {"rouge1": 1.0 if mine else 0.0, "rouge2": 1.0 if len(mine) > 1 else 0.0}
            found["rougeL"] = found["rouge1"]
        else:
            scores = _rouge().score(answer, prediction)
            found = {name: scores[name].fmeasure for name in best}
        best = {name: max(best[name], 100.0 * found[name]) for name in best}
    return best


def score_answer(prediction: str, accepted: Sequence[str]) -> dict[str, float | None]:
    """Every metric of METRICS for one answer; yes_no is None where it does not apply."""
    return dict(_score_answer(prediction, tuple(accepted)))


@functools.lru_cache(maxsize=16384)
def _score_answer(prediction: str, accepted: tuple[str, ...]) -> dict[str, float | None]:
    return {
        "exact_match": exact_match(prediction, accepted),
        "f1": token_f1(prediction, accepted),
        "bleu4": bleu4(prediction, accepted),
        **rouge(prediction, accepted),
        "chrf": chrf(prediction, accepted),
        "yes_no": yes_no(prediction, accepted),
    }


@functools.lru_cache(maxsize=16384)
def perfect_score(accepted: tuple[str, ...]) -> dict[str, float | None]:
    """What a model reaches that gives an accepted answer word for word: under 100 where a metric has a ceiling.

    ROUGE-2 of a one-word answer is 0, whoever gives it.
    """
    found = [_score_answer(answer, accepted) for answer in accepted]
    return {name: None if found[0][name] is None else max(scores[name] for scores in found) for name in METRICS}


@functools.cache
def _bleu() -> object:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@functools.cache
def _chrf() -> object:
    from sacrebleu.metrics import CHRF

    return CHRF()


class _AnyScript:
    """rouge-score's tokenizer interface; its own drops every character that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return list(_tokens(text))


@functools.lru_cache(maxsize=1024)
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(words(text)[:LONGEST_ROUGE_WORDS])


@functools.cache
def _rouge() -> object:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False, tokenizer=_AnyScript())
