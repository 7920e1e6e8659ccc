"""A launch is built once for tensors of the same strides and alignment, and repeated on others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import triton
from triton import knobs

from lk_triton import gpu as gpus
from lk_triton.algorithms import launch_cache as relaunch
from lk_triton.algorithms.base import KernelLaunch
from lk_triton.algorithms.dense.pointwise.host import PointwiseAlgorithm
from lk_triton.ops import layout
from lk_triton.ops.problem import DenseProblem, Epilogue

CUDA = torch.device("cuda", 0)
NAMES = ("x", "w", "size", "out")


class Kernel:
    arg_names = NAMES


class Compiled:
    function, packed_metadata = "handle", "packed"
    calls: ClassVar[list[tuple[Any, ...]]] = []

    def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> Any:
        return SimpleNamespace(grid=grid, args=args)

    def run(self, x: int, y: int, z: int, stream: Any, function: Any, packed: Any, *rest: Any) -> None:
        metadata, enter, leave, *args = rest
        assert (stream, function, packed) == ("stream", "handle", "packed")
        for hook in (enter, leave):
            if hook is not None:
                hook(metadata)
        self.calls.append(((x, y, z), tuple(args)))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda index: "stream")
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    monkeypatch.setattr(relaunch, "_known", {})
    monkeypatch.setattr(Compiled, "calls", [])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(KernelLaunch, "run", lambda self, device: Compiled())


def test_other_tensors_of_the_same_form() -> None:
    built = []

    def launch(x: torch.Tensor, w: torch.Tensor | None, out: torch.Tensor, early: bool = False) -> None:
        def first() -> KernelLaunch:
            built.append(x)
            return KernelLaunch(Kernel(), (3,), {"x": x, "w": w, "size": 5, "out": out}, 4, 3)

        relaunch.launch_again(("a", "problem", "config"), early, {"x": x, "w": w, "out": out}, first, CUDA)

    first, second = (
        (torch.zeros(4, 4), torch.ones(4, 4), torch.empty(4, 4)),
        (torch.zeros(4, 4), torch.ones(4, 4), torch.empty(4, 4)),
    )
    launch(*first)
    assert (len(built), Compiled.calls) == (1, [])
    launch(*second)
    launch(second[0], second[0], second[2])  # one tensor in two roles
    assert len(built) == 1
    for (grid, args), w in zip(Compiled.calls, (second[1], second[0]), strict=True):
        assert grid == (3, 1, 1)
        assert args[2] == 5
        assert (args[0] is second[0], args[1] is w, args[3] is second[2]) == (True, True, True)
    launch(second[0].t(), *second[1:])  # other strides
    launch(torch.zeros(20)[1:17].view(4, 4), *second[1:])  # another alignment
    launch(second[0], None, second[2])  # without what was there
    launch(*second, early=True)
    assert len(built) == 5
    launch(*first)
    assert len(built) == 5
    assert Compiled.calls[-1][1][0] is first[0]


def test_a_copy_is_not_taken_for_the_tensor() -> None:
    x = torch.zeros(4)
    launch = KernelLaunch(Kernel(), (1,), {"x": x.clone(), "w": None, "size": 5, "out": x}, 4, 3)
    with pytest.raises(AssertionError, match="x is launched on a copy"):
        relaunch.Relaunch(launch, Compiled(), {"x": x, "w": None, "out": x})


def test_tritons_hooks_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of profilers: with what the launch says of itself, whether Triton keeps one or a chain of them."""
    seen = []
    x = torch.zeros(4)
    tensors: dict[str, torch.Tensor | None] = {"x": x, "w": x, "out": x}
    again = relaunch.Relaunch(KernelLaunch(Kernel(), (7,), {**tensors, "size": 5}, 4, 3), Compiled(), tensors)

    class Chain:
        calls: ClassVar[list[Any]] = []

        def __call__(self, metadata: Any) -> None:
            seen.append(metadata.grid)

    for hook, called in ((None, False), (Chain(), False), (lambda metadata: seen.append(metadata.grid), True)):
        monkeypatch.setattr(knobs.runtime, "launch_enter_hook", hook)
        again.run(tensors, 0)
        assert seen == ([(7, 1, 1)] if called else [])
    monkeypatch.setattr(Chain, "calls", [print])
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", Chain())
    monkeypatch.setattr(knobs.runtime, "launch_exit_hook", Chain())
    again.run(tensors, 0)
    assert seen == [(7, 1, 1)] * 3


