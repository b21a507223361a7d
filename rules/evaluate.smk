# Predictions, metrics, comparison.
MODELS = ["base", "tuned", "blind", "majority"]
PREDICT_ENVS = {
    "transformers": "envs/train",
    "llamafactory": "envs/train",
    "lmdeploy": "envs/serve",
    "openai": ".",
}
PREDICT_ENV = PREDICT_ENVS[config["predict"]["engine"]]
PREDICT_SHARDS = [f"{shard:04d}" for shard in range(config["predict"]["shards"])]
ANSWERED = ["base", "tuned", "blind"]


rule predict:
    # Answers of one model to one shard of the test questions, on the unquantized base. A shard asks for one GPU.
    input:
        code=code("predict"),
        lock=f"{PREDICT_ENV}/uv.lock".removeprefix("./"),
        test="results/sft/test.json",
        frames="results/frames/manifest.json",
        base="models/base/manifest.json",
        adapter=lambda wildcards: adapter_of(wildcards.model),
        merged=lambda wildcards: merged_of(wildcards.model),
    output:
        predictions="results/predictions/shards/{model}/{shard}.jsonl",
        facts="results/predictions/shards/{model}/{shard}.meta.json",
    log:
        "logs/predict/{model}/{shard}.log",
    benchmark:
        "benchmarks/predict/{model}/{shard}.tsv"
    wildcard_constraints:
        # base4bit, asked for by name: what scoring the base in 4 bits would cost
        model="base|tuned|blind|base4bit",
    threads: 2
    resources:
        gpu=1,
        mem_mb=memory_of_model(2500),
    params:
        config=canonical("predict", "vision", "train.template", "train.cutoff_len"),
        weights=lambda wildcards, input: " ".join(
            [f"--adapter {name}" for name in input.adapter]
            + [f"--merged {name}" for name in input.merged[:1]]
        ),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.lib.devices --gpus {resources.gpu:q} -- \
            uv run --frozen --no-sync --project "$(dirname {input.lock:q})" python -m scripts.predict \
            --model {wildcards.model:q} --test {input.test:q} --frames {input.frames:q} \
            --base {input.base:q} {params.weights} --shard {wildcards.shard:q} --config {params.config:q} \
            --work-dir work/predict \
            --output {output.predictions:q} --meta {output.facts:q} >{log:q} 2>&1
        """


rule join_predictions:
    # The shards' answers by question_id: each test question once, and no other.
    input:
        code=code("join_predictions"),
        lock="uv.lock",
        test="results/sft/test.json",
        shards=expand(
            "results/predictions/shards/{{model}}/{shard}.{kind}",
            shard=PREDICT_SHARDS,
            kind=["jsonl", "meta.json"],
        ),
    output:
        predictions=report(
            "results/predictions/{model}.jsonl",
            caption="../report/predictions.rst",
            category="Answers",
            labels={"model": "{model}", "what": "answers"},
        ),
        facts=report(
            "results/predictions/{model}.meta.json",
            caption="../report/prediction_facts.rst",
            category="Answers",
            labels={"model": "{model}", "what": "how they were made"},
        ),
    log:
        "logs/join_predictions/{model}.log",
    wildcard_constraints:
        model="base|tuned|blind|base4bit",
    params:
        config=canonical("predict.shards"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.join_predictions \
            --model {wildcards.model:q} --test {input.test:q} --shards-dir results/predictions/shards \
            --config {params.config:q} --output {output.predictions:q} --meta {output.facts:q} >{log:q} 2>&1
        """


