"""Export the merged model as GGUF for llama.cpp.   By hand, in envs/gguf:
python -m scripts.export_gguf --merged results/merged/manifest.json --config '{"deliver":{"gguf":true}}' \
    --output-dir results/gguf

Writes model-f16.gguf and mmproj-f16.gguf (the vision part), model-q8_0.gguf, and model-q4_K_M.gguf.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, check_manifest, disabled, write_json, write_manifest
from scripts.lib.ollama_folder import check_shards
from scripts.lib.progress import track

log = logging.getLogger("export_gguf")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MODEL, PROJECTOR = "model-f16.gguf", "mmproj-f16.gguf"


def disk_needed(weights: int) -> int:
    """Bytes of all four files, given those of the merged bf16 weights: 1 + 0.53 + 0.3 of them, rounded up."""
    return weights * 2 + 50_000_000


def check_disk(folder: Path, need: int) -> None:
    """Raises EqaError when `folder`'s file system has less than `need` bytes left."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise EqaError(
            f"{folder}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; free space or set "
            "deliver.gguf=false"
        )


@contextlib.contextmanager
def full_disk_told(output: Path) -> Iterator[None]:
    """Tell of a disk that fills up while `output` is written.

    numpy raises a bare OSError("N requested and M written") for a short write, without a number or a file.

    Raises:
        EqaError: the disk is full; names the folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL or (error.errno is None and "requested and" in str(error)):
            # the converter's bar is still open and would draw itself once more behind the message
            traceback.clear_frames(error.__traceback__)
            raise EqaError(
                f"{output}: the disk is full or a file may not grow ({error.strerror or error}); free space and run again, "
                "or set deliver.gguf=false"
            ) from error
        raise


def check_metadata(path: Path, strings: dict[str, str], folder: Path) -> None:
    """Refuse a file that tells where it was made: two machines would then make different bytes.

    Args:
        path: the GGUF file.
        strings: its metadata, name -> text.
        folder: the model that it was made from.
    Raises:
        EqaError: a path of this machine in the metadata.
    """
    places = {str(place) for place in (Path.cwd(), folder.resolve(), path.parent.resolve())} - {os.sep}
    for key, value in sorted(strings.items()):
        if any(place in value for place in places):
            raise EqaError(
                f"{path}: metadata {key}={value[:80]!r} holds a path of this machine; use another model folder"
            )


def run(merged: Path, config: dict, output: Path) -> dict:
    """Write all files and the manifest into `output`, which is replaced as a whole.

    Args:
        merged: results/merged/manifest.json.
        config: deliver.gguf.
        output: results/gguf.
    Raises:
        EqaError: a missing or broken shard, no space before or in the middle, a tokenizer that llama.cpp does not know.
    """
    if not config["deliver"]["gguf"]:
        with atomic_folder(output) as part:
            write_json(part / "manifest.json", disabled("deliver.gguf"))
        return {"status": "disabled"}
    check_manifest(merged)
    folder = merged.parent
    check_shards(folder)
    check_disk(output, disk_needed(sum(path.stat().st_size for path in folder.glob("model*.safetensors"))))

    from scripts.lib.gguf_convert import Quantizer, convert, describe, quantize_q4_k_m

    made = {}
    with full_disk_told(output), atomic_folder(output) as part:
        wanted = ((MODEL, "f16", False), (PROJECTOR, "f16", True), ("model-q8_0.gguf", "q8_0", False))
        for name, kind, projector in track(wanted, "files"):
            log.info("%s", name)
            convert(folder, part / name, kind, projector)
            facts = describe(part / name)
            check_metadata(part / name, facts["strings"], folder)
            made[name] = facts["tensors"]
        quantizer = Quantizer()
        extra = {}
        if quantizer.available:
            log.info("model-q4_K_M.gguf")
            made["model-q4_K_M.gguf"] = quantize_q4_k_m(part / MODEL, part / "model-q4_K_M.gguf", quantizer)
        else:
            extra["left_out"] = {"model-q4_K_M.gguf": "this xllamacpp build exports no ggml_quantize_chunk"}
        sizes = {path.name: path.stat().st_size for path in sorted(part.glob("*.gguf"))}
        write_manifest(part, {"tensors": made, "architecture": "qwen3vl", **extra})
    return {"bytes": sizes, **extra}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export_gguf", description="Export the merged model as GGUF.")
    parser.add_argument("--merged", type=path_argument, required=True, help="manifest.json of the merged folder")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: deliver.gguf")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="folder that is written whole")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("export_gguf", build_parser, lambda args: run(args.merged, args.config, args.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())
