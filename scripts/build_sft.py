"""LLaMA-Factory data of the split, every sample's tokens counted as LLaMA-Factory will.   By hand, in envs/train:

    uv run --frozen --project envs/train python -m scripts.build_sft --questions results/index/questions.json \
        --split results/split/split.json --frames results/frames/manifest.json --base models/base/manifest.json \
        --prompt config/prompts/short_answer.txt --config '{...}' --output-dir results/sft
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from scripts.lib import sharegpt
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import (
    atomic_path,
    check_manifest,
    is_disabled,
    read_json,
    read_manifest,
    remove,
    safe_join,
    write_json,
    write_json_list,
)
from scripts.lib.progress import Progress
from scripts.lib.tokens import ProcessorLimits, image_tokens, largest_max_pixels, read_processor_limits

PARTS = ("train", "val", "test")
FILES = ("dataset_info.json", *(f"{part}.json" for part in PARTS), "token_budget.json")
OFFICIAL_PROMPT = "gpt4v.txt"
BATCH = 4096  # texts that the tokenizer is given at once: their tokens lie in memory together
EPISODES = 256  # whose rows lie in memory together
LISTED = {"size": -1, "sha256": ""}  # stands for every file's record: size and hash are not asked for here
KNOWN_TEXTS = 100_000  # texts whose count is remembered, some 500 bytes each
Size = tuple[int, int]
Turn = tuple[str, str, str]  # question_id, question, answer


class Question(NamedTuple):
    """What a conversation needs of a row of the index."""

    question_id: str
    question: str
    answer: str
    episode: str


@dataclass
class TokenCount:
    """Tokens of texts; a text that is asked for again soon does not go through the tokenizer again."""

    encode: Callable[[list[str]], list[int]]
    known: dict[str, int] = field(default_factory=dict)

    def add(self, texts: Sequence[str]) -> None:
        """Count all texts that are new; the texts of the last call are always known."""
        if len(self.known) > KNOWN_TEXTS:
            self.known.clear()
        new = sorted(set(texts) - set(self.known))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self.known.update(zip(batch, self.encode(batch), strict=True))

    def __getitem__(self, text: str) -> int:
        return self.known[text]


# ------------------------------------------------------------------------------------------------ pure


def message_tokens(message: Mapping, pictures: Sequence[int], count: TokenCount) -> int:
    """Tokens of one message; `pictures` are those of the pictures whose `<image>` it holds, marks included."""
    if message["role"] == "assistant":
        return count[sharegpt.rendered_assistant(message["content"])]
    # the text is tokenized with three tokens a picture: its two marks and one pad
    return count[sharegpt.rendered_user(message["content"])] + sum(pictures) - 3 * len(pictures)


def sample_tokens(sample: Mapping, pictures: Sequence[int], count: TokenCount) -> dict:
    """Tokens of one row of a sharegpt file.

    Args:
        sample: the row.
        pictures: tokens of each of its pictures, marks included.
        count: has seen the row's texts.
    Returns:
        {"total", "image", "text", "answer", "prompt"}: prompt is what a model is given before the last answer.
    """
    messages = sample["messages"]
    parts = [message_tokens(m, [] if i else pictures, count) for i, m in enumerate(messages)]
    total = sum(parts)
    return {
        "total": total,
        "image": sum(pictures),
        "text": total - sum(pictures),
        "answer": sum(parts[1::2]),
        "prompt": total - parts[-1],
    }


def sample_texts(sample: Mapping) -> list[str]:
    """What the tokenizer is given for a row, message by message, as LLaMA-Factory does."""
    render = {"user": sharegpt.rendered_user, "assistant": sharegpt.rendered_assistant}
    return [render[message["role"]](message["content"]) for message in sample["messages"]]


def question_samples(turns: Sequence[Turn], prompt: str, images: Sequence[str], episode: str) -> list[dict]:
    """One row a question, with its `question_id`, in the order given."""
    rows = []
    for turn in turns:
        row = sharegpt.sample([turn], prompt, images, episode)
        rows.append({**row, "question_id": turn[0]})
    return rows


def episode_samples(
    turns: Sequence[Turn],
    prompt: str,
    images: Sequence[str],
    episode: str,
    pictures: Sequence[int],
    limit: int,
    count: TokenCount,
) -> list[dict]:
    """All questions of an episode as turns of as few conversations as fit, pictures once each.

    Args:
        turns: in conversation order; each fits alone.
        limit: config `train.cutoff_len`.
    """
    alone = question_samples(turns, prompt, images, episode)
    first = [sample_tokens(row, pictures, count)["total"] for row in alone]
    later = [
        count[sharegpt.rendered_user(sharegpt.user_message(prompt, question, 0))]
        + count[sharegpt.rendered_assistant(answer)]
        for _, question, answer in turns
    ]
    chunks = sharegpt.chunk_turns(first, later, limit)
    return [sharegpt.sample([turns[i] for i in chunk], prompt, images, episode) for chunk in chunks]


def refuse_long(
    question_id: str, tokens: Mapping, sizes: Sequence[Size], config: Mapping, limits: ProcessorLimits
) -> None:
    """A sample over `train.cutoff_len` would lose its end without an error.

    Raises:
        EqaError: it is; names the question, the sum, the limit and the ways out.
    """
    limit, vision = config["train"]["cutoff_len"], config["vision"]
    if tokens["total"] <= limit:
        return
    fits = largest_max_pixels(
        sizes, limit - tokens["text"], vision["image_max_pixels"], vision["image_min_pixels"], limits
    )
    lower = (
        f"lower vision.image_max_pixels to {fits}" if fits else "lower frames.count (no vision.image_max_pixels fits)"
    )
    raise EqaError(
        f"question {question_id}: {tokens['image']} image + {tokens['text']} text = {tokens['total']} tokens > "
        f"train.cutoff_len={limit}; {lower} or raise train.cutoff_len to {-(-tokens['total'] // 64) * 64}"
    )


@dataclass
class Summary:
    """Token figures of one part, gathered row by row."""

    samples: int = 0
    questions: int = 0
    longest: int = -1
    longest_question_id: str = ""
    longest_prompt: int = 0
    longest_text: int = 0
    longest_image: int = 0
    total: int = 0
    answer_tokens: int = 0

    def add(self, row: Mapping, tokens: Mapping) -> None:
        """One row of the part and its `sample_tokens`; the first of equally long rows is the longest."""
        self.samples += 1
        self.questions += len(row["question_ids"])
        if tokens["total"] > self.longest:
            self.longest, self.longest_question_id = tokens["total"], row["question_ids"][0]
        self.longest_prompt = max(self.longest_prompt, tokens["prompt"])
        self.longest_text = max(self.longest_text, tokens["text"])
        self.longest_image = max(self.longest_image, tokens["image"])
        self.total += tokens["total"]
        self.answer_tokens += tokens["answer"]

    def facts(self) -> dict:
        """The part in token_budget.json."""
        return {**asdict(self), "mean": round(self.total / self.samples, 2)}


# ------------------------------------------------------------------------------------------------ files


def question_of(record: dict) -> object:
    """Hook of `read_json`: rows of the index become Questions, equal texts one text in memory."""
    if "question_id" not in record or "episode_history" not in record:
        return record
    text, answer, episode = (
        sys.intern(value) if type(value := record.get(key)) is str else value
        for key in ("question", "answer", "episode_history")
    )
    return Question(record["question_id"], text, answer, episode)


def read_questions(questions_file: Path, split_file: Path) -> dict[str, list[Question]]:
    """Questions of each part, sorted by episode and id.

    Raises:
        EqaError: a question of the split is not in the index, or a part is empty.
    """
    index = read_json(questions_file, "index of questions", question_of)
    listed = index.get("questions") if isinstance(index, dict) else None
    if not isinstance(listed, list) or not all(isinstance(row, Question) for row in listed):
        raise EqaError(
            f"{questions_file}: not an index of questions; make it again: snakemake --force {questions_file}"
        )
    rows = {row.question_id: row for row in listed}
    split = read_json(split_file, "split")
    parts = split.get("parts") if isinstance(split, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(parts.get(part), list) for part in PARTS):
        raise EqaError(f"{split_file}: not a split; make it again: snakemake --force {split_file}")
    chosen = {}
    for part in PARTS:
        missing = [i for i in parts[part] if i not in rows]
        if missing:
            raise EqaError(
                f"{split_file}: question {missing[0]} of {part} is not in {questions_file}; run split_questions again"
            )
        if not parts[part]:
            raise EqaError(f"{split_file}: {part} is empty; run split_questions again")
        chosen[part] = sorted((rows[i] for i in parts[part]), key=lambda row: (row.episode, row.question_id))
    return chosen


def listed_frames(record: dict) -> object:
    """Hook of `read_manifest`: of a file only that it is listed, of an episode only its pictures."""
    if "sha256" in record:
        return LISTED
    if "frames" in record and "indices" in record:
        return {"frames": record["frames"]}
    return record


def read_frames(manifest_file: Path, episodes: Sequence[str], count: int) -> dict[str, tuple[list[str], list[Size]]]:
    """Pictures of each episode and their sizes, read from the files' own heads, as LLaMA-Factory will.

    Args:
        manifest_file: results/frames/manifest.json.
        episodes: those that the split uses.
        count: config `frames.count`.
    Raises:
        EqaError: an episode or a picture is missing, unreadable, or not listed.
    """
    manifest = read_manifest(manifest_file, listed_frames)
    listed, files = manifest.get("episodes", {}), manifest["files"]
    result = {}
    known: dict[tuple[Size, ...], list[Size]] = {}  # most episodes have the sizes of another one
    for episode in episodes:
        if episode not in listed:
            raise EqaError(
                f"{manifest_file}: no frames of episode {episode!r}; run sample_frames: snakemake {manifest_file}"
            )
        names = listed[episode]["frames"]
        if len(names) != count:
            raise EqaError(
                f"{manifest_file}: episode {episode!r} has {len(names)} frames, frames.count={count}; "
                "make the frames again"
            )
        sizes = []
        for name in names:
            file = safe_join(manifest_file.parent, name)
            if name not in files:
                raise EqaError(
                    f"{manifest_file}: frame {name} of episode {episode!r} is not among its files; "
                    "make the manifest again"
                )
            sizes.append(picture_size(file, manifest_file))
        result[episode] = (names, known.setdefault(tuple(sizes), sizes))
    return result


def picture_size(file: Path, manifest_file: Path) -> Size:
    """(width, height) of a picture, from its head.

    Raises:
        EqaError: missing or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return picture.size
    except FileNotFoundError:
        raise EqaError(
            f"{file}: listed in {manifest_file} but missing; `dvc checkout` or sample_frames brings it back"
        ) from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise EqaError(f"{file}: not a readable picture; delete it and run sample_frames again") from None


