"""LLM-Match, Open-EQA's official score: a judge gives 1 to 5, the mean is shown on 0..100.

Source: facebookresearch/open-eqa at cfa3fce, evaluate-predictions.py and openeqa/evaluation/llm_match.py: what is cut
from a prediction, which prompt is filled in how, how a reply is read, how marks become a score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_TOKENS = 32  # of the judge's reply
PROMPT = "mmbench.txt"
PROMPT_EXTRA = "mmbench-extra.txt"
TAG = "Your mark:"
LOWEST, HIGHEST = 1, 5
# USD a million tokens (prompt, answer), OpenAI's list price of the judge that Open-EQA published with
PRICES = {"gpt-4-1106-preview": (10.0, 30.0)}
CHARACTERS_PER_TOKEN = 4  # of English, for the estimate
REPLY_TOKENS = 6  # 'Your mark: 4'


def shown_prediction(prediction: str | None) -> str | None:
    """What the judge is shown: text after the last full stop is cut."""
    if not prediction:
        return prediction
    end = prediction.rfind(".")
    return prediction if end < 0 else prediction[: end + 1]


def prompt_name(extra_answers: Sequence[str]) -> str:
    """Which of the official prompts a question takes."""
    return PROMPT_EXTRA if extra_answers else PROMPT


def fill(template: str, question: str, answer: str, extra_answers: Sequence[str], prediction: str) -> str:
    """The judge's prompt; braces in the texts mean nothing. Extra answers are shown as a Python list."""
    values = {
        "question": question,
        "answer": answer,
        "prediction": prediction,
        "extra_answers": str(list(extra_answers)),
    }
    return re.sub(r"\{(question|answer|prediction|extra_answers)\}", lambda match: values[match[1]], template)


def parse_mark(reply: str) -> int | None:
    """The mark in a judge's reply: a whole number alone, or what follows 'Your mark:' on its line; else None.

    Out-of-range marks are returned as they are; the score clips them.
    """
    text = reply.strip()
    if TAG in text:
        text = text.split(TAG, 1)[1].split("\n", 1)[0].strip()
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,6}", text) else None


def match_score(mark: float) -> float:
    """0..100 of one mark: 1 is 0, 5 is 100, others are clipped; a missing prediction's mark is 0, so its score 0."""
    return 100.0 * (min(max(mark, LOWEST), HIGHEST) - 1) / 4


def estimate(prompts: Sequence[str], model: str, per_minute: float) -> str:
    """One line before the first request: requests, tokens, cost where the price is known, least time."""
    asked = sum(map(len, prompts)) // CHARACTERS_PER_TOKEN
    answered = len(prompts) * REPLY_TOKENS
    price = PRICES.get(model)
    cost = (
        f"about {asked * price[0] / 1e6 + answered * price[1] / 1e6:.2f} USD at list price"
        if price
        else "price unknown"
    )
    return (
        f"{len(prompts)} requests, about {asked:,} prompt and {answered:,} answer tokens, {cost}, "
        f"at least {len(prompts) / per_minute:.1f} min at {per_minute:g} requests a minute"
    )
