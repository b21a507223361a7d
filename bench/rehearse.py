"""The whole recipe of a preset with random weights and rendered frames: time, memory, and what it would take in full.

    make rehearse                                              # one CUDA GPU: preset openeqa-80gb, real counts
    make rehearse ARGS="--device cpu --small"                  # the demo's model, minutes
    python3 -m bench.rehearse --wheels DIR                     # a GPU host without an index; DIR by tests.gpu.pack_wheels
    python -m bench.rehearse --page docs/rehearsal.md          # the page, from bench/results/rehearsal-*.json

Every step is the pipeline's own script with the preset's own parameters, called by the door that its rule calls
(a test compares the command lines), in an order that the rules allow; Snakemake itself is not needed. What differs from
the preset is listed as "changes" in the result. The model has random weights in the exact shape of Qwen3-VL-2B: what
takes time and memory in the real one takes as much here, its scores mean nothing, and hardly an answer ends before
predict.max_new_tokens, so that times of prediction are upper bounds.

A step that ended well is not run again: the same command goes on after an interruption. Logs are in WORK/logs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lib import machine
from scripts.lib.cli import entry, path_argument
from scripts.lib.config import canonical_json, load_yaml, select
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, remove, sha256_file, write_json, write_text
from scripts.lib.imports import code_files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
QUESTIONS_FILE = "open-eqa-v0.json"
# Open-EQA's counts and frame sizes (width, height), and so many frames a rendered episode: 8 of them are read
HM3D, SCANNET, QUESTIONS = 63, 89, 1636
HM3D_PX, SCANNET_PX, EPISODE_FRAMES = (1920, 1080), (1296, 968), 100
DISTINCT = 8  # rendered pictures of an episode, repeated
MODELS = ("base", "tuned", "blind", "majority")
SMALL = {"data.demo_episodes": 8, "model.demo_steps": 0, "train.max_steps": 2, "merge.sample": 2}
SMALL |= {"predict.max_new_tokens": 4, "frames.shards": 2, "deliver.gguf": False, "score.bootstrap_draws": 50}
# the usual tutorial's own figures, on one T4 of 16 GB
TUTORIAL = {
    "train_s": 2 * 3600 + 27 * 60,  # 453 steps of 8 questions
    "predict_s": 2 * 3600 + 55 * 60,  # 258 questions, once
    "predict_questions": 258,
    "lmdeploy_one_s": 9.63,  # one picture, one request
    "lmdeploy_four_s": 7.86,  # a request of four
}
SLOW = 1.0e-6
WHEEL_SETS = {".": "light", "envs/train": "train", "envs/serve": "serve"}
ZERO2_WHEELS = "zero2"  # DeepSpeed over train, for tests/gpu


# ------------------------------------------------------------------------------------------------ steps


@dataclass(frozen=True)
class Step:
    """One rule's work.

    name: rule, and its wildcard after a slash.
    environment: as in `scripts.prepare_environments`.
    commands: argument lists after `python -m`, run at the same time.
    before, after: around the commands; after runs whatever happens.
    needs: steps that must have ended well.
    """

    name: str
    environment: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    gpu: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)


def plan(config: Mapping, cuda: bool) -> list[Step]:
    """Steps of a recipe in an order that the rules allow; commands equal those of rules/*.smk."""

    def part(*keys: str) -> str:
        return canonical_json(select(config, keys))

    def script(name: str, *words: str) -> tuple[str, ...]:
        return (f"scripts.{name}", *words)

    light, train, serve = ".", "envs/train", "envs/serve"
    frames, base = ("--frames", "results/frames/manifest.json"), ("--base", "models/base/manifest.json")
    adapter, test = ("--adapter", "results/adapter/manifest.json"), ("--test", "results/sft/test.json")
    merged = ("--merged", "results/merged/manifest.json")
    split, asked = ("--split", "results/split/split.json"), ("--questions", "results/index/questions.json")
    raw, index = "data/raw/openeqa", "results/index"
    demo, episodes = "data/raw/demo", f"{index}/episodes.json"
    shards = [f"{shard:04d}" for shard in range(config["frames"]["shards"])]
    source = part("data.source")
    steps: list[Step] = []

    def add(name: str, environment: str, commands: Sequence[tuple[str, ...]], *needs: str, **more: Any) -> None:
        steps.append(Step(name, environment, tuple(commands), needs, **more))

    words = ("--config", part("data.demo_episodes", "data.demo_seed"), "--output-dir", demo)
    add("make_demo_episodes", light, [script("make_demo_episodes", *words)])
    pins = ("--lock", "config/data.lock.json")
    words = (*pins, "--config", part("data.source", "data.questions"), "--output", f"{raw}/questions.json")
    add("fetch_questions", light, [script("fetch_questions", *words)])
    words = ("--config", part("data.source", "predict.prompt", "deliver.llm_match"), "--output-dir", f"{raw}/prompts")
    add("fetch_prompts", light, [script("fetch_prompts", *pins, *words)])
    words = ("--questions", f"{raw}/questions.json", "--config", source, "--output", f"{raw}/source.json")
    add("list_source", light, [script("list_source", *words)], "fetch_questions")
    words = ("--demo-questions", f"{demo}/questions.json", "--demo-manifest", f"{demo}/manifest.json")
    words += ("--questions", f"{raw}/questions.json", "--source", f"{raw}/source.json", "--config")
    wanted = ("frames.count", "frames.choice", "frames.short", "frames.shards")
    words += (part("data.source", "data.require", *wanted),)
    words += ("--episodes", episodes, "--output-questions", f"{index}/questions.json")
    add("index_episodes", light, [script("index_episodes", *words)], "list_source", "make_demo_episodes")
    words = ("--episodes", episodes, *asked, "--config", part("split"), "--output", "results/split/split.json")
    add("split_questions", light, [script("split_questions", *words)], "index_episodes")
    words = ("--config", part("data.source", "frames", "vision", "model.source"), "--frames-dir", "results/frames")
    files = {shard: f"results/frames/shards/{shard}.json" for shard in shards}
    commands = [
        script("sample_frames", "--episodes", episodes, "--shard", shard, *words, "--output", file)
        for shard, file in files.items()
    ]
    add("sample_frames", light, commands, "index_episodes")
    words = ("--shards", *files.values(), "--frames-dir", "results/frames", "--output", frames[1])
    add("join_frames", light, [script("join_frames", *words)], "sample_frames")

    if config["model"]["source"] == "demo":
        words = ("--prompt", "config/prompts/short_answer.txt", "--config")
        words += (part("model.demo_seed", "model.demo_steps", "frames.count", "vision"), "--output-dir", "models/base")
        add("make_demo_model", train, [script("make_demo_model", *words)])
        model = "make_demo_model"
    else:  # in place of fetch_base_model
        words = ("--output", "models/base", "--device", "cuda" if cuda else "cpu", "--text", f"{raw}/questions.json")
        add("make_2b", train, [("bench.make_2b", *words)], "fetch_questions", gpu=cuda)
        model = "make_2b"

    keys = ("data.conversation", "frames.count", "vision", "train.cutoff_len", "train.template", "train.seed")
    words = (*asked, *split, *frames, *base, "--prompt", "config/prompts/short_answer.txt", "--config")
    words += (part(*keys, "predict.prompt", "predict.max_new_tokens"), "--output-dir", "results/sft")
    add("build_sft", train, [script("build_sft", *words)], "split_questions", "join_frames", model)
    words = ("--dataset-dir", "results/sft", *frames, *base, "--config", part("train", "vision"))
    words += ("--work-dir", "work/train", "--adapter-dir", "results/adapter", "--log-dir", "results/train_log")
    add("train_adapter", train, [script("train_adapter", *words)], "build_sft", gpu=True)

    settings = part("predict", "vision", "train.template", "train.cutoff_len")
    parts = [f"{shard:04d}" for shard in range(config["predict"]["shards"])]
    for name in ("base", "tuned", "blind"):
        words = ("--model", name, *test, *frames, *base, *(adapter if name == "tuned" else ()))
        needs = ("build_sft", "train_adapter") if name == "tuned" else ("build_sft",)
        stem = f"results/predictions/shards/{name}"
        made = {number: f"predict/{name}/{number}" if len(parts) > 1 else f"predict/{name}" for number in parts}
        for number, step in made.items():  # one after the other: each wants the GPU
            out = ("--output", f"{stem}/{number}.jsonl", "--meta", f"{stem}/{number}.meta.json")
            end = ("--shard", number, "--config", settings, "--work-dir", "work/predict", *out)
            add(step, train, [script("predict", *words, *end)], *needs, gpu=True)
        words = ("--model", name, *test, "--shards-dir", "results/predictions/shards", "--config")
        words += (part("predict.shards"), "--output", f"results/predictions/{name}.jsonl")
        words += ("--meta", f"results/predictions/{name}.meta.json")
        add(f"join_predictions/{name}", light, [script("join_predictions", *words)], *made.values())
    out = ("--output", "results/predictions/majority.jsonl", "--meta", "results/predictions/majority.meta.json")
    add("predict_majority", light, [script("predict_majority", *asked, *split, *out)], "split_questions")
    for name in MODELS:
        words = ("--model", name, "--predictions", f"results/predictions/{name}.jsonl")
        words += ("--meta", f"results/predictions/{name}.meta.json", *asked, *split, "--config", part("score"))
        words += ("--output", f"results/metrics/{name}.json", "--rows", f"results/metrics/{name}.questions.jsonl")
        needs = "predict_majority" if name == "majority" else f"join_predictions/{name}"
        add(f"score/{name}", light, [script("score", *words)], needs)
    for name in ("base", "tuned"):
        words = ("--model", name, "--predictions", f"results/predictions/{name}.jsonl", *asked, *split, "--prompts")
        words += (f"{raw}/prompts/manifest.json", "--config", part("judge", "score", "deliver.llm_match"))
        words += ("--work-dir", "work/judge", "--output", f"results/metrics/llm_match_{name}.json")
        add(
            f"judge_answers/{name}",
            light,
            [script("judge_answers", *words)],
            f"join_predictions/{name}",
            "fetch_prompts",
        )
    words = ("--metrics-dir", "results/metrics", "--config", part("score"), "--output", "results/metrics.json")
    words += ("--comparison", "results/metrics/comparison.json")
    needs = [f"score/{name}" for name in MODELS] + [f"judge_answers/{name}" for name in ("base", "tuned")]
    add("compare_models", light, [script("compare_models", *words)], *needs)

    words = (*base, *adapter, "--config", part("merge.dtype", "merge.shard_gb", "train.template"))
    words += ("--work-dir", "work/merge", "--output-dir", "results/merged")
    add("merge_adapter", train, [script("merge_adapter", *words)], "train_adapter", gpu=True)
    settings = part("merge.dtype", "merge.tolerance", "merge.sample", "vision", "predict.max_new_tokens")
    words = (*base, *adapter, *merged, *test, *frames, "--config", settings, "--output", "results/merged/verify.json")
    add("verify_merge", train, [script("verify_merge", *words)], "merge_adapter", gpu=True)
    if cuda:
        words = (*merged, *test, "--budget", "results/sft/token_budget.json", "--config")
        words += (part("deliver.lmdeploy", "serve", "predict.dtype"), "--output", "results/serve/lmdeploy.json")
        add("bench_lmdeploy", serve, [script("bench_lmdeploy", *words)], "merge_adapter", gpu=True)
        words = ("--server", "lmdeploy", *test, "--predictions", "results/predictions/tuned.jsonl", "--config")
        words += (part("serve", "predict"), "--output", "results/serve/check_lmdeploy.json")
        server = ("scripts.serve", "--server", "lmdeploy")
        around = {"before": (*server, "--background", "true"), "after": (*server, "--stop")}
        needs = ("merge_adapter", "join_predictions/tuned")
        add("check_serving", serve, [script("check_serving", *words)], *needs, gpu=True, **around)
    return steps


def step_keys(steps: Sequence[Step], start: str) -> dict[str, str]:
    """A hash of each step: its commands, its code and the steps before it; equal hashes, equal outputs."""
    keys: dict[str, str] = {}
    for step in steps:
        modules = {words[0] for words in step.commands}
        code = {name: sha256_file(ROOT / name) for module in sorted(modules) for name in code_files(module, ROOT)}
        content = [step.commands, step.before, code, [keys[name] for name in step.needs], start]
        keys[step.name] = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:20]
    return keys


# ------------------------------------------------------------------------------------------------ raw data


def make_questions(seed: int = 7) -> list[dict]:
    """1,636 questions of 152 episodes in Open-EQA's form, for a host without its question file."""
    from scripts.lib import demo_scenes

    names = [f"hm3d-v0/{number:03d}-hm3d-space{number:04d}" for number in range(HM3D)]
    names += [f"scannet-v0/{number:03d}-scannet-scene{number:04d}_00" for number in range(SCANNET)]
    rows: list[dict] = []
    for number, episode in enumerate(names):
        count = QUESTIONS // len(names) + (number < QUESTIONS % len(names))
        asked = demo_scenes.make_questions(demo_scenes.make_scene(number), count, random.Random(seed + number))
        for place in range(count):
            row = asked[place % len(asked)]
            ident = f"{number:04d}{place:04d}"
            rows.append({**row, "question_id": ident, "episode_history": episode})
    return rows


def make_source(folder: Path, workers: int) -> dict:
    """Open-EQA's layout: its question file if this host has it, and rendered episodes at the real frame sizes.

    HM3D episodes are folders of PNG files, ScanNet's are .sens files.
    """
    real = Path(os.environ.get("OPENEQA_DATA") or ROOT.parent / "shared/data/openeqa") / QUESTIONS_FILE
    remove(folder)
    folder.mkdir(parents=True)
    if real.is_file():
        shutil.copyfile(real, folder / QUESTIONS_FILE)
    else:
        write_json(folder / QUESTIONS_FILE, make_questions())
    rows = read_json(folder / QUESTIONS_FILE)
    episodes = sorted({row["episode_history"] for row in rows})
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(render_episode, [folder] * len(episodes), episodes, range(len(episodes)), chunksize=2))
    return {"questions": len(rows), "episodes": len(episodes), "from": QUESTIONS_FILE if real.is_file() else "made"}


def render_episode(root: Path, episode: str, seed: int) -> None:
    """One episode: 8 pictures of a demo room at the source's own size, repeated to EPISODE_FRAMES."""
    from scripts.lib.demo_scenes import frame_times, make_scene, render_frame
    from scripts.lib.spaces import scan_of
    from scripts.lib.video import load_cv2
    from scripts.make_demo_episodes import sens_frame, sens_header, stored_zlib

    cv2 = load_cv2()
    cv2.setNumThreads(1)
    scene, scan = make_scene(seed), scan_of(episode)
    size = SCANNET_PX if scan else HM3D_PX
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 85]) if scan else (".png", [cv2.IMWRITE_PNG_COMPRESSION, 1])
    blobs = []
    for t in frame_times(DISTINCT):
        done, data = cv2.imencode(suffix, render_frame(scene, t, size)[:, :, ::-1], options)
        if not done:
            raise EqaError(f"{episode}: OpenCV could not encode a frame; reinstall opencv-python-headless")
        blobs.append(data.tobytes())
    if scan:
        file = root / f"scannet/scans/{scan}/{scan}.sens"
        if file.is_file():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        depth = stored_zlib(bytes(64))
        with file.open("wb") as stream:
            stream.write(sens_header(size, (8, 4), 0.9, EPISODE_FRAMES))
            for number in range(EPISODE_FRAMES):
                stream.write(sens_frame([0.0] * 16, number, blobs[number * DISTINCT // EPISODE_FRAMES], depth))
        return
    target = root / "frames" / episode
    target.mkdir(parents=True)
    for number in range(EPISODE_FRAMES):
        first = -(-(number * DISTINCT // EPISODE_FRAMES) * EPISODE_FRAMES // DISTINCT)
        name = target / f"{number:06d}-rgb.png"
        if number == first:
            name.write_bytes(blobs[number * DISTINCT // EPISODE_FRAMES])
        else:
            os.link(target / f"{first:06d}-rgb.png", name)


# ------------------------------------------------------------------------------------------------ running


class GpuWatch:
    """Highest memory in use on GPU 0 while the block runs, by nvidia-smi. Unit: MiB; 0 without a GPU."""

    def __init__(self) -> None:
        self.highest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while shutil.which("nvidia-smi"):
            used = nvidia("memory.used")
            self.highest = max(self.highest, int(used) if used.isdigit() else 0)
            if self._stop.wait(0.3):
                return

    def __enter__(self) -> GpuWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def nvidia(field_name: str) -> str:
    """One field of GPU 0 as nvidia-smi tells it; "" where it tells nothing."""
    query = ["nvidia-smi", f"--query-gpu={field_name}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


class Runner:
    """Runs steps in WORK with each environment's Python."""

    def __init__(self, work: Path, wheels: Path | None) -> None:
        self.work, self.wheels = work, wheels
        self.workers = len(os.sched_getaffinity(0))
        self.children: list[subprocess.Popen] = []

    def python(self, environment: str) -> list[str]:
        """How to start Python in an environment."""
        if self.wheels:
            return [sys.executable]
        uv = shutil.which("uv") or str(ROOT / ".venv/bin/uv")
        return [uv, "run", "--frozen", "--no-sync", "--project", str(ROOT / environment), "python"]

    def variables(self, environment: str) -> dict[str, str]:
        """Environment variables of a step."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")}
        path = [str(ROOT)]
        if self.wheels:
            path.append(str(self.work / "site" / WHEEL_SETS[environment]))
            # a host without an index: no library may ask one, and what the wheel folders leave out is the host's own,
            # which LLaMA-Factory's check of versions may not know
            env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
            env.setdefault("OMP_NUM_THREADS", "1")
        return env | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, [env.get("PYTHONPATH")])])}

    def call(self, environment: str, words: Sequence[str], log: Path) -> tuple[int, int, str]:
        """(exit code, peak MiB of its largest process, stdout) of one command."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file, (log.with_suffix(".out")).open("wb+") as out:
            file.write(f"$ python -m {' '.join(words)}\n".encode())
            file.flush()
            child = subprocess.Popen(
                [*self.python(environment), "-m", *words],
                cwd=self.work,
                env=self.variables(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=file,
            )
            self.children.append(child)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            self.children.remove(child)
            out.seek(0)
            text = out.read().decode("utf-8", "replace")
            file.write(text.encode())
        remove(log.with_suffix(".out"))
        return child.returncode, usage.ru_maxrss // 1024, text

    def run(self, step: Step) -> dict:
        """Run a step; its record, with status "ok" or "failed"."""
        log = self.work / f"logs/{step.name.replace('/', '-')}.log"
        remove(log)
        record: dict[str, Any] = {"step": step.name, "environment": step.environment}
        with GpuWatch() as gpu:
            started = time.monotonic()
            codes: list[tuple[int, int, str]] = []
            try:
                if step.before:
                    codes.append(self.call(step.environment, step.before, log))
                    record["before_s"] = round(time.monotonic() - started, 2)
                if not codes or codes[0][0] == 0:
                    logs = [log.with_name(f"{log.stem}-{i}.log") if i else log for i in range(len(step.commands))]
                    with ThreadPoolExecutor(self.workers) as pool:
                        jobs = [
                            pool.submit(self.call, step.environment, words, file)
                            for words, file in zip(step.commands, logs, strict=True)
                        ]
                        codes += [job.result() for job in jobs]
            finally:
                if step.after:
                    code, _, text = self.call(step.environment, step.after, log)
                    record["after"] = facts_of(text)
                    if codes and codes[0][0] == 0:
                        codes.append((code, 0, ""))
            record["seconds"] = round(time.monotonic() - started, 2)
        record |= {"peak_mb": max(code[1] for code in codes), "gpu_mb": gpu.highest if step.gpu else 0}
        record["status"] = "ok" if all(code[0] == 0 for code in codes) else "failed"
        if record["status"] == "failed":
            record["why"] = last_line(log)
        record["facts"] = facts_of(codes[1 if step.before and len(codes) > 1 else 0][2]) if len(codes) < 4 else {}
        return record

    def stop(self) -> None:
        """End whatever still runs."""
        for child in self.children:
            child.send_signal(signal.SIGTERM)


def facts_of(stdout: str) -> dict:
    """The JSON line that a script prints last; {} without one."""
    for line in reversed(stdout.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                return {}
    return {}


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("{", "$"))]
    return (told or ["no message"])[-1][:300]


def install(wheels: Path, work: Path, python: str) -> None:
    """Each wheel folder into a folder of its own under WORK/site, by pip without an index.

    Raises:
        EqaError: a folder without wheels, or pip fails.
    """
    known = set(WHEEL_SETS.values())
    folders = {folder.name: folder for folder in wheels.iterdir() if folder.is_dir()}
    if known.isdisjoint(folders):
        raise EqaError(f"{wheels}: none of the folders {', '.join(sorted(known))}; make them by tests.gpu.pack_wheels")

    def one(folder: Path) -> None:
        names = sorted(folder.glob("*.whl"))
        stamp = canonical_json([[name.name, name.stat().st_size] for name in names])
        target = work / "site" / folder.name
        mark = target.with_suffix(".json")
        if not names:
            raise EqaError(f"{folder}: no wheel in it; make it by tests.gpu.pack_wheels")
        if mark.is_file() and mark.read_text() == stamp:
            return
        remove(target)
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target)]
        done = subprocess.run(
            [python, "-m", "pip", "install", *options, *map(str, names)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EqaError(f"{folder}: pip does not install it here: {why}; pack it for this Python")
        mark.write_text(stamp)

    found = [folders[name] for name in sorted(folders.keys() & {*known, ZERO2_WHEELS})]
    with ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(one, found))


# ------------------------------------------------------------------------------------------------ recipe and sums


def recipe(preset: str, changes: Mapping[str, object]) -> dict:
    """A preset with some keys changed.

    Raises:
        EqaError: no such preset or key.
    """
    config = load_yaml(ROOT / f"config/presets/{preset}.yaml")
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name not in config.get(section, {}):
            raise EqaError(f"{key}: config/presets/{preset}.yaml has no such key; correct it")
        config[section][name] = value
    return config


def whole_steps(config: Mapping, samples: int) -> int:
    """Optimizer steps of the whole training."""
    train = config["train"]
    if train["max_steps"] > 0:
        return train["max_steps"]
    batches = math.ceil(samples / train["batch_size"])
    return math.ceil(math.ceil(batches / train["gradient_accumulation"]) * train["epochs"])


def training_times(run_dir: Path, speed: Mapping) -> dict:
    """Steps that ran, seconds of one and of a validation, from trainer_state.json and speed.json.

    Saving counts into the steps, since the recipe saves too.
    """
    state = read_json(run_dir / "trainer_state.json")
    validations = [row["eval_runtime"] for row in state["log_history"] if "eval_runtime" in row]
    rate, ran = speed["steps_per_s"], state["global_step"]
    # steps_per_s is over all but the first step, validations in between
    warm_s = (ran - 1) / rate if rate else speed["seconds"]
    step_s = max(0.0, warm_s - sum(validations)) / max(1, ran - 1)
    return {
        "steps_run": ran,
        "step_s": round(step_s, 4),
        "validation_s": round(sum(validations) / max(1, len(validations)), 3),
        "torch_peak_mb": speed["peak_gpu_mb"],
    }


def whole_training_s(seconds: float, times: Mapping, whole: int, eval_steps: int) -> float:
    """Seconds of the whole training out of those of a few steps.

    Args:
        seconds: of the step that ran, start and one validation included.
        times: of `training_times`.
        whole: optimizer steps of the recipe.
        eval_steps: config train.eval_steps; the last step is validated too.
    """
    done, wanted = (math.ceil(steps / eval_steps) for steps in (times["steps_run"], whole))
    more = (whole - times["steps_run"]) * times["step_s"] + (wanted - done) * times["validation_s"]
    return round(seconds + max(0.0, more), 1)


def extrapolate(record: dict, work: Path, config: Mapping, full: Mapping) -> None:
    """Add "whole_s" to a record: seconds of the step with the preset's own steps and sample."""
    if record["status"] != "ok":
        return
    record["whole_s"] = record["seconds"]
    if record["step"] == "train_adapter":
        run_dir = max((work / "work/train").glob("*/trainer_state.json"), key=lambda path: path.stat().st_mtime).parent
        times = training_times(run_dir, read_json(work / "results/train_log/speed.json"))
        whole = whole_steps(full, record["facts"]["train"])
        record["facts"] |= times | {"steps_whole": whole, "epochs": full["train"]["epochs"]}
        record["whole_s"] = whole_training_s(record["seconds"], times, whole, full["train"]["eval_steps"])
    elif record["step"] == "check_serving":
        answers = read_json(work / "results/serve/check_lmdeploy.json")["answers"]
        said = {row["predicted"] for row in answers}
        record["facts"] |= {"different": len(said), "empty": sum(not row["predicted"] for row in answers)}
    elif record["step"] == "verify_merge":
        share = full["merge"]["sample"] / config["merge"]["sample"]
        record["whole_s"] = round(record["seconds"] * max(1.0, share), 1)


