# Shared by rules/*.smk: the check of the recipe, wildcards, canonical parameters, code inputs.
import contextlib
import json
import os
import sys
from glob import glob
from pathlib import Path

if workflow.basedir not in sys.path:
    sys.path.insert(0, workflow.basedir)

from scripts.lib.cli import one_line
from scripts.lib.cluster import check_accounting, gpus_a_node, placement
from scripts.lib.config import canonical_json, check_config, select
from scripts.lib.errors import EqaError
from scripts.lib.files import read_manifest
from scripts.lib.imports import code_files
from scripts.lib.pins import check_pinned
from scripts.prepare_environments import needed_environments, prepare
from scripts.lib.sources import (
    questions_content,
    questions_size,
    source_archive,
    source_fingerprint,
)
from scripts.lib.targets import check_targets

ROOT = Path(workflow.basedir)


@contextlib.contextmanager
def told_in_one_line():
    """Print an EqaError and leave with 2: a traceback through Snakemake's parser would bury it."""
    try:
        yield
    except EqaError as error:
        print(one_line(str(error)), file=sys.stderr)
        sys.exit(2)


with told_in_one_line():
    check_config(config, ROOT)
    check_pinned(config, ROOT)


wildcard_constraints:
    shard="[0-9]{4}",
    split="train|val|test",
    model="base|tuned|blind|majority|base4bit",
    server="ollama|lmdeploy|llamacpp",


def canonical(*keys):
    """The named part of the config as one canonical JSON string: Snakemake compares params as a set."""
    return canonical_json(select(config, keys))


def code(script):
    """The script and every project module that it imports, as inputs: their content decides, not their age."""
    return list(code_files(f"scripts.{script}", ROOT))


def adapter_of(model):
    """The adapter's manifest for the tuned model and engines that take adapters; nothing for the others."""
    takes = config["predict"]["engine"] in ("transformers", "llamafactory")
    return ["results/adapter/manifest.json"] if model == "tuned" and takes else []


def merged_of(model):
    """The merged model's manifest and the proof of the merge, for the tuned model and engines that take no adapter."""
    if model != "tuned" or adapter_of(model):
        return []
    return ["results/merged/manifest.json", "results/merged/verify.json"]


def of_source(ask):
    """What a function of scripts.lib.sources says about the user's data folder; the recorded listing stands in for it."""
    with told_in_one_line():
        return ask(config["data"]["source"], ROOT / "data/raw/openeqa/source.json")


def imported_for(server):
    """The record that names the model to ask an Ollama server for; nothing for the other servers.

    Called for each check that is asked for. Whatever was found before, another model may be served now, of which no input
    tells: the check then runs as by `-R check_serving`.
    """
    workflow.dag.forcerules.add(workflow.get_rule("check_serving"))
    return ["results/ollama/import.json"] if server == "ollama" else []


def source_listing():
    """Fingerprint of the user's data folder; what was recorded where the folder is not on this machine."""
    return of_source(source_fingerprint)


def own_questions():
    """sha256 of the user's own question file; "" where Open-EQA's pinned one is used."""
    pins = json.loads((ROOT / "config/data.lock.json").read_text())
    pinned = pins.get("files", {}).get("open-eqa-v0.json", {}).get("sha256", "")
    source, name = config["data"]["source"], config["data"]["questions"]
    recorded = ROOT / "data/raw/openeqa/questions.json"
    return questions_content(source, name, recorded, pinned)


def questions_mb():
    """Size in MB of the question file, as far as it is known before the first job."""
    recorded = ROOT / "data/raw/openeqa/questions.json"
    return (
        questions_size(config["data"]["source"], config["data"]["questions"], recorded)
        / 1e6
    )


def source_has_archive():
    """Whether the user's data folder holds the HM3D archive; as recorded where the folder is not on this machine."""
    return bool(of_source(source_archive))


def memory(mb, per_mb=0):
    """Memory of a job in MB: `mb`, and `per_mb` for each MB of the question file, which is there before any job.

    Each further attempt asks for so much more (a cluster kills a job over its request). The rates are measured with
    one in five to spare: bench/scale.py, docs/scale.md.
    """
    return lambda wildcards, attempt: int(mb + per_mb * QUESTIONS_MB) * attempt


def memory_of(mb, **per_mb):
    """The same by the sizes of named inputs; unknown (<TBD>) until they are there."""

    def needed(wildcards, input, attempt):
        grown = 0.0
        for name, rate in per_mb.items():
            files = [input[name]] if isinstance(input[name], str) else input[name]
            # Snakemake knows from a missing input's FileNotFoundError that it has to ask again
            grown += rate * sum(os.path.getsize(file) for file in files) / 1e6
        return int(mb + grown) * attempt

    return needed


def memory_of_model(mb, name="base", processes=1):
    """`mb`, and the size of the model whose manifest is the input `name`: its weights pass through the job's memory.

    Each of the `processes` that a job starts on a node has both.
    """

    def needed(wildcards, input, attempt):
        os.stat(input[name])  # FileNotFoundError as in memory_of
        weights = 0
        # a damaged manifest is made again, not planned with
        with contextlib.suppress(EqaError):
            files = read_manifest(Path(input[name])).get("files", {})
            weights = sum(record["size"] for record in files.values())
        return int(mb + weights / 1e6) * processes * attempt

    return needed


def set_resources(rule):
    """What the profile or the command line sets of a rule's resources: {name: value}; an expression as its text."""
    found = workflow.resource_settings.overwrite_resources.get(rule, {})
    return {name: getattr(value, "raw", value) for name, value in found.items()}


def training_gpus(nodes):
    """GPUs of each of the training's nodes."""
    with told_in_one_line():
        return gpus_a_node(set_resources("train_adapter"), nodes)


def refuse_unmakeable():
    """Stop before any job where a target is to be made that cannot be made on this machine, in one line.

    A cluster's jobs see other machines than this one, so there each job speaks for itself; local rules run here as ever.
    """
    if not workflow.is_main_process:
        return
    rules = {
        job.rule.name
        for job in workflow.dag.needrun_jobs()
        if workflow.local_exec or workflow.is_local(job.rule)
    }
    with told_in_one_line():
        check_targets(rules, config)


def refuse_endless_waiting():
    """Stop before any job where Slurm's plugin would ask accounts that are not kept, in one line."""
    if workflow.is_main_process and workflow.executor_plugin.name == "slurm":
        with told_in_one_line():
            check_accounting(workflow.executor_settings.status_command)


def prepare_environments():
    """Bring this recipe's environments up to date with their locks; a failure stops the run before any job."""
    try:
        prepare(ROOT, needed_environments(config))
    except EqaError as error:
        raise WorkflowError(f"environments: {error}") from None
