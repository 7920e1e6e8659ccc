"""A whole ConvFFN, two 1x1 convolutions around an activation, in one kernel: the hidden channels never leave the SM.

    out[o, j] = residual[o, j] + b2[o] + sum over h of w2[o, h] * activation(b1[h] + sum over c of w1[h, c] * x[c, j])

A column j is a pixel of the batch, as in ``pointwise``. Both products are formed transposed, with pixels as rows: what the
first leaves in registers is then an operand that the second takes from registers.
"""

import triton
import triton.language as tl

from ...shared.epilogue import activate, column_offsets, store_tile
from ...shared.pdl import follow


@triton.jit
def convffn_kernel(
    x, w1, b1, w2, b2, residual, out,
    J, x_plane_v, stride_xn, stride_xc, r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
    C: tl.constexpr, HIDDEN: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr, TMA: tl.constexpr,
    X_ROW: tl.constexpr, R_ROW: tl.constexpr, O_ROW: tl.constexpr, XV: tl.constexpr, RV: tl.constexpr, OV: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, CAST_OPERANDS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x, residual, out (N, C, ...), w1 (HIDDEN, C), b1 (HIDDEN,), w2 (C, HIDDEN), b2 (C,); 16-bit types, J columns.

    C is a power of two, HIDDEN a multiple of BH. With TMA ``x``, ``w1`` and ``w2`` are tensor descriptors of (C, J),
    (HIDDEN, C) and (C, HIDDEN) in blocks [C, BP], [BH, C] and [C, BH], otherwise pointers. Planes and strides count vectors.

    Program p owns all C outputs of pixels p * BP, ...; it walks through the hidden channels BH at a time.
    """
    follow(PDL)
    j0 = tl.program_id(0) * BP
    j = j0 + tl.arange(0, BP)  # [BP]
    c = tl.arange(0, C)  # [C]
    if TMA:
        x_tile = x.load([0, j0])  # [C, BP]
    else:
        x_column = column_offsets(j, x_plane_v, stride_xn, X_ROW, XV)  # [BP]
        x_address = x + (c.to(tl.int64) * stride_xc * XV)[:, None] + x_column[None, :]  # [C, BP]
        x_tile = tl.load(x_address, mask=(j // XV * XV < J)[None, :], other=0.0)
    acc = tl.zeros((BP, C), dtype=tl.float32)
    for h in range(0, HIDDEN, BH):
        if TMA:
            w1_block, w2_block = w1.load([h, 0]), w2.load([0, h])  # [BH, C] and [C, BH]
        else:
            k = h + tl.arange(0, BH)  # [BH]
            w1_block = tl.load(w1 + (k * C)[:, None] + c[None, :])  # [BH, C]
            w2_block = tl.load(w2 + (c * HIDDEN)[:, None] + k[None, :])  # [C, BH]
        hidden = _dot(tl.trans(x_tile), tl.trans(w1_block), tl.zeros((BP, BH), dtype=tl.float32), CAST_OPERANDS)
        hidden += tl.load(b1 + h + tl.arange(0, BH)).to(tl.float32)[None, :]  # [BP, BH]
        hidden = activate(hidden, ACTIVATION, True).to(w2_block.dtype)
        acc = _dot(hidden, tl.trans(w2_block), acc, CAST_OPERANDS)
    store_tile(tl.trans(acc), b2, residual, out, c, j, C, J, r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
               R_ROW, O_ROW, RV, OV, True, None, HAS_RESIDUAL)  # fmt: skip


@triton.jit
def _dot(a, b, acc, CAST: tl.constexpr):
    """acc + a @ b. CAST: through float32, for the interpreter, whose bfloat16 has no products."""
    if CAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc)
