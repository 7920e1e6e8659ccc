"""Validation of public calls: what was given, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import ACTIVATIONS, PRECISIONS, output_size, pair, same_padding

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAYOUTS = ("nchw", "channel_major")
"""That a caller may ask for."""


def check_depthwise(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    padding: str | int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    precision: str | None = None,
) -> dict[str, Any]:
    """Validate a call; returns stride, padding and dilation as pairs. Raises what ``depthwise_conv2d`` documents."""
    check_tensors(x=x, weight=weight, bias=bias, residual=residual)
    if x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}; add a batch dimension with x[None]")
    if weight.dim() != 4:
        raise ValueError(f"weight must be (C * multiplier, 1, KH, KW), got shape {tuple(weight.shape)}")
    c, out_channels = x.shape[1], weight.shape[0]
    if c == 0 or weight.shape[1] != 1 or out_channels == 0 or out_channels % c:
        raise ValueError(
            f"a depthwise weight for {c} channels must be (C * multiplier, 1, KH, KW) with C = {c} >= 1, got shape "
            f"{tuple(weight.shape)}: x and weight disagree on the groups"
        )
    check_options(x, weight, bias, residual, activation, precision)
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    kh, kw = weight.shape[2], weight.shape[3]
    if kh == 0 or kw == 0:
        raise ValueError(f"weight has no taps: shape {tuple(weight.shape)}")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be 'same', 'valid', an int or (h, w), got {padding!r}")
        same = padding == "same"
        padding = (same_padding(kh, dilation[0]), same_padding(kw, dilation[1])) if same else (0, 0)
    else:
        padding = pair("padding", padding, 0)
    oh, ow = output_map(x, (kh, kw), stride, padding, dilation)
    check_epilogue((x.shape[0], out_channels, oh, ow), bias, residual)
    return {"stride": stride, "padding": padding, "dilation": dilation}


def check_dense(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    precision: str | None = None,
    out_layout: str | None = None,
) -> dict[str, Any]:
    """Validate a dense call; returns stride and padding as pairs. Raises what ``pointwise_conv2d`` documents."""
    check_tensors(x=x, weight=weight, bias=bias, residual=residual)
    if x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}; add a batch dimension with x[None]")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"the weight for {x.shape[1]} channels must be (Cout, {x.shape[1]}, KH, KW), got shape {tuple(weight.shape)}"
            + ("; give a matrix two more dimensions with weight[:, :, None, None]" if weight.dim() == 2 else "")
        )
    check_options(x, weight, bias, residual, activation, precision)
    if out_layout is not None and out_layout not in LAYOUTS:
        raise ValueError(f"out_layout must be None or one of {', '.join(LAYOUTS)}, got {out_layout!r}")
    stride, padding = pair("stride", stride, 1), pair("padding", padding, 0)
    oh, ow = output_map(x, (weight.shape[2], weight.shape[3]), stride, padding, (1, 1))
    check_epilogue((x.shape[0], weight.shape[0], oh, ow), bias, residual)
    return {"stride": stride, "padding": padding}


def check_ffn(
    *,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual: Tensor | None,
    activation: str,
    precision: str | None,
    out_layout: str | None,
) -> dict[str, Any]:
    """Validate a ConvFFN's call: its layers', and that they fit. Raises what ``conv_ffn`` documents."""
    for name, bias in (("b1", b1), ("b2", b2)):
        if not isinstance(bias, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(bias).__name__}")
    check_dense(
        x=x, weight=w1, bias=b1, activation=activation, stride=1, padding=0, precision=precision, out_layout=out_layout
    )
    if activation is None:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}: without one the two layers are a single one")
    c, hidden = x.shape[1], w1.shape[0]
    for name, weight, shape in (("w1", w1, (hidden, c, 1, 1)), ("w2", w2, (c, hidden, 1, 1))):
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
            given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"{name} must be {shape} for {c} channels and {hidden} hidden ones, got {given}")
    check_epilogue((x.shape[0], c, x.shape[2], x.shape[3]), b2, residual)
    check_options(x, w2, b2, residual, None, precision)
    return {}


def check_stem(
    *,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    activation: str,
    precision: str | None,
    out_layout: str | None,
) -> dict[str, Any]:
    """Validate a stem's call: its layers', and that they fit. Raises what ``conv_stem`` documents."""
    weights, biases = (w1, w2, w3), (b1, b2, b3)
    for i, bias in enumerate(biases, 1):
        if not isinstance(bias, Tensor):
            raise TypeError(f"b{i} must be a torch.Tensor, got {type(bias).__name__}")
    check_dense(
        x=x, weight=w1, bias=b1, activation=activation, stride=2, padding=1, precision=precision, out_layout=out_layout
    )
    if activation is None:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}: without one the layers are a single one")
    c, channels = x.shape[1], weights[0].shape[0]
    shapes = ((channels, c, 3, 3), (channels, 1, 3, 3), (channels, channels, 1, 1))
    for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True), 1):
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
            given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(
                f"w{i} must be {shape} for images of {c} channels and {channels} after the first layer, got {given}"
            )
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        check_epilogue((x.shape[0], channels, 1, 1), bias, None)
        check_options(x, weight, bias, None, activation, precision)
    return {}


def check_tensors(**tensors: object) -> None:
    """Raise TypeError for what is neither a tensor nor None; ``x`` and ``weight`` may not be None."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and not (tensor is None and name in ("bias", "residual")):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def check_options(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None, precision: str | None
) -> None:
    """Activation, precision, dtypes and devices."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be None or one of {', '.join(PRECISIONS)}, got {precision!r}")
    _check_dtypes(x, weight, bias, residual)
    if precision is not None and x.dtype != torch.float32:
        raise ValueError(f"precision={precision!r} is for float32 only, got {x.dtype}: pass precision=None")


def output_map(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of the output, at least one of each."""
    oh, ow = (output_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2))
    if oh < 1 or ow < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(
            f"the output would be empty ({oh}x{ow}): map {x.shape[2]}x{x.shape[3]}, kernel {kernel[0]}x{kernel[1]}, "
            f"padding {padding}, dilation {dilation}; pad more or use a smaller kernel"
        )
    return oh, ow


def check_epilogue(out_shape: tuple[int, int, int, int], bias: Tensor | None, residual: Tensor | None) -> None:
    """Shapes of what the epilogue adds."""
    if bias is not None and tuple(bias.shape) != (out_shape[1],):
        raise ValueError(f"bias must be ({out_shape[1]},), got shape {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != out_shape:
        raise ValueError(f"residual must have the output's shape {out_shape}, got {tuple(residual.shape)}")


def _check_dtypes(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    present = {name: t for name, t in tensors.items() if t is not None}
    places = {t.device for t in present.values()}
    if len(places) > 1:
        text = ", ".join(f"{name} on {t.device}" for name, t in present.items())
        raise ValueError(f"all tensors must be on one device, got {text}: move them with .to(x.device)")
    for name, t in present.items():
        if t.dtype not in DTYPES:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"{name} must be one of {allowed}, got {t.dtype}")
    if autocast_dtype(x) is not None:
        return
    if len({t.dtype for t in present.values()}) > 1:
        text = ", ".join(f"{name} {t.dtype}" for name, t in present.items())
        raise TypeError(
            f"all tensors must have one dtype outside autocast, got {text}: cast them, or run under torch.autocast"
        )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast casts a call on ``x`` to; None where it is off. As in torch, it leaves float64 alone."""
    device_type = x.device.type
    if device_type not in ("cuda", "cpu") or x.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
