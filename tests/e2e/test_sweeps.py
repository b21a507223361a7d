"""The sweep of docs/training.md: two experiments queued, run one after the other, compared without a pull."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.lib import docs
from tests.lib.project import ROOT, call

pytestmark = pytest.mark.demo
HERE = "tests/e2e/test_sweeps.py"
# few steps for each: what is tested is the way, not the rates
SHORT = ("train.max_steps=4", "train.save_steps=2", "train.eval_steps=2", "deliver.gguf=false")


def commands() -> list[list[str]]:
    """The lines of the one block of docs/training.md that this test runs."""
    (block,) = [b for b in docs.blocks(ROOT / "docs/training.md") if HERE in b.tests]
    return [shlex.split(line, comments=True) for line in block.text.splitlines() if line.strip()]


def test_two_queued_experiments_run_and_are_compared(demo_copy: Path) -> None:
    before = (demo_copy / "config/config.yaml").read_bytes()
    said = {}
    for line in commands():
        queued = line[:3] == ["dvc", "exp", "run"] and "--queue" in line
        short = [word for key in SHORT for word in ("-S", f"config/config.yaml:{key}")] if queued else []
        said[" ".join(line)] = call(demo_copy, *line, *short).stdout
    assert (demo_copy / "config/config.yaml").read_bytes() == before, "the work tree keeps its own recipe"
    shown = json.loads(call(demo_copy, "dvc", "exp", "show", "--json").stdout)
    (head,) = [row for row in shown if row["rev"] == "workspace" or row.get("experiments")][-1:]
    found = {}
    for experiment in head["experiments"]:
        data = experiment["revs"][-1]["data"]
        rate = data["params"]["config/config.yaml"]["data"]["train"]["learning_rate"]
        found[experiment["name"]] = (rate, data["metrics"]["results/metrics.json"]["data"]["tuned_exact_match"])
    assert {name: rate for name, (rate, _) in found.items()} == {"slow": 5e-5, "fast": 1e-3}
    assert all(isinstance(score, float) for _, score in found.values())
    assert call(demo_copy, "dvc", "queue", "status").stdout.count("Success") in (0, 2)
    show = next(text for line, text in said.items() if line.startswith("dvc exp show"))
    assert "slow" in show
    assert "fast" in show
    # each is a commit with its own adapter, which differs from the work tree's
    manifests = {
        name: call(demo_copy, "git", "show", f"{experiment}:provenance.lock.json").stdout
        for name, experiment in ((n, f"refs/exps/{_ref(demo_copy, n)}") for n in found)
    }
    assert manifests["slow"] != manifests["fast"]
    # an experiment is applied like a checkout: Snakemake has nothing to do
    call(demo_copy, "dvc", "exp", "apply", "slow")
    done = call(demo_copy, "snakemake", "-n", "--cores", "2")
    assert "Nothing to be done" in done.stdout + done.stderr


def _ref(folder: Path, name: str) -> str:
    """The part of an experiment's git reference after refs/exps/."""
    listed = call(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    (ref,) = [line for line in listed if line.endswith(f"/{name}")]
    return ref.removeprefix("refs/exps/")
