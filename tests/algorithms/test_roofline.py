"""The roofline: the slowest resource, the launch, and what a channels_last problem's conversions add."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.cost.roofline import LAUNCH_SECONDS, conversions, roofline
from lk_triton.ops.problem import ConvProblem, Epilogue

H100 = gpus.TABLE["h100"]
PROBLEM = ConvProblem(8, 64, 56, 56, 7, 7, padding=(3, 3), epilogue=Epilogue(True, "relu"))


def test_the_slowest_resource_is_the_limiter():
    assert roofline(PROBLEM, H100, mma=1e-4, dram=2e-4) == (2e-4 + LAUNCH_SECONDS, "dram")
    assert roofline(PROBLEM, H100, mma=3e-4, dram=2e-4) == (3e-4 + LAUNCH_SECONDS, "mma")


def test_the_launch_limits_what_is_shorter():
    """A kernel that takes less than its launch: still the sum, but nothing in the kernel would help."""
    estimate = roofline(PROBLEM, H100, mma=1e-6, dram=2e-6)
    assert estimate.limiter == "launch"
    assert estimate.seconds == pytest.approx(2e-6 + LAUNCH_SECONDS)
    tiny = replace(PROBLEM, n=1, c=8, h=7, w=7)
    for name in ("toeplitz", "direct"):
        algorithm = registry.get(name)
        assert {algorithm.estimate(tiny, c, H100).limiter for c in algorithm.configs(tiny, H100)} >= {"launch"}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["toeplitz", "direct"])
def test_channels_last_adds_its_conversions(name: str, residual: bool):
    """x and residual in, out back: each read, written and launched."""
    dense = replace(PROBLEM, epilogue=Epilogue(True, "relu", residual))
    last = replace(dense, layout="channels_last")
    tensors = 2 + residual
    assert conversions(dense) == ()
    assert conversions(last) == (8 * 64 * 56 * 56,) * tensors
    algorithm = registry.get(name)
    copies = tensors * (LAUNCH_SECONDS + 2 * 8 * 64 * 56 * 56 * 2 / (H100.dram_gbps * 1e9))
    for config in algorithm.configs(dense, H100):
        before, after = (algorithm.estimate(p, config, H100).seconds for p in (dense, last))
        assert after == pytest.approx(before + copies)


def test_conversions_may_be_the_limiter():
    last = replace(PROBLEM, n=64, layout="channels_last")
    assert roofline(last, H100, l2=1e-5).limiter == "dram"
    assert roofline(last, H100, l2=1e-3).limiter == "l2"
    assert roofline(replace(last, n=1, c=8), H100, l2=4e-6).limiter == "launch"


def test_torch_serves_channels_last_as_it_is():
    torch_ = registry.get("torch")
    last = replace(PROBLEM, layout="channels_last")
    (config,) = torch_.configs(last, H100)
    assert torch_.estimate(last, config, H100) == torch_.estimate(PROBLEM, config, H100)
