"""Training: plain LLaMA-Factory with the usual tutorial's settings against scripts.train_adapter.   By hand:

    uv run --frozen --project envs/train python -m bench.train_throughput                       # CPU: the demo's model
    python -m bench.train_throughput --model /tmp/qwen3-vl-2b --preset openeqa-80gb             # one CUDA GPU
    ... --also "openeqa-80gb train.gradient_checkpointing=true gpu_gib=24" --also "openeqa-t4 gpu_gib=14.6"
    ... --gpus 1 2                                                                              # each recipe on one and on two

Without --model, or where its folder does not exist, a model with random weights is made: on a GPU in the exact shape of
Qwen3-VL-2B. Both sides see the same episodes, 8 frames of the same size and the same answer tokens under the loss, in
4 bits with double quantization. The baseline has one question a sample, batch 2 x 4, no loader workers, as the usual
recipe says, and is started by llamafactory's own command; the cutoff is raised and the quantization method corrected,
since it would not train otherwise. Ours runs through train_adapter with a preset's recipe; --set changes keys of it.

Questions a second at equal epochs, from the wall times that both sides write to TensorBoard after the first steps, so
imports, tokenizing and loading count on neither side. What ours spends before the first step on features of the vision
tower is counted, shared among the preset's epochs. Each --also is a further recipe of ours in the same run, against the
same baseline; gpu_gib holds one to a smaller card's memory. With --gpus each recipe of ours trains on each of these numbers
of GPUs (on the CPU: processes), by torchrun where there is more than one, with the same samples a step; the first recipe
is then one that gives two GPUs as many samples at once as one, and has no dropout, so that losses can be compared step by
step. Optimizer updates an epoch are printed beside: a
conversation of an episode holds all its questions, so there are fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.lib import drawn_picture, machine
from scripts.lib import sharegpt
from scripts.lib.cli import peak_mb
from scripts.lib.files import file_record, sha256_file, write_json, write_manifest

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 8
EPOCH_QUESTIONS = 1202  # of Open-EQA's training part
SHOWN_KEYS = (
    "batch_size",
    "gradient_accumulation",
    "gradient_checkpointing",
    "answer_only_loss",
    "vision_cache_gb",
    "precision",
    "dataloader_workers",
    "extra",
)
WARM_STEPS = {"baseline": 3, "ours": 3}  # left out: memory is found, kernels are chosen
# LoRA dropout draws other numbers on each GPU; each step's loss is kept
COMPARED = ("train.gradient_accumulation={gpus}", "train.lora_dropout=0.0", "train.logging_steps=1")
LIMITED = (
    "import sys, torch; torch.cuda.set_per_process_memory_fraction("
    "{gib} * 2**30 / torch.cuda.get_device_properties(0).total_memory); "
    "from scripts import train_adapter; sys.exit(train_adapter.main(sys.argv[1:]))"
)
# for torchrun's children, which read it from a folder on their path before anything else
LIMITED_CHILD = """
import os
if "LOCAL_RANK" in os.environ:
    import torch
    here = int(os.environ["LOCAL_RANK"])
    whole = torch.cuda.get_device_properties(here).total_memory
    torch.cuda.set_per_process_memory_fraction({gib} * 2**30 / whole, here)
"""
USUAL = {  # the tutorial's training arguments, 512x288 frames let through whole
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "all",
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "flash_attn": "auto",
    "quantization_bit": 4,
    "quantization_method": "bnb",  # the tutorial's "bitsandbytes" would train without quantization
    "double_quantization": True,
    "template": "qwen3_vl_nothink",
    "cutoff_len": 4096,
    "overwrite_cache": True,
    "preprocessing_num_workers": 8,
    "save_steps": 100000,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 5.0e-5,
    "lr_scheduler_type": "cosine",
    "bf16": True,
    "optim": "adamw_torch",
    "report_to": "tensorboard",
    "freeze_multi_modal_projector": True,
    "freeze_vision_tower": True,
    "image_min_pixels": 1024,
    "logging_steps": 1,
    "disable_tqdm": True,
}


# ------------------------------------------------------------------------------------------------ data and model


def question(number: int) -> str:
    """A question of about as many tokens as Open-EQA's."""
    return f"What is to the left of thing number {number} in this room?"


