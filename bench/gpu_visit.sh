#!/usr/bin/env bash
# What to ask of a GPU in three commands of at most ten minutes each, the most valuable first.
#
#   bench/gpu_visit.sh --part A|B|C --state DIR [OUT]   on a GPU; OUT: DIR/out-A, ...
#   bench/gpu_visit.sh --rehearse [OUT]                 all parts without one, and what bench adopt makes of them
#
# A: right, and the headline (540 s). B: peers and layers (540 s). C: the rest (480 s). A step that fails or hangs does not
# stop the next. A part that is called again goes on where it stopped: DIR keeps which steps are done, which tests have passed,
# what was tuned, and Triton's compiled kernels (which bench/prewarm.py may have made before).
#
# OUT gets at most 8 files of at most 16 MiB, as results come: device.txt, summary.txt, tests.log, bench.log (all other steps),
# network.csv, conv.csv, tune.jsonl, and tuned.json, the plans. The exit status is the sum of what failed: 1 facts of the
# machine, 2 tests, 4 repeated calls or the checks of first calls, 8 networks, 16 tuning, 32 layers, 128 other programs; 64 is
# a wrong call.
#
# LK_TRITON_COMMIT names the commit in results, also where .git is of another tree; LK_TRITON_WITHOUT=a,b leaves algorithms out.
#
# A rehearsal runs each part twice, which `--as` does with one part: as "values", at tiny sizes in Triton's interpreter, with
# the gates on; as "launches", at full sizes on the stub driver (bench/stub), where nothing is computed. `--as compile` is
# "launches" of everything that a part would run, without a clock.
set -uo pipefail

usage() {
    echo "usage: $0 --part A|B|C --state DIR [--as gpu|values|launches|compile] [OUT] | --rehearse [OUT]" >&2
    exit 64
}

part='' state='' as=gpu out='' rehearse=
while (($#)); do
    case $1 in
    --part | --state | --as)
        (($# > 1)) || usage
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --rehearse) rehearse=1 && shift ;;
    -*) usage ;;
    *)
        [[ -z $out ]] || usage
        out=$1 && shift
        ;;
    esac
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

if [[ -n $rehearse ]]; then
    [[ -z $part$state && $as == gpu ]] || usage
    out=${out:-$(mktemp -d)}
    failed=0
    for as in values launches; do
        for part in A B C; do
            bash "$here/$(basename "$0")" --part $part --as $as --state "$out/$as-state" "$out/$as-$part" ||
                failed=$((failed | $?))
        done
    done
    # what a reader would see of it, every figure marked
    export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}
    "$python" -m lk_triton.bench.adopt --scratch "$out/pages" "$out"/{values,launches}-[ABC] >"$out/adopt.log" 2>&1 ||
        failed=$((failed | 128))
    tail -n 5 "$out/adopt.log"
    echo "rehearsal: exit status $failed; pages in $out/pages"
    exit "$failed"
fi

[[ $part == [ABC] && -n $state && $as =~ ^(gpu|values|launches|compile)$ ]] || usage
mkdir -p "$state" || exit 64
state=$(cd "$state" && pwd)
out=${out:-$state/out-$part}
mkdir -p "$out" || exit 64
out=$(cd "$out" && pwd)
cd "$here/.." || exit 64

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export LK_TRITON_CACHE_DIR=$state/tuned
[[ $as == gpu || $as == compile ]] && export TRITON_CACHE_DIR=$state/triton
export LK_TRITON_COMMIT=${LK_TRITON_COMMIT:-$("$python" -c 'from lk_triton.bench.report import commit; print(commit())')}
mkdir -p "$LK_TRITON_CACHE_DIR"
declare -A budgets=([A]=540 [B]=540 [C]=480)
total=${budgets[$part]}

# How each mode runs Python, and what is smaller in it: sizes, the forms that only a GPU has, cases, and the time.
run=("$python" -m) first=() eager=(lk_triton) tiny=() on=() top=() few=() scale=1
graphs=(lk_triton_graph lk_triton_graph_pdl)
headline=(published lk_triton_graph lk_triton_graph_estimated lk_triton_graph_pdl)
case $as in
gpu) unset TRITON_INTERPRET ;;
values)
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 LK_TRITON_REHEARSAL=1
    tiny=(--tiny --device cpu) on=(--device cpu)
    graphs=(published) headline=(published) first=(lk_triton) eager=() scale=20
    ;;
launches | compile)
    unset TRITON_INTERPRET
    export OMP_NUM_THREADS=1 LK_TRITON_REHEARSAL=1 LK_TRITON_VERIFY=0
    run+=(lk_triton.bench.stub)
    scale=20
    [[ $as == launches ]] && top=(--top 1) few=(-k toeplitz_hopper-0)
    ;;
esac
((total *= scale)) # by a clock that is no part of a rehearsal

{
    echo "part $part as $as, commit $LK_TRITON_COMMIT${LK_TRITON_WITHOUT:+, without $LK_TRITON_WITHOUT}"
    date -u
} | tee -a "$out/device.txt"
failed=0 answers=

