"""Compile a kernel for a target without a GPU, and read what came out: registers, spills, shared memory, instructions.

Triton's package carries ptxas, cuobjdump and nvdisasm, so NVIDIA targets need no CUDA toolkit and no driver; for AMD targets
its compiler writes the assembly.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .. import gpu as gpus
from ..algorithms import registry
from ..algorithms.base import Config, KernelLaunch, TritonAlgorithm, planar
from ..gpu import Gpu
from ..ops import layout
from ..ops.problem import Problem, Spec
from ..planning.tuner import Candidate
from .disassembly import AMDGCN, SASS, Mix, main_loop, mix


@dataclass(frozen=True)
class Report:
    """One compiled kernel.

    Attributes:
        registers: per thread; on AMD architectural and accumulation registers together.
        spill_bytes: of local memory or scratch per thread. The kernels have no arrays there: it holds spilled registers.
        shared_bytes: per program.
        num_warps: per program.
        tensor_columns: of tensor memory per program (sm_100).
        loop: what the main loop holds.
        disassembly: of the whole kernel.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    tensor_columns: int
    loop: Mix
    disassembly: str

    def programs_per_sm(self, gpu: Gpu) -> int:
        """How many programs one SM of ``gpu`` holds at once."""
        # an SM has four parts; registers are handed out to a warp, eight per thread at a time
        per_warp = -(-self.registers // 8) * 8 * gpu.warp_size
        warps = min(gpu.registers_per_sm // 4 // per_warp * 4, gpu.warps_per_sm)
        # CUDA keeps 1 KiB of each program's shared memory for itself
        shared = self.shared_bytes + (1024 if gpu.backend == "cuda" else 0)
        limits = [warps // self.num_warps, gpu.programs_per_sm]
        limits += [gpu.shared_per_sm // shared] if shared else []
        limits += [gpu.tensor_columns // self.tensor_columns] if self.tensor_columns else []
        return min(limits)


@dataclass(frozen=True)
class Inspection:
    """A candidate for a problem with what its kernel became.

    Attributes:
        programs: resident on one SM at once.
        warps: their share of the warps that an SM can hold.
        useful_share: multiply-adds whose taps meet a pixel, over issued ones.
        bank_bytes: of the prepacked weight; 0 where they are read as they are.
    """

    candidate: Candidate
    report: Report
    programs: int
    warps: float
    useful_share: float
    bank_bytes: int


def inspect(problem: Problem, candidate: Candidate, gpu: Gpu) -> Inspection:
    """Compile ``candidate`` for ``gpu``, and put the algorithm's own numbers beside the compiler's.

    Raises:
        RuntimeError, ValueError: as ``compile_launch`` and ``meta_launch``.
    """
    algorithm = registry.get(candidate.algorithm)
    report = compile_launch(meta_launch(problem, candidate.algorithm, candidate.config), gpu.arch)
    programs = report.programs_per_sm(gpu)
    return Inspection(
        candidate,
        report,
        programs=programs,
        warps=programs * report.num_warps / gpu.warps_per_sm,
        useful_share=problem.useful_macs / algorithm.issued_macs(problem, candidate.config),
        bank_bytes=algorithm.prepacked_bytes(problem, candidate.config),
    )


def require_compiler() -> None:
    """Do nothing where kernels can be compiled.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so that there is nothing to compile, or Triton is not installed.
    """
    if gpus.interpreted():
        raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    if find_spec("triton") is None:
        raise RuntimeError("Triton is not installed: pip install triton")


def meta_launch(problem: Problem, name: str, config: Config) -> KernelLaunch:
    """The launch of ``problem`` on meta tensors, built by the same host code that a GPU runs."""
    algorithm = registry.get(name)
    if not isinstance(algorithm, TritonAlgorithm):
        raise ValueError(f"algorithm {name!r} has no Triton kernel to compile")

    def meta(spec: Spec) -> Tensor:
        like = torch.empty(0, dtype=getattr(torch, spec.dtype), device="meta")
        return layout.empty(spec.shape, planar(spec.layout), like)

    # offline, only shapes, strides and dtypes matter: the weight stands in for the prepacked one
    operands = {role: meta(spec) for role, spec in problem.inputs().items()}
    return algorithm.kernel_launch(problem, config, operands, meta(problem.output()))


def compile_launch(launch: KernelLaunch, arch: str) -> Report:
    """Compile for ``arch`` (``sm_80``, ``sm_90``, ``gfx942``, ...) with the specialization that a launch would get.

    Raises:
        RuntimeError: there is no compiler, or it failed.
        ValueError: unknown architecture.
    """
    require_compiler()
    gpu = gpus.for_arch(arch)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constexprs, attributes = _specialize(launch)
    if launch.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        source: Any = GluonASTSource(launch.kernel, signature, constexprs, attributes)
    else:
        source = ASTSource(launch.kernel, signature, constexprs, attributes)
    target = GPUTarget(gpu.backend, gpu.capability or gpu.arch, gpu.warp_size)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=target, options=options)
    if gpu.backend == "hip":
        listing, language = compiled.asm["amdgcn"], AMDGCN
        registers, spill_bytes = _amd_usage(listing)
    else:
        (registers, spill_bytes), listing = _nvidia_usage(compiled.asm["cubin"])
        language = SASS
    metadata = cast("Any", compiled.metadata)
    return Report(
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=metadata.shared,
        num_warps=metadata.num_warps,
        tensor_columns=getattr(metadata, "tmem_size", 0),
        loop=mix(main_loop(listing, language), language),
        disassembly=listing,
    )


def _specialize(launch: KernelLaunch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[Any]]]:
    """Signature, constants and divisibility as Triton's own launcher derives them from the arguments."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[Any]] = {}
    types = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.args[parameter.name]
        if isinstance(value, Tensor):
            signature[name] = "*" + types[value.dtype]
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{types[value.base.dtype]}{list(value.block_shape)}>"
            continue
        elif parameter.is_constexpr or value is None or value == 1:
            signature[name] = "constexpr"
            constexprs[name] = value
            continue
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        # a meta tensor's address is its offset
        address = value.storage_offset() * value.element_size() if isinstance(value, Tensor) else value
        if address % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constexprs, attributes


def _nvidia_usage(cubin: bytes) -> tuple[tuple[int, int], str]:
    """((registers, spill bytes) per thread, SASS)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", path)
        sass = _tool("nvdisasm", "-c", path)
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return (numbers["REG"], numbers["STACK"] + numbers["LOCAL"]), sass


def _amd_usage(listing: str) -> tuple[int, int]:
    """(registers, spill bytes) per thread, from the metadata at the end of the assembly."""
    numbers = {key: int(value) for key, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", listing, re.MULTILINE)}
    return numbers["vgpr_count"], max(4 * numbers["vgpr_spill_count"], numbers["private_segment_fixed_size"])


def _tool(name: str, option: str, path: Path) -> str:
    from triton import knobs

    tool = getattr(knobs.nvidia, name).path
    return subprocess.run([tool, option, str(path)], check=True, capture_output=True, text=True).stdout
