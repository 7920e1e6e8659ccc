"""1x1 convolutions on a CPU against float64, and where oneDNN leaves them to torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lk_triton import device
from lk_triton.algorithms.onednn import OnednnAlgorithm
from lk_triton.algorithms.torch_ import activate
from lk_triton.nn import PointwiseConv2d
from lk_triton.problem import DenseProblem, Epilogue
from lk_triton.tuning.accuracy import Gate

pytestmark = pytest.mark.usefixtures("no_interpreter")

ONEDNN = OnednnAlgorithm()
SHAPES = [(1, 8, 5, 7), (2, 16, 1, 3), (3, 2, 4, 4), (1, 3, 2, 9), (2, 130, 14, 14)]


def problem(shape: tuple[int, ...], activation: str | None = None, residual: bool = False, bias: bool = True) -> DenseProblem:
    order, (n, c, h, w) = "channels_last", shape
    epilogue = Epilogue(bias, activation, residual)
    return DenseProblem(n, c, h, w, 24, dtype="float32", layout=order, out_layout=order, epilogue=epilogue)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("activation", "residual"), [(None, False), ("relu", False), ("gelu", False), ("silu", False), (None, True)]
)
@torch.no_grad()
def test_equals_float64(shape: tuple[int, ...], bias: bool, activation: str | None, residual: bool) -> None:
    torch.manual_seed(0)
    posed = problem(shape, activation, residual, bias)
    gate = Gate(posed, torch.device("cpu"))
    (config,) = ONEDNN.configs(posed, device.CPU)
    bank = ONEDNN.pack(gate.weight, posed, config)
    inputs = [t for t in (gate.x, gate.residual) if t is not None]
    before = [t.clone() for t in inputs]

    def run(x: Tensor) -> Tensor:
        y = ONEDNN.launch(posed, config, x, bank, gate.bias, gate.residual)
        assert y.is_contiguous(memory_format=torch.channels_last)
        return y

    verdict = gate.check(run)
    assert verdict.ok, verdict
    assert all(map(torch.equal, inputs, before)), "inputs are not written to"


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = problem((2, 8, 4, 4))
    assert ONEDNN.supports(posed, device.CPU) is None
    assert "nchw" in str(ONEDNN.supports(replace(posed, layout="nchw"), device.CPU))
    assert "together" in str(ONEDNN.supports(problem((2, 8, 4, 4), "relu", True), device.CPU))
    assert "float64" in str(ONEDNN.supports(replace(posed, dtype="float64"), device.CPU))
    assert "1x1" in str(ONEDNN.supports(replace(posed, kh=3, kw=3, padding=(1, 1)), device.CPU))
    assert "h100" in str(ONEDNN.supports(posed, device.TABLE["h100"]))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "not part of this torch" in str(ONEDNN.supports(posed, device.CPU))


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_module_is_one_conv2d_on_every_path(activation: str | None) -> None:
    torch.manual_seed(0)
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
