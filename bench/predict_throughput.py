"""Predictions a second: LLaMA-Factory with the usual tutorial's settings against the shared image prefix.   By hand:

    python -m bench.predict_throughput                                # CPU, demo size, float32: answers must be equal
    python -m bench.predict_throughput --make 2b --dtype bfloat16 --width 512 --height 288 --new-tokens 32 \
        --batch-size 128 --baseline-batch 2                           # one GPU, random weights in Qwen3-VL-2B's shape

In envs/train, or on a GPU host with torch, transformers 5.6.0 and llamafactory 0.9.5 on its path; nothing is
downloaded. Both sides answer the same questions greedily; neither side's loading of the model is counted. The baseline
is LLaMA-Factory's own prediction (`predict_runtime`), with its picture positions put right, which costs nothing. With
--lmdeploy PYTHON (an interpreter that has LMDeploy) its offline engine is timed on the same questions too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import machine
from scripts.lib.cli import peak_mb
from scripts.lib.engines.base import Question, Setup, open_engine
from scripts.predict import plan

ROOT = Path(__file__).resolve().parents[1]
TEXT = "red blue chair table lamp window door sofa kitchen bedroom which colour is the near how many are there on wall"
WORDS = TEXT.split()
PROMPT = (ROOT / "config/prompts/short_answer.txt").read_text(encoding="utf-8").rstrip("\n")
SPREAD = 6.0  # random weights are enlarged by it, so that answers differ (demo size only)


def make_model_folder(kind: str, folder: Path, dtype: str) -> Path:
    """Random weights in the demo's or in Qwen3-VL-2B's shape, with tokenizer and processor."""
    import torch

    from scripts.lib import tiny_qwen

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "2b":
        tokenizer = tiny_qwen.make_tokenizer([PROMPT, TEXT] * 4, 800, tiny_qwen.REAL_FIRST_ADDED_ID)
        config = tiny_qwen.real_2b_config(tokenizer)
        model = tiny_qwen.make_model(config, 7, getattr(torch, dtype), device)
    else:
        tokenizer = tiny_qwen.make_tokenizer([PROMPT, TEXT] * 4, 800)  # whole words, as a real one has
        model = tiny_qwen.make_model(tiny_qwen.demo_config(tokenizer), 7)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1 and "embed" not in name:
                    weight.mul_(SPREAD)
    folder.mkdir(parents=True)
    tiny_qwen.save_base(folder, model, tiny_qwen.make_processor(tokenizer, 65536 if kind == "2b" else 1024))
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return folder


def make_questions(folder: Path, episodes: int, each: int, frames: int, size: tuple[int, int]) -> list[Question]:
    """Episodes of `frames` JPEGs of noise in coarse blocks, `each` questions about each, none like another."""
    import numpy as np
    from PIL import Image

    dice, noise = random.Random(7), np.random.default_rng(7)
    questions = []
    for number in range(episodes):
        images = []
        for frame in range(frames):
            path = folder / f"{number:03d}/{frame:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks = noise.integers(0, 255, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path, quality=95)
            images.append(path)
        for place in range(each):
            text = " ".join(dice.choices(WORDS, k=dice.randint(4, 12))) + "?"
            content = "<image>" * frames + PROMPT.replace("{question}", text)
            questions.append(Question(f"q{number:03d}-{place:02d}", f"e{number:03d}", content, tuple(images)))
    return questions


def settings(args: argparse.Namespace, engine: str, batch: int) -> dict:
    """The sections of the config that engines read."""
    pixels = max(args.width * args.height, 65536 if args.make == "2b" else 1024)
    tokens = args.frames * (pixels // 1024 + 2) + 512
    predict = {"engine": engine, "decoding": "greedy", "max_new_tokens": args.new_tokens, "batch_size": batch}
    predict |= {"dtype": args.dtype, "seed": 7, "prompt": "short_answer", "url": ""}
    train = {"template": "qwen3_vl_nothink", "cutoff_len": tokens}
    return {"predict": predict, "vision": {"image_max_pixels": pixels, "image_min_pixels": 1024}, "train": train}


def run_ours(model: Path, questions: list[Question], args: argparse.Namespace, work: Path) -> dict:
    """Questions a second of the engine `transformers`; one small warm-up, then everything."""
    engine = open_engine("transformers", Setup(model, None, settings(args, "transformers", args.batch_size), work))
    load, loaded = engine.load, []

    def load_once() -> None:
        if not loaded:
            load()
            loaded.append(True)

    engine.load = load_once
    list(engine.answer([questions[:2]]))
    engine.work.__init__()
    started = time.perf_counter()
    answers = [text for batch in engine.answer(plan(questions, args.batch_size)) for text in batch]
    seconds = time.perf_counter() - started
    facts = engine.facts()
    return {
        "seconds": seconds,
        "answers": dict(zip([q.question_id for q in questions], answers, strict=True)),
        "prefill": facts["prefill_tokens"],
        "whole": facts["whole_prompt_tokens"],
        "gpu_mb": gpu_peak_mb(),
    }


def gpu_peak_mb() -> int:
    """Highest memory that torch took on the GPU. Unit: MiB; 0 on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0


