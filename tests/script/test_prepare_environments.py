"""Environments follow their lock files, once."""

from __future__ import annotations

import pytest

from scripts import prepare_environments
from scripts.lib.config import load_yaml
from scripts.lib.errors import EqaError
from tests.lib.project import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.11"\n')
    (tmp_path / "uv.lock").write_text(
        'version = 1\nrequires-python = ">=3.11"\n\n[[package]]\nname = "x"\nversion = "1"\nsource = { virtual = "." }\n'
    )
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    return tmp_path


def test_environment_is_made_once_and_again_when_the_lock_changes(project):
    assert prepare_environments.prepare(project, ["."]) == ["."]
    assert prepare_environments.prepare(project, ["."]) == []
    with (project / "uv.lock").open("a") as file:
        file.write("\n# changed\n")
    assert prepare_environments.prepare(project, ["."]) == ["."]


def test_failed_sync_names_the_environment_and_leaves_no_stamp(project):
    (project / "uv.lock").write_text("not a lock")
    with pytest.raises(EqaError, match="make setup"):
        prepare_environments.prepare(project, ["."])
    assert not (project / ".venv" / prepare_environments.STAMP).exists()


def test_recipe_names_only_the_environments_it_uses():
    demo = load_yaml(ROOT / "config/presets/demo.yaml")
    assert prepare_environments.needed_environments(demo) == [".", "envs/train", "envs/gguf"]
    full = load_yaml(ROOT / "config/presets/openeqa-80gb.yaml")
    assert "envs/serve" in prepare_environments.needed_environments(full)


def test_folder_without_a_lock_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare_environments.main(["--environment", "envs/nothing"]) == 2
    assert "envs/nothing" in capsys.readouterr().err
