"""What the demo's base model learns before anybody tunes it: rooms of other seeds, looked at and asked about."""

from __future__ import annotations

import random

FIRST_SEED = 1_000_000_000  # rooms of the demo itself have seeds far below
CORPUS_ROOMS = 48  # enough for every word that the questions can hold
QUESTIONS_A_ROOM = 24


def make_deterministic() -> None:
    """Fix what could change sums between runs: the number of threads, and operations without a fixed order."""
    import torch

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)


def corpus(prompt: str) -> list[str]:
    """Text for the tokenizer: the prompt, questions and answers of rooms."""
    from scripts.lib.demo_scenes import make_questions, make_scene

    texts = [prompt] * CORPUS_ROOMS
    for i in range(CORPUS_ROOMS):
        for row in make_questions(make_scene(FIRST_SEED + i), QUESTIONS_A_ROOM, random.Random(i)):
            answers = [row["answer"], *row.get("extra_answers", [])]
            texts += [row["question"], *answers, *(f" {answer}" for answer in answers)]
    return texts
