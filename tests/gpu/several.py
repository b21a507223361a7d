"""Training and prediction on several GPUs of one host, part by part, one JSON line each.   By hand, in envs/train:

    python -m tests.gpu.several ddp --work WORK          # parts: model bench ddp fsdp zero2 predict devices
    python -m tests.gpu.several ddp --work WORK --device cpu --small   # the demo's model, two processes (gloo)

tests/gpu/several.sh runs all of them on a host without a package index. A part that went well is not run again; the lines
of all parts so far are in $OUT/several.jsonl, or in WORK where OUT is not set. Weights are random, in Qwen3-VL-2B's shape.

ddp, fsdp, zero2: train on all GPUs, lose the last checkpoint, go on, merge on one GPU and compare the answers.
predict: the tuned model's answers in one shard, in one a GPU at once, and with a shard that was killed and redone alone;
equal bytes. devices: two jobs at once that ask for one GPU each. bench: bench.train_throughput on one and on all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import train_throughput as bench
from scripts.lib import checkpoints
from scripts.lib.cli import path_argument
from scripts.lib.config import load_yaml
from scripts.lib.errors import EqaError
from scripts.lib.files import file_record, read_json, remove, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("model", "bench", "ddp", "fsdp", "zero2", "predict", "devices")
ANSWER_STEPS = {"whole": 20, "small": 8}
JOB = """
import os, sys, time, torch
folder, number = sys.argv[1:]
cuda = torch.cuda.is_available()
name = str(torch.cuda.get_device_properties(0).uuid) if cuda else os.environ.get("CUDA_VISIBLE_DEVICES", "")
open(os.path.join(folder, number), "w").close()
end = time.monotonic() + 120
while len(os.listdir(folder)) < 2 and time.monotonic() < end:
    time.sleep(0.1)