# ------------------------------------------------------------------------------------------------ page


def clock(seconds: float) -> str:
    """A duration as people read it: 4.2 s, 3 min 05 s, 2 h 27 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def table(record: Mapping) -> list[str]:
    """The steps as Markdown."""
    lines = ["| step | measured | in full | memory | GPU memory | what |", "|---|---:|---:|---:|---:|---|"]
    for row in record["steps"]:
        if row["status"] == "not run":
            lines.append(f"| {row['step']} | not run | | | | {row['why']} |")
            continue
        whole = clock(row["whole_s"]) if "whole_s" in row else ""
        gpu = f"{row['gpu_mb'] / 1024:.1f} GiB" if row["gpu_mb"] else ""
        what = remark(row) if row["status"] == "ok" else f"failed: {row['why']}"
        memory = f"{row['peak_mb'] / 1024:.1f} GiB"
        lines.append(f"| {row['step']} | {clock(row['seconds'])} | {whole} | {memory} | {gpu} | {what} |")
    return lines


def remark(row: Mapping) -> str:
    """What a step says about itself, in a few words."""
    facts, name = row.get("facts", {}), row["step"]
    if name == "train_adapter":
        return (
            f"{facts['steps_run']} of {facts['steps_whole']} steps, {facts['step_s']:.2f} s each; {facts['train']} "
            f"samples, {facts['train_questions']} questions; torch took {facts['torch_peak_mb'] / 1024:.1f} GiB"
        )
    if name.startswith("predict/"):
        return f"{facts['count']} questions"
    if name == "verify_merge":
        return (
            f"{facts['identical_answers']} of {facts['sample']} answers identical, logits within "
            f"{facts['largest_logit_difference']:.2g}"
        )
    if name == "bench_lmdeploy":
        return f"{facts['requests_per_s']} requests/s with {facts['pictures']} pictures, batch {facts['batch']}"
    if name == "check_serving":
        kinds = f"{facts['different']} different ones, {facts['empty']} empty; " if "different" in facts else ""
        return (
            f"{facts['agreement'] * 100:.0f} % of {facts['questions']} answers as predicted; {kinds}"
            f"the server was ready after {clock(row['before_s'])}"
        )
    if name == "build_sft":
        return f"longest sample {facts['longest']} of {facts['cutoff_len']} tokens"
    if name == "make_source":
        return f"{facts['episodes']} episodes, {facts['questions']} questions"
    return ""


def against_tutorial(record: Mapping) -> list[str]:
    """What the tutorial's hours on a T4 stand against, as Markdown; [] where a step is missing."""
    steps = {row["step"]: row for row in record["steps"]}
    named = {
        name: [row for key, row in steps.items() if key.startswith(f"predict/{name}")] for name in ("base", "tuned")
    }
    used = [row for rows in named.values() for row in rows] + [steps.get("train_adapter", {})]
    if not all(named.values()) or any(row.get("status") != "ok" for row in used):
        return []
    old, train_s = record["tutorial"], steps["train_adapter"]["whole_s"]
    epochs = steps["train_adapter"]["facts"]["epochs"]
    # the longer of the two: a model that ends its answers early has less to do
    asked = sum(row["facts"]["count"] for row in named["tuned"])
    longer = max(sum(row["whole_s"] for row in rows) for rows in named.values())
    predict_s = longer * old["predict_questions"] / asked
    rows = [
        (f"training, 3 epochs there and {epochs:g} here", old["train_s"], train_s),
        (f"answers to {old['predict_questions']} test questions", old["predict_s"], predict_s),
        ("both", old["train_s"] + old["predict_s"], train_s + predict_s),
    ]
    lines = [f"| | tutorial, one T4 | here, {record['device']} | ratio |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {clock(a)} | {clock(b)} | {a / b:.0f} |" for name, a, b in rows]
    return lines


