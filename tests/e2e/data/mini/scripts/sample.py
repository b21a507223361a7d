"""Frames of one shard of the miniature."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scripts.lib.files import file_record, read_json, write_json, write_text

parser = argparse.ArgumentParser()
parser.add_argument("--source", type=Path)
parser.add_argument("--shard", type=int)
parser.add_argument("--config", type=json.loads)
parser.add_argument("--output", type=Path)

if __name__ == "__main__":
    args = parser.parse_args()
    frames = args.output.parent.parent
    files = {}
    for number, (episode, text) in enumerate(sorted(read_json(args.source).items())):
        if number % 2 == args.shard:
            for index in range(args.config["frames"]["count"]):
                name = f"{episode}/{index:03d}.jpg"
                write_text(frames / name, f"{text} {index}\n")
                files[name] = file_record(frames / name)
    write_json(args.output, {"files": files})
