"""Benchmarks: what is measured (cases), against what (providers), how (gate, timing), and how it is written (report).

lk-triton bench conv --out conv.csv           the depthwise layers; also python -m lk_triton.bench.conv
lk-triton bench network --out network.csv     the whole network
lk-triton bench host                          what a call costs the host
lk-triton bench plot conv.csv --out conv.png  a roofline of what was measured
lk-triton bench model-error conv.csv          the cost model against what was measured
lk-triton bench report *.csv --out page.html  all of it as one HTML page
lk-triton bench adopt OUT                     a visit's files into tables, results/, README and docs/
bench/gpu_visit.sh --part A --state DIR OUT   all of it and the GPU tests, in three parts of at most ten minutes on a GPU
python -m lk_triton.bench.prewarm --out FILE  the kernels of such a visit, compiled before it
"""
