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
        if isinstance(module, nn.BatchNorm2d) and name.endswith("pw2.bn"):
            assert 0.05 <= module.weight.min() <= module.weight.max() <= 0.2
    with pytest.raises(ValueError, match="before reparameterize"):
        randomize_(RepLKNet(**TINY, fused=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_randomize_takes_statistics_that_fit_the_maps(dtype: torch.dtype) -> None:
    """Behind every BatchNorm a channel then has about the spread and the mean that its affine parameters say."""
    torch.manual_seed(0)
    model = RepLKNet(**TINY, dtype=dtype)
    modules: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    modules["stem.0.bn"].eval()
    flags = [(m.training, m.momentum, m.num_batches_tracked.item()) for m in modules.values()]
    randomize_(model)
    assert [(m.training, m.momentum, m.num_batches_tracked.item()) for m in modules.values()] == flags
    outputs: dict[str, Any] = {}
    for name, m in modules.items():
        m.register_forward_hook(lambda module, inputs, y, name=name: outputs.update({name: y.float()}))
    with torch.inference_mode():
        model.eval()(torch.randn(8, 3, 128, 128, dtype=dtype))
    assert outputs.keys() == modules.keys()
    for name, y in outputs.items():
        spread = y.std((0, 2, 3)) / modules[name].weight.float()
        shift = (y.mean((0, 2, 3)) - modules[name].bias.float()) / modules[name].weight.float()
        assert 0.25 < spread.min() <= spread.max() < 4, name
        assert shift.abs().max() < 2, name
