"""Dense convolutions (``pointwise``, ``cublas``, ``implicit_gemm``) in the interpreter: right for any sizes and config."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import drawing
import pytest
import torch
from compilation import compile_all

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import with_prepacked
from lk_triton.algorithms.dense.base import row_arguments
from lk_triton.algorithms.dense.implicit_gemm.host import ImplicitGemmAlgorithm
from lk_triton.algorithms.dense.pointwise.cost import issued_macs, operand_bytes, shared_bytes, tensor_columns
from lk_triton.algorithms.dense.pointwise.host import PointwiseAlgorithm
from lk_triton.ops import layout
from lk_triton.ops.problem import DenseProblem, Epilogue, FfnProblem
from lk_triton.planning.accuracy import Gate
from lk_triton.planning.plan import plan

H100 = gpus.TABLE["h100"]
CPU = torch.device("cpu")
POINTWISE, IMPLICIT_GEMM = PointwiseAlgorithm(), ImplicitGemmAlgorithm()


def test_counted_work_is_what_the_kernel_does(recorded) -> None:
    rng = random.Random(1)
    for _ in range(20):
        problem = replace(drawing.pointwise(rng), layout="nchw", out_layout="nchw", dtype="float16", h=4, w=8)
        config = rng.choice([c for c in POINTWISE.configs(problem, H100) if not c.tma])
        gate = Gate(problem, CPU)
        recorded.clear()
        POINTWISE.launch(problem, config, gate.operands)
        assert recorded.macs == issued_macs(problem, config)
        assert tuple(recorded.bytes_of(gate.operands[role]) for role in ("x", "weight")) == operand_bytes(problem, config)


def test_tensor_descriptors_only_where_they_are_legal() -> None:
    problem = DenseProblem(2, 8, 5, 5, 16, layout="channel_major", out_layout="channel_major")
    config = next(c for c in POINTWISE.configs(problem, H100) if c.tma)
    whole = layout.empty((2, 16, 5, 5), "channel_major", torch.empty(0, dtype=torch.float16))
    weight = torch.randn(16, 8, 1, 1, dtype=torch.float16)

    def described(x: torch.Tensor, w: torch.Tensor) -> bool:
        return POINTWISE.kernel_launch(problem, config, {"x": x, "weight": w}, whole).args["TMA"]

    assert described(whole[:, :8], weight)
    assert not described(whole[1:, :8].expand(2, -1, -1, -1), weight), "an image at an odd address"
    assert not described(whole[:, :8].contiguous(), weight), "nchw"
    odd = torch.randn(16 * 8 + 1, dtype=torch.float16)[1:].view(16, 8, 1, 1)
    assert not described(whole[:, :8], odd), "a weight at an odd address"
    rows = replace(problem, layout="nchw")
    assert not any(c.tma for c in POINTWISE.configs(rows, H100))
    assert not any(c.tma for c in POINTWISE.configs(problem, gpus.TABLE["a100"]))


def test_deep_pipelines_where_nothing_else_hides_latency() -> None:
    """One small image leaves SMs without a second tile, and shorter pipelines without loads under way."""
    one = DenseProblem(1, 2048, 14, 14, 512, layout="channel_major", out_layout="channel_major")
    best = min(POINTWISE.configs(one, H100), key=lambda c: POINTWISE.estimate(one, c, H100))
    assert (best.num_stages - 1) * best.step_k > 3 * 64
    shallow = replace(best, num_stages=3, step_k=64)
    assert POINTWISE.estimate(one, shallow, H100).limiter == "latency"
    many = replace(one, n=64)
    assert not any(c.num_stages > 4 or c.step_k > 64 or c.columns < 64 for c in POINTWISE.configs(many, H100))
    assert not any(c.step_k * c.num_stages > 128 for c in POINTWISE.configs(replace(one, c=128), H100) if c.num_stages > 4)


def test_pixels_of_two_bytes_wait_for_every_step() -> None:
    """Measured on an H100: 55 us at best, where the same product of aligned rows should take 10."""
    odd = DenseProblem(1, 4096, 7, 7, 1024, epilogue=Epilogue(True, None, True))
    aligned = replace(odd, layout="channel_major", out_layout="channel_major")
    seconds = [min(POINTWISE.estimate(p, c, H100) for c in POINTWISE.configs(p, H100)).seconds for p in (odd, aligned)]
    assert seconds[0] > 2 * seconds[1]


def test_refusals() -> None:
    three = DenseProblem(1, 64, 8, 8, 8, 3, 3, padding=(1, 1))
    one = DenseProblem(1, 64, 8, 8, 8)
    assert "no 1x1 convolution" in str(POINTWISE.why_not(three, H100))
    assert "576 taps" in str(IMPLICIT_GEMM.why_not(three, H100))
    assert "pointwise" in str(IMPLICIT_GEMM.why_not(one, H100))
    assert "sm_80 or newer" in str(POINTWISE.why_not(one, gpus.for_arch("sm_70")))
    assert "not for dense" in str(registry.get("direct").why_not(one, H100))
    assert "split the batch" in str(POINTWISE.why_not(replace(one, n=2**20, h=64, w=64), H100))
    assert "tf32x3" in str(registry.get("cublas").why_not(replace(one, dtype="float32", precision="tf32x3"), H100))
    assert "tf32" in str(POINTWISE.why_not(replace(one, dtype="float32", precision="tf32"), gpus.TABLE["mi300x"]))


def test_gelu_of_half_types_is_the_exact_one() -> None:
    x = torch.cat([torch.linspace(-9, 9, 4001), torch.tensor([0.0, -0.0, 60000.0, -60000.0, float("inf")])]).half()
    x = x.view(1, 1, 1, -1)
    problem = DenseProblem(1, 1, 1, x.shape[3], 1, epilogue=Epilogue(activation="gelu"))
    config = POINTWISE.configs(problem, H100)[0]
    operands = {"x": x, "weight": torch.ones(1, 1, 1, 1).half()}
    exact = torch.nn.functional.gelu(x.double())
    error = (POINTWISE.launch(problem, config, operands).double() - exact).abs()[..., :-1]
    spacing = torch.finfo(torch.float16).eps * exact.abs()[..., :-1]
    assert (error <= spacing + 5e-7).all(), error.max()
    assert POINTWISE.launch(problem, config, operands)[..., -1].isinf().all()


def drawn(arch: str, count: int) -> list[tuple]:
    """Problems like a network's, uneven channels too, each with one of its legal configs, drawn with a fixed seed."""
    rng, target, found = random.Random(arch), gpus.for_arch(arch), []
    while len(found) < count:
        order = rng.choice(["channel_major", "channel_major", "nchw"])
        fields = {
            "n": rng.choice([1, 16]), "c": rng.choice([96, 128, 20, 1024]), "h": 14, "w": 14,
            "out_channels": rng.choice([128, 96]), "dtype": rng.choice(["float16", "bfloat16", "float32"]),
            "layout": order, "out_layout": order,
        }  # fmt: skip
        name = "pointwise"
        if len(found) % 4 == 3:
            name, fields = "implicit_gemm", {**fields, "c": 3, "kh": 3, "kw": 3, "stride": (2, 2), "padding": (1, 1)}
        epilogue = (True, rng.choice([None, "relu", "gelu", "silu"]), rng.random() < 0.4)
        configs = registry.get(name).configs(DenseProblem(**fields, epilogue=Epilogue(*epilogue)), target)
        found.append((arch, name, fields, epilogue, rng.randrange(len(configs))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_a_sample_of_legal_configs_compiles(arch: str) -> None:
    """Half types do not spill, float32 by a register or two; shared and tensor memory keep to their bounds."""
    cases, target = drawn(arch, 8), gpus.for_arch(arch)
    for (_, name, fields, epilogue, number), report in zip(cases, compile_all(cases), strict=True):
        problem = DenseProblem(**fields, epilogue=Epilogue(*epilogue))
        config = registry.get(name).configs(problem, target)[number]
        assert report["spill_bytes"] <= (0 if problem.itemsize == 2 else 16), (problem, config)
        assert report["shared_bytes"] <= target.shared_per_block, (problem, config)
        if name == "pointwise":
            assert report["shared_bytes"] <= shared_bytes(problem, config, target), (problem, config)
            assert report["tensor_columns"] <= tensor_columns(problem, config, target), (problem, config)
        if problem.itemsize == 2:
            assert report["loop"]["mma"] > 0, (problem, config)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_plans_of_31b_compile(arch: str) -> None:
    """Channel-major: operands by descriptors or 16-byte loads, tensor cores, no spills, at sizes that 16 does not divide."""
    sizes = (
        (128, 512, 56, "gelu", False), (512, 128, 56, None, True), (512, 512, 14, "relu", False),
        (1024, 4096, 7, "gelu", False),
    )  # fmt: skip
    order = {"layout": "channel_major", "out_layout": "channel_major"}
    cases = [
        (arch, "pointwise", {"n": 64, "c": c, "h": h, "w": h, "out_channels": o, **order},
         (True, activation, residual))
        for c, o, h, activation, residual in sizes
    ]  # fmt: skip
    for report in compile_all(cases):
        assert report["spill_bytes"] == 0
        assert report["loop"]["mma_kind"].startswith("HGMMA" if arch == "sm_90" else "HMMA")
        asynchronous = {int(width) for width, (count, _) in report["loop"]["loads"].items() if count}
        assert asynchronous <= {16}, "the image and the weight"


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 5), (1, 2), (1, 2)), ((5, 1), (2, 1), (2, 0)), ((2, 3), (1, 1), (0, 1))]
)
def test_a_stem_of_another_height_than_width(kernel: Any, stride: Any, padding: Any) -> None:
    kh, kw = kernel
    problem = DenseProblem(2, 3, 9, 12, 8, kh, kw, stride, padding, dtype="float32", epilogue=Epilogue(True, "relu"))
    gate = Gate(problem, CPU)
    for config in IMPLICIT_GEMM.configs(problem, H100)[:2]:
        verdict = gate.check(lambda operands, c=config: IMPLICIT_GEMM.launch(problem, c, operands))
        assert verdict.ok, (config, verdict)


