"""Depthwise convolution as one GEMM per channel, over tiles of the images, on tensor cores.

    Y[m, (r, j)]  +=  X[m, s, :] @ T[s - r, :, j]        s = 0 .. R + KH - 2

A *tile* m is one image and one group of R adjacent output rows. Step s reads one input row of every tile, over a
window of Kin columns. The Toeplitz matrix T[ky, k, j] = w[ky, k - j + offset], zero outside the filter, depends on
neither image nor row group: all tiles of a channel share it, and R x WT outputs per tile stack in the GEMM's N.
"""

import triton
import triton.language as tl

from ...shared.epilogue import activate
from ...shared.pdl import follow


@triton.jit
def pack_kernel(weight, bank, KH, KW, V: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr):
    """Write the bank of shifted filter rows: bank[c, ky, v, i] = w[c, ky, i - v], zero outside the filter.

    weight (C, KH, KW), bank (C, KH, V, L) with L >= KW + V - 1 a multiple of V. Program ``pid`` owns row (c, ky) = pid.
    Whatever column of T is wanted, it is an aligned run of one of the V copies.
    """
    row = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)  # [BLOCK], BLOCK >= V * L
    tap = o % L - o // L
    inside = (tap >= 0) & (tap < KW)
    value = tl.load(weight + row * KW + tap, mask=inside, other=0.0)
    tl.store(bank + row * (V * L) + o, value, mask=o < V * L)


NEVER = tl.constexpr(-(1 << 30))
"""A row so far below zero that no step brings it into any map or filter."""


