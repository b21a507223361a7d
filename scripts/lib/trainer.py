"""One LLaMA-Factory training in this process, with checks, whole checkpoints and a progress line.

train_adapter calls `train` for one device; for several, torchrun starts this module once a device:
    torchrun --nproc-per-node 4 -m scripts.lib.trainer work/train/HASH/job.json
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.lib import checkpoints, guards
from scripts.lib.errors import EqaError
from scripts.lib.files import remove, write_json, write_text
from scripts.lib.llamafactory_args import spread
from scripts.lib.stopping import end_children_with_parent, end_with_parent
from scripts.lib.threads import one_thread
from scripts.lib.vision_cache import check_unchanged, use_vision_cache

log = logging.getLogger(__name__)
FAULT = "fault.txt"  # what a child process has to say to train_adapter, one line
_LITTLE_DISK = 64 * 2**20  # bytes; a write that failed with less than this free failed for want of space


def quiet_environment(run_dir: Path, work_dir: Path) -> None:
    """Environment variables that LLaMA-Factory and its libraries read when they are imported."""
    fixed = {
        "HF_HUB_OFFLINE": "1",  # everything lies here; no request leaves this machine
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": os.path.abspath(work_dir / "datasets"),  # read once, whatever folder is current then
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TENSORBOARD_LOGGING_DIR": str(run_dir / "tensorboard"),
        "WANDB_DISABLED": "true",
    }
    os.environ.update(fixed)
    warnings.filterwarnings("ignore", module="jieba")  # pkg_resources will go one day; setuptools is pinned
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # offers an optional package for each CPU run
    one_thread()
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "WARNING")
    for name in ("ALLOW_EXTRA_ARGS", "DISABLE_VERSION_CHECK", "USE_V1", "USE_MCA", "USE_RAY"):
        os.environ.pop(name, None)


def train(job: Mapping, patience_s: float = -1) -> None:
    """Run one training to its end, from a checkpoint if `job` names one.

    Args:
        job: {"args": LLaMA-Factory's arguments, "train": config train, "base_dir", "dataset_dir", "run_dir",
            "work_dir", "tokenized": folder of the tokenized data}.
        patience_s: how long to wait for another trainer of this run; -1 for ever. Unit: seconds.
    Raises:
        EqaError: a guard tripped, the loss is not a number, memory or disk ran out.
    """
    run_dir = Path(job["run_dir"])
    quiet_environment(run_dir, Path(job["work_dir"]))
    first = int(os.environ.get("RANK", "0")) == 0
    lock = checkpoints.held(run_dir / "trainer.lock", "training", patience_s) if first else contextlib.nullcontext()
    with lock, (run_dir / "trainer.log").open("a", encoding="utf-8") as noise, contextlib.redirect_stdout(noise):
        try:
            _run(job, run_dir)
        except EqaError:
            raise
        except Exception as error:
            raise explained(error, job) from error


def _run(job: Mapping, run_dir: Path) -> None:
    end_children_with_parent()  # tokenizing and loading fork; an orphan would hold this training's devices
    import transformers
    from llamafactory.train.tuner import run_exp

    transformers.utils.logging.disable_progress_bar()
    _know_numbered_cpus()
    whole_buffers = fsdp_buffers_in_float32() if job["train"]["distributed"] == "fsdp" else contextlib.nullcontext()
    watch = make_callback(job, run_dir)
    with whole_buffers, after_the_processor(watch.mark_saved):
        run_exp(args=dict(job["args"]), callbacks=[watch])


@contextlib.contextmanager
def after_the_processor(mark: Callable[[], None]) -> Iterator[None]:
    """Have `mark` called as soon as LLaMA-Factory has written tokenizer and processor into a checkpoint.

    Its callback does so, and is called after those that it is given.   Source: LLaMA-Factory 0.9.5 train/callbacks.py.
    """
    from llamafactory.train.callbacks import SaveProcessorCallback

    original = SaveProcessorCallback.on_save

    def on_save(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        mark()

    SaveProcessorCallback.on_save = on_save
    try:
        yield
    finally:
        SaveProcessorCallback.on_save = original


@functools.cache  # torch keeps a list, and two entries of one priority cannot be sorted
def _know_numbered_cpus() -> None:
    """Let several processes on the CPU go on from a checkpoint.

    accelerate calls their devices cpu:0, cpu:1..., the trainer loads the optimizer's state onto its own, and torch 2.11
    knows "cpu" alone.
    """
    import torch

    torch.serialization.register_package(
        50, lambda _: None, lambda found, place: found if place[:4] == "cpu:" else None
    )


@contextlib.contextmanager
def fsdp_buffers_in_float32() -> Iterator[None]:
    """Let FSDP leave buffers as they are: accelerate would cast them to the steps' 16 bits.

    A buffer of Qwen3-VL is the table of rotary frequencies; rounded to bfloat16 it turns far positions elsewhere, which
    neither a training on one device nor the model that is served later does.

    Source: accelerate 1.11.0 utils/dataclasses.py FullyShardedDataParallelPlugin.set_mixed_precision.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin as Plugin

    original = Plugin.set_mixed_precision
    Plugin.set_mixed_precision = functools.partialmethod(original, buffer_autocast=True)
    try:
        yield
    finally:
        Plugin.set_mixed_precision = original


