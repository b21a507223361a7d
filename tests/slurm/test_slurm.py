"""The demo through a real Slurm of two nodes, with everything going wrong once: a job over its memory, one over its time,
a training requeued and then cancelled; a training on both nodes; and a local dry run that agrees."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lib import project
from tests.slurm import cluster as two_nodes

pytestmark = pytest.mark.timeout(2400)

HUNGRY_RULE = "build_sft"
COMMAND = ["snakemake", "--workflow-profile", "profiles/slurm", "--latency-wait", "15"]
# compute nodes of many clusters have no way out
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
EDITS = (
    ("# slurm-no-account:", "slurm-no-account:"),
    ("# slurm-status-command:", "slurm-status-command:"),
    ("  # slurm_partition: \"'main'\"", "  slurm_partition: \"'main'\""),
    ("    # slurm_partition: \"'gpu'\"", "    slurm_partition: \"'gpu'\""),
    # too little at first: the kills for memory and time and the larger second tries are real
    ("set-resources:\n", f"set-resources:\n  {HUNGRY_RULE}:\n    mem_mb: 100 if attempt == 1 else 2000\n"),
    ("    runtime: attempt * 120\n", "    runtime: 1 if attempt == 1 else 120\n"),
)


# the demo, with less to compute: what is asked here is who runs what, and when again
SHORTER = (
    ("demo_steps: 600", "demo_steps: 40"),
    ("demo_episodes: 44", "demo_episodes: 20"),
    ("save_steps: 25", "save_steps: 10"),
    ("eval_steps: 25", "eval_steps: 10"),
    ("bootstrap_draws: 1000", "bootstrap_draws: 100"),
)


def edit(path: Path, edits: Sequence[tuple[str, str]]) -> None:
    """Replace texts that have to be there."""
    text = path.read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


class Mishaps(threading.Thread):
    """Requeue the training after a checkpoint, cancel it after a later one, and stop one prediction in its tracks."""

    def __init__(self, cluster: two_nodes.Cluster, clone: Path) -> None:
        super().__init__()
        self.cluster, self.clone = cluster, clone
        self.ended = threading.Event()
        self.requeued = self.cancelled = self.stopped = ""  # checkpoint, checkpoint, job
        self.limits: dict[str, set[str]] = {}

    def newest(self) -> str:
        """Step of the newest checkpoint that is marked as complete."""
        found = [path.parent.name for path in self.clone.glob("work/train/*/checkpoint-*/complete.json")]
        return max(found, key=lambda name: int(name.split("-")[1]), default="")

    def run(self) -> None:
        while not self.ended.wait(0.3):
            with contextlib.suppress(OSError):  # a process or a checkpoint may go while it is looked at
                self.look()

    def look(self) -> None:
        for job in self.cluster.jobs():
            self.limits.setdefault(job.comment, set()).add(job.limit)
            if job.state != "RUNNING":
                continue
            saved = self.newest()
            if "train_adapter" in job.comment and saved:
                if not self.requeued:
                    self.requeued = saved
                    self.cluster.run("scontrol", "requeue", job.id)
                elif not self.cancelled and saved != self.requeued and self.went_on():
                    self.cancelled = saved
                    self.cluster.run("scancel", job.id)
            if "rule_predict_" in job.comment and not self.stopped:
                hung = self.cluster.processes(job.id, "scripts.predict")
                for pid in hung:
                    os.kill(pid, signal.SIGSTOP)
                self.stopped = job.id if hung else ""

    def went_on(self) -> bool:
        """Whether the requeued training has reached its next checkpoint itself."""
        log = self.clone / "logs/train_adapter.log"
        return "going on from" in log.read_text() and int(self.newest()[11:]) > int(self.requeued[11:])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes."""
    reason = two_nodes.missing()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"continuous integration has to run these: {reason}")
    if reason:
        pytest.skip(reason)
    with two_nodes.Cluster(tmp_path_factory.mktemp("state")) as started:
        yield started


@pytest.fixture(scope="module")
def ran(cluster, tmp_path_factory):
    """A clone in which the demo ran through Slurm, with what happened on the way."""
    clone = project.make_clone(tmp_path_factory.mktemp("slurm") / "clone")
    # as a user would for a cluster without accounting whose GPUs have a partition of their own
    edit(clone / "profiles/slurm/config.yaml", EDITS)
    edit(clone / "config/config.yaml", SHORTER)
    environments = project.call(clone, "snakemake", "--cores", "1", "envs")
    mishaps = Mishaps(cluster, clone)
    mishaps.start()
    began = time.monotonic()
    try:
        done = subprocess.run(
            COMMAND,
            cwd=clone,
            env=project.environment(**cluster.environment, **NO_NETWORK),
            capture_output=True,
            text=True,
            timeout=1800,
        )
    finally:
        mishaps.ended.set()
        mishaps.join()
    print(f"demo through Slurm: {time.monotonic() - began:.0f} s")
    plan = project.call(clone, "snakemake", "-n")
    return {
        "clone": clone,
        "output": done.stdout + done.stderr,
        "code": done.returncode,
        "jobs": cluster.jobs(),
        "mishaps": mishaps,
        "train_log": (clone / "logs/train_adapter.log").read_text(),
        "plan": plan.stdout + plan.stderr,
        "envs": environments.stdout + environments.stderr,
    }


