"""Depthwise convolution of channels_last tensors on the FMA units: lanes lie side by side along the channels.

Each lane computes a vector of channels of a few adjacent outputs. A tap multiplies a vector of pixels by a vector of weights,
so that nothing is split or transposed and no layout is converted. Exact footprint, IEEE float32 arithmetic.
"""

import triton
import triton.language as tl

from ...shared.epilogue import activate
from ...shared.pdl import follow


@triton.jit
def _load(address, mask, V: tl.constexpr):
    """A vector of V elements from each address: [BLOCK] -> [BLOCK, V] float32, zero where masked."""
    return tl.load(address[:, None] + tl.arange(0, V)[None, :], mask=mask[:, None], other=0.0).to(tl.float32)


@triton.jit
def _input_row(x_row, column0, mask, W, C_v, SPAN: tl.constexpr, NEEDED: tl.constexpr, V: tl.constexpr):
    """Pixels column0 .. + SPAN - 1 of an input row, a tuple of [BLOCK, V] float32, zero beside the row.

    Bit p of NEEDED says whether any tap reads pixel p; the others are not loaded.
    """
    pixels = ()
    for p in tl.static_range(SPAN):
        if (NEEDED >> p) & 1:
            column = column0 + p  # [BLOCK]
            pixels += (_load(x_row + column * C_v * V, mask & (column >= 0) & (column < W), V),)
        else:
            pixels += (tl.zeros((column0.shape[0], V), dtype=tl.float32),)
    return pixels


@triton.jit
def _filter_row(acc, pixels, weight, mask, C_v, KW: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
                TAP: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """Add a filter row to COLUMNS accumulators; weight [BLOCK]: address of the channels' first tap of that row."""
    for kx in tl.static_range(KW):
        w = _load(weight + kx * C_v * V, mask, V)
        added = ()
        for i in tl.static_range(COLUMNS):
            added += (acc[i] + pixels[kx * TAP + i * STEP] * w,)
        acc = added
    return acc


@triton.jit
def direct_channels_last_kernel(
    x, weight, bias, residual, out,
    N, H, W, C_v, OH, OW, column_groups, row_groups, channel_blocks, pad_h, pad_w, KH,
    KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    UNROLL: tl.constexpr, SPAN: tl.constexpr, NEEDED: tl.constexpr,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, V: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out = activation(conv(x) + bias) + residual.

    x (N, H, W, C), residual and out (N, OH, OW, C), all dense; weight (KH, KW, C); bias (C,). C = C_v * V.

    Program = (block of positions, block of CHANNELS vectors of channels), the latter fastest. Positions are numbered (image,
    group of ROWS output rows, group of COLUMNS output columns); the program owns BLOCK / CHANNELS of them, and a lane one
    position and one vector. The filter's rows are a run-time loop with ROWS = 1. With more, UNROLL = KH, STRIDE_H is a
    multiple of DILATION_H, and an input row that several output rows read is loaded once.
    """
    follow(PDL)
    pid = tl.program_id(0)
    lane = tl.arange(0, BLOCK)  # [BLOCK]
    v = pid % channel_blocks * CHANNELS + lane % CHANNELS
    position = pid // channel_blocks * (BLOCK // CHANNELS) + lane // CHANNELS
    column = position % column_groups * COLUMNS
    row = (position // column_groups % row_groups * ROWS).to(tl.int64)
    image = (position // column_groups // row_groups).to(tl.int64)
    has_channel = v < C_v
    mask = has_channel & (image < N)
    x_image = x + (image * H * W * C_v + v) * V
    filter_ = weight + v * V
    column0 = column * STRIDE_W - pad_w

    zero = tl.zeros((BLOCK, V), dtype=tl.float32)
    acc = ()
    for _ in tl.static_range(COLUMNS):
        acc += (zero,)
    rows = (acc,)
    if ROWS == 1:
        for ky in range(KH):
            h = row * STRIDE_H + ky * DILATION_H - pad_h  # [BLOCK]
            pixels = _input_row(x_image + h * W * C_v * V, column0, mask & (h >= 0) & (h < H), W, C_v, SPAN, NEEDED, V)
            acc = _filter_row(acc, pixels, filter_ + ky * KW * C_v * V, has_channel, C_v, KW, COLUMNS, STRIDE_W, DILATION_W, V)
        rows = (acc,)
    else:
        # input row s of the group, counted in dilations, is filter row s - r * APART of output row r
        APART: tl.constexpr = STRIDE_H // DILATION_H
        for _ in tl.static_range(ROWS - 1):
            rows += (acc,)
        for s in tl.static_range(UNROLL + (ROWS - 1) * APART):
            h = row * STRIDE_H + s * DILATION_H - pad_h  # [BLOCK]
            pixels = _input_row(x_image + h * W * C_v * V, column0, mask & (h >= 0) & (h < H), W, C_v, SPAN, NEEDED, V)
            added = ()
            for r in tl.static_range(ROWS):
                acc = rows[r]
                if s >= r * APART and s < r * APART + UNROLL:
                    filter_row = filter_ + (s - r * APART) * KW * C_v * V
                    acc = _filter_row(acc, pixels, filter_row, has_channel, C_v, KW, COLUMNS, STRIDE_W, DILATION_W, V)
                added += (acc,)
            rows = added

    if HAS_BIAS:
        shift = _load(bias + v * V, has_channel, V)
    for r in tl.static_range(ROWS):
        first = ((image * OH + row + r) * OW + column) * C_v + v  # [BLOCK]
        for i in tl.static_range(COLUMNS):
            y = rows[r][i]  # [BLOCK, V]
            if HAS_BIAS:
                y += shift
            y = activate(y, ACTIVATION)
            at = (first + i * C_v) * V
            inside = mask & (row + r < OH) & (column + i < OW)
            if HAS_RESIDUAL:
                y += _load(residual + at, inside, V)
            tl.store((out + at)[:, None] + tl.arange(0, V)[None, :], y.to(out.dtype.element_ty), mask=inside[:, None])
