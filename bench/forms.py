"""The forms in which a network is measured: RepLKNet by torch and by lk_triton, and timm's networks as peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import lk_triton
from lk_triton.bank import Banked
from lk_triton.models import RepLKNet, published_form
from lk_triton.models.reference import torch_form

Call = Callable[[Tensor], Any]
Shape = tuple[int, int, int, int]

MODE = "max-autotune"
"""Of ``torch.compile``: with CUDA graphs of its own."""


class Form(NamedTuple):
    """A network ready to be called.

    Attributes:
        call: images (N, 3, H, W) -> class scores.
        memory_format: of the images.
        weight_bytes: parameters, buffers and packed weights.
    """

    call: Call
    memory_format: torch.memory_format
    weight_bytes: int


Build = Callable[[RepLKNet, torch.dtype, Shape], Form]


def weight_bytes(model: nn.Module) -> int:
    """Parameters, buffers, and the banks of prepared layers, in bytes."""
    plain = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return plain + sum(module.bank_bytes for module in model.modules() if isinstance(module, Banked))


def compiled(model: nn.Module, mode: str = MODE) -> Call:
    """``torch.compile``; outputs are cloned, since the mode's own graphs overwrite them in the next call."""
    torch._dynamo.reset()
    optimized = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)
    return lambda x: optimized(x).clone()


def _by_torch(merged: bool, channels_last: bool = False, compile_it: bool = False) -> Build:
    order = torch.channels_last if channels_last else torch.contiguous_format

    def build(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
        model = deepcopy(model)
        form = torch_form(model.structural_reparam()) if merged else published_form(model)
        form = form.to(dtype).to(memory_format=order)
        form.cpu_memory_format = order
        return Form(compiled(form) if compile_it else form, order, weight_bytes(form))

    return build


def _fused(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> RepLKNet:
    return deepcopy(model).reparameterize().to(dtype).prepare(shape)


def _eager(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    fused = _fused(model, dtype, shape)
    return Form(fused, torch.contiguous_format, weight_bytes(fused))


def _graph(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    fused = _fused(model, dtype, shape)
    return Form(lk_triton.graph(fused, shape), torch.contiguous_format, weight_bytes(fused))


def _reduce_overhead(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    fused = _fused(model, dtype, shape)
    return Form(compiled(fused, "reduce-overhead"), torch.contiguous_format, weight_bytes(fused))


FORMS: dict[str, Build] = {
    "published": _by_torch(merged=False),
    "merged": _by_torch(merged=True),
    "merged_channels_last": _by_torch(merged=True, channels_last=True),
    "lk_triton": _eager,
    "lk_triton_graph": _graph,
    "lk_triton_compile": _reduce_overhead,
    "merged_compile": _by_torch(merged=True, compile_it=True),
    "merged_channels_last_compile": _by_torch(merged=True, channels_last=True, compile_it=True),
}
"""The authors' default; the large and small kernels merged, by torch in either layout; the fused network as it is, as a CUDA
graph, and under ``torch.compile(mode="reduce-overhead")``; torch's again, compiled. What compiles comes last."""

GPU_ONLY = ("lk_triton_graph", "lk_triton_compile")
"""Forms of CUDA graphs."""

PEERS = {
    224: ("swin_base_patch4_window7_224", "convnext_base"),
    384: ("swin_base_patch4_window12_384", "convnext_base"),
}
"""timm's networks of about the same accuracy, by image size (Swin, arXiv:2103.14030; ConvNeXt, arXiv:2201.03545)."""


def peer_forms(name: str, size: int) -> Iterator[tuple[str, Callable[[torch.device, torch.dtype], Form]]]:
    """A timm network with random weights: eager, and compiled; ConvNeXt, as its authors ran it, in channels_last too."""
    for provider, channels_last, compile_it in (
        ("timm", False, False), ("timm_compile", False, True), ("timm_channels_last_compile", True, True),
    ):  # fmt: skip
        if channels_last and "convnext" not in name:
            continue

        def build(
            device: torch.device, dtype: torch.dtype, channels_last: bool = channels_last, compile_it: bool = compile_it
        ) -> Form:
            import timm

            order = torch.channels_last if channels_last else torch.contiguous_format
            options: dict[str, Any] = {"img_size": size} if name.startswith("swin") else {}
            model = timm.create_model(name, **options).eval().to(device, dtype).to(memory_format=order)
            return Form(compiled(model) if compile_it else model, order, weight_bytes(model))

        yield provider, build
