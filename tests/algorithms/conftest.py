"""Outputs that start as NaN, so that an element nobody writes is seen."""

from __future__ import annotations

import pytest
import torch

from lk_triton import layout


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = layout.empty

    def empty(shape: tuple[int, int, int, int], order: str, like: torch.Tensor) -> torch.Tensor:
        return plain(shape, order, like).fill_(float("nan"))

    monkeypatch.setattr(layout, "empty", empty)
