"""Forward-mode AD and the transforms of ``torch.func``: through every public function, modules, and a whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from serving import call
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from lk_triton import conv_ffn, conv_stem, dense_conv2d, depthwise_conv2d
from lk_triton.models import RepLKNet
from lk_triton.nn import ConvUnit, DepthwiseConv2d, PointwiseConv2d, ReparamDepthwiseConv2d, StemConv2d
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem
from lk_triton.planning.accuracy import draw

pytestmark = pytest.mark.usefixtures("one_thread")
DOUBLE: dict[str, Any] = {"dtype": "float64"}
PROBLEMS: dict[str, Problem] = {
    "depthwise": ConvProblem(1, 2, 4, 5, 3, 3, padding=(1, 1), epilogue=Epilogue(True, "gelu", True), **DOUBLE),
    "strided": ConvProblem(2, 2, 5, 4, 3, 2, (2, 1), (1, 0), (1, 2), 2, epilogue=Epilogue(False, "silu"), **DOUBLE),
    "pointwise": DenseProblem(1, 3, 2, 3, 2, epilogue=Epilogue(True, "silu", True), **DOUBLE),
    "dense": DenseProblem(2, 2, 4, 5, 3, 3, 3, (2, 2), (1, 1), epilogue=Epilogue(True, "gelu"), **DOUBLE),
    "ffn": FfnProblem(1, 2, 2, 3, 4, **DOUBLE),
    "stem": StemProblem(1, 2, 4, 5, 2, epilogue=Epilogue(True, "gelu"), **DOUBLE),
}
MODES = pytest.mark.parametrize("interpret", ["0", "1"], ids=["cpu", "interpreted"])


def posed(kind: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A function of all tensors of a problem, and the tensors."""
    problem = PROBLEMS[kind]
    given = draw(problem, torch.device("cpu"), torch.Generator().manual_seed(0))

    def function(*tensors: Tensor) -> Tensor:
        return call(problem, dict(zip(given, tensors, strict=True)))

    return function, tuple(given.values())


