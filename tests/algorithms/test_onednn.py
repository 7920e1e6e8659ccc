"""Convolutions on a CPU against float64, and what oneDNN leaves to torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from serving import call
from torch import Tensor

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import torch_
from lk_triton.algorithms.base import with_prepacked
from lk_triton.algorithms.onednn import OnednnAlgorithm
from lk_triton.functional import explain_problem
from lk_triton.nn import DepthwiseConv2d, PointwiseConv2d
from lk_triton.nn.prepack import PrepackedConv2d
from lk_triton.ops import layout
from lk_triton.ops.problem import Convolution, ConvProblem, DenseProblem, Epilogue, Operands, activate
from lk_triton.planning.accuracy import Gate
from lk_triton.planning.entry import problem_from_json
from lk_triton.planning.plan import plan

pytestmark = pytest.mark.usefixtures("no_interpreter")

MEASURED = Path(__file__).parents[2] / "bench/results/cpu-2026-11/convolutions.json"
ONEDNN = OnednnAlgorithm()
BF16 = torch.cpu._is_avx512_bf16_supported()
DTYPES = ["float32", "bfloat16"] if BF16 else ["float32"]

ONE, ZERO = (1, 1), (0, 0)
POINTWISE = [
    DenseProblem(*shape, 24, layout=order, out_layout=order)
    for shape, order in [
        ((1, 8, 5, 7), "channels_last"), ((2, 16, 1, 3), "channels_last"), ((3, 2, 4, 4), "channels_last"),
        ((1, 3, 2, 9), "nchw"), ((2, 130, 14, 14), "channels_last"), ((2, 6, 5, 3), "channel_major"),
    ]
]  # fmt: skip
DENSE = [
    DenseProblem(2, 3, 9, 8, 16, 3, 3, (2, 2), ONE, layout="channels_last", out_layout="nchw"),
    DenseProblem(1, 5, 6, 6, 16, 1, 1, (2, 2), ZERO),
]
DEPTHWISE = [
    ConvProblem(1, 24, 14, 14, 13, 13, ONE, (6, 6), layout="channels_last"),
    ConvProblem(2, 20, 9, 8, 5, 3, (2, 1), (0, 1), (1, 2)),
    ConvProblem(2, 32, 5, 7, 3, 3, ONE, ONE, multiplier=2, layout="channels_last"),
    ConvProblem(1, 17, 1, 1, 31, 31, ONE, (15, 15), layout="channels_last"),
    ConvProblem(3, 40, 6, 5, 3, 3, ONE, ONE, layout="channel_major"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("posed", POINTWISE + DENSE + DEPTHWISE, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("activation", "residual"), [(None, False), ("relu", False), ("gelu", False), ("silu", False), (None, True)]
)
@torch.no_grad()
def test_equals_float64(posed: Convolution, dtype: str, bias: bool, activation: str | None, residual: bool) -> None:
    torch.manual_seed(0)
    posed = replace(posed, dtype=dtype, epilogue=Epilogue(bias, activation, residual))
    gate = Gate(posed, torch.device("cpu"))
    assert ONEDNN.why_not(posed, gpus.CPU) is None
    (config,) = ONEDNN.configs(posed, gpus.CPU)
    before = {role: tensor.clone() for role, tensor in gate.operands.items()}
    strides = layout.strides(posed.out_shape, posed.out_layout)
    for packed_for in (posed, replace(posed, n=64, h=posed.h + 16, w=posed.w + 16)):
        operands = with_prepacked(ONEDNN, packed_for, config, gate.operands)

        def run(_: Operands, operands: Operands = operands) -> Tensor:
            y = ONEDNN.launch(posed, config, operands)
            assert y.stride() == strides
            return y

        verdict = gate.check(run)
        assert verdict.ok, verdict
    assert all(torch.equal(gate.operands[role], tensor) for role, tensor in before.items()), "inputs are not written to"


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = replace(POINTWISE[0], dtype="float32")
    assert ONEDNN.why_not(posed, gpus.CPU) is None
    assert "together" in str(ONEDNN.why_not(replace(posed, epilogue=Epilogue(True, "relu", True)), gpus.CPU))
    assert "float64" in str(ONEDNN.why_not(replace(posed, dtype="float64"), gpus.CPU))
    assert "h100" in str(ONEDNN.why_not(posed, gpus.TABLE["h100"]))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    half = replace(posed, dtype="bfloat16")
    assert "AVX512-BF16" in str(ONEDNN.why_not(half, gpus.CPU))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert ONEDNN.why_not(half, gpus.CPU) is None
    depthwise = ConvProblem(1, 16, 40, 40, 31, 31, ONE, (15, 15), dtype="bfloat16")
    assert "hangs" in str(ONEDNN.why_not(depthwise, gpus.CPU))
    assert ONEDNN.why_not(replace(depthwise, c=17), gpus.CPU) is None
    assert ONEDNN.why_not(replace(depthwise, dtype="float32"), gpus.CPU) is None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "not part of this torch" in str(ONEDNN.why_not(posed, gpus.CPU))


def test_auto_takes_what_was_measured_to_be_faster() -> None:
    """The rule against the figures that it was drawn from: never far from the faster one, and seldom at all."""
    excess = []
    for row in json.loads(MEASURED.read_text(encoding="utf-8")):
        posed = problem_from_json(row["problem"])
        if posed.dtype == "float32":
            excess.append(row[plan(posed, gpus.CPU).algorithm] / min(row["torch"], row["onednn"]))
    assert len(excess) >= 20
    assert max(excess) < 1.75
    assert sum(e > 1.15 for e in excess) < 0.05 * len(excess)


@torch.no_grad()
def test_torch_is_taken_by_auto_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the layout of x, and with a bank at hand too; who asks for ``onednn`` gets it."""
    posed = ConvProblem(1, 96, 28, 28, 5, 5, ONE, (2, 2), dtype="float32", epilogue=Epilogue(True, "relu"))
    assert "faster" in str(explain_problem(posed, gpus.CPU).algorithms["onednn"])
    assert plan(posed, gpus.CPU, bank_format="onednn").algorithm == "torch"
    gate = Gate(posed, torch.device("cpu"))
    layouts = []
    convolve = torch_.convolve

    def seen(problem: Convolution, x: Tensor, *rest: Any) -> Tensor:
        layouts.append(layout.layout_of(x))
        return convolve(problem, x, *rest)

    monkeypatch.setattr(torch_, "convolve", seen)
    assert gate.check(lambda given: call(posed, given)).ok
    assert set(layouts) == {"nchw"}
    layer = DepthwiseConv2d(96, 5).eval().prepare((1, 96, 28, 28))
    assert layer.bank_bytes, "for channels_last, what is faster there"
    with lk_triton.use("onednn"):
        assert plan(posed, gpus.CPU).algorithm == "onednn"


