"""Questions as LLaMA-Factory's sharegpt conversations: prompt, turns, chunks, and what LLaMA-Factory renders of them.

Sources: LLaMA-Factory 0.9.5 data/template.py (qwen3_vl_nothink), data/mm_plugin.py (Qwen3VLPlugin), data/converter.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.lib.errors import EqaError

PLACEHOLDER = "{question}"
IMAGE = "<image>"
# what LLaMA-Factory itself replaces in a message, beside the tokenizer's special tokens: pictures are counted by
# <image>, and {{idx}} is filled in after {{content}}
RESERVED = (IMAGE, "<video>", "<audio>", "{{content}}", "{{idx}}")
# what every Qwen tokenizer has; the model's own list is added where the tokenizer is at hand
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
SPECIAL_TOKENS += ("<|image_pad|>", "<|video_pad|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
# templates whose rendering is known here, so that tokens can be counted
TEMPLATES = ("qwen3_vl_nothink",)


def neutralize(text: str, special: Iterable[str] = ()) -> str:
    """`text` in which no special token or placeholder is left: a space is put behind its first character.

    A question that says `<image>` or `<|im_end|>` would otherwise add a picture or end its turn. The words stay
    readable, and text without such strings, that is, all of Open-EQA, is unchanged.

    Args:
        text: question or answer.
        special: the tokenizer's special tokens, beside SPECIAL_TOKENS and RESERVED.
    """
    words = sorted({*RESERVED, *SPECIAL_TOKENS, *special} - {""}, key=lambda word: (-len(word), word))
    words = [word for word in words if len(word) > 1 and not word.isspace()]
    while True:
        before = text
        for word in words:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        if text == before:
            return text


def read_prompt(path: Path, special: Iterable[str] = ()) -> str:
    """The prompt's text, without trailing line breaks.

    Raises:
        EqaError: missing, not UTF-8, `{question}` not there exactly once, or special tokens in it.
    """
    try:
        text = path.read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        raise EqaError(f"{path}: this prompt does not exist; see predict.prompt") from None
    except UnicodeDecodeError as error:
        raise EqaError(f"{path}: this prompt is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    count = text.count(PLACEHOLDER)
    if count != 1:
        raise EqaError(f"{path}: {PLACEHOLDER} occurs {count} times in this prompt; it must occur once")
    if neutralize(text, special) != text:
        raise EqaError(f"{path}: this prompt holds a special token or {IMAGE}; pictures are put before it, remove it")
    return text


def prompt_text(prompt: str, question: str) -> str:
    """`prompt` with its `{question}` filled in; braces in either mean nothing."""
    return prompt.replace(PLACEHOLDER, question)


def user_message(prompt: str, question: str, images: int) -> str:
    """Content of a user turn: one `<image>` a picture, then the prompt with the question.

    Evaluation uses this with all pictures; the later turns of a conversation repeat the prompt without pictures, so
    that what precedes an answer reads the same in training and in evaluation.
    """
    return IMAGE * images + prompt_text(prompt, question)


def rendered_user(content: str) -> str:
    """What LLaMA-Factory tokenizes for a user turn, with one pad token a picture."""
    content = content.replace(IMAGE, "<|vision_start|><|image_pad|><|vision_end|>")
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def rendered_assistant(content: str) -> str:
    """What LLaMA-Factory tokenizes for an answer, the loss lies on all of it."""
    return f"{content}<|im_end|>\n"


def order_turns(question_ids: Iterable[str], episode: str, seed: int) -> list[str]:
    """The order of an episode's questions in its conversation: shuffled, the same for equal seed and episode."""
    ids = sorted(question_ids)
    random.Random(f"{seed}/{episode}").shuffle(ids)
    return ids


def chunk_turns(first: Sequence[int], later: Sequence[int], limit: int) -> list[list[int]]:
    """Divide an episode's turns, in order, into conversations that fit.

    Args:
        first: tokens of each turn as the first of a conversation, pictures included; each <= limit.
        later: tokens of each turn as a later one.
        limit: config `train.cutoff_len`.
    Returns:
        Positions of the turns of each conversation.
    """
    chunks: list[list[int]] = []
    used = 0
    for position in range(len(first)):
        if chunks and used + later[position] <= limit:
            chunks[-1].append(position)
            used += later[position]
        else:
            chunks.append([position])
            used = first[position]
    return chunks


def sample(turns: Sequence[tuple[str, str, str]], prompt: str, images: Sequence[str], episode: str) -> dict:
    """One row of a sharegpt file.

    Args:
        turns: (question_id, question, answer), texts neutralized.
        prompt: with `{question}`.
        images: paths relative to results/frames.
        episode: episode_history.
    """
    messages = []
    for position, (_, question, answer) in enumerate(turns):
        content = user_message(prompt, question, 0 if position else len(images))
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    ids = [turn[0] for turn in turns]
    return {"messages": messages, "images": list(images), "question_ids": ids, "episode_history": episode}


def dataset_info(parts: Iterable[str]) -> dict:
    """LLaMA-Factory's dataset_info.json: openeqa_train and so on, in PART.json beside it."""
    entry: Mapping = {
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    return {f"openeqa_{part}": {"file_name": f"{part}.json", **entry} for part in parts}
