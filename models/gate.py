"""Whether a network computes what a reference computes: end to end, block by block, and tap by tap.

A figure is worth nothing as long as the network behind it may be another one. Each of the three sees what the others cannot:

- end to end: every stage's map and the logits. Sees an input, a stage or a residual that goes missing. Behind 24 pairs of
  blocks bfloat16's rounding reaches several percent of what another image changes, and hides what is smaller.
- block by block, each on the map that the reference has there, so that no rounding adds up. Sees a branch left out.
- tap by tap: the merged large kernels are shown single pixels, and answer with their taps. Sees one tap of one channel.

Errors of maps are relative to what another image changes there: a map that no image changes proves nothing, and fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lk_triton.nn import ConvUnit, ReparamDepthwiseConv2d
from lk_triton.nn.memory_order import as_inside
from lk_triton.planning.accuracy import Verdict

from .blocks import ConvFFN, RepLKBlock, Transition
from .reference import torch_form
from .replknet import RepLKNet

BLOCKS = (RepLKBlock, ConvFFN, Transition)

FLOAT32 = 1e-4
"""What float32 may differ, whatever torch's error is: sums in another order differ by 1e-6, what is sabotaged by 1e-3."""

TAP = {dtype: 2 * torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16)} | {torch.float32: 1e-3}
"""What a tap may differ. In 16 bits it is rounded twice, in the weight and in the output, by half an eps each: this is twice
that. float32 has room for TF32."""

PIXEL = 2.0**8
"""Brightness of the single pixels: the taps are larger than the bias then, and finite in float16."""

SMALL = 1 / 16
"""Of a channel's largest answer: the least that an error is relative to, as the bias may cancel what an answer is made of."""

Verdicts = dict[str, Verdict]


def relative_error(y: Tensor, exact: Tensor, other: Tensor) -> float:
    """``||y - exact|| / ||other - exact||`` in the 2-norm; ``other`` is ``exact`` of another image. NaN where those agree."""
    changed = torch.dist(other, exact)
    return (torch.dist(y.to(exact), exact) / changed).item() if changed > 0 else float("nan")


def maps_and_logits(model: RepLKNet, x: Tensor) -> dict[str, Tensor]:
    """x (N, C, H, W) -> the feature map of each stage (N, C, H, W), and logits (N, classes) where there is a head."""
    last, maps = cast("tuple[Tensor, list[Tensor]]", model.forward_intermediates(x))
    found = {info["module"]: m for info, m in zip(model.feature_info, maps, strict=True)}
    if model.num_classes > 0:
        found["logits"] = model.forward_head(last)
    return found


def failures(verdicts: Mapping[str, Verdict]) -> list[str]:
    """What failed, worst first, in words."""
    failed = sorted(((v, name) for name, v in verdicts.items() if not v.ok), key=lambda pair: -pair[0].error / pair[0].allowed)
    return [f"{name} differs by {v.error:.2g}, allowed is {v.allowed:.2g}" for v, name in failed]


