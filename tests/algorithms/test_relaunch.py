"""A launch is built once for tensors of the same strides and alignment, and repeated on others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from lk_triton import gpu as gpus
from lk_triton.algorithms import launch_cache as relaunch
from lk_triton.algorithms.base import KernelLaunch
from lk_triton.algorithms.dense.pointwise.host import PointwiseAlgorithm
from lk_triton.ops import layout
from lk_triton.ops.problem import DenseProblem, Epilogue

CUDA = torch.device("cuda", 0)


class Kernel:
    arg_names = ("x", "w", "size", "out")

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **_: Compiled()


class Compiled:
    function = "handle"
    calls: ClassVar[list[tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args: self.calls.append((grid, args))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaunch, "_known", {})
    monkeypatch.setattr(Compiled, "calls", [])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(KernelLaunch, "run", lambda self, device: self.kernel[self.grid]())


def test_other_tensors_of_the_same_form() -> None:
    built = []

    def launch(x: torch.Tensor, w: torch.Tensor | None, out: torch.Tensor) -> None:
        def first() -> KernelLaunch:
            built.append(x)
            return KernelLaunch(Kernel(), (3,), {"x": x, "w": w, "size": 5, "out": out}, 4, 3)

        relaunch.launch_again("a", "problem", "config", (x, w, out), first, CUDA)

    first, second = (
        (torch.zeros(4, 4), torch.ones(4, 4), torch.empty(4, 4)),
        (torch.zeros(4, 4), torch.ones(4, 4), torch.empty(4, 4)),
    )
    launch(*first)
    assert (len(built), Compiled.calls) == (1, [])
    launch(*second)
    assert len(built) == 1
    ((grid, args),) = Compiled.calls
    assert grid == (3, 1, 1)
    assert args[2] == 5
    assert [args[i] is second[j] for i, j in ((0, 0), (1, 1), (3, 2))] == [True] * 3
    launch(second[0].t(), *second[1:])  # other strides
    launch(torch.zeros(20)[1:17].view(4, 4), *second[1:])  # another alignment
    launch(second[0], None, second[2])  # without what was there
    launch(second[0], second[0], second[2])  # one tensor twice, which must not be taken for two
    assert len(built) == 5
    launch(*first)
    assert len(built) == 5
    assert Compiled.calls[-1][1][0] is first[0]


def test_each_device_has_its_own() -> None:
    """A kernel is loaded on one device."""
    built = []

    def launch(index: int) -> None:
        x = torch.zeros(4)

        def first() -> KernelLaunch:
            built.append(index)
            return KernelLaunch(Kernel(), (1,), dict.fromkeys(Kernel.arg_names, x), 4, 3)

        relaunch.launch_again("a", "problem", "config", (x,), first, torch.device("cuda", index))

    for index in (0, 1, 0):
        launch(index)
    assert built == [0, 1]


def test_descriptors_follow_their_tensors() -> None:
    algorithm = PointwiseAlgorithm()
    problem = DenseProblem(
        2, 16, 4, 4, 16, layout="channel_major", out_layout="channel_major", epilogue=Epilogue(False, None, False)
    )
    config = next(c for c in algorithm.configs(problem, gpus.TABLE["h100"]) if c.tma)

    def tensors() -> tuple[torch.Tensor, torch.Tensor, None, None, torch.Tensor]:
        x = layout.conform(torch.randn(2, 16, 4, 4).half(), "channel_major")
        return x, torch.randn(16, 16, 1, 1).half(), None, None, layout.empty((2, 16, 4, 4), "channel_major", x)

    one, two = tensors(), tensors()
    launch = algorithm.kernel_launch(problem, config, *one)
    again = relaunch.Relaunch(launch, Compiled(), one)
    again.run(two)
    ((_, args),) = Compiled.calls
    named = dict(zip(launch.kernel.arg_names, args, strict=True))
    assert named["x"].base is two[0]
    assert named["weight"].base is two[1]
    assert named["out"] is two[4]
    assert (named["x"].shape, named["x"].strides) == (launch.args["x"].shape, launch.args["x"].strides)
    assert launch.args["x"].base.data_ptr() == one[0].data_ptr(), "the first launch's own stays"
    again.run(one)
    assert dict(zip(launch.kernel.arg_names, Compiled.calls[1][1], strict=True))["x"].base is one[0]


def test_it_forgets_rather_than_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaunch, "LIMIT", 2)
    for i in range(5):
        x = torch.zeros(4)
        launch = KernelLaunch(Kernel(), (1,), dict.fromkeys(Kernel.arg_names, x), 4, 3)
        relaunch.launch_again("a", i, "config", (x,), lambda launch=launch: launch, CUDA)
        assert len(relaunch._known) <= 2


def test_tritons_own_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton calls a compiled kernel takes the grid and all arguments, in the order of the signature."""
    from triton.compiler import compiler

    calls = []

    class Handle(compiler.CompiledKernel):
        def __init__(self) -> None:
            self.function, self.packed_metadata, self.module = "handle", None, None

        def _init_handles(self) -> None:
            pass

        def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> None:
            pass

        @property
        def run(self) -> Any:
            return lambda *args: calls.append(args)

    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: "stream")
    monkeypatch.setattr(compiler, "driver", SimpleNamespace(active=driver))
    x, w, out = (torch.zeros(4) for _ in range(3))
    launch = KernelLaunch(Kernel(), (7,), {"x": x, "w": w, "size": 5, "out": out}, 4, 3)
    relaunch.Relaunch(launch, Handle(), (x, w, out)).run((x, w, out))
    ((*grid, stream, function, _, _, _, _, a, b, size, c),) = calls
    assert (grid, stream, function, size) == ([7, 1, 1], "stream", "handle", 5)
    assert (a is x, b is w, c is out) == (True, True, True)
