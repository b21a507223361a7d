"""The table of rule x fault x outcome, as text and between two marks of docs/reliability.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

BEGIN = "<!-- fault matrix: begin, written by `make test-faults` -->"
END = "<!-- fault matrix: end -->"
STARRED = "\\* by an earlier source of this rule or of what all cases share; `make test-faults` runs it again."


def cell(results: Mapping[tuple[str, str], Mapping], rule: str, fault: str, key: str) -> str:
    """A case's outcome; starred where the rule's sources have changed since; "not run" where there is none."""
    result = results.get((rule, fault))
    if result is None:
        return "not run"
    return result["outcome"].replace("|", "/") + ("" if result["key"] == key else " *")


def text(
    rules: Sequence[str],
    faults: Sequence[str],
    results: Mapping[tuple[str, str], Mapping],
    keys: Mapping[str, str],
) -> str:
    """A Markdown table with a row a rule and a column a fault, then a count of the outcomes."""
    cells = {(rule, fault): cell(results, rule, fault, keys[rule]) for rule in rules for fault in faults}
    lines = [
        f"| rule | {' | '.join(faults)} |",
        f"|---|{'---|' * len(faults)}",
        *(f"| {rule} | {' | '.join(cells[rule, fault] for fault in faults)} |" for rule in rules),
        "",
    ]
    found = [results[case] for case in cells if case in results]
    passed = sum(bool(result["good"]) for result in found)
    broken = sum(result["good"] is False for result in found)
    lines.append(
        f"{len(cells)} cases: {passed} kept every promise, {broken} broke one, {len(cells) - passed - broken} not run."
    )
    commits = {(result["day"], result["commit"]) for result in found if result.get("commit")}
    runs = sorted(commits, key=lambda run: (run[0], ancestors(run[1]), run[1]))
    if runs:
        first, last = (f"{commit} ({day})" for day, commit in (runs[0], runs[-1]))
        lines += ["", f"Run at commit {first}." if first == last else f"Run at commits {first} to {last}."]
    if any(text.endswith(" *") for text in cells.values()):
        lines += ["", STARRED]
    return "\n".join(lines)


@cache
def ancestors(commit: str) -> int:
    """Commits that lead up to one, so that an earlier one has fewer; 0 where git does not know it."""
    done = subprocess.run(
        ["git", "rev-list", "--count", commit.removesuffix("+"), "--"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return int(done.stdout) if done.returncode == 0 else 0


def write(page: Path, *what) -> None:
    """Put the table between the marks of `page`."""
    old = page.read_text()
    new = f"{BEGIN}\n\n{text(*what)}\n\n{END}"
    changed, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda match: new, old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page}: the marks of the table are missing")
    page.write_text(changed)


def read(page: Path) -> tuple[list[str], list[str]]:
    """(rules, faults) that the table of `page` lists."""
    body = page.read_text().split(BEGIN)[1].split(END)[0]
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")]
    return [row[0] for row in rows[2:]], rows[0][1:]