@MODES
@pytest.mark.parametrize("kind", PROBLEMS)
def test_forward_mode_is_right(kind: str, interpret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    function, tensors = posed(kind)
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_tangents_of_each_tensor_alone(kind: str, no_interpreter: None) -> None:
    """In float32, which our algorithms serve, and where no tensor requires a gradient."""
    function, tensors = posed(kind)
    for i, tensor in enumerate(tensors):
        tangent = torch.randn_like(tensor)
        step = 1e-5 * tangent
        ends = [function(*tensors[:i], tensor + sign * step, *tensors[i + 1 :]) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / 2e-5
        singles = [t.float() for t in tensors]
        with torch.no_grad(), forward_ad.dual_level():
            singles[i] = forward_ad.make_dual(singles[i], tangent.float())
            y = forward_ad.unpack_dual(function(*singles))
        assert y.tangent is not None
        torch.testing.assert_close(y.tangent.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(y.primal, function(*(t.float() for t in tensors)), rtol=1e-4, atol=1e-4)


@MODES
@pytest.mark.parametrize("kind", PROBLEMS)
def test_transforms_of_torch_func(kind: str, interpret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    function, (x, *rest) = posed(kind)

    def loss(x: Tensor) -> Tensor:
        return function(x, *rest).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    torch.testing.assert_close(grad(loss)(x), expected)
    torch.testing.assert_close(jacrev(loss)(x), expected)
    torch.testing.assert_close(jacfwd(loss)(x), expected)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(jvp(loss, (x,), (tangent,))[1], (expected * tangent).sum())
    (curvature,) = torch.autograd.grad((expected * tangent).sum(), leaf)
    torch.testing.assert_close((hessian(loss)(x).flatten(x.dim()) @ tangent.flatten()).view_as(x), curvature)
    several = torch.stack([x, x + 1, 2 * x])
    torch.testing.assert_close(vmap(loss)(several), torch.stack([loss(one) for one in several]))
    torch.testing.assert_close(vmap(grad(loss))(several), torch.stack([grad(loss)(one) for one in several]))


@pytest.mark.parametrize("kind", PROBLEMS)
def test_vmap_over_weights_takes_x_in_any_memory_order(kind: str) -> None:
    function, (x, weight, *others) = posed(kind)
    weights = torch.stack([weight, 2 * weight])
    for order in (torch.contiguous_format, torch.channels_last):
        shared = x.contiguous(memory_format=order)
        y = vmap(lambda w, shared=shared: function(shared, w, *others))(weights)
        torch.testing.assert_close(y, torch.stack([function(shared, w, *others) for w in weights]))
        several = torch.stack([shared, 2 * shared], 1)
        y = vmap(lambda one: function(one, weight, *others), in_dims=1)(several)
        torch.testing.assert_close(y, torch.stack([function(one, weight, *others) for one in several.unbind(1)]))


def test_a_forced_algorithm_is_refused() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)

    def loss(x: Tensor, algorithm: str) -> Tensor:
        return depthwise_conv2d(x, w, algorithm=algorithm).sum()

    with pytest.raises(ValueError, match=r"'direct' has no rule for torch.func's transforms.*algorithm='auto'"):
        grad(loss)(x, "direct")
    assert torch.equal(grad(loss)(x, "torch"), grad(loss)(x, "auto"))
    with forward_ad.dual_level():
        loss(x, "direct")  # no tangent: nothing is lost
        with pytest.raises(ValueError, match="forward-mode AD"):
            loss(forward_ad.make_dual(x, x), "direct")


def test_autocast_under_a_transform() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    with torch.autocast("cpu"):
        y, tangent, *_ = jvp(lambda x: depthwise_conv2d(x, w, residual=x), (x,), (x,))
    assert y.dtype == tangent.dtype == torch.bfloat16
    torch.testing.assert_close(y, tangent)  # it is linear


MODULES: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: DepthwiseConv2d(4, 5, activation="gelu"),
    "pointwise": lambda: PointwiseConv2d(4, 4, activation="silu"),
    "stem": lambda: StemConv2d(4, 6, activation="gelu"),
    "reparam": lambda: ReparamDepthwiseConv2d(4, 7, activation="gelu"),
    "merged": lambda: ReparamDepthwiseConv2d(4, 7, activation="gelu", merged=True),
    "unit": lambda: ConvUnit(PointwiseConv2d(4, 4, bias=False), "gelu"),
    "fused unit": lambda: ConvUnit(DepthwiseConv2d(4, 3), "gelu", fused=True),
    "plain unit": lambda: ConvUnit(nn.Conv2d(4, 4, 3), "gelu", fused=True),
    **{
        f"network, {form}": lambda form=form: RepLKNet((5,), (1,), (4,), in_chans=4, num_classes=3).eval().convert(form)
        for form in ("training", "merged", "fused")
    },
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
def test_through_modules(name: str, prepared: bool, no_interpreter: None) -> None:
    torch.manual_seed(0)
    module: Any = MODULES[name]().eval().double()
    if prepared and hasattr(module, "prepare"):
        module.float().prepare()
    dtype = next(module.parameters()).dtype
    x, tangent = torch.randn(2, 4, 9, 8, dtype=dtype), torch.randn(2, 4, 9, 8, dtype=dtype)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in weights.items()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,)).double().square().sum()

    leaves = {name: p.clone().requires_grad_() for name, p in weights.items()}
    leaf = x.clone().requires_grad_()
    slopes = torch.autograd.grad(loss(leaves, leaf), (*leaves.values(), leaf))
    expected = sum((a.double() * b).sum() for a, b in zip(slopes, (*tangents.values(), tangent), strict=True))
    tolerance: Any = {"rtol": 1e-4, "atol": 1e-4}
    found = jvp(loss, (weights, x), (tangents, tangent))[1]
    torch.testing.assert_close(found, expected, **tolerance)
    with torch.no_grad(), forward_ad.dual_level():
        y = module(forward_ad.make_dual(x, tangent)).double().square().sum()
        along_x = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(along_x, (slopes[-1] * tangent).double().sum(), **tolerance)
    torch.testing.assert_close(grad(loss, argnums=1)(weights, x), slopes[-1], **tolerance)
    each = vmap(grad(loss), in_dims=(None, 0))(weights, x[:, None])  # per sample, as for differential privacy
    for name, slope in zip(each, slopes, strict=False):
        torch.testing.assert_close(each[name].sum(0), slope, **tolerance)


def test_the_functions_are_all_looked_at() -> None:
    import lk_triton

    public = {name for name in lk_triton.__all__ if "conv" in name}
    assert public == {f.__name__ for f in (conv_ffn, conv_stem, dense_conv2d, depthwise_conv2d)} | {"pointwise_conv2d"}


@pytest.mark.parametrize("transform", [grad, lambda f: lambda x: jvp(f, (x,), (x,))[1]], ids=["grad", "jvp"])
def test_compiled_transforms(transform: Any, no_interpreter: None) -> None:
    torch._dynamo.reset()
    layer = DepthwiseConv2d(4, 5, activation="gelu").eval().requires_grad_(False)
    x = torch.randn(2, 4, 9, 8)
    compiled = torch.compile(lambda x: transform(lambda v: layer(v).square().sum())(x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(lambda v: layer(v).square().sum())(x))
