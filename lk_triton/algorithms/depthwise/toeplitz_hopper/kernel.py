"""``toeplitz`` with the Toeplitz matrix of a channel resident in shared memory, for wgmma. In Gluon, because Triton itself
cannot index shared memory as an operand.

    Y[m, (r, j)]  +=  X[m, i, (d, k)] @ T[s - r + d, k, j]       s = i + pad_h - g R: one product for the input rows i + d

``toeplitz`` copies T's blocks [Kin, WT] from L1 at every step, once for each of R output rows; here each filter row is copied
once a program. Rows lie in reversed order, with zero blocks at both ends: block q holds ky = S_HI - q + d, [WT, D * KIN], so
that the operand of a step, for all R output rows, is one contiguous window of R * WT rows from block S_HI - s on. Sliding the
filter costs one addition to a descriptor.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from ...shared.epilogue import activate


@gluon.constexpr_function
def _shared(k):
    """Layout of rows of k elements of two bytes, k contiguous."""
    return gl.NVMMASharedLayout(swizzle_byte_width=min(2 * k, 128), element_bitwidth=16, rank=2)


@gluon.constexpr_function
def _owner(r, wt, k):
    """Layout of a block [wt, k] that owns the memory of r blocks, its own first: the last bases lead to no element.

    A view may have all that its source owns, while ``index`` steps by elements, as allocation counts them: so the view of what
    block q owns is a window of r blocks, and the next window begins one block later. Elements are touched through ``_shared``.
    """
    columns = [[0, 1 << bit] for bit in range(k.bit_length() - 1)]
    rows = [[1 << bit, 0] for bit in range(wt.bit_length() - 1)]
    return gl.SharedLinearLayout(columns + rows + [[0, 0]] * (r.bit_length() - 1), alignment=8 * min(2 * k, 128))


@gluon.constexpr_function
def _copies(k, v, warps):
    """Layout of copies of v elements into rows of k."""
    lanes = min(k // v, 32)
    return gl.BlockedLayout([1, v], [32 // lanes, lanes], [warps, 1], [1, 0])


@gluon.constexpr_function
def _mma(n, warps):
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[warps, 1], instr_shape=[16, n, 16])


@gluon.jit
def _window(t_smem, q, R: gl.constexpr, WT: gl.constexpr, K: gl.constexpr):
    """Blocks q .. q + R - 1 of T as one operand [R * WT, K]."""
    return t_smem.index(q)._reinterpret(t_smem.dtype, [R * WT, K], _shared(K))


@gluon.jit
def _fill(t_smem, bank_c, column, tap0, KH, S_HI, NQ: gl.constexpr, QB: gl.constexpr, R: gl.constexpr, WT: gl.constexpr,
          D: gl.constexpr, KIN: gl.constexpr, V: gl.constexpr, L: gl.constexpr):  # fmt: skip
    """All NQ blocks of T, QB at a time, window columns column .. column + KIN - 1, asynchronously; zeros beside the filter."""
    layout: gl.constexpr = _copies(D * KIN, V, gl.num_warps())
    q = gl.arange(0, D * KIN, gl.SliceLayout(0, layout))
    row = gl.arange(0, QB * WT, gl.SliceLayout(1, layout))
    tap = tap0 - row % WT
    copy = (-tap) & (V - 1)
    t_start = (tap + copy) // V * V
    i = gl.expand_dims(column + q % KIN, 0) + gl.expand_dims(t_start, 1)  # [QB * WT, D * KIN]
    inside = i.to(gl.uint32, bitcast=True) < L
    ky = S_HI + gl.expand_dims(q // KIN, 0) - gl.expand_dims(row // WT, 1)
    offset = gl.expand_dims(copy * L, 1) + i + ky * (V * L)
    for b in range(0, NQ, QB):
        mask = inside & ((ky - b).to(gl.uint32, bitcast=True) < KH)
        blocks = t_smem.index(b)._reinterpret(t_smem.dtype, [R // QB, QB * WT, D * KIN], _shared(D * KIN))
        async_copy.async_copy_global_to_shared(blocks.index(0), bank_c + (offset - b * (V * L)), mask=mask)


@gluon.jit
def _rows(block, image_blocks, H, pad_h, KH, R: gl.constexpr, D: gl.constexpr):
    """Group, image block and the input rows [lo, hi) that a tile block needs."""
    g = block // image_blocks
    lo = gl.maximum(g * R - pad_h, 0)
    hi = gl.minimum(g * R + R + KH - 1 - pad_h, H)
    return g, block % image_blocks, lo, gl.maximum(hi, lo + 1)


@gluon.jit
def _image(x_c, stride_xn, pitch, column, W, BM: gl.constexpr, D: gl.constexpr, KIN: gl.constexpr, XV: gl.constexpr):
    """Addresses of image block 0 and row 0 [BM, D * KIN]; images [BM, 1], whether columns exist and rows [1, D * KIN]."""
    layout: gl.constexpr = _copies(D * KIN, XV, gl.num_warps())
    q = gl.arange(0, D * KIN, gl.SliceLayout(0, layout))
    m = gl.arange(0, BM, gl.SliceLayout(1, layout))
    k = column + q % KIN
    images = x_c + m.to(gl.int64) * stride_xn * XV
    return (
        gl.expand_dims(images, 1) + gl.expand_dims(q // KIN * pitch + k, 0),
        gl.expand_dims(m, 1),
        gl.expand_dims(k < W, 0),
        gl.expand_dims(q // KIN, 0),
    )


@gluon.jit
def _copy(x_smem, address, m, columns, d, shift, ib, i, N, H, BM: gl.constexpr, D: gl.constexpr, MASK_N: gl.constexpr,
          MASK_X: gl.constexpr, SYNC: gl.constexpr):  # fmt: skip
    """One step's loads, unmasked where all exist; SYNC: through registers, for elements that are narrower than 4 bytes."""
    MASKED: gl.constexpr = MASK_N or MASK_X or D > 1
    if MASKED:
        mask = columns & (m < N - ib * BM)
        if D > 1:
            mask = mask & (d < H - i)
    if SYNC:
        if MASKED:
            x_smem.store(gl.load(address + shift, mask=mask, other=0.0))
        else:
            x_smem.store(gl.load(address + shift))
    elif MASKED:
        async_copy.async_copy_global_to_shared(x_smem, address + shift, mask=mask)
    else:
        async_copy.async_copy_global_to_shared(x_smem, address + shift)


