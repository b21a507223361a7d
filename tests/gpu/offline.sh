#!/usr/bin/env bash
# The rehearsal, then the GPU tests on what it made, on a GPU host without a package index:
#     bash tests/gpu/offline.sh WHEELS WORK [options of bench.rehearse]
# PARTS="rehearse serve train bench" before it picks some of them: rehearse; serve, the tests of LMDeploy and of all engines
# on what rehearse made; train, the tests of training; bench, the usual settings and recipes of ours in one run. Without it
# all but bench. What rehearse has done it does not do again.
# WHEELS is made by tests.gpu.pack_wheels; the host's own python3 has torch, pytest and pytest-timeout. JSON lines and
# reports go to $OUT, or to WORK where OUT is not set.
set -euo pipefail
wheels=$(realpath "$1") work=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/../.."
parts=" ${PARTS:-rehearse serve train} " code=0
out=${OUT:-$work}
mkdir -p "$work" "$out"
PYTHONPATH=$PWD python3 -c 'import sys; from pathlib import Path; from bench.rehearse import install
install(Path(sys.argv[1]), Path(sys.argv[2]), sys.executable)' "$wheels" "$work"
export HF_HUB_OFFLINE=1

# tests NAME SITES FILE...: pytest with those sites; a test that is skipped here should have run
tests() {
    local log=$out/tests-$1.log path=$2
    shift 2
    PYTHONPATH=$PWD:$path python3 -m pytest -q -s -rs --durations=0 "$@" 2>&1 | tee "$log" || code=1
    if grep -q "^SKIPPED" "$log"; then
        echo "offline.sh: skipped although this host has a GPU and WHEELS: see above" >&2
        code=1
    fi
}

if [[ $parts == *" rehearse "* ]]; then
    python3 -m bench.rehearse --wheels "$wheels" --work-dir "$work" --output "$out/rehearsal.json" "$@" || code=$?
fi
if [[ $parts == *" serve "* ]]; then
    # where LMDeploy is; these start LLaMA-Factory's side in its own folder
    EQA_REHEARSAL=$work EQA_REHEARSAL_WHEELS=$wheels EQA_GPU_MODEL=$work/results/merged \
        tests serve "$work/site/serve" tests/gpu/test_engines_agree.py tests/gpu/test_lmdeploy.py
fi
# what the wheel folders leave out is the host's own, which LLaMA-Factory's check of versions may not know
if [[ $parts == *" train "* ]]; then
    DISABLE_VERSION_CHECK=1 OMP_NUM_THREADS=1 tests train "$work/site/train:$work/site/zero2" tests/gpu/test_training.py
fi
if [[ $parts == *" bench "* ]]; then
    PYTHONPATH=$PWD:$work/site/train DISABLE_VERSION_CHECK=1 OMP_NUM_THREADS=1 \
        python3 -m bench.train_throughput --model "$work/models/base" --preset openeqa-80gb \
        --also "openeqa-80gb train.gradient_checkpointing=true gpu_gib=24" --also "openeqa-t4 gpu_gib=14.6" |
        tee "$out/train_throughput.txt" || code=1
fi
exit "$code"
