"""The registered op ``lk_triton::dense_conv2d``, for 1x1 convolutions and the stem; see ``registration.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import layout
from .problem import DenseProblem, Epilogue, operands_of, output_size
from .registration import before_activation, pair, register_autocast, run

NAME = "lk_triton::dense_conv2d"

_library = torch.library.Library("lk_triton", "FRAGMENT")
_library.define(
    "dense_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? bank, int[2] stride, int[2] padding, "
    "str? activation, str? precision, str? out_layout, str algorithm, str? bank_format) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)


def problem_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: str | None,
    precision: str | None,
    out_layout: str | None,
) -> DenseProblem:
    """The problem that these tensors and options pose. ``precision`` None: what torch's flags for convolutions say."""
    n, c, h, w = x.shape
    out_channels, _, kh, kw = weight.shape
    of_x = layout.layout_of(x)
    if precision is None and x.dtype == torch.float32 and torch_allows_tf32(x.device):
        precision = "tf32"
    return DenseProblem(
        n, c, h, w, out_channels, kh, kw, stride, padding, str(x.dtype).removeprefix("torch."), of_x,
        out_layout or of_x, Epilogue(bias is not None, activation, residual is not None), precision,
    )  # fmt: skip


def torch_allows_tf32(device: torch.device) -> bool:
    """Whether torch's own float32 convolutions on ``device`` may round to TF32."""
    if device.type != "cuda":
        return False
    conv = getattr(torch.backends.cudnn, "conv", None)
    # reading the old flag after the new one was set raises
    return torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"


@torch.library.impl(_library, "dense_conv2d", "CompositeExplicitAutograd")
def _implementation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bank: Tensor | None,
    stride: list[int],
    padding: list[int],
    activation: str | None,
    precision: str | None,
    out_layout: str | None,
    algorithm: str,
    bank_format: str | None,
) -> Tensor:
    problem = problem_of(x, weight, bias, residual, pair(stride), pair(padding), activation, precision, out_layout)
    return run(problem, operands_of(x=x, weight=weight, bias=bias, residual=residual), algorithm, bank, bank_format)


@torch.library.register_fake(NAME, lib=_library)
def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bank: Tensor | None,
    stride: list[int],
    padding: list[int],
    activation: str | None,
    precision: str | None,
    out_layout: str | None,
    algorithm: str,
    bank_format: str | None,
) -> Tensor:
    oh, ow = (output_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], 1) for i in range(2))
    return layout.empty((x.shape[0], weight.shape[0], oh, ow), out_layout or layout.layout_of(x), x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, _, stride, padding, activation, precision, out_layout, _, _ = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.has_residual = residual is not None
    ctx.options = (pair(stride), pair(padding), activation, precision, out_layout)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by torch's own operations; the value before the activation is computed again, not stored."""
    x, weight, bias = ctx.saved_tensors
    stride, padding, activation, precision, out_layout = ctx.options
    problem = problem_of(x, weight, bias, None, stride, padding, None, precision, out_layout)
    grad_conv = before_activation(grad, problem, activation, x, weight, bias)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_conv, x, weight, None if bias is None else [bias.shape[0]], stride, padding, [1, 1], False, [0, 0], 1,
        [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]],
    )  # fmt: skip
    grad_residual = grad if ctx.has_residual and ctx.needs_input_grad[3] else None
    return grad_x, grad_weight, grad_bias, grad_residual, *(None,) * 8


torch.library.register_autograd(NAME, _backward, setup_context=_setup_context, lib=_library)


op = torch.ops.lk_triton.dense_conv2d.default
register_autocast(_library, op)
