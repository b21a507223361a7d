"""LLaMA-Factory's own prediction, the tutorial's way, with dtype, batch and picture positions put right.

Its output carries no ids and it drops rows that it finds invalid with a warning only. So every question travels with
its number as the reference answer, which comes back beside the prediction: answers are joined by it, and a dropped row
is an error that names the question.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.lib.devices import locks_held
from scripts.lib.engines import llamafactory_predict
from scripts.lib.engines.base import TUTORIAL, Question, Setup
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import listed
from scripts.lib.files import read_jsonl, remove, write_json

ROOT = Path(__file__).resolve().parents[3]  # `python -m` finds the module from here
DATASET = "openeqa_predict"
LABEL_ROOM = 64  # tokens that cutoff_len must leave for the reference, a number
TAIL = 300  # characters of the log's end in a message


def dataset(questions: Sequence[Question], folder: Path) -> None:
    """Write LLaMA-Factory's dataset files: the user turns, with the row's number as reference."""
    rows = []
    for number, question in enumerate(questions):
        messages = [{"role": "user", "content": question.content}, {"role": "assistant", "content": label(number)}]
        pictures = {"images": [str(path.resolve()) for path in question.images]} if question.images else {}
        rows.append({"messages": messages, **pictures})
    columns = {"messages": "messages"} | ({"images": "images"} if questions[0].images else {})
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    write_json(folder / "questions.json", rows)
    info = {"file_name": "questions.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    write_json(folder / "dataset_info.json", {DATASET: info})


def label(number: int) -> str:
    """Reference of a row; survives the tokenizer."""
    return f"row {number}"


def arguments(setup: Setup, folder: Path, cuda: bool) -> dict:
    """LLaMA-Factory's YAML. Keys of the usual recipe that are left out: trust_remote_code (Qwen3-VL is native),
    max_samples (all), preprocessing_num_workers on a CPU (one suffices)."""
    predict, vision, train = (setup.config[name] for name in ("predict", "vision", "train"))
    chosen = {"do_sample": False}
    if predict["decoding"] == "tutorial":
        chosen = {"do_sample": True, **TUTORIAL}
    return {
        "model_name_or_path": str(setup.weights.resolve()),
        **({"adapter_name_or_path": str(setup.adapter.resolve())} if setup.adapter else {}),
        "stage": "sft",
        "finetuning_type": "lora",
        "do_predict": True,
        "predict_with_generate": True,
        "eval_dataset": DATASET,
        "dataset_dir": str(folder),
        "output_dir": str(folder / "output"),
        "template": train["template"],
        "cutoff_len": train["cutoff_len"] + LABEL_ROOM,
        "image_max_pixels": vision["image_max_pixels"],
        "image_min_pixels": vision["image_min_pixels"],
        # the tutorial sets none: bf16 is then emulated on a T4, at 40 s a question
        "infer_dtype": predict["dtype"],
        "per_device_eval_batch_size": predict["batch_size"],
        "max_new_tokens": predict["max_new_tokens"],
        "flash_attn": "auto",
        "preprocessing_num_workers": min(8, os.cpu_count() or 1) if cuda else 1,
        "dataloader_num_workers": min(8, os.cpu_count() or 1) if cuda else 0,
        "overwrite_cache": True,
        "seed": predict["seed"],
        "report_to": "none",
        **({} if cuda else {"use_cpu": True}),
        **chosen,
    }


def joined(rows: Sequence[dict], questions: Sequence[Question], path: Path) -> list[str]:
    """Predictions in the order of the questions.

    Args:
        rows: lines of generated_predictions.jsonl.
    Raises:
        EqaError: a question is missing (LLaMA-Factory dropped its row), doubled, or a line belongs to none.
    """
    places = {label(number): number for number in range(len(questions))}
    found: dict[int, str] = {}
    for line, row in enumerate(rows, 1):
        number = places.get(str(row.get("label", "")).strip())
        if number is None or number in found or not isinstance(row.get("predict"), str):
            raise EqaError(f"{path}: line {line} belongs to no question or to one that has an answer; predict again")
        found[number] = row["predict"]
    missing = [question.question_id for number, question in enumerate(questions) if number not in found]
    if missing:
        raise EqaError(
            f"{path}: LLaMA-Factory dropped {len(missing)} of {len(questions)} questions without an error "
            f"({listed(missing)}); see its log for 'Dropped invalid example', then run build_sft again"
        )
    return [found[number] for number in range(len(questions))]


class LlamaFactoryEngine:
    """One LLaMA-Factory process for all questions: it writes at its end, so an interrupted run starts over."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.device = "cpu"

    def facts(self) -> dict:
        """Device."""
        return {"device": self.device}

    def answer(self, batches: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        """See `Engine.answer`."""
        for batch in batches:
            yield self.predict(batch)

    def predict(self, questions: Sequence[Question]) -> list[str]:
        """Answers of all questions by one process.

        Raises:
            EqaError: it fails; names its log and repeats the log's end.
        """
        import torch
        import yaml

        cuda = torch.cuda.is_available()
        self.device = "cuda" if cuda else "cpu"
        folder = (self.setup.work_dir / "llamafactory").resolve()
        remove(folder)
        folder.mkdir(parents=True)
        dataset(questions, folder)
        recipe = folder / "predict.yaml"
        recipe.write_text(yaml.safe_dump(arguments(self.setup, folder, cuda), sort_keys=True), encoding="utf-8")
        # beside the folder of unfinished answers: it outlives a failure and is named in the message
        journal = folder.parent.with_suffix(".llamafactory.log")
        environment = {name: value for name, value in os.environ.items() if name not in ("USE_V1", "FORCE_TORCHRUN")}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if cuda:  # one device: several would start torchrun, or split batches
            environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        command = [sys.executable, "-m", llamafactory_predict.__name__, str(recipe)]
        with journal.open("wb") as out:
            done = subprocess.run(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                check=False,
                pass_fds=locks_held(),
            )
        if done.returncode:
            tail = " ".join(journal.read_text(encoding="utf-8", errors="replace")[-TAIL:].split())
            raise EqaError(f"{journal}: LLaMA-Factory ended with status {done.returncode}: ...{tail}")
        path = folder / "output/generated_predictions.jsonl"
        answers = joined(read_jsonl(path, "output of LLaMA-Factory"), questions, path)
        remove(journal)
        return answers
