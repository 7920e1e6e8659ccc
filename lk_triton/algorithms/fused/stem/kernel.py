"""The first three layers of a network's stem in one kernel: dense 3x3 with stride 2, depthwise 3x3, 1x1; both maps between
them stay on the SM.

    x1[i, r, q] = f(sum over t of w1[i, t] * x[c, 2r - 1 + ky, 2q - 1 + kx] + b1[i])     inside the map, beyond it 0
    x2[i, r, q] = f(sum over dy, dx of w2[i, dy, dx] * x1[i, r - 1 + dy, q - 1 + dx] + b2[i])
    out[o, r, q] = f(sum over i of w3[o, i] * x2[i, r, q] + b3[o])

f is the activation, t = (c, ky, kx) a tap. A program walks down the rows of x1. For each of the three column shifts dx it
gathers the pixels of the taps, [KP, BP], and one product makes x1 from them; a row of ones behind the taps adds the bias, and
is 0 outside x1's map, as the pixels are there. Each x1 goes at once into the three rows of x2 that it touches.
"""

import triton
import triton.language as tl

from ...shared.epilogue import activate
from ...shared.pdl import follow


@triton.jit
def convstem_kernel(
    x, w1, b1, w2, b2, w3, b3, out,
    S, H, W, OH, OW, rows, strips, stride_xn, stride_xc, stride_on_v, stride_oc_v, OW_v,
    M: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, KP: tl.constexpr, BP: tl.constexpr, OV: tl.constexpr,
    ACTIVATION: tl.constexpr, CAST_OPERANDS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """x (N, TAPS // 9, H, W), w1 (M, TAPS // 9, 3, 3), w2 (M, 1, 3, 3), w3 (M, M, 1, 1), biases (M,) -> out (N, M, OH, OW).

    16-bit types, dense planes; M <= C, a power of two. Strides of out and OW_v count vectors of OV elements.

    An image has ``strips`` strips of ``rows`` output rows. The columns of all strips, S = N * strips * OW, lie in one
    row, of which program p owns BP, all channels, from the first to the last row of their strips.
    """
    follow(PDL)
    s = tl.program_id(0) * BP + tl.arange(0, BP)  # [BP]
    strip = s // OV // OW_v
    q = s // OV % OW_v * OV + s % OV
    image, top = (strip // strips).to(tl.int64), strip % strips * rows
    t, i = tl.arange(0, KP), tl.arange(0, C)  # [KP], [C]
    within = i < M
    bias1 = tl.load(b1 + i, mask=within, other=0.0)
    w1_taps = tl.load(w1 + (i * TAPS)[:, None] + t[None, :], mask=within[:, None] & (t < TAPS)[None, :], other=0.0)
    w1_block = tl.where((t == TAPS)[None, :], bias1[:, None], w1_taps)  # [C, KP]
    w3_block = tl.load(w3 + (i * M)[:, None] + i[None, :], mask=within[:, None] & within[None, :], other=0.0)  # [C, C]
    # the row of ones stands where the middle tap does: inside x1's map, and only there, that is inside x
    ky, kx = tl.where(t < TAPS, t // 3 % 3, 1), tl.where(t < TAPS, t % 3, 1)
    w = (2 * q - 3)[None, :] + kx[:, None]  # [KP, BP], of the column on the left, dx = 0
    # bit 4 * dx + ky, where the column is inside; pixels of columns behind x1's map count as outside, of rows too
    w_end = tl.minimum(2 * OW - 2 + kx, W)[:, None]
    code = tl.zeros((KP, BP), dtype=tl.int32)
    for d in tl.static_range(3):
        code |= tl.where((w >= -2 * d) & (w < w_end - 2 * d), (1 << 4 * d) << ky[:, None], 0)
    code = tl.where((s < S)[None, :] & (t <= TAPS)[:, None], code, 0)
    h = 2 * top - 3  # [BP], of the top tap in the row above the strip, r = 0
    tap, one = (t < TAPS)[:, None], (t == TAPS)[:, None]
    ones = one.to(tl.float32).to(x.dtype.element_ty)
    pixels = x + (image * stride_xn + h * W)[None, :] + ((t // 9).to(tl.int64) * stride_xc + ky * W)[:, None] + w
    out_c = out + (image * (stride_on_v * OV) + q)[None, :] + (i.to(tl.int64) * (stride_oc_v * OV))[:, None]  # [C, BP]

    above = tl.zeros((C, BP), dtype=tl.float32)  # row r - 2 of x2; rows above the strip are not stored
    here = above  # row r - 1
    for r in range(rows + 2):
        seen = _inside(h, 0, H, OH) | _inside(h, 1, H, OH) | _inside(h, 2, H, OH)  # [BP]
        below = _column(b2, i, within) + tl.zeros((C, BP), dtype=tl.float32)  # row r
        for dx in range(3):
            inside = (code & (seen << 4 * dx)[None, :]) != 0  # [KP, BP]
            patch = tl.load(pixels + 2 * dx, mask=inside & tap, other=0.0)
            patch = tl.where(inside & one, ones, patch)
            x1 = activate(_dot(w1_block, patch, CAST_OPERANDS), ACTIVATION, True)  # [C, BP]
            above += _column(w2 + (6 + dx), i * 9, within) * x1
            here += _column(w2 + (3 + dx), i * 9, within) * x1
            below += _column(w2 + dx, i * 9, within) * x1
        if r >= 2:
            x2 = activate(above, ACTIVATION, True).to(w3_block.dtype)
            y = activate(_dot(w3_block, x2, CAST_OPERANDS) + _column(b3, i, within), ACTIVATION, True)
            o = top + r - 2
            stored = within[:, None] & ((s < S) & (o < OH))[None, :]
            tl.store(out_c + (o * OW_v * OV)[None, :], y.to(out.dtype.element_ty), mask=stored)
        above, here = here, below
        pixels += 2 * W
        h += 2


@triton.jit
def _column(values, offsets, within):
    """One number a channel, [C, 1], read again in every row: registers for all of them would be too many."""
    return tl.load(values + offsets, mask=within, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _inside(h, ky: tl.constexpr, H, OH):
    """Bit ky, where row h + ky of x is inside."""
    return tl.where((h + ky >= 0) & (h + ky < tl.minimum(2 * OH - 2 + ky, H)), 1 << ky, 0)


@triton.jit
def _dot(a, b, CAST: tl.constexpr):
    """a @ b. CAST: through float32, for the interpreter, whose bfloat16 has no products."""
    if CAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b)
