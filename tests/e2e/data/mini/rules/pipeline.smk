import json
from hashlib import sha256

SHARDS = ["0000", "0001"]
MODELS = ["base", "tuned"]


def canonical(*keys):
    """The named parts of the config as one string."""
    return json.dumps({key: config[key] for key in keys}, sort_keys=True)


def listing():
    """What the raw folder holds."""
    files = sorted(Path("data/source").glob("*.txt"))
    return sha256("".join(f"{file.name} {file.stat().st_size}\n" for file in files).encode()).hexdigest()


rule list_source:
    input:
        code="scripts/step.py",
    output:
        "data/raw/openeqa/source.json",
    log:
        "logs/list_source.log",
    params:
        listing=listing(),
    shell:
        "python -m scripts.step list_source --output {output:q} > {log:q} 2>&1"


rule sample_frames:
    input:
        code=["scripts/step.py", "scripts/sample.py"],
        source="data/raw/openeqa/source.json",
    output:
        "results/frames/shards/{shard}.json",
    log:
        "logs/sample_frames/{shard}.log",
    params:
        config=canonical("frames"),
    shell:
        """
        python -m scripts.sample --source {input.source:q} --shard {wildcards.shard:q} --config {params.config:q} \
            --output {output:q} > {log:q} 2>&1
        """


rule join_frames:
    input:
        code="scripts/step.py",
        shards=expand("results/frames/shards/{shard}.json", shard=SHARDS),
    output:
        "results/frames/manifest.json",
    log:
        "logs/join_frames.log",
    shell:
        "python -m scripts.step join_frames --inputs {input.shards:q} --output {output:q} > {log:q} 2>&1"


rule build_sft:
    input:
        code="scripts/step.py",
        frames="results/frames/manifest.json",
    output:
        train="results/sft/train.json",
        test="results/sft/test.json",
    log:
        "logs/build_sft.log",
    shell:
        """
        python -m scripts.step build_sft --inputs {input.frames:q} --output {output.train:q} {output.test:q} \
            > {log:q} 2>&1
        """


rule make_model:
    input:
        code="scripts/step.py",
        lock="envs/train/uv.lock",
    output:
        "models/base/manifest.json",
    log:
        "logs/make_model.log",
    params:
        config=canonical("seed"),
    shell:
        "python -m scripts.step make_folder --config {params.config:q} --output {output:q} > {log:q} 2>&1"


rule train_adapter:
    input:
        code="scripts/step.py",
        lock="envs/train/uv.lock",
        train="results/sft/train.json",
        base="models/base/manifest.json",
    output:
        adapter="results/adapter/manifest.json",
        curves="results/train_log/curves.json",
        plot="results/plots/train_loss.csv",
    log:
        "logs/train_adapter.log",
    params:
        config=canonical("train"),
    shell:
        """
        sleep ${{MINI_TRAIN_S:-0}}
        python -m scripts.step train --inputs {input.train:q} {input.base:q} --config {params.config:q} \
            --output {output:q} > {log:q} 2>&1
        """


rule predict:
    input:
        code="scripts/step.py",
        test="results/sft/test.json",
        base="models/base/manifest.json",
        adapter=lambda wildcards: "results/adapter/manifest.json" if wildcards.model == "tuned" else [],
    output:
        predictions="results/predictions/{model}.jsonl",
        facts="results/predictions/{model}.meta.json",
    log:
        "logs/predict/{model}.log",
    shell:
        """
        python -m scripts.step predict --inputs {input.test:q} {input.base:q} {input.adapter:q} --output {output:q} \
            > {log:q} 2>&1
        """


rule score:
    input:
        code=["scripts/step.py", "scripts/score.py"],
        predictions="results/predictions/{model}.jsonl",
        facts="results/predictions/{model}.meta.json",
    output:
        "results/metrics/{model}.json",
    log:
        "logs/score/{model}.log",
    shell:
        "python -m scripts.score --inputs {input.predictions:q} {input.facts:q} --output {output:q} > {log:q} 2>&1"


rule compare_models:
    input:
        code="scripts/step.py",
        metrics=expand("results/metrics/{model}.json", model=MODELS),
    output:
        "results/metrics.json",
    log:
        "logs/compare_models.log",
    shell:
        "python -m scripts.step compare --inputs {input.metrics:q} --output {output:q} > {log:q} 2>&1"


rule merge_adapter:
    input:
        code="scripts/step.py",
        base="models/base/manifest.json",
        adapter="results/adapter/manifest.json",
    output:
        "results/merged/manifest.json",
    log:
        "logs/merge_adapter.log",
    shell:
        """
        python -m scripts.step make_folder --inputs {input.base:q} {input.adapter:q} --output {output:q} > {log:q} 2>&1
        """


ARTIFACTS = [
    "data/raw/openeqa/source.json",
    expand("results/frames/shards/{shard}.json", shard=SHARDS),
    "results/frames/manifest.json",
    expand("results/sft/{name}.json", name=["train", "test"]),
    "models/base/manifest.json",
    "results/adapter/manifest.json",
    "results/train_log/curves.json",
    "results/plots/train_loss.csv",
    expand("results/predictions/{model}.{kind}", model=MODELS, kind=["jsonl", "meta.json"]),
    expand("results/metrics/{model}.json", model=MODELS),
    "results/metrics.json",
    "results/merged/manifest.json",
]
