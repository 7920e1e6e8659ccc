"""The memory order of maps inside a network, in which its convolutions are fastest: on a CPU channels_last, on a GPU
channel-major."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gpu import interpreted
from ..ops import layout, transforms


def by_torch(x: Tensor) -> bool:
    """Whether convolutions of ``x`` are torch's or oneDNN's, which are fastest in channels_last: on a CPU."""
    return x.device.type == "cpu" and not interpreted()


def between_layers(x: Tensor) -> str | None:
    """The ``out_layout`` of a fused layer between others: channel-major on a GPU, without gradients; else None, that of x."""
    return None if by_torch(x) or torch.is_grad_enabled() else "channel_major"


def of_leaving(x: Tensor) -> str | None:
    """The ``out_layout`` of a fused layer whose map leaves the network: contiguous, but on a CPU, where it is copied later."""
    return None if by_torch(x) else "nchw"


def entering(x: Tensor, channels_last_on_cpu: bool) -> Tensor:
    """Images as a network's first layer wants them: on a CPU channels_last, or if that is not wanted contiguous."""
    if not by_torch(x) or transforms.active():  # vmap cannot change the memory order
        return x
    return x.contiguous(memory_format=torch.channels_last if channels_last_on_cpu else torch.contiguous_format)


def as_inside(x: Tensor) -> Tensor:
    """``x`` in the memory order that maps have inside a fused network."""
    return x.contiguous(memory_format=torch.channels_last) if by_torch(x) else layout.conform(x, "channel_major")
