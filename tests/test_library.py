"""The registered op: schema, fake kernel, autograd and autocast rules, tracing, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from serving import serving
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import lk_triton
from lk_triton.algorithms.base import KernelLaunch
from lk_triton.nn import DepthwiseConv2d
from lk_triton.ops import depthwise, layout
from lk_triton.ops.problem import ConvProblem

op = torch.ops.lk_triton.depthwise_conv2d.default
pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = ("nchw", "channels_last", "channel_major", "channel_slice")


def tensor(shape: tuple[int, int, int, int], order: str, dtype: torch.dtype = torch.float32) -> Tensor:
    n, c, h, w = shape
    values = torch.randn(shape, dtype=dtype)
    if order == "channel_slice":
        return torch.zeros(n, c + 3, h, w, dtype=dtype)[:, 2 : c + 2].copy_(values)
    return torch.empty_strided(shape, layout.strides(shape, order), dtype=dtype).copy_(values)


def arguments(
    shape: tuple[int, int, int, int] = (2, 3, 6, 5), order: str = "nchw", full: bool = True, activation: str | None = "gelu",
    algorithm: str = "auto", stride: int = 1, dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments of the op: 3x3, padding 1; ``full`` with bias, residual and activation."""
    x, weight = tensor(shape, order, dtype), torch.randn(shape[1], 1, 3, 3, dtype=dtype)
    pair = [stride, stride]
    if not full:
        return x, weight, None, None, None, pair, [1, 1], [1, 1], None, None, algorithm, None
    n, c, h, w = shape
    out = (n, c, (h - 1) // stride + 1, (w - 1) // stride + 1)
    bias, residual = torch.randn(c, dtype=dtype), tensor(out, order, dtype)
    return x, weight, bias, residual, None, pair, [1, 1], [1, 1], activation, None, algorithm, None


def with_grad(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The floating-point tensors as leaves that require a gradient, in the same memory order."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value).requires_grad_()

    return tuple(map(leaf, args))


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("full", [False, True], ids=["bare", "epilogue"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
def test_opcheck(order: str, full: bool, grad: bool) -> None:
    args = arguments(order=order, full=full)
    args = with_grad(args) if grad else args
    results = torch.library.opcheck(op, args)
    assert len(results) == 4
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 6, 5), (1, 3, 6, 5), (2, 1, 6, 5), (2, 3, 1, 5), (2, 3, 6, 1), (2, 3, 1, 1), (1, 1, 1, 1), (0, 3, 6, 5)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_fake_strides_are_the_real_ones(order: str, shape: tuple[int, int, int, int], stride: int) -> None:
    args = arguments(shape, order, stride=stride)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    for algorithm in ("torch", "direct"):
        real = op(*args[:10], algorithm, None)
        assert real.shape == fake.shape
        assert real.stride() == fake.stride()
        assert real.storage_offset() == fake.storage_offset()


def test_output_keeps_the_layout() -> None:
    for order in ("nchw", "channels_last", "channel_major"):
        for algorithm in serving(ConvProblem(2, 3, 6, 5, 3, 3, padding=(1, 1), dtype="float32")):
            y = op(*arguments((2, 3, 6, 5), order, algorithm=algorithm))
            assert y.stride() == layout.strides((2, 3, 6, 5), order)
            assert layout.layout_of(y) == order


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("order", ["nchw", "channel_major"])
def test_autograd_rule_of_the_raw_op(activation: str | None, order: str) -> None:
    x, weight, bias, residual, *options = with_grad(arguments((2, 2, 4, 3), order, activation=activation, dtype=torch.float64))

    def call(*inputs: Tensor) -> Tensor:
        return op(*inputs, *options)

    assert torch.autograd.gradcheck(call, (x, weight, bias, residual))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias, residual))


def test_autograd_rule_gives_what_is_asked_for() -> None:
    x, weight, bias, residual, *options = arguments(activation="silu")
    weight.requires_grad_()
    op(x, weight, bias, residual, *options).sum().backward()
    assert weight.grad is not None
    assert all(t.grad is None for t in (x, bias, residual))


# Autocast


def test_autocast_defaults_to_bfloat16_and_honours_the_dtype() -> None:
    x, weight, bias = torch.randn(1, 3, 6, 5), torch.randn(3, 1, 3, 3), torch.randn(3)
    for x_dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.autocast("cpu"):
            assert lk_triton.depthwise_conv2d(x.to(x_dtype), weight, bias, residual=x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.float16):
            y = lk_triton.depthwise_conv2d(x.to(x_dtype), weight, bias, residual=x)
        assert y.dtype == torch.float16
        x64, weight64, bias64 = (t.half().double() for t in (x.to(x_dtype), weight, bias))
        expected = F.conv2d(x64, weight64, bias64, padding=1, groups=3) + x.half().double()
        torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-3)
    with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match="one dtype outside autocast"):
        lk_triton.depthwise_conv2d(x.half(), weight)


