"""Where a network's time goes, depthwise, pointwise or the rest, and how many kernels it launches: torch's profiler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = ("depthwise", "pointwise", "rest")

OURS = {
    "toeplitz_kernel": "depthwise", "resident_kernel": "depthwise", "direct_kernel": "depthwise",
    "direct_channels_last_kernel": "depthwise", "pack_kernel": "depthwise",
    "pointwise_kernel": "pointwise", "convffn_kernel": "pointwise", "epilogue_kernel": "pointwise",
    "convstem_kernel": "pointwise", "stem_kernel": "rest",
}  # fmt: skip
"""What every kernel of lk_triton computes. ``epilogue_kernel`` closes cuBLAS's products. ``convstem_kernel`` is a dense 3x3, a
depthwise 3x3 and a 1x1 layer in one: with the 128 channels of RepLKNet-31B, 78 % of its work is the 1x1's, 16 % the dense and
5 % the depthwise layer's."""

CUBLAS = re.compile(r"gemm|nvjet|cublas|cutlass|xmma")
"""Names of the products that lk_triton leaves to cuBLAS."""

CONVOLUTIONS = re.compile(
    r"aten::(conv2d|\w*convolution\w*|_conv_depthwise2d|\w*conv2d\w*)|lk_triton::(depthwise|dense)_conv2d"
)
PRODUCTS = re.compile(r"aten::(mm|addmm|linear|_addmm_activation)|mkldnn::_linear_pointwise")

UNKNOWN = 0.02
"""Of the time: with more of it in kernels that no operation claims, there are no shares."""


@dataclass(frozen=True)
class Shares:
    """Fractions of the time by kind, None where they cannot be told, and the number of kernels, None on a CPU."""

    of_time: dict[str, float] | None
    kernels: int | None


def shares(call: Callable[[], object], device: torch.device, by_name: bool = False) -> Shares:
    """Profile one call, which must be warm.

    A kernel belongs to the operation that launched it, of which a convolution's weight says what it is. With ``by_name``
    (a call of lk_triton, perhaps as a CUDA graph) its own name does.
    """
    on_gpu = device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])], record_shapes=True, acc_events=True
    ) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = list(found.events() or [])
    if not on_gpu:
        pieces = [(kind_or_rest(e), e.self_cpu_time_total) for e in events]
        return Shares(fractions(pieces), None)
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in on_device if is_kernel(e.name) and not getattr(e, "is_user_annotation", False)]
    if by_name:
        pieces = [(kind(e.name), e.time_range.elapsed_us()) for e in kernels]
    else:
        pieces = list(by_operation(events))
        missing = sum(e.time_range.elapsed_us() for e in kernels) - sum(us for _, us in pieces)
        pieces.append(("unknown", max(missing, 0.0)))
    return Shares(fractions(pieces), len(kernels))


def by_operation(events: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """(kind, microseconds) of every kernel, by the operation that launched it."""
    for event in events:
        for kernel in event.kernels:
            if is_kernel(kernel.name):
                yield kind_or_rest(event), kernel.duration


def fractions(pieces: Iterable[tuple[str, float]]) -> dict[str, float] | None:
    """Each kind's share of the known time; None where too much is unknown."""
    total = dict.fromkeys((*KINDS, "unknown"), 0.0)
    for kind, us in pieces:
        total[kind] += us
    everything = sum(total.values())
    if everything <= 0 or total["unknown"] > UNKNOWN * everything:
        return None
    known = everything - total["unknown"]
    return {kind: total[kind] / known for kind in KINDS}


def is_kernel(name: str) -> bool:
    """Whether a device event is a kernel: not a copy, a fill or a range that somebody marked."""
    return not name.startswith(("Memcpy", "Memset", "ProfilerStep", "##", "Torch-Compiled"))


def kind(name: str) -> str:
    """What a kernel of this name, run by lk_triton, computes."""
    ours = next((kind for kernel, kind in OURS.items() if name.startswith(kernel)), None)
    return ours or ("pointwise" if CUBLAS.search(name) else "rest")


def kind_or_rest(event: Any) -> str:
    """The kind of an operation; unknown where the event is none, as code that torch.compile wrote."""
    return kind_of_operation(event) or ("rest" if "::" in event.name else "unknown")


def kind_of_operation(event: Any) -> str | None:
    """The kind of the innermost convolution or product that an operation is part of; None where it is part of none.

    Depthwise is what has a weight (C, 1, KH, KW), pointwise a product with a weight or a convolution with (Cout, Cin, 1, 1),
    rest any other convolution.
    """
    while event is not None:
        if PRODUCTS.fullmatch(event.name):
            return "pointwise"
        weight = event.input_shapes[1] if CONVOLUTIONS.fullmatch(event.name) and len(event.input_shapes) > 1 else []
        if len(weight) == 4:
            if weight[1] == 1:
                return "depthwise"
            return "pointwise" if list(weight[2:]) == [1, 1] else "rest"
        event = event.cpu_parent
    return None