def make_data(folder: Path, episodes: int, questions: int, size: tuple[int, int]) -> None:
    """results/frames; single/ with one question a sample; together/ with one conversation an episode."""
    dice = random.Random(7)
    prompt = (ROOT / "config/prompts/short_answer.txt").read_text(encoding="utf-8")
    rows: dict[str, list] = {"single": [], "together": []}
    frames = folder / "frames"
    for number in range(episodes):
        episode = f"bench-v0/{number:04d}-room{number}"
        names = [f"{episode}/{i:03d}.jpg" for i in range(FRAMES)]
        for name in names:
            (frames / name).parent.mkdir(parents=True, exist_ok=True)
            drawn_picture(dice, size, boxes=40).save(frames / name, quality=95)
        turns = [(f"{number:04d}-{k:02d}", question(k), f"the red chair {k}") for k in range(questions)]
        rows["together"].append(sharegpt.sample(turns, prompt, names, episode))
        rows["single"] += [sharegpt.sample([turn], prompt, names, episode) for turn in turns]
    for name, samples in rows.items():
        write_json(folder / name / "train.json", samples)
        write_json(folder / name / "val.json", samples[:1])
        write_json(folder / name / "dataset_info.json", sharegpt.dataset_info(("train", "val")))
    listed = {p.relative_to(frames).as_posix(): file_record(p) for p in sorted(frames.rglob("*.jpg"))}
    write_json(frames / "manifest.json", {"files": listed, "episodes": {}})


def make_model(folder: Path, real: bool, dtype: str = "float32") -> None:
    """Random weights: the demo's shape in `dtype`, or Qwen3-VL-2B's with its own token ids, in bfloat16."""
    import torch

    from scripts.lib import tiny_qwen

    # words of prompt and questions become single tokens, as in the real vocabulary
    prompt = (ROOT / "config/prompts/short_answer.txt").read_text(encoding="utf-8")
    texts = [prompt.replace("{question}", question(k)) + f" user assistant the red chair {k}" for k in range(100)]
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if real:
        tokenizer = tiny_qwen.make_tokenizer(texts, 900, tiny_qwen.REAL_FIRST_ADDED_ID)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = tiny_qwen.make_model(tiny_qwen.real_2b_config(tokenizer), 7, torch.bfloat16, device)
        processor = tiny_qwen.make_processor(tokenizer, 65536)
    else:
        tokenizer = tiny_qwen.make_tokenizer(texts, 900)
        model = tiny_qwen.make_model(tiny_qwen.demo_config(tokenizer), 7).to(getattr(torch, dtype))
        processor = tiny_qwen.make_processor(tokenizer)
    print(f"model: {tiny_qwen.count_parameters(model):,} parameters", file=sys.stderr)
    tiny_qwen.save_base(part, model.to("cpu"), processor)
    write_manifest(part, {"name": "random", "source": "demo", "parameters": tiny_qwen.count_parameters(model)})
    part.replace(folder)


# ------------------------------------------------------------------------------------------------ the two sides


def run_baseline(work: Path, model: Path, data: Path, steps: int, pixels: int, cpu: bool) -> dict:
    """llamafactory-cli train, as a child."""
    args = USUAL | {"model_name_or_path": str(model), "dataset": "openeqa_train", "dataset_dir": str(data / "single")}
    args |= {"media_dir": str(data / "frames"), "output_dir": str(work / "baseline"), "max_steps": steps}
    args |= {"image_max_pixels": pixels, "preprocessing_num_workers": min(8, os.cpu_count() or 1)}
    if cpu:
        args["use_cpu"] = True
    (work / "baseline.yaml").write_text(yaml.safe_dump(args))
    peaks = _call(
        ["-m", "llamafactory.cli", "train", str(work / "baseline.yaml")],
        work / "baseline.log",
        {"TENSORBOARD_LOGGING_DIR": str(work / "tb_baseline")},
    )
    return _measured(work / "tb_baseline", "baseline", 8, 1) | {"gpu_mb": max(peaks)}