def run_baseline(model: Path, questions: list[Question], args: argparse.Namespace, work: Path) -> dict:
    """Seconds that LLaMA-Factory's prediction takes by its own clock, with the tutorial's batch and no workers."""
    from scripts.lib.engines import llamafactory_engine

    usual = llamafactory_engine.arguments

    def tutorial(setup: Setup, folder: Path, cuda: bool) -> dict:
        return usual(setup, folder, cuda) | {"dataloader_num_workers": 0, "preprocessing_num_workers": 4 if cuda else 1}

    llamafactory_engine.arguments = tutorial
    engine = open_engine("llamafactory", Setup(model, None, settings(args, "llamafactory", args.baseline_batch), work))
    answers = engine.predict(questions)
    results = json.loads((work / "llamafactory/output/predict_results.json").read_text(encoding="utf-8"))
    return {
        "seconds": results["predict_runtime"],
        "answers": dict(zip([q.question_id for q in questions], answers, strict=True)),
    }


def run_lmdeploy(model: Path, questions: list[Question], args: argparse.Namespace, work: Path) -> dict:
    """LMDeploy's offline engine in its own environment, batch 64, CUDA graphs, loading not counted."""
    job = work / "lmdeploy.json"
    config = settings(args, "lmdeploy", args.batch_size)
    rows = [[q.question_id, q.episode, q.content, [str(path) for path in q.images]] for q in questions]
    job.write_text(json.dumps({"model": str(model), "config": config, "questions": rows}), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [args.lmdeploy, "-m", "bench.predict_throughput", "--lmdeploy-job", str(job)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def time_lmdeploy(path: Path) -> int:
    """The other side of `run_lmdeploy`, in LMDeploy's environment: one small warm-up, then everything."""
    job = json.loads(path.read_text(encoding="utf-8"))
    questions = [Question(name, e, content, tuple(map(Path, images))) for name, e, content, images in job["questions"]]
    engine = open_engine("lmdeploy", Setup(Path(job["model"]), None, job["config"], path.parent))
    batches = engine.answer([questions[:2], questions])
    next(batches)
    started = time.perf_counter()
    answers = next(batches)
    seconds = time.perf_counter() - started
    ids = [question.question_id for question in questions]
    print(json.dumps({"seconds": seconds, "answers": dict(zip(ids, answers, strict=True))}))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Command line; the defaults are the CPU comparison."""
    parser = argparse.ArgumentParser(prog="predict_throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Qwen3-VL; without it one is made")
    parser.add_argument("--make", choices=["demo", "2b"], default="demo", help="shape of the model that is made")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--questions", type=int, default=11, help="an episode")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--width", type=int, default=192, help="of a frame, px")
    parser.add_argument("--height", type=int, default=128, help="of a frame, px")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=11)
    parser.add_argument("--baseline-batch", type=int, default=11)
    parser.add_argument("--baseline-questions", type=int, default=0, help="0: all; else only that many are timed")
    parser.add_argument("--no-baseline", action="store_true", help="only ours")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--lmdeploy", help="python that has LMDeploy")
    parser.add_argument("--lmdeploy-job", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """All sides, a table, one JSON line; 1 where float32 answers differ."""
    args = build_parser().parse_args(argv)
    if args.lmdeploy_job:
        return time_lmdeploy(args.lmdeploy_job)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = args.model or make_model_folder(args.make, work / "model", args.dtype)
        size = (args.width, args.height)
        questions = make_questions(work / "frames", args.episodes, args.questions, args.frames, size)
        ours = run_ours(model, questions, args, work)
        table = [("ours", len(questions), ours["seconds"])]
        result = {"bench": "predict_throughput", "unit": "questions/s", "machine": machine()}
        result |= {"ours": round(len(questions) / ours["seconds"], 3), "ours_gpu_mb": ours["gpu_mb"]}
        result |= {"prefill_tokens": ours["prefill"], "whole_prompt_tokens": ours["whole"]}
        result |= {"prefill_ratio": round(ours["whole"] / ours["prefill"], 2)}
        same = None
        if not args.no_baseline:
            asked = questions[: args.baseline_questions or None]
            baseline = run_baseline(model, asked, args, work)
            table.insert(0, ("LLaMA-Factory", len(asked), baseline["seconds"]))
            same = sum(ours["answers"][q.question_id] == baseline["answers"][q.question_id].strip() for q in asked)
            result |= {
                "baseline": round(len(asked) / baseline["seconds"], 3),
                "same_answers": same,
                "compared": len(asked),
            }
            result["ratio"] = round(result["ours"] / result["baseline"], 2)
        if args.lmdeploy:
            other = run_lmdeploy(model, questions, args, work)
            table.append(("LMDeploy", len(questions), other["seconds"]))
            result["lmdeploy"] = round(len(questions) / other["seconds"], 3)
            result["lmdeploy_same_answers"] = sum(
                ours["answers"][q] == text.strip() for q, text in other["answers"].items()
            )
    result |= {"peak_mb": peak_mb(), "dtype": args.dtype, "new_tokens": args.new_tokens, "frames": args.frames}
    result |= {"size": list(size), "batch_size": args.batch_size, "baseline_batch": args.baseline_batch}
    result |= {"different_answers": len(set(ours["answers"].values())), "questions": len(questions)}
    print(f"{'':14} {'questions':>9} {'seconds':>9} {'a second':>9}")
    for side, count, seconds in table:
        print(f"{side:14} {count:9} {seconds:9.2f} {count / seconds:9.2f}")
    print(f"prompt tokens computed: {ours['prefill']} of {ours['whole']} ({result['prefill_ratio']} times fewer)")
    print(json.dumps(result))
    if args.dtype == "float32" and same is not None and same != len(asked):
        print(f"predict_throughput: {len(asked) - same} float32 answers differ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
