"""Prepacked weights of a module: made by ``prepare()``, dropped by whatever may change the weight.

A prepacked weight is a plain attribute, neither parameter nor buffer. It serves as long as the weight is the tensor that was
packed, in the same memory, at the same version. A write through ``.data`` shows in none of the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Self

from .. import gpu as gpus
from ..algorithms import registry
from ..ops.problem import Problem
from ..planning.plan import plan


class _Prepared(NamedTuple):
    """A prepacked weight, its format, and the parameter that it was packed from, with its state then."""

    packed: Tensor
    format: str
    weight: Tensor
    state: tuple[int, int]


def state_of(tensor: Tensor) -> tuple[int, int]:
    """Address and version counter (0 for an inference tensor, which has none): what ``swap_tensors``, an assignment to
    ``.data`` or a write in place changes. A write through ``.data`` changes neither."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class PrepackedConv2d(_ConvNd):
    """A convolution that may hold its weight packed.

    ``prepare()`` packs the weight once for repeated inference. The prepacked weight is no parameter or buffer; it is
    dropped by ``train()``, ``.to()``, ``.half()``, ``load_state_dict``, ``deepcopy`` and pickling, and no longer read once the
    weight was replaced or written to in place. A write through ``weight.data`` does not show, nor does any write in place to a
    module that ``torch.compile`` has traced: call ``prepare()`` again after these.
    """

    _prepared: _Prepared | None = None

    changes = 0
    """Of the weight or its packing, so far: what was captured or compiled at another number is stale."""

    @torch.no_grad()
    def prepare(self, *example_shapes: Sequence[int]) -> Self:
        """Pack the weight for inference, in the format that is fastest over the input shapes to come.

        Args:
            example_shapes: (N, C, H, W) each; by default one batch of 64 maps of a usual size.

        ``torch.compile`` cannot trace what oneDNN packs on a CPU: a compiled module packs there in every call.

        Raises:
            RuntimeError: the module is in training mode.
        """
        if self.training:
            raise RuntimeError("prepare() packs weights for inference: call .eval() on the module first")
        if self.weight.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("under capture prepare() would pack in every replay of the CUDA graph: call it before")
        self._prepared = self._packed(example_shapes or (self._example(),))  # in one step: other threads may be calling
        self.changes += 1
        return self

    def _packed(self, shapes: Sequence[Sequence[int]]) -> _Prepared | None:
        """The weight of now in the format that is fastest over ``shapes``; None where it is read as it is."""
        weight, gpu = self.weight, gpus.of(self.weight.device)
        problems = [self._problem(shape) for shape in shapes]
        by_format: dict[str, tuple[Problem, Any, Any]] = {}
        for problem in problems:
            chosen = plan(problem, gpu)
            algorithm = registry.get(chosen.algorithm)
            bank_format = algorithm.weight_format(chosen.config)
            if bank_format is not None:
                by_format[bank_format] = (problem, algorithm, chosen.config)
        if not by_format:
            return None

        def seconds(bank_format: str) -> float:
            chosen = [(p, plan(p, gpu, bank_format=bank_format)) for p in problems]
            return sum(c.estimate(p, gpu).seconds for p, c in chosen)

        best = min(by_format, key=seconds)
        problem, algorithm, config = by_format[best]
        state = state_of(weight)
        # Of type Parameter, though not registered: torch.compile(dynamic=True) then takes its shape as fixed.
        packed = nn.Parameter(algorithm.prepack(weight, problem, config), requires_grad=False)
        if packed.is_cuda:
            torch.cuda.current_stream(packed.device).synchronize()  # a call on another stream may read it right away
        return _Prepared(packed, best, weight, state)

    @property
    def bank_bytes(self) -> int:
        """Memory of the packed weights held now, in bytes; 0 where none are held."""
        prepared = self._prepared
        return 0 if prepared is None else prepared.packed.nbytes

    def _prepacked_weight(self) -> tuple[Tensor | None, str | None]:
        """The weight as it is now, prepacked, and its format; nothing where it is not packed."""
        prepared = self._prepared  # read once: another thread may replace it
        if prepared is None or prepared.weight is not self.weight:
            return None, None
        if torch.compiler.is_compiling():
            # which can trace neither the state of a tensor nor an opaque one
            return (None, None) if prepared.packed.is_mkldnn else (prepared.packed, prepared.format)
        if prepared.state != state_of(prepared.weight):
            return None, None
        return prepared.packed, prepared.format

    @property
    def _on_cpu(self) -> bool:
        """Whether the layer's kernels are torch's and oneDNN's for CPUs, whose packed weights are for channels_last."""
        return self.weight.device.type == "cpu" and not gpus.interpreted()

    def _drop(self) -> None:
        self._prepared = None
        self.changes += 1

    def _example(self) -> tuple[int, int, int, int]:
        """A usual input shape."""
        raise NotImplementedError

    def _problem(self, shape: Sequence[int]) -> Problem:
        """The problem that an input of this shape poses."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._drop()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._drop()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}


def check_example(shape: Sequence[int], channels: int) -> tuple[int, int, int, int]:
    """``shape`` as (N, C, H, W).

    Raises:
        ValueError: it is no such shape, or has other channels than the layer.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"an example shape must be (N, C, H, W), got {tuple(shape)}")
    n, c, h, w = shape
    if c != channels:
        raise ValueError(f"example shape {tuple(shape)} has {c} channels, this layer has {channels}")
    return n, c, h, w
