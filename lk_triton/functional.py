"""Public functions: validation and dispatch. Everything that computes goes through one registered op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from tabulate import tabulate
from torch import Tensor, nn

from . import device as devices
from . import library
from .algorithms import registry, torch_
from .problem import ACTIVATIONS, PRECISIONS, ConvProblem, output_size, pair, same_padding
from .recorder import problems_of
from .tuning import tuner
from .tuning.plan import Plan, at_least_one_image, plan, refusal

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
        algorithm: ``"auto"``, or ``"toeplitz"``, ``"direct"``, ``"torch"`` to force one.

    Returns:
        (N, C * multiplier, OH, OW) in the dtype and layout of x. Accumulation is in float32.

    ``toeplitz`` multiplies whole windows by zeros, so Inf and NaN in x spread up to a tile beyond the filter's
    footprint; ``direct`` and ``torch`` have exact footprints.

    Raises:
        TypeError: unsupported or mixed dtypes (outside autocast).
        ValueError: wrong rank, shape, device or option; or a forced algorithm that cannot serve (the text says why).
    """
    return dispatch(x, weight, bias, residual, activation, padding, stride, dilation, precision, algorithm)


def dispatch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    padding: str | int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    precision: str | None,
    algorithm: str = "auto",
    bank: Tensor | None = None,
    bank_format: str | None = None,
) -> Tensor:
    """``depthwise_conv2d`` with packed weights, for modules that hold them. Not public."""
    stride, padding, dilation = check(x, weight, bias, residual, activation, padding, stride, dilation, precision)
    if algorithm != "auto":
        registry.get(algorithm)
    if not _needs_grad(x, weight, bias, residual):
        return library.op(
            x, weight, bias, residual, bank, stride, padding, dilation, activation, precision, algorithm, bank_format
        )
    _check_gradients(algorithm)
    y = library.op(x, weight, bias, None, None, stride, padding, dilation, None, precision, "torch", None)
    y = torch_.activate(y, activation)
    return y if residual is None else y + residual.to(y.dtype)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_gradients(algorithm: str) -> None:
    if algorithm not in ("auto", "torch"):
        raise ValueError(
            f"algorithm={algorithm!r} has no gradients yet: use algorithm='auto' (which takes torch where a gradient "
            "is needed), or call it under torch.no_grad() or torch.inference_mode()"
        )


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    padding: str | int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    precision: str | None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Validate a call; returns stride, padding and dilation as pairs. Raises what ``depthwise_conv2d`` documents."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}; add a batch dimension with x[None]")
    if weight.dim() != 4:
        raise ValueError(f"weight must be (C * multiplier, 1, KH, KW), got shape {tuple(weight.shape)}")
    c, out_channels = x.shape[1], weight.shape[0]
    if c == 0 or weight.shape[1] != 1 or out_channels == 0 or out_channels % c:
        raise ValueError(
            f"a depthwise weight for {c} channels must be (C * multiplier, 1, KH, KW) with C = {c} >= 1, got shape "
            f"{tuple(weight.shape)}: x and weight disagree on the groups"
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be None or one of {', '.join(PRECISIONS)}, got {precision!r}")
    _check_dtypes(x, weight, bias, residual)
    if precision is not None and x.dtype != torch.float32:
        raise ValueError(f"precision={precision!r} is for float32 only, got {x.dtype}: pass precision=None")
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    kh, kw = weight.shape[2], weight.shape[3]
    if kh == 0 or kw == 0:
        raise ValueError(f"weight has no taps: shape {tuple(weight.shape)}")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be 'same', 'valid', an int or (h, w), got {padding!r}")
        same = padding == "same"
        padding = (same_padding(kh, dilation[0]), same_padding(kw, dilation[1])) if same else (0, 0)
    else:
        padding = pair("padding", padding, 0)
    oh = output_size(x.shape[2], kh, stride[0], padding[0], dilation[0])
    ow = output_size(x.shape[3], kw, stride[1], padding[1], dilation[1])
    if oh < 1 or ow < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(
            f"the output would be empty ({oh}x{ow}): map {x.shape[2]}x{x.shape[3]}, kernel {kh}x{kw}, padding {padding}, "
            f"dilation {dilation}; pad more or use a smaller kernel"
        )
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ValueError(f"bias must be ({out_channels},), got shape {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != (x.shape[0], out_channels, oh, ow):
        raise ValueError(
            f"residual must have the output's shape {(x.shape[0], out_channels, oh, ow)}, got {tuple(residual.shape)}"
        )
    return stride, padding, dilation


def _check_dtypes(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    present = {name: t for name, t in tensors.items() if t is not None}
    places = {t.device for t in present.values()}
    if len(places) > 1:
        text = ", ".join(f"{name} on {t.device}" for name, t in present.items())
        raise ValueError(f"all tensors must be on one device, got {text}: move them with .to(x.device)")
    for name, t in present.items():
        if t.dtype not in DTYPES:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"{name} must be one of {allowed}, got {t.dtype}")
    if library.autocast_dtype(x) is not None:
        return
    if len({t.dtype for t in present.values()}) > 1:
        text = ", ".join(f"{name} {t.dtype}" for name, t in present.items())
        raise TypeError(
            f"all tensors must have one dtype outside autocast, got {text}: cast them, or run under torch.autocast"
        )


@dataclass(frozen=True)
class Explanation:
    """Which algorithm would run, and why the others would not. ``str()`` of it is a table.

    Attributes:
        problem: what the tensors and options pose.
        device: name of the device.
        plan: the algorithm, config and source that would run.
        algorithms: per algorithm, the reason why it cannot serve, or its best estimate in seconds.
    """

    problem: ConvProblem
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
    stride, padding, dilation = check(x, weight, bias, residual, activation, padding, stride, dilation, precision)
    problem = library.problem_of(x, weight, bias, residual, stride, padding, dilation, activation, precision)
    dtype = library.autocast_dtype(x)
    if dtype is not None:
        problem = replace(problem, dtype=str(dtype).removeprefix("torch."), precision=None)
    needs_grad = _needs_grad(x, weight, bias, residual)
    return explain_problem(problem, devices.of(x.device), algorithm, needs_grad)


def explain_problem(
    problem: ConvProblem, device: devices.Device, algorithm: str = "auto", needs_grad: bool = False
) -> Explanation:
    """``explain`` for a problem on a device that need not be here (``device.for_arch``)."""
    if needs_grad:
        _check_gradients(algorithm)
    posed = at_least_one_image(problem)
    verdicts: dict[str, str | float] = {}
    for name, candidate in registry.ALGORITHMS.items():
        reason = refusal(posed, device, name)
        if needs_grad and name != "torch":
            reason = reason or "no gradients yet, and a tensor requires one"
        if reason is not None:
            verdicts[name] = reason
            continue
        estimates = (candidate.estimate(posed, c, device).seconds for c in candidate.configs(posed, device))
        verdicts[name] = min(estimates)
    chosen = plan(problem, device, "torch" if needs_grad and algorithm == "auto" else algorithm)
    if needs_grad and algorithm == "auto":
        chosen = Plan(chosen.algorithm, chosen.config, "gradient needed")
    return Explanation(problem, device.name, chosen, verdicts)


def tune(
    target: nn.Module | Iterable[ConvProblem],
    *examples: Tensor | Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    top_k: int = tuner.TOP_K,
    rounds: int = tuner.ROUNDS,
    timer: tuner.TimerFactory | None = None,
    save: bool = True,
    progress: tuner.Progress | None = None,
) -> list[tuner.Result]:
    """Measure the candidates for every depthwise problem of ``target``, and save the fastest for this and later processes.

    Args:
        target: a model in eval mode, whose forward is run once to see which problems it poses, or the problems themselves.
        examples: what to call the model with: tensors, or shapes such as ``(64, 3, 224, 224)``.
        device: where to measure; by default the model's GPU, else the current one.
        dtype: measure in this dtype instead of the problems' own.
        top_k: how many candidates the cost model picks for each problem.
        rounds: in each of which every candidate is timed once, at least five.
        timer: stands in for ``tuning.timing.timer``.
        save: write to the cache (docs/tuning.md); without it the results are only returned.
        progress: called with (problems done, problems in all, result) after each problem.

    Returns:
        A ``Result`` for each distinct problem: its plan, the microseconds and the estimate, and what became of each candidate.
        Candidates that are wrong by the accuracy gate, or do not compile or run, are rejected with the reason.

    Raises:
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
        problems = list(problems_of(target, *examples))
    else:
        problems = list(target)
        if examples:
            raise ValueError("examples are for a model: problems say everything themselves")
        for problem in problems:
            if not isinstance(problem, ConvProblem):
                raise TypeError(f"expected a model or ConvProblems, got a {type(problem).__name__}")
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        problems = [replace(p, dtype=name, precision=p.precision if name == "float32" else None) for p in problems]
    return tuner.tune_problems(
        problems, place, top_k=top_k, rounds=rounds, timer=timer, save=save, progress=progress
    )


__all__ = ["Explanation", "depthwise_conv2d", "explain", "tune"]
