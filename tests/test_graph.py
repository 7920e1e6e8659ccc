"""Replay by shape, what ends a graph's validity, and errors; the capture itself needs a GPU."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

import lk_triton
from lk_triton.graph import WARM_UP, Captured, Graph, capture, graph, prepare
from lk_triton.nn import DepthwiseConv2d, PointwiseConv2d
from lk_triton.ops import layout
from lk_triton.ops import registration as library

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = DepthwiseConv2d(4, 5, activation="relu"), PointwiseConv2d(4, 6), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def recorded(model: nn.Module, *inputs: Tensor) -> Graph:
    """A graph whose replay runs the model as it was at the capture: what a CUDA graph does, without a GPU."""
    frozen = copy.deepcopy(model)

    def capture(x: Tensor) -> Captured:
        x = x.clone()
        output = frozen(x)

        def replay() -> None:
            with torch.no_grad():
                output.copy_(frozen(x))

        return Captured(x, output, replay)

    return Graph(model, [capture(x) for x in inputs])


@pytest.mark.usefixtures("no_interpreter")
def test_replay_by_shape() -> None:
    model = net()
    shapes = [(2, 4, 9, 9), (1, 4, 7, 5)]
    run = recorded(model, *(torch.zeros(shape) for shape in shapes))
    assert run.shapes == shapes
    for shape in (*shapes, *shapes):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x))


@pytest.mark.usefixtures("no_interpreter")
def test_the_output_is_a_static_buffer() -> None:
    run = recorded(net(), torch.zeros(1, 4, 6, 6))
    first = run(torch.ones(1, 4, 6, 6))
    kept = first.clone()
    assert run(torch.zeros(1, 4, 6, 6)) is first
    assert not torch.equal(first, kept)


@pytest.mark.usefixtures("no_interpreter")
def test_inputs_that_were_not_captured() -> None:
    run = recorded(net(), torch.zeros(1, 4, 6, 6))
    for x in (torch.zeros(2, 4, 6, 6), torch.zeros(1, 4, 6, 6).half(), torch.zeros(1, 4, 6, 6, device="meta")):
        with pytest.raises(ValueError, match=r"no graph was captured for .*captured: \(1, 4, 6, 6\) torch.float32 on cpu"):
            run(x)


def swap(old: Tensor) -> None:
    torch.utils.swap_tensors(old, nn.Parameter(torch.randn_like(old)))


CHANGES: dict[str, Callable[[Any], object]] = {
    "train": lambda model: model.train(),
    "train of a part": lambda model: model[2].train(),
    "train and eval": lambda model: model.train().eval(),
    "load": lambda model: model.load_state_dict(net().state_dict()),
    "load, assigned": lambda model: model[3].load_state_dict(nn.Conv2d(6, 3, 1).state_dict(), assign=True),
    "cast": lambda model: model.half(),
    "cast and back": lambda model: model.half().float(),
    "cast of a part": lambda model: model[3].double(),
    "to": lambda model: model.to(torch.float64),
    "prepare": lambda model: model[0].prepare(),
    "another layer": lambda model: setattr(model, "3", nn.Conv2d(6, 3, 1)),
    "layers in another order": lambda model: model._modules.update({"0": model._modules.pop("0")}),
    "one layer more": lambda model: model.append(nn.ReLU()),
    "another weight": lambda model: setattr(model[0], "weight", nn.Parameter(torch.randn_like(model[0].weight))),
    "another weight of torch's": lambda model: setattr(model[3], "weight", nn.Parameter(torch.randn_like(model[3].weight))),
    "another bias's data": lambda model: setattr(model[3].bias, "data", torch.zeros(3)),
    "another packed bias's data": lambda model: setattr(model[0].bias, "data", torch.zeros(4)),
    "no bias": lambda model: setattr(model[3], "bias", None),
    "another buffer": lambda model: setattr(model[2], "running_mean", torch.ones(6)),
    "swapped": lambda model: swap(model[3].weight),
    "swapped, packed": lambda model: swap(model[0].weight),
    "written to, packed": lambda model: model[0].weight.mul_(2),
}


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_ends_the_graph(change: str) -> None:
    model = net()
    prepare(model, [torch.zeros(1, 4, 6, 6)])
    run = recorded(model, torch.zeros(1, 4, 6, 6))
    run(torch.zeros(1, 4, 6, 6))
    with torch.no_grad():
        CHANGES[change](model)
    with pytest.raises(RuntimeError, match=r"has changed since its capture.*call lk_triton.graph"):
        run(torch.zeros(1, 4, 6, 6))


@pytest.mark.usefixtures("no_interpreter")
def test_values_that_the_graph_reads_may_change() -> None:
    model = net()
    run = recorded(model, torch.zeros(1, 4, 6, 6))
    model[3].load_state_dict(nn.Conv2d(6, 3, 1).state_dict())
    model[2].running_mean.fill_(1)  # type: ignore[union-attr]
    run(torch.zeros(1, 4, 6, 6))


@pytest.mark.usefixtures("no_interpreter")
def test_a_graph_keeps_the_memory_that_it_reads() -> None:
    """Where the network lets go of a weight, its memory must not become another's while the graph reads it."""
    model = net()
    prepare(model, [torch.zeros(1, 4, 6, 6)])
    bank = cast("DepthwiseConv2d", model[0])._prepacked_weight()[0]
    assert bank is not None
    packed, head = weakref.ref(bank), cast("nn.Conv2d", model[3])
    storages = [t.untyped_storage()._weak_ref() for t in head.parameters()]
    run = recorded(model, torch.zeros(1, 4, 6, 6))
    del bank
    model[0].prepare()  # type: ignore[operator]
    head.weight = nn.Parameter(torch.zeros(3, 6, 1, 1))
    cast("Tensor", head.bias).data = torch.zeros(3)
    assert packed() is not None
    assert not any(map(torch.UntypedStorage._expired, storages))
    del run
    assert packed() is None
    assert all(map(torch.UntypedStorage._expired, storages))
    for storage in storages:
        torch.UntypedStorage._free_weak_ref(storage)


