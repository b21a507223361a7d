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
export EQA_REHEARSAL=$work EQA_REHEARSAL_WHEELS=$wheels EQA_GPU_MODEL=$work/results/merged HF_HUB_OFFLINE=1

# tests SITES FILE...: pytest with those sites; a test that is skipped here should have run
tests() {
    local path=$1 log
    shift
    log=$(mktemp)
    PYTHONPATH=$PWD:$path python3 -m pytest -q -s -rs "$@" 2>&1 | tee "$log" || code=1
    if grep -q "^SKIPPED" "$log"; then
        echo "offline.sh: skipped although this host has a GPU and WHEELS: see above" >&2
        code=1
    fi
    rm -f "$log"
}

# where LMDeploy is; these start LLaMA-Factory's side in its own folder
tests "$work/site/serve" tests/gpu/test_engines_agree.py tests/gpu/test_lmdeploy.py
train=$work/site/train
if [ -d "$wheels/zero2" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/site/zero2" "$wheels"/zero2/*.whl
    train=$train:$work/site/zero2
fi
DISABLE_VERSION_CHECK=1 OMP_NUM_THREADS=1 tests "$train" tests/gpu/test_training.py
if [ -n "${BENCH:-}" ]; then
    PYTHONPATH=$PWD:$work/site/train DISABLE_VERSION_CHECK=1 OMP_NUM_THREADS=1 \
        python3 -m bench.train_throughput --model "$work/models/base" --preset openeqa-80gb \
        --also "openeqa-80gb train.gradient_checkpointing=true gpu_gib=24" --also "openeqa-t4 gpu_gib=14.6" || code=1
fi
exit "$code"
