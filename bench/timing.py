"""How it is measured: exactly as the tuner measures, see ``lk_triton/tuning/timing.py``."""

from lk_triton.tuning.timing import (
    CpuTimer,
    GraphTimer,
    Timer,
    Timing,
    buffers_for,
    calls_for,
    interleave,
    timer,
)

__all__ = ["CpuTimer", "GraphTimer", "Timer", "Timing", "buffers_for", "calls_for", "interleave", "timer"]
