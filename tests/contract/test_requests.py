"""What jobs ask of a cluster: enough for the steps that were measured, equal on every node, more at each try."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm.submit_string as slurm
import yaml
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from scripts.lib.cluster import gpus_a_node, placement
from scripts.lib.errors import EqaError
from tests.lib import project

MODEL_MB = 4300  # Qwen3-VL-2B in bfloat16, and what bench.make_2b writes
REHEARSED = json.loads((project.ROOT / "bench/results/rehearsal-h100.json").read_text())
# of the rehearsal, not of the pipeline; by name only, and where Snakemake runs
OTHER_STEPS = ("make_source", "make_2b", "check_serving")
MEASURED = {step["step"]: step["peak_mb"] for step in REHEARSED["steps"] if step["step"] not in OTHER_STEPS}
SLURM = ["--workflow-profile", "profiles/slurm"]
EVERYTHING = ["--cores", "1000", "--resources", "mem_mb=10000000", "gpu=1000"]  # nothing is cut down to what is here
BLOCK = re.compile(r"^( *)(?:local)?rule (\w+):\n((?:\1    .*\n)+)", flags=re.MULTILINE)  # of a group: further in


class Asked(dict):
    """A job's resources, by key and by name."""

    __getattr__ = dict.get


def plan(clone, *options: str) -> dict[str, Asked]:
    """{rule: its resources, with "threads"} as `snakemake -n` tells them; numbers as numbers."""
    found = {}
    for _, rule, block in BLOCK.findall(project.call(clone, "snakemake", "-n", *EVERYTHING, *options).stdout):
        said = re.search(r"^ *resources: (.*)$", block, flags=re.MULTILINE)
        words = [pair.partition("=") for pair in said[1].split(", ")] if said else []
        threads = re.search(r"^ *threads: (\d+)$", block, flags=re.MULTILINE)
        found[rule] = Asked({name: int(value) if value.isdigit() else value for name, _, value in words})
        found[rule]["threads"] = int(threads[1]) if threads else 1
    return found


