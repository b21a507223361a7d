"""The CI script keeps its promises."""

from __future__ import annotations

import subprocess

from tests.lib.project import ROOT


def test_ci_script_calls_the_readmes_test_verb():
    text = (ROOT / ".ci/run").read_text()
    assert "make test" in text


def test_shell_scripts_parse():
    for path in [ROOT / ".ci/run", *sorted((ROOT / "scripts").rglob("*.sh"))]:
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0, path


def test_machine_check_names_the_debian_package(tmp_path):
    """With a python that is too old for us, the first line says what to install."""
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho 3.9\n")
    fake.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "scripts/check_machine.sh"), str(fake)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "3.11, 3.12 or 3.13 is wanted" in done.stderr
    absent = subprocess.run(["bash", str(ROOT / "scripts/check_machine.sh"), "python9"], capture_output=True, text=True)
    assert absent.returncode == 2
    assert "Debian's package python3" in absent.stderr


def test_make_lists_every_verb():
    listed = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True).stdout
    for verb in [
        "setup",
        "use",
        "demo",
        "test",
        "lint",
        "run",
        "report",
        "dag",
        "tensorboard",
        "serve",
        "compare",
        "lineage",
        "pin-model",
        "audit",
        "test-slurm",
        "test-gpu",
        "test-faults",
        "bench",
    ]:
        assert f"make {verb} " in listed