def test_autocast_leaves_float64_alone_as_torch_does() -> None:
    x, weight = torch.randn(1, 3, 6, 5, dtype=torch.float64), torch.randn(3, 1, 3, 3)
    with torch.autocast("cpu"):
        assert lk_triton.depthwise_conv2d(x, weight.double()).dtype == torch.float64
        with pytest.raises(TypeError, match="one dtype"):
            lk_triton.depthwise_conv2d(x, weight)


def test_autocast_drops_a_float32_precision() -> None:
    with torch.autocast("cpu"):
        y = lk_triton.depthwise_conv2d(torch.randn(1, 3, 6, 5), torch.randn(3, 1, 3, 3), precision="tf32")
    assert y.dtype == torch.bfloat16


def test_autocast_has_gradients() -> None:
    x, weight, bias, residual, *_ = with_grad(arguments())
    with torch.autocast("cpu"):
        y = lk_triton.depthwise_conv2d(x, weight, bias, activation="gelu", residual=residual)
    y.float().square().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in (x, weight, bias, residual))


def test_autocast_uses_a_bank_of_its_own_dtype_only(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    run = KernelLaunch.run

    def recorded(self: KernelLaunch, device: torch.device) -> None:
        launched.append(self.kernel.fn.__name__)
        run(self, device)

    monkeypatch.setattr(KernelLaunch, "run", recorded)
    module = DepthwiseConv2d(2, 5, bias=False).eval()
    x = torch.randn(1, 2, 8, 8)
    with torch.inference_mode():
        with lk_triton.use("toeplitz"), torch.autocast("cpu"):
            module.prepare((1, 2, 8, 8))
            assert launched == ["pack_kernel"]
            launched.clear()
            expected = F.conv2d(x.bfloat16().double(), module.weight.bfloat16().double(), padding=2, groups=2)
            torch.testing.assert_close(module(x).double(), expected, rtol=1e-2, atol=1e-2)
            assert launched == ["pack_kernel", "toeplitz_kernel"]  # the float32 bank cannot serve bfloat16
        with lk_triton.use("toeplitz"):
            launched.clear()
            module(x)
            assert launched == ["toeplitz_kernel"]


# Tracing


def network(prepare: bool) -> torch.nn.Module:
    large, strided = DepthwiseConv2d(4, 5, activation="gelu"), DepthwiseConv2d(4, 3, stride=2, activation="relu")
    if prepare:
        with lk_triton.use("toeplitz"):
            large.eval().prepare((2, 4, 8, 8))
        assert large.bank_bytes > 0
    return torch.nn.Sequential(large, strided).eval()


@pytest.mark.parametrize("prepare", [False, True], ids=["raw", "prepared"])
@pytest.mark.parametrize("order", ["nchw", "channels_last", "channel_major"])
def test_fullgraph_compile(prepare: bool, order: str) -> None:
    torch._dynamo.reset()
    layers = network(prepare)
    x = tensor((2, 4, 8, 8), order)
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        y, expected = compiled(x), layers(x)
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()


def test_fullgraph_compile_with_gradients() -> None:
    torch._dynamo.reset()
    x, weight, bias, residual, *_ = with_grad(arguments())

    def call(*inputs: Tensor) -> Tensor:
        return lk_triton.depthwise_conv2d(*inputs[:3], residual=inputs[3], activation="silu").square()

    torch.compile(call, fullgraph=True, backend="aot_eager")(x, weight, bias, residual).sum().backward()
    grads = [t.grad for t in (x, weight, bias, residual)]
    for t in (x, weight, bias, residual):
        t.grad = None
    call(x, weight, bias, residual).sum().backward()
    for t, grad in zip((x, weight, bias, residual), grads, strict=True):
        torch.testing.assert_close(grad, t.grad)


def test_compile_under_autocast() -> None:
    torch._dynamo.reset()
    layers, x = network(False), torch.randn(2, 4, 8, 8)
    with torch.inference_mode(), torch.autocast("cpu"):
        y = torch.compile(layers, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(y, layers(x), rtol=2e-2, atol=2e-2)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("prepare", [False, True], ids=["raw", "prepared"])
def test_dynamic_batch_does_not_compile_again(prepare: bool) -> None:
    torch._dynamo.reset()
    layers, counter = network(prepare), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layers, fullgraph=True, backend=counter, dynamic=True)
    with torch.inference_mode():
        for n in (2, 3, 5):
            x = torch.randn(n, 4, 8, 8)
            torch.testing.assert_close(compiled(x), layers(x))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_inductor() -> None:
    """Inductor keeps the strides that the fake kernel promised, in front of and behind the op."""
    torch._dynamo.reset()
    layers = network(True)

    def call(x: Tensor) -> Tensor:
        return torch.sigmoid(layers(x * 2) + 1)

    for order in ("nchw", "channel_major"):
        x = tensor((2, 4, 8, 8), order)
        with torch.inference_mode():
            torch.testing.assert_close(torch.compile(call, fullgraph=True)(x), call(x))


def test_export_unprepared() -> None:
    layers = network(False)
    example = torch.randn(2, 4, 8, 8)
    program = torch.export.export(layers, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))
    assert sum(node.target is op for node in program.graph.nodes) == 2
    x = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(program.module()(x), layers(x))


