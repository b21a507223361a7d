"""What `dvc push` would publish of a report with real pictures: nothing, for the project's own dvc.yaml and presets."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml

from scripts import write_report
from scripts.lib.config import check_config, load_yaml
from scripts.lib.errors import EqaError
from scripts.lib.files import remove
from tests.lib.project import ROOT, call
from tests.report.results_folder import page_arguments

REAL = ("hm3d-clip", "openeqa-t4", "openeqa-80gb")
JPEG = b"\xff\xd8\xff"
JPEG_IN_TEXT = b"/9j/"  # the same three bytes in base64


def stored(results_folder: Path, folder: Path, config: dict) -> Path:
    """A git and DVC repository with the project's dvc.yaml in which DVC has taken a run of this recipe."""
    shutil.copytree(results_folder, folder)
    remove(folder / "results/report")
    assert write_report.main(page_arguments(folder, config["report"]["frames"])) == 0
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config))
    stage = load_yaml(folder / "dvc.yaml")["stages"]["pipeline"]
    outs = [next(iter(out)) for out in (*stage["outs"], *load_yaml(folder / "dvc.yaml").get("metrics", ()))]
    for name in (*stage["deps"], *outs):
        path = folder / name.replace("${model.dvc_out}", config["model"]["dvc_out"])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    call(folder, "git", "init", "-q")
    (folder / ".gitignore").write_text("/results/*\n/data\n/models\n/logs\n/benchmarks\n")
    call(folder, "dvc", "commit", "-f", "-q")
    call(folder, "dvc", "remote", "add", "-q", "-d", "store", str(folder.parent / "store"))
    call(folder, "dvc", "push", "-q")
    return folder


def with_pictures(folder: Path) -> list[str]:
    """Files below a folder that hold a JPEG, as it is or in base64."""
    found = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [path.name for path, data in found.items() if data.startswith(JPEG) or JPEG_IN_TEXT in data]


@pytest.mark.parametrize("mode", ["link", "embed"])
@pytest.mark.parametrize("preset", REAL)
def test_push_of_a_recipe_with_real_data_sends_no_picture(results_folder, tmp_path, preset, mode):
    config = load_yaml(ROOT / f"config/presets/{preset}.yaml")
    config["report"]["frames"] = mode
    folder = stored(results_folder, tmp_path / "run", config)
    assert with_pictures(folder / ".dvc/cache"), "the own cache keeps them for checkouts"
    sent = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(sent) > 10, "all else is published"
    assert not with_pictures(tmp_path / "store")


@pytest.mark.parametrize("mode", ["link", "embed"])
def test_default_remote_would_get_the_pictures_of_either_mode(results_folder, tmp_path, mode):
    """What the check of the recipe is there for, and what the drawn rooms of the demo may do."""
    config = load_yaml(ROOT / "config/presets/demo.yaml")
    config["data"]["frames_remote"] = "unshared"
    config["report"]["frames"] = mode
    stored(results_folder, tmp_path / "run", config)
    assert with_pictures(tmp_path / "store")


@pytest.mark.parametrize("mode", ["link", "embed"])
@pytest.mark.parametrize("preset", REAL)
def test_real_pictures_on_the_default_remote_are_refused_in_one_line(preset, mode, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = copy.deepcopy(load_yaml(ROOT / f"config/presets/{preset}.yaml"))
    config["report"] = {"frames": mode, "dvc_remote": ""}
    with pytest.raises(EqaError) as caught:
        check_config(config, ROOT)
    told = str(caught.value)
    assert f'report.dvc_remote="" would push the real frames of the report (report.frames={mode})' in told
    assert "\n" not in told
    assert "to link" not in told  # pictures beside the page are published as well
    for mended in ({"frames": "none", "dvc_remote": ""}, {"frames": mode, "dvc_remote": "licensees"}):
        check_config(json.loads(json.dumps(config | {"report": mended})), ROOT)
