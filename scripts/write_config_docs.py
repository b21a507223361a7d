"""Write docs/config.md from config/schema.yaml and the presets.

By hand:
    python -m scripts.write_config_docs --output docs/config.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.config import PRESETS_DIR, load_yaml
from scripts.lib.files import write_text

HEADER = """\
# Config reference

One file holds the whole recipe: `config/config.yaml`. `make use PRESET=NAME` copies a preset over it; every preset has
every key. Unknown keys, wrong types and contradictions stop a run before any job, in one line. This page is made from
`config/schema.yaml` by `python -m scripts.write_config_docs --output docs/config.md`.

"""


def limits(key: Mapping) -> str:
    """Type and bounds of one schema key, for people."""
    if "enum" in key:
        return ", ".join(f"`{json.dumps(value)}`" if value == "" else f"`{value}`" for value in key["enum"])
    kind = str(key.get("type", "any"))
    low = key.get("minimum", key.get("exclusiveMinimum"))
    high = key.get("maximum", key.get("exclusiveMaximum"))
    if low is not None:
        kind += f" {'>' if 'exclusiveMinimum' in key else '≥'} {low:g}"
    if high is not None:
        kind += f"{',' if low is not None else ''} {'<' if 'exclusiveMaximum' in key else '≤'} {high}"
    return kind


def shown(value: object) -> str:
    """A value as it stands in YAML, short."""
    return f"`{json.dumps(value) if isinstance(value, str | bool | dict) else f'{value:g}'}`"


def page(schema: Mapping, presets: Mapping[str, Mapping]) -> str:
    """The whole page.

    Args:
        schema: parsed config/schema.yaml.
        presets: parsed presets by name.
    """
    text = HEADER
    names = sorted(presets)
    for section, part in schema["properties"].items():
        if "properties" not in part:
            text += f"## {section}\n\n{part['description']}\n\n"
            continue
        text += (
            f"## {section}\n\n| key | limits | {' | '.join(names)} | meaning |\n|---|---|{'---|' * len(names)}---|\n"
        )
        for key, schema_key in part["properties"].items():
            values = [shown(presets[name][section][key]) for name in names]
            text += (
                f"| `{section}.{key}` | {limits(schema_key)} | {' | '.join(values)} | {schema_key['description']} |\n"
            )
        text += "\n"
    return text.rstrip() + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="write_config_docs", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    return parser


def run(args: argparse.Namespace) -> dict:
    """Door 2."""
    presets = {path.stem: load_yaml(path) for path in sorted(PRESETS_DIR.glob("*.yaml"))}
    write_text(args.output, page(load_yaml(Path("config/schema.yaml")), presets))
    return {"presets": len(presets)}


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("write_config_docs", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
