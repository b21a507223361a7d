"""Every command in README and docs/ is run by a test, or the page says what that would need."""

from __future__ import annotations

import ast
import re

import pytest

from tests.lib.docs import blocks, commands, is_shell, pages, words
from tests.lib.project import ROOT

SHELL = [block for page in pages() for block in blocks(page) if is_shell(block)]


RUNNERS = {"call", "run", "Popen", "check_output", "check_call", "snakemake"}  # the last part of a function's name


def code_of(source: str) -> ast.Module:
    """A test's code without docstrings: what is only told there was not run."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    return tree


def name_of(call: ast.Call) -> str:
    """The last part of the called function's name."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def reads_its_blocks(source: str, page: str) -> bool:
    """Whether a test takes the commands from the page itself.

    It asks for the page's blocks by name, reads the page below ROOT, or takes all blocks that name the test.
    """
    for node in ast.walk(code_of(source)):
        if not isinstance(node, ast.Call):
            continue
        name, words_ = name_of(node), [ast.unparse(one) for one in node.args]
        if name == "runnable" and words_ == ["__file__"]:
            return True
        if name == "block_of" and words_[:1] == [repr(page)]:
            return True
        here = f"ROOT / {page!r}"
        if (name == "blocks" and here in words_) or (
            name == "read_text" and ast.unparse(node.func).startswith(f"({here})")
        ):
            return True
    return False


def given_to_a_runner(source: str) -> list[str]:
    """As bare words, what a test hands to a function that starts programs: its arguments, and lists that they name."""
    tree = code_of(source)
    named: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple | ast.Constant):
            for target in node.targets:
                named.setdefault(ast.unparse(target), []).append(ast.unparse(node.value))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node) in RUNNERS:
            found.append(" ".join(ast.unparse(one) for one in node.args))
            for used in ast.walk(node):
                found += named.get(used.id, []) if isinstance(used, ast.Name) else []
    return [words(text) for text in found]


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
    sources = [(ROOT / test).read_text() for test in block.tests]
    if any(reads_its_blocks(source, block.page) for source in sources):
        return
    given = [text for source in sources for text in given_to_a_runner(source)]
    for command in commands(block):
        if command == ". .venv/bin/activate":
            continue  # tests call the environment's tools by their place
        assert any(words(command) in text for text in given), (
            f"{block.name}: `{command}` is run by none of {block.tests}"
        )


@pytest.mark.parametrize(
    ("source", "runs"),
    [
        ('call(folder, "make", "audit")', True),
        ('subprocess.run(["make", "audit"], cwd=folder)', True),
        ('COMMAND = ["make", "audit", "-k"]\nproject.call(folder, *COMMAND)', True),
        ('def test_it():\n    words = ["make", "audit"]\n    subprocess.Popen(words)', True),
        ('"""`make audit` tells silence from safety."""', False),
        ('def test_it():\n    """make audit"""\n    call("true")', False),
        ('# call("make", "audit")', False),
        ('assert "make audit" in text', False),
        ('COMMAND = ["make", "audit"]', False),
        ('print("make audit")', False),
    ],
)
def test_a_command_counts_as_run_only_where_it_is_given_to_a_program(source, runs):
    assert any("make audit" in text for text in given_to_a_runner(source)) == runs


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ('run(block_of("docs/a.md", "word").text)', True),
        ('text = (ROOT / "docs/a.md").read_text()', True),
        ('found = docs.blocks(ROOT / "docs/a.md")', True),
        ("MINE = runnable(__file__)", True),
        ('"""The commands of docs/a.md."""', False),
        ('(tmp_path / "docs/a.md").write_text("")', False),
        ('(tmp_path / "docs/a.md").read_text()', False),
        ('run(block_of("docs/b.md", "word").text)', False),
        ('"""runnable(__file__)"""', False),
    ],
)
def test_a_test_reads_a_page_only_where_its_code_does(source, reads):
    assert reads_its_blocks(source, "docs/a.md") == reads


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
