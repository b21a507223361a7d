"""Answer every test question with one model, or those of one shard; an interrupted run goes on where it stopped.

By hand, in envs/train for the engines transformers and llamafactory:
    uv run --frozen --project envs/train python -m scripts.predict --model tuned --test results/sft/test.json \
        --base models/base/manifest.json --adapter results/adapter/manifest.json --config '{...}' \
        --work-dir work/predict --output results/predictions/tuned.jsonl --meta results/predictions/tuned.meta.json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.lib.base_model import check_adapter_base
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import canonical_json
from scripts.lib.engines.base import TUTORIAL, Question, Setup, open_engine
from scripts.lib.engines.openai_engine import served_model
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import check_ids, listed
from scripts.lib.files import check_manifest, read_json, remove, safe_join, sha256_file, write_json, write_jsonl
from scripts.lib.gpu_memory import ran_out
from scripts.lib.imports import code_files
from scripts.lib.journal import append_journal, read_journal
from scripts.lib.progress import Progress
from scripts.lib.sharegpt import IMAGE
from scripts.lib.threads import one_thread

log = logging.getLogger(__name__)
MODELS = ("base", "tuned", "blind", "base4bit")
MERGED_ONLY = ("lmdeploy", "openai")  # engines that take no adapter
SERVED = ("openai",)  # weights are the server's affair
ROOT = Path(__file__).resolve().parents[1]


def read_test(path: Path, frames_dir: Path, blind: bool) -> list[Question]:
    """The questions of results/sft/test.json, sorted by episode, then by id.

    Args:
        path: LLaMA-Factory's sharegpt file, one question a row.
        frames_dir: folder that its image paths are relative to.
        blind: drop pictures and their marks; the prompt stays.
    Raises:
        EqaError: not such a file; no row; a doubled or missing id; marks and pictures differ in number.
    """
    rows = read_json(path, "test file")
    if not isinstance(rows, list) or not rows:
        raise EqaError(f"{path}: no list of test questions; run again the rule build_sft")
    questions = [_question(row, f"{path}: row {number}", frames_dir, blind) for number, row in enumerate(rows)]
    ids = [question.question_id for question in questions]
    check_ids(ids, set(ids), path)
    return sorted(questions, key=lambda question: (question.episode, question.question_id))


def _question(row: object, where: str, frames_dir: Path, blind: bool) -> Question:
    try:
        name, episode, images = row["question_id"], row["episode_history"], row["images"]
        content = row["messages"][0]["content"]
        fits = all(isinstance(text, str) for text in (name, episode, content, *images))
    except (KeyError, IndexError, TypeError):
        fits = False
    if not fits or not name:
        raise EqaError(f"{where} lacks question_id, episode_history, images or messages; run again the rule build_sft")
    if content.count(IMAGE) != len(images):
        raise EqaError(
            f"{where} ({name}) has {content.count(IMAGE)} {IMAGE} for {len(images)} pictures; rerun build_sft"
        )
    if blind:
        return Question(name, episode, content.replace(IMAGE, ""), ())
    return Question(name, episode, content, tuple(safe_join(frames_dir, image) for image in images))


def plan(questions: Sequence[Question], batch_size: int) -> list[list[Question]]:
    """Batches of at most `batch_size` questions, in order. A function of the questions alone: a resumed run makes the
    same batches, so that answers do not depend on where it was interrupted (in bfloat16 a batch's shape matters)."""
    return [list(questions[start : start + batch_size]) for start in range(0, len(questions), batch_size)]


def of_shard(questions: Sequence[Question], batch_size: int, shard: int, shards: int) -> list[Question]:
    """The questions of one shard: a run of whole batches of the one plan, so that every question decodes in the same
    batch, and has the same answer to the last bit, however many shards there are. May be empty.

    Args:
        batch_size: config `predict.batch_size`.
        shard: 0 to `shards` - 1.
        shards: config `predict.shards`.
    Raises:
        EqaError: no such shard.
    """
    if not 0 <= shard < shards:
        raise EqaError(f"--shard {shard:04d}: predict.shards={shards} has 0000 to {shards - 1:04d}; name one of these")
    batches = plan(questions, batch_size)
    mine = batches[len(batches) * shard // shards : len(batches) * (shard + 1) // shards]
    return [question for batch in mine for question in batch]


def read_partial(path: Path) -> dict[str, str]:
    """{question_id: prediction} of an interrupted run."""
    rows = read_journal(path)
    return {
        r["question_id"]: r["prediction"] for r in rows if isinstance(r.get("prediction"), str) and "question_id" in r
    }


def clean(text: str) -> str:
    """A model's text as it is stored: no half characters, no surrounding space."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def choose_weights(model: str, engine: str, adapter: str | None, merged: str | None) -> str:
    """What stands in meta.json's "weights" and what is loaded: base, base+adapter or merged.

    Raises:
        EqaError: the tuned model lacks what the engine takes.
    """
    if model != "tuned":
        return "base"
    if engine in MERGED_ONLY:
        if not merged:
            raise EqaError(f"predict.engine={engine} takes no adapter; pass --merged results/merged/manifest.json")
        return "merged"
    if not adapter:
        raise EqaError("the tuned model needs --adapter results/adapter/manifest.json")
    return "base+adapter"


def device_kind() -> str:
    """ "cuda" or "cpu": half precision differs between them, so their partial results are kept apart."""
    try:
        import torch
    except ImportError:
        return "none"
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(args: argparse.Namespace) -> dict:
    """Read, generate what is missing, write; returns facts for stdout."""
    config, model = args.config, args.model
    predict = config["predict"]
    engine_name = predict["engine"]
    if engine_name in ("transformers", "llamafactory"):
        one_thread()
    if model == "base4bit" and engine_name != "transformers":
        raise EqaError(
            f"model base4bit needs predict.engine=transformers, not {engine_name}; set it in config/config.yaml"
        )
    whole = read_test(args.test, args.frames_dir, blind=model == "blind")
    questions = whole
    if args.shard is not None:
        questions = of_shard(whole, predict["batch_size"], args.shard, predict["shards"])
    weights = choose_weights(model, engine_name, args.adapter, args.merged)
    manifest = Path(args.merged) if weights == "merged" else args.base
    if engine_name not in SERVED:
        # contents too: weights of the right size and other bytes load, and answer something else
        check_manifest(manifest)
        if weights == "base+adapter":
            adapter = Path(args.adapter)
            check_adapter_base(adapter, check_manifest(adapter), args.base, needed=False)
    meta = {
        "model": model,
        "engine": engine_name,
        "dtype": "nf4" if model == "base4bit" else ("server" if engine_name in SERVED else predict["dtype"]),
        "compute_dtype": "server" if engine_name in SERVED else predict["dtype"],
        "weights": weights,
        "decoding": predict["decoding"],
        "sampling": {**TUTORIAL, "seed": predict["seed"]} if predict["decoding"] == "tutorial" else None,
        "max_new_tokens": predict["max_new_tokens"],
        "prompt": predict["prompt"],
        "images": model != "blind",
        "count": len(questions),
    }
    identity = {
        "config": config,
        "meta": meta,
        "device": device_kind(),
        # answers of other code are not continued
        "code": [sha256_file(ROOT / name) for name in code_files("scripts.predict", ROOT)],
        # nor those of other libraries
        "locks": [sha256_file(path) for path in sorted(ROOT.glob("envs/*/uv.lock"))],
        "test": sha256_file(args.test),
        "shard": args.shard,
        "frames": sha256_file(args.frames) if args.frames else "",
        "weights": sha256_file(manifest) if engine_name not in SERVED or manifest.is_file() else "",
        "adapter": sha256_file(Path(args.adapter)) if weights == "base+adapter" else "",
    }
    work = args.work_dir / hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:24]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        weights=manifest.parent,
        adapter=Path(args.adapter).parent if weights == "base+adapter" else None,
        config=config,
        work_dir=work,
        quantized=model == "base4bit",
        questions=tuple(whole),
    )
    with _lock(work.with_suffix(".lock")):
        work.mkdir(exist_ok=True)
        answers, facts = generate(questions, setup, work / "answers.jsonl")
        check_ids(answers, [question.question_id for question in questions], work / "answers.jsonl")
        write_jsonl(args.output, ({"question_id": name, "prediction": answers[name]} for name in sorted(answers)))
        write_json(args.meta, meta)
        remove(work)
    return {"model": model, "count": len(answers), **facts}


def generate(questions: Sequence[Question], setup: Setup, partial: Path) -> tuple[dict[str, str], dict]:
    """Answers of all questions: those of an interrupted run and the rest.

    Returns:
        {question_id: answer} and facts for the log.
    Raises:
        EqaError: the engine gives fewer or more answers than it was asked.
    """
    predict = setup.config["predict"]
    # LLaMA-Factory is one process that writes at its end
    size = (len(questions) or 1) if predict["engine"] == "llamafactory" else predict["batch_size"]
    batches = plan(questions, size)
    whole, waiting = _read_waiting(partial, batches)
    if waiting and predict["engine"] in SERVED and _served_by_another(predict, partial.with_name("server_model.json")):
        remove(partial)
        whole, waiting = _read_waiting(partial, batches)
    again = {question.question_id for batch in waiting for question in batch}
    answers = {name: text for name, text in whole.items() if name not in again}
    if answers:
        log.info("%d of %d answers are there from an interrupted run", len(answers), len(questions))
    facts: dict = {"resumed": len(answers)}
    if waiting:
        engine = open_engine(predict["engine"], setup)
        with Progress(len(questions), "answers", done=len(answers)) as progress, _memory_told(predict["batch_size"]):
            for batch, texts in zip(waiting, engine.answer(waiting), strict=True):
                if len(texts) != len(batch):
                    raise EqaError(
                        f"predict.engine={predict['engine']} gave {len(texts)} answers to {len(batch)} questions "
                        f"({listed([q.question_id for q in batch])}); run again"
                    )
                found = {q.question_id: clean(text) for q, text in zip(batch, texts, strict=True)}
                append_journal(partial, ({"question_id": name, "prediction": text} for name, text in found.items()))
                answers |= found
                progress.update(len(answers) - progress.done)
        facts |= engine.facts()
    return answers, facts


def _read_waiting(partial: Path, batches: Sequence[Sequence[Question]]) -> tuple[dict[str, str], list]:
    """Answers of an interrupted run, and the batches that are not whole among them."""
    whole = read_partial(partial)
    return whole, [batch for batch in batches if any(question.question_id not in whole for question in batch)]


def _served_by_another(predict: Mapping, note: Path) -> bool:
    """Whether the server has another model than when `note` was written; writes it."""
    name = served_model(predict)
    before = read_json(note, "name of the served model") if note.exists() else name
    if before != name:
        log.info("predict.url serves another model than the interrupted run asked; its answers are not continued")
    write_json(note, name)
    return before != name


@contextlib.contextmanager
def _memory_told(batch_size: int) -> Iterator[None]:
    """A GPU with too little memory as one line."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if not ran_out(error):
            raise
        raise EqaError(
            f"GPU memory: this card holds the weights and predict.batch_size={batch_size} not at once ({str(error)[:120]}); "
            "lower predict.batch_size, or take a card with more"
        ) from None


def _lock(path: Path) -> object:
    """Two runs of the same prediction may not write one file: the second waits for the first."""
    from filelock import FileLock

    return FileLock(path)


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="predict", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True, help="blind: the base without pictures")
    parser.add_argument("--test", type=path_argument, required=True, help="results/sft/test.json")
    parser.add_argument("--frames", type=path_argument, help="results/frames/manifest.json")
    parser.add_argument("--base", type=path_argument, required=True, help="models/base/manifest.json")
    parser.add_argument("--adapter", help="results/adapter/manifest.json, for tuned")
    parser.add_argument("--merged", help="results/merged/manifest.json, for tuned with engines that take no adapter")
    parser.add_argument(
        "--frames-dir", type=path_argument, default=Path("results/frames"), help="folder of the pictures"
    )
    parser.add_argument("--config", type=json_argument, required=True, help="sections predict, vision, train as JSON")
    parser.add_argument(
        "--shard", type=int, help="number of the shard, of predict.shards in all; left out: all questions"
    )
    parser.add_argument("--work-dir", type=path_argument, required=True, help="folder for unfinished predictions")
    parser.add_argument("--output", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--meta", type=path_argument, required=True, help="record of how they were made")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("predict", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