class Gate:
    """What a ``reference`` computes of some images, to judge the same network in other forms and in ``dtype`` by.

    Args:
        reference: any form, in eval mode: the truth. In float64, or in float32 on a CPU, which has no TF32.
        x: (N, C, H, W) on its device, rounded to ``dtype`` here. The other image is a black one.
        dtype: of the networks to come.
        batch: with which they are called, and for which their layers have plans: x is repeated up to it. By default x's.

    The error of a map may be three times that of torch's form of the reference in ``dtype``, plus one rounding. That is more
    than a layer may have (``planning/accuracy.py``): what many layers round adds up by chance.
    """

    @torch.no_grad()
    def __init__(self, reference: RepLKNet, x: Tensor, dtype: torch.dtype, batch: int | None = None) -> None:
        self.x, self.dtype, self.batch = x.to(dtype), dtype, batch or len(x)
        like = next(reference.parameters())
        self._reference = in_fast_order(torch_form(reference))
        by_torch = in_fast_order(torch_form(deepcopy(reference).to(dtype)))
        both = torch.cat([self.x, torch.zeros_like(self.x)]).to(like)
        with recorded(self._reference) as inputs:
            self._outputs = {name: y.chunk(2) for name, y in maps_and_logits(self._reference, both).items()}
        found = maps_and_logits(by_torch, self.x)
        self._output_errors = {name: relative_error(found[name], *pair) for name, pair in self._outputs.items()}

        self._blocks: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._block_errors: dict[str, float] = {}
        self._kernels: dict[str, tuple[int, int, int]] = {}
        for name, y in inputs.items():
            module = self._reference.get_submodule(name)
            if is_kernel(module):
                self._kernels[name] = cast("tuple[int, int, int]", tuple(y.shape[1:]))
                continue
            seen = y.to(dtype)
            exact, other = module(seen.to(like)).chunk(2)
            self._blocks[name] = seen[: len(x)], exact, other
            self._block_errors[name] = relative_error(by_torch.get_submodule(name)(seen[: len(x)]), exact, other)

    @torch.no_grad()
    def check(self, network: RepLKNet) -> Verdicts:
        """All three. ``network`` is in ``dtype``, on the same device, in eval mode, and of the reference's architecture."""
        found = maps_and_logits(network, repeated(self.x, self.batch))
        return self.outputs(found) | self.blocks(network) | self.taps(network)

    @torch.no_grad()
    def outputs(self, found: Mapping[str, Tensor]) -> Verdicts:
        """End to end: ``found`` is what a network gives for a batch that begins with ``x``, all maps and logits or some."""
        return {
            name: self._verdict(relative_error(y[: len(self.x)], *self._outputs[name]), self._output_errors[name])
            for name, y in found.items()
        }

    @torch.no_grad()
    def blocks(self, network: RepLKNet) -> Verdicts:
        """Block by block: each gets the map that the reference has there."""
        found = {}
        for name, (seen, exact, other) in self._blocks.items():
            y = network.get_submodule(name)(as_inside(repeated(seen, self.batch)))
            found[name] = self._verdict(relative_error(y[: len(seen)], exact, other), self._block_errors[name])
        return found

    @torch.no_grad()
    def taps(self, network: RepLKNet) -> Verdicts:
        """Tap by tap: every depthwise kernel that holds its BatchNorm, on single pixels."""
        found = {}
        for name, shape in self._kernels.items():
            layer = network.get_submodule(name)
            if not any(isinstance(part, _BatchNorm) for part in layer.modules()):
                found[f"taps of {name}"] = self._check_taps(layer, self._reference.get_submodule(name), shape)
        return found

    def _check_taps(self, layer: nn.Module, reference: nn.Module, shape: tuple[int, int, int]) -> Verdict:
        images = pixels(shape, stride_of(reference), self.x)
        parts = repeated(images, -(-len(images) // self.batch) * self.batch).split(self.batch)
        answers = torch.cat([layer(as_inside(part)) for part in parts])[: len(images)]
        if images.device.type == "cpu":  # an answer is one product: float32 will do, and only for that a CPU is fast
            reference = deepcopy(reference).float()
        exact = reference(as_inside(images.to(next(reference.parameters()))))
        size = exact.abs()
        errors = (answers.to(exact) - exact).abs() / (size + SMALL * size.amax((0, 2, 3), keepdim=True))
        return Verdict(errors.max().item(), 0.0, TAP[self.dtype])

    def _verdict(self, error: float, torch_error: float) -> Verdict:
        allowed = 3 * torch_error + torch.finfo(self.dtype).eps
        return Verdict(error, torch_error, max(allowed, FLOAT32) if self.dtype == torch.float32 else allowed)


def in_fast_order(by_torch: RepLKNet) -> RepLKNet:
    """``by_torch``, a torch form, in the order in which torch is fast on a CPU: channels_last, but for float64."""
    by_torch.channels_last_on_cpu = next(by_torch.parameters()).dtype != torch.float64
    return by_torch


def repeated(x: Tensor, batch: int) -> Tensor:
    """``x`` over and over, up to so many images."""
    return x if len(x) == batch else x.repeat(-(-batch // len(x)), 1, 1, 1)[:batch]


def is_kernel(module: nn.Module) -> bool:
    """Whether it is one of the layers whose taps are looked at: depthwise with its BatchNorm."""
    return isinstance(module, ReparamDepthwiseConv2d) or (isinstance(module, ConvUnit) and module.conv.groups > 1)


def stride_of(kernel: nn.Module) -> tuple[int, int]:
    """Of one of these layers."""
    return cast("tuple[int, int]", kernel.conv.stride) if isinstance(kernel, ConvUnit) else (1, 1)


@contextmanager
def recorded(network: RepLKNet) -> Iterator[dict[str, Tensor]]:
    """What each block and each depthwise layer of ``network`` gets meanwhile, by its name."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs: found.update({name: inputs[0]})

    parts = [(name, m) for name, m in network.named_modules() if isinstance(m, BLOCKS) or is_kernel(m)]
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def pixels(shape: tuple[int, int, int], strides: tuple[int, int], like: Tensor) -> Tensor:
    """(8, C, H, W): black but for one pixel, bright or the negative of it, as a ReLU hides half of the taps.

    In the four corners it meets every tap that fits the map: the taps right of the centre in the left corners, and so on. With
    stride 2 it must lie on an even and on an odd place for that, in each direction.
    """
    c, h, w = shape
    places = [(0, size - 1) if s == 1 else (0, min(1, size - 1)) for size, s in zip((h, w), strides, strict=True)]
    images = like.new_zeros(8, c, h, w)
    for i, (sign, top, left) in enumerate(product((1, -1), *places)):
        images[i, :, top, left] = sign * PIXEL
    return images
