# Raw data -> index -> split -> frames -> LLaMA-Factory data; and the base model, whose processor counts the tokens.
SHARDS = [f"{shard:04d}" for shard in range(config["frames"]["shards"])]
ARCHIVE = source_has_archive()
QUESTIONS_MB = questions_mb()
PROMPT = {
    "short_answer": "config/prompts/short_answer.txt",
    "official": "data/raw/openeqa/prompts/manifest.json",
}[config["predict"]["prompt"]]


rule make_demo_episodes:
    # Rendered rooms with questions in Open-EQA's own layout.
    input:
        code=code("make_demo_episodes"),
        lock="uv.lock",
    output:
        questions="data/raw/demo/questions.json",
        manifest="data/raw/demo/manifest.json",
    log:
        "logs/make_demo_episodes.log",
    benchmark:
        "benchmarks/make_demo_episodes.tsv"
    params:
        config=canonical("data.demo_episodes", "data.demo_seed"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.make_demo_episodes \
            --config {params.config:q} --output-dir data/raw/demo >{log:q} 2>&1
        """


rule fetch_questions:
    # The user's question file, or Open-EQA's at its pinned commit.
    input:
        code=code("fetch_questions"),
        lock="uv.lock",
        pins="config/data.lock.json",
    output:
        "data/raw/openeqa/questions.json",
    log:
        "logs/fetch_questions.log",
    params:
        config=canonical("data.source", "data.questions"),
        own=lambda wildcards: own_questions(),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.fetch_questions \
            --lock {input.pins:q} --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """


rule fetch_prompts:
    # Open-EQA's own prompts, where predict.prompt or the judge uses them; a switched-off record otherwise.
    input:
        code=code("fetch_prompts"),
        lock="uv.lock",
        pins="config/data.lock.json",
    output:
        "data/raw/openeqa/prompts/manifest.json",
    log:
        "logs/fetch_prompts.log",
    params:
        config=canonical("data.source", "predict.prompt", "deliver.llm_match"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.fetch_prompts \
            --lock {input.pins:q} --config {params.config:q} --output-dir data/raw/openeqa/prompts >{log:q} 2>&1
        """


rule fetch_episodes:
    # Open-EQA's archive of HM3D frames, 12 GB, by name only. Progress goes to the terminal, facts to the log.
    input:
        code=code("fetch_episodes"),
        lock="uv.lock",
        pins="config/data.lock.json",
    output:
        "data/raw/download/manifest.json",
    log:
        "logs/fetch_episodes.log",
    shell:
        """
        uv run --frozen --no-sync python -m scripts.fetch_episodes \
            --lock {input.pins:q} --output-dir data/raw/download >{log:q}
        """


rule list_source:
    # What the user's folder holds for the questions' episodes: relative paths, kinds and sizes. Reads no pixels.
    input:
        code=code("list_source"),
        lock="uv.lock",
        questions="data/raw/openeqa/questions.json",
    output:
        "data/raw/openeqa/source.json",
    log:
        "logs/list_source.log",
    resources:
        mem_mb=memory(600, 12),
    params:
        config=canonical("data.source"),
        listing=source_listing(),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.list_source \
            --questions {input.questions:q} --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """


rule index_episodes:
    # One record an episode (kind, frames, size, space, status) and the checked questions of all sources.
    input:
        code=code("index_episodes"),
        lock="uv.lock",
        demo_questions="data/raw/demo/questions.json",
        demo_manifest="data/raw/demo/manifest.json",
        questions="data/raw/openeqa/questions.json",
        source="data/raw/openeqa/source.json",
    output:
        episodes=report(
            "results/index/episodes.json",
            caption="../report/episodes.rst",
            category="Data",
            labels={"what": "episodes"},
        ),
        questions=report(
            "results/index/questions.json",
            caption="../report/questions.rst",
            category="Data",
            labels={"what": "questions"},
        ),
    log:
        "logs/index_episodes.log",
    resources:
        mem_mb=memory(600, 16),
    params:
        config=canonical(
            "data.source",
            "data.require",
            "frames.count",
            "frames.choice",
            "frames.short",
            "frames.shards",
        ),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.index_episodes \
            --demo-questions {input.demo_questions:q} --demo-manifest {input.demo_manifest:q} \
            --questions {input.questions:q} --source {input.source:q} --config {params.config:q} \
            --episodes {output.episodes:q} --output-questions {output.questions:q} >{log:q} 2>&1
        """


rule split_questions:
    # train/val/test by space, with a leakage report.
    input:
        code=code("split_questions"),
        lock="uv.lock",
        episodes="results/index/episodes.json",
        questions="results/index/questions.json",
        file=config["split"]["file"] or [],
    output:
        report(
            "results/split/split.json",
            caption="../report/split.rst",
            category="Data",
            labels={"what": "split"},
        ),
    log:
        "logs/split_questions.log",
    resources:
        mem_mb=memory(600, 9),
    params:
        config=canonical("split"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.split_questions \
            --episodes {input.episodes:q} --questions {input.questions:q} --config {params.config:q} \
            --output {output:q} >{log:q} 2>&1
        """


if ARCHIVE:

    rule extract_archive:
        # The frames of every episode in the HM3D archive, in one pass for all shards. No archive, no rule.
        input:
            code=code("extract_archive"),
            lock="uv.lock",
            episodes="results/index/episodes.json",
            source="data/raw/openeqa/source.json",
        output:
            "results/frames/archive.json",
        log:
            "logs/extract_archive.log",
        benchmark:
            "benchmarks/extract_archive.tsv"
        params:
            config=canonical("data.source", "frames", "vision", "model.source"),
        shell:
            """
            uv run --frozen --no-sync python -m scripts.extract_archive \
                --episodes {input.episodes:q} --source {input.source:q} --config {params.config:q} \
                --frames-dir results/frames --work-dir work/archive --output {output:q} >{log:q} 2>&1
            """


rule sample_frames:
    # The wanted frames of each episode of a shard, at the model's own size. Each episode once, not once a question.
    input:
        code=code("sample_frames"),
        lock="uv.lock",
        episodes="results/index/episodes.json",
        archive="results/frames/archive.json" if ARCHIVE else [],
    output:
        "results/frames/shards/{shard}.json",
    log:
        "logs/sample_frames/{shard}.log",
    benchmark:
        "benchmarks/sample_frames/{shard}.tsv"
    params:
        config=canonical("data.source", "frames", "vision", "model.source"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.sample_frames \
            --episodes {input.episodes:q} --shard {wildcards.shard:q} --config {params.config:q} \
            --frames-dir results/frames --output {output:q} >{log:q} 2>&1
        """


rule join_frames:
    # One manifest over all shards: the edge to everything that reads pictures.
    input:
        code=code("join_frames"),
        lock="uv.lock",
        shards=expand("results/frames/shards/{shard}.json", shard=SHARDS),
    output:
        report(
            "results/frames/manifest.json",
            caption="../report/frames.rst",
            category="Data",
            labels={"what": "frames"},
        ),
    log:
        "logs/join_frames.log",
    resources:
        mem_mb=memory_of(600, shards=11),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.join_frames \
            --shards {input.shards:q} --frames-dir results/frames --output {output:q} >{log:q} 2>&1
        """


if config["model"]["source"] == "demo":

    rule make_demo_model:
        # A seeded tiny Qwen3-VL with its own tokenizer and processor, trained a little on rooms of other seeds.
        input:
            code=code("make_demo_model"),
            lock="envs/train/uv.lock",
            prompt="config/prompts/short_answer.txt",
        output:
            "models/base/manifest.json",
        log:
            "logs/make_demo_model.log",
        benchmark:
            "benchmarks/make_demo_model.tsv"
        threads: 2
        resources:
            mem_mb=memory(2500),
        params:
            config=canonical(
                "model.demo_seed", "model.demo_steps", "frames.count", "vision"
            ),
        shell:
            """
            uv run --frozen --no-sync --project envs/train python -m scripts.make_demo_model \
                --prompt {input.prompt:q} --config {params.config:q} --output-dir models/base >{log:q} 2>&1
            """

else:

    rule fetch_base_model:
        # The pinned revision; every file checked against config/models.lock.json.
        input:
            code=code("fetch_base_model"),
            lock="uv.lock",
            pins="config/models.lock.json",
        output:
            "models/base/manifest.json",
        log:
            "logs/fetch_base_model.log",
        localrule: True
        params:
            config=canonical("model.source", "model.name", "model.path"),
        shell:
            """
            uv run --frozen --no-sync python -m scripts.fetch_base_model \
                --pins {input.pins:q} --config {params.config:q} --output-dir models/base >{log:q} 2>&1
            """


rule build_sft:
    # LLaMA-Factory sharegpt files; every sample's tokens counted with the base model's own processor.
    input:
        code=code("build_sft"),
        lock="envs/train/uv.lock",
        questions="results/index/questions.json",
        split="results/split/split.json",
        frames="results/frames/manifest.json",
        base="models/base/manifest.json",
        prompt=PROMPT,
    output:
        info="results/sft/dataset_info.json",
        train=report(
            "results/sft/train.json",
            caption="../report/sft.rst",
            category="Data",
            labels={"what": "training samples"},
        ),
        val=report(
            "results/sft/val.json",
            caption="../report/sft.rst",
            category="Data",
            labels={"what": "validation samples"},
        ),
        test=report(
            "results/sft/test.json",
            caption="../report/sft.rst",
            category="Data",
            labels={"what": "test samples"},
        ),
        budget=report(
            "results/sft/token_budget.json",
            caption="../report/token_budget.rst",
            category="Data",
            labels={"what": "token budget"},
        ),
    log:
        "logs/build_sft.log",
    resources:
        mem_mb=memory_of(1500, questions=1.5, frames=1.5),
    params:
        config=canonical(
            "data.conversation",
            "frames.count",
            "vision",
            "train.cutoff_len",
            "train.template",
            "train.seed",
            "predict.prompt",
            "predict.max_new_tokens",
        ),
    shell:
        """
        uv run --frozen --no-sync --project envs/train python -m scripts.build_sft \
            --questions {input.questions:q} --split {input.split:q} --frames {input.frames:q} \
            --base {input.base:q} --prompt {input.prompt:q} --config {params.config:q} \
            --output-dir results/sft >{log:q} 2>&1
        """


rule export_parquet:
    # The same data as Parquet with the pictures inside, for datasets.load_dataset. By name only.
    input:
        code=code("export_parquet"),
        lock="uv.lock",
        parts=expand("results/sft/{part}.json", part=["train", "val", "test"]),
        frames="results/frames/manifest.json",
    output:
        report(
            "results/sft/parquet/manifest.json",
            caption="../report/parquet.rst",
            category="Data",
            labels={"what": "Parquet"},
        ),
    log:
        "logs/export_parquet.log",
    shell:
        """
        uv run --frozen --no-sync python -m scripts.export_parquet \
            --dataset-dir results/sft --frames {input.frames:q} --output-dir results/sft/parquet >{log:q} 2>&1
        """
