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
from triton.language.core import _aggregate as aggregate  # which Triton 3.8 makes public

from ...shared.epilogue import activate

_Value = gl.tensor | gl.constexpr  # Triton makes sizes of 1 constants


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


@aggregate
class _Program:
    """What all tile blocks of a program share, named as in the kernel; a warp group has every ``step``-th of ``blocks``."""

    x_c: _Value
    residual_c: _Value
    out_c: _Value
    bias_c: _Value
    step: _Value
    blocks: _Value
    image_blocks: _Value
    N: _Value
    H: _Value
    W: _Value
    OH: _Value
    OW: _Value
    stride_xn: _Value
    stride_rn: _Value
    stride_on: _Value
    pad_h: _Value
    KH: _Value
    window: _Value
    column0: _Value
    S_HI: _Value
    R: gl.constexpr
    WT: gl.constexpr
    D: gl.constexpr
    KIN_A: gl.constexpr
    KIN_B: gl.constexpr
    BM: gl.constexpr
    XV: gl.constexpr
    OV: gl.constexpr
    STAGES: gl.constexpr
    STORE: gl.constexpr
    MASK_N: gl.constexpr
    MASK_X: gl.constexpr
    ACTIVATION: gl.constexpr
    HAS_RESIDUAL: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **fields):
        for name, value in fields.items():
            setattr(self, name, value if isinstance(value, gl.tensor) else gl.constexpr(value))

    @gluon.jit
    def rows(self, block):
        """Group, image block and the input rows [lo, hi) that a tile block needs."""
        g = block // self.image_blocks
        lo = gl.maximum(g * self.R - self.pad_h, 0)
        hi = gl.minimum(g * self.R + self.R + self.KH - 1 - self.pad_h, self.H)
        return g, block % self.image_blocks, lo, gl.maximum(hi, lo + 1)

    @gluon.jit
    def advance(self, block, ib, i, hi):
        """The step behind that of row i; behind the last one the last block's again, so that no load needs a condition."""
        i += self.D
        if i >= hi:
            block = gl.where(block + self.step < self.blocks, block + self.step, block)
            _g, ib, i, hi = self.rows(block)
        return block, ib, i, hi


@aggregate
class _Part:
    """A part of the window's columns: its T, a caller's own buffers of x [STAGES, BM, K], and where x's rows lie.

    Addresses are those of image block 0 and row 0 [BM, K]; images [BM, 1]; whether columns exist, and rows [1, K].
    """

    t_smem: gl.shared_memory_descriptor
    x_smem: gl.shared_memory_descriptor
    addresses: gl.tensor
    images: gl.tensor
    columns: gl.tensor
    rows: gl.tensor

    @gluon.constexpr_function
    def __init__(self, t_smem, x_smem, addresses, images, columns, rows):
        self.t_smem = t_smem
        self.x_smem = x_smem
        self.addresses = addresses
        self.images = images
        self.columns = columns
        self.rows = rows

    @gluon.jit
    def copy(self, slot, shift, ib, i, p):
        """One step's loads, unmasked where all exist; through registers where elements are narrower than 4 bytes."""
        MASKED: gl.constexpr = p.MASK_N or p.MASK_X or p.D > 1
        x_smem = self.x_smem.index(slot)
        if MASKED:
            mask = self.columns & (self.images < p.N - ib * p.BM)
            if p.D > 1:
                mask = mask & (self.rows < p.H - i)
        if p.XV == 1:
            if MASKED:
                x_smem.store(gl.load(self.addresses + shift, mask=mask, other=0.0))
            else:
                x_smem.store(gl.load(self.addresses + shift))
        elif MASKED:
            async_copy.async_copy_global_to_shared(x_smem, self.addresses + shift, mask=mask)
        else:
            async_copy.async_copy_global_to_shared(x_smem, self.addresses + shift)

    @gluon.jit
    def multiply(self, slot, q, acc, p, KIN: gl.constexpr):
        """acc += x's rows of a step @ T's blocks from q on, asynchronously."""
        b = _window(self.t_smem, q, p.R, p.WT, p.D * KIN)
        return warpgroup_mma(self.x_smem.index(slot), b.permute((1, 0)), acc, is_async=True)


