# What people look at. Exempt from byte equality: the report reads times and memory (tests/exempt.txt).
rule write_config:
    # The whole checked recipe, as the jobs saw it.
    input:
        code=code("write_config"),
        lock="uv.lock",
    output:
        report(
            "results/config.json",
            caption="../report/config.rst",
            category="Report",
            labels={"what": "recipe"},
        ),
    log:
        "logs/write_config.log",
    params:
        config=canonical(*sorted(config)),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.write_config --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """


rule write_model_card:
    # Hugging Face front matter, data and licences, recipe, metrics with intervals, hashes, how to use.
    input:
        code=code("write_model_card"),
        lock="uv.lock",
        template="scripts/templates/model_card.md.j2",
        config="results/config.json",
        metrics="results/metrics.json",
        scores=expand("results/metrics/{model}.json", model=MODELS),
        judged=expand("results/metrics/llm_match_{model}.json", model=["base", "tuned"]),
        comparison="results/metrics/comparison.json",
        questions="results/index/questions.json",
        split="results/split/split.json",
        budget="results/sft/token_budget.json",
        base="models/base/manifest.json",
        adapter="results/adapter/manifest.json",
        merged="results/merged/manifest.json",
        verify="results/merged/verify.json",
        gguf="results/gguf/manifest.json",
    output:
        report(
            "results/model_card.md",
            caption="../report/model_card.rst",
            category="Report",
            labels={"what": "model card"},
        ),
    log:
        "logs/write_model_card.log",
    shell:
        """
        uv run --frozen --no-sync python -m scripts.write_model_card \
            --results-dir results --base {input.base:q} --template {input.template:q} --output {output:q} >{log:q} 2>&1
        """


rule write_plots:
    # Flat tables for `dvc plots diff`; in git, not in the DVC cache.
    input:
        code=code("write_plots"),
        lock="uv.lock",
        curves="results/train_log/curves.json",
        scores=expand("results/metrics/{model}.json", model=["base", "tuned"]),
        rows=expand("results/metrics/{model}.questions.jsonl", model=["base", "tuned"]),
    output:
        report(
            "results/plots/train_loss.csv",
            caption="../report/plots.rst",
            category="Training",
            labels={"what": "loss, table"},
        ),
        report(
            "results/plots/val_loss.csv",
            caption="../report/plots.rst",
            category="Training",
            labels={"what": "validation loss, table"},
        ),
        report(
            "results/plots/base_categories.csv",
            caption="../report/plots.rst",
            category="Scores",
            labels={"model": "base", "what": "categories, table"},
        ),
        report(
            "results/plots/tuned_categories.csv",
            caption="../report/plots.rst",
            category="Scores",
            labels={"model": "tuned", "what": "categories, table"},
        ),
        report(
            "results/plots/base_questions.csv",
            caption="../report/plots.rst",
            category="Scores",
            labels={"model": "base", "what": "questions, table"},
        ),
        report(
            "results/plots/tuned_questions.csv",
            caption="../report/plots.rst",
            category="Scores",
            labels={"model": "tuned", "what": "questions, table"},
        ),
    log:
        "logs/write_plots.log",
    shell:
        """
        uv run --frozen --no-sync python -m scripts.write_plots \
            --curves {input.curves:q} --scores {input.scores:q} \
            --rows {input.rows:q} --output-dir results/plots >{log:q} 2>&1
        """


rule write_report:
    # One self-contained page. Logs, times and Snakemake's records are read as they are then, and are no inputs: a page is
    # not made again because they changed.
    input:
        code=code("write_report"),
        lock="uv.lock",
        templates=sorted(glob("scripts/templates/report/*")),
        config="results/config.json",
        questions="results/index/questions.json",
        episodes="results/index/episodes.json",
        split="results/split/split.json",
        frames="results/frames/manifest.json",
        budget="results/sft/token_budget.json",
        curves="results/train_log/curves.json",
        base="models/base/manifest.json",
        adapter="results/adapter/manifest.json",
        metrics="results/metrics.json",
        comparison="results/metrics/comparison.json",
        rows=expand("results/metrics/{model}.questions.jsonl", model=MODELS),
        scores=expand("results/metrics/{model}.json", model=MODELS),
        judged=expand("results/metrics/llm_match_{model}.json", model=["base", "tuned"]),
        merged="results/merged/manifest.json",
        verify="results/merged/verify.json",
        imported="results/ollama/import.json",
        gguf="results/gguf/manifest.json",
        lmdeploy="results/serve/lmdeploy.json",
    output:
        report(
            "results/report/index.html",
            caption="../report/report.rst",
            category="Report",
            labels={"what": "the page"},
        ),
    log:
        "logs/write_report.log",
    resources:
        mem_mb=memory_of(600, questions=7, frames=7, rows=7),
    params:
        config=canonical("report"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.write_report \
            --results-dir results --base {input.base:q} --benchmarks-dir benchmarks --logs-dir logs \
            --lock provenance.lock.json \
            --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """


# Every output of every rule, not only the last ones: Snakemake does not miss a file that only finished jobs read.
ARTIFACTS = [
    expand("data/raw/demo/{name}.json", name=["questions", "manifest"]),
    "data/raw/openeqa/questions.json",
    "data/raw/openeqa/prompts/manifest.json",
    "data/raw/openeqa/source.json",
    "models/base/manifest.json",
    "results/config.json",
    "results/index/episodes.json",
    "results/index/questions.json",
    "results/split/split.json",
    expand("results/frames/shards/{shard}.json", shard=SHARDS),
    "results/frames/manifest.json",
    expand(
        "results/sft/{name}.json",
        name=["dataset_info", "train", "val", "test", "token_budget"],
    ),
    "results/adapter/manifest.json",
    expand("results/train_log/{name}", name=["curves.json", "loss.png"]),
    expand(
        "results/predictions/{model}.{kind}", model=MODELS, kind=["jsonl", "meta.json"]
    ),
    expand(
        "results/predictions/shards/{model}/{shard}.{kind}",
        model=ANSWERED,
        shard=PREDICT_SHARDS,
        kind=["jsonl", "meta.json"],
    ),
    expand("results/predictions/{model}.openeqa.json", model=["base", "tuned"]),
    expand(
        "results/metrics/{model}.{kind}", model=MODELS, kind=["json", "questions.jsonl"]
    ),
    "results/metrics/comparison.json",
    expand("results/metrics/llm_match_{model}.json", model=["base", "tuned"]),
    "results/metrics.json",
    "results/merged/manifest.json",
    "results/merged/verify.json",
    "results/gguf/manifest.json",
    "results/ollama/Modelfile",
    "results/ollama/import.json",
    "results/serve/lmdeploy.json",
    "results/model_card.md",
    expand(
        "results/plots/{name}.csv",
        name=[
            "train_loss",
            "val_loss",
            "base_categories",
            "tuned_categories",
            "base_questions",
            "tuned_questions",
        ],
    ),
    "results/report/index.html",
]