def of(ran: dict, rule: str) -> list[two_nodes.Job]:
    """Jobs of one rule, by the comment that the plugin gives them."""
    return [job for job in ran["jobs"] if f"rule_{rule}" in job.comment]


def test_demo_runs_to_its_end_through_slurm(ran):
    assert ran["code"] == 0, ran["output"][-6000:]
    assert (ran["clone"] / "results/report/index.html").is_file()


def test_local_dry_run_afterwards_has_nothing_to_do(ran):
    assert "Nothing to be done" in ran["plan"]


def test_environments_were_prepared_beforehand(ran):
    assert (ran["clone"] / "logs/envs.log").is_file()
    assert "environments: " not in ran["output"], "none had to follow its lock once the run began"


def test_job_over_its_memory_was_killed_and_tried_again_with_more(ran):
    assert [(job.state == "COMPLETED", job.memory) for job in of(ran, HUNGRY_RULE)] == [
        (False, "100M"),
        (True, "2000M"),
    ]
    # without cgroups Slurm calls it FAILED; why, only the job's own log says
    killed = of(ran, HUNGRY_RULE)[0]
    (said,) = (ran["clone"] / "logs/slurm").rglob(f"{killed.id}.log")
    assert (killed.state, "exceeded memory limit" in said.read_text().lower()) == ("FAILED", True)


def test_a_further_try_asks_for_twice_the_memory_by_the_rule_itself(ran):
    """Nothing in this test's profile says so for training: its first try was cancelled."""
    first, second = (int(job.memory.removesuffix("M")) for job in of(ran, "train_adapter"))
    assert second == 2 * first


def test_job_over_its_time_was_ended_and_tried_again_with_more(ran):
    (hung,) = [job for job in ran["jobs"] if job.id == ran["mishaps"].stopped]
    assert (hung.state, hung.limit) == ("TIMEOUT", "1:00")
    assert ("COMPLETED", "2:00:00") in [(job.state, job.limit) for job in ran["jobs"] if job.comment == hung.comment]


def test_requeued_training_went_on_from_its_checkpoint(ran):
    """The same Slurm job: its log says so, since Snakemake saw no failure."""
    assert ran["mishaps"].requeued, "training ended before its first checkpoint was seen"
    assert ran["mishaps"].cancelled, "the requeued training made no further checkpoint"


def test_cancelled_training_went_on_from_its_checkpoint(ran):
    assert [job.state for job in of(ran, "train_adapter")] == ["CANCELLED", "COMPLETED"]
    found = re.search(r"going on from \S*checkpoint-(\d+)", ran["train_log"])
    assert found, ran["train_log"][:2000]
    assert int(found[1]) >= int(ran["mishaps"].cancelled[11:])


def test_gpu_rules_ran_on_the_node_with_gpus_and_in_its_partition(ran):
    for rule in ("train_adapter", "predict", "verify_merge"):
        assert {(job.node, job.partition) for job in of(ran, rule)} == {("node2", "gpu")}, rule
    assert {job.partition for job in of(ran, "merge_adapter")} == {"main"}


def test_light_rules_were_no_jobs_of_their_own(ran):
    """Local, or several in one submission; so also what needs the network, which compute nodes may lack."""
    comments = " ".join(job.comment for job in ran["jobs"])
    for rule in (
        "fetch_questions",
        "fetch_prompts",
        "judge_answers",
        "write_config",
        "write_model_card",
        "compare_models",
    ):
        assert f"rule_{rule}" not in comments, comments
    assert len([job for job in ran["jobs"] if job.state == "COMPLETED"]) <= 20, comments  # of 38


def test_logs_lie_where_docs_say(ran):
    assert (ran["clone"] / "logs/predict/base/0000.log").is_file()
    assert list((ran["clone"] / "logs/slurm").rglob("*.log")), "of the jobs that failed"


