"""1x1 convolution of a whole batch as one matrix product, with its epilogue.

    out[o, j] = activation(sum over c of weight[o, c] * x[c, j] + bias[o]) + residual[o, j]

A *column* j is a pixel of an image, j = image * plane + pixel. Where the images of a channel lie one after another
(channel-major memory, or one image) column j is element j of the channel's row; otherwise images are ``stride_n`` apart.
"""

import triton
import triton.language as tl

from ...shared.epilogue import column_offsets, store_tile
from ...shared.pdl import follow


@triton.jit
def pointwise_kernel(
    x, weight, bias, residual, out,
    M, C, J, tiles_m, tiles_n, programs,
    x_plane_v, stride_xn, stride_xc, o_plane_v, stride_on, stride_oc, r_plane_v, stride_rn, stride_rc,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr, EVEN_K: tl.constexpr,
    X_ROW: tl.constexpr, O_ROW: tl.constexpr, R_ROW: tl.constexpr, XV: tl.constexpr, OV: tl.constexpr, RV: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, CAST_OPERANDS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """weight (M, C) and x (N, C, ...) -> out (N, M, ...), J = N * plane columns; bias (M,), residual like out.

    With TMA ``weight`` and ``x`` are tensor descriptors of (M, C) and (C, J) in blocks [BM, BK] and [BK, BN], otherwise
    pointers. Planes and strides of x, residual and out count vectors of XV, RV and OV elements.

    Program p owns the output tiles [BM, BN] p, p + programs, ...; tiles go down GROUP of the tiles_m rows before they
    go to the next column of tiles, so that neighbouring programs share both operands in L2.
    """
    follow(PDL)
    tiles = tiles_m * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, programs, flatten=TMA):
        in_group = GROUP * tiles_n
        first_m = tile // in_group * GROUP
        rows = tl.minimum(tiles_m - first_m, GROUP)
        m0 = (first_m + tile % in_group % rows) * BM
        j0 = tile % in_group // rows * BN
        m = m0 + tl.arange(0, BM)  # [BM]
        j = j0 + tl.arange(0, BN)  # [BN]
        m_mask = m < M
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        if TMA:
            for c in range(0, C, BK):
                w_block, x_block = weight.load([m0, c]), x.load([c, j0])
                if CAST_OPERANDS:
                    w_block, x_block = w_block.to(tl.float32), x_block.to(tl.float32)
                acc = tl.dot(w_block, x_block, acc, input_precision=PRECISION)
        else:
            k = tl.arange(0, BK)  # [BK]
            w_address = weight + (m.to(tl.int64) * C)[:, None] + k[None, :]  # [BM, BK]
            x_column = column_offsets(j, x_plane_v, stride_xn, X_ROW, XV)  # [BN]
            x_address = x + (k.to(tl.int64) * stride_xc * XV)[:, None] + x_column[None, :]  # [BK, BN]
            x_step = tl.cast(stride_xc, tl.int64) * XV  # a stride of 1 is a constant, which has no .to
            j_mask = j // XV * XV < J
            for c in range(0, C, BK):
                if EVEN_K:
                    w_block = tl.load(w_address + c, mask=m_mask[:, None], other=0.0)
                    x_block = tl.load(x_address + c * x_step, mask=j_mask[None, :], other=0.0)
                else:
                    inside = c + k < C  # [BK]
                    w_block = tl.load(w_address + c, mask=m_mask[:, None] & inside[None, :], other=0.0)
                    x_block = tl.load(x_address + c * x_step, mask=inside[:, None] & j_mask[None, :], other=0.0)
                if CAST_OPERANDS:
                    w_block, x_block = w_block.to(tl.float32), x_block.to(tl.float32)
                acc = tl.dot(w_block, x_block, acc, input_precision=PRECISION)
        store_tile(acc, bias, residual, out, m, j, M, J, r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
                   R_ROW, O_ROW, RV, OV, HAS_BIAS, ACTIVATION, HAS_RESIDUAL)  # fmt: skip