@pytest.mark.parametrize("out_layout", ["nchw", "channel_major"])
@pytest.mark.parametrize("pointwise", [True, False], ids=["1x1", "3x3"])
def test_a_residual_in_another_memory_order(pointwise: bool, out_layout: str) -> None:
    """Than the output's, several images: each tensor has strides of its own."""
    kernel: dict[str, Any] = {} if pointwise else {"kh": 3, "kw": 3, "padding": (1, 1)}
    problem = DenseProblem(
        3, 3, 4, 8, 16, **kernel, layout="channel_major", out_layout=out_layout, epilogue=Epilogue(True, "relu", True)
    )
    gate = Gate(problem, CPU)
    drawn = gate.operands["residual"]
    residuals = [layout.conform(drawn, order) for order in ("nchw", "channel_major")]
    residuals.append(torch.cat([drawn] * 2, 1)[:, 16:])  # a slice of channels
    serving = [algorithm for algorithm in registry.ALGORITHMS.values() if algorithm.why_not(problem, H100) is None]
    assert len(serving) >= 2
    for algorithm in serving:
        for config in algorithm.configs(problem, H100)[:2]:
            packed = with_prepacked(algorithm, problem, config, gate.operands)
            for residual in residuals:
                operands = {**packed, "residual": residual}
                verdict = gate.check(lambda _, a=algorithm, c=config, o=operands: a.launch(problem, c, o))
                assert verdict.ok, (config, residual.stride(), verdict)


