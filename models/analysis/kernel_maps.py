"""Where the weight of the depthwise kernels lies: mean |w| per tap of each stage, before and after the branches are merged.

RepLKNet paper, appendix C and figure 6: the centre and the two axes weigh most; re-parameterization strengthens the centre.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lk_triton.nn import ReparamDepthwiseConv2d
from lk_triton.nn.fused_conv import FusedConv2d
from lk_triton.reparam import fold_batch_norm

from .erf import Map, centred_shares

LARGE = 5
"""Depthwise convolutions smaller than this in both directions are left out, unless they are large-kernel layers by type."""

MOST = 90
"""Percent of the weight that the effective size holds."""


class Layer(NamedTuple):
    """A depthwise layer: the kernels (C, KH, KW) that act, and before the merge the large branch's own, where there is one."""

    name: str
    before: Tensor | None
    after: Tensor


@dataclass(frozen=True)
class Stage:
    """The layers of one shape: their names, and maps (KH, KW) of mean |w| over layers and channels."""

    names: tuple[str, ...]
    channels: int
    before: Map | None
    after: Map

    @property
    def title(self) -> str:
        """Such as ``31x31, 128 channels, 2 layers``."""
        kh, kw = self.after.shape
        return f"{kh}x{kw}, {self.channels} channels, {len(self.names)} layer{'s' if len(self.names) > 1 else ''}"


def layers(model: nn.Module) -> Iterator[Layer]:
    """The large-kernel layers of any network in eval mode, in the order of its modules.

    The kernels of a ``ReparamDepthwiseConv2d`` have their BatchNorms folded in, so that the two maps are of one scale; those
    of other depthwise convolutions are as they are.
    """
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, ReparamDepthwiseConv2d):
            inside |= set(module.modules())
            merged = module if module.merged else copy.deepcopy(module).reparameterize(prepare=False)
            before = None if module.merged else _large_branch(module)
            yield Layer(name, before, _taps(merged.lkb_reparam.weight))
        elif isinstance(module, (nn.Conv2d, FusedConv2d)) and module not in inside:
            depthwise = module.groups == module.in_channels > 1
            if depthwise and max(module.kernel_size) >= LARGE:
                yield Layer(name, None, _taps(module.weight))


def _large_branch(module: ReparamDepthwiseConv2d) -> Tensor:
    unit = module.lkb_origin
    weight, _ = fold_batch_norm(cast("nn.Conv2d", unit.conv).weight.double(), None, cast("_BatchNorm", unit.bn))
    return _taps(weight)


def _taps(weight: Tensor) -> Tensor:
    return weight.detach().double().abs().squeeze(1).cpu()


def stages(model: nn.Module) -> list[Stage]:
    """The maps of the network's stages, in the order in which they begin.

    Raises:
        ValueError: it has no large depthwise kernel.
    """
    by_shape: dict[torch.Size, list[Layer]] = {}
    for layer in layers(model):
        by_shape.setdefault(layer.after.shape, []).append(layer)
    found = []
    for members in by_shape.values():
        before = [layer.before for layer in members if layer.before is not None]
        found.append(Stage(
            tuple(layer.name for layer in members), members[0].after.shape[0],
            _mean(before) if len(before) == len(members) else None, _mean([layer.after for layer in members]),
        ))  # fmt: skip
    if not found:
        raise ValueError(f"the network has no depthwise convolution of {LARGE}x{LARGE} or more")
    return found


def _mean(weights: list[Tensor]) -> Map:
    return torch.cat(weights).mean(0).numpy().astype(np.float64)


def centre_mass(values: Map) -> float:
    """The share of ``values`` (KH, KW) that lies in the central 3x3; a flat kernel has 9 / (KH * KW)."""
    return float(centred_shares(values)[1])


def effective_size(values: Map) -> int:
    """The side of the smallest centred odd square, from 3x3 on, that holds more than 90 % of ``values`` (KH, KW).

    The square may reach beyond the shorter side of a kernel that is not square itself, not beyond the longer one.
    """
    ring = int(np.argmax(centred_shares(values) > MOST / 100))
    return min(2 * max(ring, 1) + 1, max(values.shape))
