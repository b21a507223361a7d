"""docs/scale.md says what the committed results of bench/scale.py say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from bench.scale import COMMITTED, table
from tests.lib.project import ROOT

PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")


def test_every_figure_of_the_table_is_from_a_committed_result() -> None:
    """`python -m bench.scale --table` prints it; a new result that is committed without the page fails here."""
    assert "\n".join(table()) in PAGE


def test_columns_are_numbers_of_episodes_and_a_dash_is_not_measured(tmp_path: Path) -> None:
    few = {"sizes": {"1000": {"index": {"peak_mb": 60}}, "20": {"plan": {"peak_mb": 9, "cpu_s": 1}}}}
    many = {"sizes": {"3000": {"index": {"peak_mb": 1234, "cpu_s": 5.6}}}}
    for name, content in (("few", few), ("many", many)):
        (tmp_path / name).write_text(json.dumps(content))
    head, _, *rows = table([tmp_path / "few", tmp_path / "many"])
    assert head == "| step | 20 episodes | 1,000 | 3,000 | processor time at 3,000 |"
    assert rows[0].endswith("| - | 60 MiB | 1,234 MiB | 6 s |")
    assert rows[-1].endswith("| 9 MiB | - | - | - |")


def test_figures_from_no_committed_result_are_told_as_such_with_their_date() -> None:
    measured = PAGE.partition("## Measured\n")[2].partition("\n## ")[0]
    for paragraph in measured.split("\n\n"):
        numbers = re.search(r"\d (?:MiB|MB|s)\b", paragraph)
        if numbers and not paragraph.startswith("|"):
            assert re.search(r"by hand,? (?:on )?20\d\d-\d\d-\d\d", " ".join(paragraph.split())), paragraph


def test_shards_are_no_more_than_the_recipe_allows() -> None:
    schema = yaml.safe_load((ROOT / "config/schema.yaml").read_text())
    most = schema["properties"]["frames"]["properties"]["shards"]["maximum"]
    assert f"({most:,} shards at most: four digits)" in PAGE


def test_committed_results_are_there() -> None:
    assert all(file.is_file() for file in COMMITTED)
