"""The forms in which a network is measured: RepLKNet by torch and by lk_triton, and timm's networks as peers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import lk_triton
from lk_triton.algorithms.base import PDL
from lk_triton.models import RepLKNet
from lk_triton.models.reference import torch_form
from lk_triton.nn.prepack import PrepackedConv2d
from lk_triton.planning import cache

from .providers import Unavailable

Call = Callable[[Tensor], Any]
Shape = tuple[int, ...]

MODE = "max-autotune"
"""Of ``torch.compile``: with CUDA graphs of its own."""


class Form(NamedTuple):
    """A network ready to be called.

    Attributes:
        call: images (N, 3, H, W) -> class scores.
        memory_format: of the images.
        module: whose parameters, buffers and packed weights ``call`` reads.
        config: what runs, in words.
    """

    call: Call
    memory_format: torch.memory_format
    module: nn.Module
    config: str = "eager"

    @property
    def bank_bytes(self) -> int:
        """Packed weights of prepared layers."""
        return sum(module.bank_bytes for module in self.module.modules() if isinstance(module, PrepackedConv2d))

    @property
    def weight_bytes(self) -> int:
        """Parameters, buffers and packed weights."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return sum(tensor.nbytes for tensor in tensors) + self.bank_bytes


Build = Callable[[RepLKNet, torch.dtype, Shape], Form]


def compiled(form: Form, mode: str = MODE) -> Form:
    """``torch.compile``; outputs are cloned, since the mode's own graphs overwrite them in the next call."""
    from torch._inductor import select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False  # a table for every product
    torch._dynamo.reset()
    optimized = torch.compile(form.module, mode=mode, fullgraph=True, dynamic=False)
    return form._replace(call=lambda x: optimized(x).clone(), config=f"torch.compile, {mode}")


def _by_torch(form: str, channels_last: bool = False, compile_it: bool = False) -> Build:
    order = torch.channels_last if channels_last else torch.contiguous_format

    def build(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
        module = torch_form(deepcopy(model).convert(form)).to(dtype).to(memory_format=order)
        module.channels_last_on_cpu = channels_last
        made = Form(module, order, module)
        return compiled(made) if compile_it else made

    return build


def _eager(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    fused = deepcopy(model).convert("fused").to(dtype).prepare(shape)
    return Form(fused, torch.contiguous_format, fused)


def _graph(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    fused = deepcopy(model).convert("fused").to(dtype)
    return Form(lk_triton.graph(fused, shape), torch.contiguous_format, fused, "lk_triton.graph")


def _published_graph(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    form = _by_torch("training")(model, dtype, shape)
    return form._replace(call=lk_triton.graph(form.module, shape), config="eager, lk_triton.graph")


def _graph_estimated(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    with cache.unmeasured():
        return _graph(model, dtype, shape)._replace(config="lk_triton.graph, plans of the cost model alone")


def _graph_pdl(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    before = os.environ.get(PDL)
    os.environ[PDL] = "1"
    try:
        return _graph(model, dtype, shape)._replace(config=f"lk_triton.graph, {PDL}=1")
    finally:
        os.environ.pop(PDL)
        os.environ.update({} if before is None else {PDL: before})


def _reduce_overhead(model: RepLKNet, dtype: torch.dtype, shape: Shape) -> Form:
    return compiled(_eager(model, dtype, shape), "reduce-overhead")


FORMS: dict[str, Build] = {
    "published": _by_torch("training"),
    "published_graph": _published_graph,
    "merged": _by_torch("merged"),
    "merged_channels_last": _by_torch("merged", channels_last=True),
    "folded": _by_torch("fused"),
    "folded_channels_last": _by_torch("fused", channels_last=True),
    "lk_triton": _eager,
    "lk_triton_graph": _graph,
    "lk_triton_graph_estimated": _graph_estimated,
    "lk_triton_graph_pdl": _graph_pdl,
    "lk_triton_compile": _reduce_overhead,
    "folded_channels_last_compile": _by_torch("fused", channels_last=True, compile_it=True),
    "folded_compile": _by_torch("fused", compile_it=True),
    "merged_channels_last_compile": _by_torch("merged", channels_last=True, compile_it=True),
    "merged_compile": _by_torch("merged", compile_it=True),
}
"""The authors' default, as it is and as a CUDA graph; the large and small kernels merged, by torch in either layout; all
BatchNorms folded too; the fused network as it is, as a CUDA graph, by the plans of the cost model, as one whose kernels start
early, and under ``torch.compile(mode="reduce-overhead")``; torch's again, compiled. What compiles comes last."""

GPU_ONLY = ("published_graph", "lk_triton_graph", "lk_triton_graph_estimated", "lk_triton_graph_pdl", "lk_triton_compile")
"""Forms of CUDA graphs."""

PEERS = {
    224: ("swin_base_patch4_window7_224", "convnext_base"),
    384: ("swin_base_patch4_window12_384", "convnext_base"),
}
"""timm's networks of about the same accuracy, by image size (Swin, arXiv:2103.14030; ConvNeXt, arXiv:2201.03545)."""


def peer_forms(size: int) -> Iterator[tuple[str, Callable[[torch.device, torch.dtype], Form]]]:
    """timm's networks for images of this size, with random weights: eager, and compiled; ConvNeXt, as its authors ran it, in
    channels_last too.

    Yields names such as ``timm/convnext_base``, and how to build them: nothing is downloaded; Unavailable is raised where timm
    is missing.
    """
    for name in PEERS.get(size, ()):
        for way, channels_last, compile_it in (
            ("timm", False, False), ("timm_channels_last", True, False),
            ("timm_channels_last_compile", True, True), ("timm_compile", False, True),
        ):  # fmt: skip
            if not channels_last or "convnext" in name:
                yield f"{way}/{name}", partial(_by_timm, name, size, channels_last, compile_it)


def _by_timm(name: str, size: int, channels_last: bool, compile_it: bool, device: torch.device, dtype: torch.dtype) -> Form:
    try:
        import timm
    except ImportError:
        raise Unavailable("timm is not installed: pip install 'lk-triton[timm]'") from None
    order = torch.channels_last if channels_last else torch.contiguous_format
    options: dict[str, Any] = {"img_size": size} if name.startswith("swin") else {}
    with torch.device(device):
        module = timm.create_model(name, **options)
    module = module.eval().to(device, dtype).to(memory_format=order)
    made = Form(module, order, module)
    made = compiled(made) if compile_it else made
    return made._replace(config=f"{made.config}, timm {timm.__version__}")