def test_vectors_end_where_rows_do() -> None:
    """Only behind the rounded rows of channel-major memory is there room for the rest of a vector."""
    storage = torch.zeros(4 * 64)
    whole, tight = (storage.as_strided((2, 3, 5, 5), (25, stride, 5, 1)) for stride in (64, 56))
    assert row_arguments("x", whole, 8)["XV"] == 8
    assert row_arguments("x", tight, 8)["XV"] == 2  # of 50 elements
    assert row_arguments("x", tight[:, :1], 8)["XV"] == 2


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the precision of torch's float32 matrix products on GPUs."""
    flags: Any = torch.backends.cuda.matmul
    before = flags.fp32_precision
    yield lambda precision: setattr(flags, "fp32_precision", precision)
    flags.fp32_precision = before


def test_cublas_serves_float32_in_the_precision_of_torchs_products(products: Callable[[str], None]) -> None:
    """The flag is one for all threads: setting it for a call would round another thread's products, in silence."""
    one = DenseProblem(1, 8, 4, 4, 8, dtype="float32")
    for flag, other in (("ieee", "tf32"), ("tf32", "ieee")):
        products(flag)
        for precision in (None, "ieee", "tf32"):
            reason = registry.get("cublas").why_not(replace(one, precision=precision), H100)
            if (precision or "ieee") == flag:
                assert reason is None
            else:
                assert f"fp32_precision = {other!r}" in str(reason)
        assert registry.get("cublas").why_not(replace(one, dtype="float16"), H100) is None


