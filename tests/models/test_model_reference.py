"""The published form shares weights and computes with torch's own layers; the random statistics are seeded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lk_triton.models import RepLKNet, published_form, randomize_
from lk_triton.nn import DepthwiseConv2d, PointwiseConv2d

TINY: dict[str, Any] = {"channels": (8, 16, 24, 32), "layers": (1, 1, 2, 1), "num_classes": 10}


def test_published_form_is_plain_torch_in_nchw() -> None:
    model = randomize_(RepLKNet(**TINY)).eval()
    published = published_form(model)
    assert not any(isinstance(m, (DepthwiseConv2d, PointwiseConv2d)) for m in published.modules())
    assert list(published.state_dict()) == list(model.state_dict())
    assert not published.training
    layouts = []
    for m in published.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda module, inputs, output: layouts.append(output.is_contiguous()))
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(published(x), model(x))
    assert layouts
    assert all(layouts)


def test_published_form_shares_the_weights() -> None:
    model = RepLKNet(**TINY)
    published = published_form(model)
    assert [p.data_ptr() for p in published.parameters()] == [p.data_ptr() for p in model.parameters()]
    assert [b.data_ptr() for b in published.buffers()] == [b.data_ptr() for b in model.buffers()]
    model.eval().reparameterize()
    assert published.form == "training"
    with pytest.raises(ValueError, match="fused form"):
        published_form(model)


def test_randomize_is_seeded_and_independent_of_dtype() -> None:
    first, second, other = (randomize_(RepLKNet(**TINY), seed).norm.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    half = randomize_(RepLKNet(**TINY, dtype=torch.float16)).norm.weight
    assert torch.equal(half, first.half())


def test_randomize_keeps_residual_branches_small() -> None:
    for name, module in randomize_(RepLKNet(**TINY)).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.running_var.min() > 0.4
            if name.endswith("pw2.bn"):
                assert 0.05 <= module.weight.min() <= module.weight.max() <= 0.2
    with pytest.raises(ValueError, match="before reparameterize"):
        randomize_(RepLKNet(**TINY, fused=True))
