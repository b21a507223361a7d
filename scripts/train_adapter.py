"""QLoRA adapter of the base model by LLaMA-Factory; survives being killed.   By hand, in envs/train:

    uv run --frozen --project envs/train python -m scripts.train_adapter --dataset-dir results/sft \
        --frames results/frames/manifest.json --base models/base/manifest.json \
        --config '{"train":{...},"vision":{...}}' --work-dir work/train --adapter-dir results/adapter \
        --log-dir results/train_log

Checkpoints lie in WORK_DIR/HASH, HASH over recipe, data, base model and code: the same command goes on from the newest
complete one, a changed recipe starts afresh, a finished training is not entered again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib import checkpoints, llamafactory_args
from scripts.lib.base_model import check_model_folder
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import canonical_json, check_types
from scripts.lib.devices import locks_held
from scripts.lib.errors import EqaError
from scripts.lib.files import (
    atomic_folder,
    atomic_path,
    check_manifest,
    read_json,
    read_manifest,
    remove,
    safe_join,
    sha256_file,
    write_json,
    write_manifest,
    write_text,
)
from scripts.lib.imports import code_files
from scripts.lib.slurm_node import job_hosts, torchrun
from scripts.lib.threads import one_thread

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# keys of train.* that change neither the adapter nor what a checkpoint means
INDIFFERENT = ("dataloader_workers", "preprocessing_workers", "keep_checkpoints", "nodes")


# ------------------------------------------------------------------------------------------------ pure


def run_key(config: Mapping, hashes: Mapping[str, str], devices: int, device: str) -> str:
    """Name of a run folder: equal for equal recipe, inputs, code and machine shape.

    Args:
        config: {"train": ..., "vision": ...}.
        hashes: of everything else that the adapter depends on.
        devices: processes that share the work; a checkpoint holds a random state for each.
        device: "cpu" or "cuda", which round differently.
    """
    recipe = {key: value for key, value in config["train"].items() if key not in INDIFFERENT}
    text = canonical_json(
        {"train": recipe, "vision": config["vision"], "inputs": dict(hashes), "devices": devices, "device": device}
    )
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def curves(history: Sequence[Mapping]) -> dict:
    """Training and validation curves from trainer_state.json's log_history, one point a step.

    After a resume a step may have been logged twice; the later line belongs to the weights that were kept.
    """
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for line in history:
        step = line.get("step")
        if "loss" in line:
            train[step] = {
                "step": step,
                "epoch": line.get("epoch"),
                "loss": line["loss"],
                "learning_rate": line.get("learning_rate"),
            }
        if "eval_loss" in line:
            val[step] = {"step": step, "loss": line["eval_loss"]}
    return {"train": [train[step] for step in sorted(train)], "val": [val[step] for step in sorted(val)]}


def portable(path: Path) -> str:
    """A path for an artifact: as given if relative, else its last two names, so that no machine's layout gets in."""
    return path.as_posix() if not path.is_absolute() else Path(*path.parts[-2:]).as_posix()


def clean_adapter_config(config: Mapping, base: str) -> dict:
    """adapter_config.json without what differs from run to run: the base's path, and the order of sets."""
    cleaned = {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}
    return cleaned | {"base_model_name_or_path": base}


def launch_command(devices: int, nodes: int, hosts: Sequence[str], job: str) -> list[str]:
    """torchrun, once a node: directly on one node, by srun on several, where each finds the others by Slurm's variables.

    Args:
        devices: processes a node.
        nodes: config `train.nodes`.
        hosts: names of the allocation's nodes, in order.
        job: path of job.json.
    Raises:
        EqaError: more nodes than the allocation has.
    """
    if nodes == 1:
        return [*torchrun(1, devices), "--standalone", "-m", "scripts.lib.trainer", job]
    if len(hosts) < nodes:
        raise EqaError(
            f"config: train.nodes={nodes}, but this job has {len(hosts)} node(s); run it under Slurm with "
            f"{nodes} nodes (--workflow-profile profiles/slurm asks for them) or set train.nodes to 1"
        )
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--overlap",  # the step that this process runs in holds CPUs and memory of the first node
        "--cpu-bind=none",  # all of the job's CPUs, not one core a task
        "--kill-on-bad-exit=1",  # one node lost: the others would wait for it
        sys.executable,
        "-m",
        "scripts.lib.slurm_node",
        str(devices),
        job,
    ]


# ------------------------------------------------------------------------------------------------ machine