def load_tokenizer(folder: Path) -> tuple[Callable[[list[str]], list[int]], list[str]]:
    """The base model's tokenizer as LLaMA-Factory loads it, and its special tokens.

    Returns:
        A function from texts to their numbers of tokens, and the strings that are never plain text.
    Raises:
        EqaError: no tokenizer, or it lacks a token that the chat template writes.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise EqaError(f"{folder / 'tokenizer.json'}: missing; make or fetch the base model again")
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"):
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
            raise EqaError(f"{folder}: the tokenizer does not know {token} as one token; use a Qwen3-VL model")

    def encode(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return encode, sorted(str(token) for token in tokenizer.added_tokens_decoder.values())


def prompt_file(path: Path) -> Path:
    """The prompt itself, or Open-EQA's beside the manifest of its prompts.

    Raises:
        EqaError: the manifest's file is missing or changed.
    """
    if path.name != "manifest.json":
        return path
    if is_disabled(check_manifest(path)):
        raise EqaError(f"{path}: Open-EQA's prompts are switched off; set predict.prompt to official")
    return path.parent / OFFICIAL_PROMPT


def check_texts(rows: Iterable[Question]) -> None:
    """Raises:
    EqaError: a question or answer is empty or cannot be written as UTF-8.
    """
    for row in rows:
        for key, text in (("question", row.question), ("answer", row.answer)):
            if not isinstance(text, str) or not text.strip():
                raise EqaError(f"question {row.question_id}: its {key} is empty; mend it in the question file")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise EqaError(
                    f"question {row.question_id}: its {key} holds half a surrogate pair; mend it in the question file"
                ) from None


@dataclass
class Builder:
    """Rows of a part, a few hundred episodes at a time, each row with its tokens.

    Attributes:
        pictures: of `read_frames`.
        special: strings of the tokenizer that are never plain text.
        neutralized: questions so far whose text or answer held one.
    """

    config: Mapping
    pictures: Mapping[str, tuple[list[str], list[Size]]]
    limits: ProcessorLimits
    template: str
    special: Sequence[str]
    count: TokenCount
    per_size: dict[Size, int] = field(default_factory=dict)
    neutralized: int = 0

    def picture_tokens(self, episode: str) -> list[int]:
        """Tokens of each picture of an episode, marks included."""
        vision = self.config["vision"]
        sizes = self.pictures[episode][1]
        for size in sizes:
            if size not in self.per_size:
                budget = (vision["image_max_pixels"], vision["image_min_pixels"], *self.limits)
                self.per_size[size] = image_tokens(*size, *budget)
        return [self.per_size[size] for size in sizes]

    def turns(self, questions: Iterable[Question]) -> Iterator[tuple[str, list[Turn]]]:
        """(episode, its turns), texts neutralized; questions of an episode follow one another."""
        for episode, rows in itertools.groupby(questions, key=lambda row: row.episode):
            turns = []
            for row in rows:
                turn = (
                    row.question_id,
                    sharegpt.neutralize(row.question, self.special),
                    sharegpt.neutralize(row.answer, self.special),
                )
                self.neutralized += turn[1:] != (row.question, row.answer)
                turns.append(turn)
            yield episode, turns

    def rows(self, questions: Iterable[Question], conversations: bool) -> Iterator[tuple[dict, dict]]:
        """(row of the sharegpt file, its `sample_tokens`).

        Args:
            questions: of a part, sorted by episode.
            conversations: one conversation an episode instead of one row a question.
        Raises:
            EqaError: a question that does not fit alone, whatever conversation it ends up in.
        """
        episodes = self.turns(questions)
        while batch := list(itertools.islice(episodes, EPISODES)):
            alone = {name: question_samples(t, self.template, self.pictures[name][0], name) for name, t in batch}
            texts = [text for rows in alone.values() for row in rows for text in sample_texts(row)]
            if conversations:
                later = [sharegpt.user_message(self.template, turn[1], 0) for _, turns in batch for turn in turns]
                texts += [sharegpt.rendered_user(text) for text in later]
            self.count.add(texts)
            for episode, turns in batch:
                pictures, sizes = self.picture_tokens(episode), self.pictures[episode][1]
                counted = [(row, sample_tokens(row, pictures, self.count)) for row in alone[episode]]
                for row, tokens in counted:
                    refuse_long(row["question_id"], tokens, sizes, self.config, self.limits)
                if conversations:
                    counted = [
                        (row, sample_tokens(row, pictures, self.count))
                        for row in self.conversations(episode, turns, pictures)
                    ]
                yield from counted

    def conversations(self, episode: str, turns: Sequence[Turn], pictures: Sequence[int]) -> list[dict]:
        """All questions of an episode as turns of few conversations, in the order that the seed gives."""
        train = self.config["train"]
        by_id = {turn[0]: turn for turn in turns}
        ordered = [by_id[i] for i in sharegpt.order_turns(by_id, episode, train["seed"])]
        images = self.pictures[episode][0]
        return episode_samples(ordered, self.template, images, episode, pictures, train["cutoff_len"], self.count)


def run(questions: Path, split: Path, frames: Path, base: Path, prompt: Path, config: dict, output: Path) -> dict:
    """Write dataset_info.json, train.json, val.json, test.json, token_budget.json.

    Rows are written as they are made: memory is that of the questions and of the frames' names, not of the rows.

    Raises:
        EqaError: a sample over the limit, a missing picture, a bad prompt, an unknown template.
    """
    train, vision = config["train"], config["vision"]
    if train["template"] not in sharegpt.TEMPLATES:
        raise EqaError(
            f"config: train.template={train['template']}: its tokens cannot be counted here; "
            f"use {sharegpt.TEMPLATES[0]}"
        )
    parts = read_questions(questions, split)
    check_texts(row for rows in parts.values() for row in rows)
    episodes = sorted({row.episode for rows in parts.values() for row in rows})
    pictures = read_frames(frames, episodes, config["frames"]["count"])
    read_manifest(base)
    limits = read_processor_limits(base.parent)
    encode, special = load_tokenizer(base.parent)
    template = sharegpt.read_prompt(prompt_file(prompt), special)
    builder = Builder(config, pictures, limits, template, special, TokenCount(encode))
    summary = {part: Summary() for part in PARTS}

    def counted(part: str) -> Iterator[dict]:
        conversations = part == "train" and config["data"]["conversation"] == "episode"
        with Progress(len(parts[part]), "questions", name=part) as progress:
            for row, tokens in builder.rows(parts[part], conversations):
                summary[part].add(row, tokens)
                progress.update(len(row["question_ids"]))
                yield row

    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as whole:
        for part in PARTS:
            path = whole.enter_context(atomic_path(output / f"{part}.json"))
            with path.open("w", encoding="utf-8") as file:
                write_json_list(file, counted(part))
        for name in FILES:  # all or none: an old file beside new ones would mix two splits
            remove(output / name)
    facts = {part: found.facts() for part, found in summary.items()}
    sizes = Counter(size for _, sizes in pictures.values() for size in sizes)
    samples, total = (sum(found[key] for found in facts.values()) for key in ("samples", "total"))
    budget = {
        "cutoff_len": train["cutoff_len"],
        "template": train["template"],
        "conversation": config["data"]["conversation"],
        "image_max_pixels": vision["image_max_pixels"],
        "image_min_pixels": vision["image_min_pixels"],
        "processor": limits._asdict(),
        "longest": max(found["longest"] for found in facts.values()),
        "mean": round(total / samples, 2),
        "image_tokens": max(found["longest_image"] for found in facts.values()),
        "text_tokens": max(found["longest_text"] for found in facts.values()),
        # what a server must hold: the longest prompt and the longest answer that it may write
        "longest_prompt": max(facts[part]["longest_prompt"] for part in ("val", "test")),
        "max_new_tokens": config["predict"]["max_new_tokens"],
        "neutralized_questions": builder.neutralized,
        "parts": facts,
        "sizes": {f"{w}x{h}": {"pictures": n, "tokens": builder.per_size[w, h]} for (w, h), n in sorted(sizes.items())},
    }
    write_json(output / "token_budget.json", budget)
    write_json(output / "dataset_info.json", sharegpt.dataset_info(PARTS))
    return {
        "samples": {part: found["samples"] for part, found in facts.items()},
        "longest": budget["longest"],
        "cutoff_len": train["cutoff_len"],
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build_sft", description="Write LLaMA-Factory data and count its tokens.")
    parser.add_argument("--questions", type=path_argument, required=True, help="results/index/questions.json")
    parser.add_argument("--split", type=path_argument, required=True, help="results/split/split.json")
    parser.add_argument("--frames", type=path_argument, required=True, help="results/frames/manifest.json")
    parser.add_argument("--base", type=path_argument, required=True, help="models/base/manifest.json")
    parser.add_argument(
        "--prompt",
        type=path_argument,
        required=True,
        help="text with {question} in it, or the manifest of Open-EQA's prompts",
    )
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: the rule's part of the config")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="results/sft")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    def door(a: argparse.Namespace) -> dict:
        return run(a.questions, a.split, a.frames, a.base, a.prompt, a.config, a.output_dir)

    return entry("build_sft", build_parser, door, argv)


if __name__ == "__main__":
    sys.exit(main())
