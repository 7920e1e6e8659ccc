#!/usr/bin/env bash
# Everything worth knowing from a short visit to a GPU, most valuable first, done within 8:30 minutes.
#
#   bench/gpu_check.sh OUT          on a GPU
#   bench/gpu_check.sh --cpu OUT    every step at tiny sizes in Triton's interpreter: a rehearsal, its figures mean nothing
#
# Writes at most 8 files into OUT as results come: device.txt, summary.txt, tests.log, bench.log (all other steps),
# conv.csv, network.csv, and tuned.json: what tuning saved, which the steps after it use.
# A step that fails or hangs does not stop the next. The exit status is the sum of the steps that failed:
# 1 GPU tests, 2 layers at batch 64, 4 layers at batch 1, 8 tuning, 16 network (either step), 32 grid (either step); 64 for a
# wrong call.
# The grid and what torch.compile works on take the time that is left, so running out of it there is no failure.
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
parallel=() small=() dry=()
# of the network: what needs no torch.compile; then lk_triton, and with it timm's networks, which take a minute each
eager=(published merged merged_channels_last lk_triton lk_triton_graph lk_triton_graph_pdl)
late=(lk_triton_graph lk_triton_compile)
n64=('31b-224-*-n64') n1=('31b-224-*-n1' 'wide-stage1-*')
# with torch.compile, which takes seconds a case; then everything without it, those that had it last
compiled=('table1-*-k31-*' 'table1-*-k7-*' 'convnext-*' 'table1-*-k13-*' 'table1-*-k3-*')
grid=('31b-224-*' 'table1-*-k[59]-*' 'table1-*-k17-*' 'table1-*-k2[179]-*' 'slak-*' '31b-384-*' 'wide-*' 'table1-*' 'convnext-*')
few=(torch torch_channels_last lk_triton_auto)
export LK_TRITON_CACHE_DIR
LK_TRITON_CACHE_DIR=$(mktemp -d) || exit 64
trap 'rm -rf "$LK_TRITON_CACHE_DIR"' EXIT
if [[ $mode == cpu ]]; then
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1
    small=(--tiny --device cpu --rounds 5) dry=(--dry-run)
    n64=('31b-224-stage[14]-n64') n1=('31b-224-stage4-n1' 'wide-stage1-*')
    compiled=('table1-r16-k7-*') grid=('table1-r16-k3-*' 'slak-51x5-*')
    eager=(published lk_triton) late=(folded_compile)
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
# step BIT NAME CAP LOG COMMAND...: run it for at most CAP seconds, or what is left; its output is appended to LOG.
step() {
    local bit=$1 name=$2 limit=$3 log=$out/$4 left=$((total - SECONDS)) start=$SECONDS status=0
    shift 4
    ((limit > left)) && limit=$left
    echo "== $name" >>"$log"
    if ((limit < 5)); then
        status=124
    else
        timeout -k 5 "$limit" "$@" >>"$log" 2>&1 || status=$?
    fi
    case $status in
    0) verdict=ok ;;
    124 | 137) verdict="out of time" ;;
    *) verdict="failed, status $status" ;;
    esac
    ((status == 0)) || [[ $name == @(grid*|*_compiled) && $verdict == "out of time" ]] || failed=$((failed | bit))
    echo "$name: $verdict after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    sed -n "/^== $name\$/,\$p" "$log" | tail -n "${LINES_SHOWN:-40}"
}

conv=("$python" -m lk_triton.bench.conv --out "$out/conv.csv" "${small[@]}")
network=("$python" -m lk_triton.bench.network --out "$out/network.csv" "${small[@]}")
step 1 tests 110 tests.log "$python" -m pytest -q -p no:cacheprovider -m gpu "${parallel[@]}"
step 8 tune 140 bench.log "$python" -m lk_triton.cli tune --model replknet_31b --batch 64 1 --size 224 --dtype fp16 --json "${dry[@]}"
find "$LK_TRITON_CACHE_DIR" -name '*.json' -exec cp {} "$out/tuned.json" \; -quit
step 16 network 70 bench.log "${network[@]}" --forms "${eager[@]}" --peers
step 2 layers_n64 50 bench.log "${conv[@]}" --cases "${n64[@]}"
step 4 layers_n1 30 bench.log "${conv[@]}" --cases "${n1[@]}"
step 16 network_compiled 60 bench.log "${network[@]}" --batch 64 --forms "${late[@]}" --peers 'timm*compile/*'
step 32 grid_compiled 20 bench.log "${conv[@]}" --cases "${compiled[@]}" --providers "${few[@]}" torch_compile --rounds 7
step 32 grid "$total" bench.log "${conv[@]}" --cases "${grid[@]}" --providers "${few[@]}" --rounds 7

echo "total: $SECONDS s, exit status $failed" | tee -a "$out/summary.txt"
exit "$failed"
