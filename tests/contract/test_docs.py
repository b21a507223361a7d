"""Docs say what the code does."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.write_config_docs import main
from tests.lib.project import ROOT

PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def test_config_reference_is_made_from_the_schema(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["--output", str(tmp_path / "config.md")]) == 0
    assert (tmp_path / "config.md").read_text() == (ROOT / "docs/config.md").read_text(), (
        "run: python -m scripts.write_config_docs --output docs/config.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_make_verbs_in_docs_exist(page):
    verbs = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for block in re.findall(r"```(?:sh|bash|console)?\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for verb in re.findall(r"^\$? ?make ([a-z0-9-]+)", block, flags=re.MULTILINE):
            assert verb in verbs, f"{page.name}: make {verb}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_config_keys_in_docs_exist(page):
    from scripts.lib.config import load_yaml

    config = load_yaml(ROOT / "config/config.yaml")
    sections = "|".join(config)
    for section, key in re.findall(rf"`({sections})\.([a-z_0-9]+)`", page.read_text()):
        if key not in ("yaml", "json", "smk", "md"):
            assert key in config[section], f"{page.name}: {section}.{key}"


def said_in_errors() -> list[str]:
    """What the scripts raise or log, one text a message, its values as …; of shell scripts, each line."""
    messages = []
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        tree = ast.parse(path.read_text())
        remarks = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if id(node) in remarks:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                messages.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                messages.append(re.sub(r"%[sd]|\\{\\w*\\}", "…", node.value))
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        messages += path.read_text().splitlines()
    return messages


def test_error_headings_in_troubleshooting_stand_in_the_code():
    """Each heading's words stand in one message, in this order."""
    messages = said_in_errors()
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(headings) >= 15
    for heading in headings:
        words = [part.strip() for part in heading.split("…") if part.strip(" =")]
        pattern = ".*".join(re.escape(part) for part in words)
        assert any(re.search(pattern, message, flags=re.DOTALL) for message in messages), f"{heading!r} is said nowhere"
