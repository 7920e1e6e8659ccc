"""Replay by shape, what ends a graph's validity, and errors; the capture itself needs a GPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import lk_triton
from lk_triton import library
from lk_triton.graph import Captured, Graph, graph, prepare
from lk_triton.nn import DepthwiseConv2d, PointwiseConv2d

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(DepthwiseConv2d(4, 5, activation="relu"), PointwiseConv2d(4, 6)).eval()


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


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.train().eval(),
        lambda model: model.load_state_dict(net().state_dict()),
        lambda model: model.half(),
        lambda model: model.half().float(),
        lambda model: model.to(torch.float64),
        lambda model: model[0].prepare(),
    ],
    ids=["train", "train and eval", "load", "cast", "cast and back", "to", "prepare"],
)
def test_a_change_of_the_model_ends_the_graph(change) -> None:
    model = net()
    run = recorded(model, torch.zeros(1, 4, 6, 6))
    change(model)
    with pytest.raises(RuntimeError, match=r"has changed since its capture.*call lk_triton.graph"):
        run(torch.zeros(1, 4, 6, 6))


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
    model.half()
    with pytest.raises(RuntimeError, match="has changed"):
        run(torch.zeros(shapes[0], device="cuda", dtype=torch.float16))
