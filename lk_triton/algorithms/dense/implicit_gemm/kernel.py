"""A network's first convolution: dense, few input channels, as one matrix product over its taps.

    out[o, j] = activation(sum over t of weight[o, t] * x[c, h(j, ky), w(j, kx)] + bias[o]) + residual[o, j]

A tap t = (c, ky, kx) is a place of the filter, KP the power of two that all of them fit in: 3x3 on 3 channels has 27 taps,
KP = 32, so that the sum is a single ``tl.dot``. Column j is an output pixel of an image.
"""

import triton
import triton.language as tl

from ...shared.epilogue import store_tile
from ...shared.pdl import follow


@triton.jit
def stem_kernel(
    x, weight, bias, residual, out,
    M, J, H, W, OW, plane, tiles_m, stride_xn, stride_xc,
    r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
    TAPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    R_ROW: tl.constexpr, O_ROW: tl.constexpr, RV: tl.constexpr, OV: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, CAST_OPERANDS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x (N, C, H, W) of dense planes, weight (M, C, KH, KW) -> out (N, M, OH, OW), J = N * OH * OW, plane = OH * OW.

    Program = (block of BN pixels, block of BM channels), channels fastest: they gather the same pixels.
    """
    follow(PDL)
    pid = tl.program_id(0)
    m = pid % tiles_m * BM + tl.arange(0, BM)  # [BM]
    j = pid // tiles_m * BN + tl.arange(0, BN)  # [BN]
    t = tl.arange(0, KP)  # [KP]
    image, pixel = (j // plane).to(tl.int64), j % plane
    h = (pixel // OW * STRIDE_H - PAD_H)[None, :] + (t // KW % KH)[:, None]  # [KP, BN]
    w = (pixel % OW * STRIDE_W - PAD_W)[None, :] + (t % KW)[:, None]
    inside = (t < TAPS)[:, None] & (j < J)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    c = (t // (KH * KW)).to(tl.int64)
    pixels = tl.load(x + ((c * stride_xc)[:, None] + (image * stride_xn)[None, :] + (h * W + w)), mask=inside, other=0.0)
    taps = (m < M)[:, None] & (t < TAPS)[None, :]
    filters = tl.load(weight + (m.to(tl.int64)[:, None] * TAPS + t[None, :]), mask=taps, other=0.0)  # [BM, KP]
    if CAST_OPERANDS:
        filters, pixels = filters.to(tl.float32), pixels.to(tl.float32)
    acc = tl.dot(filters, pixels, input_precision=PRECISION)  # [BM, BN]
    store_tile(acc, bias, residual, out, m, j, M, J, r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
               R_ROW, O_ROW, RV, OV, HAS_BIAS, ACTIVATION, HAS_RESIDUAL)  # fmt: skip
