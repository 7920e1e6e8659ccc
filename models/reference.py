"""References for accuracy and latency: the network as its authors' default computes it, and a random one worth comparing."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lk_triton.nn import ConvUnit
from lk_triton.nn.fused_conv import FusedConv2d

from .replknet import RepLKNet

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
Network = TypeVar("Network", bound=RepLKNet)

NOISE_IMAGES = (4, 128)
"""How many images of noise a random network takes its statistics from, and their side. They serve for images of 64x64 to
224x224: a black one changes every stage of RepLKNet-31B by 70 % or more. Noise of 64x64 would not do: on a small map a large
kernel has the use of few of its taps."""


def published_form(model: RepLKNet) -> RepLKNet:
    """``model`` as the authors' default computes it: nn.Conv2d in NCHW, BatchNorms, both branches.

    A copy that shares ``model``'s parameters and buffers: it costs no memory, and follows them.

    Raises:
        ValueError: ``model`` is not in the training form, so that its BatchNorms are gone.
    """
    if model.form != "training":
        raise ValueError(f"the published form needs a model in the training form, this one is in the {model.form} form")
    return torch_form(model)


def torch_form(model: RepLKNet) -> RepLKNet:
    """``model``, in any form, computed by nn.Conv2d and torch's elementwise operations.

    A copy that shares its parameters and buffers.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    by_torch = copy.deepcopy(model, shared)
    by_torch.channels_last_on_cpu = False
    for parent in list(by_torch.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.Conv2d, FusedConv2d)):
                # a ConvUnit applies the activation itself, the merged large kernel's parent does not
                activation = None if isinstance(parent, ConvUnit) else getattr(child, "activation", None)
                plain = _plain(child)
                setattr(parent, name, plain if activation is None else nn.Sequential(plain, ACTIVATIONS[activation]()))
    return by_torch.train(model.training)


def _plain(conv: nn.Conv2d | FusedConv2d) -> nn.Conv2d:
    size = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    kernel, stride, padding, dilation = cast("list[tuple[int, int]]", size)
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, kernel, stride, padding, dilation, conv.groups,
        bias=conv.bias is not None, device="meta",
    )  # fmt: skip
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain.train(conv.training)


@torch.no_grad()
def randomize_(model: Network, seed: int = 0) -> Network:
    """Make the BatchNorms those of a network that sees its images, in place and whatever they held; returns ``model``.

    A fresh BatchNorm computes almost the identity and would hide a wrong fold. Statistics that do not fit the maps let every
    image vanish behind a constant, and would hide everything else. So the affine parameters are drawn at random, and the
    statistics are those of one forward pass over ``NOISE_IMAGES``. The BatchNorms that close a residual branch (``pw2``) get
    weights in 0.05 to 0.2, so that the sum over 24 pairs of blocks stays finite in float16.

    The draws depend on ``seed`` alone; the statistics also on the convolutions' weights, and in their rounding on device and
    dtype. Training flags and momenta stay as they are.

    Raises:
        ValueError: ``model`` has no BatchNorm (the fused form).
    """
    generator = torch.Generator().manual_seed(seed)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise ValueError("the model has no BatchNorm to randomize: do it before reparameterize()")
    for name, bn in found:
        low, high = (0.05, 0.2) if name.endswith("pw2.bn") else (0.5, 1.5)
        for tensor, draw in (
            (bn.weight, lambda t, low=low, high=high: t.uniform_(low, high, generator=generator)),
            (bn.bias, lambda t: t.normal_(0, 0.2, generator=generator)),
        ):
            if tensor is not None:
                tensor.copy_(draw(torch.empty(tensor.shape)))
    _take_statistics(model, generator)
    return model


def _take_statistics(model: RepLKNet, generator: torch.Generator) -> None:
    """Set the running statistics of every BatchNorm that ``forward`` reaches to those of noise."""
    by_torch = torch_form(model).eval()  # shares the buffers, not the flags
    by_torch.channels_last_on_cpu = True
    for module in by_torch.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.momentum, module.num_batches_tracked = 1.0, None
    count, size = NOISE_IMAGES
    images = torch.randn(count, model.in_chans, size, size, generator=generator)
    by_torch(images.to(next(model.parameters())))


__all__ = ["published_form", "randomize_", "torch_form"]
