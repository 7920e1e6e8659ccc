"""``conv_stem`` and its registered op: rules, fake strides, autocast, gradients, wrong calls, and what a network records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from serving import serving
from torch import Tensor

import lk_triton
from lk_triton import conv_stem, dense_conv2d, depthwise_conv2d, pointwise_conv2d
from lk_triton import gpu as gpus
from lk_triton.functional import explain_problem
from lk_triton.models import RepLKNet, create_model
from lk_triton.ops import layout, library
from lk_triton.ops.problem import StemProblem
from lk_triton.ops.registration import no_packing
from lk_triton.ops.tracing import Recorder, problems_of
from lk_triton.planning import tuner

LAYOUTS = ("nchw", "channel_major", "channels_last")
SHAPES = ((8, 3, 3, 3), (8,), (8, 1, 3, 3), (8,), (8, 8, 1, 1), (8,))


def tensors(order: str = "nchw", dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, w1, b1, w2, b2, w3, b3."""
    torch.manual_seed(0)
    x = layout.conform(torch.randn(2, 3, 7, 6, dtype=dtype), order)
    return x, *(torch.randn(*shape, dtype=dtype) / 2 for shape in SHAPES)


def call(*given: Tensor, **options: Any) -> Tensor:
    x, w1, b1, w2, b2, w3, b3 = given
    return conv_stem(x, w1, b1, w2, b2, w3, b3, **options)


def by_layers(*given: Tensor, activation: str = "relu") -> Tensor:
    x, w1, b1, w2, b2, w3, b3 = given
    y = dense_conv2d(x, w1, b1, activation=activation, stride=2, padding=1)
    return pointwise_conv2d(depthwise_conv2d(y, w2, b2, activation=activation), w3, b3, activation=activation)


@pytest.mark.usefixtures("one_thread", "no_interpreter")
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("out_layout", [None, "nchw", "channel_major"])
def test_opcheck_and_fake_strides(order: str, out_layout: str | None) -> None:
    arguments: tuple[Any, ...] = (*tensors(order), "relu", None, out_layout, "auto")
    results = torch.library.opcheck(library.conv_stem.op, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert library.conv_stem.op(*arguments).stride() == layout.strides((2, 8, 4, 3), out_layout or order)


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("algorithm", ["auto", *serving(StemProblem(2, 3, 7, 6, 8, dtype="float32"), "cpu")])
def test_is_its_three_layers(activation: str, algorithm: str) -> None:
    given = tensors()
    y = call(*given, activation=activation, algorithm=algorithm)
    torch.testing.assert_close(y, by_layers(*given, activation=activation))


@pytest.mark.usefixtures("no_interpreter")
def test_layers_are_not_packed_in_every_call() -> None:
    """Whatever algorithm is preferred: a graph would repeat it."""
    given = tensors()
    with lk_triton.use("toeplitz"), no_packing():
        torch.testing.assert_close(call(*given, algorithm="layerwise"), call(*given, algorithm="torch"), rtol=1e-5, atol=1e-5)


def test_gradients_and_autocast() -> None:
    given = tensors(dtype=torch.float64)
    inputs = [t.requires_grad_() for t in given]
    assert torch.autograd.gradcheck(lambda *all_of_them: call(*all_of_them, activation="silu"), inputs)
    with pytest.raises(ValueError, match="no gradients yet"):
        call(*given, algorithm="layerwise")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert call(*tensors()).dtype == torch.bfloat16


def test_an_empty_batch() -> None:
    x, *rest = tensors()
    assert call(x[:0], *rest).shape == (0, 8, 4, 3)


def test_wrong_calls() -> None:
    x, w1, b1, w2, b2, w3, b3 = tensors()
    with pytest.raises(ValueError, match=r"w2 must be \(8, 1, 3, 3\) for images of 3 channels and 8 after the first"):
        call(x, w1, b1, w3, b2, w3, b3)
    with pytest.raises(ValueError, match="w1 must be"):
        call(x, torch.randn(8, 3, 5, 5), b1, w2, b2, w3, b3)
    with pytest.raises(TypeError, match="b3 must be"):
        call(x, w1, b1, w2, b2, w3, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="bias must be"):
        call(x, w1, b1, w2, b2[:4], w3, b3)
    with pytest.raises(ValueError, match="activation must be one of"):
        call(x, w1, b1, w2, b2, w3, b3, activation=None)
    with pytest.raises(ValueError, match="out_layout"):
        call(x, w1, b1, w2, b2, w3, b3, out_layout="nhwc")
    with pytest.raises(TypeError, match="one dtype"):
        call(x, w1, b1, w2, b2, w3.half(), b3)
    with pytest.raises(ValueError, match="cannot serve"):
        call(x, w1, b1, w2, b2, w3, b3, algorithm="stem")


def test_what_a_network_poses() -> None:
    """In 16 bits its stem whole, which tuning precedes with its layers; else the layers."""
    half, single = (create_model("replknet_31b", device="meta", dtype=t).eval().reparameterize() for t in (torch.half, None))
    shape = (64, 3, 224, 224)
    stems = [p for p in problems_of(half, shape) if isinstance(p, StemProblem)]
    assert stems == [StemProblem(64, 3, 224, 224, 128, out_layout="channel_major")]
    of_single = problems_of(single, shape)
    assert not any(isinstance(p, StemProblem) for p in of_single)
    order = tuner.with_layers(problems_of(half, shape))
    assert max(map(order.index, stems[0].layers)) < order.index(stems[0])
    assert set(stems[0].layers) <= {replace(p, dtype="float16", precision=None) for p in of_single}


def test_a_fused_network_in_the_interpreter() -> None:
    """Where kernels are interpreted, the stem in 16 bits is one kernel and a depthwise layer, and agrees with its layers."""
    torch.manual_seed(0)
    model = RepLKNet((5,), (1,), (16,), 3, num_classes=0).eval().reparameterize().half()
    images = torch.randn(2, 3, 18, 13).half()
    with torch.no_grad(), Recorder() as recorder:
        model.stem(images)
    assert [type(p).__name__ for p in recorder.problems] == ["StemProblem", "ConvProblem"]
    with torch.no_grad():
        y, expected = model.stem(images), images
        for unit in model.stem:
            expected = unit(expected)
        torch.testing.assert_close(y, expected, rtol=2e-3, atol=2e-3)
    with Recorder() as recorder:
        model.stem(images)
    assert not any(isinstance(p, StemProblem) for p in recorder.problems), "with gradients, layer by layer"


def test_both_are_explained() -> None:
    said = explain_problem(StemProblem(64, 3, 224, 224, 128, out_layout="channel_major"), gpus.for_arch("h100"))
    assert said.plan.algorithm == "convstem"
    assert isinstance(said.algorithms["layerwise"], float)