def since_then(record: Mapping, config: Mapping) -> list[str]:
    """What training would take with the preset's present number of steps, as Markdown; [] where it is that of the run.

    Args:
        record: one of bench/results/rehearsal-*.json.
        config: the preset as it is now.
    """
    row = next((row for row in record["steps"] if row["step"] == "train_adapter" and row["status"] == "ok"), None)
    if row is None:
        return []
    facts, train = row["facts"], config["train"]
    steps = whole_steps(config, facts["train"])
    if steps == facts["steps_whole"]:
        return []
    seconds = whole_training_s(row["seconds"], facts, steps, train["eval_steps"])
    total = record["whole_s"] - row["whole_s"] + seconds
    more = steps - facts["steps_run"]
    validations = round((seconds - row["seconds"] - more * facts["step_s"]) / facts["validation_s"])
    return [
        f'"In full" is {facts["epochs"]:g} epochs of training, {facts["steps_whole"]} steps. The preset has '
        f"{train['epochs']:g} epochs, {steps} steps, since then, and nobody has run it: by arithmetic train_adapter takes "
        f"{row['seconds']:.0f} s + {more} more steps x {facts['step_s']:.2f} s + {validations} more validations x "
        f"{facts['validation_s']:.1f} s = {clock(seconds)}, and all steps {clock(total)}.",
        "",
    ]


