"""Whole conversations against single questions, as training data.   By hand, in a project with the demo's data made:

    snakemake --cores 2 results/sft/train.json && python -m bench.conversation_modes --work-dir work/conversation_modes

Ways to train on the same questions with the same recipe, config/config.yaml's:

    question         one question a sample, --epochs epochs: the usual recipe
    episode_epochs   all questions of an episode as turns of one conversation, as many epochs, so far fewer updates
    question_steps   one question a sample again, as many optimizer steps as `episode_epochs` has
    episode_steps    the same conversations, as many optimizer steps as `question` has
    episode_shipped  the same conversations, the recipe as it is, with its own epochs and rate: what the demo does

Each way trains at each of --rates on the first seed, and further where the best lies at the edge of them; the rate with the
least validation loss is its own best, and the other seeds train at that one. Validation is the same for all: the validation questions, each alone, by validation loss
(4-bit base, as training sees it) and by exact match of greedy answers on the unquantized base (as results/metrics does).
Every training looks at the validation loss equally often and hands over its best checkpoint, so that none has more
choice than another. The test part is not touched.

A finished run lies in WORK_DIR/runs and is not done again. The project's own scripts do the work, one after another,
one torch thread each; prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from bench.lib import machine
from scripts.lib.cli import peak_mb
from scripts.lib.config import canonical_json, load_yaml
from scripts.lib.files import read_json, read_jsonl, remove, sha256_file, write_json
from scripts.lib.imports import code_files

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("question", "episode_epochs", "question_steps", "episode_steps", "episode_shipped")
PAIRS = (  # ours, theirs: equal epochs, equal steps (few, many), and what the recipe does about it
    ("episode_epochs", "question"),
    ("episode_epochs", "question_steps"),
    ("episode_steps", "question"),
    ("episode_shipped", "question"),
)
LOOKS = 6  # at the validation loss, and checkpoints, in each training
INPUTS = {
    "questions": Path("results/index/questions.json"),
    "split": Path("results/split/split.json"),
    "frames": Path("results/frames/manifest.json"),
    "base": Path("models/base/manifest.json"),
}
PROMPT = Path("config/prompts/short_answer.txt")
DRAWS, CONFIDENCE = 10_000, 0.95  # of the paired bootstrap over spaces


# ------------------------------------------------------------------------------------------------ pure


def steps_an_epoch(samples: int, train: Mapping) -> int:
    """Optimizer steps of one epoch; the last one may see fewer samples."""
    return math.ceil(math.ceil(samples / train["batch_size"]) / train["gradient_accumulation"])


def training_recipe(train: Mapping, rate: float, seed: int, epochs: float, steps: int, fixed_steps: bool) -> dict:
    """config `train` of one run.

    Args:
        train: the recipe to vary.
        epochs: of a run that is measured in epochs.
        steps: optimizer steps of the run, from which the times of validation follow.
        fixed_steps: the run is measured in steps.
    """
    every = math.ceil(steps / LOOKS)
    changed = {"learning_rate": rate, "seed": seed, "eval_steps": every, "save_steps": every, "logging_steps": every}
    changed |= {"load_best": True, "keep_checkpoints": 1}
    return {**train, **changed, "epochs": epochs, "max_steps": steps if fixed_steps else -1}


def best_rate(runs: Sequence[Mapping]) -> float:
    """The learning rate whose run has the least validation loss; the smaller one of two equal ones."""
    return min(runs, key=lambda run: (run["val_loss"], run["rate"]))["rate"]


def beyond(runs: Sequence[Mapping]) -> float | None:
    """Twice or half the best rate where it lies at the edge of what was tried, so that no way is cut short; else None."""
    rates, best = [run["rate"] for run in runs], best_rate(runs)
    if best == max(rates):
        return 2 * best
    return best / 2 if best == min(rates) else None


def spread_of(values: Sequence[float], digits: int) -> dict:
    """Mean, standard deviation over seeds (0 for one seed) and all values."""
    return {
        "mean": round(mean(values), digits),
        "sd": round(stdev(values), digits) if len(values) > 1 else 0.0,
        "values": [round(value, digits) for value in values],
    }


def question_means(runs: Sequence[Mapping]) -> dict[str, float]:
    """Exact match of each question, 0..100, mean over seeds."""
    return {name: mean(run["exact"][name] for run in runs) for name in runs[0]["exact"]}


def paired(ours: Mapping[str, float], theirs: Mapping[str, float], space_of: Mapping[str, str]) -> dict:
    """Difference of two ways in points of exact match, with its interval by a bootstrap over spaces.

    Spaces are drawn, seeds are not: the interval says what other rooms would give, with these seeds.
    """
    import numpy as np

    from scripts.lib.bootstrap import intervals

    names = sorted(ours)
    scores = np.array([[ours[name] - theirs[name]] for name in names])
    found = intervals(scores, [space_of[name] for name in names], DRAWS, CONFIDENCE, 7, (-100.0, 100.0))[0]
    return {key: round(getattr(found, key), 2) for key in ("value", "low", "high")}


# ------------------------------------------------------------------------------------------------ runs


def call(folder: Path, env: str, script: str, *arguments: object) -> None:
    """One script of the project; its words go to FOLDER/SCRIPT.log."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ.pop("VIRTUAL_ENV", None)
    log = folder / f"{script}.log"
    command = ["uv", "run", "--frozen", "--no-sync", "--project", env, "python", "-m", f"scripts.{script}"]
    with log.open("w") as file:
        done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, env=environ, stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n" + "\n".join(log.read_text().splitlines()[-15:]))


