"""Triton kernels only: no torch, no host logic. Block sizes are powers of two, accumulators float32."""
