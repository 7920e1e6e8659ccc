"""Correctness before speed: a result that fails the tuner's gate (``lk_triton/tuning/accuracy.py``) gets no figure."""

from lk_triton.tuning.accuracy import Gate, Verdict, draw, eager, judge

__all__ = ["Gate", "Verdict", "draw", "eager", "judge"]
