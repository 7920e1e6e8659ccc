"""Benchmarks: what is measured (cases), against what (providers), how (gate, timing), and how it is written (report).

    python -m lk_triton.bench.conv --out conv.csv       the depthwise layers
    python -m lk_triton.bench.network --out network.csv the whole network
    bench/gpu_check.sh OUT                              both and the GPU tests, within a short visit to a GPU
"""
