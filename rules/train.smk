# QLoRA by LLaMA-Factory.
NODES = config["train"]["nodes"]
# For Slurm: a task and at least a GPU on each node. "mpi" makes the plugin start the job itself without srun, which the job
# then uses; tasks_per_gpu=0 keeps it from asking for so many tasks a GPU.
SEVERAL_NODES = (
    {"nodes": NODES, "tasks": NODES, "tasks_per_gpu": 0, "mpi": "srun"}
    if NODES > 1
    else {}
)


rule train_adapter:
    # Checkpoints live in work/train, outside the outputs: a killed run goes on from the newest complete one.
    input:
        code=code("train_adapter"),
        lock="envs/train/uv.lock",
        info="results/sft/dataset_info.json",
        train="results/sft/train.json",
        val="results/sft/val.json",
        budget="results/sft/token_budget.json",
        frames="results/frames/manifest.json",
        base="models/base/manifest.json",
    output:
        adapter=report(
            "results/adapter/manifest.json",
            caption="../report/adapter.rst",
            category="Training",
            labels={"what": "adapter"},
        ),
        curves=report(
            "results/train_log/curves.json",
            caption="../report/curves.rst",
            category="Training",
            labels={"what": "loss, numbers"},
        ),
        plot=report(
            "results/train_log/loss.png",
            caption="../report/loss.rst",
            category="Training",
            labels={"what": "loss, picture"},
        ),
    log:
        "logs/train_adapter.log",
    benchmark:
        "benchmarks/train_adapter.tsv"
    threads: 2
    resources:
        **SEVERAL_NODES,
        gpu=NODES,
        mem_mb=memory_of_model(3500),
    params:
        config=canonical("train", "vision"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.lib.devices --gpus {resources.gpu:q} -- \
            uv run --frozen --no-sync --project envs/train python -m scripts.train_adapter \
            --dataset-dir results/sft --frames {input.frames:q} --base {input.base:q} --config {params.config:q} \
            --work-dir work/train --adapter-dir results/adapter --log-dir results/train_log >{log:q} 2>&1
        """
