"""Packed weights: made by ``prepare()`` only, used for every call, dropped with what they were made from."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import KernelLaunch
from lk_triton.algorithms.depthwise.toeplitz.host import ToeplitzAlgorithm
from lk_triton.nn import DepthwiseConv2d, ReparamDepthwiseConv2d, from_conv_bn
from lk_triton.nn.prepack import PrepackedConv2d
from lk_triton.ops.problem import ConvProblem, Epilogue
from lk_triton.planning.plan import plan

pytestmark = pytest.mark.usefixtures("one_thread", "toeplitz")
SHAPE = (2, 3, 8, 8)


@pytest.fixture
def toeplitz() -> object:
    """The algorithm that packs; the cost model may prefer another at these tiny sizes."""
    with lk_triton.use("toeplitz"):
        yield


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels launched, in order."""
    names: list[str] = []
    run = KernelLaunch.run

    def recorded(self: KernelLaunch, device: torch.device) -> None:
        names.append(self.kernel.fn.__name__)
        run(self, device)

    monkeypatch.setattr(KernelLaunch, "run", recorded)
    return names


def prepared(kernel: int = 5) -> DepthwiseConv2d:
    module = DepthwiseConv2d(SHAPE[1], kernel, activation="relu").eval().requires_grad_(False).prepare(SHAPE)
    assert module.bank_bytes > 0
    return module


def check(module: DepthwiseConv2d, tolerance: float = 1e-5) -> None:
    """The module computes what its weights now say."""
    x = torch.randn(SHAPE).to(module.weight)
    pad = module.kernel_size[0] // 2
    bias = module.bias
    assert bias is not None
    expected = nn.functional.conv2d(x.double(), module.weight.double(), bias.double(), padding=pad, groups=3).relu()
    with torch.no_grad():
        torch.testing.assert_close(module(x).double(), expected, rtol=tolerance, atol=tolerance)


def test_one_launch_per_call_and_no_packing(launched: list[str]) -> None:
    module = prepared()
    assert launched == ["pack_kernel"]
    launched.clear()
    for n in (2, 1, 3):
        module(torch.randn(n, *SHAPE[1:]))
    assert launched == ["toeplitz_kernel"] * 3


def test_without_a_bank_every_call_packs(launched: list[str]) -> None:
    module = DepthwiseConv2d(3, 5).eval().requires_grad_(False)
    module(torch.randn(SHAPE))
    assert launched == ["pack_kernel", "toeplitz_kernel"]


def test_one_launch_with_the_whole_epilogue(launched: list[str]) -> None:
    module, x = prepared(), torch.randn(SHAPE)
    launched.clear()
    module(x, torch.randn(SHAPE))
    assert launched == ["toeplitz_kernel"]


def test_other_maps_read_the_same_bank(launched: list[str]) -> None:
    """A bank's format is chosen once; layers meet many sizes."""
    module = DepthwiseConv2d(3, 13).eval().requires_grad_(False).prepare((64, 3, 56, 56))
    launched.clear()
    for h, w in ((8, 8), (5, 17), (33, 40), (1, 1)):
        x = torch.randn(1, 3, h, w)
        expected = nn.functional.conv2d(x, module.weight, module.bias, padding=6, groups=3)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    assert launched == ["toeplitz_kernel"] * 4


def test_prepare_for_several_shapes() -> None:
    module = prepared()
    module.prepare((64, 3, 56, 56), (1, 3, 512, 256))
    assert module.bank_bytes > 0
    check(module)
    with pytest.raises(ValueError, match="has 4 channels"):
        module.prepare((1, 4, 8, 8))
    assert DepthwiseConv2d(2, 61, padding="valid", dtype=torch.float16).eval().prepare().bank_bytes > 0