@gluon.jit
def _store(acc, residual_c, bias_c, out_c, g, ib, column0, N, OH, OW, stride_rn, stride_on, BM: gl.constexpr, R: gl.constexpr,
           WT: gl.constexpr, OV: gl.constexpr, STORE: gl.constexpr, ACTIVATION: gl.constexpr,
           HAS_RESIDUAL: gl.constexpr):  # fmt: skip
    """activation(acc + bias) + residual, rounded, through shared memory into vectors of STORE elements along a row."""
    lanes: gl.constexpr = min(32, R * WT // STORE)
    layout: gl.constexpr = gl.BlockedLayout([1, STORE], [32 // lanes, lanes], [gl.num_warps(), 1], [1, 0])
    m = gl.arange(0, BM, gl.SliceLayout(1, layout)) + ib * BM  # [BM]
    n = gl.arange(0, R * WT, gl.SliceLayout(0, layout))  # [BN]
    r, ow = n // WT, column0 + n % WT
    mask = gl.expand_dims((g * R + r < OH) & (ow < OW), 0) & gl.expand_dims(m < N, 1)
    in_plane = gl.expand_dims((g * R + r) * OW + ow, 0)
    acc = activate(acc + bias_c, ACTIVATION, True)
    if HAS_RESIDUAL:
        image = residual_c + m.to(gl.int64) * stride_rn * OV
        added = gl.load(gl.expand_dims(image, 1) + in_plane, mask=mask, other=0.0)
        acc += gl.convert_layout(added, acc.type.layout).to(gl.float32)
    y = gl.convert_layout(acc.to(out_c.dtype.element_ty), layout)
    image = out_c + m.to(gl.int64) * stride_on * OV
    gl.store(gl.expand_dims(image, 1) + in_plane, y, mask=mask)


@gluon.jit
def _work(x_a, x_b, t_a, t_b, x_c, residual_c, out_c, bias_c, first, SPLIT, blocks, image_blocks,
          N, H, W, OH, OW, stride_xn, stride_rn, stride_on, pad_h, KH, window, column0, S_HI,
          R: gl.constexpr, WT: gl.constexpr, D: gl.constexpr, KIN_A: gl.constexpr, KIN_B: gl.constexpr,
          BM: gl.constexpr, XV: gl.constexpr, OV: gl.constexpr, STAGES: gl.constexpr, STORE: gl.constexpr,
          MASK_N: gl.constexpr, MASK_X: gl.constexpr, ACTIVATION: gl.constexpr, HAS_RESIDUAL: gl.constexpr):  # fmt: skip
    """Tile blocks first, first + SPLIT, ...; x buffers [STAGES, BM, K] are this caller's own. T's copies may be in flight.

    Loads run ahead across tile blocks, so that the pipeline never drains.
    """
    warps: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = _mma(R * WT, warps)
    BN: gl.constexpr = R * WT
    xa, ma, ca, da = _image(x_c, stride_xn, W, window, W, BM, D, KIN_A, XV)
    if KIN_B > 0:
        xb, mb, cb, db = _image(x_c, stride_xn, W, window + KIN_A, W, BM, D, KIN_B, XV)

    SYNC: gl.constexpr = XV == 1
    p_block = gl.minimum(first, blocks - 1)
    _g, p_ib, p_i, p_hi = _rows(p_block, image_blocks, H, pad_h, KH, R, D)
    p_slot = 0
    # the first STAGES - 2 steps; past the last step the last block's are read again, so that no load needs a condition
    if not SYNC:
        for _step in gl.static_range(STAGES - 2):
            shift = (p_ib * BM).to(gl.int64) * stride_xn * XV + p_i * W
            _copy(x_a.index(p_slot), xa, ma, ca, da, shift, p_ib, p_i, N, H, BM, D, MASK_N, MASK_X, SYNC)
            if KIN_B > 0:
                _copy(x_b.index(p_slot), xb, mb, cb, db, shift, p_ib, p_i, N, H, BM, D, MASK_N, MASK_X, SYNC)
            async_copy.commit_group()
            p_slot += 1
            p_i += D
            if p_i >= p_hi:
                p_block = gl.where(p_block + SPLIT < blocks, p_block + SPLIT, p_block)
                _g, p_ib, p_i, p_hi = _rows(p_block, image_blocks, H, pad_h, KH, R, D)

    slot = 0
    for block in range(first, blocks, SPLIT):
        g, ib, lo, hi = _rows(block, image_blocks, H, pad_h, KH, R, D)
        gl.assume(lo < hi)
        acc = gl.zeros([BM, BN], gl.float32, layout)
        for i in range(lo, hi, D):
            if SYNC:
                shift = (ib * BM).to(gl.int64) * stride_xn * XV + i * W
                _copy(x_a.index(slot), xa, ma, ca, da, shift, ib, i, N, H, BM, D, MASK_N, MASK_X, SYNC)
                if KIN_B > 0:
                    _copy(x_b.index(slot), xb, mb, cb, db, shift, ib, i, N, H, BM, D, MASK_N, MASK_X, SYNC)
                async_copy.commit_group()  # T's copies
                async_copy.wait_group(0)
            else:
                # this step's rows have landed, and every warp has passed its wait for the step before the last
                async_copy.wait_group(STAGES - 3)
            # wgmma reads through the async proxy: Triton 3.6 puts no fence behind asynchronous copies, later ones do
            fence_async_shared()
            q = S_HI - (i + pad_h - g * R)
            b = _window(t_a, q, R, WT, D * KIN_A)
            acc = warpgroup_mma(x_a.index(slot), b.permute((1, 0)), acc, is_async=True)
            if KIN_B > 0:
                b = _window(t_b, q, R, WT, D * KIN_B)
                acc = warpgroup_mma(x_b.index(slot), b.permute((1, 0)), acc, is_async=True)
            slot = gl.where(slot == STAGES - 1, 0, slot + 1)

            if not SYNC:
                shift = (p_ib * BM).to(gl.int64) * stride_xn * XV + p_i * W
                _copy(x_a.index(p_slot), xa, ma, ca, da, shift, p_ib, p_i, N, H, BM, D, MASK_N, MASK_X, SYNC)
                if KIN_B > 0:
                    _copy(x_b.index(p_slot), xb, mb, cb, db, shift, p_ib, p_i, N, H, BM, D, MASK_N, MASK_X, SYNC)
                async_copy.commit_group()
                p_slot = gl.where(p_slot == STAGES - 1, 0, p_slot + 1)
                p_i += D
                if p_i >= p_hi:
                    p_block = gl.where(p_block + SPLIT < blocks, p_block + SPLIT, p_block)
                    _g, p_ib, p_i, p_hi = _rows(p_block, image_blocks, H, pad_h, KH, R, D)
            acc = warpgroup_mma_wait(1 + (KIN_B > 0), deps=(acc,))
        acc = warpgroup_mma_wait(0, deps=(acc,))
        _store(acc, residual_c, bias_c, out_c, g, ib, column0, N, OH, OW, stride_rn, stride_on, BM, R, WT, OV, STORE,
               ACTIVATION, HAS_RESIDUAL)  # fmt: skip
    async_copy.wait_group(0)


@gluon.jit
def resident_kernel(
    x, bank, bias, residual, out,
    N, H, W_v, OH, OW_v, groups, image_blocks, column_tiles, SPLIT,
    stride_xn, stride_xc, stride_rn, stride_rc, stride_on, stride_oc,
    pad_h, pad_w, KH, S_HI,
    NQ: gl.constexpr, QB: gl.constexpr, R: gl.constexpr, WT: gl.constexpr, D: gl.constexpr,
    KIN_A: gl.constexpr, KIN_B: gl.constexpr, BM: gl.constexpr, V: gl.constexpr, L: gl.constexpr,
    XV: gl.constexpr, OV: gl.constexpr, STAGES: gl.constexpr, STORE: gl.constexpr,
    MASK_N: gl.constexpr, MASK_X: gl.constexpr, SECOND_REGISTERS: gl.constexpr,
    HAS_BIAS: gl.constexpr, ACTIVATION: gl.constexpr, HAS_RESIDUAL: gl.constexpr,
):  # fmt: skip
    """out = activation(conv(x) + bias) + residual, stride 1.

    x (N, C, H, W), residual and out (N, C, OH, OW), all with dense planes; bank (C, KH, V, L), see ``toeplitz.py``; bias (C,).
    ``W_v`` and x's strides count vectors of XV elements, ``OW_v`` and the strides of residual and out vectors of OV.

    Program = (channel, column tile, share of SPLIT), shares fastest. A tile block is BM images of one group of R output rows;
    the program owns WT output columns of the blocks share, share + SPLIT, ... The window of KIN_A + KIN_B columns is
    ``toeplitz``'s. With SECOND_REGISTERS (of each of its threads) a second warp group takes every other block; both read the
    same T, and one's epilogue overlaps the other's products.
    """
    pid = gl.program_id(0)
    share = pid % SPLIT
    column_tile = (pid // SPLIT) % column_tiles
    c = (pid // SPLIT // column_tiles).to(gl.int64)
    W = W_v * XV
    OW = OW_v * OV
    column0 = column_tile * WT
    window_v = gl.maximum(column0 - pad_w, 0) // XV
    window_v = gl.maximum(gl.minimum(window_v, W_v - (KIN_A + KIN_B) // XV), 0)
    window = window_v * XV
    tap0 = window - column0 + pad_w
    dtype: gl.constexpr = x.dtype.element_ty

    bank_c = bank + c * (KH * (V * L))
    t_a = gl.allocate_shared_memory(dtype, [NQ, WT, D * KIN_A], _owner(R, WT, D * KIN_A))
    x_a = gl.allocate_shared_memory(dtype, [STAGES, BM, D * KIN_A], _shared(D * KIN_A))
    _fill(t_a, bank_c, 0, tap0, KH, S_HI, NQ, QB, R, WT, D, KIN_A, V, L)
    if KIN_B > 0:
        t_b = gl.allocate_shared_memory(dtype, [NQ, WT, D * KIN_B], _owner(R, WT, D * KIN_B))
        x_b = gl.allocate_shared_memory(dtype, [STAGES, BM, D * KIN_B], _shared(D * KIN_B))
        _fill(t_b, bank_c, KIN_A, tap0, KH, S_HI, NQ, QB, R, WT, D, KIN_B, V, L)
    else:
        t_b = t_a
        x_b = x_a
    bias_c = 0.0
    if HAS_BIAS:
        bias_c = gl.load(bias + c).to(gl.float32)
    # copies are asynchronous from 4 bytes up, and of a pointer that is no multiple of 16 Triton knows nothing
    x_c = gl.multiple_of(x + c * stride_xc * XV, 2 * XV)
    out_c = out + c * stride_oc * OV
    residual_c = out_c
    if HAS_RESIDUAL:
        residual_c = residual + c * stride_rc * OV
    blocks = groups * image_blocks
    if SECOND_REGISTERS:
        async_copy.commit_group()
        async_copy.wait_group(0)
        fence_async_shared()
        y_a = gl.allocate_shared_memory(dtype, [STAGES, BM, D * KIN_A], _shared(D * KIN_A))
        if KIN_B > 0:  # noqa: SIM108 - the other branch must not be compiled
            y_b = gl.allocate_shared_memory(dtype, [STAGES, BM, D * KIN_B], _shared(D * KIN_B))
        else:
            y_b = y_a
        gl.warp_specialize([
            (_work, (x_a, x_b, t_a, t_b, x_c, residual_c, out_c, bias_c, share * 2, SPLIT * 2, blocks, image_blocks,
                     N, H, W, OH, OW, stride_xn, stride_rn, stride_on, pad_h, KH, window, column0, S_HI,
                     R, WT, D, KIN_A, KIN_B, BM, XV, OV, STAGES, STORE, MASK_N, MASK_X, ACTIVATION, HAS_RESIDUAL)),
            (_work, (y_a, y_b, t_a, t_b, x_c, residual_c, out_c, bias_c, share * 2 + 1, SPLIT * 2, blocks, image_blocks,
                     N, H, W, OH, OW, stride_xn, stride_rn, stride_on, pad_h, KH, window, column0, S_HI,
                     R, WT, D, KIN_A, KIN_B, BM, XV, OV, STAGES, STORE, MASK_N, MASK_X, ACTIVATION, HAS_RESIDUAL)),
        ], [4], [SECOND_REGISTERS])  # fmt: skip
    else:
        _work(x_a, x_b, t_a, t_b, x_c, residual_c, out_c, bias_c, share, SPLIT, blocks, image_blocks,
              N, H, W, OH, OW, stride_xn, stride_rn, stride_on, pad_h, KH, window, column0, S_HI,
              R, WT, D, KIN_A, KIN_B, BM, XV, OV, STAGES, STORE, MASK_N, MASK_X, ACTIVATION, HAS_RESIDUAL)  # fmt: skip
