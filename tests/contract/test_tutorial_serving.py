"""Each key of the usual tutorial's merge and servers has its row in docs/serving.md."""

from __future__ import annotations

import re

import pytest
import yaml

from scripts.merge_adapter import export_arguments
from tests.lib import serving_data
from tests.lib.project import ROOT

TUTORIAL = ROOT.parent / "shared/seed-tutorial.txt"
MERGE_KEYS = {
    "model_name_or_path",
    "adapter_name_or_path",
    "template",
    "finetuning_type",
    "trust_remote_code",
    "export_dir",
    "export_size",
    "export_device",
    "export_legacy_format",
}


def rows(heading: str) -> dict[str, list[str]]:
    """What stands in backticks in the first column -> the cells of its row, of the table under a heading of docs/serving.md."""
    page = (ROOT / "docs/serving.md").read_text()
    section = page.split(f"### {heading}\n")[1].split("\n#")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found[name] = cells
    return found


def tutorial() -> str:
    if not TUTORIAL.is_file():
        pytest.skip(f"no {TUTORIAL.name} beside the project: the tutorial's text is not part of it")
    return TUTORIAL.read_text()


def section(number: int) -> str:
    return re.split(
        rf"^{number + 1}\. ", re.split(rf"^{number}\. ", tutorial(), flags=re.MULTILINE)[1], flags=re.MULTILINE
    )[0]


def name_of(cell: str) -> str:
    """`export_size: 2` -> export_size."""
    return cell.partition(":")[0]


def test_every_key_of_the_merge_has_its_row():
    assert {name_of(name) for name in rows("Merge")} == MERGE_KEYS


def test_those_are_the_keys_of_the_tutorials_merge():
    block = [line for line in section(3).splitlines() if re.fullmatch(r"[a-z_]+: .*", line)]
    said = yaml.safe_load("\n".join(block))
    assert set(said) == MERGE_KEYS
    named = {name_of(name): name for name in rows("Merge")}
    for key in ("export_size", "export_device", "export_legacy_format", "trust_remote_code"):
        assert yaml.safe_load(named[key]) == {key: said[key]}, "the value that the tutorial has"


def test_every_argument_of_our_export_is_the_tutorials_or_explained():
    from pathlib import Path

    ours = set(export_arguments(Path("b"), Path("a"), Path("o"), serving_data.recipe()))
    gone = {name_of(name) for name, cells in rows("Merge").items() if cells[1].startswith("gone")}
    assert ours - MERGE_KEYS == {"infer_dtype"}
    assert MERGE_KEYS - ours == gone


def test_every_line_of_the_tutorials_modelfile_has_its_row():
    text = section(4)
    modelfile = re.findall(r"^(FROM|TEMPLATE|PARAMETER \w+)", text, flags=re.MULTILINE)
    assert len(modelfile) == 5
    named = {" ".join(name.split()[: 2 if name.startswith("PARAMETER") else 1]) for name in rows("Ollama's Modelfile")}
    assert named == set(modelfile)


def test_every_option_of_the_tutorials_lmdeploy_has_its_row():
    text = section(4)
    offline = re.search(r"PytorchEngineConfig\(\n(.*?)\)", text, flags=re.DOTALL)[1]
    words = set(re.findall(r"^(\w+)=", offline, flags=re.MULTILINE))
    words |= set(re.findall(r"(\w+)=", re.search(r"GenerationConfig\((\w+=.*?)\)", text)[1]))
    words |= set(re.findall(r"(?<=\s)(--[a-z-]+)(?= \S)", re.search(r"nohup lmdeploy.*?&", text, flags=re.DOTALL)[0]))
    words |= {"--eager-mode"}
    named = {re.split(r"[= ]", name)[0] for name in rows("LMDeploy's options")}
    assert words <= named, sorted(words - named)
