"""The public functions: every documented behaviour and every documented error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from serving import running, serving
from torch import Tensor

import lk_triton
from lk_triton import depthwise_conv2d, explain
from lk_triton import gpu as gpus
from lk_triton.functional import explain_problem
from lk_triton.ops.problem import ConvProblem, Epilogue, activate

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = ConvProblem(1, 4, 8, 8, 3, 3, padding=(1, 1), dtype="float32")
ALGORITHMS = serving(PLAIN)
WHERE = [(mode, name) for mode in ("interpreted", "cpu") for name in serving(PLAIN, mode)]


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None,
              residual: Tensor | None = None, padding: Any = None, stride: Any = 1, dilation: Any = 1) -> Tensor:  # fmt: skip
    """The documented mathematics in float64 with torch's own operations; padding None means "same"."""
    if padding is None:
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    y = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), stride, padding, dilation, x.shape[1])
    y = activate(y, activation)
    return y if residual is None else y + residual.double()


def tensors(shape: tuple[int, int, int, int], kernel: tuple[int, int], multiplier: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    x = torch.randn(n, c, h, w, generator=generator)
    weight = torch.randn(c * multiplier, 1, *kernel, generator=generator) / (kernel[0] * kernel[1]) ** 0.5
    return x, weight, torch.randn(c * multiplier, generator=generator)


@pytest.mark.parametrize(("mode", "algorithm"), WHERE)
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((1, 2, 5, 5), (13, 13)), ((1, 2, 1, 1), (3, 3)), ((2, 1, 1, 9), (5, 5)), ((1, 2, 9, 1), (7, 3)),
     ((1, 1, 12, 8), (51, 5)), ((1, 1, 6, 11), (5, 51)), ((1, 2, 4, 4), (1, 1))],
)  # fmt: skip
def test_odd_shapes(mode: str, algorithm: str, shape: tuple[int, int, int, int], kernel: tuple[int, int]) -> None:
    x, weight, bias = tensors(shape, kernel)
    with running(mode):
        y = depthwise_conv2d(x, weight, bias, algorithm=algorithm)
    assert y.shape == x.shape
    torch.testing.assert_close(y.double(), reference(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "multiplier"),
    [
        ({"stride": 2}, 1),
        ({"stride": (2, 1), "padding": (2, 0)}, 1),
        ({"dilation": 2, "padding": 4}, 1),
        ({"dilation": (1, 3), "padding": [2, 6]}, 1),
        ({"padding": 2}, 3),
        ({"padding": 7}, 1),
        ({"stride": 3, "dilation": 2, "padding": 1}, 2),
    ],
)
def test_strides_dilations_paddings_and_multipliers(options: dict[str, Any], multiplier: int) -> None:
    x, weight, bias = tensors((2, 3, 13, 12), (5, 5), multiplier)
    y = depthwise_conv2d(x, weight, bias, activation="relu", **options)
    expected = reference(x, weight, bias, activation="relu", **{"padding": 2, **options})
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_padding_words() -> None:
    x, weight, _ = tensors((1, 2, 9, 8), (5, 3))
    assert depthwise_conv2d(x, weight, padding="same").shape == (1, 2, 9, 8)
    assert depthwise_conv2d(x, weight, padding="valid").shape == (1, 2, 5, 6)
    torch.testing.assert_close(depthwise_conv2d(x, weight, padding="valid"), depthwise_conv2d(x, weight, padding=0))
    torch.testing.assert_close(depthwise_conv2d(x, weight, padding="same"), depthwise_conv2d(x, weight, padding=(2, 1)))


def test_even_kernel_with_numbers() -> None:
    x, weight, bias = tensors((1, 2, 8, 8), (4, 6))
    torch.testing.assert_close(
        depthwise_conv2d(x, weight, bias, padding=2).double(), reference(x, weight, bias, padding=2), rtol=1e-5, atol=1e-5
    )
    spread = depthwise_conv2d(x, weight[:, :, :2, :2], dilation=2)  # an even kernel with an odd extent
    assert spread.shape == x.shape


def test_empty_batch() -> None:
    x, weight, bias = tensors((0, 4, 9, 9), (5, 5))
    y = depthwise_conv2d(x, weight, bias, activation="gelu", residual=x)
    assert y.shape == (0, 4, 9, 9)
    assert explain(x, weight).problem.n == 0
    grad = depthwise_conv2d(x, weight.clone().requires_grad_())
    assert grad.shape == (0, 4, 9, 9)
    assert grad.requires_grad