def build(work: Path, config: Mapping, mode: str, seed: int) -> Path:
    """results/sft of one way and seed (the seed shuffles the turns)."""
    folder = work / f"sft-{mode}-{seed}"
    if not (folder / "dataset_info.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = {
            "data": {"conversation": mode},
            "frames": {"count": config["frames"]["count"]},
            "vision": config["vision"],
            "train": {key: config["train"][key] for key in ("cutoff_len", "template")} | {"seed": seed},
            "predict": {key: config["predict"][key] for key in ("prompt", "max_new_tokens")},
        }
        line = [word for name, path in INPUTS.items() for word in (f"--{name}", path)]
        call(
            folder,
            "envs/train",
            "build_sft",
            *line,
            "--prompt",
            PROMPT,
            "--config",
            canonical_json(part),
            "--output-dir",
            folder,
        )
    return folder


def one_run(work: Path, config: Mapping, way: str, seed: int, rate: float, epochs: float) -> dict:
    """Train, answer the validation questions, score; or what an earlier call found.

    Returns:
        {"way", "seed", "rate", "steps", "best_step", "val_loss", "exact_match", "exact": {question_id: 0 or 100}}.
    """
    mode, fixed = way.partition("_")[0], way.endswith("_steps")
    samples = build(work, config, mode, seed)
    rows = len(read_json(samples / "train.json"))
    epochs = config["train"]["epochs"] if way == "episode_shipped" else epochs
    counted = rows
    if fixed:  # as many steps as the other form has in these epochs
        other = "question" if mode == "episode" else "episode"
        counted = len(read_json(build(work, config, other, seed) / "train.json"))
    steps = round(steps_an_epoch(counted, config["train"]) * epochs)
    recipe = training_recipe(config["train"], rate, seed, epochs, steps, fixed)
    code = {name: sha256_file(ROOT / name) for script in ("train_adapter", "predict") for name in _code(script)}
    inputs = {name: sha256_file(ROOT / path) for name, path in INPUTS.items()}
    identity = [recipe, config["predict"], inputs, sha256_file(samples / "train.json"), code]
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
    done = work / "runs" / f"{way}-{rate:g}-{seed}-{key}.json"
    if done.is_file():
        return read_json(done)
    print(f"{way}, learning rate {rate:g}, seed {seed}: {steps} steps", file=sys.stderr, flush=True)
    folder = work / "now" / key
    folder.mkdir(parents=True, exist_ok=True)
    line = ["--dataset-dir", samples, "--frames", INPUTS["frames"], "--base", INPUTS["base"]]
    line += ["--config", canonical_json({"train": recipe, "vision": config["vision"]})]
    line += ["--work-dir", folder / "train", "--adapter-dir", folder / "adapter", "--log-dir", folder / "log"]
    call(folder, "envs/train", "train_adapter", *line)
    answers = answer(folder, config, samples / "val.json", "tuned", folder / "adapter/manifest.json")
    manifest, curves = read_json(folder / "adapter/manifest.json"), read_json(folder / "log/curves.json")
    losses = {point["step"]: point["loss"] for point in curves["val"]}
    found = {"way": way, "seed": seed, "rate": rate, "samples": rows, "steps": manifest["steps"]}
    found |= {"best_step": manifest["best_step"], "val_loss": losses[manifest["best_step"]], **answers}
    found["seconds"] = read_json(folder / "log/speed.json")["seconds"]
    write_json(done, found)
    remove(folder)
    return found


def _code(script: str) -> list[str]:
    return list(code_files(f"scripts.{script}", ROOT))


def answer(folder: Path, config: Mapping, questions: Path, model: str, adapter: Path | None) -> dict:
    """Exact match of a model's answers to `questions`, overall and of each."""
    part = {"predict": config["predict"], "vision": config["vision"]}
    part["train"] = {key: config["train"][key] for key in ("template", "cutoff_len")}
    output, meta = folder / f"{model}.jsonl", folder / f"{model}.meta.json"
    line = ["--model", model, "--test", questions, "--frames", INPUTS["frames"], "--base", INPUTS["base"]]
    line += ["--adapter", adapter] if adapter else []
    line += ["--config", canonical_json(part), "--work-dir", folder / "predict", "--output", output, "--meta", meta]
    call(folder, "envs/train", "predict", *line)
    # `score` scores the part called test; here that is the validation part
    split = read_json(ROOT / INPUTS["split"])
    write_json(folder / "split.json", {**split, "parts": {**split["parts"], "test": split["parts"]["val"]}})
    metrics, rows = folder / f"{model}.json", folder / f"{model}.questions.jsonl"
    line = ["--model", model, "--predictions", output, "--meta", meta, "--questions", INPUTS["questions"]]
    line += ["--split", folder / "split.json", "--config", canonical_json({"score": config["score"]})]
    call(folder, ".", "score", *line, "--output", metrics, "--rows", rows)
    exact = {row["question_id"]: row["exact_match"] for row in read_jsonl(rows)}
    return {"exact_match": read_json(metrics)["overall"]["exact_match"]["value"], "exact": exact}


