"""Host side of ``toeplitz_hopper``: ``toeplitz`` with T resident in shared memory, for Hopper. The kernel has the maths."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from itertools import product
from math import ceil
from typing import ClassVar

from torch import Tensor

from .... import gpu as gpus
from ....gpu import Gpu
from ....ops.problem import ConvProblem, Operands
from ...base import KernelLaunch, TritonAlgorithm, image_vector, plane_arguments, vector_width
from ...cost.dot import Dot, rate
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from ...needs import needs_half
from ..toeplitz.cost import bank_bytes, row_length, window_of
from ..toeplitz.host import MOST_OVERLAP, OVERLAP, STORE_CLOCKS, pack, why_not_plain
from .config import ToeplitzHopperConfig
from .cost import (
    FILL,
    IMAGES,
    SECOND_REGISTERS,
    VECTOR,
    column_tiles,
    image_blocks,
    issued_macs,
    matrix_elements,
    most_registers,
    programs,
    registers,
    shared_bytes,
    steps,
    steps_of,
    tile_blocks,
)

TILES = ((8, 32), (4, 32), (16, 16), (8, 16), (4, 16), (8, 8), (16, 8))
"""(rows, columns)."""

MOST_REGISTERS = 220
"""As ``most_registers`` counts; kernels above it may spill (offline compilation)."""

BUFFERS = (16, 8, 4)
"""More are more rows in flight; but single elements are copied step by step, whatever the buffers."""

FILLED_WAIT = 2
"""Where single elements are copied, each step waits, and other programs fill half of that: fitted to the 7x7 layer below."""

WIDEST_ROW = 64
"""Elements: wgmma's widest swizzle is 128 bytes."""

START_CLOCKS = 5000
COPY_CLOCKS = 14
STEP_CLOCKS = 100
"""A program's start; each copy of a warp into the matrix; and what a step takes at least. Fitted, with what ``toeplitz`` is
fitted to, to four layers of RepLKNet-31B on an H100 (134, 49, 20.1 and 9.65 us measured)."""