def test_float64_runs_in_torch() -> None:
    x, weight, bias = (t.double() for t in tensors((1, 2, 7, 7), (5, 5)))
    y = depthwise_conv2d(x, weight, bias)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, reference(x, weight, bias))
    assert explain(x, weight).plan.algorithm == "torch"
    with pytest.raises(ValueError, match="float64 is not one of float16"):
        depthwise_conv2d(x, weight, algorithm="toeplitz")


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_strided_planes_are_copied(algorithm: str) -> None:
    x, weight, _ = tensors((1, 2, 6, 16), (3, 3))
    view = x[..., ::2]
    torch.testing.assert_close(
        depthwise_conv2d(view, weight, residual=view.mT.mT, algorithm=algorithm).double(),
        reference(view, weight, residual=view),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


X, W = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
BAD_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "x without batch": ((X[0], W), {}, ValueError, r"x must be \(N, C, H, W\).*add a batch dimension"),
    "weight without group axis": ((X, W[:, 0]), {}, ValueError, r"weight must be \(C \* multiplier, 1, KH, KW\)"),
    "not a tensor": (([1.0], W), {}, TypeError, "x must be a torch.Tensor, got list"),
    "bias is no tensor": ((X, W, 0.0), {}, TypeError, "bias must be a torch.Tensor, got float"),
    "groups": ((X, W[:3]), {}, ValueError, "disagree on the groups"),
    "dense weight": ((X, torch.randn(4, 4, 3, 3)), {}, ValueError, "disagree on the groups"),
    "no channels": ((X[:, :0], W[:0]), {}, ValueError, "disagree on the groups"),
    "no taps": ((X, W[..., :0]), {}, ValueError, "no taps"),
    "even kernel": ((X, W[..., :2]), {}, ValueError, "odd kernel extent, got kernel 2"),
    "empty output": ((X, torch.randn(4, 1, 9, 9)), {"padding": "valid"}, ValueError, "output would be empty"),
    "empty map": ((X[..., :0], W), {}, ValueError, "output would be empty"),
    "padding word": ((X, W), {"padding": "full"}, ValueError, "padding must be 'same', 'valid'"),
    "negative padding": ((X, W), {"padding": -1}, ValueError, "padding must be an int or .* at least 0, got -1"),
    "three paddings": ((X, W), {"padding": (1, 1, 1)}, ValueError, "padding must be an int"),
    "no stride": ((X, W), {"stride": 0}, ValueError, "stride must be an int or .* at least 1, got 0"),
    "fractional stride": ((X, W), {"stride": 1.5}, ValueError, "stride must be an int"),
    "no dilation": ((X, W), {"dilation": (1, 0)}, ValueError, "dilation must be an int"),
    "activation": ((X, W), {"activation": "tanh"}, ValueError, "activation must be None or one of relu, gelu, silu"),
    "precision": ((X, W), {"precision": "fp8"}, ValueError, "precision must be None or one of ieee, tf32x3, tf32"),
    "precision of half": ((X.half(), W.half()), {"precision": "tf32"}, ValueError, "float32 only, got torch.float16"),
    "algorithm": ((X, W), {"algorithm": "winograd"}, ValueError, "unknown algorithm 'winograd': expected 'auto' or one of"),
    "bias shape": ((X, W, torch.zeros(3)), {}, ValueError, r"bias must be \(4,\), got shape \(3,\)"),
    "residual shape": ((X, W), {"residual": X[..., 1:]}, ValueError, "residual must have the output's shape"),
    "dtype mix": ((X, W.half()), {}, TypeError, "one dtype outside autocast.*weight torch.float16"),
    "residual dtype": ((X, W), {"residual": X.double()}, TypeError, "residual torch.float64"),
    "integers": ((X.int(), W.int()), {}, TypeError, "x must be one of float32.*got torch.int32"),
    "device mix": ((X, W.to("meta")), {}, ValueError, "one device, got x on cpu, weight on meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
@pytest.mark.parametrize("function", [depthwise_conv2d, explain], ids=lambda f: f.__name__)
def test_bad_calls(function: Any, name: str) -> None:
    args, options, error, text = BAD_CALLS[name]
    with pytest.raises(error, match=text):
        function(*args, **options)


@pytest.mark.parametrize(
    ("algorithm", "options", "why"),
    [
        ("toeplitz", {"stride": 2}, r"stride \(2, 2\) is not \(1, 1\)"),
        ("toeplitz", {"dilation": 2}, r"dilation \(2, 2\) is not"),
        ("direct", {"precision": "tf32"}, "IEEE float32"),
    ],
)
def test_forced_algorithm_that_cannot_serve(algorithm: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"algorithm='{algorithm}' cannot serve.*{why}.*pass algorithm='auto'"):
        depthwise_conv2d(X, W, algorithm=algorithm, **options)
    assert depthwise_conv2d(X, W, **options).isfinite().all()


def test_refusals_name_their_reason() -> None:
    h100, mi300x = gpus.for_arch("h100"), gpus.for_arch("mi300x")
    wide = ConvProblem(1, 8, 16, 512, 3, 301, padding=(1, 150))
    reasons = explain_problem(wide, h100).algorithms
    assert "windows of more than 256 columns" in str(reasons["toeplitz"])
    assert "at most 108 fit in registers" in str(reasons["direct"])
    tf32 = ConvProblem(1, 8, 16, 16, 7, 7, padding=(3, 3), dtype="float32", precision="tf32")
    assert "precision tf32 is not offered on gfx942" in str(explain_problem(tf32, mi300x).algorithms["toeplitz"])
    many = ConvProblem(65536, 1, 32768, 1, 3, 3, padding=(1, 1))
    assert explain_problem(many, h100).plan.algorithm == "torch"
    assert all("2^31" in str(explain_problem(many, h100).algorithms[name]) for name in ("toeplitz", "direct"))


def test_forced_triton_without_a_gpu(no_interpreter: None) -> None:
    for algorithm in set(ALGORITHMS) - set(serving(PLAIN, "cpu")):
        with pytest.raises(ValueError, match="need a CUDA or ROCm GPU, got cpu"):
            depthwise_conv2d(X, W, algorithm=algorithm)
    assert explain(X, W).plan.algorithm == "onednn"
    torch.testing.assert_close(depthwise_conv2d(X, W).double(), reference(X, W), rtol=1e-5, atol=1e-5)


def test_meta_tensors_have_shapes_only() -> None:
    y = depthwise_conv2d(X.to("meta"), W.to("meta"), stride=2)
    assert (y.shape, y.device.type, y.stride()) == ((1, 4, 4, 4), "meta", (64, 16, 4, 1))


# Gradients: torch serves them, whatever else could.


@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": 2, "padding": 3}], ids=["plain", "strided"])
def test_gradients(activation: str | None, options: dict[str, Any]) -> None:
    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, residual=residual, activation=activation, **options)

    inputs = [t.double() for t in tensors((1, 2, 4, 5), (3, 3))]
    inputs.append(torch.randn_like(reference(*inputs, **{"padding": 1, **options})))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_gradients_equal_torch_in_float32() -> None:
    x, weight, bias = (t.requires_grad_() for t in tensors((2, 3, 7, 6), (5, 5)))
    depthwise_conv2d(x, weight, bias, activation="relu").square().sum().backward()
    ours = [t.grad for t in (x, weight, bias)]
    for t in (x, weight, bias):
        t.grad = None
    reference(x, weight, bias, activation="relu").square().sum().backward()
    for t, grad in zip((x, weight, bias), ours, strict=True):
        torch.testing.assert_close(grad, t.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["x", "weight", "bias", "residual"])
def test_one_tensor_that_requires_grad_is_enough(which: str) -> None:
    x, weight, bias = tensors((1, 2, 5, 5), (3, 3))
    named: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "residual": torch.randn_like(x)}
    named[which].requires_grad_()
    verdict = explain(**named)
    assert (verdict.plan.algorithm, verdict.plan.source) == ("torch", "gradient needed")
    depthwise_conv2d(**named).sum().backward()
    assert named[which].grad is not None
    with torch.no_grad():
        assert explain(**named).plan.algorithm != "torch"
        assert not depthwise_conv2d(**named).requires_grad


