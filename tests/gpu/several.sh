#!/usr/bin/env bash
# Training and prediction on two GPUs of one host without a package index:
#     bash tests/gpu/several.sh WHEELS WORK [options of tests.gpu.several: --count 4, or --device cpu --small]
# WHEELS is made by tests.gpu.pack_wheels, or is - for the packages of this Python. PARTS="fsdp predict" names some parts
# only. Each part has ten minutes; the same command goes on where it stopped. One JSON line a part in $OUT or WORK.
set -uo pipefail
wheels=$1 work=$(realpath -m "$2")
shift 2
[ "$wheels" = - ] || wheels=$(realpath "$wheels")
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python3}
# NVLink multicast stays off: on a host whose GPUs others use too, a program that ends badly with it can put all of them
# out of service. Kept for every child, torchrun's ranks included
export NCCL_NVLS_ENABLE=0
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1
if [ "$wheels" != - ]; then
    export DISABLE_VERSION_CHECK=1 # what the wheel folders leave out is the host's own
    PYTHONPATH=$PWD "$python" -c 'import sys; from pathlib import Path; from bench.rehearse import install
install(Path(sys.argv[1]), Path(sys.argv[2]), sys.executable)' "$wheels" "$work" || exit 2
    export PYTHONPATH=$PWD:$work/site/train EQA_ZERO2_SITE=$work/site/zero2
fi
export PYTHONPATH=${PYTHONPATH:-$PWD}
code=0
for part in ${PARTS:-model bench ddp fsdp zero2 predict devices}; do
    timeout --kill-after=20 590 "$python" -m tests.gpu.several "$part" --work "$work" "$@" || code=1
done
exit "$code"