@pytest.mark.parametrize("packed", ["toeplitz", "direct", "onednn"])
def test_a_plan_that_reads_another_format_packs_for_itself(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a module holds, every algorithm that serves the call computes with the weight."""
    if packed == "onednn":
        monkeypatch.delenv("TRITON_INTERPRET")
    module = DepthwiseConv2d(SHAPE[1], 5, activation="relu").eval().requires_grad_(False)
    x = torch.randn(SHAPE).contiguous(memory_format=torch.channels_last)
    residual = torch.randn_like(x)  # which, with the activation, oneDNN leaves to torch
    expected = nn.functional.conv2d(x, module.weight, module.bias, padding=2, groups=3).relu() + residual
    with lk_triton.use(packed):
        monkeypatch.setattr(module, "_problem", lambda shape: replace(posed(module, shape), layout="channels_last"))
        held = module.prepare(SHAPE)._prepacked_weight()[1]
    assert held is not None
    formats = set()
    for name, algorithm in registry.ALGORITHMS.items():
        problem = replace(posed(module, SHAPE), layout="channels_last", epilogue=Epilogue(True, "relu", True))
        if algorithm.why_not(problem, gpus.of(x.device)) is None:
            formats.add(algorithm.weight_format(plan(problem, gpus.of(x.device), name).config))
            with lk_triton.use(name):
                torch.testing.assert_close(module(x, residual), expected, rtol=1e-4, atol=1e-4)
    assert formats - {held}


def posed(module: DepthwiseConv2d, shape: tuple[int, ...]) -> ConvProblem:
    """The problem that an input of this shape poses to ``module``."""
    return cast("ConvProblem", DepthwiseConv2d._problem(module, shape))


def test_algorithms_that_do_not_pack_hold_nothing() -> None:
    for algorithm in ("direct", "torch"):
        with lk_triton.use(algorithm):
            assert DepthwiseConv2d(3, 5).eval().prepare(SHAPE).bank_bytes == 0


def test_a_bank_is_neither_parameter_nor_buffer() -> None:
    module = prepared()
    assert set(module.state_dict()) == {"weight", "bias"}
    assert len(list(module.parameters())) == 2
    assert not list(module.buffers())


def save_and_load(module: DepthwiseConv2d) -> DepthwiseConv2d:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load],
                         ids=["deepcopy", "copy", "pickle", "torch.save"])  # fmt: skip
def test_copies_hold_no_bank(copied: Callable[[DepthwiseConv2d], DepthwiseConv2d]) -> None:
    module = prepared()
    held = module.bank_bytes
    other = copied(module)
    assert (other.bank_bytes, module.bank_bytes) == (0, held)
    assert torch.equal(other.weight, module.weight)
    check(other)
    check(module)
    assert other.prepare(SHAPE).bank_bytes == held


def load(module: DepthwiseConv2d, assign: bool) -> None:
    state = {"weight": torch.randn_like(module.weight), "bias": torch.randn(3)}
    module.load_state_dict(state, assign=assign)


DROPS: dict[str, Callable[[DepthwiseConv2d], object]] = {
    "train": lambda m: m.train().eval(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(torch.bfloat16),
    "float": lambda m: m.float(),
    "load_state_dict": lambda m: load(m, False),
    "load_state_dict(assign=True)": lambda m: load(m, True),
}

REPLACES: dict[str, Callable[[DepthwiseConv2d], object]] = {
    "new parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.randn_like(m.weight), requires_grad=False)),
    "new data": lambda m: setattr(m.weight, "data", torch.randn_like(m.weight)),
    "swap_tensors": lambda m: torch.utils.swap_tensors(m.weight, nn.Parameter(torch.randn_like(m.weight), False)),
    "in place": lambda m: m.weight.mul_(2),
    "optimizer in eval mode": lambda m: step(m),
}


def step(module: DepthwiseConv2d) -> None:
    weight = module.weight.requires_grad_()
    weight.grad = torch.randn_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()
    weight.requires_grad_(False)


@pytest.mark.parametrize("change", DROPS)
@pytest.mark.parametrize("nested", [False, True], ids=["module", "in a parent"])
def test_changes_drop_the_bank(change: str, nested: bool, launched: list[str]) -> None:
    module = prepared()
    if nested and not change.startswith("load"):
        DROPS[change](nn.Sequential(module).eval())  # type: ignore[arg-type]
    else:
        DROPS[change](module)
    launched.clear()
    check(module, 2e-2 if module.weight.dtype != torch.float32 else 1e-5)
    assert launched == ["pack_kernel", "toeplitz_kernel"]  # the weights of now
    assert module.bank_bytes == 0


@pytest.mark.parametrize("change", REPLACES)
def test_a_bank_of_another_weight_is_not_read(change: str, launched: list[str]) -> None:
    module = prepared()
    REPLACES[change](module)
    launched.clear()
    check(module)
    assert launched == ["pack_kernel", "toeplitz_kernel"]
    module.prepare(SHAPE)
    launched.clear()
    check(module)
    assert launched == ["toeplitz_kernel"]


def test_prepared_under_inference_mode() -> None:
    """An inference tensor has no version counter."""
    with torch.inference_mode():
        module = prepared()
        check(module)
    check(module)


def test_a_bank_dropped_beside_calls() -> None:
    """Another thread's train() or cast, between any two lines of the look at the bank: with the bank, or without one."""
    module, x = prepared(), torch.randn(SHAPE)
    expected = module(x)

    def dropped_at(line: int) -> bool:
        """Whether the call's look at the bank has so many lines; before that one is run, the bank is dropped."""
        lines = 0

        def trace(frame: Any, event: str, arg: object) -> Any:
            nonlocal lines
            if frame.f_code is PrepackedConv2d._prepacked_weight.__code__ and event == "line":
                lines += 1
                if lines == line:
                    module._prepared = None
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            y = module(x)
        finally:
            sys.settrace(before)
        torch.testing.assert_close(y, expected)
        return lines >= line

    line = 1
    while dropped_at(line):
        module.prepare(SHAPE)
        line += 1
    assert line > 3


def test_calls_beside_prepare() -> None:
    """While prepare() packs, calls still find the bank before."""
    module, seen = prepared(), []
    module._packed, packed = lambda shapes: (seen.append(module._prepacked_weight()[0]), packed(shapes))[1], module._packed
    module.prepare(SHAPE)
    assert seen[0] is not None


def test_prepare_waits_for_what_it_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread with another stream may call as soon as prepare() has returned."""

    class OnGpu(Tensor):
        is_cuda = True  # type: ignore[assignment]

    stream = MagicMock()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    prepack = ToeplitzAlgorithm.prepack
    monkeypatch.setattr(ToeplitzAlgorithm, "prepack", lambda self, *args: prepack(self, *args).as_subclass(OnGpu))
    prepared()
    stream.synchronize.assert_called_once_with()


def test_parent_load_state_dict_drops_the_bank() -> None:
    parent = nn.Sequential(prepared())
    parent.load_state_dict({"0.weight": torch.randn(3, 1, 5, 5), "0.bias": torch.zeros(3)})
    check(parent[0])  # type: ignore[arg-type]


def test_moving_to_eval_again_keeps_the_bank() -> None:
    module = prepared()
    nn.Sequential(module).eval()
    assert module.bank_bytes > 0


@pytest.mark.parametrize("write", ["fused AdamW", ".data"])
def test_writes_that_do_not_show_need_prepare_again(write: str) -> None:
    module = prepared()
    if write == "fused AdamW":
        weight = module.weight.requires_grad_()
        weight.grad = torch.randn_like(weight)
        torch.optim.AdamW([weight], lr=0.5, fused=True).step()
        module.requires_grad_(False)
    else:
        module.weight.data.normal_()
    module.prepare(SHAPE)
    check(module)


def test_a_training_loop_never_sees_a_stale_bank() -> None:
    """train() drops the bank, steps change the weights, eval() computes with them."""
    module = prepared().requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.5, fused=True)
    module.train()
    module(torch.randn(SHAPE)).sum().backward()
    optimizer.step()
    module.eval()
    check(module)


def test_functional_call_uses_the_weights_it_is_given(launched: list[str]) -> None:
    module, x = prepared(), torch.randn(SHAPE)
    weights = {"weight": torch.randn(3, 1, 5, 5), "bias": torch.randn(3)}
    launched.clear()
    y = torch.func.functional_call(module, weights, (x,))
    expected = nn.functional.conv2d(x, weights["weight"], weights["bias"], padding=2, groups=3).relu()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert launched == ["pack_kernel", "toeplitz_kernel"]
    check(module)


def test_gradients_through_a_prepared_module(launched: list[str]) -> None:
    module = prepared().requires_grad_(True)
    launched.clear()
    module(torch.randn(SHAPE)).sum().backward()
    assert module.weight.grad is not None
    assert launched == []  # torch serves gradients


def test_merge_and_from_conv_bn_prepare() -> None:
    merged = ReparamDepthwiseConv2d(3, 7).eval().reparameterize()
    assert merged.lkb_reparam.bank_bytes > 0
    assert from_conv_bn(nn.Conv2d(3, 3, 5, groups=3), nn.BatchNorm2d(3).eval()).bank_bytes > 0
    assert copy.deepcopy(merged).lkb_reparam.bank_bytes == 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_of_a_prepared_module(dynamic: bool, launched: list[str]) -> None:
    torch._dynamo.reset()
    module = prepared()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        expected = module(x)
        launched.clear()
        for _ in range(2):
            torch.testing.assert_close(compiled(x), expected)
        assert launched == ["toeplitz_kernel"] * 2
        module.load_state_dict({"weight": torch.randn(3, 1, 5, 5), "bias": torch.randn(3)})
        torch.testing.assert_close(compiled(x), module(x))  # compiled again: the bank is gone


def test_export_unprepared_then_run() -> None:
    module = prepared().train().eval()
    program = torch.export.export(module, (torch.randn(SHAPE),))
    x = torch.randn(SHAPE)
    y: Tensor = program.module()(x)
    torch.testing.assert_close(y, module(x))


@pytest.mark.gpu
def test_a_prepared_module_in_a_cuda_graph(launched: list[str]) -> None:
    module = DepthwiseConv2d(3, 5, device="cuda", dtype=torch.float16).eval().requires_grad_(False).prepare(SHAPE)
    x = torch.zeros(SHAPE, device="cuda", dtype=torch.float16)
    module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    launched.clear()
    with torch.cuda.graph(graph):
        y = module(x)
    assert launched == ["toeplitz_kernel"]
    for _ in range(2):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(y, module(x), rtol=0, atol=0)


@pytest.mark.gpu
def test_moving_to_a_gpu_drops_the_bank() -> None:
    module = DepthwiseConv2d(3, 5, activation="relu", device="cuda").eval().prepare(SHAPE)
    assert module.cpu().bank_bytes == 0
    assert module.cuda().bank_bytes == 0
    check(module, 1e-4)
    check(module.prepare(SHAPE), 1e-4)