@pytest.mark.parametrize("function", [depthwise_conv2d, explain], ids=lambda f: f.__name__)
def test_forced_triton_with_gradients(function: Any) -> None:
    weight = W.clone().requires_grad_()
    for algorithm in set(ALGORITHMS) - {"torch"}:
        with pytest.raises(ValueError, match=f"algorithm='{algorithm}' has no gradients yet.*torch.no_grad"):
            function(X, weight, algorithm=algorithm)
        with torch.inference_mode():
            function(X, weight, algorithm=algorithm)
    function(X, weight, algorithm="torch")


# Preference, and what explain says.


def test_use_prefers_and_does_not_force() -> None:
    assert explain(X, W).plan.source == "cost model"
    for algorithm in ALGORITHMS:
        with lk_triton.use(algorithm):
            plan = explain(X, W).plan
            assert (plan.algorithm, plan.source) == (algorithm, "preference")
            torch.testing.assert_close(depthwise_conv2d(X, W).double(), reference(X, W), rtol=1e-5, atol=1e-5)
    with lk_triton.use("toeplitz"):
        plan = explain(X, W, stride=2).plan  # toeplitz cannot: auto's choice among the Triton algorithms
        assert (plan.algorithm, plan.source) == ("direct", "cost model")
        assert explain(X, W, dilation=2).plan.algorithm == "direct"
        assert explain(X, W, stride=2, precision="tf32").plan.algorithm == "torch"  # no Triton algorithm can
        assert depthwise_conv2d(X, W, stride=2, precision="tf32").isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_use_reaches_the_computation() -> None:
    """Inf spreads inside toeplitz's window; torch has an exact footprint."""
    x = torch.zeros(1, 1, 9, 16)
    x[0, 0, 4, 2] = float("inf")
    weight = torch.ones(1, 1, 3, 3)
    touched = {}
    for algorithm in ("torch", "direct", "toeplitz"):
        with lk_triton.use(algorithm):
            touched[algorithm] = int((~depthwise_conv2d(x, weight).isfinite()).sum())
    assert touched["torch"] == touched["direct"] == 9
    assert touched["toeplitz"] > 9


