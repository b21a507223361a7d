# Merge, proof of the merge, GGUF, Ollama, LMDeploy.
rule merge_adapter:
    # LLaMA-Factory export on the unquantized base, mended so that Ollama, llama.cpp and transformers all read it.
    input:
        code=code("merge_adapter"),
        lock="envs/train/uv.lock",
        base="models/base/manifest.json",
        adapter="results/adapter/manifest.json",
    output:
        report(
            "results/merged/manifest.json",
            caption="../report/merged.rst",
            category="Delivery",
            labels={"what": "merged model"},
        ),
    log:
        "logs/merge_adapter.log",
    benchmark:
        "benchmarks/merge_adapter.tsv"
    threads: 2
    resources:
        mem_mb=memory_of_model(3500),
    params:
        config=canonical("merge.dtype", "merge.shard_gb", "train.template"),
    shell:
        """
        uv run --frozen --no-sync --project envs/train python -m scripts.merge_adapter \
            --base {input.base:q} --adapter {input.adapter:q} --config {params.config:q} \
            --work-dir work/merge --output-dir results/merged >{log:q} 2>&1
        """


rule verify_merge:
    # Largest logit difference and share of identical greedy answers, adapter against merged; fails over tolerance.
    input:
        code=code("verify_merge"),
        lock="envs/train/uv.lock",
        base="models/base/manifest.json",
        adapter="results/adapter/manifest.json",
        merged="results/merged/manifest.json",
        test="results/sft/test.json",
        frames="results/frames/manifest.json",
    output:
        report(
            "results/merged/verify.json",
            caption="../report/verify.rst",
            category="Delivery",
            labels={"what": "proof of the merge"},
        ),
    log:
        "logs/verify_merge.log",
    threads: 2
    resources:
        gpu=1,
        mem_mb=memory_of_model(2500),
    params:
        config=canonical(
            "merge.dtype",
            "merge.tolerance",
            "merge.sample",
            "vision",
            "predict.max_new_tokens",
        ),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.lib.devices --gpus {resources.gpu:q} -- \
            uv run --frozen --no-sync --project envs/train python -m scripts.verify_merge \
            --base {input.base:q} --adapter {input.adapter:q} --merged {input.merged:q} --test {input.test:q} --frames {input.frames:q} \
            --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """


rule export_gguf:
    # f16 GGUF and its vision projector by llama.cpp's converter, q8_0 and q4_K_M where a quantizer is there.
    input:
        code=code("export_gguf"),
        lock="envs/gguf/uv.lock",
        merged="results/merged/manifest.json",
        verify="results/merged/verify.json",
    output:
        report(
            "results/gguf/manifest.json",
            caption="../report/gguf.rst",
            category="Delivery",
            labels={"what": "GGUF"},
        ),
    log:
        "logs/export_gguf.log",
    benchmark:
        "benchmarks/export_gguf.tsv"
    threads: 2
    resources:
        mem_mb=memory_of_model(2500, "merged"),
    params:
        config=canonical("deliver.gguf"),
    shell:
        """
        uv run --frozen --no-sync --project envs/gguf python -m scripts.export_gguf \
            --merged {input.merged:q} --config {params.config:q} --output-dir results/gguf >{log:q} 2>&1
        """


rule prepare_ollama:
    # A Modelfile that fits the merged model and the token budget.
    input:
        code=code("prepare_ollama"),
        lock="uv.lock",
        merged="results/merged/manifest.json",
        verify="results/merged/verify.json",
        budget="results/sft/token_budget.json",
    output:
        report(
            "results/ollama/Modelfile",
            caption="../report/modelfile.rst",
            category="Delivery",
            labels={"what": "Modelfile"},
        ),
    log:
        "logs/prepare_ollama.log",
    params:
        config=canonical(
            "predict.max_new_tokens", "predict.decoding", "vision", "frames.count"
        ),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.prepare_ollama \
            --merged {input.merged:q} --budget {input.budget:q} --config {params.config:q} \
            --output {output:q} >{log:q} 2>&1
        """


rule import_ollama:
    # Creates the model on a running server and asks it one test question; a switched-off record unless deliver.ollama.
    input:
        code=code("import_ollama"),
        lock="uv.lock",
        merged="results/merged/manifest.json",
        modelfile="results/ollama/Modelfile",
        gguf="results/gguf/manifest.json",
        test="results/sft/test.json",
    output:
        report(
            "results/ollama/import.json",
            caption="../report/ollama.rst",
            category="Delivery",
            labels={"what": "Ollama"},
        ),
    log:
        "logs/import_ollama.log",
    params:
        config=canonical(
            "deliver.ollama",
            "serve.model_name",
            "serve.ollama_quantize",
            "predict.max_new_tokens",
        ),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.import_ollama \
            --merged {input.merged:q} --modelfile {input.modelfile:q} --gguf {input.gguf:q} --test {input.test:q} \
            --config {params.config:q} --work-dir work/ollama --output {output:q} >{log:q} 2>&1
        """


rule bench_lmdeploy:
    # The tutorial's offline test made honest: batch sizes, percentiles, memory. CUDA only.
    input:
        code=code("bench_lmdeploy"),
        lock="envs/serve/uv.lock" if config["deliver"]["lmdeploy"] else "uv.lock",
        merged="results/merged/manifest.json",
        verify="results/merged/verify.json",
        test="results/sft/test.json",
        budget="results/sft/token_budget.json",
    output:
        report(
            "results/serve/lmdeploy.json",
            caption="../report/lmdeploy.rst",
            category="Delivery",
            labels={"what": "LMDeploy"},
        ),
    log:
        "logs/bench_lmdeploy.log",
    threads: 2
    resources:
        gpu=1 if config["deliver"]["lmdeploy"] else 0,
        mem_mb=memory_of_model(2500, "merged"),
    params:
        config=canonical("deliver.lmdeploy", "serve", "predict.dtype"),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.lib.devices --gpus {resources.gpu:q} -- \
            uv run --frozen --no-sync --project "$(dirname {input.lock:q})" python -m scripts.bench_lmdeploy \
            --merged {input.merged:q} --test {input.test:q} --budget {input.budget:q} \
            --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """


rule check_serving:
    # 20 test questions to whatever is served, against results/predictions/tuned.jsonl. Asked for by name, then always run.
    input:
        code=code("check_serving"),
        lock="uv.lock",
        test="results/sft/test.json",
        predictions="results/predictions/tuned.jsonl",
        imported=lambda wildcards: imported_for(wildcards.server),
    output:
        report(
            "results/serve/check_{server}.json",
            caption="../report/served.rst",
            category="Delivery",
            labels={"what": "served answers, {server}"},
        ),
    log:
        "logs/check_serving/{server}.log",
    params:
        config=canonical("serve", "predict"),
        imported=lambda wildcards, input: (
            ["--imported", input.imported[0]] if input.imported else []
        ),
    shell:
        """
        uv run --frozen --no-sync python -m scripts.check_serving \
            --server {wildcards.server:q} --test {input.test:q} --predictions {input.predictions:q} {params.imported:q} \
            --config {params.config:q} --output {output:q} >{log:q} 2>&1
        """