@pytest.mark.parametrize("channels", [16, 17])
@torch.no_grad()
def test_wide_bfloat16_kernels_return(channels: int) -> None:
    x = torch.randn(1, channels, 40, 40).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, 31, 31) / 31
    y = lk_triton.depthwise_conv2d(x.bfloat16(), weight.bfloat16())
    torch.testing.assert_close(y.float(), F.conv2d(x, weight, None, 1, 15, 1, channels), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_banks_are_made_and_used(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"activation": "relu", "dtype": getattr(torch, dtype)}
    layers: list[PrepackedConv2d] = [DepthwiseConv2d(24, 5, **options), PointwiseConv2d(24, 32, **options)]
    x = torch.randn(2, 24, 40, 40, dtype=options["dtype"]).contiguous(memory_format=torch.channels_last)
    for layer in layers:
        expected = layer.eval()(x)
        layer.prepare(tuple(x.shape))
        assert layer.bank_bytes >= layer.weight.nbytes
        with monkeypatch.context() as patch:
            patch.setattr(OnednnAlgorithm, "prepack", lambda *_: pytest.fail("packed again"))
            assert torch.equal(layer(x), expected)
            with lk_triton.use("onednn"):
                assert torch.equal(layer(x.contiguous()), expected)


@torch.no_grad()
def test_banks_with_gaps_in_weight_and_bias() -> None:
    layers: list[PrepackedConv2d] = [DepthwiseConv2d(24, 5), PointwiseConv2d(24, 24)]
    x = torch.randn(2, 24, 9, 9)
    for layer in layers:
        expected = layer.eval()(x)
        for name, tensor in list(layer.named_parameters()):
            setattr(layer, name, torch.nn.Parameter(torch.stack([tensor, torch.full_like(tensor, 1e6)], -1)[..., 0]))
            assert not layer.get_parameter(name).is_contiguous()
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer.prepare(tuple(x.shape))(x), expected)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_module_is_one_conv2d_on_every_path(activation: str | None) -> None:
    torch.manual_seed(0)

    def channels_last(*shape: int) -> Tensor:
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)

    conv, x, r = PointwiseConv2d(6, 6, activation=activation), channels_last(2, 6, 5, 5), channels_last(2, 6, 5, 5)
    assert list(conv.state_dict()) == ["weight", "bias"]
    wanted = activate(F.conv2d(x, conv.weight, conv.bias), activation)
    for residual in (None, r):
        reference = wanted if residual is None else wanted + residual
        torch.testing.assert_close(conv(x, residual), reference)
        assert conv(x, residual).requires_grad
        with torch.no_grad():
            torch.testing.assert_close(conv(x, residual), reference)
            torch.testing.assert_close(conv(x.contiguous(), residual), reference)
            torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="eager")(x, residual), reference)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(conv(x, residual).float(), reference, rtol=0.05, atol=0.05)