@pytest.mark.usefixtures("no_interpreter")
def test_outputs_of_other_shapes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first graph's output may lie in the pool that graphs share: an earlier one's maps lie where a later one's
    output could."""
    computed: list[Tensor] = []

    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            computed.append(layout.empty((2, 3, x.shape[2], x.shape[3]), "channel_major", x).fill_(len(computed)))
            return {"maps": computed[-1]}

    for name in ("Stream", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **kwargs: MagicMock())
    for name in ("current_stream", "graph_pool_handle", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    first, second = capture(Model(), [torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 5, 5)])
    in_pool = [computed[WARM_UP], computed[-1]]
    assert first.output["maps"] is in_pool[0]
    assert second.output["maps"].untyped_storage().data_ptr() != in_pool[1].untyped_storage().data_ptr()
    assert second.output["maps"].stride() == in_pool[1].stride()
    assert torch.equal(second.output["maps"], in_pool[1])


@pytest.mark.usefixtures("no_interpreter")
def test_a_graph_is_not_copied() -> None:
    model = net()
    run = recorded(model, torch.zeros(1, 4, 6, 6))
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="capture the copy"):
            copied(run)
    copy.deepcopy(model)
    pickle.loads(pickle.dumps(model))


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="pass tensors or shapes"):
        graph(net())
    with pytest.raises(RuntimeError, match=r"call \.eval\(\)"):
        graph(net().train(), (1, 4, 6, 6))
    with pytest.raises(RuntimeError, match="the example is on cpu"):
        graph(net(), (1, 4, 6, 6))


def test_prepared_for_the_examples() -> None:
    asked: list[Sequence[int]] = []

    class Own(nn.Module):
        def prepare(self, *shapes: Sequence[int]) -> None:
            asked.extend(shapes)

    inputs = [torch.zeros(2, 4, 6, 6), torch.zeros(1, 4, 5, 5)]
    prepare(Own(), inputs)
    assert asked == [(2, 4, 6, 6), (1, 4, 5, 5)]
    model = net()
    with lk_triton.use("toeplitz"):
        prepare(model, inputs)
    assert cast("DepthwiseConv2d", model[0]).bank_bytes > 0


@torch.no_grad()
def test_packing_under_capture_raises() -> None:
    layer, x = DepthwiseConv2d(2, 13).eval(), torch.randn(1, 2, 14, 14)
    with lk_triton.use("toeplitz"):
        with library.no_packing(), pytest.raises(RuntimeError, match="would pack its weight in every replay"):
            layer(x)
        layer.prepare((1, 2, 14, 14))
        expected = layer(x)
        with library.no_packing():
            assert torch.equal(layer(x), expected)


@pytest.mark.gpu
def test_capture_on_a_gpu() -> None:
    from lk_triton.models import create_model

    torch.manual_seed(0)
    model = create_model("replknet_31b", num_classes=10).eval().reparameterize().cuda().half()
    shapes = [(1, 3, 64, 64), (2, 3, 96, 64)]
    run = graph(model, *shapes)
    for shape in (*shapes, *shapes):
        x = torch.randn(shape, device="cuda", dtype=torch.float16)
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x))
    small = run(torch.randn(shapes[0], device="cuda", dtype=torch.float16))
    kept = small.clone()
    run(torch.randn(shapes[1], device="cuda", dtype=torch.float16))
    assert torch.equal(small, kept)
    model.half()
    with pytest.raises(RuntimeError, match="has changed"):
        run(torch.zeros(shapes[0], device="cuda", dtype=torch.float16))
