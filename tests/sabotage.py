"""Networks that are wrong in one place, each as a gate has to notice it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lk_triton.models import RepLKNet

Damage = Callable[[RepLKNet], Any]


def zero_the_input(model: RepLKNet) -> None:
    model.stem[0].register_forward_pre_hook(lambda module, inputs: (torch.zeros_like(inputs[0]), *inputs[1:]))


def average_a_stage(model: RepLKNet) -> None:
    def average(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        return y.mean((2, 3), keepdim=True).expand_as(y).clone(memory_format=torch.preserve_format)

    model.stages[1].register_forward_hook(average)


def drop_a_residual(model: RepLKNet) -> None:
    block(model, 2, 1).register_forward_hook(lambda module, inputs, y: y - inputs[0])


def drop_a_small_kernel(model: RepLKNet) -> None:
    """Before the merge, which then leaves it out."""
    bn = block(model, 2, 0).get_submodule("large_kernel.small_conv.bn")
    for parameter in bn.parameters():
        nn.init.zeros_(parameter)


def change_a_tap(model: RepLKNet) -> None:
    """The median one of a channel of the first stage, by 10 %."""
    weight = cast("Tensor", block(model, 0, 0).get_submodule("large_kernel.lkb_reparam").weight)
    taps = weight.data[-1].flatten()
    taps[taps.abs().argsort()[taps.numel() // 2]] *= 1.1


def block(model: RepLKNet, stage: int, index: int) -> nn.Module:
    return model.get_submodule(f"stages.{stage}.blocks.{index}")


BEFORE_FUSION: dict[str, Damage] = {"a small kernel dropped": drop_a_small_kernel}
AFTER_FUSION: dict[str, Damage] = {
    "the input zeroed": zero_the_input,
    "a stage averaged": average_a_stage,
    "a residual dropped": drop_a_residual,
    "a tap changed": change_a_tap,
}
SABOTAGES = (*AFTER_FUSION, *BEFORE_FUSION)


@torch.no_grad()
def sabotaged(sabotage: str | None, training: RepLKNet, dtype: torch.dtype) -> RepLKNet:
    """The fused form of a network in ``dtype``, not prepared, wrong in the way that is named; None: right."""
    model = deepcopy(training)
    BEFORE_FUSION.get(sabotage or "", id)(model)
    model = model.convert("fused").to(dtype)
    AFTER_FUSION.get(sabotage or "", id)(model)
    return model