def run_ours(
    work: Path,
    model: Path,
    data: Path,
    steps: int,
    config: Mapping,
    questions: int,
    gpu_gib: float | None = None,
    gpus: int = 1,
) -> dict:
    """scripts.train_adapter, as a child, on so many GPUs, each of which may be held to `gpu_gib` of memory."""
    train = config["train"] | {"max_steps": steps, "save_steps": 100000, "eval_steps": 100000}
    train["cutoff_len"] = USUAL[
        "cutoff_len"
    ]  # no padding up to it, so no cost; eleven turns fit whatever the tokenizer
    line = [
        "--dataset-dir",
        data / "together",
        "--frames",
        data / "frames/manifest.json",
        "--base",
        model / "manifest.json",
    ]
    line += ["--config", json.dumps({"train": train, "vision": config["vision"]}), "--work-dir", work / "train"]
    line += ["--adapter-dir", work / "adapter", "--log-dir", work / "train_log"]
    start = ["-m", "scripts.train_adapter"]
    environ = {"EQA_TRAIN_PROCESSES": str(gpus)}
    if gpu_gib and gpus == 1:
        start = ["-c", LIMITED.format(gib=gpu_gib)]
    elif gpu_gib:
        (work / "limit").mkdir(exist_ok=True)
        (work / "limit/sitecustomize.py").write_text(LIMITED_CHILD.format(gib=gpu_gib))
        environ["PYTHONPATH"] = str(work / "limit")
    peaks = _call([*start, *map(str, line)], work / "ours.log", environ, gpus)
    samples = train["batch_size"] * train["gradient_accumulation"]
    speed = json.loads((work / "train_log/speed.json").read_text())
    found = _measured(work / "train_log/tensorboard", "ours", samples, questions)
    cache = speed["vision_cache"] or {"seconds": 0.0, "mb": 0.0}
    asked = train["epochs"] * len(json.loads((data / "together/train.json").read_text())) * questions
    found["steady"] = found["questions_per_s"]
    found["questions_per_s"] = asked / (cache["seconds"] + asked / found["steady"])
    found |= {"vision_cache_s": cache["seconds"], "vision_cache_mb": cache["mb"]}
    if speed["devices"] != gpus:
        raise SystemExit(
            f"--gpus {gpus}: {speed['devices']} were used, since a step of {samples} samples divides no further; "
            "set train.gradient_accumulation to a multiple"
        )
    each = {"gpu_mb_each": peaks, "torch_peak_mb_each": speed["peak_gpu_mb_each"]}
    return found | {
        "gpu_mb": max(peaks),
        "torch_peak_mb": speed["peak_gpu_mb"],
        "questions_a_step": samples * questions,
        **each,
    }


def chosen_gpus(count: int, environ: Mapping[str, str]) -> str:
    """CUDA_VISIBLE_DEVICES of a run on `count` GPUs: the first of what is visible now, by number or UUID.

    Raises:
        SystemExit: fewer are visible.
    """
    names = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = names or [str(number) for number in range(count)]
    if len(names) < count:
        raise SystemExit(f"--gpus {count}: CUDA_VISIBLE_DEVICES={','.join(names)} shows {len(names)}; show more")
    return ",".join(names[:count])


def _call(arguments: Sequence[str], log: Path, environ: Mapping[str, str], gpus: int = 1) -> list[int]:
    """Run python with `arguments` on so many GPUs; the most memory in use meanwhile on each, in MiB, 0 without a GPU."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **environ}
    path = [environ.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    env["CUDA_VISIBLE_DEVICES"] = chosen_gpus(gpus, os.environ)
    env.setdefault("OMP_NUM_THREADS", "1")
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    peaks, done = [0] * gpus, threading.Event()

    def watch() -> None:
        look = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        look += [f"--id={env['CUDA_VISIBLE_DEVICES']}"]
        while shutil.which("nvidia-smi") and not done.wait(0.2):
            lines = subprocess.run(look, capture_output=True, text=True, check=False).stdout.split()
            if len(lines) == gpus and all(line.isdigit() for line in lines):
                peaks[:] = map(max, peaks, map(int, lines))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with log.open("w") as file:
            code = subprocess.run(
                [sys.executable, *arguments], env=env, stdout=file, stderr=file, check=False
            ).returncode
    finally:
        done.set()
        thread.join()
    if code:
        raise SystemExit(
            f"{' '.join(arguments[:2])} ended with {code}:\n" + "\n".join(log.read_text().splitlines()[-25:])
        )
    return peaks


def _measured(events: Path, side: str, samples: int, questions: int) -> dict:
    """Questions a second between the first warm step and the last, from TensorBoard's wall times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(events), size_guidance={"scalars": 0})
    reader.Reload()
    points = sorted((event.step, event.wall_time, event.value) for event in reader.Scalars("train/loss"))
    first = next(point for point in points if point[0] >= WARM_STEPS[side])
    seconds, steps = points[-1][1] - first[1], points[-1][0] - first[0]
    if not steps:
        raise SystemExit(f"{events}: nothing was logged after step {first[0]}; give more --steps or --baseline-steps")
    return {
        "questions_per_s": steps * samples * questions / seconds,
        "step_s": seconds / steps,
        "steps": steps,
        "loss": points[-1][2],
        "losses": [round(point[2], 5) for point in points],
    }


