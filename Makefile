# `make` lists the verbs. Nothing here needs root: all tools go into .tools, .venv and envs/*/.venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-test check-machine use demo run test lint report dag tensorboard zero2 serve compare lineage pin-model audit test-slurm fuzz test-gpu test-faults bench rehearse

PYTHON ?= python3
UV_VERSION := 0.13.9
CORES ?= 8
# without bytecode every import is several times slower
unexport PYTHONDONTWRITEBYTECODE
export UV_PYTHON_DOWNLOADS := never
# a user's own virtual environment is none of ours
unexport VIRTUAL_ENV

ROOT := $(CURDIR)
ifneq ($(words $(ROOT)),1)
$(error $(ROOT): make splits its targets at the spaces of this path; move the project to a folder without any)
endif
UV := $(ROOT)/.tools/bin/uv
RUN := source .venv/bin/activate &&
LOCKS := uv.lock envs/train/uv.lock envs/gguf/uv.lock

help: ## list the verbs
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-16s %s\n", $$1, $$2}'

check-machine:
	@bash scripts/check_machine.sh "$(PYTHON)"

$(UV):
	@bash scripts/check_machine.sh "$(PYTHON)"
	@echo "setup: uv $(UV_VERSION) into .tools"
	@if "$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null; then \
	    "$(PYTHON)" -m venv .tools && .tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	else \
	    "$(PYTHON)" -m pip install --quiet --disable-pip-version-check --target .tools/site uv==$(UV_VERSION) && \
	    mkdir -p .tools/bin && ln -sf ../site/bin/uv .tools/bin/uv; \
	fi