def test_use_nests_and_unwinds() -> None:
    with lk_triton.use("torch"):
        with lk_triton.use("direct"):
            assert explain(X, W).plan.algorithm == "direct"
        assert explain(X, W).plan.algorithm == "torch"
        assert explain(X, W, algorithm="direct").plan.source == "explicit"
    assert explain(X, W).plan.source == "cost model"
    with pytest.raises(ValueError, match="unknown algorithm 'fft'"), lk_triton.use("fft"):
        pass
    with pytest.raises(RuntimeError), lk_triton.use("torch"):
        raise RuntimeError
    assert explain(X, W).plan.source == "cost model"


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LK_TRITON_ALGORITHM", "torch")
    assert explain(X, W).plan.algorithm == "torch"
    with lk_triton.use("direct"):
        assert explain(X, W).plan.algorithm == "direct"
    with lk_triton.use("auto"):
        assert explain(X, W).plan.source == "cost model"
    assert explain(X, W, algorithm="toeplitz").plan.algorithm == "toeplitz"
    monkeypatch.setenv("LK_TRITON_ALGORITHM", "fft")
    with pytest.raises(ValueError, match=r"LK_TRITON_ALGORITHM.*unknown algorithm 'fft'"):
        explain(X, W)


def test_explanation() -> None:
    verdict = explain(X, W, stride=2, activation="relu")
    assert set(verdict.algorithms) == {"toeplitz", "toeplitz_hopper", "direct", "onednn", "torch"}
    assert isinstance(verdict.algorithms["toeplitz"], str)
    assert isinstance(verdict.algorithms["direct"], float)
    assert getattr(verdict.problem, "epilogue", None) == Epilogue(False, "relu")
    text = str(verdict)
    assert "direct (cost model)" in text
    assert "stride (2, 2) is not (1, 1)" in text
    assert "chosen" in text
    assert "estimate" in text


def test_explain_under_autocast() -> None:
    with torch.autocast("cpu", torch.float16):
        assert explain(X, W.bfloat16()).problem.dtype == "float16"
        assert explain(X, W, precision="tf32").problem.precision is None
    assert explain(X, W).problem.dtype == "float32"