@triton.jit
def _image_window(x_tile, row0, column, limit, pitch, D: tl.constexpr, KIN: tl.constexpr, MASK_COLUMNS: tl.constexpr):
    """Step 0's loads of D rows and the window's columns column .. column + KIN - 1; the K index is (row, column).

    x_tile [BM]: address of each tile's window in its first input row; row0 [BM]: that row, NEVER for no tile; ``limit``:
    columns left in the row. Returns addresses and input rows, NEVER where nothing is to be read, both [BM, D * KIN].
    """
    q = tl.arange(0, D * KIN)
    k = column + q % KIN
    row = row0[:, None] + (q // KIN)[None, :]  # [BM, D * KIN]
    if MASK_COLUMNS:
        row = tl.where((k < limit)[None, :], row, NEVER)
    return x_tile[:, None] + (q // KIN * pitch + k)[None, :], row


@triton.jit
def _bank_window(r, copy, t_start, column, D: tl.constexpr, KIN: tl.constexpr, V: tl.constexpr, L: tl.constexpr):
    """Step 0's loads of T for the same K index.

    r [BN]: output row of each column; copy [BN]: its copy of the filter row; t_start [BN]: index in that copy of the
    window's first column. Returns offsets into the channel's bank and filter rows, NEVER beside the filter, both
    [D * KIN, BN].
    """
    q = tl.arange(0, D * KIN)
    ky = (q // KIN)[:, None] - r[None, :]  # [D * KIN, BN]
    k = column + q % KIN
    i = k[:, None] + t_start[None, :]
    offset = (q // KIN * (V * L) + k)[:, None] + (copy * L + t_start - r * (V * L))[None, :]
    return offset, tl.where(i.to(tl.uint32) < L, ky, NEVER)


@triton.jit
def _accumulate(acc, x_tile, row0, t_bank, r, copy, t_start, column, limit, first, last, pitch, H, KH,
                D: tl.constexpr, KIN: tl.constexpr, SWAP: tl.constexpr, V: tl.constexpr, L: tl.constexpr,
                MASK_COLUMNS: tl.constexpr, PRECISION: tl.constexpr, CAST_OPERANDS: tl.constexpr):  # fmt: skip
    """All steps over the window's columns column .. column + KIN - 1, D input rows a step.

    acc [BM, BN] += X [BM, D * KIN] @ T [D * KIN, BN]; with SWAP acc [BN, BM] += T^T @ X^T.
    """
    x_address, x_row = _image_window(x_tile, row0, column, limit, pitch, D, KIN, MASK_COLUMNS)
    t_offset, t_row = _bank_window(r, copy, t_start, column, D, KIN, V, L)
    for s in range(first, last, D):
        # as unsigned numbers, rows below zero lie beyond the end: one comparison a load
        x = tl.load(x_address + s * pitch, mask=(x_row + s).to(tl.uint32) < H, other=0.0)  # [BM, D * KIN]
        t_mask = (t_row + s).to(tl.uint32) < KH
        t = tl.load(t_bank + s * (V * L) + t_offset, mask=t_mask, other=0.0)  # [D * KIN, BN]
        if CAST_OPERANDS:
            x, t = x.to(tl.float32), t.to(tl.float32)
        if SWAP:
            acc = tl.dot(tl.trans(t), tl.trans(x), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x, t, acc, input_precision=PRECISION)
    return acc


@triton.jit
def toeplitz_kernel(
    x, bank, bias, residual, out,
    N, H, W_v, OH, OW_v, groups, tile_blocks, column_tiles,
    stride_xn, stride_xc, stride_rn, stride_rc, stride_on, stride_oc,
    pad_h, pad_w, KH,
    R: tl.constexpr, WT: tl.constexpr, D: tl.constexpr, KIN_A: tl.constexpr, KIN_B: tl.constexpr,
    BM: tl.constexpr, GROUPS: tl.constexpr,
    SWAP: tl.constexpr, V: tl.constexpr, L: tl.constexpr, XV: tl.constexpr, OV: tl.constexpr,
    MASK_COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, CAST_OPERANDS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out = activation(conv(x) + bias) + residual, stride 1.

    x (N, C, H, W), residual and out (N, C, OH, OW), all with dense planes; bank (C, KH, V, L); bias (C,).
    ``W_v`` and x's strides count vectors of XV elements, ``OW_v`` and the strides of residual and out vectors of OV:
    the compiler learns alignment from the multiplication, which it would not from a run-time argument.

    Program = (channel, column tile, tile block), tile blocks fastest. It owns WT output columns of BM tiles; tile
    m = group * N + image, so that a block holds all images of adjacent row groups: of GROUPS, each with as many images,
    or of any where that is 0. The step loop covers the union of
    the input rows that its groups can see, D rows a step. The window of Kin = KIN_A + KIN_B columns starts at the
    tile's first input column, clamped to the row, so that it never carries more padding than it must. Its parts take
    turns, each with a step loop of its own and the same K: two dots in one loop would wait for each other.
    """
    follow(PDL)
    pid = tl.program_id(0)
    block = pid % tile_blocks
    column_tile = (pid // tile_blocks) % column_tiles
    c = (pid // tile_blocks // column_tiles).to(tl.int64)
    W = W_v * XV
    OW = OW_v * OV

    # tiles
    i = tl.arange(0, BM)
    if GROUPS == 0:
        group, image = (block * BM + i) // N, (block * BM + i) % N  # [BM]
    elif GROUPS == 1:
        blocks = N // BM
        group, image = i * 0 + block // blocks, block % blocks * BM + i
    else:
        group, image = block * GROUPS + i // (BM // GROUPS), i % (BM // GROUPS)
    image = image.to(tl.int64)
    m_mask = group < groups
    first_group = block * BM // N
    last_group = tl.minimum((block * BM + BM - 1) // N, groups - 1)

    # the window, clamped to the row and aligned to XV columns
    column0 = column_tile * WT
    window_v = tl.maximum(column0 - pad_w, 0) // XV
    window_v = tl.maximum(tl.minimum(window_v, W_v - (KIN_A + KIN_B) // XV), 0)
    window = window_v * XV
    pitch = W_v * XV
    row0 = group * R - pad_h  # [BM], input row of step 0
    x_tile = x + (((image * stride_xn + c * stride_xc) + window_v) * XV + row0 * pitch)  # [BM]
    row0 = tl.where(m_mask, row0, NEVER)

    # columns of T: n = (r, j) starts at filter tap `offset - j`, in the copy that aligns it
    n = tl.arange(0, R * WT)  # [BN]
    r, j = n // WT, n % WT
    tap = window - column0 + pad_w - j
    copy = (-tap) & (V - 1)
    t_start = (tap + copy) // V * V  # exact: tap + copy is a multiple of V
    t_bank = bank + c * KH * (V * L)

    acc = tl.zeros((R * WT, BM) if SWAP else (BM, R * WT), dtype=tl.float32)
    first = tl.maximum(pad_h - last_group * R, 0)
    last = tl.minimum(R + KH - 1, H + pad_h - first_group * R)
    # one step at least, masked where padding is all that is seen: with a loop that may be left out, ptxas lets every wgmma
    # wait for the one before
    last = tl.maximum(last, first + 1)
    tl.assume(first < last)
    acc = _accumulate(acc, x_tile, row0, t_bank, r, copy, t_start, 0, W - window, first, last, pitch, H, KH,
                      D, KIN_A, SWAP, V, L, MASK_COLUMNS, PRECISION, CAST_OPERANDS)  # fmt: skip
    if KIN_B > 0:
        acc = _accumulate(acc, x_tile, row0, t_bank, r, copy, t_start, KIN_A, W - window, first, last, pitch, H, KH,
                          D * KIN_A // KIN_B, KIN_B, SWAP, V, L, MASK_COLUMNS, PRECISION, CAST_OPERANDS)  # fmt: skip

    if SWAP:
        acc = tl.trans(acc)
    if HAS_BIAS:
        acc += tl.load(bias + c).to(tl.float32)
    acc = activate(acc, ACTIVATION)
    top = tl.where(m_mask, group * R, OH)  # [BM]
    ow = column0 + j  # [BN]
    mask = (top[:, None] + r[None, :] < OH) & (ow < OW)[None, :]  # [BM, BN]
    row = top * (OW_v * OV)
    in_tile = (r * (OW_v * OV) + ow)[None, :]
    if HAS_RESIDUAL:
        tile = (image * stride_rn + c * stride_rc) * OV + row
        acc += tl.load(residual + (tile[:, None] + in_tile), mask=mask, other=0.0).to(tl.float32)
    tile = (image * stride_on + c * stride_oc) * OV + row
    tl.store(out + (tile[:, None] + in_tile), acc.to(out.dtype.element_ty), mask=mask)
