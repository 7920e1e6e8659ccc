"""Where a network's time goes: kernels and operations, sorted by what they compute."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lk_triton
from lk_triton.bench.shares import KINDS, OURS, by_operation, fractions, kind, kind_of_operation, shares

pytestmark = pytest.mark.usefixtures("one_thread", "no_interpreter")


def test_every_kernel_of_the_package_has_its_share() -> None:
    """Kernels are the jitted functions that nothing calls."""
    defined, called = set(), set()
    algorithms = Path(lk_triton.__file__).parent / "algorithms"
    for file in [*algorithms.rglob("kernel*.py"), *algorithms.glob("shared/*.py")]:
        tree = ast.parse(file.read_text())
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and any(ast.unparse(d).endswith(".jit") for d in function.decorator_list):
                defined.add(function.name)
        called |= {ast.unparse(n.func).split(".")[-1] for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert defined - called == OURS.keys()
    assert set(OURS.values()) == set(KINDS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("toeplitz_kernel", "depthwise"), ("direct_channels_last_kernel", "depthwise"), ("pointwise_kernel", "pointwise"),
     ("epilogue_kernel", "pointwise"), ("nvjet_hsh_128x256_64x4_1x2", "pointwise"), ("stem_kernel", "rest"),
     ("convstem_kernel", "pointwise"), ("void at::native::reduce_kernel<512, 1>", "rest")],
)  # fmt: skip
def test_kernels_of_lk_triton_are_sorted_by_name(name: str, expected: str) -> None:
    assert kind(name) == expected


def event(name: str, shapes: Sequence[Sequence[int]] = (), parent: object = None, **kernels: float) -> Any:
    """An operation as torch's profiler reports it, with the kernels that it launched and their microseconds."""
    launched = [SimpleNamespace(name=kernel, duration=us) for kernel, us in kernels.items()]
    return SimpleNamespace(name=name, input_shapes=shapes, cpu_parent=parent, kernels=launched, self_cpu_time_total=0)


def test_operations_are_told_by_their_weights() -> None:
    x = [64, 128, 56, 56]
    for weight, expected in (([128, 1, 31, 31], "depthwise"), ([512, 128, 1, 1], "pointwise"), ([128, 3, 3, 3], "rest")):
        outer = event("aten::conv2d", [x, weight, []])
        inner = event("aten::cudnn_convolution", [x, weight], outer)
        assert kind_of_operation(event("aten::empty", [], inner)) == kind_of_operation(inner) == expected
    assert kind_of_operation(event("aten::addmm", [[1000], [64, 1024], [1024, 1000]])) == "pointwise"
    assert kind_of_operation(event("aten::mm", [], event("lk_triton::dense_conv2d", [x, [512, 128, 1, 1]]))) == "pointwise"
    assert kind_of_operation(event("aten::bmm", [], event("aten::scaled_dot_product_attention"))) is None


def test_shares_of_a_gpus_kernels() -> None:
    """A kernel belongs to the operation that launched it; copies are no kernels; what nobody launched is unknown."""
    conv = event("aten::_conv_depthwise2d", [[1, 8, 9, 9], [8, 1, 5, 5]], implicit_convolve_sgemm=60.0)
    product = event("aten::cudnn_convolution", [[1, 8, 9, 9], [16, 8, 1, 1]], sm80_xmma_fprop=25.0, Memcpy=99.0)
    events = [conv, product, event("aten::relu", elementwise=15.0)]
    pieces = list(by_operation(events))
    assert pieces == [("depthwise", 60.0), ("pointwise", 25.0), ("rest", 15.0)]
    assert fractions(pieces) == {"depthwise": 0.6, "pointwise": 0.25, "rest": 0.15}
    assert fractions([*pieces, *by_operation([event("Torch-Compiled Region: 0/0", triton_poi_fused=50.0)])]) is None
    assert fractions([*pieces, ("unknown", 1.0)]) is not None
    assert fractions([]) is None


def test_shares_of_a_cpu() -> None:
    network = nn.Sequential(nn.Conv2d(64, 64, 13, padding=6, groups=64), nn.ReLU()).eval()
    x = torch.randn(4, 64, 56, 56)
    network(x)
    found = shares(lambda: network(x), torch.device("cpu"))
    assert found.kernels is None
    assert found.of_time is not None
    assert found.of_time["depthwise"] > 0.5
    assert found.of_time["pointwise"] == 0
    assert sum(found.of_time.values()) == pytest.approx(1)
