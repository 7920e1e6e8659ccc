"""Benchmarks: cases, providers, timing."""
