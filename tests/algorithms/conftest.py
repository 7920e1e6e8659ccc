"""Outputs that start as NaN, so that an element nobody writes is seen; and a record of what the interpreter does."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import pytest
import torch

from lk_triton.ops import layout


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = layout.empty

    def empty(shape: tuple[int, int, int, int], order: str, like: torch.Tensor) -> torch.Tensor:
        return plain(shape, order, like).fill_(float("nan"))

    monkeypatch.setattr(layout, "empty", empty)


@dataclass
class Recorder:
    """What the interpreter did, since ``clear``.

    Attributes:
        dots: (M, K, N) of each ``tl.dot``.
        products: floating-point multiplications outside of dots.
        loads: (number of the program, addresses of unmasked elements) of each load.
    """

    dots: list[tuple[int, int, int]] = field(default_factory=list)
    products: int = 0
    programs: int = 0
    loads: list[tuple[int, np.ndarray]] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-adds of the dots."""
        return sum(map(prod, self.dots))

    def bytes_of(self, tensor: torch.Tensor) -> int:
        """Bytes read from ``tensor``."""
        return sum(len(inside) for _, inside in self._inside(tensor)) * tensor.element_size()

    def distinct_bytes_of(self, tensor: torch.Tensor) -> int:
        """Bytes read from ``tensor`` that differ within a program, summed over programs."""
        read: dict[int, set[int]] = {}
        for program, inside in self._inside(tensor):
            read.setdefault(program, set()).update(inside.tolist())
        return sum(map(len, read.values())) * tensor.element_size()

    def _inside(self, tensor: torch.Tensor) -> list[tuple[int, np.ndarray]]:
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return [(program, a[(a >= begin) & (a < end)]) for program, a in self.loads]

    def clear(self) -> None:
        self.dots.clear()
        self.loads.clear()
        self.products = self.programs = 0


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    from triton.runtime.interpreter import InterpreterBuilder

    recorder = Recorder()
    dot, load = InterpreterBuilder.create_dot, InterpreterBuilder.create_masked_load
    multiply, next_program = InterpreterBuilder.create_fmul, InterpreterBuilder.set_grid_idx

    def create_dot(self, a, b, *rest):
        recorder.dots.append((*a.data.shape, b.data.shape[1]))
        return dot(self, a, b, *rest)

    def create_masked_load(self, pointers, mask, *rest, **options):
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        recorder.loads.append((recorder.programs, addresses))
        return load(self, pointers, mask, *rest, **options)

    def create_fmul(self, a, b):
        recorder.products += a.data.size
        return multiply(self, a, b)

    def set_grid_idx(self, *index):
        recorder.programs += 1
        return next_program(self, *index)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", create_masked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_fmul", create_fmul)
    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", set_grid_idx)
    return recorder