# ------------------------------------------------------------------------------------------------ main


def summarise(way: str, tried: Sequence[Mapping], runs: Sequence[Mapping]) -> dict:
    """What the table and the JSON say about one way."""
    return {
        "rates": {
            f"{run['rate']:g}": {key: round(run[key], 4) for key in ("val_loss", "exact_match")} for run in tried
        },
        "rate": runs[0]["rate"],
        "samples": runs[0]["samples"],
        "steps": runs[0]["steps"],
        "best_steps": [run["best_step"] for run in runs],
        "exact_match": spread_of([run["exact_match"] for run in runs], 2),
        "val_loss": spread_of([run["val_loss"] for run in runs], 4),
        "seconds": spread_of([run["seconds"] for run in runs], 1),
        "way": way,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/conversation_modes"), help="finished runs; kept")
    parser.add_argument("--epochs", type=float, default=3.0, help="epochs of `question` and `episode_epochs`")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 6e-3], help="learning rates to try")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="question is always one of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9], help="the first one chooses the rate")
    args = parser.parse_args(argv)
    args.ways = [way for way in WAYS if way in args.ways or way == WAYS[0]]
    for path in (*INPUTS.values(), PROMPT):
        if not (ROOT / path).is_file():
            raise SystemExit(f"{path}: missing; make the demo's data first: snakemake --cores 2 results/sft/train.json")
    config = load_yaml(ROOT / "config/config.yaml")
    work = args.work_dir.resolve()

    base_file = work / "runs" / f"base-{sha256_file(ROOT / INPUTS['base'])[:16]}.json"
    if not base_file.is_file():
        folder = work / "now/base"
        folder.mkdir(parents=True, exist_ok=True)
        questions = build(work, config, "question", args.seeds[0]) / "val.json"
        write_json(base_file, answer(folder, config, questions, "base", None))
    base = read_json(base_file)
    arms, means = {}, {}
    for way in args.ways:
        rates = [config["train"]["learning_rate"]] if way == "episode_shipped" else sorted(args.rates)
        tried = [one_run(work, config, way, args.seeds[0], rate, args.epochs) for rate in rates]
        while len(rates) > 1 and (further := beyond(tried)) is not None:
            tried.append(one_run(work, config, way, args.seeds[0], further, args.epochs))
        best = best_rate(tried)
        runs = [one_run(work, config, way, seed, best, args.epochs) for seed in args.seeds]
        arms[way], means[way] = summarise(way, tried, runs), question_means(runs)
    spaces = {row["question_id"]: row["space"] for row in read_json(ROOT / INPUTS["questions"])["questions"]}

    print(f"{'':16}{'steps':>7}{'rate':>9}{'exact match':>20}{'validation loss':>20}{'seconds':>9}")
    print(f"{'base':16}{'':>7}{'':>9}{base['exact_match']:13.1f} %")
    for way, arm in arms.items():
        exact, loss = arm["exact_match"], arm["val_loss"]
        scores = f"{exact['mean']:11.1f} +- {exact['sd']:.1f} %{loss['mean']:13.3f} +- {loss['sd']:.3f}"
        print(f"{way:16}{arm['steps']:7}{arm['rate']:9g}{scores}{arm['seconds']['mean']:9.0f}")
    pairs = [pair for pair in PAIRS if set(pair) <= set(means)]
    differences = {f"{ours} - {theirs}": paired(means[ours], means[theirs], spaces) for ours, theirs in pairs}
    for name, found in differences.items():
        print(f"{name}: {found['value']:+.1f} points ({found['low']:+.1f} to {found['high']:+.1f})")
    theirs, ours = (arms[way]["exact_match"]["mean"] for way in (args.ways[0], args.ways[min(1, len(args.ways) - 1)]))
    result = {
        "bench": "conversation_modes",
        "unit": "% exact match",
        "baseline": theirs,
        "ours": ours,
        "ratio": round(ours / theirs, 3) if theirs else None,
        "peak_mb": peak_mb(),
        "arms": arms,
        "base_exact_match": base["exact_match"],
        "differences": differences,
        "epochs": args.epochs,
        "seeds": args.seeds,
        "questions": len(base["exact"]),
        "spaces": len({spaces[name] for name in base["exact"]}),
        "machine": machine(),
    }
    print(json.dumps(result, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