# ------------------------------------------------------------------------------------------------ main


@dataclass(frozen=True)
class Variant:
    """One recipe of ours."""

    name: str
    config: Mapping
    gpu_gib: float | None  # None: all that the card has


def variant(text: str) -> Variant:
    """A preset, changed keys and perhaps a bound on GPU memory: "openeqa-t4 train.batch_size=2 gpu_gib=14.6"."""
    preset, *changes = text.split()
    file = ROOT / f"config/presets/{preset}.yaml"
    if not file.is_file():
        raise SystemExit(f"{preset}: no such preset; one of config/presets")
    config, gpu_gib = yaml.safe_load(file.read_text(encoding="utf-8")), None
    for change in changes:
        key, _, value = change.partition("=")
        section, _, name = key.partition(".")
        if key == "gpu_gib":
            gpu_gib = float(value)
        elif section in ("train", "vision") and name in config[section]:
            config[section][name] = yaml.safe_load(value)
        else:
            raise SystemExit(f"{change}: no such key; gpu_gib, or train.* or vision.* of config/presets/{preset}.yaml")
    return Variant(text, config, gpu_gib)


def curves_apart(one: Sequence[float], other: Sequence[float]) -> dict:
    """How far two loss curves lie apart, as shares of the first: at most, and on average."""
    shares = [abs(a - b) / abs(a) for a, b in zip(one, other, strict=True)]
    return {"largest": round(max(shares), 5), "mean": round(sum(shares) / len(shares), 5)}