def test_options_reach_the_problem() -> None:
    x, weight = torch.randn(2, 3, 9, 8), torch.randn(6, 1, 5, 3)
    problem = depthwise.problem_of(
        x=x, weight=weight, bias=None, residual=x, stride=(2, 1), padding=(0, 1), dilation=(1, 2), activation="relu",
        precision="ieee",
    )  # fmt: skip
    assert (problem.n, problem.c, problem.h, problem.w, problem.kh, problem.kw) == (2, 3, 9, 8, 5, 3)
    assert (problem.stride, problem.padding, problem.dilation, problem.multiplier) == ((2, 1), (0, 1), (1, 2), 2)
    assert (problem.dtype, problem.layout, problem.precision) == ("float32", "nchw", "ieee")
    assert (problem.epilogue.bias, problem.epilogue.activation, problem.epilogue.residual) == (False, "relu", True)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("order", LAYOUTS)
def test_opcheck_on_a_gpu(order: str) -> None:
    args = [a.cuda() if isinstance(a, Tensor) else a for a in arguments()]
    args[0] = torch.empty_strided(args[0].shape, tensor((2, 3, 6, 5), order).stride(), device="cuda").copy_(args[0])
    assert set(torch.library.opcheck(op, tuple(args)).values()) == {"SUCCESS"}


@pytest.mark.gpu
def test_autocast_and_compile_on_a_gpu() -> None:
    torch._dynamo.reset()
    layers = network(False).cuda()
    for order in ("nchw", "channels_last", "channel_major"):
        x = tensor((2, 4, 8, 8), order)
        with torch.inference_mode():
            expected = layers.cpu().double()(x.double())
            layers.float().cuda()
            x = torch.empty_strided(x.shape, x.stride(), device="cuda").copy_(x)
            compiled = torch.compile(layers, fullgraph=True)
            torch.testing.assert_close(compiled(x).cpu().double(), expected, rtol=1e-4, atol=1e-4)
            with torch.autocast("cuda"):
                y = layers(x)
            assert y.dtype == torch.float16
            torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_launches_on_the_current_stream() -> None:
    """The input is still being written by the same stream when the op is called."""
    weight = torch.randn(64, 1, 13, 13, device="cuda", dtype=torch.float16) / 13
    source = torch.randn(16, 64, 56, 56, device="cuda", dtype=torch.float16)
    expected = lk_triton.depthwise_conv2d(source, weight)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.zeros_like(source)
        torch.cuda._sleep(50_000_000)
        x.copy_(source)
        y = lk_triton.depthwise_conv2d(x, weight)
    stream.synchronize()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