def page(records: Sequence[Mapping]) -> str:
    """docs/rehearsal.md."""
    lines = ["# Rehearsal of the whole recipe", ""]
    lines += ["Made by `python -m bench.rehearse --page docs/rehearsal.md` from `bench/results/rehearsal-*.json`.", ""]
    lines += [
        "`make rehearse` runs every step of a preset with its own parameters, random weights in the exact shape of",
        "Qwen3-VL-2B and rendered episodes at Open-EQA's frame sizes and counts. Scores of such a model mean nothing and are",
        "not shown; time and memory are those of the real one, but for answers: untrained random weights hardly ever choose",
        "the end token, so each has `predict.max_new_tokens` tokens, and prediction takes longer than with the real model.",
        "",
        '"measured" is what the step took, start of Python and loading of the model included; "in full" is the same with the',
        "number of training steps and merge samples that the preset had at that time, where fewer ran: arithmetic, not a",
        "run. Memory is that of the step's largest process; GPU memory is what the whole card had in use.",
        "",
        "<!-- not tested: needs a CUDA GPU -->",
        "```sh",
        "make rehearse                                   # one GPU; goes on where an interrupted run stopped",
        "```",
        "",
        "On a GPU host without a package index, pack the wheels elsewhere and carry the checkout and the folder over:",
        "",
        "<!-- not tested: needs a CUDA GPU -->",
        "```sh",
        "python -m tests.gpu.pack_wheels --output wheels --python 3.12 --have have.txt   # have.txt: `pip list --format=freeze` there",
        "python3 -m bench.rehearse --wheels wheels                                       # on the GPU host",
        "bash tests/gpu/offline.sh wheels work/rehearsal                                 # the same, then the GPU tests",
        "```",
        "",
        "Without a GPU the same steps run with the demo's model in about two minutes, LMDeploy left out:",
        "",
        "<!-- tested: tests/e2e/test_rehearsal.py -->",
        "```sh",
        "python -m bench.rehearse --device cpu --small",
        "```",
        "",
    ]
    for record in records:
        counts = record["counts"]
        lines += [f"## {record['device']}, preset {record['preset']}", ""]
        lines += [f"{record['machine']}; {counts['episodes']} episodes, {counts['questions']} questions.", ""]
        lines += [*table(record), ""]
        lines += [f"All steps: {clock(record['total_s'])} measured, {clock(record['whole_s'])} in full.", ""]
        lines += since_then(record, load_yaml(ROOT / f"config/presets/{record['preset']}.yaml"))
        if versus := against_tutorial(record):
            lines += [*versus, ""]
            lines += ["The tutorial trains on questions one by one and counts no start; here the start counts.", ""]
        lines += [word for note in record.get("notes", []) for word in (note, "")]
        lines += ["What differs from the preset:", ""]
        lines += [f"* `{key}`: {value}" for key, value in sorted(record["changes"].items())]
        lines += [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def write_page(output: Path) -> dict:
    """The page, from every committed result."""
    files = sorted(RESULTS.glob("rehearsal-*.json"))
    write_text(output, page([read_json(file) for file in files]))
    return {"results": [file.name for file in files]}


# ------------------------------------------------------------------------------------------------ main


def own_changes(args: argparse.Namespace, work: Path) -> tuple[str, dict[str, object], dict[str, str]]:
    """Preset, changed keys that ran, and why each is changed."""
    if args.small:
        changes: dict[str, object] = dict(SMALL)
        return args.preset or "demo", changes, dict.fromkeys(changes, "a smoke test: little of everything")
    changes = {"data.source": str(work / "source")}
    reasons = {"data.source": "rendered episodes"}
    changes |= {"serve.agreement": 0.0}
    reasons["serve.agreement"] = "0: random weights choose between near ties; the share is told, not judged"
    # a step of it takes as long; at the recipe's rate random weights learn to end each answer at once (seen on an H100)
    changes["train.learning_rate"] = SLOW
    reasons["train.learning_rate"] = f"{SLOW:g}: so that answers stay different and as long as they may be"
    if args.train_steps:
        changes["train.max_steps"] = args.train_steps
        reasons["train.max_steps"] = f"{args.train_steps}, the rest is extrapolated"
    if args.verify_sample:
        changes["merge.sample"] = args.verify_sample
        reasons["merge.sample"] = f"{args.verify_sample}, the rest is extrapolated"
    return args.preset or "openeqa-80gb", changes, reasons


def rehearse(args: argparse.Namespace) -> dict:
    """Run what is left to run; write the result.

    Raises:
        EqaError: no CUDA device, bad wheels.
    """
    work = args.work_dir.resolve()
    cuda = args.device == "cuda"
    if cuda and not nvidia("name"):
        raise EqaError("--device cuda: nvidia-smi shows no GPU here; use --device cpu --small")
    if not cuda and not args.small:
        raise EqaError("--device cpu: the 2B shape takes days without a GPU; add --small")
    preset, changes, reasons = own_changes(args, work)
    config, full = recipe(preset, changes), recipe(preset, {})
    work.mkdir(parents=True, exist_ok=True)
    remove(work / "config")
    shutil.copytree(ROOT / "config", work / "config")
    write_text(work / "config/config.yaml", json.dumps(config))  # JSON is YAML; serve reads it
    runner = Runner(work, args.wheels)
    if args.wheels:
        install(args.wheels.resolve(), work, sys.executable)
    else:
        from scripts.prepare_environments import prepare

        prepare(ROOT, [".", "envs/train", *(["envs/serve"] if cuda else [])])
    records = []
    source: dict = {}
    if not args.small:
        source = run_source(work, runner.workers)
        records.append(source)
    steps = plan(config, cuda)
    keys = step_keys(steps, canonical_json([source.get("facts", {}).get("key", ""), args.device]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a step has started is ended first
    ended = time.monotonic() + args.limit_s if args.limit_s else math.inf
    good: set[str] = set()
    ran = 0
    try:
        for step in steps:
            file = work / f"steps/{step.name.replace('/', '-')}.json"
            record = read_json(file) if file.is_file() else {}
            if record.get("key") != keys[step.name] or record.get("status") != "ok":
                lacking = [name for name in step.needs if name not in good]
                if lacking or time.monotonic() > ended:
                    why = f"{lacking[0]} did not end well" if lacking else f"--limit-s {args.limit_s:g} was over"
                    records.append({"step": step.name, "status": "not run", "why": why})
                    continue
                print(f"rehearse: {step.name}", file=sys.stderr, flush=True)
                record = runner.run(step) | {"key": keys[step.name]}
                extrapolate(record, work, config, full)
                write_json(file, record)
                ran += 1
                print(f"rehearse: {step.name}: {record['status']}, {record['seconds']} s", file=sys.stderr, flush=True)
            if record["status"] == "ok":
                good.add(step.name)
            records.append(record)
    finally:
        runner.stop()
    result = summary(records, preset, reasons | ({} if args.small else FIXED_CHANGES), work, cuda)
    write_json(work / "rehearsal.json", result)
    if args.output:
        write_json(args.output, result)
    print("\n".join(table(result)), file=sys.stderr)
    bad = [row["step"] for row in records if row["status"] != "ok"]
    if bad:
        raise EqaError(f"{len(bad)} of {len(records)} steps did not end well, {bad[0]} first; see {work / 'logs'}")
    return {"steps": len(records), "ran": ran, "total_s": result["total_s"], "whole_s": result["whole_s"]}


FIXED_CHANGES = {
    "models/base": "random weights in the 2B shape by bench.make_2b, in place of fetch_base_model",
    "left out": "export_gguf, prepare_ollama, import_ollama, the report: they need no GPU, and the demo's run shows them",
}


def run_source(work: Path, workers: int) -> dict:
    """Render the raw data, unless it is there."""
    file = work / "steps/make_source.json"
    code = [sha256_file(ROOT / name) for name in ("bench/rehearse.py", *code_files("scripts.lib.demo_scenes", ROOT))]
    key = hashlib.sha256(canonical_json(code).encode()).hexdigest()[:20]
    if file.is_file() and (record := read_json(file)).get("key") == key and (work / "source").is_dir():
        return record
    print("rehearse: make_source", file=sys.stderr, flush=True)
    started = time.monotonic()
    facts = make_source(work / "source", workers)
    seconds = round(time.monotonic() - started, 2)
    record = {"step": "make_source", "status": "ok", "seconds": seconds, "whole_s": seconds, "key": key}
    record |= {"environment": ".", "peak_mb": 0, "gpu_mb": 0, "facts": {**facts, "key": key}}
    write_json(file, record)
    return record


def summary(records: list[dict], preset: str, changes: Mapping[str, str], work: Path, cuda: bool) -> dict:
    """The result that is kept."""
    questions = work / "results/index/questions.json"
    rows = read_json(questions)["questions"] if questions.is_file() else []
    timed = [row for row in records if "seconds" in row and row["step"] != "make_source"]
    name = nvidia("name") if cuda else ""
    cpu = machine().partition(", ")[0] if not name else f"{machine().partition(', ')[0]}, {name}"
    return {
        "bench": "rehearsal",
        "preset": preset,
        "device": name or "CPU",
        "machine": cpu,
        "counts": {"questions": len(rows), "episodes": len({row["episode_history"] for row in rows})},
        "changes": dict(changes),
        "steps": records,
        "total_s": round(sum(row["seconds"] for row in timed), 1),
        "whole_s": round(sum(row.get("whole_s", row["seconds"]) for row in timed), 1),
        "tutorial": TUTORIAL,
        "versions": versions(work) if (work / "results/train_log/speed.json").is_file() else {},
    }


def versions(work: Path) -> dict:
    """Libraries that trained and served."""
    found = dict(read_json(work / "results/train_log/speed.json")["versions"])
    served = work / "results/serve/lmdeploy.json"
    if served.is_file():
        found["serving"] = read_json(served).get("versions", {})
    return found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehearse", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--preset", help="of config/presets; openeqa-80gb, or demo with --small")
    parser.add_argument("--small", action="store_true", help="the demo's model and episodes, little of everything")
    parser.add_argument("--train-steps", type=int, default=0, help="so many optimizer steps; 0: all of the recipe's")
    parser.add_argument("--verify-sample", type=int, default=0, help="so many questions for verify_merge; 0: all")
    parser.add_argument(
        "--wheels", type=path_argument, help="folders light, train, serve with wheels; no index is asked"
    )
    parser.add_argument("--work-dir", type=path_argument, default=ROOT / "work/rehearsal", help="kept, to go on from")
    parser.add_argument("--limit-s", type=float, default=0.0, help="start no step after so many seconds; 0: no limit")
    parser.add_argument("--output", type=path_argument, help="the result, beside WORK_DIR/rehearsal.json")
    parser.add_argument("--page", type=path_argument, help="only write the page from bench/results/rehearsal-*.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("rehearse", build_parser, lambda a: write_page(a.page) if a.page else rehearse(a), argv)


if __name__ == "__main__":
    sys.exit(main())
