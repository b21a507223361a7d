"""Draw the rule graph as SVG and PNG by matplotlib: Graphviz's dot is not on a bare machine.

By hand:
    python -m scripts.draw_rulegraph --output docs/rulegraph.svg
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_path

COLOURS = {"data": "#2b6cb0", "train": "#b7791f", "evaluate": "#2f855a", "deliver": "#805ad5", "report": "#c53030"}


def parse_dot(dot: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Rules and edges (from, to) of Snakemake's `--rulegraph` output, `all` left out."""
    names = dict(re.findall(r"^\s*(\d+)\[label = \"([^\"\\]+)", dot, flags=re.MULTILINE))
    edges = [(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", dot, flags=re.MULTILINE)]
    rules = [name for name in names.values() if name != "all"]
    return rules, [(a, b) for a, b in edges if "all" not in (a, b)]


def layers(rules: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Column of each rule: one more than the largest column among its inputs."""
    column = dict.fromkeys(rules, 0)
    for _ in rules:
        for source, target in edges:
            column[target] = max(column[target], column[source] + 1)
    return column


def order_rows(column: dict[str, int], edges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Row of each rule in its column, near the mean row of its neighbours (barycentre sweeps)."""
    row = {}
    for index in range(max(column.values()) + 1):
        for place, name in enumerate(sorted(name for name in column if column[name] == index)):
            row[name] = float(place)
    for sweep in range(24):
        forward = sweep % 2 == 0
        for index in sorted(set(column.values()), reverse=not forward):
            members = [name for name in column if column[name] == index]
            wish = {}
            for name in members:
                near = [a if b == name else b for a, b in edges if name in (a, b)]
                near = [other for other in near if (column[other] < index) == forward]
                wish[name] = sum(row[other] for other in near) / len(near) if near else row[name]
            for place, name in enumerate(sorted(members, key=lambda name: (wish[name], name))):
                row[name] = place - (len(members) - 1) / 2
    return row


def draw(dot: str, home: dict[str, str], output: Path) -> dict:
    """Write `output` (SVG) and a PNG beside it."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rulegraph"  # equal graphs give equal bytes
    from matplotlib import pyplot

    rules, edges = parse_dot(dot)
    if not rules:
        raise EqaError("snakemake --rulegraph printed no rules; run `snakemake -n` to see why")
    column = layers(rules, edges)
    row = order_rows(column, edges)
    width, height = max(column.values()) + 1, max(row.values()) - min(row.values()) + 1
    figure, axes = pyplot.subplots(figsize=(width * 1.75, height * 0.85 + 0.6))
    for source, target in edges:
        if column[target] - column[source] > 1 and any(
            (source, middle) in edges and column[middle] < column[target]
            for middle in rules
            if (middle, target) in edges
        ):
            continue  # implied by a longer way
        axes.annotate(
            "",
            xy=(column[target] - 0.4, row[target]),
            xytext=(column[source] + 0.4, row[source]),
            arrowprops={"arrowstyle": "-|>", "color": "#8795a8", "lw": 0.9, "connectionstyle": "arc3,rad=0.06"},
        )
    for name in rules:
        axes.text(
            column[name],
            row[name],
            name.replace("_", "\n", 1),
            ha="center",
            va="center",
            fontsize=9,
            color="white",
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": COLOURS.get(home.get(name, ""), "#4a5568"),
                "edgecolor": "none",
            },
        )
    axes.set_xlim(-0.6, width - 0.4)
    axes.set_ylim(max(row.values()) + 0.7, min(row.values()) - 0.7)
    axes.axis("off")
    figure.legend(
        handles=[
            pyplot.Line2D([], [], marker="s", ls="", color=colour, label=f"rules/{name}.smk")
            for name, colour in COLOURS.items()
        ],
        loc="lower center",
        ncols=len(COLOURS),
        frameon=False,
        fontsize=8,
    )
    for path in (output, output.with_suffix(".png")):
        with atomic_path(path) as part:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(
                part, format=path.suffix[1:], dpi=110, bbox_inches="tight", metadata=metadata, facecolor="white"
            )
    pyplot.close(figure)
    return {"rules": len(rules), "edges": len(edges)}


def rule_files(root: Path) -> dict[str, str]:
    """Stem of the file in rules/ that defines each rule."""
    found = {}
    for file in sorted((root / "rules").glob("*.smk")):
        for name in re.findall(r"^\s*rule (\w+):", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            found[name] = file.stem
    return found


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="draw_rulegraph", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="SVG file; a PNG is written beside it")
    return parser


def run(args: argparse.Namespace) -> dict:
    """Door 2: ask Snakemake, draw."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--rulegraph", "--forceall"], capture_output=True, text=True
    )
    if done.returncode:
        raise EqaError(f"snakemake --rulegraph failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return draw(done.stdout, rule_files(Path()), args.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("draw_rulegraph", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
