"""The epilogue's activation, shared by every kernel, and an epilogue as a pass of its own."""

import triton
import triton.language as tl

from .pdl import follow


@triton.jit
def activate(acc, ACTIVATION: tl.constexpr, HALF: tl.constexpr = False):
    """``acc`` (any shape, float32) through None, "relu", "gelu" (exact: x * Phi(x)) or "silu" (x * sigmoid(x)).

    HALF: the result is rounded to 16 bits, for which a cheaper erf is exact enough.
    """
    if ACTIVATION == "relu":
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)  # NaN stays NaN, as in torch
    elif ACTIVATION == "gelu":
        if HALF:  # noqa: SIM108 - the other branch must not be compiled
            acc = _half_gelu(acc)
        else:
            acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    elif ACTIVATION == "silu":
        acc = acc / (1.0 + tl.exp(-acc))
    return acc


@triton.jit
def _half_gelu(x):
    """x * Phi(x) = max(x, 0) - |x| * erfc(|x| / sqrt(2)) / 2, from log2(erfc(|x| / sqrt(2))) as a polynomial in |x|.

    Fitted to 0 <= |x| <= 5.7: GELU is off by at most 5e-7, erfc by 1.3e-4 of itself, an eighth of float16's spacing. 11
    instructions an element where ``tl.erf`` takes 30 (compiled for sm_90).
    """
    a = tl.minimum(tl.abs(x), 32.0)  # beyond, erfc is 0: infinity times it would be NaN
    p = -1.1956977914451272e-06 * a + 5.1041075494140387e-05
    p = p * a - 0.0008634427795186639
    p = p * a + 0.008300392888486385
    p = p * a - 0.05363503843545914
    p = p * a - 0.4587066173553467
    p = p * a - 1.151180386543274
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(p * a - 1.0)


@triton.jit
def column_offsets(j, plane_v, stride_n, ONE_ROW: tl.constexpr, V: tl.constexpr):
    """Offset of each pixel of the batch within its channel, in elements. j [BN], plane and stride in vectors of V.

    ONE_ROW: the images of a channel lie one after another (channel-major memory, or one image).
    """
    if ONE_ROW:
        return j.to(tl.int64)
    vector = j // V
    image = (vector // plane_v).to(tl.int64)
    return (image * stride_n + vector % plane_v) * V + j % V


@triton.jit
def store_tile(acc, bias, residual, out, m, j, M, J, r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
               R_ROW: tl.constexpr, O_ROW: tl.constexpr, RV: tl.constexpr, OV: tl.constexpr,
               HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr):  # fmt: skip
    """out[m, j] = activation(acc + bias) + residual for channels m [BM] below M and pixels j [BN] below J; acc [BM, BN].

    Planes and strides of residual and out (N, M, ...) count vectors of RV and OV elements. Pixels beyond J are read and
    written up to a vector's end, which the rounded channel stride leaves room for.
    """
    m_mask = m < M
    if HAS_BIAS:
        acc += tl.load(bias + m, mask=m_mask, other=0.0).to(tl.float32)[:, None]
    acc = activate(acc, ACTIVATION, out.dtype.element_ty != tl.float32)
    row = m.to(tl.int64)[:, None]
    if HAS_RESIDUAL:
        mask = m_mask[:, None] & (j // RV * RV < J)[None, :]
        column = column_offsets(j, r_plane_v, stride_rn, R_ROW, RV)[None, :]
        acc += tl.load(residual + (row * stride_rc * RV + column), mask=mask, other=0.0).to(tl.float32)
    mask = m_mask[:, None] & (j // OV * OV < J)[None, :]
    column = column_offsets(j, o_plane_v, stride_on, O_ROW, OV)[None, :]
    tl.store(out + (row * stride_oc * OV + column), acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def epilogue_kernel(
    x, bias, residual, out, J, blocks,
    x_plane_v, stride_xn, stride_xc, r_plane_v, stride_rn, stride_rc, o_plane_v, stride_on, stride_oc,
    BLOCK: tl.constexpr, X_ROW: tl.constexpr, R_ROW: tl.constexpr, O_ROW: tl.constexpr,
    XV: tl.constexpr, RV: tl.constexpr, OV: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out = activation(x + bias) + residual, all (N, C, H, W) of dense planes with J = N * H * W pixels; bias (C,).

    ``out`` may be ``x``. Program = (channel, block of BLOCK pixels), blocks fastest. Planes and strides count vectors.
    """
    follow(PDL)
    pid = tl.program_id(0)
    c = (pid // blocks).to(tl.int64)
    j = pid % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    y = tl.load(x + (c * stride_xc * XV + column_offsets(j, x_plane_v, stride_xn, X_ROW, XV)), mask=j // XV * XV < J)
    y = y.to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias + c).to(tl.float32)
    y = activate(y, ACTIVATION, out.dtype.element_ty != tl.float32)
    if HAS_RESIDUAL:
        offsets = c * stride_rc * RV + column_offsets(j, r_plane_v, stride_rn, R_ROW, RV)
        y += tl.load(residual + offsets, mask=j // RV * RV < J).to(tl.float32)
    offsets = c * stride_oc * OV + column_offsets(j, o_plane_v, stride_on, O_ROW, OV)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=j // OV * OV < J)
