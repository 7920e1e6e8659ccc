"""What Triton makes of a ``tl.dot`` on each family of matrix units, and what that asks of an SM.

Every statement about code was found by compiling ``toeplitz`` for sm_80, sm_90, sm_100, sm_103, sm_120 and gfx942 with
Triton 3.6 and 3.8. What says "assumed" was neither found in a source nor measured.
"""

from __future__ import annotations

from typing import NamedTuple

from ...gpu import Gpu
from ...ops.problem import Problem
from .roofline import MMA_SHARE

SHORT_SHARE = {"wgmma": 0.6, "tcgen05": 0.3}
"""Rate of mma.sync, which short operands get, over that of the family's own instructions: assumed. 0.3 is the same number of
products a clock and SM as 0.6 is on sm_90."""


class Dot(NamedTuple):
    """The products of one step of one program, [m, k] @ [k, n].

    Attributes:
        kind: what multiplies: ``mma`` (mma.sync), ``wgmma``, ``tcgen05``, ``mfma``, or ``fma`` (no matrix unit).
        warp_size: lanes of a warp.
        split: whether every operand is split into two TF32 numbers, for three products.
    """

    kind: str
    m: int
    n: int
    k: int
    itemsize: int
    warps: int
    warp_size: int
    split: bool

    @property
    def operand_reads(self) -> float:
        """Elements read from shared memory per unit of k.

        wgmma reads A once per warp group across n, and B once per 64 rows; tcgen05 reads A once, and B once per 128 rows. The
        others read fragments per warp, each warp the rows and columns of its own part; the best split of the warps is assumed.
        """
        if self.kind == "wgmma":
            groups = self.warps // 4
            across_n = groups // min(groups, self.m // 64)
            return across_n * self.m + self.m // 64 * self.n
        if self.kind == "tcgen05":
            return self.m + -(-self.m // 128) * self.n
        splits = [(w, self.warps // w) for w in (1, 2, 4, 8) if w <= self.warps]
        return min(across_n * self.m + across_m * self.n for across_m, across_n in splits)

    @property
    def elements_per_lane(self) -> float:
        """Operand elements that pass through one lane's registers, where they do."""
        elements = self.operand_reads if self.kind in ("mma", "mfma") else self.m + self.n
        return elements * self.k / self.warps / self.warp_size

    def share_of_peak(self, gpu: Gpu) -> float:
        """Rate that the shape can reach, over the device's peak.

        mma.sync is slower beside a newer family. 64 rows of tcgen05 fill half the lanes of tensor memory: that this halves
        the rate is assumed.
        """
        if self.kind == "mma":
            return SHORT_SHARE.get(gpu.mma_family, 1.0)
        return 0.5 if self.kind == "tcgen05" and self.m % 128 else 1 / self.repeats

    @property
    def repeats(self) -> int:
        """How often each product is formed: where mfma has fewer tiles than there are warps, all warps are put along m."""
        side = 32 if min(self.m, self.n) >= 32 else 16
        rows, tiles = self.m // side, self.m * self.n // side**2
        return max(self.warps // rows, 1) if self.kind == "mfma" and tiles < self.warps else 1

    @property
    def tensor_columns(self) -> int:
        """Columns of tensor memory that a program takes, at most: a power of two, at least 32; each is 128 lanes of 4 bytes.

        64 rows leave half of the lanes empty. Where operands are split, one of them lies there too, and Triton 3.6 gives
        each of the three products a set of its own.
        """
        if self.kind != "tcgen05":
            return 0
        blocks = -(-self.m // 128)
        columns = blocks * (3 * self.n + self.k) if self.split else max(self.m, 128) * self.n // 128
        return max(32, 1 << (columns - 1).bit_length())

    @property
    def instructions(self) -> float:
        """Of one warp in one step: the products themselves with the fragments that they are fed, or barriers and descriptors
        where a single thread issues them; and the splitting of operands."""
        macs = self.m * self.n * self.k / self.warps
        if self.kind == "fma":
            return 3 * macs / self.warp_size
        count = 14 * self.elements_per_lane if self.split else 0
        if self.kind == "tcgen05":
            return count + 20
        if self.kind == "wgmma":
            return count
        if self.kind == "mfma":
            per_instruction = (8192 if min(self.m, self.n) >= 32 else 4096) // (1 if self.itemsize == 2 else 4)
        else:
            per_instruction = 2048 if self.itemsize == 2 else 1024
        products = (3 if self.split else 1) * self.repeats * macs / per_instruction
        return count + products + self.operand_reads * self.k * self.itemsize / self.warps / 512


def kind_of(gpu: Gpu, m: int, precision: str, itemsize: int) -> str:
    """What multiplies a dot of ``m`` rows on ``gpu``, whose programs have four or eight warps here.

    The newer families want 64 rows; fewer are left to mma.sync. IEEE float32 has matrix units on gfx9 only.
    """
    family = gpu.mma_family
    if family == "mfma":
        return family
    if itemsize == 4 and precision == "ieee":
        return "fma"
    return family if m >= 64 else "mma"


def precisions(problem: Problem, gpu: Gpu) -> tuple[str, ...]:
    """The dot precisions that answer the problem's request; float32 by default wants float32-class accuracy."""
    if problem.dtype != "float32":
        return ("ieee",)
    if gpu.backend == "hip":
        return ("ieee",) if problem.precision in (None, "ieee") else ()
    return (problem.precision,) if problem.precision else ("tf32x3", "ieee")


def rate(dot: Dot, precision: str, gpu: Gpu) -> float:
    """FLOP/s of the products."""
    if dot.itemsize == 2:
        peak = gpu.mma_half_tflops
    elif precision == "ieee":
        peak = gpu.fp32_tflops
    else:
        peak = gpu.mma_tf32_tflops / (3 if dot.split else 1)
    return peak * 1e12 * MMA_SHARE * dot.share_of_peak(gpu)