# step BIT NAME CAP LOG COMMAND...: unless it is done already, run it for at most CAP seconds, or what is left. Its output is
# appended to LOG, its standard output to $answers where that is set. @SECONDS@ in COMMAND is what it has. A program that lost
# the GPU (exit status 75) is started again.
step() {
    local bit=$1 name=$2 cap=$(($3 * scale)) log=$out/$4 start=$SECONDS status=124 limit tries=0
    shift 4
    if grep -qxF "$part $name" "$state/done.txt" 2>/dev/null; then
        echo "$name: done before" | tee -a "$out/summary.txt"
        return
    fi
    echo "== $name: $*" >>"$log"
    while :; do
        limit=$((cap - SECONDS + start))
        ((limit > total - SECONDS)) && limit=$((total - SECONDS))
        ((limit >= 5)) || break
        status=0
        timeout -k 5 "$limit" "${@//@SECONDS@/$((limit > 20 ? limit - 10 : limit))}" 2>>"$log" >>"${answers:-$log}" ||
            status=$?
        ((status == 75 && ++tries < 5)) || break
        echo "$name: lost the GPU, goes on" | tee -a "$out/summary.txt"
    done
    local verdict="failed, status $status"
    case $status in
    0) # tuning ends by the clock, and may have more to do
        verdict=ok
        [[ $name == tune_* ]] || echo "$part $name" >>"$state/done.txt"
        ;;
    124 | 137) verdict="out of time" ;;
    esac
    ((status == 0)) || failed=$((failed | bit))
    echo "$name: $verdict after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    sed -n "/^== $name: /,\$p" "$log" | tail -n "${LINES_SHOWN:-20}"
}