# environments that a container lent (containers/enter.sh) lead nowhere outside of it: made anew
LENT := find .venv envs/*/.venv -maxdepth 0 -xtype l
ifneq ($(shell $(LENT) 2> /dev/null),)
.PHONY: .tools/ready
endif

# one stamp for all: the locks decide
.tools/ready: $(UV) $(LOCKS) pyproject.toml
	@echo "setup: locked environments (first time: about 3.5 GB to download, 8 GB on disk)"
	@$(LENT) -delete 2> /dev/null || true
	@$(UV) sync --frozen --quiet --inexact --python "$(PYTHON)"
	@UV_PYTHON="$(PYTHON)" PATH="$(ROOT)/.tools/bin:$$PATH" .venv/bin/python -m scripts.prepare_environments \
	    --environment . --environment envs/train --environment envs/gguf > /dev/null
	@# the first import of a fresh environment compiles it: do that here, on all cores, not inside the first jobs
	@.venv/bin/python -m compileall -q -j 0 .venv/lib scripts > /dev/null 2>&1 || true
	@for env in train gguf; do envs/$$env/.venv/bin/python -m compileall -q -j 0 envs/$$env/.venv/lib > /dev/null 2>&1 || true; done
	@touch $@

setup: .tools/ready ## local uv and the locked environments

.tools/ready-test: .tools/ready
	@$(UV) sync --frozen --quiet --inexact --group dev --python "$(PYTHON)"
	@touch $@

setup-test: .tools/ready-test

use: .tools/ready ## make use PRESET=demo|hm3d-clip|openeqa-t4|openeqa-80gb: copy a preset over config/config.yaml
	@.venv/bin/python -m scripts.use_preset --preset "$(PRESET)"

demo: .tools/ready ## set up and run the shipped demo
	@.venv/bin/python -m scripts.use_preset --expect demo
	@$(RUN) snakemake --cores $(CORES)
	@[ -t 2 ] || .venv/bin/python -m scripts.summary  # at a terminal snakemake itself ends with it

run: .tools/ready ## run the recipe in config/config.yaml
	@$(RUN) snakemake --cores $(CORES)
	@[ -t 2 ] || .venv/bin/python -m scripts.summary  # at a terminal snakemake itself ends with it

lint: setup-test ## formatting and lint checks
	@$(RUN) ruff check . && ruff format --check . && snakefmt --check Snakefile rules
	@$(RUN) python -m tests.snakemake_lint

test: setup-test ## lint, unit, script, contract, model and end-to-end tests (no GPU)
	@$(MAKE) --no-print-directory lint
	@$(RUN) python -m pytest -q
	@$(UV) run --frozen --project envs/train --group dev python -m pytest -q tests/train

report: .tools/ready ## build the report and say where it is
	@$(RUN) snakemake --cores $(CORES) results/report/index.html && echo "file://$(ROOT)/results/report/index.html"

dag: .tools/ready ## draw the rule graph to docs/rulegraph.svg
	@$(RUN) python -m scripts.draw_rulegraph --output docs/rulegraph.svg

zero2: .tools/ready ## install DeepSpeed for train.distributed=zero2 (no compiler needed for training on GPUs)
	@DS_BUILD_OPS=0 $(UV) pip install --python envs/train/.venv/bin/python --no-build-isolation --no-deps --require-hashes --requirements envs/train/zero2.txt

tensorboard: .tools/ready ## look at the training curves
	@envs/train/.venv/bin/tensorboard --logdir_spec finished:results/train_log/tensorboard,running:work/train --host 127.0.0.1

serve: .tools/ready ## make serve [SERVER=lmdeploy|llamacpp]: serve the merged model on 127.0.0.1
	@.venv/bin/python -m scripts.serve --server "$(or $(SERVER),lmdeploy)"

compare: .tools/ready ## make compare A=rev B=rev: the report for two git revisions
	@.venv/bin/python -m scripts.compare_revisions --a "$(A)" --b "$(B)" --output work/compare.html

lineage: .tools/ready ## where each artifact came from, as W3C PROV JSON
	@.venv/bin/python -m scripts.lineage --output results/lineage.json

pin-model: .tools/ready ## pin the base model's revision and sha256 in config/models.lock.json
	@.venv/bin/python -m scripts.pin_model

audit: setup-test ## known vulnerabilities of every locked package
	@$(RUN) python -m scripts.audit

test-slurm: setup-test ## the demo through a real one-node Slurm (needs Debian's slurm-wlm and munge)
	@$(RUN) python -m pytest -q tests/slurm

fuzz: setup-test ## make fuzz [SECONDS=60]: look for inputs that break a parser, each so long
	@$(RUN) python -m tests.fuzz.fuzz --seconds "$(or $(SECONDS),60)"

# an environment of its own: Snakemake imports every plugin at each start, and Kubernetes' client takes a second
.tools/ready-kubernetes: .tools/ready-test
	@UV_PROJECT_ENVIRONMENT=work/kubernetes/.venv $(UV) sync --frozen --quiet --group test-kubernetes --python "$(PYTHON)"
	@touch $@

test-kubernetes: .tools/ready-kubernetes ## profiles/kubernetes on a stand-in for a cluster
	@$(RUN) work/kubernetes/.venv/bin/python -m pytest -q tests/kubernetes

test-gpu: .tools/ready ## real 2B shape on a CUDA device
	@$(RUN) python -m pytest -q tests/gpu
	@$(UV) run --frozen --project envs/train --group dev python -m pytest -q -rs tests/gpu/test_training.py

test-faults: setup-test ## every rule under every fault, an hour [RULE=x] [FAULT=y] [SIXTH=day|0..5] [WORKERS=n]
	@$(RUN) python -m tests.faults.matrix --rule "$(RULE)" --fault "$(FAULT)" --sixth "$(SIXTH)" --workers "$(or $(WORKERS),$(if $(SIXTH),2,1))" \
	    $(if $(RULE)$(FAULT)$(SIXTH),,--document docs/reliability.md)

# in the environment that has torch
TRAIN_BENCHES := predict_throughput train_throughput
BENCHES := frames_sens frames_video scale tokenize score_throughput startup report_paint pipeline_overhead $(TRAIN_BENCHES)

bench: setup-test ## make bench [BENCHES="frames_sens startup"]: every bench that needs no GPU; more than an hour
	@$(RUN) failed=; for bench in $(BENCHES); do \
	    echo "bench.$$bench"; \
	    case " $(TRAIN_BENCHES) " in \
	        *" $$bench "*) $(UV) run --frozen --project envs/train python -m bench.$$bench ;; \
	        *) python -m bench.$$bench ;; \
	    esac || failed="$$failed $$bench"; \
	done; \
	echo "bench: not among them: conversation_modes (hours), lmdeploy and rehearse (a CUDA GPU)"; \
	[ -z "$$failed" ] || { echo "bench: failed:$$failed; what each said stands above" >&2; exit 1; }

rehearse: .tools/ready ## the openeqa-80gb recipe with random weights, timed [ARGS="--train-steps 12"] (docs/rehearsal.md)
	@$(RUN) python -m bench.rehearse $(ARGS)
