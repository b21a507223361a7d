"""Enter results of LLaMA-Factory's own commands, made before or elsewhere, as artifacts, marked as adopted.   By hand:
python -m scripts.adopt --train saves/Qwen3-VL-2B-Instruct/qlora/train_openeqa \
    --predict saves/Qwen3-VL-2B-Instruct/qlora/eval_openeqa --questions results/index/questions.json --name tutorial

Copies the adapter, its arguments and its predictions to adopted/NAME/ behind a manifest; `dvc add adopted/NAME` stores
them. Nothing under results/ is touched: what Snakemake made and what was brought in stay apart.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.config import load_yaml
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, read_json, read_jsonl, sha256_file, write_jsonl, write_manifest, write_text
from scripts.lib.safetensors_heads import read_head

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
KEPT_FILES = (*ADAPTER_FILES, "training_args.yaml", "trainer_state.json", "train_results.json", "README.md")
MOST_SHOWN = 60  # characters of a foreign value in a message or a note
LORA_A = re.compile(r"\.lora_A\.(?:\w+\.)?weight$")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor name -> shape from a safetensors header, after checking that the file is whole.

    Raises:
        EqaError: no safetensors file, or one cut short.
    """
    try:
        return {name: list(shape) for name, shape in read_head(path).items()}
    except ValueError as error:
        raise EqaError(f"{path}: no whole safetensors file ({error}); copy it again") from None


def shown(value: object) -> str:
    """A foreign value for a message: of some bytes of YAML aliases Python's own text has gigabytes."""
    if isinstance(value, str):
        return repr(value[:MOST_SHOWN]) + ("..." if len(value) > MOST_SHOWN else "")
    if value is None or isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MOST_SHOWN else f"a number of {value.bit_length()} bits"
    return {list: "a list", dict: "a mapping"}.get(type(value), f"a {type(value).__name__}")


def check_adapter(folder: Path, arguments: Mapping) -> dict:
    """Compare adapter_config.json, the weights and the training arguments with each other.

    Returns:
        {"rank", "tensors", "notes"}: notes say what the arguments did not do as they read.
    Raises:
        EqaError: a file is missing or broken, or they contradict each other; names both values.
    """
    config_path, weights_path = (folder / name for name in ADAPTER_FILES)
    config = read_json(config_path, "adapter configuration")
    rank = config.get("r") if isinstance(config, dict) else None
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise EqaError(
            f"{config_path}: no LoRA configuration (no 'r'); name the folder that LLaMA-Factory trained into"
        )
    if not weights_path.is_file():
        raise EqaError(f"{weights_path}: missing; name the folder that LLaMA-Factory trained into")
    shapes = tensor_shapes(weights_path)
    ranks = {shape[0] if shape else 0 for name, shape in shapes.items() if LORA_A.search(name)}
    if ranks != {rank}:
        found = ", ".join(map(str, sorted(ranks)[:5])) or "of no tensor"
        raise EqaError(
            f"{weights_path}: LoRA rank {found}, {config_path.name} says r={shown(rank)}; these are two runs"
        )
    if "lora_rank" in arguments and arguments["lora_rank"] != rank:
        raise EqaError(
            f"{folder}: training_args.yaml: lora_rank={shown(arguments['lora_rank'])}, adapter: r={shown(rank)}; "
            "these are two runs"
        )
    notes = []
    if arguments.get("quantization_bit") and arguments.get("quantization_method") not in (None, "bnb"):
        notes.append(
            f"quantization_method={shown(arguments.get('quantization_method'))} matches no branch of LLaMA-Factory 0.9.5: "
            "trained without quantization"
        )
    if arguments.get("val_size"):
        notes.append(
            f"val_size={shown(arguments['val_size'])} split by question: validation shares episodes with training"
        )
    return {"rank": rank, "tensors": len(shapes), "notes": notes}


def read_questions(path: Path) -> list[dict]:
    """The questions of results/index/questions.json, or of a raw question file.

    Raises:
        EqaError: neither of the two, or a question without id, question or answer; names file, position and key.
    """
    content = read_json(path, "question index")
    rows = content.get("questions") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise EqaError(f"{path}: no list of questions; name results/index/questions.json")
    for number, row in enumerate(rows, 1):
        for key in ("question_id", "question", "answer"):
            if not isinstance(row, dict) or not is_text(row.get(key)):
                raise EqaError(f"{path}: question {number} has no text {key}; name results/index/questions.json")
    return rows


