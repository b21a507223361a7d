"""transformers with a shared image prefix: the default engine, on a GPU or on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.engines.base import TUTORIAL, Question, Setup
from scripts.lib.engines.pictures import open_picture
from scripts.lib.errors import EqaError
from scripts.lib.prefix_decoding import Prefix, Prompt, Work, decode, prefill, sampler, shared_length
from scripts.lib.sharegpt import rendered_user

log = logging.getLogger(__name__)
# preprocessed episodes waiting for the model; 8 frames of 512x288 are 14 MiB
WAITING_EPISODES = 8
PICTURE_THREADS = 4


@dataclass
class Episode:
    """An episode's pictures after the processor, and the tokens that its prompts share."""

    prefix_ids: list[int]
    suffixes: dict[str, list[int]]
    token_types: list[int] | None = None
    pixel_values: object = None
    image_grid_thw: object = None
    pictures: int = 0


class TransformersEngine:
    """Prefills each episode once and decodes whole batches of questions, of several episodes where they fit."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.predict = setup.config["predict"]
        self.work = Work()
        self.device = "cpu"

    def load(self) -> None:
        """Load tokenizer, processor and model.

        Raises:
            EqaError: the tokenizer or the template is not one that this engine renders.
        """
        import torch
        from transformers import AutoProcessor

        torch.manual_seed(self.predict["seed"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(self.setup.weights, trust_remote_code=False)
        self.tokenizer = self.processor.tokenizer
        self.stop_ids = stop_tokens(self.tokenizer)
        self.image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.model = load_model(
            self.setup.weights, self.setup.adapter, self.predict["dtype"], self.device, self.setup.quantized
        )

    def facts(self) -> dict:
        """Tokens computed and device."""
        return {
            "device": self.device,
            "prefill_tokens": self.work.prefilled(),
            "whole_prompt_tokens": self.work.whole,
            "pictures_encoded": self.work.pictures,
        }

    def answer(self, batches: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        """See `Engine.answer`."""
        self.load()
        groups = list(dict.fromkeys(_group(question) for batch in batches for question in batch))
        members: dict[str, list[Question]] = {group: [] for group in groups}
        for question in self.setup.questions or [question for batch in batches for question in batch]:
            if _group(question) in members:
                members[_group(question)].append(question)
        kept: dict[str, tuple[Episode, Prefix]] = {}
        with ThreadPoolExecutor(max_workers=PICTURE_THREADS) as pool:
            waiting: dict[str, Future] = {}
            queue = iter(groups)
            _fill(waiting, queue, lambda group: pool.submit(self.prepare, members[group]))
            for batch in batches:
                needed = list(dict.fromkeys(_group(question) for question in batch))
                kept = {group: kept[group] for group in needed if group in kept}
                for group in needed:
                    if group not in kept:
                        episode = waiting.pop(group).result()
                        _fill(waiting, queue, lambda group: pool.submit(self.prepare, members[group]))
                        kept[group] = (episode, self.prefill(episode))
                yield self.decode(batch, needed, kept)

    def prepare(self, questions: Sequence[Question]) -> Episode:
        """Tokens of an episode's prompts and its pictures through the processor. Runs beside the model."""
        first = questions[0]
        encode = self.tokenizer.encode
        prompts = {q.question_id: encode(rendered_user(q.content), add_special_tokens=False) for q in questions}
        pictures: dict = {}
        grids: list[list[int]] = []
        if first.images:
            vision = self.setup.config["vision"]
            images = [open_picture(p, vision["image_max_pixels"], vision["image_min_pixels"]) for p in first.images]
            pictures = self.processor.image_processor(images=images, return_tensors="pt")
            grids = pictures["image_grid_thw"].tolist()
        merge = self.processor.image_processor.merge_size**2
        counts = [t * h * w // merge for t, h, w in grids]
        expanded = {name: self.expand(ids, counts, name) for name, ids in prompts.items()}
        sample = next(iter(expanded.values()))
        end = len(sample) - sample[::-1].index(self.image_id) if counts else 0
        try:
            length = shared_length(list(expanded.values()), end)
        except ValueError as error:
            raise EqaError(f"episode {first.episode}: {error}; run again the rule build_sft") from None
        prefix = sample[:length]
        return Episode(
            prefix,
            {name: ids[length:] for name, ids in expanded.items()},
            [int(token == self.image_id) for token in prefix] if counts else None,
            pictures.get("pixel_values"),
            pictures.get("image_grid_thw"),
            len(counts),
        )

    def expand(self, ids: Sequence[int], counts: Sequence[int], name: str) -> list[int]:
        """Repeat each picture's placeholder as often as the picture has tokens.

        Raises:
            EqaError: placeholders and pictures differ in number, or the prompt is over train.cutoff_len.
        """
        if ids.count(self.image_id) != len(counts):
            raise EqaError(
                f"question_id {name}: {ids.count(self.image_id)} picture marks for {len(counts)} pictures; "
                "run again the rule build_sft"
            )
        left = iter(counts)
        expanded = [t for token in ids for t in ([token] * next(left) if token == self.image_id else [token])]
        limit = self.setup.config["train"]["cutoff_len"]
        if len(expanded) >= limit:
            raise EqaError(
                f"question_id {name}: a prompt of {len(expanded)} tokens reaches train.cutoff_len={limit}; "
                "raise train.cutoff_len or lower vision.image_max_pixels"
            )
        return expanded

    def prefill(self, episode: Episode) -> Prefix:
        """Run what the episode's prompts share through the model."""
        pixels = episode.pixel_values
        self.work.prefix += len(episode.prefix_ids)
        self.work.pictures += episode.pictures
        return prefill(self.model, episode.prefix_ids, episode.token_types, pixels, episode.image_grid_thw)

    def decode(
        self, batch: Sequence[Question], needed: Sequence[str], kept: dict[str, tuple[Episode, Prefix]]
    ) -> list[str]:
        """Answers of one batch."""
        places = {group: place for place, group in enumerate(needed)}
        prompts = []
        for question in batch:
            episode, prefix = kept[_group(question)]
            suffix = episode.suffixes[question.question_id]
            prompts.append(Prompt(places[_group(question)], suffix))
            self.work.suffix += len(suffix)
            self.work.whole += prefix.length + len(suffix)
        choose = None
        if self.predict["decoding"] == "tutorial":
            choose = sampler([question.question_id for question in batch], self.predict["seed"], **TUTORIAL)
        found = decode(
            self.model,
            [kept[group][1] for group in needed],
            prompts,
            self.predict["max_new_tokens"],
            self.stop_ids,
            self.tokenizer.pad_token_id,
            choose,
        )
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]


