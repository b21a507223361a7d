"""The proof of the merge in bfloat16, as the openeqa presets run it.

Their tolerance of the logits is 0.5, since bfloat16 rounds; a wrong merge of a weak adapter stays below that too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch", reason="needs envs/train")

from scripts import merge_adapter, verify_merge
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, sha256_file, write_manifest
from tests.train import prediction_data
from tests.train import training_data as data

PRESET = yaml.safe_load((data.ROOT / "config/presets/openeqa-t4.yaml").read_text())
MERGE = PRESET["merge"] | {"sample": 3}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that moves logits by less than the tolerance, and their merge in bfloat16."""
    folder = data.make_workspace(tmp_path_factory.mktemp("bf16"), dtype="bfloat16")
    base = folder / "models/base/manifest.json"
    adapter = prediction_data.make_adapter(base, folder / "out/adapter").parent
    (adapter / "manifest.json").unlink()
    write_manifest(adapter, {"base_sha256": sha256_file(base)})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = {"merge": MERGE, "train": {"template": "qwen3_vl_nothink"}}
        line = ["--base", "models/base/manifest.json", "--adapter", "out/adapter/manifest.json"]
        line += ["--config", json.dumps(recipe), "--work-dir", "work_merge", "--output-dir", "merged"]
        assert merge_adapter.main(line) == 0
    return folder


def proof(merged: str, **changes: object) -> int:
    recipe = {"merge": MERGE | changes, "vision": data.VISION, "predict": {"max_new_tokens": 4}}
    line = ["--base", "models/base/manifest.json", "--adapter", "out/adapter/manifest.json"]
    line += ["--merged", f"{merged}/manifest.json", "--test", "results/sft/test.json"]
    line += ["--frames", "results/frames/manifest.json", "--config", json.dumps(recipe)]
    return verify_merge.main([*line, "--output", f"{merged}/verify.json"])


def tampered(space: Path, name: str, share: float) -> str:
    """A merge of another strength: base + `share` * (merged - base), hashes made right again."""
    from safetensors.torch import load_file, save_file

    folder = space / name
    folder.mkdir()
    for path in (space / "merged").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    base, right = (load_file(space / place / "model.safetensors") for place in ("models/base", "merged"))
    wrong = {
        key: (base[key].float() + share * (value.float() - base[key].float())).to(value.dtype)
        for key, value in right.items()
    }
    save_file(wrong, folder / "model.safetensors", metadata={"format": "pt"})
    extra = {key: value for key, value in read_json(folder / "manifest.json").items() if key != "files"}
    write_manifest(folder, extra, exclude=("verify.json",))
    return name


def test_a_right_merge_in_bf16_passes_the_presets_tolerance(space, monkeypatch) -> None:
    monkeypatch.chdir(space)
    assert proof("merged") == 0
    found = read_json(space / "merged/verify.json")
    assert found["dtype"] == "bfloat16"
    assert 0 < found["largest_logit_difference"] < MERGE["tolerance"]
    assert found["adapter_strength"] == pytest.approx(1, abs=0.1)


def test_a_merge_in_float32_of_a_bf16_base_is_not_rounded_to_bf16(space, monkeypatch) -> None:
    monkeypatch.chdir(space)
    recipe = {"merge": MERGE | {"dtype": "float32"}, "train": {"template": "qwen3_vl_nothink"}}
    line = ["--base", "models/base/manifest.json", "--adapter", "out/adapter/manifest.json"]
    line += ["--config", json.dumps(recipe), "--work-dir", "work_merge", "--output-dir", "whole"]
    assert merge_adapter.main(line) == 0
    assert proof("whole", dtype="float32", tolerance=1e-4) == 0
    assert [path.name for path in (space / "work_merge").iterdir()] == ["export.log"]


@pytest.mark.parametrize(
    ("name", "share", "said"),
    [
        ("left_out", 0.0, "it has 0.00 times the adapter's effect on the logits, 0.25 to 1.5 pass (bfloat16, largest"),
        ("doubled", 2.0, "times the adapter's effect on the logits, 0.25 to 1.5 pass (bfloat16, largest difference"),
        ("subtracted", -1.0, "> merge.tolerance=0.5"),
    ],
)
def test_a_wrong_merge_in_bf16_is_refused(space, monkeypatch, capsys, name, share, said) -> None:
    monkeypatch.chdir(space)
    assert proof(tampered(space, name, share)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "results/merged is not base + adapter: " in error
    assert said in error
    assert not (space / name / "verify.json").exists()


def test_the_strength_of_an_adapter_that_does_nothing_says_nothing() -> None:
    assert verify_merge.strength([(0.0, 0.0)]) is None
    assert verify_merge.strength([(1.0, 2.0), (3.0, 2.0)]) == 1
    assert verify_merge.verdict([0.1], [True], MERGE, None)["adapter_strength"] is None


def test_logits_that_are_no_numbers_are_called_so() -> None:
    with pytest.raises(EqaError, match="logits of 1 of 2 questions are no numbers"):
        verify_merge.verdict([0.01, float("nan")], [True, False], MERGE, None)
