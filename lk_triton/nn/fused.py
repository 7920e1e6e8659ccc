"""Chains of convolutions that one kernel may compute: ``ConvFFN2d`` and ``Stem2d``. They ask the planner whether it does.

If it does not, the layers run one by one, each by its own plan and with its own prepacked weight. So they do in training, and
if calling a layer does more than its convolution: if it has a hook, a parametrization or another ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from ..algorithms.fused.ffn.host import WIDTHS
from ..algorithms.fused.stem.host import MOST_CHANNELS, MOST_INPUTS
from ..functional import conv_ffn, conv_stem
from ..ops import layout, transforms
from ..ops.problem import Chain, Epilogue, FfnProblem, StemProblem
from ..planning.autotune import plan_for_call
from .dense import PointwiseConv2d, StemConv2d
from .depthwise import DepthwiseConv2d
from .fused_conv import FusedConv2d
from .memory_order import between_layers, by_torch
from .units import ConvUnit

Kind = tuple[type[FusedConv2d], int, int]
"""A layer of a chain: its class, kernel size and stride; padded by half the kernel."""

POINTWISE: Kind = (PointwiseConv2d, 1, 1)
FFN = (POINTWISE, POINTWISE)
STEM = ((StemConv2d, 3, 2), (DepthwiseConv2d, 3, 1), POINTWISE)


class ConvFFN2d(nn.Module):
    """A ConvFFN, ``pw2(pw1(x)) + residual``: two 1x1 convolutions with an activation between them.

    Args:
        pw1, pw2: from C channels to the hidden ones, and back.
    """

    pw1: ConvUnit
    pw2: ConvUnit

    def __init__(self, pw1: ConvUnit, pw2: ConvUnit) -> None:
        super().__init__()
        self.pw1, self.pw2 = pw1, pw2

    def forward(self, x: Tensor, residual: Tensor | None = None, out_layout: str | None = None) -> Tensor:
        """x (N, C, H, W), residual of the same shape or None -> the same shape, where fused in ``out_layout``."""
        layers = plain_layers((self.pw1, self.pw2), FFN) if x.shape[1] in WIDTHS else None
        if layers is None or layers[1].activation is not None or not self._in_one_kernel(x, layers, residual, out_layout):
            return self.pw2(self.pw1(x), residual, out_layout)
        first, second = layers
        return conv_ffn(
            x, first.weight, first.bias, second.weight, second.bias, residual,
            activation=first.activation, out_layout=out_layout,
        )  # fmt: skip

    def _in_one_kernel(self, x: Tensor, layers: list[Any], residual: Tensor | None, out_layout: str | None) -> bool:
        def problem() -> FfnProblem:
            n, c, h, w = x.shape
            order, epilogue = layout.layout_of(x), Epilogue(True, layers[0].activation, residual is not None)
            return FfnProblem(n, c, h, w, layers[0].out_channels, name_of(x), order, out_layout or order, epilogue)

        fits = layers[0].activation is not None and layers[0].in_channels == layers[1].out_channels in WIDTHS
        return fits and in_one_kernel(x, layers, residual, problem)


class Stem2d(nn.Sequential):
    """A stem: dense 3x3 with stride 2, depthwise 3x3 and 1x1, each a ``ConvUnit`` with the same activation, and what follows.

    One kernel may compute these three. What follows is called in turn.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images (N, Cin, H, W) -> (N, C, H/2, W/2), halves rounded up, and through what follows."""
        units, out_layout = list(self), between_layers(x)
        layers = plain_layers(units[:3], STEM)
        if layers is not None and self._in_one_kernel(x, layers, out_layout):
            first, second, third = layers
            y = conv_stem(
                x, first.weight, first.bias, second.weight, second.bias, third.weight, third.bias,
                activation=first.activation, out_layout=out_layout,
            )  # fmt: skip
            following = units[3:]
        else:
            y = units[0](x, None, out_layout)
            following = units[1:]
        for unit in following:
            y = unit(y)
        return y

    def _in_one_kernel(self, x: Tensor, layers: list[Any], out_layout: str | None) -> bool:
        activation, channels = layers[0].activation, layers[0].out_channels

        def problem() -> StemProblem:
            n, c, h, w = x.shape
            order = layout.layout_of(x)
            return StemProblem(n, c, h, w, channels, name_of(x), order, out_layout or order, Epilogue(True, activation))

        alike = activation is not None and all(
            layer.activation == activation and layer.out_channels == channels for layer in layers
        )
        fits = layers[0].in_channels <= MOST_INPUTS and channels <= MOST_CHANNELS
        return alike and fits and in_one_kernel(x, layers, None, problem)


def in_one_kernel(x: Tensor, layers: list[Any], residual: Tensor | None, problem: Callable[[], Chain]) -> bool:
    """Whether a chain of ``layers``, whose channels a kernel fits, is to be posed whole.

    The plan for ``problem`` decides. Where nothing may be planned, what no input's size changes decides: 16 bits on a GPU.
    That is so while ``torch.compile`` or ``torch.export`` traces, whose sizes may be symbols, and where calls are watched
    (a dispatch mode) or nothing is computed: who tunes a network has to see the chain.
    """
    tensors = [x, residual, *(tensor for layer in layers for tensor in (layer.weight, layer.bias))]
    if x.dtype not in (torch.float16, torch.bfloat16) or by_torch(x) or transforms.active(*tensors):
        return False
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    if torch.compiler.is_compiling():
        return True
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return plan_for_call(problem(), x.device, "auto", None).algorithm not in ("layerwise", "torch")


def plain_layers(units: Sequence[Any], kinds: Sequence[Kind]) -> list[Any] | None:
    """The convolutions of ``units``, fused and for inference, if they are of these kinds and a call of the units computes
    them and does no more."""
    if _has_any_global_hook():
        return None
    layers = []
    for unit, (kind, size, stride) in zip(units, kinds, strict=True):
        if not does_only(unit, ConvUnit) or not does_only(unit.conv, kind):
            return None
        if not unit.fused or unit.training or unit.conv.bias is None:
            return None
        geometry = unit.conv.kernel_size, unit.conv.stride, unit.conv.padding, unit.conv.dilation
        if geometry != ((size, size), (stride, stride), (size // 2, size // 2), (1, 1)):
            return None
        layers.append(unit.conv)
    return layers


def does_only(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a call of ``module`` runs ``kind.forward`` on its own parameters and nothing else."""
    own = isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in module.__dict__
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return own and not hooks and not parametrize.is_parametrized(module)


def name_of(x: Tensor) -> str:
    """The dtype of ``x`` as problems name it."""
    return str(x.dtype).removeprefix("torch.")
