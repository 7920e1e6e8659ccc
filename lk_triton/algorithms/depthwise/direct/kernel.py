"""Depthwise convolution on the FMA units: one lane computes eight adjacent outputs of one or more rows.

Each lane loads aligned vectors of input columns, splits them into scalars in registers, and keeps eight accumulators a
row, so that a loaded column feeds up to eight multiply-adds. Exact footprint, IEEE float32 arithmetic.
"""

import triton
import triton.language as tl

from ...shared.epilogue import activate
from ...shared.pdl import follow


@triton.jit
def _split(block, V: tl.constexpr):
    """[BLOCK, V] -> a tuple of its V columns, each [BLOCK]; stays in registers."""
    if V == 1:
        columns = (tl.reshape(block, (block.shape[0],)),)
    elif V == 2:
        c = tl.split(block)
        columns = (c[0], c[1])
    elif V == 4:
        even, odd = tl.split(tl.reshape(block, (block.shape[0], 2, 2)))  # [BLOCK, 2]: columns with an even, an odd index
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        columns = (c0, c1, c2, c3)
    else:
        even, odd = tl.split(tl.reshape(block, (block.shape[0], 4, 2)))  # [BLOCK, 4]
        e = _split(even, 4)
        o = _split(odd, 4)
        columns = (e[0], o[0], e[1], o[1], e[2], o[2], e[3], o[3])
    return columns


@triton.jit
def _join(c, FIRST: tl.constexpr, V: tl.constexpr):
    """Elements FIRST .. FIRST + V - 1 of a tuple of [BLOCK] as [BLOCK, V]: the inverse of ``_split``."""
    if V == 1:
        block = tl.reshape(c[FIRST], (c[FIRST].shape[0], 1))
    elif V == 2:
        block = tl.join(c[FIRST], c[FIRST + 1])
    elif V == 4:
        pairs = tl.join(tl.join(c[FIRST], c[FIRST + 2]), tl.join(c[FIRST + 1], c[FIRST + 3]))  # [BLOCK, 2, 2]
        block = tl.reshape(pairs, (c[FIRST].shape[0], 4))
    else:
        even = _join((c[0], c[2], c[4], c[6]), 0, 4)
        odd = _join((c[1], c[3], c[5], c[7]), 0, 4)
        block = tl.reshape(tl.join(even, odd), (c[0].shape[0], 8))
    return block


@triton.jit
def _input_row(x_row, column0, mask, W, FIRST: tl.constexpr, VECTORS: tl.constexpr, NEEDED: tl.constexpr, V: tl.constexpr):
    """Columns column0 + FIRST * V .. + VECTORS * V - 1 of an input row, a tuple of [BLOCK] float32, zero beside the row.

    x_row, column0, mask [BLOCK]; column0 and W are multiples of V, so that a vector lies inside the row or outside.
    Bit p of NEEDED says whether any tap reads vector p; the others are not loaded.
    """
    columns = ()
    for p in tl.static_range(VECTORS):
        if (NEEDED >> p) & 1:
            column = column0 + (FIRST + p) * V  # [BLOCK]
            inside = mask & (column >= 0) & (column < W)
            block = tl.load((x_row + column)[:, None] + tl.arange(0, V)[None, :], mask=inside[:, None], other=0.0)
            columns += _split(block.to(tl.float32), V)
        else:
            for _ in tl.static_range(V):
                columns += (tl.zeros((column0.shape[0],), dtype=tl.float32),)
    return columns


@triton.jit
def _filter_row(acc, columns, weight, KW: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr, TAP: tl.constexpr):
    """Add filter row ``weight`` (an address) to eight accumulators: output i of tap kx reads column
    FIRST + kx * TAP + i * STEP."""
    for kx in tl.static_range(KW):
        w = tl.load(weight + kx).to(tl.float32)
        acc = (
            acc[0] + columns[FIRST + kx * TAP] * w,
            acc[1] + columns[FIRST + kx * TAP + STEP] * w,
            acc[2] + columns[FIRST + kx * TAP + 2 * STEP] * w,
            acc[3] + columns[FIRST + kx * TAP + 3 * STEP] * w,
            acc[4] + columns[FIRST + kx * TAP + 4 * STEP] * w,
            acc[5] + columns[FIRST + kx * TAP + 5 * STEP] * w,
            acc[6] + columns[FIRST + kx * TAP + 6 * STEP] * w,
            acc[7] + columns[FIRST + kx * TAP + 7 * STEP] * w,
        )
    return acc


