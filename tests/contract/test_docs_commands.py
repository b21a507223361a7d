"""Every command in README and docs/ is run by a test, or the page says what that would need."""

from __future__ import annotations

import re

import pytest

from tests.lib.docs import blocks, commands, is_shell, pages, words
from tests.lib.project import ROOT

SHELL = [block for page in pages() for block in blocks(page) if is_shell(block)]


def reads_its_blocks(test: str, page: str) -> bool:
    """Whether a test runs what stands in the page, by reading it: it names the page, or takes all blocks that name it."""
    source = (ROOT / test).read_text()
    return page in source or "runnable(__file__)" in source


def test_the_pages_have_commands():
    assert len(SHELL) >= 20


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_a_shell_block_says_which_test_runs_it(block):
    assert block.mark, (
        f"{block.name}: put `<!-- tested: tests/PATH.py -->` or `<!-- not tested: REASON -->` on the line before it"
    )
    if block.mark == "not tested":
        assert len(block.detail.split()) >= 2, f"{block.name}: a reason is wanted, not {block.detail!r}"
        return
    missing = [test for test in block.tests if not (ROOT / test).is_file()]
    assert not missing, f"{block.name}: no such test {missing}"
    if any(reads_its_blocks(test, block.page) for test in block.tests):
        return
    source = " ".join(words((ROOT / test).read_text()) for test in block.tests)
    for command in commands(block):
        if command == ". .venv/bin/activate":
            continue  # tests call the environment's tools by their place
        assert words(command) in source, f"{block.name}: `{command}` stands in none of {block.tests}"


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_commands_are_fenced_not_indented(page):
    """An indented block has no place for a mark."""
    outside = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"^    \$ .*", outside, flags=re.MULTILINE), f"{page.name}: fence it as console"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```sh\nmake demo   # set up\n```", ["make demo"]),
        ("```sh\nsed -i 's/# a/b/' x  # change\n```", ["sed -i 's/# a/b/' x"]),
        ("```console\n$ dvc push\n3 files pushed\n$ a \\\n    b\nout\n```", ["dvc push", "a      b"]),
        ("```sh\n# only a comment\n\nuv run \\\n  python\n```", ["uv run  python"]),
    ],
)
def test_commands_of_a_block(tmp_path, text, expected):
    page = tmp_path / "page.md"
    page.write_text(text)
    (block,) = blocks(page, tmp_path)
    assert [words(command) for command in commands(block)] == [words(command) for command in expected]


def test_a_block_without_mark_or_with_an_unknown_test_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n```sh\na\n```\n<!-- tested: tests/nowhere.py -->\n```sh\nb\n```\n```json\n{}\n```\n")
    found = blocks(page, tmp_path)
    assert [(block.mark, block.tests, is_shell(block)) for block in found] == [
        ("", [], True),
        ("tested", ["tests/nowhere.py"], True),
        ("", [], False),
    ]


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_both_readmes_lead_to_every_page(readme):
    text = (ROOT / readme).read_text()
    missing = [
        f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if f"](docs/{path.name})" not in text
    ]
    assert not missing, f"{readme}: add to the table of pages: {missing}"
