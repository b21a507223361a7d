"""Training on a CUDA GPU: kept vision features change nothing, ZeRO-2 trains, saves and goes on in one process.

Several GPUs, FSDP among them: tests/gpu/several.sh.

In envs/train, whose python has pytest by its group dev:
    uv run --frozen --project envs/train --group dev python -m pytest -q -rs tests/gpu/test_training.py
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from scripts.lib.files import read_json
from scripts.lib.targets import has_cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="needs envs/train"),
]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.train import training_data as data

    return data.make_workspace(tmp_path_factory.mktemp("space"))


@pytest.fixture
def inside(space: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(space)
    return space


def trained(folder: Path, name: str, again: str = "", **changes: object) -> list[float]:
    """Losses of a training in `folder`; with `again` its last checkpoint is lost first and it goes on."""
    from scripts import train_adapter
    from tests.train import training_data as data

    out = f"{name}{again}"
    if again:
        run = data.run_dirs(folder / f"work_{name}")[0]
        shutil.rmtree(run / "checkpoint-8")
        (run / "finished.json").unlink()
    assert train_adapter.main(data.arguments(data.config(**changes), work=f"work_{name}", out=out)) == 0
    return [point["loss"] for point in read_json(folder / out / "train_log/curves.json")["train"]]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_kept_features_give_the_losses_of_a_training_without_them(inside: Path, precision: str) -> None:
    """16 bits on a GPU round otherwise in groups of another size, hence 2 %."""
    kept = trained(inside, f"kept_{precision}", precision=precision, vision_cache_gb=1.0)
    each = trained(inside, f"each_{precision}", precision=precision, vision_cache_gb=0)
    facts = read_json(inside / f"kept_{precision}/train_log/speed.json")
    assert facts["vision_cache"]["pictures"] == 20
    assert facts["vision_cache"]["place"] == "cuda"
    assert kept == pytest.approx(each, rel=0.02)
    assert kept[-1] < kept[0]


def test_zero2_of_one_process_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.train import training_data as data

    pytest.importorskip("deepspeed", reason="needs `make zero2`")
    folder = data.make_workspace(tmp_path / "space", dtype="bfloat16")
    monkeypatch.chdir(folder)
    changes = {"distributed": "zero2", "precision": "bf16"}
    whole = trained(folder, "zero2", **changes)
    plain = trained(folder, "plain", precision="bf16")
    assert whole == pytest.approx(plain, rel=0.05)
    assert trained(folder, "zero2", again="_again", **changes) == pytest.approx(whole, rel=0.01)
