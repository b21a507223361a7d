"""What every engine gets and gives: batches of questions in, one text a question out, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# the tutorial's decoding (temperature, top_p); top_k is LLaMA-Factory's default, which it leaves alone
TUTORIAL = {"temperature": 0.2, "top_p": 1.0, "top_k": 50}


@dataclass(frozen=True)
class Question:
    """One question as the model sees it.

    Attributes:
        question_id: the key by which the answer is joined.
        episode: questions with the same episode show the same pictures in the same order.
        content: the user turn of the sharegpt file, one `<image>` a picture.
        images: the pictures; empty for the blind model.
    """

    question_id: str
    episode: str
    content: str
    images: tuple[Path, ...]


@dataclass(frozen=True)
class Setup:
    """Everything that an engine depends on.

    Attributes:
        weights: folder of the model: the base, or the merged one.
        adapter: folder of the LoRA adapter to put on it, or None.
        config: sections predict, vision, train (template, cutoff_len).
        work_dir: folder for this run's leftovers.
        quantized: load the base in 4 bits (NF4, double quantization) as training does.
        questions: the whole test part, of which the batches may be a part: what an episode's prompts share is taken from
            all of them, so that no answer depends on shards or on where a run was interrupted. () for those asked.
    """

    weights: Path
    adapter: Path | None
    config: Mapping
    work_dir: Path
    quantized: bool = False
    questions: tuple[Question, ...] = ()


class Engine(Protocol):
    """One way to generate."""

    def answer(self, batches: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        """Yield the answers of each batch, in the order of its questions, as soon as the batch is done."""
        ...

    def facts(self) -> dict:
        """What was measured, for the log only: it depends on the machine."""
        ...


def open_engine(name: str, setup: Setup) -> Engine:
    """The engine of config `predict.engine`; loads its libraries, not yet a model.

    Raises:
        ValueError: no such engine (the schema refuses it before).
    """
    if name == "transformers":
        from scripts.lib.engines.transformers_engine import TransformersEngine

        return TransformersEngine(setup)
    if name == "llamafactory":
        from scripts.lib.engines.llamafactory_engine import LlamaFactoryEngine

        return LlamaFactoryEngine(setup)
    if name == "lmdeploy":
        from scripts.lib.engines.lmdeploy_engine import LmdeployEngine

        return LmdeployEngine(setup)
    if name == "openai":
        from scripts.lib.engines.openai_engine import OpenaiEngine

        return OpenaiEngine(setup)
    raise ValueError(f"no engine {name!r}")
