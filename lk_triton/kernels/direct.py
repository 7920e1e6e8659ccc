"""Depthwise convolution on the FMA units: one lane computes eight adjacent outputs of a row.

Each lane loads aligned vectors of eight input columns, splits them into scalars in registers, and keeps eight
accumulators, so that a loaded column feeds up to eight multiply-adds. Exact footprint, IEEE float32 arithmetic.
"""

import triton
import triton.language as tl

from .epilogue import activate


@triton.jit
def _split8(block):
    """[BLOCK, 8] -> a tuple of its eight columns, each [BLOCK]; stays in registers."""
    block = tl.reshape(block, (block.shape[0], 2, 2, 2))
    even, odd = tl.split(block)  # [BLOCK, 2, 2]: columns with an even, an odd index
    c04_26, c15_37 = tl.split(even), tl.split(odd)
    c0, c4 = tl.split(c04_26[0])
    c2, c6 = tl.split(c04_26[1])
    c1, c5 = tl.split(c15_37[0])
    c3, c7 = tl.split(c15_37[1])
    return (c0, c1, c2, c3, c4, c5, c6, c7)


@triton.jit
def _join8(c):
    """The inverse of ``_split8``."""
    even = tl.join(tl.join(c[0], c[4]), tl.join(c[2], c[6]))
    odd = tl.join(tl.join(c[1], c[5]), tl.join(c[3], c[7]))
    return tl.reshape(tl.join(even, odd), (c[0].shape[0], 8))


@triton.jit
def _fma8(acc, columns, weight, FIRST: tl.constexpr, STEP: tl.constexpr):
    """Each of the eight accumulators plus weight times its input column FIRST + i * STEP."""
    return (
        acc[0] + columns[FIRST] * weight,
        acc[1] + columns[FIRST + STEP] * weight,
        acc[2] + columns[FIRST + 2 * STEP] * weight,
        acc[3] + columns[FIRST + 3 * STEP] * weight,
        acc[4] + columns[FIRST + 4 * STEP] * weight,
        acc[5] + columns[FIRST + 5 * STEP] * weight,
        acc[6] + columns[FIRST + 6 * STEP] * weight,
        acc[7] + columns[FIRST + 7 * STEP] * weight,
    )


@triton.jit
def direct_kernel(
    x, weight, bias, residual, out,
    N, H, W_v, OH, OW_v, lanes, blocks,
    stride_xn, stride_xc, stride_rn, stride_rc, stride_on, stride_oc,
    pad_h, KH,
    KW: tl.constexpr, PAD_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    BLOCK: tl.constexpr, FIRST_VECTOR: tl.constexpr, VECTORS: tl.constexpr, XV: tl.constexpr, OV: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """out = activation(conv(x) + bias) + residual.

    x (N, C, H, W), residual and out (N, C, OH, OW), all with dense planes; weight (C, 1, KH, KW); bias (C,).
    ``W_v`` and x's strides count vectors of XV elements, ``OW_v`` and the strides of residual and out vectors of OV.

    Program = (channel, block), blocks fastest. A channel's lanes are numbered (image, output row, group of eight
    columns), ``lanes`` groups a row; the program owns BLOCK of them. A lane whose first output reads input column
    x0 = 8 * STRIDE_W * lane loads the VECTORS aligned vectors from x0 + 8 * FIRST_VECTOR on. Rows of the filter are a
    run-time loop, its columns are unrolled.
    """
    pid = tl.program_id(0)
    c = (pid // blocks).to(tl.int64)
    o = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    lane = o % lanes
    row = o // lanes % OH
    image = (o // lanes // OH).to(tl.int64)
    o_mask = image < N
    W = W_v * XV
    OW = OW_v * OV
    x_plane = x + (image * stride_xn + c * stride_xc) * XV  # [BLOCK]

    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    acc = (zero, zero, zero, zero, zero, zero, zero, zero)
    for ky in range(KH):
        h = row * STRIDE_H + ky - pad_h  # [BLOCK]
        row_mask = o_mask & (h >= 0) & (h < H)
        x_row = x_plane + h * W_v * XV
        columns = ()
        for p in tl.static_range(VECTORS):
            column = (lane * STRIDE_W + (FIRST_VECTOR + p))[:, None] * 8 + tl.arange(0, 8)[None, :]  # [BLOCK, 8]
            mask = row_mask[:, None] & (column >= 0) & (column < W)
            block = tl.load(x_row[:, None] + column, mask=mask, other=0.0).to(tl.float32)  # [BLOCK, 8]
            columns = columns + _split8(block)
        for kx in tl.static_range(KW):
            w = tl.load(weight + (c * KH + ky) * KW + kx).to(tl.float32)
            acc = _fma8(acc, columns, w, kx - PAD_W - 8 * FIRST_VECTOR, STRIDE_W)

    y = _join8(acc)  # [BLOCK, 8]
    if HAS_BIAS:
        y += tl.load(bias + c).to(tl.float32)
    y = activate(y, ACTIVATION)
    column = lane[:, None] * 8 + tl.arange(0, 8)[None, :]  # [BLOCK, 8]
    mask = o_mask[:, None] & (column < OW)
    in_plane = (row * OW_v * OV)[:, None] + column
    if HAS_RESIDUAL:
        plane = (image * stride_rn + c * stride_rc) * OV
        y += tl.load(residual + plane[:, None] + in_plane, mask=mask, other=0.0).to(tl.float32)
    plane = (image * stride_on + c * stride_oc) * OV
    tl.store(out + plane[:, None] + in_plane, y.to(out.dtype.element_ty), mask=mask)
