# QLoRA by LLaMA-Factory.
NODES = config["train"]["nodes"]
# GPUs a node, the one number behind GPUs, CPUs and memory of the training: a process for each, or one without GPUs.
GPUS = training_gpus(NODES)
PROCESSES = max(1, GPUS)


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
    # Slurm and Kubernetes take them as CPUs of a node; profiles/default keeps them few. Loaders are processes of their own.
    threads: PROCESSES * max(2, 1 + config["train"]["dataloader_workers"])
    resources:
        **placement(set_resources("train_adapter"), NODES, GPUS),
        gpu=NODES * GPUS,
        mem_mb=memory_of_model(3500, processes=PROCESSES),
    params:
        config=canonical("train", "vision"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.lib.devices --gpus {resources.gpu:q} -- \
            uv run --frozen --no-sync --project envs/train python -m scripts.train_adapter \
            --dataset-dir results/sft --frames {input.frames:q} --base {input.base:q} --config {params.config:q} \
            --work-dir work/train --adapter-dir results/adapter --log-dir results/train_log >{log:q} 2>&1
        """
