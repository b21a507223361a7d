"""The recipe as LLaMA-Factory 0.9.5 reads it: config `train.*` and `vision.*` in, its YAML out, every key checked.

Keys that LLaMA-Factory examples carry and this project leaves out, with the reason: see GONE.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.config import check_backend, check_steps
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json

# config key (train.* unless dotted) -> LLaMA-Factory's argument, where the value is passed as it is
PASSED = {
    "quantization_method": "quantization_method",
    "double_quantization": "double_quantization",
    "lora_rank": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target": "lora_target",
    "freeze_vision_tower": "freeze_vision_tower",
    "freeze_multi_modal_projector": "freeze_multi_modal_projector",
    "template": "template",
    "cutoff_len": "cutoff_len",
    "learning_rate": "learning_rate",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "eval_batch_size": "per_device_eval_batch_size",
    "lr_scheduler": "lr_scheduler_type",
    "warmup_ratio": "warmup_steps",  # transformers 5 reads a value under 1 as a share of all steps
    "optimizer": "optim",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "logging_steps": "logging_steps",
    "save_steps": "save_steps",
    "eval_steps": "eval_steps",
    "load_best": "load_best_model_at_end",
    "flash_attn": "flash_attn",
    "dataloader_workers": "dataloader_num_workers",
    "preprocessing_workers": "preprocessing_num_workers",
    "seed": "seed",
    "vision.image_max_pixels": "image_max_pixels",
    "vision.image_min_pixels": "image_min_pixels",
}
# config keys that steer this project or become more than one argument
OURS = {
    "backend": "use_unsloth",
    "precision": "bf16, fp16",
    "quantization_bit": "quantization_bit; 0 leaves it out",
    "batch_size": "per_device_train_batch_size, divided among the devices",
    "gradient_accumulation": "gradient_accumulation_steps, divided among the devices",
    "keep_checkpoints": "checkpoints are removed by this project, once newer ones are complete",
    "gradient_checkpointing": "disable_gradient_checkpointing",
    "distributed": "deepspeed, or fsdp and fsdp_config",
    "nodes": "torchrun's --nnodes",
    "vision_cache_gb": "features of the frozen vision part are computed once (scripts/lib/vision_cache.py)",
    "answer_only_loss": "the forward pass is replaced, the loss is the same (scripts/lib/answer_loss.py)",
    "extra": "passed on after a check",
}
# arguments of the usual recipe that are left out
GONE = {
    "trust_remote_code": "false is the default; Qwen3-VL is part of transformers, no foreign code is run",
    "val_size": "a random split by question puts questions of one episode on both sides; eval_dataset is explicit",
    "ddp_timeout": "the default of 30 minutes tells of a dead process sooner; train.extra takes it",
    "overwrite_output_dir": "transformers 5 has none; a changed recipe has a folder of its own under work/train",
    "overwrite_cache": "tokenized data is kept by content (tokenized_path), so it is never stale",
    "resume_from_checkpoint": "set by train_adapter to the newest complete checkpoint",
    "max_samples": "the split decides how many samples there are",
    "plot_loss": "results/train_log/loss.png has training and validation in one picture, whole after a resume",
    "video_max_pixels": "no videos: an episode is a list of pictures",
    "video_min_pixels": "no videos: an episode is a list of pictures",
    "eval_delay": "0 is the default",
    "save_total_limit": "checkpoints are removed by this project, once newer ones are complete",
}
# set here and by nobody else; a dotted or odd name cannot get in through train.extra either
FIXED = {
    "stage": "sft",
    "do_train": True,
    "do_eval": True,
    "finetuning_type": "lora",
    "dataset": "openeqa_train",
    "eval_dataset": "openeqa_val",
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "prediction_loss_only": True,
    "report_to": "tensorboard",
    "logging_nan_inf_filter": False,  # else a loss that is not a number is shown as the mean of the others
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "ddp_find_unused_parameters": False,
}
PATHS = (
    "model_name_or_path",
    "dataset_dir",
    "media_dir",
    "output_dir",
    "tokenized_path",
    "adapter_name_or_path",
    "cache_dir",
)
MANAGED = (
    frozenset(PASSED.values())
    | frozenset(FIXED)
    | frozenset(PATHS)
    | frozenset({"use_unsloth", "bf16", "fp16", "pure_bf16", "quantization_bit", "per_device_train_batch_size"})
    | frozenset(
        {"gradient_accumulation_steps", "disable_gradient_checkpointing", "gradient_checkpointing", "deepspeed"}
    )
    | frozenset(
        {
            "fsdp",
            "fsdp_config",
            "use_cpu",
            "resume_from_checkpoint",
            "val_size",
            "save_total_limit",
            "trust_remote_code",
        }
    )
    | frozenset(
        {"predict_with_generate", "do_predict", "streaming", "push_to_hub", "disable_tqdm", "warmup_ratio", "plot_loss"}
    )
    | frozenset({"data_seed", "full_determinism", "max_samples", "overwrite_output_dir", "train_from_scratch"})
    # checkpoints without the optimizer, or data from the start again: a resumed training would be another one, in silence
    | frozenset({"save_only_model", "ignore_data_skip"})
    # words around the question that build_sft does not count and no engine of prediction writes
    | frozenset({"default_system", "enable_thinking", "tool_format"})
)
_SOURCES = {
    "llamafactory": [f"hparams/{name}_args.py" for name in ("model", "data", "training", "finetuning", "generating")],
    "transformers": ["training_args.py", "training_args_seq2seq.py"],
}
# dataclasses in those files that are not read for training
_NOT_READ = {"EvaluationArguments"}


@functools.cache
def known_arguments() -> dict[str, str]:
    """Every argument that LLaMA-Factory's training takes -> its annotation, read from the sources without torch.

    Raises:
        EqaError: LLaMA-Factory is not installed in this environment.
    """
    found: dict[str, str] = {}
    for package, files in _SOURCES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise EqaError(f"{package} is not installed here; run with `uv run --frozen --project envs/train`")
        for name in files:
            tree = ast.parse((Path(spec.submodule_search_locations[0]) / name).read_bytes())
            for node in tree.body:
                if (
                    isinstance(node, ast.ClassDef)
                    and node.name.endswith(("Arguments", "Argument"))
                    and node.name not in _NOT_READ
                ):
                    found |= _fields(node)
    return found


def _fields(node: ast.ClassDef) -> dict[str, str]:
    fields = {}
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        if not item.target.id.startswith("_") and not (isinstance(item.value, ast.Call) and _is_derived(item.value)):
            fields[item.target.id] = ast.unparse(item.annotation)
    return fields


def _is_derived(call: ast.Call) -> bool:
    """Whether a dataclass field is computed later and may not be given (`init=False`)."""
    return any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in call.keywords
    )


def check_extra(extra: Mapping[str, object]) -> None:
    """Whether `train.extra` holds only arguments that LLaMA-Factory has and this project leaves to the user.

    Raises:
        EqaError: an unknown one (with near matches), one that a key of its own sets, or a value of the wrong type.
    """
    known = known_arguments()
    own = {argument: f"train.{key}" if "." not in key else key for key, argument in PASSED.items()}
    for name, value in sorted(extra.items()):
        if name in MANAGED:
            where = f"set {own[name]}" if name in own else "it is set by train_adapter itself"
            raise EqaError(
                f"config: train.extra.{name} is not free: {GONE.get(name, where)}; remove it from train.extra"
            )
        if name not in known:
            close = difflib.get_close_matches(name, sorted(set(known) - MANAGED), n=3)
            hint = f"; near matches: {', '.join(close)}" if close else ""
            raise EqaError(
                f"config: train.extra.{name} is no argument of LLaMA-Factory's training{hint}; correct or remove it"
            )
        if not _fits(value, known[name]):
            raise EqaError(f"config: train.extra.{name}={value!r} has the wrong type; {known[name]} is wanted")


def _fits(value: object, annotation: str) -> bool:
    """Whether a YAML value can be what a plain annotation says; what is not plain is left to LLaMA-Factory."""
    kinds = {"bool": bool, "int": int, "float": (int, float), "str": str, "None": type(None)}
    tree = ast.parse(annotation, mode="eval").body
    allowed, parts = [], [tree]
    while parts:
        part = parts.pop()
        if isinstance(part, ast.BinOp):
            parts += [part.left, part.right]
        elif isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Optional":
            parts += [part.slice]
            allowed.append(type(None))
        elif isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Literal":
            return value in ast.literal_eval(part.slice) if isinstance(part.slice, ast.Tuple) else True
        elif ast.unparse(part) in kinds:
            allowed.append(kinds[ast.unparse(part)])
        else:
            return True
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, tuple(_flatten(allowed)))


def _flatten(kinds: list) -> list[type]:
    return [kind for entry in kinds for kind in (entry if isinstance(entry, tuple) else (entry,))]


def spread(batch_size: int, accumulation: int, devices: int, nodes: int = 1) -> tuple[int, int, int]:
    """Share one optimizer step among devices without changing what it sees.

    Args:
        batch_size, accumulation: config `train.batch_size`, `train.gradient_accumulation`; a step sees their product.
        devices: how many there are, on all nodes together.
        nodes: machines that have equally many of them, and get equally many to do.
    Returns:
        (devices used, samples a device at once, accumulation), whose product is batch_size x accumulation.
        Accumulation is shared first, then the batch; devices that leave a remainder stay idle. What a device takes at
        once divides batch_size, so that neighbouring devices hold whole batches of the recipe at any moment
        (scripts/lib/answer_loss.py wants that).
    Raises:
        EqaError: a step has no share for each node.
    """
    total = batch_size * accumulation
    used = max((n for n in range(nodes, devices + 1, nodes) if total % n == 0), default=0)
    if not used:
        raise EqaError(
            f"config: train.nodes={nodes} cannot share a step of train.batch_size x train.gradient_accumulation={total} "
            f"samples equally; raise train.batch_size to {nodes} or a multiple, or lower train.nodes"
        )
    share = total // used
    at_once = math.gcd(batch_size, share)
    return used, at_once, share // at_once


def render(
    config: Mapping,
    *,
    base: str,
    dataset_dir: str,
    media_dir: str,
    output_dir: str,
    devices: int = 1,
    use_cpu: bool = False,
    settings_dir: str = "results/adapter",
) -> dict:
    """LLaMA-Factory's arguments for a training.

    Args:
        config: {"train": {...}, "vision": {...}}.
        base, dataset_dir, media_dir, output_dir: folders, as LLaMA-Factory will open them.
        devices: devices that share the work.
        use_cpu: no GPU here.
        settings_dir: where the file that `deepspeed` names lies.
    Raises:
        EqaError: train.extra holds what it may not, or train.backend is not to be had.
    """
    train, vision = config["train"], config["vision"]
    check_extra(train["extra"])
    check_backend(train["backend"])
    check_steps(train)
    _, at_once, accumulation = spread(train["batch_size"], train["gradient_accumulation"], devices)
    args: dict = {"model_name_or_path": base, **FIXED}
    args |= {"dataset_dir": dataset_dir, "media_dir": media_dir, "output_dir": output_dir}
    for key, argument in PASSED.items():
        section, _, name = key.rpartition(".")
        args[argument] = (vision if section == "vision" else train)[name]
    args |= {
        "bf16": train["precision"] == "bf16",
        "fp16": train["precision"] == "fp16",
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": accumulation,
        "disable_gradient_checkpointing": not train["gradient_checkpointing"],
        "data_seed": train["seed"],
        "use_unsloth": train["backend"] == "unsloth",
        "disable_tqdm": True,
    }
    if train["quantization_bit"]:
        args["quantization_bit"] = train["quantization_bit"]
    else:
        del args["quantization_method"], args["double_quantization"]
    if use_cpu:
        args["use_cpu"] = True
    args |= distributed_args(train["distributed"], settings_dir)
    return args | dict(train["extra"])


def check_distributed(distributed: str, use_cpu: bool) -> None:
    """Whether train.distributed can start here.

    Raises:
        EqaError: zero2 without deepspeed, fsdp without a GPU.
    """
    if distributed == "zero2" and importlib.util.find_spec("deepspeed") is None:
        raise EqaError(
            "config: train.distributed=zero2, but deepspeed is not installed; install it by `make zero2`, "
            "or set train.distributed to ddp"
        )
    if distributed == "fsdp" and use_cpu:
        raise EqaError(
            "config: train.distributed=fsdp needs a GPU, none is visible (accelerate refuses); set it to ddp"
        )


def check_shared(distributed: str, devices: int) -> None:
    """Whether there is somebody to share with.

    Raises:
        EqaError: fsdp on one device. torch 2.11 then leaves the weights whole and stops after the first step of a model
            whose head is its embedding (fsdp/_flat_param.py _use_unsharded_views, seen on an H100).
    """
    if distributed == "fsdp" and devices == 1:
        raise EqaError(
            "config: train.distributed=fsdp shares the model among GPUs, and 1 takes part here; "
            "give train_adapter more (resource gpu), or set it to ddp"
        )


def check_fsdp(train: Mapping, base_dir: Path) -> None:
    """Whether FSDP can share this base: it lays the weights of a layer end to end, so they have one type.

    LLaMA-Factory stores 4-bit weights in the type that the steps compute in, and leaves norms and embeddings in the
    base's own.

    Args:
        train: config `train`.
        base_dir: folder of the base model.
    Raises:
        EqaError: 8 bits, or 4 bits with a base of another type than train.precision.
    Source:
        LLaMA-Factory 0.9.5 model_utils/quantization.py; torch 2.11 fsdp/_flat_param.py
        "Must flatten tensors with uniform dtype".
    """
    if train["distributed"] != "fsdp" or not train["quantization_bit"]:
        return
    if train["quantization_bit"] != 4:
        raise EqaError(
            f"config: train.distributed=fsdp with train.quantization_bit={train['quantization_bit']}: FSDP shares 4-bit "
            "layers only; set train.quantization_bit to 4, or train.distributed to ddp"
        )
    if train["precision"] == "fp32":
        raise EqaError(
            "config: train.distributed=fsdp with train.precision=fp32: 4-bit layers are then stored in 16 bits and "
            "FSDP shares layers of one type only; set train.precision to bf16, or train.distributed to ddp"
        )
    there = base_dtype(base_dir)
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(there, there)
    if short != train["precision"]:
        ways = f"train.precision to {short}, or " if short in ("bf16", "fp16") else ""
        raise EqaError(
            f"{base_dir}: its weights are {there}, and train.distributed=fsdp shares layers of one type only, "
            f"train.precision={train['precision']}; use a base of that type, or set {ways}train.distributed to ddp"
        )


def base_dtype(base_dir: Path) -> str:
    """The type that a base model is loaded in, as "bfloat16": what config.json says, else that of its first weight."""
    config = read_json(base_dir / "config.json", "model configuration")
    named = config.get("dtype") or config.get("torch_dtype")
    if named:
        return str(named).removeprefix("torch.")
    from safetensors import safe_open

    with safe_open(min(base_dir.glob("model*.safetensors")), "pt") as file:
        kind = file.get_slice(min(file.keys())).get_dtype()
    return {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}.get(kind, kind)


def distributed_args(distributed: str, settings_dir: str) -> dict:
    """Arguments of one way to share the work; "ddp" is what LLaMA-Factory does without any."""
    if distributed == "zero2":
        return {"deepspeed": f"{settings_dir}/zero2.json"}
    if distributed == "fsdp":
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": FSDP}
    return {}


# FSDP of a 4-bit base: the storage type equals the compute type (LLaMA-Factory sets it), layers are the unit. Each
# process loads the whole base onto its own device first. Checkpoints hold whole tensors, accelerate's default
FSDP = {
    # for a model without adapters; PEFT puts a rule of its own in place: these layers by the model's own list, and
    # each LoRA matrix by itself, which may then be float32
    "transformer_layer_cls_to_wrap": ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"],
    "backward_prefetch": "backward_pre",
    "forward_prefetch": False,
    "use_orig_params": True,  # frozen and trained weights in one unit
    "sync_module_states": True,
}
# "auto": transformers fills in the values of its own arguments
ZERO2 = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2},
    "zero_optimization": {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 5e8,
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": 5e8,
        "contiguous_gradients": True,
        "round_robin_gradients": True,
    },
}


def to_yaml(args: Mapping, devices: int = 1) -> str:
    """The arguments as a file for `llamafactory-cli train`, sorted, equal bytes for equal arguments.

    Args:
        args: of `render`.
        devices: how many share a step.
    """
    import yaml

    head = "# LLaMA-Factory recipe of this adapter; by hand, from the repository's root:\n"
    start = "FORCE_TORCHRUN=1 " if "fsdp" in args or "deepspeed" in args else ""  # also for one device
    head += f"#   {start}uv run --frozen --project envs/train llamafactory-cli train results/adapter/train.yaml\n"
    head += f"# It starts a process for each visible GPU, and each takes the batch below, meant for {devices} device(s): show\n"
    head += "# so many by CUDA_VISIBLE_DEVICES, or a step holds other samples than it did here.\n"
    return head + yaml.safe_dump(dict(args), sort_keys=True, default_flow_style=False, allow_unicode=True, width=1000)
