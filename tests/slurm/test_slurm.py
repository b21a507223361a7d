"""The demo through a real Slurm: a job over its memory, a cancelled training, and a local dry run that agrees."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.lib import project
from tests.slurm import cluster as one_node

pytestmark = pytest.mark.timeout(1500)

HUNGRY_RULE = "build_sft"
COMMAND = [
    "snakemake", "--workflow-profile", "profiles/slurm", "--jobs", "8", "--latency-wait", "15",
    "--slurm-no-account", "--slurm-status-command", "squeue",
    "--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2",
    # too little at first: the kill for memory and the larger second try are real
    "--set-resources", f"{HUNGRY_RULE}:mem_mb=100 if attempt == 1 else 2000",
]  # fmt: skip


def cancel_training_after_a_checkpoint(
    cluster: one_node.Cluster, clone: Path, told: dict, stop: threading.Event
) -> None:
    """`scancel` the training once, as soon as its first checkpoint is complete."""
    while not stop.wait(0.3):
        running = [
            job for job, state, comment, _ in cluster.jobs() if state == "RUNNING" and "train_adapter" in comment
        ]
        saved = sorted(clone.glob("work/train/*/**/checkpoint-*/trainer_state.json"))
        if running and saved:
            time.sleep(1)  # let the completeness marker follow the state
            told["checkpoint"] = saved[-1].parent.name
            cluster.cancel(running[0])
            return


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A clone in which the demo ran through Slurm, with what happened on the way."""
    reason = one_node.missing()
    if reason:
        pytest.skip(reason)
    clone = project.make_clone(tmp_path_factory.mktemp("slurm") / "clone")
    told: dict = {}
    with one_node.Cluster(tmp_path_factory.mktemp("state")) as cluster:
        stop = threading.Event()
        watcher = threading.Thread(target=cancel_training_after_a_checkpoint, args=(cluster, clone, told, stop))
        watcher.start()
        try:
            done = subprocess.run(
                COMMAND,
                cwd=clone,
                env=project.environment(**cluster.environment),
                capture_output=True,
                text=True,
                timeout=1400,
            )
        finally:
            stop.set()
            watcher.join()
        told["jobs"] = cluster.jobs()
    told |= {"clone": clone, "output": done.stdout + done.stderr, "code": done.returncode}
    return told


def test_demo_runs_to_its_end_through_slurm(ran):
    assert ran["code"] == 0, ran["output"][-6000:]
    assert (ran["clone"] / "results/report/index.html").is_file()


def test_job_over_its_memory_was_killed_and_tried_again_with_more(ran):
    asked = [(state, memory) for _, state, comment, memory in ran["jobs"] if HUNGRY_RULE in comment]
    assert len(asked) >= 2, ran["jobs"]
    assert asked[0][1] == "100M" or asked[-1][1] == "100M"
    assert {"2000M"} <= {memory for _, memory in asked}
    assert re.search(
        rf"(?i)(trying to restart|restart).*{HUNGRY_RULE}|{HUNGRY_RULE}.*attempt", ran["output"].replace("\n", " ")
    )


def test_cancelled_training_went_on_from_its_checkpoint(ran):
    assert "checkpoint" in ran, "training ended before its first checkpoint was seen"
    states = [state for _, state, comment, _ in ran["jobs"] if "train_adapter" in comment]
    assert "CANCELLED" in states
    assert "COMPLETED" in states
    log = (ran["clone"] / "logs/train_adapter.log").read_text()
    assert re.search(rf"going on from \S*{ran['checkpoint']}\b", log), log[:2000]


def test_local_dry_run_afterwards_has_nothing_to_do(ran):
    done = project.call(ran["clone"], "snakemake", "-n")
    assert "Nothing to be done" in done.stdout + done.stderr
