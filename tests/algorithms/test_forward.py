"""Every algorithm against float64: on the CPU (Triton interpreted) and, marked ``gpu``, on a GPU."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_accurate
from serving import serving

import lk_triton
from lk_triton.ops import layout
from lk_triton.ops.problem import ConvProblem

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ALGORITHMS = serving(ConvProblem(2, 3, 14, 16, 13, 13, padding=(6, 6)))
SHAPES = {
    "square": (2, 3, 14, 16, 13, 13),
    "one-image": (1, 2, 24, 56, 7, 7),
    "three-images": (3, 2, 12, 12, 5, 5),
    "kernel-larger-than-map": (2, 2, 7, 7, 13, 13),
    "31-on-56": (1, 1, 8, 56, 31, 31),
    "27-on-14": (2, 1, 14, 14, 27, 27),
    "29-on-28": (1, 1, 10, 28, 29, 29),
    "tall": (1, 2, 21, 9, 51, 5),
    "wide": (1, 2, 9, 70, 5, 51),
    "row": (2, 2, 6, 11, 1, 7),
    "odd-width": (1, 5, 9, 33, 9, 9),
    "one-pixel": (2, 3, 1, 1, 3, 3),
    "one-column": (1, 2, 19, 1, 5, 3),
}


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and bias of (n, c, h, w, kh, kw)."""
    n, c, h, w, kh, kw = shape
    x, bias = draw((n, c, h, w), dtype, device, 0), draw((c,), dtype, device, 1)
    return x, draw((c, 1, kh, kw), dtype, device, 2) / (kh * kw) ** 0.5, bias


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_shapes(algorithm, shape, dtype, device):
    x, weight, bias = inputs(shape, dtype, device)
    padding = (shape[4] // 2, shape[5] // 2)
    out = lk_triton.depthwise_conv2d(x, weight, bias, activation="relu", algorithm=algorithm)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_accurate(out, x, weight, bias, "relu", padding=padding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "bias"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_epilogues(algorithm, activation, bias, residual, dtype, device):
    x, weight, b = inputs((2, 3, 9, 16, 7, 7), dtype, device)
    b = b if bias else None
    r = draw(x.shape, dtype, device, 3) if residual else None
    out = lk_triton.depthwise_conv2d(x, weight, b, activation=activation, residual=r, algorithm=algorithm)
    assert_accurate(out, x, weight, b, activation, r, padding=(3, 3))


def in_layout(t: torch.Tensor, order: str) -> torch.Tensor:
    n, c, h, w = t.shape
    if order == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if order == "channel_major":
        return torch.empty_strided(t.shape, layout.strides((n, c, h, w), order), dtype=t.dtype, device=t.device).copy_(t)
    if order == "channel-slice":
        return torch.cat([t, t, t], 1)[:, 1 : 1 + c].copy_(t)
    if order == "sparse-rows":
        return torch.cat([t, t], 3)[..., :w].copy_(t)
    if order == "unaligned":
        return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)
    return t


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["nchw", "channels_last", "channel_major", "channel-slice", "sparse-rows", "unaligned"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_layouts(algorithm, order, device):
    x, weight, bias = inputs((3, 5, 10, 16, 9, 9), torch.float16, device)
    residual = in_layout(draw(x.shape, x.dtype, device, 3), order)
    x = in_layout(x, order)
    out = lk_triton.depthwise_conv2d(x, weight, bias, residual=residual, algorithm=algorithm)
    kept = order if order in ("channels_last", "channel_major") else "nchw"
    assert layout.layout_of(out) == kept
    assert out.stride() == layout.strides((3, 5, 10, 16), kept)
    assert_accurate(out, x, weight, bias, None, residual, padding=(4, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(16, 16), (15, 33), (1, 2)], ids=str)
def test_stride_two(size, dtype, device):
    x, weight, bias = inputs((2, 3, *size, 3, 3), dtype, device)
    out = lk_triton.depthwise_conv2d(x, weight, bias, activation="relu", stride=2, algorithm="direct")
    assert_accurate(out, x, weight, bias, "relu", padding=(1, 1), stride=(2, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", [(0, 0), (1, 7), (9, 4)], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_padding(algorithm, padding, device):
    """No padding, less and more than "same"."""
    x, weight, bias = inputs((2, 2, 14, 19, 5, 7), torch.float32, device)
    out = lk_triton.depthwise_conv2d(x, weight, bias, padding=padding, algorithm=algorithm)
    assert_accurate(out, x, weight, bias, padding=padding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_toeplitz_float32_precisions(precision, device):
    """A TF32 product is compared on inputs that TF32 can hold: then only the accumulation rounds."""
    x, weight, bias = inputs((2, 2, 14, 14, 13, 13), torch.float32, device)
    if precision == "tf32":
        x, weight = x.half().float(), weight.half().float()
    out = lk_triton.depthwise_conv2d(x, weight, bias, precision=precision, algorithm="toeplitz")
    assert_accurate(out, x, weight, bias, padding=(6, 6))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_non_finite_footprint(algorithm, device):
    """An Inf reaches exactly the filter's footprint by ``direct`` and ``torch``; by ``toeplitz`` at least that."""
    x, weight, _ = inputs((1, 1, 20, 40, 3, 3), torch.float32, device)
    x[0, 0, 10, 20] = float("inf")
    out = lk_triton.depthwise_conv2d(x, weight, algorithm=algorithm)[0, 0]
    bad = ~torch.isfinite(out)
    assert bad[9:12, 19:22].all()
    if algorithm != "toeplitz":
        assert bad.sum() == 9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ["toeplitz", "direct"])
def test_offsets_beyond_two_to_the_31(algorithm, device):
    """The second image starts 2^31 elements after the first."""
    far = 2**31 + 64
    storage = torch.empty(far + 8 * 8, dtype=torch.float16, device=device)
    x = storage.as_strided((2, 1, 8, 8), (far, 64, 8, 1))
    x.copy_(draw(x.shape, x.dtype, device, 0))
    weight = draw((1, 1, 5, 5), x.dtype, device, 1)
    out = lk_triton.depthwise_conv2d(x, weight, algorithm=algorithm)
    assert_accurate(out, x.contiguous(), weight, padding=(2, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ["toeplitz", "direct"])
def test_images_beyond_two_to_the_31(algorithm, device):
    """A stride that 32 bits hold, times an image that makes it more than that."""
    far = 2**30 + 7
    storage = torch.empty(2 * far + 8 * 7, dtype=torch.float16, device=device)
    x = storage.as_strided((3, 1, 8, 7), (far, 56, 7, 1))
    x.copy_(draw(x.shape, x.dtype, device, 0))
    weight = draw((1, 1, 5, 5), x.dtype, device, 1)
    out = lk_triton.depthwise_conv2d(x, weight, algorithm=algorithm)
    assert_accurate(out, x.contiguous(), weight, padding=(2, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_batch(algorithm, device):
    x, weight, bias = inputs((0, 4, 8, 8, 5, 5), torch.float16, device)
    assert lk_triton.depthwise_conv2d(x, weight, bias, algorithm=algorithm).shape == (0, 4, 8, 8)


@pytest.mark.gpu
def test_current_stream_and_device():
    """The launch follows torch's current stream: work queued before it on that stream is seen."""
    x, weight, bias = inputs((8, 64, 56, 56, 31, 31), torch.float16, "cuda")
    expected = lk_triton.depthwise_conv2d(x, weight, bias)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(10_000_000)
        late.copy_(x)
        out = lk_triton.depthwise_conv2d(late, weight, bias)
    stream.synchronize()
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_wide_bfloat16_kernels_return_on_a_cpu():
    """oneDNN's bfloat16 depthwise convolution in channels_last hangs up to 16 channels; ``torch`` goes around it."""
    x, weight, bias = inputs((1, 2, 40, 40, 31, 31), torch.bfloat16, "cpu")
    out = lk_triton.depthwise_conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, algorithm="torch")
    assert_accurate(out, x, weight, bias, padding=(15, 15))