@triton.jit
def _store_row(acc, bias, residual, out, c, row, column0, mask, OH, OW, HAS_BIAS: tl.constexpr,
               ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """Epilogue and store of eight outputs of ``row`` from ``column0`` on, in vectors of V.

    ``residual`` and ``out`` [BLOCK]: address of the row; row, column0, mask [BLOCK].
    """
    for p in tl.static_range(8 // V):
        y = _join(acc, p * V, V)  # [BLOCK, V]
        if HAS_BIAS:
            y += tl.load(bias + c).to(tl.float32)
        y = activate(y, ACTIVATION)
        column = column0 + p * V  # [BLOCK]
        inside = (mask & (row < OH) & (column < OW))[:, None]
        if HAS_RESIDUAL:
            y += tl.load((residual + column)[:, None] + tl.arange(0, V)[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store((out + column)[:, None] + tl.arange(0, V)[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def direct_kernel(
    x, weight, bias, residual, out,
    N, H, W_v, OH, OW_v, lanes, row_groups, blocks, multiplier,
    stride_xn, stride_xc, stride_rn, stride_rc, stride_on, stride_oc,
    pad_h, KH,
    KW: tl.constexpr, PAD_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, FIRST_VECTOR: tl.constexpr, VECTORS: tl.constexpr, NEEDED: tl.constexpr,
    XV: tl.constexpr, OV: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out = activation(conv(x) + bias) + residual.

    x (N, C, H, W), residual and out (N, C * multiplier, OH, OW), all with dense planes; weight (C * multiplier, 1, KH, KW);
    bias (C * multiplier,). ``W_v`` and x's strides count vectors of XV elements, ``OW_v`` and the strides of residual and
    out vectors of OV.

    Program = (channel of out, block), blocks fastest. A channel's lanes are numbered (image, group of ROWS output rows,
    group of eight columns), ``lanes`` groups a row; the program owns BLOCK of them. A lane whose first output reads input
    column x0 = 8 * STRIDE_W * lane loads VECTORS vectors from x0 + FIRST_VECTOR * XV on, but for those that NEEDED says
    nobody reads. With ROWS = 1 the filter's rows are a run-time loop. With more, UNROLL = KH, STRIDE_H is a multiple of
    DILATION_H, and an input row that several output rows read is loaded once.
    """
    follow(PDL)
    pid = tl.program_id(0)
    c = (pid // blocks).to(tl.int64)
    o = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    lane = o % lanes
    row = o // lanes % row_groups * ROWS
    image = (o // lanes // row_groups).to(tl.int64)
    o_mask = image < N
    W = W_v * XV
    OW = OW_v * OV
    column0 = lane * (8 * STRIDE_W)
    x_plane = x + (image * stride_xn + c // multiplier * stride_xc) * XV  # [BLOCK]
    filter_ = weight + c * KH * KW
    FIRST: tl.constexpr = -PAD_W - FIRST_VECTOR * XV

    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    acc = (zero, zero, zero, zero, zero, zero, zero, zero)
    rows = (acc,)
    if ROWS == 1:
        for ky in range(KH):
            h = row * STRIDE_H + ky * DILATION_H - pad_h  # [BLOCK]
            inside = o_mask & (h >= 0) & (h < H)
            columns = _input_row(x_plane + h * W_v * XV, column0, inside, W, FIRST_VECTOR, VECTORS, NEEDED, XV)
            acc = _filter_row(acc, columns, filter_ + ky * KW, KW, FIRST, STRIDE_W, DILATION_W)
        rows = (acc,)
    else:
        # input row s of the group, counted in dilations, is filter row s - r * APART of output row r
        APART: tl.constexpr = STRIDE_H // DILATION_H
        for _ in tl.static_range(ROWS - 1):
            rows += (acc,)
        for s in tl.static_range(UNROLL + (ROWS - 1) * APART):
            h = row * STRIDE_H + s * DILATION_H - pad_h  # [BLOCK]
            inside = o_mask & (h >= 0) & (h < H)
            columns = _input_row(x_plane + h * W_v * XV, column0, inside, W, FIRST_VECTOR, VECTORS, NEEDED, XV)
            added = ()
            for r in tl.static_range(ROWS):
                acc = rows[r]
                if s >= r * APART and s < r * APART + UNROLL:
                    acc = _filter_row(acc, columns, filter_ + (s - r * APART) * KW, KW, FIRST, STRIDE_W, DILATION_W)
                added += (acc,)
            rows = added

    r_row = residual
    if HAS_RESIDUAL:
        r_row = residual + (image * stride_rn + c * stride_rc) * OV + row * OW_v * OV  # [BLOCK]
    out_row = out + (image * stride_on + c * stride_oc) * OV + row * OW_v * OV  # [BLOCK]
    for r in tl.static_range(ROWS):
        _store_row(rows[r], bias, r_row, out_row, c, row + r, lane * 8, o_mask, OH, OW,
                   HAS_BIAS, ACTIVATION, HAS_RESIDUAL, OV)  # fmt: skip
        out_row += OW_v * OV
        if HAS_RESIDUAL:
            r_row += OW_v * OV