def is_text(value: object) -> bool:
    """Whether a value is a text that UTF-8 can hold."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a character
        return False


def join_predictions(rows: Sequence[Mapping], questions: Sequence[Mapping], path: Path) -> tuple[list[dict], int]:
    """Give LLaMA-Factory's rows (prompt, predict, label; no id) their question_id by question and answer.

    Returns:
        Rows {"question_id", "prediction"} sorted by id, and how many rows fit no question or more than one.
    Raises:
        EqaError: a row lacks one of its keys; names file and line.
    """
    by_answer: dict[str, list[Mapping]] = {}
    for question in questions:
        by_answer.setdefault(question["answer"].strip(), []).append(question)
    fitting: dict[str, list[str]] = {}
    lost = 0
    for number, row in enumerate(rows, 1):
        if not all(is_text(row.get(key)) for key in ("prompt", "predict", "label")):
            raise EqaError(f"{path}: line {number} is no row with prompt, predict and label; make the file again")
        asked = [q for q in by_answer.get(row["label"].strip(), []) if q["question"].strip() in row["prompt"]]
        longest = max((len(q["question"].strip()) for q in asked), default=0)
        asked = [q for q in asked if len(q["question"].strip()) == longest]
        if len(asked) == 1:
            fitting.setdefault(asked[0]["question_id"], []).append(row["predict"].strip())
        else:
            lost += 1
    # of two rows for one question, one belongs to another room's question of the same words, which this index lacks
    joined = {key: found[0] for key, found in fitting.items() if len(found) == 1}
    lost += sum(len(found) for found in fitting.values() if len(found) > 1)
    return [{"question_id": key, "prediction": joined[key]} for key in sorted(joined)], lost


def run(train: Path, predict: Path | None, questions: Path | None, name: str, root: Path = Path("adopted")) -> dict:
    """Check and copy.

    Raises:
        EqaError: see `check_adapter`, `join_predictions`; also a bad name, or one that exists with other content.
    """
    import shutil

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise EqaError(f"--name {name!r}: only a-z, 0-9 and - are possible; DVC uses it as a file name")
    if not train.is_dir():
        raise EqaError(f"{train}: no such folder; name the output_dir of the training")
    arguments_path = train / "training_args.yaml"
    arguments = load_yaml(arguments_path) if arguments_path.is_file() else {}
    if not isinstance(arguments, dict):
        raise EqaError(f"{arguments_path}: no list of arguments; name the YAML file that llamafactory-cli was given")
    facts = check_adapter(train, arguments)
    joined, lost = [], 0
    generated = predict / "generated_predictions.jsonl" if predict else None
    if generated:
        rows = read_jsonl(generated, "predictions file")
        known = read_questions(questions) if questions else []
        joined, lost = join_predictions(rows, known, generated)
    sources = {file: train / file for file in KEPT_FILES if (train / file).is_file()}
    if generated:
        sources["generated_predictions.jsonl"] = generated
    target = root / name
    if (target / "manifest.json").is_file():
        old = read_json(target / "manifest.json", "manifest")
        listed = old.get("files") if isinstance(old, dict) else None
        if not isinstance(listed, dict) or not all(isinstance(record, dict) for record in listed.values()):
            raise EqaError(f"{target}/manifest.json: no manifest; choose another --name or remove {target}")
        if any(listed.get(file, {}).get("sha256") != sha256_file(path) for file, path in sources.items()):
            raise EqaError(f"{target}: holds other results under this name; choose another --name or remove it")
    with atomic_folder(target) as part:
        for file, path in sorted(sources.items()):
            shutil.copyfile(path, part / file)  # the bytes, also of a link; never a link into the user's folder
        if joined:
            write_jsonl(part / "predictions.jsonl", joined)
        write_text(part / "NOTES.txt", "".join(f"{note}\n" for note in facts["notes"]) or "Nothing to note.\n")
        write_manifest(
            part,
            {
                "origin": "adopted",
                "checked": {"rank": facts["rank"], "tensors": facts["tensors"], "notes": facts["notes"]},
                "predictions": {"joined": len(joined), "without_question": lost},
            },
        )
    return {"adopted": str(target), "files": len(sources), "joined": len(joined), "lost": lost, "notes": facts["notes"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adopt", description="Enter LLaMA-Factory's own results as artifacts.")
    parser.add_argument("--train", type=path_argument, required=True, help="output_dir of the training")
    parser.add_argument("--predict", type=path_argument, help="output_dir of the prediction")
    parser.add_argument(
        "--questions",
        type=path_argument,
        help="results/index/questions.json or a raw question file, to give rows their ids",
    )
    parser.add_argument("--name", required=True, help="folder under adopted/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("adopt", build_parser, lambda args: run(args.train, args.predict, args.questions, args.name), argv)


if __name__ == "__main__":
    sys.exit(main())