def visible_devices() -> tuple[str, int]:
    """("cuda", GPUs) or ("cpu", processes): EQA_TRAIN_PROCESSES asks for several processes on the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.cuda.device_count()
    wanted = os.environ.get("EQA_TRAIN_PROCESSES", "1")
    if not wanted.isdigit() or int(wanted) < 1:
        raise EqaError(f"EQA_TRAIN_PROCESSES={wanted}: a whole number of processes is wanted; unset it for one")
    return "cpu", int(wanted)


def check_base(manifest: Path) -> dict:
    """The base model's manifest, every file compared with it, the architecture the one that this project trains.

    Raises:
        EqaError: a missing or changed file, or another architecture.
    """
    facts = check_manifest(manifest)
    check_model_folder(manifest.parent)
    return facts


def check_data(dataset_dir: Path, media_dir: Path) -> dict[str, int]:
    """Samples a part.

    Args:
        dataset_dir: results/sft.
        media_dir: folder that pictures are relative to.
    Raises:
        EqaError: a training or validation part without samples, no data of build_sft, or a picture outside of its folder.
    """
    counts = {}
    parts = (("train", "training", "lower split.val and split.test"), ("val", "validation", "raise split.val"))
    for part, name, way_out in parts:
        samples = read_json(dataset_dir / f"{part}.json", f"{part} part")
        if not isinstance(samples, list) or not samples:
            raise EqaError(f"{dataset_dir / f'{part}.json'}: no {name} samples; {way_out} or add episodes")
        if not all(isinstance(sample, dict) and isinstance(sample.get("question_ids"), list) for sample in samples):
            raise EqaError(f"{dataset_dir / f'{part}.json'}: not what build_sft writes; run that rule again")
        for sample in samples:
            images = sample.get("images", [])
            if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
                raise EqaError(f"{dataset_dir / f'{part}.json'}: images are no list of paths; run build_sft again")
            for name in images:
                safe_join(media_dir, name)
        counts[part] = len(samples)
        counts[f"{part}_questions"] = sum(len(sample["question_ids"]) for sample in samples)
    info = read_json(dataset_dir / "dataset_info.json", "list of parts for LLaMA-Factory")
    if not isinstance(info, dict) or not {"openeqa_train", "openeqa_val"} <= set(info):
        raise EqaError(
            f"{dataset_dir / 'dataset_info.json'}: lacks openeqa_train or openeqa_val; run the rule build_sft again"
        )
    return counts


# ------------------------------------------------------------------------------------------------ run


def run(args: argparse.Namespace) -> dict:
    """Train, or take over a finished training; write the adapter and the log folder."""
    one_thread()
    config = args.config
    check_types({name: config[name] for name in ("train", "vision")}, ROOT)
    check_base(args.base)
    frames = args.frames or args.dataset_dir.parent / "frames/manifest.json"
    counts = check_data(args.dataset_dir, frames.parent)
    read_manifest(frames)
    llamafactory_args.check_extra(config["train"]["extra"])

    device, found = visible_devices()
    if device == "cpu" and config["train"]["precision"] == "fp16":
        raise EqaError("config: train.precision=fp16 needs a GPU, none is visible; set it to bf16 or fp32")
    llamafactory_args.check_distributed(config["train"]["distributed"], device == "cpu")
    llamafactory_args.check_fsdp(config["train"], args.base.parent)
    nodes = config["train"]["nodes"]
    devices, _, _ = llamafactory_args.spread(
        config["train"]["batch_size"], config["train"]["gradient_accumulation"], found * nodes, nodes
    )
    llamafactory_args.check_shared(config["train"]["distributed"], devices)
    if devices < found * nodes:
        log.info(
            "%d of %d devices are used: a step of %d samples divides no further",
            devices,
            found * nodes,
            _step_samples(config),
        )

    inputs = {
        "train": sha256_file(args.dataset_dir / "train.json"),
        "val": sha256_file(args.dataset_dir / "val.json"),
        "info": sha256_file(args.dataset_dir / "dataset_info.json"),
        "frames": sha256_file(frames),
        "base": sha256_file(args.base),
        "lock": sha256_file(ROOT / "envs/train/uv.lock"),
    }
    modules = ("scripts.lib.trainer", "scripts.lib.llamafactory_args")
    code = {name: sha256_file(ROOT / name) for module in modules for name in code_files(module, ROOT)}
    key = run_key(config, {**inputs, **code}, devices, device)
    run_dir = args.work_dir / key
    run_dir.mkdir(parents=True, exist_ok=True)
    with checkpoints.held(args.work_dir / f"{key}.lock", f"training {key}"):
        with checkpoints.held(run_dir / "trainer.lock", f"trainer {key}"):
            facts = checkpoints.read_finished(run_dir)
        if facts is None:
            _train(args, config, run_dir, inputs, frames, devices, device)
            facts = _finish(run_dir, config)
        else:
            log.info("%s: this training has ended before; its adapter is taken over", run_dir)
        _write_adapter(args, config, run_dir, facts, devices, device, frames, counts)
        _write_log(args.log_dir, run_dir, counts)
    return {"run": key, "steps": facts["steps"], "best_step": facts["best_step"], **counts}


def _step_samples(config: Mapping) -> int:
    return config["train"]["batch_size"] * config["train"]["gradient_accumulation"]


def _rendered(
    args: argparse.Namespace, config: Mapping, frames: Path, devices: int, device: str, **changed: str
) -> dict:
    paths = {"base": args.base.parent, "dataset_dir": args.dataset_dir, "media_dir": frames.parent}
    names = {key: str(path) if changed else portable(path) for key, path in paths.items()}
    names |= {"output_dir": "work/train/by_hand"} | changed
    return llamafactory_args.render(config, **names, devices=devices, use_cpu=device == "cpu")


def _train(
    args: argparse.Namespace, config: Mapping, run_dir: Path, inputs: Mapping, frames: Path, devices: int, device: str
) -> None:
    """Start the trainer, in this process for one device."""
    resume = checkpoints.newest_complete(run_dir, config["train"]["load_best"])
    settings = {"output_dir": str(run_dir), "settings_dir": str(run_dir)}
    llama = _rendered(args, config, frames, devices, device, **settings)
    tokenized = _tokenized_folder(args.work_dir, config, inputs, frames.parent)
    part = tokenized.with_name(tokenized.name + f".{run_dir.name}.part")
    remove(part)
    llama |= {"tokenized_path": str(tokenized if tokenized.is_dir() else part)}
    if resume is not None:
        llama["resume_from_checkpoint"] = str(resume)
        log.info("going on from %s", resume)
    else:
        for name in ADAPTER_FILES:  # of a training whose checkpoints are gone: LLaMA-Factory would not start over them
            remove(run_dir / name)
    if device == "cpu" and devices > 1:
        llama["ddp_backend"] = "gloo"
    if config["train"]["nodes"] > 1:
        llama["data_shared_file_system"] = True  # one process tokenizes, not one a node into the same folder
    write_json(run_dir / "zero2.json", llamafactory_args.ZERO2)
    job = {
        "args": llama,
        "train": config["train"],
        "base_dir": str(args.base.parent),
        "dataset_dir": str(args.dataset_dir),
        "run_dir": str(run_dir),
        "work_dir": str(args.work_dir),
        "tokenized": str(tokenized),
    }
    write_json(run_dir / "job.json", job)
    for stale in ("fault.txt", "guards.json", "speed.json"):
        remove(run_dir / stale)
    try:
        alone = devices == 1 and config["train"]["nodes"] == 1 and (device == "cpu" or visible_devices()[1] == 1)
        # ZeRO wants a process group, of one process too
        if alone and config["train"]["distributed"] == "ddp":
            from scripts.lib.trainer import train

            train(job)
        else:
            _launch(config, run_dir, devices)
    finally:
        remove(part)


def _tokenized_folder(work_dir: Path, config: Mapping, inputs: Mapping, media_dir: Path) -> Path:
    """Tokenized data by content: shared by recipes that differ in other things, such as the learning rate.

    Its rows hold paths of pictures, hence `media_dir`.
    """
    train = config["train"]
    own = {
        "cutoff_len": train["cutoff_len"],
        "template": train["template"],
        "vision": config["vision"],
        "extra": train["extra"],
        "media_dir": str(media_dir),
    }
    own |= {name: inputs[name] for name in ("train", "val", "info", "frames", "base", "lock")}
    return work_dir / "tokenized" / hashlib.sha256(canonical_json(own).encode()).hexdigest()[:20]


def _launch(config: Mapping, run_dir: Path, devices: int) -> None:
    from scripts.lib.trainer import FAULT

    nodes = config["train"]["nodes"]
    hosts = job_hosts(os.environ) if nodes > 1 else []
    command = launch_command(devices // nodes, nodes, hosts, str(run_dir / "job.json"))
    log.info("starting %d processes on %d node(s)", devices, nodes)
    done = subprocess.run(
        command,
        cwd=None,
        check=False,
        stdout=sys.stderr.fileno(),
        pass_fds=locks_held(),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
    )
    fault = run_dir / FAULT
    if fault.is_file():
        raise EqaError(fault.read_text(encoding="utf-8"))
    if done.returncode:
        raise EqaError(
            f"{run_dir}: the trainer ended with code {done.returncode}; its last words are above, "
            "run again to go on from the newest complete checkpoint"
        )


def _finish(run_dir: Path, config: Mapping) -> dict:
    """Check what training left and mark it finished."""
    state = json.loads((run_dir / checkpoints.STATE).read_text(encoding="utf-8"))
    best = state.get("best_global_step") if config["train"]["load_best"] else None
    if best:
        kept = run_dir / f"checkpoint-{best}" / "adapter_model.safetensors"
        if sha256_file(kept) != sha256_file(run_dir / "adapter_model.safetensors"):
            raise EqaError(
                f"{run_dir}: the adapter at the end is not that of the best checkpoint, step {best}; "
                f"remove {run_dir} and run again"
            )
    facts = {"steps": state["global_step"], "best_step": best or state["global_step"], "epochs": state["epoch"]}
    checkpoints.write_finished(run_dir, [*ADAPTER_FILES, checkpoints.STATE, "guards.json", "speed.json"], facts)
    return facts


def _write_adapter(
    args: argparse.Namespace,
    config: Mapping,
    run_dir: Path,
    facts: Mapping,
    devices: int,
    device: str,
    frames: Path,
    counts: Mapping,
) -> None:
    with atomic_folder(args.adapter_dir) as folder:
        shutil.copyfile(run_dir / "adapter_model.safetensors", folder / "adapter_model.safetensors")
        adapter = clean_adapter_config(read_json(run_dir / "adapter_config.json"), portable(args.base.parent))
        write_json(folder / "adapter_config.json", adapter)
        write_json(folder / "guards.json", read_json(run_dir / "guards.json"))
        recipe = _rendered(args, config, frames, devices, device)
        write_text(folder / "train.yaml", llamafactory_args.to_yaml(recipe, devices))
        if config["train"]["distributed"] == "zero2":
            write_json(folder / "zero2.json", llamafactory_args.ZERO2)
        extra = {key: facts[key] for key in ("steps", "best_step", "epochs")}
        write_manifest(
            folder,
            {
                "base_sha256": sha256_file(args.base),
                "samples": counts["train"],
                "questions": counts["train_questions"],
                **extra,
            },
        )


def _write_log(log_dir: Path, run_dir: Path, counts: Mapping) -> None:
    state = read_json(run_dir / checkpoints.STATE)
    lines = curves(state["log_history"])
    speed = read_json(run_dir / "speed.json")
    if speed.get("samples_per_s"):
        speed["questions_per_s"] = round(speed["samples_per_s"] * counts["train_questions"] / counts["train"], 3)
    with atomic_folder(log_dir) as folder:
        write_json(folder / "curves.json", lines)
        write_json(folder / "speed.json", speed)
        draw_curves(lines, folder / "loss.png", state.get("best_global_step"))
        if (run_dir / "tensorboard").is_dir():
            shutil.copytree(run_dir / "tensorboard", folder / "tensorboard")


def draw_curves(lines: Mapping, path: Path, best_step: int | None) -> None:
    """Training and validation loss over steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes.plot(
        [p["step"] for p in lines["train"]],
        [p["loss"] for p in lines["train"]],
        color="#8aa6c1",
        label="training",
        linewidth=1.4,
    )
    if lines["val"]:
        axes.plot(
            [p["step"] for p in lines["val"]],
            [p["loss"] for p in lines["val"]],
            "o-",
            color="#b5482a",
            label="validation",
            markersize=4,
        )
    if best_step:
        axes.axvline(best_step, color="#888888", linewidth=0.8, linestyle="--", label=f"kept: step {best_step}")
    axes.set(xlabel="optimizer step", ylabel="loss (mean cross-entropy of answer tokens)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")
    plt.close(figure)


def build_parser() -> argparse.ArgumentParser:
    """Options of the terminal and of the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=path_argument, required=True, help="results/sft")
    parser.add_argument(
        "--frames", type=path_argument, help="manifest of the frames; FRAMES beside the dataset folder if left out"
    )
    parser.add_argument("--base", type=path_argument, required=True, help="models/base/manifest.json")
    parser.add_argument("--config", type=json_argument, required=True, help='{"train": ..., "vision": ...}')
    parser.add_argument("--work-dir", type=path_argument, required=True, help="checkpoints")
    parser.add_argument("--adapter-dir", type=path_argument, required=True, help="results/adapter")
    parser.add_argument("--log-dir", type=path_argument, required=True, help="results/train_log")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Door of the terminal and of Snakemake."""
    return entry("train_adapter", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
