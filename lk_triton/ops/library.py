"""The ops of the library ``lk_triton``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import dense, depthwise, ffn, stem
from .registration import differentiate_convolution, register
from .validation import check_dense, check_depthwise, check_ffn, check_stem

depthwise_conv2d = register(
    depthwise.SCHEMA, depthwise.problem_of, validate=check_depthwise, backward=differentiate_convolution
)
dense_conv2d = register(dense.SCHEMA, dense.problem_of, validate=check_dense, backward=differentiate_convolution)


def _ffn_by_layers(
    *, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor | None, activation: str,
    out_layout: str | None, **options: Any,
) -> Tensor:  # fmt: skip
    options |= {"stride": 1, "padding": 0, "algorithm": "auto"}
    hidden = dense_conv2d(x=x, weight=w1, bias=b1, activation=activation, **options)
    return dense_conv2d(x=hidden, weight=w2, bias=b2, residual=residual, out_layout=out_layout, **options)


def _stem_by_layers(
    *, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, activation: str,
    precision: str | None, out_layout: str | None, **_: Any,
) -> Tensor:  # fmt: skip
    each: dict[str, Any] = {"activation": activation, "algorithm": "auto"}
    dense: dict[str, Any] = {**each, "precision": precision, "out_layout": out_layout}
    y = dense_conv2d(x=x, weight=w1, bias=b1, stride=2, padding=1, **dense)
    y = depthwise_conv2d(x=y, weight=w2, bias=b2, stride=1, padding=1, dilation=1, **each)
    return dense_conv2d(x=y, weight=w3, bias=b3, stride=1, padding=0, **dense)


conv_ffn = register(ffn.SCHEMA, ffn.problem_of, validate=check_ffn, by_layers=_ffn_by_layers)
conv_stem = register(stem.SCHEMA, stem.problem_of, validate=check_stem, by_layers=_stem_by_layers)
