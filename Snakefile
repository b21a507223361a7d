# Raw Open-EQA episodes -> 8-frame folders -> LLaMA-Factory data -> QLoRA adapter -> predictions -> metrics -> merged
# model -> Ollama / LMDeploy. This file loads and checks the recipe, includes the rules and names the targets.
from snakemake.utils import min_version

min_version("9.27.1")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/running.smk"
include: "rules/terminal.smk"
include: "rules/provenance.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/deliver.smk"
include: "rules/report.smk"


# On a cluster these stay where Snakemake runs: they need the network, or are done before a job would start. A profile that
# puts one into a group sends it with the group.
localrules:
    all,
    envs,
    fetch_questions,
    fetch_prompts,
    fetch_episodes,
    judge_answers,
    import_ollama,
    check_serving,
    compare_models,
    write_config,
    write_plots,
    write_model_card,
    prepare_ollama,


rule all:
    default_target: True
    input:
        ARTIFACTS,


# The environments that this recipe needs, beforehand: on a node with network. No artifact depends on it.
rule envs:
    input:
        locks=[str(Path(name, "uv.lock")) for name in needed_environments(config)],
    log:
        "logs/envs.log",
    shell:
        """
        for lock in {input.locks:q}; do
            python -m scripts.prepare_environments --environment "$(dirname "$lock")"
        done >{log:q} 2>&1
        """


onstart:
    # before the first job, and only if one is to run
    refuse_endless_waiting()
    refuse_unmakeable()
    # once, before jobs: they run with --no-sync
    prepare_environments()
