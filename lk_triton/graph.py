"""CUDA-graph capture and replay of a whole network: one launch for the CPU, whatever the number of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .nn.prepack import PrepackedConv2d, state_of
from .ops import registration as library

WARM_UP = 3
"""Forwards before the capture: plans, compilations and cuBLAS's workspaces are made there."""


@dataclass(frozen=True)
class Captured:
    """One captured forward: the buffer that it reads, the output that it writes, and how to run it again."""

    x: Tensor
    output: Any
    replay: Callable[[], None]


class Snapshot:
    """What a captured graph of ``model`` depends on, as it is now: the modules, their parameters and buffers, packed weights.

    Holds their memory, which is then not given to others while the graph reads it. ``ended`` looks at every module and tensor,
    at about a tenth of a microsecond each.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._children = [(m._modules, list(m._modules.items())) for m in self._modules if m._modules]
        dicts = [held for m in self._modules for held in (m._parameters, m._buffers)]
        self._slots = [(held, name, tensor) for held in dicts for name, tensor in held.items()]
        tensors = [tensor for _, _, tensor in self._slots if tensor is not None]
        self._addresses = [(t, t.data_ptr()) for t in tensors]
        self._prepacked = [(m, m.changes, state_of(m.weight)) for m in self._modules if isinstance(m, PrepackedConv2d)]
        self._memory = [t.detach() for t in tensors], [m._prepacked_weight()[0] for m, _, _ in self._prepacked]

    def ended(self) -> bool:
        """Whether a forward could now read other memory or run other layers than the graph does.

        Values that were written in place are no end, since the graph reads them; those of a weight that was packed are.
        """
        return (
            any(module.training for module in self._modules)
            or any(list(children.items()) != expected for children, expected in self._children)
            or any(held.get(name) is not tensor for held, name, tensor in self._slots)
            or any(tensor.data_ptr() != address for tensor, address in self._addresses)
            or any(m.changes != changes or state_of(m.weight) != state for m, changes, state in self._prepacked)
        )


class Graph:
    """A network captured for some input shapes; made by ``graph``. Call it like the network.

    The output lives in static buffers: the next call with the same shape overwrites it, so clone what must stay. Inputs are
    copied into static buffers too, so the caller orders calls from several threads or streams. The weights that were captured
    stay in memory as long as the graph does.

    Raises:
        ValueError: the input's shape, dtype or device is none that was captured.
        RuntimeError: since the capture the network was trained, loaded into, moved, cast or prepared again, or a layer, a
            parameter or a buffer was replaced, so that the graph would answer with old weights: call ``graph`` again.
    """

    def __init__(self, model: nn.Module, captured: Sequence[Captured]) -> None:
        self._captured = {(tuple(c.x.shape), c.x.dtype, c.x.device): c for c in captured}
        self._snapshot = Snapshot(model)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The captured input shapes."""
        return [shape for shape, _, _ in self._captured]

    def __call__(self, x: Tensor) -> Any:
        """``model(x)`` by replay: x of a captured shape, dtype and device -> what the model returns, in static buffers."""
        captured = self._captured.get((tuple(x.shape), x.dtype, x.device))
        if captured is None:
            known = "; ".join(f"{shape} {dtype} on {device}" for shape, dtype, device in self._captured)
            raise ValueError(
                f"no graph was captured for {tuple(x.shape)} {x.dtype} on {x.device}; captured: {known}. Convert the input, "
                "or capture that shape too: lk_triton.graph(model, example, another_example)"
            )
        captured.x.copy_(x)
        captured.replay()
        if self._snapshot.ended():  # looked for while the GPU works
            raise RuntimeError(
                "the network has changed since its capture (train(), load_state_dict, .to(), a cast, prepare(), or a layer or "
                "parameter was replaced), and the graph would answer with its old weights: put it in eval mode and call "
                "lk_triton.graph(model, example) again"
            )
        return captured.output

    def __getstate__(self) -> Any:
        raise TypeError("a captured graph cannot be copied or pickled: copy the model, and capture the copy")


def graph(model: nn.Module, *examples: Tensor | Sequence[int]) -> Graph:
    """Capture ``model(example)`` as a CUDA graph, for one input shape or several, which share their memory.

    Args:
        model: in eval mode, on a GPU. It is prepared for the examples first (``prepare``): weights are packed, kernels
            planned and compiled before the capture, not in it.
        examples: tensors, or shapes such as (1, 3, 224, 224), which stand for zeros in the dtype and on the device of the
            model.

    Returns:
        A ``Graph``, called like the model. It answers with the weights of now: what changes them ends its validity, and a
        replay then raises.

    Raises:
        RuntimeError: the model is in training mode or not on a CUDA or ROCm GPU.
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("a graph is captured on example inputs: pass tensors or shapes, such as (1, 3, 224, 224)")
    if any(module.training for module in model.modules()):
        raise RuntimeError("a graph is captured for inference: call .eval() on the model first")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    inputs = [e.clone() if isinstance(e, Tensor) else like.new_zeros(tuple(e)) for e in examples]
    for x in inputs:
        if x.device.type != "cuda":
            raise RuntimeError(f"CUDA graphs need a CUDA or ROCm GPU, the example is on {x.device}: call the model itself")
    prepare(model, inputs)
    inputs.sort(key=Tensor.numel, reverse=True)  # the largest first: the others fit into its memory
    return Graph(model, capture(model, inputs))


def prepare(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Pack the weights: by the model's own ``prepare`` for these inputs, else layer by layer."""
    own = getattr(model, "prepare", None)
    if callable(own):
        own(*(tuple(x.shape) for x in inputs))
        return
    for module in model.modules():
        if isinstance(module, PrepackedConv2d):
            module.prepare()


@torch.no_grad()
def capture(model: nn.Module, inputs: Sequence[Tensor]) -> list[Captured]:
    """One graph per input, all in one memory pool; ``inputs`` become the static buffers."""
    found = []
    device = inputs[0].device
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for x in inputs:
            output = None
            for _ in range(WARM_UP):
                output = model(x)
            # Of the pool, an output might lie where an earlier graph has maps of its own, which every replay overwrites.
            apart = tree_map_only(Tensor, like, output) if found else None
            stream.synchronize()
            cuda_graph = torch.cuda.CUDAGraph()
            with library.no_packing(), torch.cuda.graph(cuda_graph, pool=pool, stream=stream):
                output = model(x)
                if apart is not None:
                    for kept, computed in zip(tree_leaves(apart), tree_leaves(output), strict=True):
                        if isinstance(computed, Tensor):
                            kept.copy_(computed)
                    output = apart
            found.append(Captured(x, output, cuda_graph.replay))
    torch.cuda.current_stream(device).wait_stream(stream)
    return found


def like(tensor: Tensor) -> Tensor:
    """An uninitialized tensor of the same shape, strides, dtype and device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


__all__ = ["Graph", "graph"]
