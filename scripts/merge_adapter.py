"""The adapter merged into the unquantized base by LLaMA-Factory's export.   By hand, in envs/train:

    uv run --frozen --project envs/train python -m scripts.merge_adapter --base models/base/manifest.json \
        --adapter results/adapter/manifest.json --config '{"merge":{"dtype":"bfloat16","shard_gb":2},"train":{...}}' \
        --work-dir work/merge --output-dir results/merged

Only weights come out of the export. Tokenizer, processor and chat template are the base model's own files, byte for
byte, and config.json is the base's with the type of the weights: a merge changes nothing else.

Export arguments of the usual recipe: export_size is merge.shard_gb; export_device is always cpu, since a GPU rounds
B x A differently and the result shall not depend on the machine; export_legacy_format is gone, safetensors is the only
format here; trust_remote_code is gone, Qwen3-VL is part of transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.lib.base_model import check_adapter_base, check_model_folder
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, check_manifest, read_json, remove, sha256_file, write_json, write_manifest
from scripts.lib.llamafactory_args import base_dtype
from scripts.lib.ollama_folder import check_shards, mend_for_ollama
from scripts.lib.safetensors_heads import shapes
from scripts.lib.threads import one_thread

log = logging.getLogger(__name__)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SLACK_BYTES = 64 * 2**20  # tokenizer, file system blocks
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def disk_need(parameters: int, dtype: str) -> int:
    """Bytes that a merged model takes while the one before still lies beside it."""
    return parameters * BYTES[dtype] + SLACK_BYTES


def check_disk(folder: Path, need: int) -> None:
    """Raises:
    EqaError: less than `need` bytes are free where `folder` will be.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise EqaError(
            f"{folder}: the merged model needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free space, or set merge.dtype to bfloat16"
        )


def export_arguments(base: Path, adapter: Path, output: Path, config: Mapping) -> dict:
    """LLaMA-Factory's arguments for its export."""
    merge = config["merge"]
    size = merge["shard_gb"]
    return {
        "model_name_or_path": str(base),
        "adapter_name_or_path": str(adapter),
        "template": config["train"]["template"],
        "finetuning_type": "lora",
        "infer_dtype": merge["dtype"],
        "export_dir": str(output),
        "export_size": int(size) if float(size).is_integer() else size,
        "export_device": "cpu",
    }


def merged_config(base: Mapping, dtype: str) -> dict:
    """The base's config.json with another type of weights, under the name that each reader looks for."""
    sections = ("text_config", "vision_config")
    config = {key: dict(value) if key in sections else value for key, value in base.items()}
    config |= {"dtype": dtype, "torch_dtype": dtype}
    for name in sections:
        if name in config:
            config[name] = config[name] | {"dtype": dtype}
    return config


def run(args: argparse.Namespace) -> dict:
    """Merge, check that nothing but values changed, write the folder whole."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "LLAMAFACTORY_VERBOSITY": "WARNING"})
    one_thread()
    base, adapter = args.base.parent, args.adapter.parent
    check_manifest(args.base)
    parameters = check_model_folder(base)
    facts = check_manifest(args.adapter)
    base_sha256 = check_adapter_base(args.adapter, facts, args.base)
    dtype = args.config["merge"]["dtype"]
    check_disk(args.output_dir, disk_need(parameters, dtype))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    with atomic_folder(args.output_dir) as folder, _loaded_as(base, dtype, args.work_dir) as source:
        _export(export_arguments(source, adapter, folder, args.config), args.work_dir / "export.log")
        _keep_weights_only(folder)
        _take_over(base, folder)
        write_json(folder / "config.json", merged_config(read_json(base / "config.json"), dtype), indent=2)
        added = mend_for_ollama(folder)
        check_shards(folder)
        _check_tensors(base, folder)
        extra = {"base_sha256": base_sha256, "adapter_sha256": sha256_file(args.adapter), "dtype": dtype}
        manifest = write_manifest(folder, {**extra, "parameters": parameters}, exclude=("verify.json",))
    return {"files": len(manifest["files"]), "parameters": parameters, "mended": added}


@contextlib.contextmanager
def _loaded_as(base: Path, dtype: str, work_dir: Path) -> Iterator[Path]:
    """The base as a folder that LLaMA-Factory adds the adapter to in float32, where float32 is asked for.

    It loads a model in the type that config.json names and converts the sums afterwards, whatever `infer_dtype` says:
    float32 of a bfloat16 base would hold sums rounded to bfloat16. The folder links to the base's files beside a
    config.json that names float32.

    Source: LLaMA-Factory 0.9.5 model/loader.py load_model ("auto"), train/tuner.py export_model.
    """
    if dtype != "float32" or base_dtype(base) == dtype:
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="base.", dir=work_dir) as name:
        folder = Path(name)
        for path in sorted(base.iterdir()):
            if path.is_file() and path.name != "config.json":
                (folder / path.name).symlink_to(path.resolve())
        write_json(folder / "config.json", merged_config(read_json(base / "config.json"), dtype), indent=2)
        yield folder


def _export(arguments: Mapping, noise: Path) -> None:
    from scripts.lib.llamafactory_args import known_arguments

    unknown = sorted(set(arguments) - set(known_arguments()))
    if unknown:
        raise RuntimeError(f"LLaMA-Factory has no export argument {unknown[0]}")
    with noise.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        from llamafactory.train.tuner import export_model

        try:
            export_model(dict(arguments))
        except Exception as error:
            # safetensors tells the number in its text alone; quotas and limits of a file's size stop a write as well
            numbers = {getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))}
            if numbers & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} or "No space left" in str(error):
                raise EqaError(
                    f"{arguments['export_dir']}: the disk or a quota is full ({str(error)[:120]}); free space, then run again"
                ) from error
            raise


def _keep_weights_only(folder: Path) -> None:
    weights = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    for path in sorted(folder.iterdir()):
        if path not in weights:
            remove(path)
        else:
            path.chmod(0o644)


def _take_over(base: Path, folder: Path) -> None:
    """Copy what is neither weights nor ours: tokenizer, processor, chat template, generation config, licence."""
    skip = {path.name for pattern in _WEIGHTS for path in base.glob(pattern)} | {"manifest.json", "config.json"}
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name not in skip and not path.name.startswith("."):
            shutil.copyfile(path, folder / path.name)


def _check_tensors(base: Path, folder: Path) -> None:
    """The merged weights have the base's names and shapes.

    Raises:
        EqaError: a tensor is missing, new, or of another shape.
    """
    before, after = shapes(base), shapes(folder)
    odd = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    # a tied output head may be written or left out
    odd = [name for name in odd if name != "lm_head.weight"]
    if odd:
        name = odd[0]
        raise EqaError(
            f"{folder}: {len(odd)} tensors differ from the base's, such as {name} "
            f"({before.get(name)} -> {after.get(name)}); the adapter does not belong to this base"
        )


def build_parser() -> argparse.ArgumentParser:
    """Options of the terminal and of the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=path_argument, required=True, help="models/base/manifest.json")
    parser.add_argument("--adapter", type=path_argument, required=True, help="results/adapter/manifest.json")
    parser.add_argument(
        "--config", type=json_argument, required=True, help="JSON: merge.dtype, merge.shard_gb, train.template"
    )
    parser.add_argument("--work-dir", type=path_argument, required=True, help="the export's own messages")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="results/merged")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Door of the terminal and of Snakemake."""
    return entry("merge_adapter", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