print(name, len(os.listdir(folder)))
"""
ON_CPU = ROOT / "tests/gpu/on_cpu"  # lets FSDP and ZeRO-2 train there


@dataclass(frozen=True)
class Host:
    """Where and how the parts run.

    Attributes:
        work: folder of everything.
        cuda: GPUs, else processes on the CPU.
        small: the demo's model and few steps.
        count: GPUs, or processes.
    """

    work: Path
    cuda: bool
    small: bool
    count: int

    def config(self) -> dict:
        """The preset that the parts start from."""
        return load_yaml(ROOT / f"config/presets/{'demo' if self.small else 'openeqa-80gb'}.yaml")

    @property
    def base(self) -> Path:
        return self.work / "models/base/manifest.json"

    def call(self, words: Sequence[str], log: str, **environ: str) -> str:
        """stdout of `python WORDS`; what it says goes to WORK/logs/LOG.

        Raises:
            EqaError: it fails; with its last line.
        """
        child, file = self.start(words, log, **environ)
        out, _ = child.communicate()
        if child.returncode:
            last = (file.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise EqaError(f"{file}: {' '.join(words[:3])} ended with {child.returncode}: {last}")
        return out

    def start(self, words: Sequence[str], log: str, **environ: str) -> tuple[subprocess.Popen, Path]:
        """The process of `python WORDS`, and its log."""
        file = self.work / "logs" / log
        file.parent.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environ
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH"), env.get("ALSO")]))
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        if not self.cuda:
            env |= {"EQA_TRAIN_PROCESSES": str(self.count)}
        with file.open("w") as handle:
            child = subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=self.work,
                env=env,
                stdout=subprocess.PIPE,
                stderr=handle,
                text=True,
            )
        return child, file

    def first_gpu(self) -> dict[str, str]:
        """Variables of a step that takes one GPU."""
        return {"CUDA_VISIBLE_DEVICES": bench.chosen_gpus(1, os.environ)} if self.cuda else {}


# ------------------------------------------------------------------------------------------------ parts


def make_model(host: Host) -> dict:
    """The base model and the data of all parts."""
    started = time.monotonic()
    if not host.base.is_file():
        if host.small:
            bench.make_model(host.base.parent, real=False, dtype="bfloat16")  # FSDP: the type of the steps
        else:
            device = "cuda" if host.cuda else "cpu"
            host.call(["-m", "bench.make_2b", "--output", host.base.parent, "--device", device], "model.log")
    episodes, questions, size = (6, 3, (192, 128)) if host.small else (48, 11, (512, 288))
    data = host.work / "data"
    remove(data)
    bench.make_data(data, episodes, questions, size)
    rows = read_json(data / "single/train.json")
    tests = [row | {"question_id": row["question_ids"][0]} for row in rows]
    write_json(data / "together/test.json", tests[: 12 if host.small else 264])
    return {"seconds": round(time.monotonic() - started, 1), "questions": len(rows)}


def run_bench(host: Host) -> dict:
    """bench.train_throughput on one GPU and on all; its own JSON line beside this one."""
    line = ["-m", "bench.train_throughput", "--model", host.base.parent, "--gpus", "1", str(host.count)]
    line += ["--work-dir", host.work / "bench"]
    if host.small:
        line += ["--preset", "demo", "--episodes", "4", "--questions", "2", "--steps", "6", "--skip-baseline", "1"]
    out = host.call([*line, *os.environ.get("BENCH_ARGS", "").split()], "bench.log")
    found = json.loads(out.splitlines()[-1])
    write_json(results_folder(host.work) / f"train_throughput-{host.count}gpu.json", found)
    one, several = found["runs"][:2]
    if found["failed"]:
        raise EqaError(f"bench: {found['failed'][0]['why']}")
    keys = ("ratio_to_first", "steady_ratio_to_first", "losses_apart", "torch_peak_mb_each", "ours", "step_s")
    return {"one": one["ours"], "one_step_s": one["step_s"]} | {key: several[key] for key in keys}


def train(host: Host, kind: str, out: str, **environ: str) -> tuple[dict, str]:
    """One train_adapter on all devices: (curves, what it said)."""
    config = host.config()
    steps = ANSWER_STEPS["small" if host.small else "whole"]
    settings = config["train"] | {"distributed": kind, "max_steps": steps, "save_steps": steps // 4, "logging_steps": 1}
    settings |= {"eval_steps": steps // 2, "lora_dropout": 0.0, "load_best": False, "keep_checkpoints": 4}
    settings |= {"gradient_accumulation": host.count}
    if not host.small:
        settings["cutoff_len"] = bench.USUAL["cutoff_len"]
    recipe = json.dumps({"train": settings, "vision": config["vision"]})
    words = ["-m", "scripts.train_adapter", "--dataset-dir", "data/together", "--frames", "data/frames/manifest.json"]
    words += ["--base", "models/base/manifest.json", "--config", recipe, "--work-dir", f"train/{kind}"]
    words += ["--adapter-dir", f"{kind}/{out}/adapter", "--log-dir", f"{kind}/{out}/log"]
    host.call(words, f"{kind}-{out}.log", **environ)
    log = (host.work / f"logs/{kind}-{out}.log").read_text(errors="replace")
    return read_json(host.work / f"{kind}/{out}/log/curves.json"), log


def shared_training(host: Host, kind: str) -> dict:
    """Train, lose the last checkpoint, go on, merge on one GPU, compare answers.

    Raises:
        EqaError: it did not go on where it should, or its losses are others.
    """
    environ = {}
    if kind == "zero2":
        environ = {"ALSO": os.environ.get("EQA_ZERO2_SITE", "")}
    if kind != "ddp" and not host.cuda:
        environ = {"ALSO": os.pathsep.join(filter(None, [environ.get("ALSO"), str(ON_CPU)])), "DS_ACCELERATOR": "cpu"}
    folder = host.work / kind
    whole, _ = train(host, kind, "whole", **environ)
    (run_dir,) = [path.parent for path in (host.work / f"train/{kind}").glob("*/job.json")]
    found = checkpoints.checkpoints(run_dir)
    remove(found[-1])
    remove(run_dir / checkpoints.FINISHED)
    again, said = train(host, kind, "again", **environ)
    if f"going on from train/{kind}/{run_dir.name}/{found[-2].name}" not in said:
        raise EqaError(f"logs/{kind}-again.log: did not go on from {found[-2].name}")
    losses, other = ([point["loss"] for point in lines["train"]] for lines in (whole, again))
    apart = bench.curves_apart(losses, other)
    if apart["largest"] > 0.02:
        raise EqaError(f"{kind}: losses after going on differ by {apart['largest']:.3f} of those of the whole training")
    speed = read_json(folder / "whole/log/speed.json")
    if speed["devices"] != host.count:
        raise EqaError(f"{kind}: {speed['devices']} devices were used instead of {host.count}")
    weights = [file_record(folder / f"{out}/adapter/adapter_model.safetensors") for out in ("whole", "again")]
    facts = {
        "steps": len(losses),
        "losses": losses,
        "gone_on_from": found[-2].name,
        "losses_apart": apart,
        "same_bytes": weights[0] == weights[1],
        "torch_peak_mb_each": speed["peak_gpu_mb_each"],
        "samples_per_s": speed["samples_per_s"],
        "trained_parameters": read_json(folder / "whole/adapter/guards.json")["trained_parameters"],
    }
    plain = host.work / "ddp/whole/log/curves.json"
    if kind != "ddp" and plain.is_file():
        facts["losses_apart_from_ddp"] = bench.curves_apart([p["loss"] for p in read_json(plain)["train"]], losses)
    return facts | merged(host, kind)


def merged(host: Host, kind: str) -> dict:
    """Merge the adapter that went on, in float32, and compare its answers with base + adapter on one GPU."""
    config = host.config()
    merge = config["merge"] | {"dtype": "float32", "sample": 4}
    recipe = {"merge": merge, "train": config["train"], "vision": config["vision"], "predict": {"max_new_tokens": 16}}
    pair = ["--base", "models/base/manifest.json", "--adapter", f"{kind}/again/adapter/manifest.json"]
    pair += ["--config", json.dumps(recipe)]
    out, one = f"{kind}/merged", host.first_gpu()
    host.call(
        ["-m", "scripts.merge_adapter", *pair, "--work-dir", f"{kind}/merge", "--output-dir", out],
        f"{kind}-merge.log",
        **one,
    )
    test = ["--test", "data/together/test.json", "--frames", "data/frames/manifest.json"]
    words = ["-m", "scripts.verify_merge", *pair, "--merged", f"{out}/manifest.json", *test]
    host.call([*words, "--output", f"{out}/verify.json"], f"{kind}-verify.log", **one)
    facts = read_json(host.work / out / "verify.json")
    remove(host.work / out)  # 9 GB at the real size
    return {"merge": facts}


def predict_words(host: Host, out: str, shards: int, shard: int) -> list[str]:
    """One GPU job of scripts.predict, as a rule starts it."""
    config = host.config()
    size, tokens = (2, 4) if host.small else (32, 32)
    predict = config["predict"] | {"engine": "transformers", "shards": shards, "batch_size": size}
    predict |= {"max_new_tokens": tokens}
    train_keys = {"template": config["train"]["template"], "cutoff_len": bench.USUAL["cutoff_len"]}
    recipe = {"predict": predict, "vision": config["vision"], "train": train_keys}
    words = [
        "-m",
        "scripts.lib.devices",
        "--gpus",
        "1",
        "--",
        sys.executable,
        "-m",
        "scripts.predict",
        "--model",
        "tuned",
    ]
    words += [
        "--test",
        "data/together/test.json",
        "--frames",
        "data/frames/manifest.json",
        "--frames-dir",
        "data/frames",
    ]
    words += ["--base", "models/base/manifest.json", "--adapter", "ddp/whole/adapter/manifest.json"]
    words += ["--config", json.dumps(recipe), "--shard", f"{shard:04d}", "--work-dir", f"predict/{out}/work{shard}"]
    place = f"predict/{out}/shards/tuned/{shard:04d}"
    return [*words, "--output", f"{place}.jsonl", "--meta", f"{place}.meta.json"]


def journal(host: Host, out: str, shard: int) -> int:
    """Answers that a running shard has written down."""
    return sum(
        len(path.read_bytes().splitlines()) for path in (host.work / f"predict/{out}/work{shard}").glob("*/*.jsonl")
    )


def answer(host: Host, out: str, shards: int) -> dict:
    """All shards at once; {"seconds", "steady": questions a second after each shard's first batch, added up}."""
    started = time.monotonic()
    children = [host.start(predict_words(host, out, shards, n), f"predict-{out}-{n}.log") for n in range(shards)]
    first: dict[int, tuple[float, int]] = {}
    ended: dict[int, float] = {}
    while len(ended) < shards:
        for number, (child, _) in enumerate(children):
            if number not in first and (seen := journal(host, out, number)):
                first[number] = (time.monotonic(), seen)
            if number not in ended and child.poll() is not None:
                ended[number] = time.monotonic()
        time.sleep(0.02)
    steady = 0.0
    for number, (child, file) in enumerate(children):
        child.communicate()
        if child.returncode:
            raise EqaError(f"{file}: shard {number} ended with {child.returncode}: {file.read_text()[-300:]}")
        lines = (host.work / f"predict/{out}/shards/tuned/{number:04d}.jsonl").read_text().splitlines()
        if number in first:
            steady += (len(lines) - first[number][1]) / max(ended[number] - first[number][0], 1e-9)
    return {"seconds": time.monotonic() - started, "steady": steady}


def joined(host: Host, out: str, shards: int) -> bytes:
    """The answers of all shards as one file."""
    words = ["-m", "scripts.join_predictions", "--model", "tuned", "--test", "data/together/test.json"]
    words += ["--shards-dir", f"predict/{out}/shards", "--config", json.dumps({"predict": {"shards": shards}})]
    words += ["--output", f"predict/{out}/tuned.jsonl", "--meta", f"predict/{out}/tuned.meta.json"]
    host.call(words, f"join-{out}.log")
    return (host.work / f"predict/{out}/tuned.jsonl").read_bytes()


def sharded_prediction(host: Host) -> dict:
    """One shard, one shard a GPU at once, one of them killed and redone alone: the same bytes.

    Raises:
        EqaError: other answers, or nothing to predict with.
    """
    if not (host.work / "ddp/whole/adapter/manifest.json").is_file():
        raise EqaError("predict: no adapter; run the part ddp first")
    remove(host.work / "predict")
    one, several = answer(host, "one", 1), answer(host, "several", host.count)
    wanted = joined(host, "one", 1)
    if joined(host, "several", host.count) != wanted:
        raise EqaError(f"predict: answers of {host.count} shards are not those of one; compare predict/*/tuned.jsonl")
    last = host.count - 1
    place = host.work / f"predict/several/shards/tuned/{last:04d}.jsonl"
    others = [file_record(path) for path in sorted(place.parent.glob("*.jsonl")) if path != place]
    remove(place)
    child, file = host.start(predict_words(host, "several", host.count, last), "predict-killed.log")
    while child.poll() is None and not journal(host, "several", last):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    if place.exists():
        raise EqaError(f"{file}: the shard ended before it could be killed; give it more questions")
    kept = journal(host, "several", last)
    said = host.call(predict_words(host, "several", host.count, last), "predict-again.log")
    resumed = json.loads(said.splitlines()[-1])["resumed"]
    if [file_record(path) for path in sorted(place.parent.glob("*.jsonl")) if path != place] != others:
        raise EqaError("predict: redoing one shard changed another")
    if joined(host, "several", host.count) != wanted:
        raise EqaError("predict: answers of the shard that was redone alone are others")
    return {
        "questions": len(wanted.splitlines()),
        "shards": host.count,
        "seconds": [round(side["seconds"], 2) for side in (one, several)],
        "ratio": round(one["seconds"] / several["seconds"], 3),
        "steady_questions_per_s": [round(side["steady"], 2) for side in (one, several)],
        "steady_ratio": round(several["steady"] / one["steady"], 3) if one["steady"] else None,
        "written_before_the_kill": kept,
        "resumed": resumed,
        "same_bytes": True,
    }


def different_devices(host: Host) -> dict:
    """Two jobs at once that ask for one GPU each.

    Raises:
        EqaError: the same GPU, or one after the other.
    """
    folder = host.work / "devices"
    remove(folder)
    folder.mkdir(parents=True)
    words = ["-m", "scripts.lib.devices", "--gpus", "1", "--", sys.executable, "-c", JOB, folder]
    jobs = [host.start([*words, str(number)], f"devices-{number}.log") for number in range(2)]
    said = [child.communicate()[0].split() for child, _ in jobs]
    if any(len(words) != 2 or words[1] != "2" for words in said):
        raise EqaError(f"devices: the two jobs did not run at the same time: {said}; see logs/devices-*.log")
    names = [words[0] for words in said]
    if names[0] == names[1]:
        raise EqaError(f"devices: both jobs were on {names[0]}")
    return {"devices": names}


def unfit(part: str, host: Host) -> str:
    """Why a part cannot run here; "" where it can."""
    if host.cuda or part != "zero2":
        return ""
    here = importlib.util.find_spec("deepspeed") or Path(os.environ.get("EQA_ZERO2_SITE") or "-", "deepspeed").is_dir()
    return "" if here else "DeepSpeed is not installed (make zero2)"


# ------------------------------------------------------------------------------------------------ main


def results_folder(work: Path) -> Path:
    """Where the lines go: $OUT, else the work folder."""
    return Path(os.environ.get("OUT") or work)


def collect(work: Path) -> None:
    """All parts' records so far as lines, in the order of PARTS."""
    files = [work / f"parts/{part}.json" for part in PARTS]
    lines = [json.dumps(read_json(file), sort_keys=True) + "\n" for file in files if file.is_file()]
    write_text(results_folder(work) / "several.jsonl", "".join(lines))


def run(part: str, host: Host) -> dict:
    """One part's record: {"part", "status": ok, failed or skipped, facts or "why"}; kept in WORK/parts."""
    file = host.work / f"parts/{part}.json"
    if file.is_file() and (before := read_json(file))["status"] == "ok":
        collect(host.work)
        return before
    steps: Mapping[str, Callable[[], dict]] = {
        "model": lambda: make_model(host),
        "bench": lambda: run_bench(host),
        "predict": lambda: sharded_prediction(host),
        "devices": lambda: different_devices(host),
    }
    started = time.monotonic()
    record: dict = {"part": part, "count": host.count, "cuda": host.cuda, "small": host.small}
    if why := unfit(part, host):
        record |= {"status": "skipped", "why": why}
    else:
        try:
            record |= {"status": "ok", **(steps[part]() if part in steps else shared_training(host, part))}
        except EqaError as error:
            record |= {"status": "failed", "why": str(error)}
    record["part_s"] = round(time.monotonic() - started, 1)
    write_json(file, record)
    collect(host.work)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """One part; 1 where it failed."""
    parser = argparse.ArgumentParser(prog="several", description=__doc__.splitlines()[0].partition("   ")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=path_argument, required=True, help="folder of everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="the demo's model, few steps")
    parser.add_argument("--count", type=int, default=2, help="GPUs, or processes on the CPU")
    args = parser.parse_args(argv)
    import torch

    cuda = args.device == "cuda"
    if cuda and torch.cuda.device_count() < args.count:
        print(
            f"several: --count {args.count}, but {torch.cuda.device_count()} GPU(s) are visible; use a host with more, "
            "or --device cpu --small",
            file=sys.stderr,
        )
        return 2
    args.work.mkdir(parents=True, exist_ok=True)
    record = run(args.part, Host(args.work.resolve(), cuda, args.small, args.count))
    print(json.dumps(record, sort_keys=True))
    return 1 if record["status"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
