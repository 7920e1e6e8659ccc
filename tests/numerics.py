"""The reference in float64 and the tolerance rule: at most twice torch's own error plus one rounding of the output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATION = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    stride: tuple[int, int] = (1, 1),
) -> Tensor:
    """``activation(conv(x) + bias) + residual`` by torch, in the dtype of the arguments."""
    y = ACTIVATION[activation](F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1]))
    return y if residual is None else y + residual


def assert_accurate(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None,
                    residual: Tensor | None = None, **options: tuple[int, int]) -> None:  # fmt: skip
    """Compare ``out`` with the float64 reference, by the largest absolute error."""
    b64, r64 = (t if t is None else t.detach().cpu().double() for t in (bias, residual))
    exact = reference(x.detach().cpu().double(), weight.detach().cpu().double(), b64, activation, r64, **options)
    own = reference(x, weight, bias, activation, residual, **options).detach().cpu().double()
    result = out.detach().cpu().double()
    assert result.shape == exact.shape
    assert torch.isfinite(result).all(), "an output was not written, or is not finite"
    error, torch_error = (result - exact).abs().max().item(), (own - exact).abs().max().item()
    rounding = torch.finfo(out.dtype).eps * exact.abs().max().item()
    print(f"error {error:.2e}, torch's {torch_error:.2e}, rounding {rounding:.2e}")
    assert error <= 2 * torch_error + rounding
