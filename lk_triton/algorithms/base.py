"""The protocol that every algorithm offers, and what they share: a kernel launch as data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from .. import gpu as gpus
from ..gpu import Gpu
from ..ops import layout
from ..ops.problem import ConvProblem, Operands, Problem
from .cost.roofline import Estimate, conversions
from .launch_cache import find, launch_again

Config = Any
"""A frozen dataclass of compile-time choices; each algorithm has its own."""

PDL = "LK_TRITON_PDL"
"""1: kernels start while the one before them still runs, on sm_90 and newer (``shared/pdl.py``). Not measured yet."""


class Algorithm(Protocol):
    """One way to compute a problem. Nothing outside its host file knows its tile sizes.

    ``problems`` are the kinds that it is meant for; it refuses others. ``versions`` tells, by kernel form, how often what a
    config runs has changed: measurements carry the version of their form, and are stale at another one. It is raised when the
    form's kernel, its launch or its packing changes, and for nothing else. ``hand_synchronized`` says that barriers and fences
    are the kernel's own affair, not the compiler's.
    """

    name: str
    versions: ClassVar[dict[str, int]]
    hand_synchronized: bool
    config_type: type[Any]
    problems: tuple[type[Any], ...]

    def form(self, config: Config) -> str:
        """The kernel form that ``config`` runs: a key of ``versions``, unlike those of other algorithms."""
        ...

    def version(self, config: Config) -> int:
        """Of the kernel form that ``config`` runs."""
        ...

    def channel_tile(self, problem: Any, config: Config) -> int:
        """Adjacent output channels that one program computes: what is wrong in one of them may be right in the next tile."""
        ...

    def why_not(self, problem: Any, gpu: Gpu) -> str | None:
        """None where the algorithm can serve, else the reason why not (also the text of the user's error)."""
        ...

    def beaten(self, problem: Any) -> str | None:
        """Why no automatic choice takes it though it can serve, because torch was measured to be faster; else None."""
        ...

    def configs(self, problem: Any, gpu: Gpu) -> list[Config]:
        """Legal configs for this device."""
        ...

    def estimate(self, problem: Any, config: Config, gpu: Gpu) -> Estimate:
        """Predicted time of ``config``."""
        ...

    def issued_macs(self, problem: Any, config: Config) -> int:
        """Multiply-adds that a launch executes, those on masked lanes and padding too; the useful ones over these are the
        useful share."""
        ...

    def weight_format(self, config: Config) -> str | None:
        """Name of the format that ``config`` reads the weight in; None where it reads the operands as they are."""
        ...

    def prepack(self, weight: Tensor, problem: Any, config: Config) -> Tensor:
        """The operand ``weight`` in the format that ``config`` reads. Only where there is one."""
        ...

    def prepacked_bytes(self, problem: Any, config: Config) -> int:
        """Memory of the prepacked weight, in bytes; 0 where there is none."""
        ...

    def launch(self, problem: Any, config: Config, operands: Operands) -> Tensor:
        """Compute the problem; returns a fresh tensor as ``problem.output()`` says.

        Args:
            operands: as ``problem.inputs()`` says, in any memory order; ``weight`` is prepacked where ``config`` reads it so.
        """
        ...

    def repeated(self, problem: Any, config: Config, operands: Operands, out: Tensor) -> Callable[[Operands], Tensor]:
        """``launch`` for calls like the one of ``operands`` that has just returned ``out``: for tensors of the same form.

        It keeps no tensor alive.
        """
        ...


@dataclass
class KernelLaunch:
    """A Triton kernel with everything it is launched with: what runs, and what the inspector compiles.

    ``args`` says by ``PDL``, where the kernel has that, whether it may start before the kernel in front of it has ended.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        if "PDL" in self.kernel.arg_names:
            self.args.setdefault("PDL", False)

    def run(self, device: torch.device) -> Any:
        """Launch on ``device`` and its current stream (or in the interpreter); returns Triton's compiled kernel (or None)."""
        guard = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with guard:
            options = {"launch_pdl": True} if self.args.get("PDL") else {}
            return self.kernel[self.grid](**self.args, num_warps=self.num_warps, num_stages=self.num_stages, **options)


class Versioned:
    """Of one kernel form, called as the algorithm is."""

    name = ""
    versions: ClassVar[dict[str, int]]
    hand_synchronized = False

    def form(self, config: Any) -> str:
        """The only one."""
        return self.name

    def version(self, config: Any) -> int:
        """That of the form."""
        return self.versions[self.form(config)]

    def channel_tile(self, problem: Any, config: Any) -> int:
        """A program computes one channel."""
        return 1

    def weight_format(self, config: Any) -> str | None:
        """Reads the operands as they are."""
        return None

    def prepack(self, weight: Tensor, problem: Any, config: Any) -> Tensor:
        """Never asked for without a format."""
        raise NotImplementedError(f"{self.name} reads the weight as it is")

    def prepacked_bytes(self, problem: Any, config: Any) -> int:
        """There is no prepacked weight."""
        return 0

    def beaten(self, problem: Any) -> str | None:
        """By nothing that is known."""
        return None

    def repeated(self, problem: Any, config: Any, operands: Operands, out: Tensor) -> Callable[[Operands], Tensor]:
        """``launch``."""
        return partial(cast("Any", self).launch, problem, config)


class WithoutChoices(Versioned):
    """One config, and no kernel of ours: how a library computes is its own affair."""

    config_type: type[Any]

    def configs(self, problem: Any, gpu: Gpu) -> list[Any]:
        return [self.config_type()]

    def issued_macs(self, problem: Any, config: Any) -> int:
        """The nominal ones."""
        return problem.nominal_macs


def with_prepacked(algorithm: Algorithm, problem: Problem, config: Config, operands: Operands) -> Operands:
    """``operands`` as ``algorithm.launch`` takes them: with the weight in the format that ``config`` reads."""
    if algorithm.weight_format(config) is None:
        return operands
    return {**operands, "weight": algorithm.prepack(operands["weight"], problem, config)}


class TritonAlgorithm(Versioned):
    """Shared launch path: dense planes in, one kernel, the problem's layout out. For depthwise problems."""

    config_type: type[Any]
    problems: tuple[type[Any], ...] = (ConvProblem,)
    weight_parameter = "weight"
    """The kernel's parameter that holds the weight, packed or not."""

    def why_not(self, problem: Any, gpu: Gpu) -> str | None:
        """What every Triton algorithm refuses."""
        if (reason := why_no_kernel(self, problem, gpu)) is not None:
            return reason
        if max((problem.h + 2 * problem.kh) * problem.w, problem.oh * problem.ow) >= 2**31:
            return f"a {problem.h}x{problem.w} plane with the filter's rows around it has 2^31 elements or more"
        lanes = problem.n * problem.oh * -(-problem.ow // 8)
        if max(lanes, problem.c * problem.multiplier * lanes // 16) >= 2**31 - 512:
            return "a channel has 2^31 groups of outputs or more, or there are 2^31 programs: split the batch"
        return None

    def kernel_launch(self, problem: Any, config: Config, operands: Operands, out: Tensor) -> KernelLaunch:
        """The launch that computes ``out``; tensors may be meta tensors, for offline compilation.

        Args:
            operands: as ``launch`` takes them, but that maps have dense planes, and all else is contiguous.
        """
        raise NotImplementedError

    def launches(self, problem: Any, config: Config) -> int:
        """Kernels of one call, its weight being packed."""
        return 1 + len(conversions(problem))

    def launch(self, problem: Any, config: Config, operands: Operands) -> Tensor:
        """One kernel launch; channels_last tensors and strided planes are copied to dense planes first."""
        wanted = problem.output()
        out = layout.empty(wanted.shape, planar(wanted.layout), next(iter(operands.values())))
        self.submit(problem, config, dense_operands(problem, operands), out)
        return layout.conform(out, wanted.layout)

    def submit(self, problem: Any, config: Any, operands: Operands, out: Tensor) -> None:
        """Run ``kernel_launch``, which is built once for all tensors of the same strides and alignment."""
        early = _dependent_launches(out.device)

        def first() -> KernelLaunch:
            launch = self.kernel_launch(problem, config, operands, out)
            if "PDL" in launch.args:
                launch.args["PDL"] = early
            return launch

        launch_again((self.name, problem, config), early, self.tensors(operands, out), first, out.device)

    def repeated(self, problem: Any, config: Any, operands: Operands, out: Tensor) -> Callable[[Operands], Tensor]:
        """The compiled kernel alone, where nothing else was launched: no tensor was copied."""
        again = find((self.name, problem, config), _dependent_launches(out.device), self.tensors(operands, out), out.device)
        ready = dense_operands(problem, operands)
        copied = conversions(problem) or any(ready[role] is not tensor for role, tensor in operands.items())
        if again is None or copied:
            return super().repeated(problem, config, operands, out)
        wanted = problem.output()
        allocate, tensors, index = layout.allocator(wanted.shape, wanted.layout, out), self.tensors, out.device.index

        def run(operands: Operands) -> Tensor:
            out = allocate()
            again.run(tensors(operands, out), index)
            return out

        return run

    def tensors(self, operands: Operands, out: Tensor) -> dict[str, Tensor]:
        """What a launch reads and writes, by the names of the kernel's parameters."""
        return {self.weight_parameter if role == "weight" else role: t for role, t in operands.items()} | {"out": out}


def _dependent_launches(device: torch.device) -> bool:
    """Whether kernels on ``device`` may start early: asked for, and possible."""
    return os.environ.get(PDL) == "1" and device.type == "cuda" and gpus.of(device).capability >= 90


def dense_operands(problem: Problem, operands: Operands) -> Operands:
    """``operands`` as kernels read them: maps of dense planes, all else contiguous."""
    maps = problem.maps()
    return {
        role: layout.with_dense_planes(tensor) if role in maps else tensor.contiguous() for role, tensor in operands.items()
    }


def why_no_kernel(algorithm: Any, problem: Problem, gpu: Gpu) -> str | None:
    """Why no Triton kernel of ``algorithm`` can serve whatever the sizes are, or None."""
    if not isinstance(problem, algorithm.problems):
        return f"{algorithm.name} is not for {problem.plural}"
    if gpu.backend not in ("cuda", "hip"):
        return f"Triton kernels need a CUDA or ROCm GPU, got {gpu.name} (TRITON_INTERPRET=1 interprets them on a CPU)"
    if problem.dtype not in ("float16", "bfloat16", "float32"):
        return f"dtype {problem.dtype} is not one of float16, bfloat16, float32"
    return None


def plane_arguments(problem: ConvProblem, operands: Operands, out: Tensor) -> dict[str, Any]:
    """Kernel arguments for images of dense planes: tensors, sizes, and strides in vectors of XV (x) and OV (residual, out)."""
    x, residual = operands["x"], operands.get("residual")
    widest = 16 // problem.itemsize
    xv = vector_width(widest, [x], problem.w)
    ov = vector_width(widest, [out, residual], problem.ow)
    like_out = out if residual is None else residual
    return {
        "x": x, "residual": residual, "out": out, "XV": xv, "OV": ov,
        "N": problem.n, "H": problem.h, "W_v": problem.w // xv, "OH": problem.oh, "OW_v": problem.ow // ov,
        "stride_xn": x.stride(0) // xv, "stride_xc": x.stride(1) // xv,
        "stride_rn": like_out.stride(0) // ov, "stride_rc": like_out.stride(1) // ov,
        "stride_on": out.stride(0) // ov, "stride_oc": out.stride(1) // ov,
        "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
    }  # fmt: skip


def vector_width(size: int, tensors: Sequence[Tensor | None], pitch: int) -> int:
    """The widest vector, in elements, that every row of every plane of ``tensors`` can be moved by.

    A power of two, at most ``size``, that divides the row pitch, the N and C strides, and the base address.
    """
    values = [pitch]
    for t in tensors:
        if t is not None:
            values += [t.stride(i) for i in (0, 1) if t.shape[i] > 1]
            values += [] if t.device.type == "meta" else [t.data_ptr() // t.element_size()]
    width = size
    while any(value % width for value in values):
        width //= 2
    return width


def image_vector(problem: ConvProblem) -> int:
    """Elements of x per load, for aligned tensors: the widest power of two that divides the row, up to 16 bytes."""
    return vector_width(16 // problem.itemsize, [], problem.w)


def planar(memory_order: str | None) -> str | None:
    """The layout that kernels see: of dense planes; None of what is no map."""
    return "nchw" if memory_order == "channels_last" else memory_order
