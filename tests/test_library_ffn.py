"""``conv_ffn`` and its registered op: rules, fake strides, autocast, gradients, wrong calls, and what a network records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from serving import serving
from torch import Tensor

from lk_triton import conv_ffn, pointwise_conv2d
from lk_triton import gpu as gpus
from lk_triton.functional import explain_problem
from lk_triton.models import create_model
from lk_triton.models.blocks import ConvFFN
from lk_triton.ops import layout, library
from lk_triton.ops.problem import FfnProblem
from lk_triton.ops.tracing import Recorder, problems_of
from lk_triton.planning import tuner

LAYOUTS = ("nchw", "channel_major", "channels_last")


def tensors(order: str = "nchw", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, w1, b1, w2, b2."""
    torch.manual_seed(0)
    x = layout.conform(torch.randn(2, 3, 6, 5, dtype=dtype), order)
    w1, b1, w2, b2 = (torch.randn(*shape, dtype=dtype) for shape in ((8, 3, 1, 1), (8,), (3, 8, 1, 1), (3,)))
    return x, w1, b1, w2, b2


def by_layers(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "gelu") -> Tensor:
    return pointwise_conv2d(pointwise_conv2d(x, w1, b1, activation=activation), w2, b2, residual=x)


@pytest.mark.usefixtures("one_thread", "no_interpreter")
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("out_layout", [None, "nchw", "channel_major"])
def test_opcheck_and_fake_strides(order: str, out_layout: str | None) -> None:
    given = tensors(order)
    arguments: tuple[Any, ...] = (*given, given[0], "gelu", None, out_layout, "auto")
    results = torch.library.opcheck(library.conv_ffn.op, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert library.conv_ffn.op(*arguments).stride() == layout.strides((2, 3, 6, 5), out_layout or order)


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("algorithm", ["auto", *serving(FfnProblem(2, 3, 6, 5, 8, dtype="float32"), "cpu")])
def test_is_its_two_layers(activation: str, algorithm: str) -> None:
    given = tensors()
    y = conv_ffn(*given, given[0], activation=activation, algorithm=algorithm)
    torch.testing.assert_close(y, by_layers(*given, activation=activation))
    torch.testing.assert_close(conv_ffn(*given, activation=activation), y - given[0])


@pytest.mark.usefixtures("no_interpreter")
def test_gradients_and_autocast() -> None:
    given = tensors(dtype=torch.float64)
    inputs = [t.requires_grad_() for t in given]
    assert torch.autograd.gradcheck(lambda x, w1, b1, w2, b2: conv_ffn(x, w1, b1, w2, b2, x), inputs)
    with pytest.raises(ValueError, match="no gradients yet"):
        conv_ffn(*given, algorithm="layerwise")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert conv_ffn(*tensors()).dtype == torch.bfloat16


def test_an_empty_batch() -> None:
    x, *rest = tensors()
    assert conv_ffn(x[:0], *rest).shape == (0, 3, 6, 5)


def test_wrong_calls() -> None:
    x, w1, b1, w2, b2 = tensors()
    with pytest.raises(ValueError, match=r"w2 must be \(3, 8, 1, 1\) for 3 channels and 8 hidden ones, got shape"):
        conv_ffn(x, w1, b1, w1, b2)
    with pytest.raises(ValueError, match="w1 must be"):
        conv_ffn(x, torch.randn(8, 3, 3, 3), b1, w2, b2)
    with pytest.raises(TypeError, match="b2 must be"):
        conv_ffn(x, w1, b1, w2, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="activation must be one of"):
        conv_ffn(x, w1, b1, w2, b2, activation=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="out_layout"):
        conv_ffn(x, w1, b1, w2, b2, out_layout="nhwc")
    with pytest.raises(ValueError, match="residual must have"):
        conv_ffn(x, w1, b1, w2, b2, x[:, :2])
    with pytest.raises(TypeError, match="one dtype"):
        conv_ffn(x, w1, b1, w2.half(), b2)
    with pytest.raises(ValueError, match="cannot serve"):
        conv_ffn(x, w1, b1, w2, b2, algorithm="pointwise")


def test_what_a_network_poses() -> None:
    """Narrow stages in 16 bits pose ConvFFNs, which tuning precedes with their layers; all others pose layers."""
    half, single = (create_model("replknet_31b", device="meta", dtype=t).eval().reparameterize() for t in (torch.half, None))
    shape = (64, 3, 224, 224)
    whole = {p: count for p, count in problems_of(half, shape).items() if isinstance(p, FfnProblem)}
    assert {(p.c, p.hidden, p.h, p.out_layout): count for p, count in whole.items()} == {
        (128, 512, 56, "channel_major"): 2, (256, 1024, 28, "channel_major"): 2,
    }  # fmt: skip
    assert not any(isinstance(p, FfnProblem) for p in problems_of(single, shape))
    order = tuner.with_layers(problems_of(half, shape))
    for problem in whole:
        assert max(map(order.index, problem.layers)) < order.index(problem)
    in_layers = {replace(p, dtype="float16", precision=None) for p in problems_of(single, shape)}
    assert {layer for problem in whole for layer in problem.layers} <= in_layers


def fused_block() -> ConvFFN:
    torch.manual_seed(0)
    block = ConvFFN(64, 64, 0.0, fused=True).eval()
    return block.requires_grad_()


def test_the_fused_block_in_the_interpreter() -> None:
    """On a CPU whose kernels are interpreted it takes one kernel in 16 bits, and agrees with its layers."""
    block = fused_block().half()
    x = layout.conform(torch.randn(2, 64, 8, 5).half(), "channel_major")
    with torch.no_grad(), Recorder() as recorder:
        block(x)
    assert [type(p) for p in recorder.problems] == [FfnProblem]
    with torch.no_grad():
        y = block(x)
        torch.testing.assert_close(y, block.pw2(block.pw1(x), x), rtol=2e-3, atol=2e-3)
        assert block(x, "nchw").is_contiguous()


def test_the_fused_block_with_gradients() -> None:
    x = torch.randn(1, 64, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    fused_block().bfloat16()(x).sum().backward()
    assert x.grad is not None


def test_both_are_explained() -> None:
    problem = FfnProblem(64, 128, 56, 56, 512, layout="channel_major", out_layout="channel_major")
    said = explain_problem(problem, gpus.for_arch("h100"))
    assert said.plan.algorithm == "convffn"
    assert isinstance(said.algorithms["layerwise"], float)
