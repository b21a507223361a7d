"""The shell blocks of README and docs/, and what the comment before each says about its test.

A block in `sh`, `bash`, `shell` or `console` is preceded by one of
    <!-- tested: tests/PATH.py -->          the test that runs these commands; more paths with commas
    <!-- not tested: needs a CUDA GPU -->   why nothing here runs them
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.lib.project import ROOT

LANGUAGES = ("sh", "bash", "shell", "console")
MARK = re.compile(r"<!-- (tested|not tested): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the page, relative to the project.
        line: line of the opening fence, from 1.
        language: what stands behind the fence.
        text: the lines between the fences.
        mark: "tested", "not tested", or "" where no comment precedes it.
        detail: paths of tests, or the reason.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str
    detail: str

    @property
    def name(self) -> str:
        """For messages and test ids."""
        return f"{self.page}:{self.line}"

    @property
    def tests(self) -> list[str]:
        """Paths of the tests that run it."""
        return [path.strip() for path in self.detail.split(",")] if self.mark == "tested" else []


def pages() -> list[Path]:
    """README in both languages, CONTRIBUTING, and docs/."""
    return [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md")] + sorted(
        (ROOT / "docs").glob("*.md")
    )


def blocks(page: Path, root: Path = ROOT) -> list[Block]:
    """Every fenced block of a page, shell or not."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, start, language = [], None, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line.removeprefix("```").strip()
            continue
        before = next((text.strip() for text in reversed(lines[:start]) if text.strip()), "")
        mark = MARK.fullmatch(before)
        kind, detail = mark.groups() if mark else ("", "")
        text = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Block(str(page.relative_to(root)), start + 1, language, text, kind, detail))
        start = None
    return found


def is_shell(block: Block) -> bool:
    """Whether a block is to be typed: by its language, or because it shows a prompt."""
    return block.language in LANGUAGES or bool(re.search(r"^\$ ", block.text, flags=re.MULTILINE))


def commands(block: Block) -> list[str]:
    """The commands of a block, one a line: no comments, no prompts, no output, continued lines joined."""
    text = block.text
    if block.language == "console" or re.search(r"^\$ ", text, flags=re.MULTILINE):
        kept, going = [], False
        for line in text.splitlines():
            if line.startswith("$ ") or going:
                kept.append(line.removeprefix("$ "))
                going = line.endswith("\\")
        text = "\n".join(kept)
    joined = re.sub(r"\\\n\s*", " ", text)
    return [bare for line in joined.splitlines() if (bare := without_comment(line))]


def without_comment(line: str) -> str:
    """A line without its trailing `# ...`; a quoted # stays."""
    for place in [match.start() for match in re.finditer(r"(?:^|\s)#", line)]:
        head = line[:place]
        try:
            shlex.split(head)
        except ValueError:
            continue  # inside quotes
        return head.strip()
    return line.strip()


def words(text: str) -> str:
    """Text as bare words, so that `"dvc", "push"` in a test equals `dvc push` in a page."""
    return " ".join(re.sub(r"[\"',\[\]()]+", " ", text).split())