def every_rank(value: Any) -> list:
    """`value` of each process that trains, in order of rank; all of them have to ask, so it is a barrier too."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    found: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def explained(error: Exception, job: Mapping) -> Exception:
    """The error as one line that says what to do, where there is such a line; else the error itself."""
    import torch

    train_config, run_dir = job["train"], Path(job["run_dir"])
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return EqaError(out_of_memory_line(train_config, job["args"], *_gpu_memory()))
    text = str(error)
    if "No space left" in text or "os error 28" in text or shutil.disk_usage(run_dir).free < _LITTLE_DISK:
        return EqaError(
            f"{run_dir}: the disk is full ({text[:120]}); free space, then run again: it goes on from the newest "
            "complete checkpoint"
        )
    if isinstance(error, ValueError) and "HfArgumentParser" in text:
        return EqaError(f"config: LLaMA-Factory does not take the recipe: {text[:300]}; correct train.extra")
    return error


def _gpu_memory() -> tuple[float, float]:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.mem_get_info()[1] / 2**30


def out_of_memory_line(train_config: Mapping, args: Mapping, used_gib: float, card_gib: float) -> str:
    """What does not fit and what would: the cheapest step first."""
    batch = args["per_device_train_batch_size"]
    size = train_config["batch_size"]
    total = size * train_config["gradient_accumulation"]
    devices = total // (batch * args["gradient_accumulation_steps"])
    what = f"GPU memory: train.batch_size={size} wants more than {used_gib:.1f} GiB, this card has {card_gib:.1f} GiB"
    if batch > 1:
        shares = {n: spread(n, total // n, devices, train_config["nodes"])[1] for n in range(1, size) if total % n == 0}
        fits = max(n for n, at_once in shares.items() if at_once <= batch // 2)
        other = f"train.batch_size={fits} with train.gradient_accumulation={total // fits}"
        return f"{what}; {other} puts {shares[fits]} samples on a device at once instead of {batch}, in the same steps"
    if not train_config["gradient_checkpointing"]:
        return f"{what}; train.gradient_checkpointing=true needs about a third"
    if not train_config.get("answer_only_loss", True):
        return f"{what}; train.answer_only_loss=true does without the logits of tokens that carry no loss"
    if train_config["quantization_bit"] != 4:
        return f"{what}; train.quantization_bit=4 holds the base in a quarter of the memory"
    return f"{what}; lower vision.image_max_pixels or frames.count, or use a card of 16 GB or more (preset openeqa-t4)"


def make_callback(job: Mapping, run_dir: Path) -> Any:
    """The transformers callback that guards, marks checkpoints and reports; its class needs transformers."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Guards before the first step, a mark on each whole checkpoint, a line of progress."""

        def __init__(self) -> None:
            self.first_bad = torch.tensor(-1)  # step of the first loss that is no number; stays on the device
            self.started = self.began_step = self.warm = None
            self.step = 0
            self.saved = None  # a checkpoint that was written and not yet marked
            self.loss = float("nan")
            self.cache = self.collator = None

        # ---- before the first step

        def on_train_begin(self, args, state, control, model=None, optimizer=None, train_dataloader=None, **kwargs):
            config = job["train"]
            whole = config["distributed"] == "ddp"  # the others put their own optimizer around shards
            facts = guards.check_loaded(model, optimizer if whole else None, config, Path(job["base_dir"]))
            if config["distributed"] == "fsdp":  # each rank sees its shard of them
                facts["trained_parameters"] = sum(every_rank(facts["trained_parameters"]))
            if state.is_world_process_zero:
                facts |= check_data(job, kwargs["processing_class"])
                write_json(run_dir / "guards.json", facts)
                if Path(job["args"]["tokenized_path"]) != Path(job["tokenized"]):
                    remove(Path(job["tokenized"]))
                    os.replace(job["args"]["tokenized_path"], job["tokenized"])
            best = run_dir / f"checkpoint-{state.best_global_step}"
            if state.best_global_step and best.is_dir():
                state.best_model_checkpoint = str(best)  # the folder may have moved since
            guards.keep_quantized(model)
            if config.get("answer_only_loss"):
                from scripts.lib.answer_loss import use_answer_only_loss

                use_answer_only_loss(model, config["batch_size"] // args.per_device_train_batch_size)
            self.collator = train_dataloader.collate_fn
            self.cache = keep_vision_features(job, model, self.collator, state.is_world_process_zero)
            model.register_forward_hook(self.watch_loss)
            self.started, self.began_step = time.monotonic(), state.global_step
            if state.is_world_process_zero:
                print(f"training: {state.max_steps} steps, from step {state.global_step}", file=sys.stderr, flush=True)

        def watch_loss(self, module, inputs, output):
            loss = getattr(output, "loss", None)
            if loss is not None and module.training:
                bad = ~torch.isfinite(loss.detach())
                self.first_bad = self.first_bad.to(loss.device)
                self.first_bad = torch.where(bad & (self.first_bad < 0), self.step + 1, self.first_bad)

        # ---- during

        def on_step_begin(self, args, state, control, **kwargs):
            self.step = state.global_step
            self.mark_saved()

        def on_epoch_end(self, args, state, control, **kwargs):
            self.mark_saved()

        def on_step_end(self, args, state, control, **kwargs):
            self.step = state.global_step
            if state.global_step == self.began_step + 1:
                self.warm = time.monotonic()  # the first step allocates and compiles
            if state.global_step % args.save_steps == 0:
                # a line is the mean since the last one, and no checkpoint holds a part of a mean: without a line here a
                # training that goes on from it would tell another curve
                control.should_log = True
            if state.global_step >= state.max_steps:
                control.should_evaluate = True  # the last state may be the best
            return control

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in (logs or {}):
                return
            self.check_steps()
            self.check_finite("the training loss", float(logs["loss"]), state.global_step)
            if state.is_world_process_zero:
                rate = self.steps_per_s(state)
                left = (state.max_steps - state.global_step) / rate if rate else 0
                speed = f"{rate * self.batch(args):.2f} samples/s, {clock(left)} left" if rate else "measuring"
                print(
                    f"step {state.global_step}/{state.max_steps} loss {logs['loss']:.4f} {speed}",
                    file=sys.stderr,
                    flush=True,
                )

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            if "eval_loss" in (metrics or {}):
                self.check_finite("the validation loss", float(metrics["eval_loss"]), state.global_step)
                if state.is_world_process_zero:
                    print(
                        f"step {state.global_step}/{state.max_steps} validation loss {metrics['eval_loss']:.4f}",
                        file=sys.stderr,
                        flush=True,
                    )

        def on_save(self, args, state, control, model=None, **kwargs):
            # each rank writes a part of a checkpoint (its random state, with FSDP and ZeRO more): nobody marks it before
            # all have; and what is wrong on one rank ends all of them here, so that none waits for one that has left
            faults = [fault for fault in every_rank(self.fault(model, state)) if fault]
            if faults:
                raise EqaError(faults[0])
            if state.is_world_process_zero:
                self.saved = run_dir / f"checkpoint-{state.global_step}"

        def mark_saved(self) -> None:
            """Mark what was saved, when LLaMA-Factory's own callback has written the tokenizer into it, or at the next event.

            A kill while it writes would leave a marked checkpoint that is not what its mark says.
            """
            if self.saved is not None:
                checkpoints.mark_complete(self.saved)
                checkpoints.rotate(run_dir, job["train"]["keep_checkpoints"])
                self.saved = None

        def fault(self, model, state) -> str:
            """What is wrong with this rank's losses or weights; "" for nothing."""
            try:
                self.check_steps()
            except EqaError as error:
                return str(error)
            for name, weight in model.named_parameters():
                if weight.requires_grad and not bool(torch.isfinite(weight).all()):
                    return (
                        f"{name} is no number after step {state.global_step}; this checkpoint is not kept. "
                        f"Lower train.learning_rate{guards.wider(job['train']['precision'])}, then run again"
                    )
            return ""

        def check_steps(self) -> None:
            bad = int(self.first_bad)
            if bad >= 0:
                self.check_finite("the training loss", float("nan"), bad)

        def check_finite(self, name: str, value: float, step: int) -> None:
            guards.check_finite(name, value, step, run_dir, job["train"]["precision"])

        # ---- after

        def on_train_end(self, args, state, control, model=None, **kwargs):
            self.mark_saved()
            args.do_eval = False  # the last step was evaluated just now
            config = job["train"]
            expected = guards.linear_modules(Path(job["base_dir"]))
            # still what it was at the start: libraries have changed the base under a training before
            guards.check_quantization(model, expected, config["quantization_bit"], config["double_quantization"])
            if self.cache:
                check_unchanged(self.cache, model, self.collator, config["precision"])
            used = every_rank(used_memory_mb())
            if not state.is_world_process_zero:
                return
            rate = self.steps_per_s(state)
            facts = {
                "samples_per_s": round(rate * self.batch(args), 3) if rate else None,
                "steps_per_s": round(rate, 4) if rate else None,
                "seconds": round(time.monotonic() - self.started, 2),
                "resumed_from_step": self.began_step,
                "vision_cache": self.cache.facts if self.cache else None,
                **machine_facts(used),
            }
            write_json(run_dir / "speed.json", facts)

        @staticmethod
        def batch(args) -> int:
            return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

        def steps_per_s(self, state) -> float | None:
            """Optimizer steps a second since the second step of this process, validation and saving included."""
            done = state.global_step - self.began_step - 1
            return done / max(time.monotonic() - self.warm, 1e-9) if self.warm and done > 0 else None

    return Watch()


def keep_vision_features(job: Mapping, model: Any, collator: Any, say: bool) -> Any:
    """Features of all pictures, where the recipe lets them be kept; None where each step computes its own."""
    config = job["train"]
    limit = config["vision_cache_gb"]
    frozen = config["freeze_vision_tower"] and config["freeze_multi_modal_projector"]
    # FSDP gathers weights where the whole model is called, and the tower is called by itself here
    if not limit or not frozen or config["distributed"] == "fsdp":
        return None
    rows = [row for part in ("train", "val") for row in guards.read_samples(Path(job["dataset_dir"]) / f"{part}.json")]
    pictures = [os.path.join(job["args"]["media_dir"], name) for row in rows for name in row["images"]]
    workers, precision = config["dataloader_workers"], config["precision"]
    cache = use_vision_cache(model, collator, pictures, limit_gb=limit, workers=workers, precision=precision)
    if say and cache:
        print(
            f"vision features of {cache.facts['pictures']} pictures kept: {cache.facts['mb']:.0f} MB on "
            f"{cache.facts['place']}, {cache.facts['seconds']:.1f} s",
            file=sys.stderr,
        )
    elif say:
        print(f"vision features take more than train.vision_cache_gb={limit}: computed each step", file=sys.stderr)
    return cache


def check_data(job: Mapping, tokenizer: Any) -> dict:
    """Guards over the tokenized data, training and validation."""
    from datasets import load_from_disk

    data = load_from_disk(job["args"]["tokenized_path"])
    facts: dict = {"cutoff_len": job["train"]["cutoff_len"]}
    for part, split in (("train", "train"), ("val", "validation")):
        samples = guards.read_samples(Path(job["dataset_dir"]) / f"{part}.json")
        rows = data[split].select_columns(["input_ids", "labels"]) if split in data else []
        facts |= guards.check_samples(rows, samples, tokenizer, job["train"]["cutoff_len"], part)
    return facts


def used_memory_mb() -> dict[str, int]:
    """The most that this process had at once: {"gpu": by torch's count, "rss"}. Unit: MiB."""
    import resource

    import torch

    gpu = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0
    return {"gpu": gpu, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def machine_facts(used: list[dict[str, int]]) -> dict:
    """Device, peak memory and versions; of this machine and run, so in no artifact.

    Args:
        used: `used_memory_mb` of each rank.
    """
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "llamafactory", "peft", "accelerate", "bitsandbytes", "datasets")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "devices": len(used),
        "threads": torch.get_num_threads(),
        "peak_gpu_mb": max(rank["gpu"] for rank in used),
        "peak_gpu_mb_each": [rank["gpu"] for rank in used],
        "peak_rss_mb": max(rank["rss"] for rank in used),
        "versions": {name: version(name) for name in names},
    }


def clock(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def end_with_launcher() -> None:
    """Ask the kernel to end this process when torchrun ends, kill -9 included.

    A rank without its launcher would hold its device and might wait half an hour for ranks that are gone. So where a
    rank lives torchrun lives, and where torchrun lives rank 0 has the lock or is about to ask for it.
    """
    end_with_parent(signal.SIGKILL)


def main() -> int:
    """One process of several, started by torchrun."""
    end_with_launcher()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="trainer: %(message)s")
    try:
        # no wait: train_adapter has waited, and its job says where to go on from; who has come in between (a torchrun
        # whose train_adapter was killed while it started) has moved on from there
        train(job, patience_s=0)
    except EqaError as error:
        write_text(Path(job["run_dir"]) / FAULT, str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
