"""The second call is a look-up: what it leaves out, what it notices, and what it stays away from."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lk_triton
from lk_triton import environment
from lk_triton import gpu as gpus
from lk_triton.algorithms.onednn import OnednnAlgorithm
from lk_triton.nn import DepthwiseConv2d, PointwiseConv2d
from lk_triton.ops import registration, second_call
from lk_triton.ops.problem import ConvProblem
from lk_triton.planning import autotune, cache, plan, verify

pytestmark = pytest.mark.usefixtures("no_interpreter")

C = 24


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


X, W, B, R = maps(2, C, 9, 8), torch.randn(C, 1, 3, 3), torch.randn(C), maps(2, C, 9, 8)
DENSE = torch.randn(16, C, 1, 1)


def call(x: Tensor = X, weight: Tensor = W, bias: Tensor | None = B, **options: Any) -> Tensor:
    return lk_triton.depthwise_conv2d(x, weight, bias, **{"algorithm": "torch", **options})


def wanted(x: Tensor = X, weight: Tensor = W, bias: Tensor | None = B, **options: Any) -> Tensor:
    stride, padding, dilation = (options.get(name, 1) for name in ("stride", "padding", "dilation"))
    y = F.conv2d(x, weight, bias, stride, padding, dilation, C)
    y = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu}[options.get("activation")](y)
    return y if "residual" not in options else y + options["residual"]


def key(**arguments: Any) -> second_call.Key | None:
    return second_call.key("op", {"x": X, **arguments})


def remembered() -> int:
    return len(second_call._calls)


# What it leaves out


@pytest.mark.parametrize(
    "run",
    [
        lambda: call(),
        lambda: lk_triton.dense_conv2d(X, DENSE, algorithm="torch"),
        lambda: lk_triton.conv_ffn(X, DENSE, B[:16], DENSE.transpose(0, 1).contiguous(), B, algorithm="torch"),
        lambda: lk_triton.conv_stem(
            X[:, :3], torch.ones(16, 3, 3, 3), B[:16], torch.ones(16, 1, 3, 3), B[:16], torch.ones(16, 16, 1, 1), B[:16],
            algorithm="torch",
        ),
    ],
    ids=["depthwise", "dense", "ffn", "stem"],
)  # fmt: skip
@torch.no_grad()
def test_nothing_is_decided_again(run: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    assert remembered() == 1

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("decided again")

    for name in ("validated", "problem", "implementation"):
        monkeypatch.setattr(registration.Op, name, never)
    for module, name in ((registration, "plan_for_call"), (registration, "run"), (plan, "_auto"), (verify, "due")):
        monkeypatch.setattr(module, name, never)
    again = run()
    assert torch.equal(again, first)
    assert again.data_ptr() != first.data_ptr()


# What it notices


@pytest.mark.parametrize(
    "change",
    [
        {"x": maps(3, C, 9, 8)}, {"x": maps(2, C, 8, 9)}, {"x": X.contiguous()},
        {"x": torch.randn(2 * C * 72 + 1)[1:].view(2, 9, 8, C).permute(0, 3, 1, 2)},
        {"weight": torch.randn(C, 1, 5, 5), "padding": 2}, {"weight": W.transpose(2, 3)}, {"bias": None},
        {"bias": torch.randn(2 * C)[::2]}, {"residual": R}, {"residual": R.contiguous()}, {"activation": "relu"},
        {"activation": "gelu"}, {"stride": (2, 1)}, {"dilation": 2, "padding": 2}, {"padding": 0}, {"algorithm": "onednn"},
        {"x": X.double(), "weight": W.double(), "bias": B.double()}, {"precision": "ieee"},
    ],
    ids=lambda change: ", ".join(change),
)  # fmt: skip
@torch.no_grad()
def test_another_form_is_another_call(change: dict[str, Any]) -> None:
    torch.testing.assert_close(call(padding=1), wanted())
    options = {"padding": 1, **change}
    expected = wanted(**options)
    before = remembered()
    for _ in range(2):
        y = call(**options)
        torch.testing.assert_close(y, expected)
        like = options.get("x", X)
        assert y.is_contiguous(memory_format=torch.channels_last) == like.is_contiguous(memory_format=torch.channels_last)
    assert remembered() == before + (options.get("algorithm") != "onednn"), "what packs in every call is not remembered"
    torch.testing.assert_close(call(padding=1), wanted())


def test_each_form_of_a_tensor_has_its_key() -> None:
    like = [
        X, X[:1], X.contiguous(), X.double(), X.to("meta"), torch.randn(X.numel() + 1)[1:].as_strided(X.shape, X.stride()),
        torch.ops.mkldnn._reorder_convolution_weight(W, [1, 1], [1, 1], [1, 1], C, [2, C, 9, 8]),
    ]  # fmt: skip
    keys = [key(residual=x) for x in like]
    assert None not in keys
    assert len(set(keys)) == len(like)
    assert key(residual=X.clone()) == keys[0]
    assert key(weight=X) != keys[0]
    assert key(stride=(1, 2), padding=(2, 1)) != key(padding=(1, 2), stride=(2, 1))
    assert second_call.key("other", {"x": X, "residual": X}) != keys[0]


@contextmanager
def _mkldnn_off() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@contextmanager
def _distrusted() -> Iterator[None]:
    plan.distrust(ConvProblem(1, 1, 1, 1, 1, 1), gpus.CPU, "direct")
    try:
        yield
    finally:
        plan._distrusted.clear()


@contextmanager
def _reloaded() -> Iterator[None]:
    """As after a measurement that was saved."""
    cache.reload()
    yield


CHANGES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "use": lambda: lk_triton.use("torch"), "unmeasured": cache.unmeasured, "reload": _reloaded, "mkldnn": _mkldnn_off,
    "distrust": _distrusted,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_plans_depend_on_is_part_of_the_key(name: str) -> None:
    before = key()
    with CHANGES[name]():
        inside = key()
        assert inside is not None
        assert inside != before


@pytest.mark.parametrize("name", environment.CALL)
def test_a_changed_variable_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    without = key()
    for value in ("0", "1"):
        monkeypatch.setenv(name, value)
        assert key() != without
    one = key()
    monkeypatch.setenv(name, "0")
    assert key() != one
    monkeypatch.delenv(name)
    assert key() == without


@torch.no_grad()
def test_preferences_decide_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, ran = DepthwiseConv2d(C, 3).eval().prepare(tuple(X.shape)), []
    launch = OnednnAlgorithm.launch
    monkeypatch.setattr(OnednnAlgorithm, "launch", lambda *given: ran.append("onednn") or launch(*given))
    expected = layer(X)
    for prefer, name in ((nullcontext, "onednn"), (lambda: lk_triton.use("torch"), "torch"), (nullcontext, "onednn")):
        ran.clear()
        with prefer():
            torch.testing.assert_close(layer(X), expected)
        assert ran == [name] * (name == "onednn")
    monkeypatch.setenv("LK_TRITON_WITHOUT", "onednn")
    ran.clear()
    torch.testing.assert_close(layer(X), expected)
    monkeypatch.setenv("LK_TRITON_WITHOUT", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        layer(X)
    assert ran == []


def test_how_float32_is_rounded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_tensor: Any = SimpleNamespace(dtype=torch.float32, is_cuda=True, device=torch.device("cuda", 0))
    before = plan.state(gpu_tensor)
    for name in ("rounds_products", "torch_allows_tf32"):
        with monkeypatch.context() as patch:
            patch.setattr(plan, name, lambda *_: "other")
            assert plan.state(gpu_tensor) != before


@torch.no_grad()
def test_weights_that_were_replaced_or_written_to() -> None:
    for layer, reference in (
        (DepthwiseConv2d(C, 3), lambda w, b: F.conv2d(X, w, b, 1, 1, 1, C)),
        (PointwiseConv2d(C, 64), lambda w, b: F.conv2d(X, w, b)),
    ):
        layer.eval().prepare((8, C, 40, 40))
        for change in (
            lambda: None,
            lambda layer=layer: layer.weight.mul_(2),
            lambda layer=layer: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
            lambda layer=layer: setattr(layer, "bias", None),
            lambda layer=layer: layer.load_state_dict({"weight": torch.randn_like(layer.weight)}),
            lambda layer=layer: layer.prepare((8, C, 40, 40)),
        ):
            change()
            for _ in range(2):
                torch.testing.assert_close(layer(X), reference(layer.weight, layer.bias))


# What it stays away from


class _Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class _Subclass(Tensor):
    pass


OP = "lk_triton.depthwise_conv2d"


@torch.no_grad()
def test_modes_see_the_operation() -> None:
    expected = call()
    for mode in (_Ops(), _Functions()):
        with mode:
            assert torch.equal(call(), expected)
        assert any(OP in name for name in mode.seen), mode
    with torch.profiler.profile() as profile:
        call()
    assert any("depthwise_conv2d" in event.key for event in profile.key_averages())
    assert remembered() == 1


@torch.no_grad()
def test_transforms_casts_and_tracing_have_their_way() -> None:
    expected = call()
    with torch.autocast("cpu", torch.bfloat16):
        assert call().dtype == torch.bfloat16
    torch.testing.assert_close(torch.func.vmap(lambda x: call(x[None])[0])(X.contiguous()), expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(X, X))).tangent
        assert tangent is not None
        torch.testing.assert_close(tangent, wanted(bias=None))
    assert type(call(X.as_subclass(_Subclass))) is _Subclass
    traced: Any = torch.jit.trace(lambda x: call(x), X, check_trace=False)
    assert "lk_triton" in str(traced.graph)
    compiled = torch.compile(lambda x: call(x), fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), expected)
    assert torch.equal(compiled(2 * X), call(2 * X))
    negated = torch.ops.aten._neg_view(X)
    torch.testing.assert_close(call(negated), wanted(-X))
    assert remembered() == 1


def test_no_key_where_something_intercepts() -> None:
    assert key(weight=W) is not None
    negated = torch.ops.aten._neg_view(W)
    for wrong in (negated, W.as_subclass(_Subclass), W.clone().requires_grad_(), [1, 1], True, 1.0, W.numpy()):
        assert key(weight=wrong) is None, type(wrong)
    with torch.no_grad():
        assert key(weight=W.clone().requires_grad_()) is not None
    assert second_call.key("op", {"x": None}) is None
    for context in (torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level(), _Ops(), _Functions()):
        with context:
            assert key() is None, context


def test_gradients() -> None:
    with torch.no_grad():
        call()
    x, weight = X.clone().requires_grad_(), W.clone().requires_grad_()
    bias, residual = B.clone().requires_grad_(), R.clone().requires_grad_()
    for given in ({"x": x}, {"weight": weight}, {"bias": bias}, {"residual": residual}):
        y = call(**given)
        y.sum().backward()
        (leaf,) = given.values()
        assert leaf.grad is not None
    with torch.no_grad():
        assert not call(x, weight).requires_grad
    with torch.inference_mode():
        assert call(x, weight).is_inference()
    assert not call(X, W).is_inference()


def test_hooks_of_modules_fire() -> None:
    layer, seen = DepthwiseConv2d(C, 3).eval(), []
    with torch.no_grad():
        layer(X)
        layer.register_forward_hook(lambda module, args, y: seen.append(y.shape))
        for _ in range(2):
            layer(X)
    assert len(seen) == 2


# What is not remembered


@torch.no_grad()
def test_what_the_next_call_may_do_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    call(X[:0])
    assert remembered() == 0, "an empty batch"
    lk_triton.depthwise_conv2d(X, W, algorithm="onednn")
    assert remembered() == 0, "the weight is packed in every call"
    for module, name, answer in ((verify, "settled", False), (registration, "may_tune", True)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, answer=answer: answer)
            call()
        assert remembered() == 0, name
    assert torch.equal(call(padding=[1, 1]), call(padding=1))
    assert remembered() == 1, "a list cannot be looked up"
    for wrong in (True, 1.0):
        with pytest.raises(ValueError, match="stride must be"):
            call(padding=1, stride=wrong)


def test_when_checks_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    x: Any = SimpleNamespace(device=torch.device("cuda", 0))
    chosen: Any = SimpleNamespace(algorithm="direct", config="config")
    monkeypatch.setattr(verify, "_settled", {})
    variable = ("first", "0", "always", "0.5")
    for kernel, answers in (
        (None, (False, True, False, False)), (True, (True, True, False, False)), (False, (True, True, True, True)),
    ):  # fmt: skip
        if kernel is not None:
            verify._settled["problem", "direct", "config", x.device] = kernel  # pyright: ignore[reportArgumentType]
        for text, answer in zip(variable, answers, strict=True):
            monkeypatch.setenv(verify.VARIABLE, text)
            assert verify.settled("problem", chosen, x) == answer, (kernel, text)  # pyright: ignore[reportArgumentType]
    x.device = torch.device("cpu")
    assert verify.settled("other", chosen, x)  # pyright: ignore[reportArgumentType]


def test_a_problem_that_may_be_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    estimated, measured = (plan.Plan("direct", None, source) for source in (autotune.UNMEASURED[0], "user cache"))
    assert not autotune.may_tune(estimated)
    monkeypatch.setenv(autotune.VARIABLE, "1")
    assert autotune.may_tune(estimated)
    assert not autotune.may_tune(measured)


# Memory


@torch.no_grad()
def test_it_forgets_rather_than_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_call, "LIMIT", 3)
    for height in range(3, 12):
        call(maps(1, C, height, 8))
        assert 1 <= remembered() <= 3


@torch.no_grad()
def test_no_tensor_is_kept_alive() -> None:
    layer, x = DepthwiseConv2d(C, 3).eval().prepare(tuple(X.shape)), X.clone()
    y = layer(x)
    assert remembered() == 1
    assert layer._prepared is not None
    held = [weakref.ref(t) for t in (x, y, layer.weight, layer.bias, layer._prepared.packed) if t is not None]
    del x, y, layer
    gc.collect()
    assert [ref() for ref in held] == [None] * 5
