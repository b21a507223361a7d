"""Parts of continuous integration end in time, and so does the whole; a missing Slurm is a failure there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.lib.project import ROOT


def budgets(tmp_path, seconds: int) -> dict[str, int]:
    """{part: seconds that `timeout` was given}, of a run that began so long ago. No part does anything."""
    timeout = tmp_path / "timeout"
    (tmp_path / "asked").unlink(missing_ok=True)
    timeout.write_text(f'#!/bin/sh\necho "$2" >> {tmp_path}/asked\n')
    timeout.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SECONDS": str(seconds)}
    done = subprocess.run(["bash", ROOT / ".ci/run"], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^=== (\S+) \(budget", done.stdout, flags=re.MULTILINE)
    given = [int(word) for word in (tmp_path / "asked").read_text().split()]
    return dict(zip(names, given, strict=True))


def test_every_part_has_a_third_more_time_than_it_takes(tmp_path):
    """And the usual times, which .ci/run tells too, fit the whole."""
    said = (ROOT / ".ci/run").read_text().split("Usual on 2 cores: ")[1].split("\n\n")[0].split("set -u")[0]
    usual_min = {part: int(minutes) for part, minutes in re.findall(r"([a-z-]+) (\d+)", said)}
    given = budgets(tmp_path, 0)
    assert set(usual_min) == set(given) - {"packages"}
    assert all(given[part] >= 1.33 * 60 * minutes for part, minutes in usual_min.items())
    assert sum(usual_min.values()) <= 80


def test_the_whole_ends_within_ninety_minutes(tmp_path):
    given = budgets(tmp_path, 80 * 60)
    assert max(given.values()) <= 10 * 60
    assert min(budgets(tmp_path, 100 * 60).values()) == 1, "`timeout 0` would mean no limit"


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 error"), ("", "1 skipped")])
def test_a_slurm_that_is_missing_fails_continuous_integration_and_is_skipped_elsewhere(tmp_path, ci, outcome):
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "tests/slurm",
        "-k",
        "demo_runs_to_its_end",
        "-p",
        "no:randomly",
    ]
    # Debian's programs are looked for on the PATH and in /usr/sbin
    plugin = tmp_path / "no_slurm.py"
    plugin.write_text("from tests.slurm import cluster\ncluster.missing = lambda: 'slurmctld not found'\n")
    environ = os.environ | {"CI": ci, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([*line, "-p", "no_slurm"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert outcome in done.stdout.splitlines()[-1], done.stdout[-2000:]
    if ci:
        assert "continuous integration has to run these: slurmctld not found" in done.stdout