def _group(question: Question) -> str:
    # without pictures all prompts share one beginning
    return question.episode if question.images else ""


def _fill(waiting: dict, queue: Iterator[str], submit: object) -> None:
    while len(waiting) < WAITING_EPISODES:
        group = next(queue, None)
        if group is None:
            return
        waiting[group] = submit(group)


def stop_tokens(tokenizer: object) -> list[int]:
    """Ids that end an answer in LLaMA-Factory's prediction: <|im_end|> and every extra special token.

    Source: LLaMA-Factory 0.9.5 train/sft/workflow.py; its template qwen3_vl_nothink makes <|im_end|> the EOS token.
    """
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if end is None or end == tokenizer.unk_token_id:
        raise EqaError("the base model's tokenizer has no <|im_end|>; a Qwen3-VL model is wanted (model.name)")
    extra = tokenizer.convert_tokens_to_ids([str(token) for token in tokenizer.extra_special_tokens])
    return list(dict.fromkeys([end, *(token for token in extra if token not in (None, -1))]))


def load_model(weights: Path, adapter: Path | None, dtype: str, device: str, quantized: bool = False) -> object:
    """The base model, with its adapter unmerged if there is one, ready for inference.

    Args:
        weights: Hugging Face folder.
        adapter: PEFT folder or None.
        dtype: float32, bfloat16 or float16.
        device: cpu or cuda.
        quantized: NF4 with double quantization, as training loads it.
    Raises:
        EqaError: the folder holds another architecture.
    """
    import torch
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    kind = AutoConfig.from_pretrained(weights, trust_remote_code=False).model_type
    if kind != "qwen3_vl":
        raise EqaError(f"{weights}: model_type {kind!r}; this pipeline predicts with qwen3_vl models (model.name)")
    options: dict = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa", "trust_remote_code": False}
    if quantized:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        options["device_map"] = {"": device}
    model = Qwen3VLForConditionalGeneration.from_pretrained(weights, **options)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return (model if quantized else model.to(device)).eval()