@gluon.jit
def _part(p, t_smem, x_smem, column, KIN: gl.constexpr):
    """The ``_Part`` of KIN columns from ``column`` on."""
    layout: gl.constexpr = _copies(p.D * KIN, p.XV, gl.num_warps())
    q = gl.arange(0, p.D * KIN, gl.SliceLayout(0, layout))
    m = gl.arange(0, p.BM, gl.SliceLayout(1, layout))
    k = column + q % KIN
    images = p.x_c + m.to(gl.int64) * p.stride_xn * p.XV
    addresses = gl.expand_dims(images, 1) + gl.expand_dims(q // KIN * p.W + k, 0)
    columns = gl.expand_dims(k < p.W, 0)
    return _Part(t_smem, x_smem, addresses, gl.expand_dims(m, 1), columns, gl.expand_dims(q // KIN, 0))


@gluon.jit
def _copy(p, a, b, slot, ib, i):
    """The loads of a step, as one group."""
    shift = (ib * p.BM).to(gl.int64) * p.stride_xn * p.XV + i * p.W
    a.copy(slot, shift, ib, i, p)
    if p.KIN_B > 0:
        b.copy(slot, shift, ib, i, p)
    async_copy.commit_group()


@gluon.jit
def _store(acc, p, g, ib):
    """activation(acc + bias) + residual, rounded, through shared memory into vectors of STORE elements along a row."""
    lanes: gl.constexpr = min(32, p.R * p.WT // p.STORE)
    layout: gl.constexpr = gl.BlockedLayout([1, p.STORE], [32 // lanes, lanes], [gl.num_warps(), 1], [1, 0])
    m = gl.arange(0, p.BM, gl.SliceLayout(1, layout)) + ib * p.BM  # [BM]
    n = gl.arange(0, p.R * p.WT, gl.SliceLayout(0, layout))  # [BN]
    r, ow = n // p.WT, p.column0 + n % p.WT
    mask = gl.expand_dims((g * p.R + r < p.OH) & (ow < p.OW), 0) & gl.expand_dims(m < p.N, 1)
    in_plane = gl.expand_dims((g * p.R + r) * p.OW + ow, 0)
    acc = activate(acc + p.bias_c, p.ACTIVATION, True)
    if p.HAS_RESIDUAL:
        image = p.residual_c + m.to(gl.int64) * p.stride_rn * p.OV
        added = gl.load(gl.expand_dims(image, 1) + in_plane, mask=mask, other=0.0)
        acc += gl.convert_layout(added, acc.type.layout).to(gl.float32)
    y = gl.convert_layout(acc.to(p.out_c.dtype.element_ty), layout)
    image = p.out_c + m.to(gl.int64) * p.stride_on * p.OV
    gl.store(gl.expand_dims(image, 1) + in_plane, y, mask=mask)


@gluon.jit
def _work(x_a, x_b, t_a, t_b, p, first):
    """Tile blocks first, first + step, ...; x buffers [STAGES, BM, K] are this caller's own. T's copies may be in flight.

    Loads run ahead across tile blocks, so that the pipeline never drains.
    """
    layout: gl.constexpr = _mma(p.R * p.WT, gl.num_warps())
    a = _part(p, t_a, x_a, p.window, p.KIN_A)
    b = a
    if p.KIN_B > 0:
        b = _part(p, t_b, x_b, p.window + p.KIN_A, p.KIN_B)

    SYNC: gl.constexpr = p.XV == 1
    p_block = gl.minimum(first, p.blocks - 1)
    _g, p_ib, p_i, p_hi = p.rows(p_block)
    p_slot = 0
    if not SYNC:
        for _step in gl.static_range(p.STAGES - 2):
            _copy(p, a, b, p_slot, p_ib, p_i)
            p_slot += 1
            p_block, p_ib, p_i, p_hi = p.advance(p_block, p_ib, p_i, p_hi)

    slot = 0
    for block in range(first, p.blocks, p.step):
        g, ib, lo, hi = p.rows(block)
        gl.assume(lo < hi)
        acc = gl.zeros([p.BM, p.R * p.WT], gl.float32, layout)
        for i in range(lo, hi, p.D):
            if SYNC:
                _copy(p, a, b, slot, ib, i)  # its group holds T's copies alone
                async_copy.wait_group(0)
            else:
                # this step's rows have landed, and every warp has passed its wait for the step before the last
                async_copy.wait_group(p.STAGES - 3)
            # wgmma reads through the async proxy: Triton 3.6 puts no fence behind asynchronous copies, later ones do
            fence_async_shared()
            q = p.S_HI - (i + p.pad_h - g * p.R)
            acc = a.multiply(slot, q, acc, p, p.KIN_A)
            if p.KIN_B > 0:
                acc = b.multiply(slot, q, acc, p, p.KIN_B)
            slot = gl.where(slot == p.STAGES - 1, 0, slot + 1)

            if not SYNC:
                _copy(p, a, b, p_slot, p_ib, p_i)
                p_slot = gl.where(p_slot == p.STAGES - 1, 0, p_slot + 1)
                p_block, p_ib, p_i, p_hi = p.advance(p_block, p_ib, p_i, p_hi)
            acc = warpgroup_mma_wait(1 + (p.KIN_B > 0), deps=(acc,))
        acc = warpgroup_mma_wait(0, deps=(acc,))
        _store(acc, p, g, ib)
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
    p = _Program(
        x_c=x_c, residual_c=residual_c, out_c=out_c, bias_c=bias_c, blocks=groups * image_blocks, image_blocks=image_blocks,
        step=SPLIT * (2 if SECOND_REGISTERS else 1), N=N, H=H, W=W, OH=OH, OW=OW,
        stride_xn=stride_xn, stride_rn=stride_rn, stride_on=stride_on, pad_h=pad_h, KH=KH, window=window, column0=column0,
        S_HI=S_HI, R=R, WT=WT, D=D, KIN_A=KIN_A, KIN_B=KIN_B, BM=BM, XV=XV, OV=OV, STAGES=STAGES, STORE=STORE,
        MASK_N=MASK_N, MASK_X=MASK_X, ACTIVATION=ACTIVATION, HAS_RESIDUAL=HAS_RESIDUAL,
    )  # fmt: skip
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
            (_work, (x_a, x_b, t_a, t_b, p, share * 2)),
            (_work, (y_a, y_b, t_a, t_b, p, share * 2 + 1)),
        ], [4], [SECOND_REGISTERS])  # fmt: skip
    else:
        _work(x_a, x_b, t_a, t_b, p, share)