# network NAME CAP ARGUMENTS..., and so on: the kinds of steps.
network() {
    step 8 "$1" "$2" bench.log "${run[@]}" lk_triton.bench.network --out "$out/network.csv" "${tiny[@]}" --rounds 5 "${@:3}"
}
layers() {
    step 32 "$1" "$2" bench.log "${run[@]}" lk_triton.bench.conv --out "$out/conv.csv" "${tiny[@]}" --rounds 7 "${@:3}"
}
repeated() { step 4 "$1" "$2" bench.log "${wrapped[@]}" "${run[@]}" lk_triton.bench.repeat "${tiny[@]}" "${@:3}"; }
program() { step 128 "$1" "$2" bench.log "${run[@]}" "${@:3}"; }
tests() {
    local options=(-p no:cacheprovider -m gpu -v --tb=short)
    ((${#wrapped[@]})) || options+=(-p lk_triton.bench.passed --passed "$state/passed.txt")
    if [[ $as == gpu ]] && ((!${#wrapped[@]})); then # most of them wait for compilers
        "$python" -c 'import xdist' 2>/dev/null && options+=(-n 14)
        "$python" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout 60)
    fi
    local name=$1 cap=$2
    shift 2
    # the others look at values
    [[ $as == launches || $as == compile ]] && [[ ${1:-} != *::* ]] && set -- tests/algorithms/test_on_gpu.py
    step 2 "$name" "$cap" tests.log "${wrapped[@]}" "${run[@]}" pytest "${options[@]}" "${few[@]}" "$@"
}
tune() {
    if [[ $as == values ]]; then # which measures nothing in the interpreter
        program "$1" "$2" lk_triton.cli tune --model replknet_31b --batch "$3" --dry-run --json --arch sm_90 --top 1
        return
    fi
    local seconds=@SECONDS@
    [[ $as == launches ]] && seconds=5
    answers=$out/tune.jsonl step 16 "$1" "$2" bench.log "${run[@]}" lk_triton.cli tune --model replknet_31b --batch "$3" \
        --missing --seconds "$seconds" --json "${top[@]}"
    "$python" - "$LK_TRITON_CACHE_DIR" "$out/tuned.json" <<'PYTHON'
import json, os, pathlib, sys
for file in pathlib.Path(sys.argv[1]).glob("*.json"):
    marked = {"rehearsal": True} if os.environ.get("LK_TRITON_REHEARSAL") == "1" else {}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(json.loads(file.read_text()) | marked, indent=1))
PYTHON
}
wrapped=()

part_a() {
    local one=("${headline[@]}" "${eager[@]}")
    [[ $as == launches ]] && one=(lk_triton_graph) graphs=(lk_triton_graph) # a call that is waited for costs seconds there
    answers=$out/device.txt step 1 machine 15 bench.log "${run[@]}" lk_triton.bench.machine "${tiny[@]}"
    tests tests 90 tests/algorithms/test_on_gpu.py tests/algorithms/test_dependent.py tests/test_graph.py \
        tests/models/test_replknet_forms.py tests/bench/test_network.py
    if [[ $as == values ]]; then # where the Hopper form cannot run
        repeated repeated 15 --algorithm toeplitz --calls 3 --cases '31b-224-stage4-n64'
    elif [[ $as == gpu ]]; then
        repeated repeated 15
    else
        repeated repeated 15 --calls 2
    fi
    network network_n64 90 --missing --batch 64 --forms "${headline[@]}" "${first[@]}" --peers
    network network_n1 60 --missing --batch 1 --forms "${one[@]}" --peers
    tune tune_n64 140 64
    tune tune_n1 60 1
    network tuned 60 --batch 64 1 --forms "${graphs[@]}" --peers
}

part_b() {
    local own=("${graphs[0]}" lk_triton_compile)
    local layers=('31b-224-*-n64' '31b-224-*-n1' 'convnext-*' 'table1-r32-k7-*' 'wide-stage1-*')
    local compiled=('31b-224-*-n64' 'convnext-*')
    local providers=(torch torch_channels_last 'torch_native*' 'torch_cudnn*' 'lk_triton_*')
    local peers=('timm_compile/*' 'timm_channels_last_compile/*')
    [[ $as == values ]] && layers=('31b-224-stage4-n64' 'convnext-stage4-*') compiled=('convnext-stage4-*')
    [[ $as == launches ]] && peers=('timm_channels_last_compile/*')
    [[ $as == launches ]] && layers=('31b-224-stage4-*' 'convnext-stage4-*') compiled=('convnext-stage4-*')
    [[ $as == values || $as == launches ]] && own=("${own[@]:0:1}")
    network peers_n64 220 --missing --batch 64 --forms "${own[@]}" --peers "${peers[@]}"
    network peers_n1 110 --missing --batch 1 --forms "${own[@]}" --peers "${peers[@]}"
    layers layers 100 --cases "${layers[@]}" --providers "${providers[@]}"
    layers layers_compiled 80 --cases "${compiled[@]}" --providers torch torch_compile lk_triton_auto
}

part_c() {
    local grid=('table1-*') models=(replknet_31l replknet_xl) sizes=(--size 384) small=() some=(64 1)
    [[ $as == values ]] && grid=('table1-r16-k[37]-*') models=(replknet_31b) small=(--size 64)
    [[ $as == launches ]] && grid=('table1-r32-k31-*') models=(replknet_xl) some=(64)
    [[ $as == values ]] && sizes=()
    tests tests_rest 120
    local both=(--batch "${some[@]}" --forms published "${graphs[0]}" --peers)
    network larger 60 --missing --model replknet_31b "${sizes[@]}" "${both[@]}"
    network larger_models 90 --missing --model "${models[@]}" "${both[@]}"
    if [[ $as == values || $as == gpu ]]; then # they print what was computed
        unset TRITON_INTERPRET
        program run 30 lk_triton.cli run --sample --json "${on[@]}" "${small[@]}"
        program study 30 lk_triton.cli study kernel-size "${on[@]}" "${small[@]}" --out "$state/kernel-size" --json \
            $([[ $as == values ]] && echo --no-measure)
        [[ $as == values ]] && export TRITON_INTERPRET=1
    fi
    layers grid 60 --cases "${grid[@]}" --providers torch torch_channels_last lk_triton_auto
    if [[ $as != gpu ]] || command -v compute-sanitizer >/dev/null; then
        few=()
        # without the check of first calls, and without torch's own pool, which hides what lies beyond a tensor
        [[ $as == gpu ]] && wrapped=(env LK_TRITON_VERIFY=0 PYTORCH_NO_CUDA_MEMORY_CACHING=1
            compute-sanitizer --target-processes all --error-exitcode 1)
        tests sanitizer 40 "tests/algorithms/test_on_gpu.py::test_random_problems_and_configs[convstem-0]" \
            "tests/algorithms/test_on_gpu.py::test_random_problems_and_configs[toeplitz_hopper-0]" \
            "tests/algorithms/test_on_gpu.py::test_random_problems_and_configs[convffn-0]"
    fi
    if [[ $as != gpu ]] || command -v ncu >/dev/null; then
        [[ $as == gpu ]] && wrapped=(env LK_TRITON_VERIFY=0 ncu --clock-control none --set basic --kernel-name-base function
            --kernel-name 'regex:(toeplitz|resident|direct|pointwise)_kernel' --launch-count 6)
        repeated profiled 40 --algorithm auto --calls 2 --cases '31b-224-stage[34]-n1' --pointwise
    fi
}

if [[ $as == gpu ]]; then # a bare machine reads torch from its disk for the first time: no step's time
    timeout 40 "$python" -c 'import torch, triton; torch.ones(8, device="cuda").sum().item()' >>"$out/bench.log" 2>&1
    SECONDS=0
fi
"part_${part,}"

# a network's figure is then that of the algorithm which served instead
wrong=$([[ -f $out/bench.log ]] && grep -E '\(version .* computes .* wrong on ' "$out/bench.log" | sort -u)
if [[ -n $wrong ]]; then
    echo "$wrong" | tee -a "$out/summary.txt"
    failed=$((failed | 4))
fi
for file in "$out"/*.log; do # the newest 16 MiB
    [[ -f $file && $(stat -c %s "$file") -gt 16777216 ]] && tail -c 16000000 "$file" >"$file.cut" && mv "$file.cut" "$file"
done
echo "total: $SECONDS s, exit status $failed" | tee -a "$out/summary.txt"
exit "$failed"