class ToeplitzHopperAlgorithm(TritonAlgorithm):
    """Stride 1, any odd kernel whose matrix fits in shared memory, half types, on Hopper; for batches of dozens of images."""

    name = "toeplitz_hopper"
    versions: ClassVar = {"toeplitz_hopper": 2}  # raised when the kernel, its launch or its packing changes
    hand_synchronized = True
    config_type = ToeplitzHopperConfig
    weight_parameter = "bank"

    def why_not(self, problem: ConvProblem, gpu: Gpu) -> str | None:
        """Plain convolutions on Hopper, where the installed Triton has what the kernel is written in."""
        return super().why_not(problem, gpu) or why_not_anywhere(problem, gpu) or why_not_here()

    def configs(self, problem: ConvProblem, gpu: Gpu) -> list[ToeplitzHopperConfig]:
        """Tiles of 64 to 256 outputs that fit in shared memory."""
        stores = (8, 4) if problem.ow % 8 == 0 else (vector_width(8, [], problem.ow),)
        found: list[ToeplitzHopperConfig] = []
        for (rows, columns), split, step_rows, store, groups in product(TILES, (1, 2, 4), (1, 2, 4), stores, (1, 2)):
            if (window := window_of(problem, columns)) is None:
                continue
            options = [
                ToeplitzHopperConfig(rows, columns, window, step_rows, buffers, store, groups, split)
                for buffers in (BUFFERS if image_vector(problem) > 1 else BUFFERS[-1:])
            ]
            legal = [config for config in options if _suits(problem, config, gpu) and _fits(problem, config, gpu)]
            # at equal estimates, the first: the most buffers that cost no resident program
            found += sorted(legal, key=lambda config: -resident_programs(problem, config, gpu))
        return found

    def estimate(self, problem: ConvProblem, config: ToeplitzHopperConfig, gpu: Gpu) -> Estimate:
        """Products or shared memory of the fullest SM, with what they do not hide; L2; DRAM."""
        size = problem.itemsize
        wave = Wave(programs(problem, config), gpu)
        dot = Dot("wgmma", IMAGES, config.outputs, config.step_k, size, warps=4, warp_size=gpu.warp_size, split=False)
        count, clock = steps(problem, config), gpu.clocks
        mma = 2 * issued_macs(problem, config) / rate(dot, "ieee", gpu)
        reads = count * config.step_k * (dot.operand_reads + 2 * IMAGES) * size
        one = START_CLOCKS + COPY_CLOCKS * matrix_elements(problem, config) / VECTOR / gpu.warp_size
        one += STORE_CLOCKS * config.outputs * tile_blocks(problem, config) / config.split
        resident = resident_programs(problem, config, gpu)
        hidden = min(config.groups * resident, MOST_OVERLAP)
        image = count * IMAGES * config.step_k * size
        # each row comes from DRAM once, and from L2 when other programs or row groups read it again
        first = min(problem.n * problem.c * problem.h * problem.w * size / image, 1)
        latency = gpu.l2_latency_ns + first * (gpu.dram_latency_ns - gpu.l2_latency_ns)
        waiting = ceil(wave.per_sm / resident) * count / programs(problem, config) / config.groups
        waiting *= latency * 1e-9 / (config.buffers - 2 if image_vector(problem) > 1 else FILLED_WAIT)
        exposed = wave.most * gpu.sms * one / hidden / clock
        outside = activation_bytes(problem)
        banks = programs(problem, config) * self.prepacked_bytes(problem, config) / problem.c
        return roofline(
            problem,
            gpu,
            mma=mma * wave.fullest + exposed,
            smem=wave.shared(reads) * wave.fullest / OVERLAP + exposed,
            latency=max(count * STEP_CLOCKS / config.groups / clock * wave.fullest, waiting) + exposed,
            l2=wave.l2(image + banks + outside) * wave.fullest / OVERLAP,
            dram=(outside + self.prepacked_bytes(problem, config)) / (gpu.dram_gbps * 1e9),
        )

    def issued_macs(self, problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
        """Those of all products, on rows of missing images too."""
        return issued_macs(problem, config)

    def prepacked_bytes(self, problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
        """That of ``toeplitz``'s bank."""
        return bank_bytes(problem, VECTOR)

    def weight_format(self, config: ToeplitzHopperConfig) -> str | None:
        """``toeplitz``'s, of 8-byte vectors."""
        return f"toeplitz/{VECTOR}"

    def prepack(self, weight: Tensor, problem: ConvProblem, config: ToeplitzHopperConfig) -> Tensor:
        """weight (C, 1, KH, KW) -> ``toeplitz``'s bank."""
        return pack(weight, VECTOR)

    def kernel_launch(
        self, problem: ConvProblem, config: ToeplitzHopperConfig, operands: Operands, out: Tensor
    ) -> KernelLaunch:
        """One program per (channel, column tile, share of its tile blocks)."""
        from .kernel import resident_kernel

        bias = operands.get("bias")
        found = steps_of(problem, config.rows, config.step_rows)
        args = plane_arguments(problem, operands, out) | {
            "bank": operands["weight"], "bias": bias, "HAS_BIAS": bias is not None,
            "groups": ceil(problem.oh / config.rows), "image_blocks": image_blocks(problem),
            "column_tiles": column_tiles(problem, config), "SPLIT": config.split,
            "pad_h": problem.padding[0], "pad_w": problem.padding[1], "KH": problem.kh, "S_HI": found.highest,
            "NQ": found.blocks, "QB": FILL, "R": config.rows, "WT": config.columns, "D": config.step_rows,
            "KIN_A": config.window[0], "KIN_B": config.window[1], "BM": IMAGES, "V": VECTOR,
            "L": row_length(problem.kw, VECTOR), "STAGES": config.buffers, "STORE": config.store,
            "MASK_N": problem.n % IMAGES != 0, "MASK_X": sum(config.window) > problem.w,
            "SECOND_REGISTERS": SECOND_REGISTERS[config.outputs] if config.groups == 2 else 0,
        }  # fmt: skip
        return KernelLaunch(resident_kernel, (programs(problem, config),), args, num_warps=4, num_stages=1)


def _suits(problem: ConvProblem, config: ToeplitzHopperConfig, gpu: Gpu) -> bool:
    """Whether tiles and steps are hardly larger than the map, and a channel is split only where SMs would have nothing."""
    small = config.rows < 2 * problem.oh and config.columns < 2 * max(problem.ow, 8)
    low = config.step_rows == 1 or config.step_rows < 2 * problem.h
    split = config.split == 1 or problem.c * column_tiles(problem, config) <= 2 * gpu.sms
    return small and low and split and config.groups * config.split <= tile_blocks(problem, config)


def _fits(problem: ConvProblem, config: ToeplitzHopperConfig, gpu: Gpu) -> bool:
    """Whether wgmma takes a step's parts, and registers and shared memory are enough."""
    parts = [config.step_rows * part for part in config.window if part]
    if min(parts) < 16 or max(parts) > WIDEST_ROW:
        return False
    # two groups leave no registers for a residual
    if config.groups == 2 and (config.outputs not in SECOND_REGISTERS or problem.epilogue.residual):
        return False
    in_registers = most_registers(problem, config) <= MOST_REGISTERS
    return in_registers and shared_bytes(problem, config) <= gpu.shared_per_block


def resident_programs(problem: ConvProblem, config: ToeplitzHopperConfig, gpu: Gpu) -> int:
    """How many programs one SM holds at once."""
    return gpu.programs_at_once(registers(config), shared_bytes(problem, config), 4 * config.groups)


def why_not_anywhere(problem: ConvProblem, gpu: Gpu) -> str | None:
    """Whatever the configs are, and wherever the kernel is compiled."""
    if gpu.backend != "cuda" or gpu.capability != 90:
        return f"{gpu.arch} has no wgmma: sm_90 is needed"
    if (reason := needs_half(problem) or why_not_plain(problem)) is not None:
        return reason
    if problem.padding[0] >= problem.kh or problem.padding[1] >= problem.kw:
        return f"padding {problem.padding} leaves outputs that see no input"
    return None


def why_not_here() -> str | None:
    """Whether this process can compile the kernel."""
    return "Gluon kernels cannot be interpreted: unset TRITON_INTERPRET" if gpus.interpreted() else why_no_gluon()


@lru_cache
def why_no_gluon() -> str | None:
    """Whether the installed Triton can compile the kernel.

    Where its windows lie depends on how Triton counts shared memory, which is tested with these versions.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if not (3, 6) <= version <= (3, 8):
        return f"its Gluon kernel needs Triton 3.6, 3.7 or 3.8, this is {triton.__version__}"
    return None
