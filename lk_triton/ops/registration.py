"""The registered op ``lk_triton::depthwise_conv2d``: implementation, fake kernel, autograd and autocast rules.

``functional.py`` validates and calls it; the plan is looked up inside the implementation, never while tracing.
``dense.py`` is the same for dense convolutions, ``ffn.py`` for ConvFFNs, ``stem.py`` for stems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..algorithms import registry
from ..planning import verify
from ..planning.autotune import plan_for_call
from . import layout
from .problem import Convolution, ConvProblem, Epilogue, Operands, Problem, convolve, operands_of, output_size

NAME = "lk_triton::depthwise_conv2d"
AUTOCAST_KEYS = {"cuda": "AutocastCUDA", "cpu": "AutocastCPU"}

_library = torch.library.Library("lk_triton", "DEF")
_library.define(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? bank, int[2] stride, "
    "int[2] padding, int[2] dilation, str? activation, str? precision, str algorithm, str? bank_format) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)


def problem_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    activation: str | None,
    precision: str | None,
) -> ConvProblem:
    """The problem that these tensors and options pose."""
    n, c, h, w = x.shape
    return ConvProblem(
        n=n,
        c=c,
        h=h,
        w=w,
        kh=weight.shape[2],
        kw=weight.shape[3],
        stride=stride,
        padding=padding,
        dilation=dilation,
        multiplier=weight.shape[0] // c if c else 1,
        dtype=str(x.dtype).removeprefix("torch."),
        layout=layout.layout_of(x),
        epilogue=Epilogue(bias is not None, activation, residual is not None),
        precision=precision,
    )


@torch.library.impl(_library, "depthwise_conv2d", "CompositeExplicitAutograd")
def _implementation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bank: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str | None,
    precision: str | None,
    algorithm: str,
    bank_format: str | None,
) -> Tensor:
    problem = problem_of(x, weight, bias, residual, pair(stride), pair(padding), pair(dilation), activation, precision)
    return run(problem, operands_of(x=x, weight=weight, bias=bias, residual=residual), algorithm, bank, bank_format)


_packing_forbidden: ContextVar[bool] = ContextVar("lk_triton_packing_forbidden", default=False)


@contextmanager
def no_packing() -> Iterator[None]:
    """Inside the ``with`` block, a call that would pack its weight raises RuntimeError."""
    token = _packing_forbidden.set(True)
    try:
        yield
    finally:
        _packing_forbidden.reset(token)


def run(
    problem: Problem, operands: Operands, algorithm: str, bank: Tensor | None = None, bank_format: str | None = None
) -> Tensor:
    """Plan and launch; packs the weight where the plan reads another format than ``bank_format``, that of ``bank``.

    A kernel that no GPU has confirmed is checked first (``planning/verify.py``); if it is wrong, another algorithm serves.

    Raises:
        RuntimeError: ``algorithm`` names a kernel that is wrong; or the weight would be packed under capture.
    """
    like = next(iter(operands.values()))
    chosen = plan_for_call(problem, like.device, algorithm, bank_format)
    wanted = problem.output()
    if 0 in wanted.shape:
        return layout.empty(wanted.shape, wanted.layout, like)
    serving = registry.get(chosen.algorithm)
    read = serving.weight_format(chosen.config)
    if read is None:
        prepacked = {}
    elif bank is not None and read == bank_format:
        prepacked = {"weight": bank}
    elif _packing_forbidden.get():
        raise RuntimeError(
            f"{problem} would pack its weight in every replay of the graph that is being captured: call prepare() on the "
            "layer, with the input shape of the capture, after the last change of its weight"
        )
    else:
        prepacked = {"weight": serving.prepack(operands["weight"], problem, chosen.config)}

    def compute(given: Operands) -> Tensor:
        return serving.launch(problem, chosen.config, {**given, **prepacked})

    out = compute(operands)
    if verify.due(problem, chosen, like) and not verify.agrees(problem, chosen, compute, operands, algorithm != "auto"):
        return run(problem, operands, algorithm, bank, bank_format)
    return out


@torch.library.register_fake(NAME, lib=_library)
def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    bank: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str | None,
    precision: str | None,
    algorithm: str,
    bank_format: str | None,
) -> Tensor:
    oh, ow = (output_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i]) for i in range(2))
    return layout.empty((x.shape[0], weight.shape[0], oh, ow), layout.layout_of(x), x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, _, stride, padding, dilation, activation, precision, _, _ = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.has_residual = residual is not None
    ctx.options = (pair(stride), pair(padding), pair(dilation), activation, precision)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by torch's own operations; the value before the activation is computed again, not stored."""
    x, weight, bias = ctx.saved_tensors
    stride, padding, dilation, activation, precision = ctx.options
    problem = problem_of(x, weight, bias, None, stride, padding, dilation, None, precision)
    grad_conv = before_activation(grad, problem, activation, x, weight, bias)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_conv, x, weight, None if bias is None else [bias.shape[0]], stride, padding, dilation, False, [0, 0],
        x.shape[1], [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]],
    )  # fmt: skip
    grad_residual = grad if ctx.has_residual and ctx.needs_input_grad[3] else None
    return grad_x, grad_weight, grad_bias, grad_residual, *(None,) * 8


def before_activation(
    grad: Tensor, problem: Convolution, activation: str | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The gradient of the value before the activation, which is computed again."""
    if activation is None:
        return grad
    before = convolve(problem, x, weight, bias)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, before, 0)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, before)
    share = torch.sigmoid(before)  # aten.silu_backward itself has no derivative
    return grad * share * (1 + before * (1 - share))


torch.library.register_autograd(NAME, _backward, setup_context=_setup_context, lib=_library)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast casts a call on ``x`` to; None where it is off. As in torch, it leaves float64 alone."""
    device_type = x.device.type
    if device_type not in AUTOCAST_KEYS or x.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def arguments_of(op: Any, args: Sequence[Any]) -> dict[str, Any]:
    """The arguments of a call of one of the library's ops, which have no defaults, by name."""
    return dict(zip((argument.name for argument in op._schema.arguments), args, strict=True))


def register_autocast(library: torch.library.Library, op: Any) -> None:
    """Register the autocast rule of an op.

    Under autocast every tensor is cast to the autocast dtype; a bank in another dtype is not used, nor is ``precision``, which
    is for float32 only.
    """

    def register(device_type: str, key: str) -> None:
        def autocast(_: Any, *args: Any) -> Tensor:
            values = arguments_of(op, args)
            dtype = autocast_dtype(values["x"]) or values["x"].dtype
            bank = values.get("bank")
            if bank is not None and bank.dtype != dtype:
                values["bank"] = values["bank_format"] = None
            if dtype != torch.float32:
                values["precision"] = None
            with torch.amp.autocast(device_type, enabled=False):
                return op(*(v.to(dtype) if isinstance(v, Tensor) else v for v in values.values()))

        library.impl(op._schema.name.split("::")[1], autocast, key, with_keyset=True)

    for device_type, key in AUTOCAST_KEYS.items():
        register(device_type, key)


def pair(values: list[int]) -> tuple[int, int]:
    """The op's int[2] as a tuple."""
    return values[0], values[1]


op = torch.ops.lk_triton.depthwise_conv2d.default
register_autocast(_library, op)