@pytest.fixture(scope="module")
def both(cluster, ran):
    """The same short training twice: on two nodes through Slurm, and in one process beside it."""
    clone = ran["clone"]
    edit(clone / "config/config.yaml", (("nodes: 1", "nodes: 2"), ("epochs: 12.0", "epochs: 2.0")))
    # two GPUs on each of two nodes; no CUDA, so that the processes meet on the CPU
    train = "attempt * 480\n    slurm_partition: \"'gpu'\"\n    # gpu: 0\n"
    edit(clone / "profiles/slurm/config.yaml", ((train, "attempt * 480\n    gpu: 4\n"),))
    alone = {"train": project_config(clone)["train"] | {"nodes": 1}, "vision": project_config(clone)["vision"]}
    line = ["uv", "run", "--frozen", "--no-sync", "--project", "envs/train", "python", "-m", "scripts.train_adapter"]
    line += ["--dataset-dir", "results/sft", "--frames", "results/frames/manifest.json"]
    line += ["--base", "models/base/manifest.json", "--config", json.dumps(alone), "--work-dir", "work/alone"]
    line += ["--adapter-dir", "work/alone/adapter", "--log-dir", "work/alone/log"]
    with (clone / "work/alone.log").open("w") as log:
        one = subprocess.Popen(line, cwd=clone, env=project.environment(), stdout=log, stderr=log)
        done = subprocess.run(
            [*COMMAND, "results/adapter/manifest.json"],
            cwd=clone,
            env=project.environment(**cluster.environment, **NO_NETWORK),
            capture_output=True,
            text=True,
            timeout=900,
        )
        code = one.wait(timeout=600)
    assert code == 0, (clone / "work/alone.log").read_text()[-3000:]
    said = done.stdout + done.stderr + (clone / "logs/train_adapter.log").read_text()
    assert done.returncode == 0, said[-6000:]
    return {"clone": clone, "job": of({"jobs": cluster.jobs()}, "train_adapter")[-1], "said": said}


def project_config(clone: Path) -> dict:
    """The clone's recipe."""
    from scripts.lib.config import load_yaml

    return load_yaml(clone / "config/config.yaml")


def test_each_node_had_the_same_gpus_and_cpus_and_memory_for_both_of_them(both):
    job = both["job"]
    assert (job.gres, job.cpus) == ("gres:gpu:2", "8"), "two CPUs for each of four GPUs"
    base = json.loads((both["clone"] / "models/base/manifest.json").read_text())
    weights = sum(record["size"] for record in base["files"].values())
    assert job.memory == f"{2 * int(3500 + weights / 1e6)}M"


def test_training_on_two_nodes_met_by_slurm_s_variables(both):
    assert (both["job"].state, both["job"].node) == ("COMPLETED", "node[1-2]")
    assert "starting 2 processes on 2 node(s)" in both["said"]
    speed = json.loads((both["clone"] / "results/train_log/speed.json").read_text())
    assert speed["devices"] == 2


def test_two_nodes_train_what_one_process_trains(both):
    clone = both["clone"]
    many, one = (
        json.loads((clone / folder / "curves.json").read_text()) for folder in ("results/train_log", "work/alone/log")
    )
    assert [point["step"] for point in many["train"]] == [point["step"] for point in one["train"]]
    assert [p["loss"] for p in many["train"]] == pytest.approx([p["loss"] for p in one["train"]], rel=0.05)
    assert [p["loss"] for p in many["val"]] == pytest.approx([p["loss"] for p in one["val"]], rel=0.05)
    recipe = (clone / "results/adapter/train.yaml").read_text()
    assert "per_device_train_batch_size: 1\n" in recipe, "two samples a step, one a node"


def test_a_killed_snakemake_s_lock_stays_until_its_slurm_jobs_are_cancelled(cluster, both):
    """The trainer on the nodes writes on. The line names the command that ends it; after that the lock goes by itself."""
    clone = both["clone"]
    environ = project.environment(**cluster.environment, **NO_NETWORK)
    earlier = {job.id for job in cluster.jobs()}
    command = [*COMMAND, "--forcerun", "train_adapter", "--until", "train_adapter"]
    with (clone / "work/killed.log").open("w") as log:
        snakemake = subprocess.Popen(command, cwd=clone, env=environ, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not (job := next((job for job in cluster.jobs() if job.id not in earlier and job.state == "RUNNING"), None)):
        assert snakemake.poll() is None, (clone / "work/killed.log").read_text()[-3000:]
        assert time.monotonic() < deadline, "no job was started"
        time.sleep(0.2)
    snakemake.kill()
    snakemake.wait()
    again = ["snakemake", "--cores", "1", "results/config.json"]
    refused = subprocess.run(again, cwd=clone, env=environ, capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("lock: ")]
    told = re.search(r"`(scancel [\d ]+)`", line)
    assert told[1] == f"scancel {job.id}"
    assert next(now.state for now in cluster.jobs() if now.id == job.id) == "RUNNING"
    assert cluster.run(*told[1].split()).returncode == 0
    while cluster.run("squeue", "-h", "-j", job.id).stdout.strip():
        assert time.monotonic() < deadline, "the job does not end"
        time.sleep(0.2)
    went_on = subprocess.run(again, cwd=clone, env=environ, capture_output=True, text=True, timeout=300)
    assert went_on.returncode == 0, went_on.stderr[-3000:]
    assert "its lock is removed" in went_on.stderr
