"""``ConvFFN2d`` and ``Stem2d``: one kernel where the plan says so, else the layers with what each of them has of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

import lk_triton
from lk_triton.models import RepLKNet
from lk_triton.nn import ConvFFN2d, ConvUnit, DepthwiseConv2d, PointwiseConv2d, Stem2d, StemConv2d
from lk_triton.ops import layout, registration
from lk_triton.ops.problem import FfnProblem, StemProblem
from lk_triton.ops.tracing import Recorder
from lk_triton.planning import autotune


def ffn(**options: Any) -> ConvFFN2d:
    units = ConvUnit(PointwiseConv2d(64, 32), "gelu", fused=True), ConvUnit(PointwiseConv2d(32, 64), fused=True)
    return ConvFFN2d(*units).half().eval().requires_grad_(False)


def stem() -> Stem2d:
    layers = StemConv2d(3, 16), DepthwiseConv2d(16, 3), PointwiseConv2d(16, 16)
    units = [ConvUnit(layer, "relu", fused=True) for layer in layers]
    return Stem2d(*units, nn.Identity()).half().eval().requires_grad_(False)


CHAINS: dict[str, tuple[Callable[[], Any], tuple[int, ...], type[Any]]] = {
    "ffn": (ffn, (2, 64, 8, 5), FfnProblem),
    "stem": (stem, (2, 3, 8, 6), StemProblem),
}


def made(name: str) -> tuple[Any, Tensor, type[Any]]:
    """A chain, an input that one kernel would serve, and the kind of problem that it poses."""
    make, shape, kind = CHAINS[name]
    torch.manual_seed(0)
    return make(), layout.conform(torch.randn(shape).half(), "channel_major"), kind


def layers_of(chain: nn.Module) -> list[nn.Module]:
    return [m for m in chain.modules() if isinstance(m, ConvUnit) or hasattr(m, "weight")]


def by_layers(chain: Any, x: Tensor) -> Tensor:
    for unit in chain.children():
        x = unit(x)
    return x


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plans of all calls, by name."""
    names: list[str] = []
    def seen(*args: Any) -> Any:
        chosen = autotune.plan_for_call(*args)
        names.append(chosen.algorithm)
        return chosen

    monkeypatch.setattr(registration, "plan_for_call", seen)
    return names


@pytest.mark.parametrize("name", CHAINS)
def test_the_plan_decides(name: str, launched: list[str]) -> None:
    chain, x, _ = made(name)
    one_kernel, layers = {"ffn": ("convffn", 2), "stem": ("convstem", 3)}[name]
    for preferred, expected in ((one_kernel, [one_kernel]), ("torch", ["torch"] * layers)):
        launched.clear()
        with lk_triton.use(preferred):
            y = chain(x)
        assert launched == expected
        torch.testing.assert_close(y, by_layers(chain, x), rtol=2e-3, atol=2e-3)


WATCHED: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward hook": lambda m, seen: m.register_forward_hook(lambda *_: seen()),
    "pre-hook": lambda m, seen: m.register_forward_pre_hook(lambda *_: seen()),
    "backward hook": lambda m, seen: m.register_full_backward_hook(lambda *_: None) and seen(),
    "global hook": lambda m, seen: register_module_forward_hook(lambda module, *_: seen() if module is m else None),
    "forward of its own": lambda m, seen: setattr(m, "forward", lambda *a, **k: (seen(), type(m).forward(m, *a, **k))[1]),
}


@pytest.mark.parametrize("interpreted", [True, False])
@pytest.mark.parametrize("what", WATCHED)
@pytest.mark.parametrize("name", CHAINS)
def test_hooks_fire(name: str, what: str, interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever layer has one, the unit or its convolution, and where one kernel would serve: in the interpreter."""
    if not interpreted:
        monkeypatch.delenv("TRITON_INTERPRET")
    chain, x, kind = made(name)
    with Recorder() as recorder:
        chain(x)
    assert (kind in map(type, recorder.problems)) == interpreted
    for number in range(len(layers_of(chain))):
        watched, seen = copy.deepcopy(chain), []
        handle = WATCHED[what](layers_of(watched)[number], lambda seen=seen: seen.append(1))
        try:
            with Recorder() as recorder:
                watched(x)
        finally:
            if what == "global hook":
                handle.remove()
        assert len(seen) == 1
        assert kind not in map(type, recorder.problems)


@pytest.mark.parametrize("name", CHAINS)
def test_parametrized_and_replaced_layers_run_by_themselves(name: str) -> None:
    chain, x, kind = made(name)
    expected = by_layers(chain, x)
    changed, replaced = copy.deepcopy(chain), copy.deepcopy(chain)
    parametrize.register_parametrization(next(changed.children()).conv, "weight", nn.Identity())
    unit = next(replaced.children())
    old = unit.conv
    unit.conv = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding).half()
    unit.conv.load_state_dict(old.state_dict())
    for other in (changed, replaced):
        with Recorder() as recorder:
            other.eval().requires_grad_(False)(x)
        assert kind not in map(type, recorder.problems)
        torch.testing.assert_close(other(x), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", CHAINS)
def test_exports_whole_for_any_batch(name: str) -> None:
    """What is traced looks no plan up: sizes are symbols there."""
    chain, x = made(name)[0], made(name)[1].contiguous()
    dynamic: Any = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(chain, (x,), dynamic_shapes=dynamic)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert f"lk_triton.conv_{name}.default" in targets
    compiled = torch.compile(chain, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x), program.module()(x))


@pytest.mark.usefixtures("no_interpreter")
def test_layers_of_a_chain_keep_their_prepacked_weights(launched: list[str]) -> None:
    """On a CPU oneDNN packs; under a capture, where nothing may be packed, the layers' own serve."""
    chain = ffn().float()
    x = torch.randn(2, 64, 8, 5).contiguous(memory_format=torch.channels_last)
    with lk_triton.use("onednn"):
        for layer in chain.modules():
            if isinstance(layer, PointwiseConv2d):
                layer.prepare((2, layer.in_channels, 8, 5))
                assert layer.bank_bytes > 0
        with registration.no_packing():
            y = chain(x)
        assert launched == ["onednn", "onednn"]
        torch.testing.assert_close(y, by_layers(chain, x))


def test_a_network_whose_stem_was_a_list() -> None:
    """As earlier versions pickled it."""
    model = RepLKNet((5,), (1,), (4,), 3, num_classes=0).eval()
    state = model.__getstate__() if hasattr(model, "__getstate__") else model.__dict__
    state = {**cast("dict[str, Any]", state), "_modules": {**model._modules, "stem": nn.ModuleList(model.stem)}}
    old = RepLKNet.__new__(RepLKNet)
    old.__setstate__(state)
    assert list(old.state_dict()) == list(model.state_dict())
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(old(x), model(x))
