#!/usr/bin/env bash
# Everything worth knowing from a short visit to a GPU, most valuable first, done within 8:30 minutes.
#
#   bench/gpu_check.sh OUT          on a GPU
#   bench/gpu_check.sh --cpu OUT    every step at tiny sizes in Triton's interpreter: a rehearsal, its figures mean nothing
#
# Writes at most 8 files into OUT as results come: device.txt, summary.txt, a log a step, conv.csv, network.csv.
# A step that fails or hangs does not stop the next. The exit status is the sum of the steps that failed:
# 1 GPU tests, 2 layers at batch 64, 4 layers at batch 1, 8 network; 64 for a wrong call.
set -uo pipefail

mode=gpu
if [[ "${1:-}" == --cpu ]]; then
    mode=cpu
    shift
fi
if [[ $# -ne 1 || "$1" == -* ]]; then
    echo "usage: $0 [--cpu] OUT" >&2
    exit 64
fi
mkdir -p "$1" || exit 64
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 64

python=${PYTHON:-python3}
total=500 # seconds for all steps
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
parallel=() small=() n64=('*-n64') n1=('*-n1')
if [[ $mode == cpu ]]; then
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1
    small=(--tiny --device cpu --rounds 5) n64=('*-stage[14]-n64') n1=('*-stage4-n1' 'wide-*')
else
    unset TRITON_INTERPRET
    "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8) # the tests mostly wait for compilers
fi

{
    echo "mode: $mode"
    date -u
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv 2>&1 || true
    timeout 60 "$python" -c 'import torch
from lk_triton.bench import report
print(report.facts(torch.device("cuda" if torch.cuda.is_available() else "cpu")))' 2>&1
} >"$out/device.txt"
cat "$out/device.txt"
: >"$out/summary.txt"

failed=0
# step BIT NAME CAP COMMAND...: run it for at most CAP seconds, or what is left; its output goes to NAME.log.
step() {
    local bit=$1 name=$2 limit=$3 left=$((total - SECONDS)) start=$SECONDS status=0
    shift 3
    ((limit > left)) && limit=$left
    if ((limit < 5)); then
        status=124
    else
        timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    fi
    case $status in
    0) verdict=ok ;;
    124 | 137) verdict="out of time" ;;
    *) verdict="failed, status $status" ;;
    esac
    ((status == 0)) || failed=$((failed + bit))
    echo "$name: $verdict after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    [[ -f "$out/$name.log" ]] && tail -n "${LINES_SHOWN:-40}" "$out/$name.log"
}

step 1 tests 150 "$python" -m pytest -q -p no:cacheprovider -m gpu "${parallel[@]}"
step 2 conv_n64 150 "$python" -m lk_triton.bench.conv --out "$out/conv.csv" --cases "${n64[@]}" "${small[@]}"
step 4 conv_n1 95 "$python" -m lk_triton.bench.conv --out "$out/conv.csv" --cases "${n1[@]}" "${small[@]}"
step 8 network 100 "$python" -m lk_triton.bench.network --out "$out/network.csv" "${small[@]}"

echo "total: $SECONDS s, exit status $failed" | tee -a "$out/summary.txt"
exit "$failed"