def outcome(chosen: Variant, new: Mapping, old: Mapping, gpus: int = 1, first: Mapping | None = None) -> dict:
    """What one recipe of ours came to on so many GPUs, for the JSON line.

    Args:
        first: the same recipe on the first number of GPUs, for the ratio to it.
    """
    train = chosen.config["train"]
    compared = {}
    if first:
        compared["ratio_to_first"] = round(new["questions_per_s"] / first["questions_per_s"], 3)
        compared["steady_ratio_to_first"] = round(new["steady"] / first["steady"], 3)
        compared["losses_apart"] = curves_apart(first["losses"], new["losses"])
    return compared | {
        "variant": chosen.name,
        "gpus": gpus,
        "losses": new["losses"],
        "gpu_mb_each": new["gpu_mb_each"],
        "torch_peak_mb_each": new["torch_peak_mb_each"],
        "ours": round(new["questions_per_s"], 3),
        "ratio": round(new["questions_per_s"] / old["questions_per_s"], 2),
        "gpu_mb": {"baseline": old["gpu_mb"], "ours": new["gpu_mb"], "ours_torch": new["torch_peak_mb"]},
        "step_s": round(new["step_s"], 4),
        "updates_an_epoch": round(EPOCH_QUESTIONS / new["questions_a_step"]),
        "ours_without_vision_cache_time": round(new["steady"], 3),
        "vision_cache": {"seconds": new["vision_cache_s"], "mb": new["vision_cache_mb"], "epochs": train["epochs"]},
        "loss": {"baseline": old.get("loss"), "ours": new["loss"]},
        "gpu_gib_limit": chosen.gpu_gib,
        "recipe": {key: train[key] for key in SHOWN_KEYS},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, then one JSON line; a recipe that fails is named, the others count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder with a Qwen3-VL and its manifest; made if it does not exist")
    parser.add_argument("--preset", help="recipe of ours; openeqa-80gb on a GPU, demo on the CPU")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.batch_size=8")
    parser.add_argument("--gpu-gib", type=float, help="hold ours to this much GPU memory, as on a smaller card")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar='"PRESET KEY=VALUE... gpu_gib=24"',
        help="a further recipe of ours; any number of times",
    )
    parser.add_argument("--episodes", type=int, help="episodes of the data")
    parser.add_argument("--questions", type=int, default=11, help="questions an episode (Open-EQA has 10.8)")
    parser.add_argument("--baseline-steps", type=int, help="optimizer steps of the baseline, 8 questions each")
    parser.add_argument("--steps", type=int, help="optimizer steps of ours")
    parser.add_argument(
        "--skip-baseline", type=float, metavar="QUESTIONS_PER_S", help="a baseline measured before on this machine"
    )
    parser.add_argument("--work-dir", type=Path, help="kept; a temporary folder if left out")
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[1], help="numbers of GPUs, or of processes on the CPU, such as 1 2"
    )
    args = parser.parse_args(argv)

    import torch

    gpu = torch.cuda.is_available()
    if gpu and max(args.gpus) > torch.cuda.device_count():
        parser.error(f"--gpus {max(args.gpus)}: {torch.cuda.device_count()} are visible; name no more")
    if min(args.gpus) < 1:
        parser.error(f"--gpus {min(args.gpus)}: 1 or more")
    most = max(args.gpus)
    compared = [text.format(gpus=most) for text in COMPARED] if most > 1 else []
    first = [args.preset or ("openeqa-80gb" if gpu else "demo"), *compared, *args.set]
    first += [f"gpu_gib={args.gpu_gib:g}"] if args.gpu_gib else []
    variants = [variant(text) for text in (" ".join(first), *args.also)]
    size = (512, 288) if gpu else (192, 128)
    episodes = args.episodes or (144 if gpu else 8)
    steps = args.steps or (35 if gpu else 10)
    baseline_steps = args.baseline_steps or (20 if gpu else 8)
    found, failed = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        model = args.model or work / "model"
        if not (model / "manifest.json").is_file():
            make_model(model, real=gpu)
        make_data(work / "data", episodes, args.questions, size)
        old = {"questions_per_s": args.skip_baseline, "gpu_mb": 0, "questions_a_step": 8}
        if args.skip_baseline is None:
            old |= run_baseline(work, model, work / "data", baseline_steps, size[0] * size[1], not gpu)
        print(f"{'questions/s':>12s}{'ratio':>7s}{'updates an epoch':>18s}{'GPU MiB':>9s}{'torch MiB':>11s}")
        print(_line(old, old, "baseline"), flush=True)
        for number, chosen in enumerate(variants):
            reference = None
            for gpus in args.gpus:
                name = chosen.name if args.gpus == [1] else f"{gpus} x {chosen.name}"
                folder = work / f"ours{number}{'' if gpus == 1 else f'_{gpus}'}"
                folder.mkdir(exist_ok=True)
                asked = (steps, chosen.config, args.questions, chosen.gpu_gib, gpus)
                try:
                    new = run_ours(folder, model, work / "data", *asked)
                except SystemExit as error:
                    failed.append({"variant": chosen.name, "gpus": gpus, "why": str(error).splitlines()[-1]})
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                found.append(outcome(chosen, new, old, gpus, reference))
                reference = reference or new
                print(_line(new, old, name), flush=True)
        base_sha = sha256_file(model / "manifest.json")[:12]
    result = {
        "bench": "train_throughput",
        "unit": "questions/s",
        "baseline": round(old["questions_per_s"], 3),
        "epoch_questions": EPOCH_QUESTIONS,
        "peak_mb": peak_mb(),
        "runs": found,
        "failed": failed,
        "model": base_sha,
        "machine": machine(),
    }
    print(json.dumps(result, sort_keys=True))
    return 1 if failed else 0


def _line(found: Mapping, old: Mapping, name: str) -> str:
    """A row of the table."""
    speed = found["questions_per_s"]
    updates = EPOCH_QUESTIONS / found["questions_a_step"]
    memory = f"{found['gpu_mb']:9d}{found.get('torch_peak_mb') or 0:11d}"
    return f"{speed:12.2f}{speed / old['questions_per_s']:7.1f}{updates:18.0f}{memory}  {name}"


if __name__ == "__main__":
    sys.exit(main())
