"""Memory orders of an (N, C, H, W) tensor, and allocation in them. Shapes stay (N, C, H, W) whatever the order.

- ``nchw``: dense planes; the output is contiguous. Channel slices of a larger tensor are read in place.
- ``channel_major``: memory order C, N, H, W. Strides (H*W, S, W, 1) with S = N*H*W rounded up to 64 elements, so
  that one channel of the whole batch is one aligned row.
- ``channels_last``: torch's. Most kernels want dense planes, so it costs a conversion on the way in and one on the way out.

Strides of dimensions of size 1 carry no information and are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor

CHANNEL_STRIDE_MULTIPLE = 64


def layout_of(x: Tensor) -> str:
    """The layout that an operation on ``x`` (N, C, H, W) keeps."""
    n, c, h, w = x.shape
    if x.numel() == 0:
        return "nchw"
    if has_dense_planes(x):
        if c > 1 and n > 1 and x.stride(0) == h * w and x.stride(1) >= n * h * w:
            return "channel_major"
        # of one image, only the rounded channel stride tells
        if c > 1 and n == 1 and x.stride(1) == row_length(n, h, w) != h * w:
            return "channel_major"
        return "nchw"
    wanted = strides((n, c, h, w), "channels_last")  # vmap cannot tell whether a tensor is contiguous in it
    in_order = all(x.shape[i] == 1 or x.stride(i) == wanted[i] for i in range(4))
    return "channels_last" if in_order else "nchw"


def has_dense_planes(x: Tensor) -> bool:
    """Whether every (H, W) plane of ``x`` lies row after row without gaps."""
    h, w = x.shape[2:]
    return (w == 1 or x.stride(3) == 1) and (h == 1 or x.stride(2) == w)


def with_dense_planes(x: Tensor) -> Tensor:
    """``x`` itself where its planes are dense, otherwise one contiguous copy."""
    return x if has_dense_planes(x) else x.contiguous()


def strides(shape: tuple[int, ...], layout: str | None) -> tuple[int, ...]:
    """Strides, in elements, of a fresh tensor of ``shape`` in ``layout``; None, of a tensor that is no map: contiguous."""
    if layout in ("channels_last", "channel_major"):
        n, c, h, w = shape
        return (h * w * c, 1, w * c, c) if layout == "channels_last" else (h * w, row_length(n, h, w), w, 1)
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def row_length(n: int, h: int, w: int) -> int:
    """Elements from one channel to the next in ``channel_major``: N*H*W rounded up to 64."""
    return -(-n * h * w // CHANNEL_STRIDE_MULTIPLE) * CHANNEL_STRIDE_MULTIPLE


def rows_of(x: Tensor) -> Tensor | None:
    """``x`` (N, C, H, W) as a matrix (C, N*H*W) of its channels without a copy, or None where there is none."""
    n, c, h, w = x.shape
    if not has_dense_planes(x) or (n > 1 and x.stride(0) != h * w):
        return None
    return x.as_strided((c, n * h * w), (x.stride(1) if c > 1 else row_length(n, h, w), 1))


def empty(shape: tuple[int, ...], layout: str | None, like: Tensor) -> Tensor:
    """An uninitialized tensor of ``shape`` in ``layout`` (see ``strides``), with the dtype and device of ``like``.

    Whole rows in ``channel_major``: kernels may write the rounding behind the last one too.
    """
    if layout == "channel_major":
        n, c, h, w = shape
        rows = torch.empty(c * row_length(n, h, w), dtype=like.dtype, device=like.device)
        return rows.as_strided(shape, strides(shape, layout))
    return torch.empty_strided(shape, strides(shape, layout), dtype=like.dtype, device=like.device)


def allocator(shape: tuple[int, ...], layout: str | None, like: Tensor) -> Callable[[], Tensor]:
    """``empty`` with the same arguments, worked out before."""
    fresh, options = strides(shape, layout), {"dtype": like.dtype, "device": like.device}
    if layout != "channel_major" or fresh[1] == shape[0] * shape[2] * shape[3]:
        return partial(torch.empty_strided, shape, fresh, **options)
    elements = shape[1] * fresh[1]
    return lambda: torch.empty(elements, **options).as_strided(shape, fresh)


def conform(y: Tensor, layout: str | None) -> Tensor:
    """``y`` in ``layout``: itself where its strides already are those of a fresh tensor, otherwise a copy."""
    shape = tuple(y.shape)
    return y if y.stride() == strides(shape, layout) else empty(shape, layout, y).copy_(y)
