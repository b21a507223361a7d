"""`make rehearse` with the demo's model on the CPU: every step runs, and none twice."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.lib.project import ROOT, environment


def run(work, *words: str) -> subprocess.CompletedProcess:
    command = ["python", "-m", "bench.rehearse", "--device", "cpu", "--small", "--work-dir", str(work), *words]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def test_small_rehearsal_runs_every_step_once(tmp_path):
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    record = json.loads((tmp_path / "rehearsal.json").read_text())
    assert {row["status"] for row in record["steps"]} == {"ok"}
    rows = {row["step"]: row for row in record["steps"]}
    assert rows["train_adapter"]["facts"]["steps_run"] == 2
    assert rows["train_adapter"]["facts"]["steps_whole"] > 2
    assert rows["train_adapter"]["whole_s"] > rows["train_adapter"]["seconds"]
    assert rows["verify_merge"]["facts"]["largest_logit_difference"] < 1e-4
    assert all(row["peak_mb"] > 0 for row in record["steps"])
    assert record["whole_s"] > record["total_s"]

    # one step's record is lost: it runs again, and nothing else does
    (tmp_path / "steps/compare_models.json").unlink()
    second = run(tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert json.loads(second.stdout)["ran"] == 1

    # a step that fails is told in one line; what needs it does not run
    (tmp_path / "steps/compare_models.json").unlink()
    (tmp_path / "results/metrics/tuned.questions.jsonl").unlink()
    third = run(tmp_path)
    assert third.returncode == 2
    assert "1 of" in third.stderr.splitlines()[-1]
    assert "compare_models first" in third.stderr.splitlines()[-1]


def test_no_gpu_is_told_before_any_work(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.rehearse", "--device", "cuda", "--work-dir", str(tmp_path / "work")],
        cwd=ROOT,
        env=environment(PATH="/nonexistent"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nvidia-smi shows no GPU here" in done.stderr
    assert not (tmp_path / "work").exists()
