"""The gate of whole networks: passes what is right and fails what is wrong in one place, with room on both sides."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from sabotage import SABOTAGES, sabotaged

from lk_triton.models import RepLKNet, create_model, randomize_
from lk_triton.models.gate import Gate, Verdicts, failures, maps_and_logits, relative_error
from lk_triton.nn import ReparamDepthwiseConv2d

TINY: dict[str, Any] = {"channels": (8, 16, 24, 32), "layers": (1, 1, 1, 1), "num_classes": 10}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROOM = 1.5


def tiny(seed: int, **options: Any) -> RepLKNet:
    torch.manual_seed(seed)
    return randomize_(RepLKNet(**{**TINY, **options}), seed).eval()


def worst(verdicts: Verdicts) -> float:
    return max(v.error / v.allowed for v in verdicts.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_every_form_passes(seed: int, dtype: torch.dtype) -> None:
    model = tiny(seed)
    gate = Gate(model, torch.randn(2, 3, 64, 64), dtype)
    for form in ("training", "merged", "fused"):
        verdicts = gate.check(deepcopy(model).convert(form).to(dtype).prepare((2, 3, 64, 64)))
        assert worst(verdicts) < 1 / ROOM
        assert failures(verdicts) == []
    assert {"stages.0", "logits", "transitions.0", "stages.2.blocks.1", "taps of stem.3"} <= set(verdicts)


def test_the_kernels_of_inference_are_checked() -> None:
    """Also where the caller has gradients on, with which torch would serve."""
    model = tiny(0)
    fused = deepcopy(model).convert("fused")
    seen = []
    for module in fused.modules():
        module.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    Gate(model, torch.randn(1, 3, 64, 64), torch.float32).check(fused)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sabotage", SABOTAGES)
@torch.inference_mode()
def test_what_is_wrong_in_one_place_fails(sabotage: str, dtype: torch.dtype) -> None:
    for seed in range(2):
        model = tiny(seed)
        gate = Gate(model, torch.randn(1, 3, 64, 64), dtype)
        verdicts = gate.check(sabotaged(sabotage, model, dtype).prepare((1, 3, 64, 64)))
        assert worst(verdicts) > ROOM, f"seed {seed}"
        assert failures(verdicts)


@torch.inference_mode()
def test_every_tap_of_every_kernel_is_seen() -> None:
    """Also with stride 2, of kernels larger than the map, and where a batch is longer than the eight images of pixels."""
    model = tiny(0, large_kernel_sizes=(7, 7, 5, 5), channels=(2, 2, 2, 2), small_kernel=3)
    gate = Gate(model, torch.randn(1, 3, 96, 96), torch.bfloat16, batch=10)
    fused = sabotaged(None, model, torch.bfloat16)
    assert failures(gate.taps(fused)) == []
    kernels = {}
    for name in gate.taps(fused):
        module = fused.get_submodule(name.removeprefix("taps of "))
        conv: Any = module.lkb_reparam if isinstance(module, ReparamDepthwiseConv2d) else module.conv
        kernels[name] = conv.weight.data[1].flatten()
    assert len(kernels) == 4 + 2 + 3
    for i in range(max(map(len, kernels.values()))):
        changed = {name: taps for name, taps in kernels.items() if i < len(taps)}
        before = {name: taps[i].item() for name, taps in changed.items()}
        for taps in changed.values():
            taps[i] += 0.1 * taps.abs().max()
        assert {name for name, verdict in gate.taps(fused).items() if not verdict.ok} == set(changed)
        for name, taps in changed.items():
            taps[i] = before[name]


@torch.inference_mode()
def test_a_network_that_no_image_changes_never_passes() -> None:
    """Whatever is compared then is a constant."""
    model = tiny(0)
    model.stages[0].register_forward_hook(lambda module, inputs, y: y.new_ones(y.shape))
    verdicts = Gate(model, torch.randn(1, 3, 64, 64), torch.float32).check(model)
    assert not verdicts["logits"].ok
    assert "logits differs by nan, allowed is nan" in failures(verdicts)


@torch.inference_mode()
def test_what_is_not_finite_fails() -> None:
    model = tiny(0)
    gate = Gate(model, torch.randn(1, 3, 64, 64), torch.float16)
    fused = sabotaged(None, model, torch.float16)
    fused.get_parameter("stages.0.blocks.0.pw1.conv.bias").data[0] = float("nan")
    assert "logits differs by nan" in "\n".join(failures(gate.check(fused)))


def test_relative_error() -> None:
    exact, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 6.0])
    assert relative_error(torch.tensor([3.0, 5.0]), exact, other) == 0.5
    assert relative_error(exact, exact, exact) != relative_error(exact, exact, exact)  # NaN


@torch.inference_mode()
def test_another_image_changes_every_stage_of_a_random_network() -> None:
    model = tiny(0)
    for size in (32, 64, 224):
        one, two = (maps_and_logits(model, x) for x in torch.randn(2, 1, 3, size, size))
        for name, y in one.items():
            assert torch.dist(y, two[name]) > 0.3 * y.norm(), (size, name)


@pytest.mark.slow
@torch.inference_mode()
def test_31b() -> None:
    """The published network at full size."""
    torch.manual_seed(0)
    model = randomize_(create_model("replknet_31b")).eval()
    shape = (1, 3, 64, 64)
    noise, black = (maps_and_logits(model, x) for x in (torch.randn(1, 3, 224, 224), torch.zeros(1, 3, 224, 224)))
    assert min((torch.dist(black[name], y) / y.norm()).item() for name, y in noise.items()) > 0.5
    for dtype in DTYPES:
        gate = Gate(model, torch.randn(shape), dtype)
        assert worst(gate.check(sabotaged(None, model, dtype).prepare(shape))) < 1 / ROOM
        for sabotage in SABOTAGES:
            assert worst(gate.check(sabotaged(sabotage, model, dtype).prepare(shape))) > ROOM
