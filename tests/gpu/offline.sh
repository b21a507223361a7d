#!/usr/bin/env bash
# The rehearsal, then the GPU tests on what it made, on a GPU host without a package index:
#     bash tests/gpu/offline.sh WHEELS WORK [options of bench.rehearse]
# BENCH=1 before it adds the training bench: the usual settings and recipes of ours in one run.
# WHEELS is made by tests.gpu.pack_wheels; the host's own python3 has torch, pytest and pytest-timeout.
set -euo pipefail
wheels=$(realpath "$1") work=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/../.."
code=0
python3 -m bench.rehearse --wheels "$wheels" --work-dir "$work" "$@" || code=$?
# the tests run where LMDeploy is; they start LLaMA-Factory's side in its own folder
export EQA_REHEARSAL=$work EQA_REHEARSAL_WHEELS=$wheels EQA_GPU_MODEL=$work/results/merged
export PYTHONPATH=$PWD:$work/site/serve HF_HUB_OFFLINE=1
python3 -m pytest -q -s -rs tests/gpu || code=1
if [ -n "${BENCH:-}" ]; then
    PYTHONPATH=$PWD:$work/site/train DISABLE_VERSION_CHECK=1 OMP_NUM_THREADS=1 \
        python3 -m bench.train_throughput --model "$work/models/base" --preset openeqa-80gb \
        --also "openeqa-80gb train.gradient_checkpointing=true gpu_gib=24" --also "openeqa-t4 gpu_gib=14.6" || code=1
fi
exit "$code"
