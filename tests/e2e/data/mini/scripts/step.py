"""Every step of the miniature: outputs that are functions of inputs and parameters, written as the project's scripts write."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.files import atomic_folder, read_json, write_json, write_jsonl, write_manifest, write_text


def digest(paths: Sequence[Path], config: str = "") -> int:
    """A number that depends on all bytes of the inputs and on the parameters."""
    sha256 = hashlib.sha256(config.encode())
    for path in paths:
        sha256.update(path.read_bytes())
    return int(sha256.hexdigest()[:8], 16)


def folder(manifest: Path, files: dict[str, str]) -> None:
    """A folder of text files behind its manifest."""
    with atomic_folder(manifest.parent) as part:
        for name, text in files.items():
            write_text(part / name, text)
        write_manifest(part)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path, nargs="+")
    parser.add_argument("--config", default="{}")
    args = parser.parse_args(argv)
    first, number, config = args.output[0], digest(args.inputs, args.config), json.loads(args.config)
    if args.step == "list_source":
        write_json(first, {path.stem: path.read_text() for path in sorted(Path("data/source").glob("*.txt"))})
    elif args.step == "join_frames":
        write_json(first, {"files": {k: v for path in args.inputs for k, v in read_json(path)["files"].items()}})
    elif args.step == "build_sft":
        for part, path in zip(("train", "test"), args.output, strict=True):
            write_json(path, {"part": part, "frames": sorted(read_json(args.inputs[0])["files"]), "from": number})
    elif args.step == "make_folder":
        folder(first, {"model.safetensors": f"weights {number}\n" * 1000, "config.json": "{}\n"})
    elif args.step == "train":
        folder(first, {"adapter_model.safetensors": f"adapter {number}\n", "adapter_config.json": args.config + "\n"})
        losses = [round(config["train"]["learning_rate"] * 10 / step, 4) for step in range(1, 6)]
        write_json(args.output[1], {"train": [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]})
        write_text(args.output[2], "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1)))
    elif args.step == "predict":
        write_jsonl(first, [{"question_id": str(i), "prediction": str(number + i)} for i in range(5)])
        write_json(args.output[1], {"count": 5, "from": number})
    elif args.step == "compare":
        write_json(first, {f"{path.stem}_exact_match": read_json(path)["exact_match"] for path in args.inputs})
    else:
        raise SystemExit(f"no step {args.step}")


if __name__ == "__main__":
    main()
