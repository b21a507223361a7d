"""Copy a preset over config/config.yaml, or tell whether it holds the expected one.

By hand:
    python -m scripts.use_preset --preset openeqa-t4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.config import load_yaml, use_preset
from scripts.lib.errors import EqaError

CONFIG = Path("config/config.yaml")


def expect_preset(name: str, config: Path = CONFIG) -> dict:
    """Refuse to go on where config.yaml started from another preset.

    Raises:
        EqaError: names both and the command that switches.
    """
    loaded = load_yaml(config)
    found = loaded.get("preset") if isinstance(loaded, dict) else None
    if found != name:
        raise EqaError(
            f"{config}: preset={found}, but {name} is wanted here; `make use PRESET={name}` switches, `make run` runs yours"
        )
    return {"preset": name}


def build_parser() -> argparse.ArgumentParser:
    """Command line of `make use` and of the check in `make demo`."""
    parser = argparse.ArgumentParser(prog="use_preset", description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--preset", help="name of a file in config/presets, without .yaml")
    choice.add_argument("--expect", help="fail unless config.yaml started from this preset")
    return parser


def run(args: argparse.Namespace) -> dict:
    """Door 2: switch or check."""
    if args.expect is not None:
        return expect_preset(args.expect)
    use_preset(args.preset, Path.cwd())
    return {"preset": args.preset, "written": str(CONFIG)}


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("use_preset", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