def test_each_device_has_its_own() -> None:
    """A kernel is loaded on one device."""
    built = []

    def launch(index: int) -> None:
        x = torch.zeros(4)

        def first() -> KernelLaunch:
            built.append(index)
            return KernelLaunch(Kernel(), (1,), dict.fromkeys(NAMES, x), 4, 3)

        relaunch.launch_again(("a", "problem", "config"), False, dict.fromkeys(NAMES, x), first, torch.device("cuda", index))

    for index in (0, 1, 0):
        launch(index)
    assert built == [0, 1]


def test_descriptors_follow_their_tensors() -> None:
    algorithm = PointwiseAlgorithm()
    problem = DenseProblem(
        2, 16, 4, 4, 16, layout="channel_major", out_layout="channel_major", epilogue=Epilogue(False, None, False)
    )
    config = next(c for c in algorithm.configs(problem, gpus.TABLE["h100"]) if c.tma)

    def tensors() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        x = layout.conform(torch.randn(2, 16, 4, 4).half(), "channel_major")
        return {"x": x, "weight": torch.randn(16, 16, 1, 1).half()}, layout.empty((2, 16, 4, 4), "channel_major", x)

    one, two = tensors(), tensors()
    launch = algorithm.kernel_launch(problem, config, *one)
    again = relaunch.Relaunch(launch, Compiled(), algorithm.tensors(*one))
    again.run(algorithm.tensors(*two), 0)
    ((_, args),) = Compiled.calls
    named = dict(zip(launch.kernel.arg_names, args, strict=True))
    assert named["x"].base is two[0]["x"]
    assert named["weight"].base is two[0]["weight"]
    assert named["out"] is two[1]
    assert (named["x"].shape, named["x"].strides) == (launch.args["x"].shape, launch.args["x"].strides)
    assert launch.args["x"].base.data_ptr() == one[0]["x"].data_ptr(), "the first launch's own stays"
    again.run(algorithm.tensors(*one), 0)
    assert dict(zip(launch.kernel.arg_names, Compiled.calls[1][1], strict=True))["x"].base is one[0]["x"]


def test_it_forgets_rather_than_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaunch, "LIMIT", 2)
    for i in range(5):
        x = torch.zeros(4)
        launch = KernelLaunch(Kernel(), (1,), dict.fromkeys(NAMES, x), 4, 3)
        relaunch.launch_again(("a", i, "config"), False, dict.fromkeys(NAMES, x), lambda launch=launch: launch, CUDA)
        assert len(relaunch._known) <= 2


def test_tritons_own_compiled_kernel() -> None:
    """What Triton calls a compiled kernel takes the grid and all arguments, in the order of the signature."""
    from triton.compiler import compiler

    calls = []

    class Handle(compiler.CompiledKernel):
        def __init__(self) -> None:
            self.function, self.packed_metadata, self.module = "handle", None, None

        @property
        def run(self) -> Any:
            return lambda *args: calls.append(args)

    x, w, out = (torch.zeros(4) for _ in range(3))
    tensors: dict[str, torch.Tensor | None] = {"x": x, "w": w, "out": out}
    launch = KernelLaunch(Kernel(), (7,), {**tensors, "size": 5}, 4, 3)
    relaunch.Relaunch(launch, Handle(), tensors).run(tensors, 0)
    ((*grid, stream, function, _, _, _, _, a, b, size, c),) = calls
    assert (grid, stream, function, size) == ([7, 1, 1], "stream", "handle", 5)
    assert (a is x, b is w, c is out) == (True, True, True)
