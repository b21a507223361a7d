"""`make use`, and the check that `make demo` makes."""

from __future__ import annotations

import shutil

import pytest

from scripts.use_preset import main
from tests.lib.project import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_preset_is_copied_over_the_config(project):
    assert main(["--preset", "openeqa-t4"]) == 0
    assert (project / "config/config.yaml").read_text() == (project / "config/presets/openeqa-t4.yaml").read_text()


@pytest.mark.parametrize("name", ["nope", "", "../config", "demo.yaml"])
def test_preset_that_does_not_exist_leaves_the_config_alone(project, capsys, name):
    before = (project / "config/config.yaml").read_text()
    assert main(["--preset", name]) == 2
    error = capsys.readouterr().err
    assert "one of demo, hm3d-clip, openeqa-80gb, openeqa-t4" in error
    assert error.count("\n") == 1
    assert (project / "config/config.yaml").read_text() == before


def test_expected_preset_passes_and_another_is_refused_with_the_way_out(project, capsys):
    assert main(["--expect", "demo"]) == 0
    main(["--preset", "hm3d-clip"])
    assert main(["--expect", "demo"]) == 2
    assert "make use PRESET=demo" in capsys.readouterr().err
