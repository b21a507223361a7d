"""Write the whole checked recipe as JSON.   By hand:
python -m scripts.write_config --config '{"preset":"demo"}' --output results/config.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.files import write_json


def run(config: dict, output: Path) -> dict:
    """Write `config` to `output`: sorted keys, two spaces, no times."""
    write_json(output, config, indent=2)
    return {"sections": len(config)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="write_config", description="Write the whole checked recipe as JSON.")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: the whole recipe")
    parser.add_argument("--output", type=path_argument, required=True, help="file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("write_config", build_parser, lambda args: run(args.config, args.output), argv)


if __name__ == "__main__":
    sys.exit(main())
