"""What a run ended with, in a few lines: the numbers, and the paths to open.

By hand:
    python -m scripts.summary
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

METRIC = "exact_match"
PLACES = {
    "report": "results/report/index.html",
    "metrics": "results/metrics.json",
    "adapter": "results/adapter",
    "merged model": "results/merged",
    "GGUF": "results/gguf",
    "Ollama": "results/ollama/Modelfile",
}


def _load(path: Path) -> dict | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def summary_lines(root: Path) -> list[str]:
    """Lines for the terminal; says what is missing instead of failing.

    Args:
        root: the project's folder.
    """
    metrics = _load(root / "results/metrics.json")
    if metrics is None:
        return ["no results/metrics.json yet: `snakemake --cores 8` makes it"]
    lines = []
    for model in ("base", "tuned", "blind", "majority"):
        value = metrics.get(f"{model}_{METRIC}")
        if value is not None:
            lines.append(f"  {model:<9} exact match {value:5.1f} %")
    prefix = f"tuned_minus_base_{METRIC}"
    low, high = metrics.get(f"{prefix}_low"), metrics.get(f"{prefix}_high")
    if low is not None and high is not None:
        verdict = "tuned is better" if low > 0 else "tuned is worse" if high < 0 else "no detectable difference"
        lines.append(f"  tuned - base {metrics[prefix]:+.1f} points, interval {low:+.1f} to {high:+.1f}: {verdict}")
    lines += [f"  {name:<13} {path}" for name, path in PLACES.items() if (root / path).exists()]
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="summary", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    args = build_parser().parse_args(argv)
    print("\n".join(summary_lines(args.root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
