"""Public functions: validation and dispatch. Everything that computes goes through one registered op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from tabulate import tabulate
from torch import Tensor, nn

from . import gpu as gpus
from .algorithms import registry
from .ops import library
from .ops.problem import KINDS, Problem, operands_of
from .ops.registration import check_gradients, needs_grad
from .ops.tracing import problems_of
from .planning import agenda, tuner
from .planning.plan import Plan, at_least_one_image, plan, why_not_auto


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    padding: str | int | Sequence[int] = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    precision: str | None = None,
    algorithm: str = "auto",
) -> Tensor:
    """Depthwise 2-D convolution with its epilogue: ``activation(conv(x, weight) + bias) + residual``.

    Args:
        x: (N, C, H, W), float32, float16 or bfloat16 (float64 by torch only). Any N and C strides; planes that are
            not dense are copied once. channels_last in means channels_last out, through conversions
            where a kernel wants dense planes.
        weight: (C * multiplier, 1, KH, KW), the dtype of x. Kernels may be rectangular and larger than the map.
        bias: (C * multiplier,) or None.
        activation: None, ``"relu"``, ``"gelu"`` (exact, erf) or ``"silu"``.
        residual: a tensor of the output's shape, added after the activation, or None.
        padding: ``"same"`` (KH, KW odd), ``"valid"``, an int, or (h, w): zeros on both sides of each axis.
        stride, dilation: an int or (h, w).
        precision: float32 only: ``"ieee"``, ``"tf32x3"`` or ``"tf32"``; None means float32-class accuracy.
        algorithm: ``"auto"``, or ``"toeplitz"``, ``"toeplitz_hopper"``, ``"direct"``, ``"onednn"``, ``"torch"`` to force one.

    Returns:
        (N, C * multiplier, OH, OW) in the dtype and layout of x. Accumulation is in float32.

    ``toeplitz`` and ``toeplitz_hopper`` multiply whole windows by zeros, so Inf and NaN in x spread up to a tile beyond the
    filter's footprint; the others have exact footprints.

    Raises:
        TypeError: unsupported or mixed dtypes (outside autocast).
        ValueError: wrong rank, shape, device or option; or a forced algorithm that cannot serve (the text says why).
    """
    return library.depthwise_conv2d(
        x=x, weight=weight, bias=bias, residual=residual, activation=activation, padding=padding, stride=stride,
        dilation=dilation, precision=precision, algorithm=algorithm,
    )  # fmt: skip


def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    precision: str | None = None,
    algorithm: str = "auto",
) -> Tensor:
    """1x1 convolution with its epilogue: ``activation(conv(x, weight) + bias) + residual``, one matrix product for the batch.

    Args:
        x: (N, Cin, H, W), float32, float16 or bfloat16 (float64 by torch only). Channel-major memory (docs/kernels.md) is
            fastest; any N and C strides are served. channels_last in means channels_last out.
        weight: (Cout, Cin, 1, 1), the dtype of x.
        bias: (Cout,) or None.
        activation: None, ``"relu"``, ``"gelu"`` (exact, erf) or ``"silu"``.
        residual: (N, Cout, H, W), added after the activation, or None.
        precision: float32 only: ``"ieee"``, ``"tf32x3"`` or ``"tf32"``; None follows torch's flag for convolutions
            (``torch.backends.cudnn.conv.fp32_precision``).
        algorithm: ``"auto"``, or ``"pointwise"``, ``"cublas"``, ``"onednn"``, ``"torch"`` to force one.

    Returns:
        (N, Cout, H, W) in the dtype and layout of x. Accumulation is in float32.

    Raises:
        TypeError: unsupported or mixed dtypes (outside autocast).
        ValueError: wrong rank, shape, device or option; or a forced algorithm that cannot serve (the text says why).
    """
    if isinstance(weight, Tensor) and weight.dim() == 4 and tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(f"a 1x1 weight must be (Cout, Cin, 1, 1), got shape {tuple(weight.shape)}: use dense_conv2d")
    return dense_conv2d(
        x, weight, bias, activation=activation, residual=residual, precision=precision, algorithm=algorithm
    )


def dense_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    precision: str | None = None,
    out_layout: str | None = None,
    algorithm: str = "auto",
) -> Tensor:
    """Convolution over all channels with its epilogue, for a network's first layer and for 1x1 convolutions.

    Args:
        x, bias, activation, residual, precision: as ``pointwise_conv2d``.
        weight: (Cout, Cin, KH, KW), the dtype of x.
        stride, padding: an int or (h, w).
        out_layout: ``"nchw"`` (contiguous), ``"channel_major"``, or None for the layout of x (docs/kernels.md).
        algorithm: ``"auto"``, or as ``pointwise_conv2d``, or ``"implicit_gemm"``.

    Returns:
        (N, Cout, OH, OW) in the dtype of x and in ``out_layout``.

    Raises:
        What ``pointwise_conv2d`` raises.
    """
    return library.dense_conv2d(
        x=x, weight=weight, bias=bias, residual=residual, activation=activation, stride=stride, padding=padding,
        precision=precision, out_layout=out_layout, algorithm=algorithm,
    )  # fmt: skip


def conv_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual: Tensor | None = None,
    *,
    activation: str = "gelu",
    precision: str | None = None,
    out_layout: str | None = None,
    algorithm: str = "auto",
) -> Tensor:
    """A ConvFFN, two 1x1 convolutions: ``w2 @ activation(w1 @ x + b1) + b2 + residual``, in one kernel where that is faster.

    Args:
        x, precision, out_layout: as ``dense_conv2d``.
        w1, b1: (hidden, C, 1, 1) and (hidden,), the dtype of x.
        w2, b2: (C, hidden, 1, 1) and (C,), the dtype of x.
        residual: (N, C, H, W), added last, or None. In networks it is x.
        activation: ``"gelu"`` (exact, erf), ``"relu"`` or ``"silu"``.
        algorithm: ``"auto"``, or ``"convffn"`` (one kernel), ``"layerwise"`` (each by its plan), ``"torch"`` to force one.

    Returns:
        (N, C, H, W) in the dtype of x and in ``out_layout``. What the activation returns is rounded to the dtype of x.

    Raises:
        What ``pointwise_conv2d`` raises.
    """
    return library.conv_ffn(
        x=x, w1=w1, b1=b1, w2=w2, b2=b2, residual=residual, activation=activation, precision=precision,
        out_layout=out_layout, algorithm=algorithm,
    )  # fmt: skip


def conv_stem(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    *,
    activation: str = "relu",
    precision: str | None = None,
    out_layout: str | None = None,
    algorithm: str = "auto",
) -> Tensor:
    """The first three layers of a stem, dense 3x3 with stride 2, depthwise 3x3 and 1x1, in one kernel where that is faster.

    Each layer is ``activation(conv(x, w) + b)``, with padding 1 (the 1x1: 0).

    Args:
        x, precision, out_layout: as ``dense_conv2d``; ``precision`` is that of the dense layers.
        w1, b1: (C, Cin, 3, 3) and (C,), the dtype of x.
        w2, b2: (C, 1, 3, 3) and (C,), the dtype of x.
        w3, b3: (C, C, 1, 1) and (C,), the dtype of x.
        activation: ``"relu"``, ``"gelu"`` (exact, erf) or ``"silu"``.
        algorithm: ``"auto"``, or ``"convstem"`` (one kernel), ``"layerwise"`` (each by its plan), ``"torch"`` to force one.

    Returns:
        (N, C, OH, OW), OH and OW half of H and W, rounded up, in the dtype of x and in ``out_layout``. Accumulation is in
        float32. ``convstem`` rounds what the second layer returns to the dtype of x, and what the first returns not at all.

    Raises:
        What ``pointwise_conv2d`` raises.
    """
    return library.conv_stem(
        x=x, w1=w1, b1=b1, w2=w2, b2=b2, w3=w3, b3=b3, activation=activation, precision=precision, out_layout=out_layout,
        algorithm=algorithm,
    )  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """Which algorithm would run, and why the others would not. ``str()`` of it is a table.

    Attributes:
        problem: what the tensors and options pose.
        device: name of the device.
        plan: the algorithm, config and source that would run.
        algorithms: per algorithm, the reason why it cannot serve, or its best estimate in seconds.
    """

    problem: Problem
    device: str
    plan: Plan
    algorithms: dict[str, str | float]

    def __str__(self) -> str:
        rows = []
        for name, verdict in self.algorithms.items():
            if isinstance(verdict, str):
                rows.append((name, "no", verdict))
            else:
                rows.append((name, "chosen" if name == self.plan.algorithm else "could", f"estimate {verdict * 1e6:.0f} us"))
        head = f"{self.problem} on {self.device}: {self.plan.algorithm} ({self.plan.source}), {self.plan.config}"
        return head + "\n" + tabulate(rows, headers=("algorithm", "serves", "why"), tablefmt="simple")


def explain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    padding: str | int | Sequence[int] = "same",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    precision: str | None = None,
    algorithm: str = "auto",
) -> Explanation:
    """Which algorithm ``depthwise_conv2d`` with the same arguments would run, and why the others would not.

    Nothing is computed. A call that needs gradients is explained as torch's, which is what runs there.

    Raises:
        What ``depthwise_conv2d`` raises.
    """
    problem = library.depthwise_conv2d.posed(
        x=x, weight=weight, bias=bias, residual=residual, activation=activation, padding=padding, stride=stride,
        dilation=dilation, precision=precision,
    )  # fmt: skip
    differentiated = needs_grad(operands_of(x=x, weight=weight, bias=bias, residual=residual))
    return explain_problem(problem, gpus.of(x.device), algorithm, differentiated)


def explain_problem(
    problem: Problem, gpu: gpus.Gpu, algorithm: str = "auto", needs_grad: bool = False
) -> Explanation:
    """``explain`` for a problem on a device that need not be here (``device.for_arch``)."""
    if needs_grad:
        check_gradients(algorithm)
    posed = at_least_one_image(problem)
    verdicts: dict[str, str | float] = {}
    for name, candidate in registry.meant_for(problem).items():
        reason = why_not_auto(posed, gpu, name)
        if needs_grad and name != "torch":
            reason = reason or "no gradients yet, and a tensor requires one"
        if reason is not None:
            verdicts[name] = reason
            continue
        estimates = (candidate.estimate(posed, c, gpu).seconds for c in candidate.configs(posed, gpu))
        verdicts[name] = min(estimates)
    chosen = plan(problem, gpu, "torch" if needs_grad and algorithm == "auto" else algorithm)
    if needs_grad and algorithm == "auto":
        chosen = Plan(chosen.algorithm, chosen.config, "gradient needed")
    return Explanation(problem, gpu.name, chosen, verdicts)


def tune(
    target: nn.Module | Iterable[Problem],
    *examples: Tensor | Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    top_k: int = tuner.TOP_K,
    rounds: int = tuner.ROUNDS,
    timer: tuner.TimerFactory | None = None,
    save: bool = True,
    missing: bool = False,
    seconds: float | None = None,
    progress: tuner.Progress | None = None,
) -> list[tuner.Result]:
    """Measure the candidates for every problem of ``target``, and save the fastest for this and later processes.

    Args:
        target: a model in eval mode, whose forward is run once to see which problems it poses, or the problems themselves.
        examples: what to call the model with: tensors, or shapes such as ``(64, 3, 224, 224)``.
        device: where to measure; by default the model's GPU, else the current one.
        dtype: measure in this dtype instead of the problems' own. A RepLKNet poses its ConvFFNs and its stem whole in
            16-bit types only.
        top_k: how many candidates the cost model picks for each problem.
        rounds: in each of which every candidate is timed once, at least five.
        timer: stands in for ``tuning.timing.timer``.
        save: write to the cache (docs/tuning.md); without it the results are only returned.
        missing: leave out the problems that the cache holds a measurement of.
        seconds: after so many no other problem is started; those that are left have no result.
        progress: called with (problems done, problems in all, result) after each problem.

    Returns:
        A ``Result`` for each distinct problem: its plan, the microseconds and the estimate, and what became of each candidate.
        Of a model those come first that take most of its time by the estimates. Candidates that are wrong by the accuracy
        gate, or do not compile or run, are rejected with the reason.

    Raises:
        ContextLost: (``tuning.tuner``, a RuntimeError) a kernel ended the GPU's context, with an illegal access for instance.
            What was measured before is saved; only a new process can measure the rest.
        RuntimeError: under CUDA-graph capture, in deterministic mode, without a GPU, in a distributed job whose ranks would
            not read what is saved; or the model is in training mode.
        TypeError: ``target`` is neither a model nor problems.
        ValueError: a model without examples, or problems with them; ``top_k`` below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(target, nn.Module):
        of_model = next((p.device for p in target.parameters()), place)
        place = of_model if device is None and of_model.type == "cuda" else place
        problems = agenda.heaviest_first([problems_of(target, *examples)], gpus.of(place))
    else:
        problems = list(target)
        if examples:
            raise ValueError("examples are for a model: problems say everything themselves")
        for problem in problems:
            if not isinstance(problem, Problem):
                allowed = ", ".join(kind.__name__ for kind in KINDS.values())
                raise TypeError(f"expected a model or problems ({allowed}), got a {type(problem).__name__}")
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        problems = [replace(p, dtype=name, precision=p.precision if name == "float32" else None) for p in problems]
    if missing:
        problems = agenda.missing(problems, gpus.of(place))
    return tuner.tune_problems(
        problems, place, top_k=top_k, rounds=rounds, timer=timer, save=save, seconds=seconds, progress=progress
    )


__all__ = ["Explanation", "conv_ffn", "conv_stem", "dense_conv2d", "depthwise_conv2d", "explain",
           "pointwise_conv2d", "tune"]  # fmt: skip