def recipe(clone, **train: object) -> None:
    """The 80 GB preset on a folder beside the clone, with these keys of `train`."""
    config = yaml.safe_load((clone / "config/presets/openeqa-80gb.yaml").read_text())
    config["data"]["source"] = str(clone.parent / "user")
    config["train"] |= train
    (clone / "config/config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone for the 80 GB preset in which every file is there that a request hangs on, of the sizes of Open-EQA."""
    clone = project.make_clone(tmp_path_factory.mktemp("requests") / "clone")
    source = clone.parent / "user"
    (source / "frames").mkdir(parents=True)
    (source / "open-eqa-v0.json").write_text("[]".ljust(900_000))
    weights = json.dumps({"files": {"model.safetensors": {"size": MODEL_MB * 1_000_000, "sha256": "0" * 64}}})
    for name in ("models/base", "results/merged"):
        (clone / name).mkdir(parents=True)
        (clone / name / "manifest.json").write_text(weights)
    record = {"revision": "0" * 40, "files": {"model.safetensors": {"size": 1, "sha256": "0" * 64}}}
    pins = {"models": {"huggingface:Qwen/Qwen3-VL-2B-Instruct": record}}
    (clone / "config/models.lock.json").write_text(json.dumps(pins))
    sizes = {"index/questions.json": 700_000, "frames/manifest.json": 300_000}
    sizes |= {f"frames/shards/{shard:04d}.json": 40_000 for shard in range(8)}
    sizes |= {f"metrics/{model}.questions.jsonl": 200_000 for model in ("base", "tuned", "blind", "majority")}
    for name, size in sizes.items():
        (clone / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "results" / name).write_text("{}".ljust(size))
    return clone


@pytest.fixture(scope="module")
def asked(clone):
    """The plan of the preset as it is, for Slurm."""
    recipe(clone)
    return plan(clone, *SLURM)


def sbatch(asked: Asked) -> str:
    """The pinned plugin's command for a job that asks for this."""
    job = SimpleNamespace(resources=asked, threads=asked["threads"], name="train_adapter", is_group=lambda: False)
    validate_slurm_extra(job)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    return slurm.get_submit_command(job, dict.fromkeys(names, "")) + set_gres_string(job)


@pytest.mark.parametrize(("step", "peak_mb"), MEASURED.items())
def test_every_step_asks_for_the_memory_that_the_rehearsal_took(asked, step, peak_mb):
    """A rule without a request of its own gets the profile's default, and is killed where memory is enforced."""
    assert asked[step.partition("/")[0]]["mem_mb"] >= 1.1 * peak_mb


def test_a_rule_with_a_gpu_has_two_cpus_for_each(asked):
    gpus = {rule: resources for rule, resources in asked.items() if resources.get("gpu")}
    assert set(gpus) == {"train_adapter", "predict", "verify_merge", "bench_lmdeploy"}
    assert all(resources["threads"] >= 2 * resources["gpu"] for resources in gpus.values())


def test_loaders_have_cpus_on_a_cluster_and_wait_on_one_machine(clone, asked):
    assert asked["train_adapter"]["threads"] == 13  # 12 loaders and the process itself
    recipe(clone)
    assert plan(clone)["train_adapter"]["threads"] == 2


@pytest.mark.parametrize(
    ("nodes", "gpu", "each", "wanted", "unwanted"),
    [
        (1, None, 1, ["--gpus=1", "--cpus-per-task=13"], ["--gres", "--nodes", "--ntasks"]),
        (1, 8, 8, ["--gpus=8", "--nodes=1", "--cpus-per-task=104"], ["--gres", "--ntasks"]),
        (2, None, 1, ["--gpus=2", "--gres=gpu:1", "--nodes=2", "--ntasks=2", "--cpus-per-task=13"], []),
        (2, 16, 8, ["--gpus=16", "--gres=gpu:8", "--nodes=2", "--ntasks=2", "--cpus-per-task=104"], []),
        (2, 0, 1, ["--nodes=2", "--ntasks=2", "--cpus-per-task=13"], ["--gpus", "--gres"]),
    ],
)
def test_every_node_has_the_same_gpus_and_cpus_and_memory_for_each(clone, nodes, gpu, each, wanted, unwanted):
    """`--gpus` alone is a sum, which Slurm may share out as 7 + 1; memory and CPUs count for a node."""
    recipe(clone, nodes=nodes, batch_size=16)
    options = [] if gpu is None else ["--set-resources", f"train_adapter:gpu={gpu}"]
    command = sbatch(plan(clone, *SLURM, *options)["train_adapter"])
    assert set(wanted) <= set(command.split())
    assert not [word for word in command.split() for name in unwanted if word.startswith(name)]
    assert f"--mem {each * (3500 + MODEL_MB)} " in command


def test_gpus_that_nodes_cannot_share_equally_are_refused_before_any_job(clone):
    recipe(clone, nodes=2)
    done = project.call(clone, "snakemake", "-n", "--set-resources", "train_adapter:gpu=7", check=False)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("set-resources: train_adapter:gpu=7")
    assert "train.nodes=2" in line
    assert "6 or 8" in line


@pytest.mark.parametrize("gpu", ["attempt * 2", -1, True])
def test_gpus_of_a_training_are_a_whole_number(gpu):
    with pytest.raises(EqaError, match="a whole number of GPUs is wanted"):
        gpus_a_node({"gpu": gpu}, 1)


def test_a_gres_counts_for_each_node_and_a_model_is_said_for_each_too():
    assert gpus_a_node({"gpu": 0, "gres": "gpu:a100:8"}, 2) == 8
    assert gpus_a_node({"gpu": 0, "gres": "gpu"}, 2) == 1
    assert gpus_a_node({"gpu": 0, "gres": "shard:4"}, 2) == 0
    assert placement({"gpu_model": "a100"}, 2, 4)["gres"] == "gpu:a100:4"


def test_each_try_asks_for_more_memory_and_more_time(clone):
    """Of every rule: by its own request (`memory`, `memory_of`, `memory_of_model`) or by the profile's default."""
    recipe(clone)
    tries = [plan(clone, *SLURM, "--attempt", str(attempt)) for attempt in (1, 2, 3)]
    ways = {"index_episodes", "join_frames", "build_sft", "train_adapter", "bench_lmdeploy", "export_openeqa"}
    assert ways <= set(tries[0])
    for rule in set(tries[0]) - {"all"}:
        for name in ("mem_mb", "runtime"):
            first, second, third = (asked[rule][name] for asked in tries)
            assert (second, third) == (2 * first, 3 * first), (rule, name)