def test_plans_follow_the_precision_of_torchs_products(products: Callable[[str], None]) -> None:
    problem = DenseProblem(64, 64, 56, 56, 64, dtype="float32", precision="tf32", layout="channel_major")
    with lk_triton.use("cublas"):
        for flag in ("tf32", "ieee", "tf32"):
            products(flag)
            assert (plan(problem, H100).algorithm == "cublas") == (flag == "tf32")


def test_no_call_sets_the_flag(products: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    products("tf32")
    set_to: list[object] = []
    monkeypatch.setattr(type(torch.backends.cuda.matmul), "__setattr__", lambda self, name, value: set_to.append(value))
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(8, 8, 1, 1)
    y = lk_triton.pointwise_conv2d(x, weight, precision="tf32", algorithm="cublas")
    monkeypatch.undo()
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight), rtol=1e-4, atol=1e-4)
    assert not set_to


def test_no_descriptor_of_an_expanded_x() -> None:
    """All channels are one row: a tensor map with stride 0 is refused by the driver."""
    one = torch.empty((1, 1, 16, 16), dtype=torch.float16, device="meta")
    x = one.expand(1, 64, 16, 16)
    assert layout.layout_of(x) == "nchw"
    assert layout.layout_of(one.expand(4, 64, 16, 16)) == "nchw"
    dense, ffn = DenseProblem(1, 64, 16, 16, 128), FfnProblem(1, 64, 16, 16, 256)

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float16, device="meta")

    for problem, name in ((dense, "pointwise"), (ffn, "convffn")):
        algorithm: Any = registry.get(name)
        config = next(c for c in algorithm.configs(problem, H100) if c.tma)
        for given, tma in ((x, False), (x.contiguous(), True)):
            operands = {role: meta(*spec.shape) for role, spec in problem.inputs().items()} | {"x": given}
            args = algorithm.kernel_launch(problem, config, operands, meta(*problem.out_shape)).args
            assert (args["TMA"], isinstance(args["x"], torch.Tensor)) == (tma, not tma)


def test_the_last_layer_of_a_backbone_does_not_spill() -> None:
    """31B's last 1x1 stores its map as contiguous NCHW, with a residual: an address for each output."""
    fields = {"n": 64, "c": 4096, "h": 7, "w": 7, "out_channels": 1024, "layout": "channel_major", "out_layout": "nchw"}
    (report,) = compile_all([("sm_90", "pointwise", fields, (True, None, True), None)])
    assert report["spill_bytes"] == 0
