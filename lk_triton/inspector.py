"""Compile a kernel for a target without a GPU, and read what came out: registers, spills, shared memory, instructions.

Triton's package carries ptxas, cuobjdump and nvdisasm, so NVIDIA targets need no CUDA toolkit and no driver.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from . import device as devices
from . import layout
from .algorithms import registry
from .algorithms.base import Config, KernelLaunch, TritonAlgorithm
from .problem import ConvProblem

MMA = re.compile(r"^(HGMMA|QGMMA|HMMA|IMMA|DMMA|UTCHMMA|UTCQMMA)\b")
_LOAD = re.compile(r"^(LDG|LDGSTS)\.")
_SPILL = re.compile(r"^(LDL|STL)\b")


@dataclass(frozen=True)
class Report:
    """One compiled kernel.

    Attributes:
        registers: per thread.
        stack_bytes: local memory per thread; spills live there.
        spills: local-memory instructions in the whole kernel.
        shared_bytes: per program.
        instructions: of the main loop.
        mma: tensor-core instructions of the main loop.
        mma_kind: the commonest of them, with its shape, such as ``HGMMA.64x256x16.F32``; empty without any.
        loads: bytes per thread -> (asynchronous loads, synchronous loads) of global memory in the main loop.
        sass: the disassembly of the whole kernel.
    """

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    instructions: int
    mma: int
    mma_kind: str
    loads: dict[int, tuple[int, int]]
    sass: str


def meta_launch(problem: ConvProblem, name: str, config: Config) -> KernelLaunch:
    """The launch of ``problem`` on meta tensors, built by the same host code that a GPU runs."""
    algorithm = registry.get(name)
    if not isinstance(algorithm, TritonAlgorithm):
        raise ValueError(f"algorithm {name!r} has no Triton kernel to compile")
    dtype = getattr(torch, problem.dtype)

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = layout.empty((problem.n, problem.c, problem.h, problem.w), problem.layout, meta())
    out = layout.empty(problem.out_shape, problem.layout, x)
    bias = meta(problem.c) if problem.epilogue.bias else None
    # offline, only shapes, strides and dtypes matter: the weight stands in for the bank
    bank = meta(problem.c * problem.multiplier, 1, problem.kh, problem.kw)
    return algorithm.kernel_launch(problem, config, x, bank, bias, out if problem.epilogue.residual else None, out)


def compile_launch(launch: KernelLaunch, arch: str) -> Report:
    """Compile for ``arch`` (``sm_80``, ``sm_90``, ...) with the specialization that a launch would get.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so that there is nothing to compile.
        ValueError: not an NVIDIA architecture.
    """
    if devices.interpreted():
        raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    device = devices.for_arch(arch)
    if device.backend != "cuda":
        raise ValueError(f"reports are read from NVIDIA machine code, got {arch!r}: use sm_80, sm_90 or sm_100")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constexprs, attributes = _specialize(launch)
    source = ASTSource(launch.kernel, signature, constexprs, attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", device.capability, 32), options=options)
    return _report(compiled.asm["cubin"], cast("Any", compiled.metadata).shared)


def _specialize(launch: KernelLaunch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[Any]]]:
    """Signature, constants and divisibility as Triton's own launcher derives them from the arguments."""
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[Any]] = {}
    types = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.args[parameter.name]
        if isinstance(value, Tensor):
            signature[name] = types[value.dtype]
        elif parameter.is_constexpr or value is None or value == 1:
            signature[name] = "constexpr"
            constexprs[name] = value
            continue
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constexprs, attributes


def _report(cubin: bytes, shared_bytes: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", path)
        sass = _tool("nvdisasm", "-c", path)
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    program = list(_instructions(sass))
    loop = main_loop(sass)
    kinds = Counter(_mma_kind(text) for text in loop if MMA.match(text))
    loads: dict[int, tuple[int, int]] = {}
    for text in loop:
        if _LOAD.match(text):
            width, asynchronous = _load_bytes(text), text.startswith("LDGSTS")
            before = loads.get(width, (0, 0))
            loads[width] = (before[0] + asynchronous, before[1] + (not asynchronous))
    return Report(
        registers=numbers["REG"],
        stack_bytes=numbers.get("STACK", 0),
        spills=sum(1 for text in program if _SPILL.match(text)),
        shared_bytes=shared_bytes,
        instructions=len(loop),
        mma=sum(kinds.values()),
        mma_kind=kinds.most_common(1)[0][0] if kinds else "",
        loads=loads,
        sass=sass,
    )


def _tool(name: str, option: str, path: Path) -> str:
    from triton import knobs

    tool = getattr(knobs.nvidia, name).path
    return subprocess.run([tool, option, str(path)], check=True, capture_output=True, text=True).stdout


_LABEL = re.compile(r"^(\.L_x_\d+):")
_TEXT = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;")


def _instructions(sass: str) -> list[str]:
    return [m.group(1) for m in map(_TEXT.match, sass.splitlines()) if m]


def main_loop(sass: str) -> list[str]:
    """Instructions of the innermost loop that holds an MMA; the whole kernel where no loop does."""
    program: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(program)
        elif text := _TEXT.match(line):
            program.append(text.group(1))
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", text.group(1))
            if target and target.group(1) in labels:
                loops.append(program[labels[target.group(1)] :])
    holding = [loop for loop in loops if any(MMA.match(text) for text in loop)]
    return min(holding, key=len) if holding else program


def _mma_kind(text: str) -> str:
    return text.split()[0]


def _load_bytes(text: str) -> int:
    parts = text.split()[0].split(".")
    for part, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if part in parts:
            return width
    return 4