rule predict_majority:
    # The most common training answer of each question's category: what can be had without looking.
    input:
        code=code("predict_majority"),
        lock="uv.lock",
        questions="results/index/questions.json",
        split="results/split/split.json",
    output:
        predictions=report(
            "results/predictions/majority.jsonl",
            caption="../report/predictions_majority.rst",
            category="Answers",
            labels={"model": "majority", "what": "answers"},
        ),
        facts=report(
            "results/predictions/majority.meta.json",
            caption="../report/prediction_facts.rst",
            category="Answers",
            labels={"model": "majority", "what": "how they were made"},
        ),
    log:
        "logs/predict_majority.log",
    resources:
        mem_mb=memory(600, 9),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.predict_majority \
            --questions {input.questions:q} --split {input.split:q} \
            --output {output.predictions:q} --meta {output.facts:q} >{log:q} 2>&1
        """


rule score:
    # Each answer against all accepted answers; overall, by category, by source; intervals over spaces.
    input:
        code=code("score"),
        lock="uv.lock",
        predictions="results/predictions/{model}.jsonl",
        facts="results/predictions/{model}.meta.json",
        questions="results/index/questions.json",
        split="results/split/split.json",
    output:
        metrics=report(
            "results/metrics/{model}.json",
            caption="../report/scores.rst",
            category="Scores",
            labels={"model": "{model}", "what": "scores"},
        ),
        rows=report(
            "results/metrics/{model}.questions.jsonl",
            caption="../report/question_scores.rst",
            category="Scores",
            labels={"model": "{model}", "what": "scores of each question"},
        ),
    log:
        "logs/score/{model}.log",
    resources:
        mem_mb=memory(600, 8),
    params:
        config=canonical("score"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.score \
            --model {wildcards.model:q} --predictions {input.predictions:q} --meta {input.facts:q} \
            --questions {input.questions:q} --split {input.split:q} --config {params.config:q} \
            --output {output.metrics:q} --rows {output.rows:q} >{log:q} 2>&1
        """


rule judge_answers:
    # LLM-Match, Open-EQA's own protocol; a switched-off record unless deliver.llm_match.
    input:
        code=code("judge_answers"),
        lock="uv.lock",
        predictions="results/predictions/{model}.jsonl",
        questions="results/index/questions.json",
        split="results/split/split.json",
        prompts="data/raw/openeqa/prompts/manifest.json",
    output:
        report(
            "results/metrics/llm_match_{model}.json",
            caption="../report/llm_match.rst",
            category="Scores",
            labels={"model": "{model}", "what": "LLM-Match"},
        ),
    log:
        "logs/judge_answers/{model}.log",
    wildcard_constraints:
        model="base|tuned",
    params:
        config=canonical("judge", "score", "deliver.llm_match"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.judge_answers \
            --model {wildcards.model:q} --predictions {input.predictions:q} --questions {input.questions:q} \
            --split {input.split:q} --prompts {input.prompts:q} --config {params.config:q} \
            --work-dir work/judge --output {output:q} >{log:q} 2>&1
        """


rule export_openeqa:
    # The official results format, for the official evaluator.
    input:
        code=code("export_openeqa"),
        lock="uv.lock",
        predictions="results/predictions/{model}.jsonl",
    output:
        report(
            "results/predictions/{model}.openeqa.json",
            caption="../report/openeqa.rst",
            category="Answers",
            labels={"model": "{model}", "what": "official format"},
        ),
    log:
        "logs/export_openeqa/{model}.log",
    wildcard_constraints:
        model="base|tuned",
    shell:
        """
        uv run --frozen --no-sync python -m scripts.export_openeqa \
            --predictions {input.predictions:q} --output {output:q} >{log:q} 2>&1
        """


rule compare_models:
    # Tuned against base by paired bootstrap over spaces; flat numbers for `dvc metrics diff`.
    input:
        code=code("compare_models"),
        lock="uv.lock",
        metrics=expand("results/metrics/{model}.json", model=MODELS),
        rows=expand("results/metrics/{model}.questions.jsonl", model=MODELS),
        judged=expand("results/metrics/llm_match_{model}.json", model=["base", "tuned"]),
    output:
        metrics=report(
            "results/metrics.json",
            caption="../report/metrics.rst",
            category="Scores",
            labels={"model": "all", "what": "flat table"},
        ),
        comparison=report(
            "results/metrics/comparison.json",
            caption="../report/comparison.rst",
            category="Scores",
            labels={"model": "all", "what": "comparison"},
        ),
    log:
        "logs/compare_models.log",
    resources:
        mem_mb=memory(600, 12),
    params:
        config=canonical("score"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.compare_models \
            --metrics-dir results/metrics --config {params.config:q} \
            --output {output.metrics:q} --comparison {output.comparison:q} >{log:q} 2>&1
        """
