"""Preprocessing of Open-EQA's 1,636 questions: LLaMA-Factory as the usual tutorial sets it against ours.   By hand:

    python -m bench.tokenize                                    # children run in envs/train
    python -m bench.tokenize --baseline-questions 200           # the baseline on a part, scaled up

152 episodes of 8 JPEGs of 512x288, which both sides let through whole. Every side is LLaMA-Factory's own `get_dataset`:
it opens the pictures, expands their tokens, tokenizes, and stores what training reads. Imports are not counted.

baseline  one question a sample, 8 workers, the environment as it is, nothing kept (`overwrite_cache`)
question  one question a sample, a worker a core, one thread each
ours      one conversation an episode, a worker a core, one thread each, kept under a name that its content gives
again     ours at the next start of a training
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib import drawn_picture, finish, report, side
from scripts.lib import sharegpt
from scripts.lib.files import write_json

ROOT = Path(__file__).resolve().parents[1]
EPISODES, QUESTIONS = 152, 1636  # Open-EQA's
FRAMES, SIZE = 8, (512, 288)  # what preset openeqa-80gb stores of an HM3D episode
TUTORIAL_WORKERS = 8
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


# ------------------------------------------------------------------------------------------------ data


def share(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by one at most."""
    return [total // parts + (k < total % parts) for k in range(parts)]


def make_data(folder: Path, episodes: int, questions: int) -> None:
    """frames/, and as LLaMA-Factory reads them single/ (a question a sample) and together/ (an episode a sample)."""
    import random

    from bench.train_throughput import question

    dice = random.Random(7)
    prompt = (ROOT / "config/prompts/short_answer.txt").read_text(encoding="utf-8")
    rows: dict[str, list] = {"single": [], "together": []}
    for number, asked in enumerate(share(questions, episodes)):
        episode = f"bench-v0/{number:04d}-room{number}"
        (folder / "frames" / episode).mkdir(parents=True)
        names = [f"{episode}/{place:03d}.jpg" for place in range(FRAMES)]
        for name in names:
            drawn_picture(dice, SIZE, boxes=30).save(folder / "frames" / name, quality=95)
        turns = [(f"{number:04d}-{k:02d}", question(k), f"the red chair {k}") for k in range(asked)]
        rows["together"].append(sharegpt.sample(turns, prompt, names, episode))
        rows["single"] += [sharegpt.sample([turn], prompt, names, episode) for turn in turns]
    for name, samples in rows.items():
        write_json(folder / name / "train.json", samples)
        write_json(folder / name / "dataset_info.json", sharegpt.dataset_info(("train",)))


# ------------------------------------------------------------------------------------------------ sides


def preprocess(model: Path, data: Path, kind: str, workers: int, tokenized: Path | None, most: int | None) -> float:
    """Seconds of LLaMA-Factory's `get_dataset`."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(data / "cache")})
    import torch
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    arguments = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "template": "qwen3_vl_nothink",
        "model_name_or_path": str(model),
        "dataset": "openeqa_train",
        "dataset_dir": str(data / kind),
        "media_dir": str(data / "frames"),
        "output_dir": str(data / "output"),
        "cutoff_len": 4096,  # no padding up to it, so no cost; eleven turns fit whatever the tokenizer
        "image_max_pixels": SIZE[0] * SIZE[1],
        "image_min_pixels": 1024,
        "preprocessing_num_workers": workers,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
    }
    if tokenized:
        arguments["tokenized_path"] = str(tokenized)
    else:
        arguments["overwrite_cache"] = True
    if most:
        arguments["max_samples"] = most
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    tokenizer = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data_args)
    started = time.perf_counter()
    get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer)
    return time.perf_counter() - started


def run_side(name: str, work: Path, workers: int, most: int | None) -> int:
    """The other end of `bench.lib.side`."""
    kind = "single" if name in ("baseline", "question") else "together"
    tokenized = {"question": work / "tokenized_single", "ours": work / "tokenized", "again": work / "tokenized"}
    if name != "baseline":
        from scripts.lib.threads import one_thread

        one_thread()
    stdout = os.dup(1)
    os.dup2(2, 1)  # LLaMA-Factory prints its first sample
    seconds = preprocess(work / "model", work / "data", kind, workers, tokenized.get(name), most)
    sys.stdout.flush()
    os.dup2(stdout, 1)
    report(seconds)
    return 0


def train_python() -> list[str]:
    """Python with LLaMA-Factory: this one if it has it, else that of envs/train."""
    if importlib.util.find_spec("llamafactory"):
        return [sys.executable]
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    return [uv, "run", "--frozen", "--no-sync", "--project", str(ROOT / "envs/train"), "python"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tokenize", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of all episodes together")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--baseline-questions", type=int, help="so many for the baseline, its time scaled up")
    parser.add_argument("--workers", type=int, help="of ours; a worker a core if left out")
    parser.add_argument("--side", choices=("make", "baseline", "question", "ours", "again"), help=argparse.SUPPRESS)
    parser.add_argument("--work-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--most", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    if args.side == "make":
        from bench.train_throughput import make_model

        started = time.perf_counter()
        make_model(args.work_dir / "model", real=False)
        make_data(args.work_dir / "data", args.episodes, args.questions)
        report(time.perf_counter() - started)
        return 0
    if args.side:
        return run_side(args.side, args.work_dir, args.workers, args.most)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")}
    env["PYTHONPATH"] = path
    # what a user has who follows the tutorial: no limit of threads
    unlimited = {key: value for key, value in env.items() if key not in THREADS}
    workers = args.workers or cores
    part = min(args.baseline_questions or args.questions, args.questions)
    with tempfile.TemporaryDirectory() as name:
        where = {"python": train_python()}
        counts = ("--questions", args.questions, "--episodes", args.episodes)
        side("tokenize", "make", "--work-dir", name, *counts, **where, env=env)
        old = ("--work-dir", name, "--workers", TUTORIAL_WORKERS, "--most", part)
        baseline = side("tokenize", "baseline", *old, **where, env=unlimited)
        scaled = baseline | {"seconds": round(baseline["seconds"] * args.questions / part, 3)}
        new = ("--work-dir", name, "--workers", workers)
        found = {side_: side("tokenize", side_, *new, **where, env=env) for side_ in ("question", "ours", "again")}
    ours = found.pop("ours")
    facts = {"questions": args.questions, "episodes": args.episodes, "baseline_questions": part, "workers": workers}
    facts |= {"question_s": found["question"]["seconds"], "again_s": found["again"]["seconds"]}
    return finish("tokenize", scaled, ours, found, **facts)


if __name__ == "__main__":
    sys.exit(main())
