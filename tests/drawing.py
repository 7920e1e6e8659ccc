"""Random problems, one function a kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem

Random = random.Random


def large_kernels(rng: Random) -> ConvProblem:
    """Depthwise, "same" padding: what ``toeplitz`` serves."""
    kh, kw = rng.choice([3, 5, 7, 13]), rng.choice([3, 5, 11, 21])
    h, w = rng.choice([(rng.randint(1, 20), rng.randint(1, 40)), (7, 7), (14, 14)])
    return ConvProblem(
        rng.choice([1, 2, 5, 16]), 1, h, w, kh, kw, padding=(kh // 2, kw // 2), dtype=rng.choice(["float16", "float32"]),
        epilogue=Epilogue(True, "relu"),
    )  # fmt: skip


def many_images(rng: Random) -> ConvProblem:
    """Depthwise batches that do and do not fill the 64 images of ``toeplitz_hopper``'s tiles, odd sizes, every epilogue."""
    kh, kw = rng.choice([(7, 7), (13, 13), (31, 31), (51, 5), (5, 21), (27, 27)])
    h, w = rng.choice([(rng.randint(1, 40), rng.randint(1, 70)), (56, 56), (28, 28), (14, 14), (7, 7)])
    epilogue = Epilogue(rng.random() < 0.7, rng.choice([None, "relu", "gelu", "silu"]), rng.random() < 0.4)
    return ConvProblem(
        rng.choice([1, 3, 64, 100, 128]), rng.choice([1, 3, 40]), h, w, kh, kw,
        padding=(rng.choice([kh // 2, 0 if h >= kh else kh // 2]), kw // 2), dtype=rng.choice(["float16", "bfloat16"]),
        layout=rng.choice(["nchw", "channel_major"]), epilogue=epilogue,
    )  # fmt: skip


def depthwise(rng: Random, dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32"), **fixed: Any) -> ConvProblem:
    """What ``direct`` serves: strides, dilations, multipliers, even and rectangular kernels, paddings, epilogues."""
    while True:
        kh, kw = rng.choice([1, 2, 3, 3, 5, 6]), rng.choice([1, 2, 3, 3, 4, 5, 7, 9])
        dilation = (rng.choice([1, 1, 1, 2, 3]), rng.choice([1, 1, 1, 2, 3, 12]))
        stride = (rng.choice([1, 1, 1, 2, 2, 3]), rng.choice([1, 1, 1, 2, 2, 3, 4]))
        padding = (rng.randint(0, kh * dilation[0] // 2 + 1), rng.randint(0, kw * dilation[1] // 2 + 1))
        h, w = rng.randint(1, 18), rng.choice([rng.randint(1, 40), 7, 14, 28, 16, 32])
        epilogue = Epilogue(rng.random() < 0.7, rng.choice([None, "relu", "gelu", "silu"]), rng.random() < 0.4)
        order = rng.choice(["nchw", "nchw", "channels_last"])
        c, multiplier = rng.randint(1, 3), rng.choice([1, 1, 2, 3])
        if order == "channels_last":
            c, multiplier = rng.choice([3, 8, 12, 40]), 1
        drawn = ConvProblem(rng.randint(1, 3), c, h, w, kh, kw, stride, padding, dilation, multiplier, rng.choice(dtypes),
                            order, epilogue)  # fmt: skip
        drawn = replace(drawn, **fixed)
        if drawn.oh > 0 and drawn.ow > 0:
            return drawn


def pointwise(rng: Random) -> DenseProblem:
    return _dense(rng, [3, 8, 20, 64, 72, 640], kh=1, kw=1)


def few_channels(rng: Random) -> DenseProblem:
    """Dense, of at most four input channels."""
    return _dense(
        rng, [1, 3, 4], kh=3, kw=rng.choice([1, 3]), stride=rng.choice([(1, 1), (2, 2), (1, 2)]), padding=(1, 1)
    )


def _dense(rng: Random, channels: list[int], **kernel: Any) -> DenseProblem:
    order = rng.choice(["nchw", "channel_major", "channel_major", "channels_last"])
    return DenseProblem(
        rng.choice([1, 2, 3]), rng.choice(channels), rng.randint(1, 9), rng.randint(1, 9), rng.choice([1, 8, 33, 64, 130]),
        **kernel, dtype=rng.choice(["float16", "float32", "bfloat16"]), layout=order,
        out_layout=rng.choice([order, "nchw", "channel_major"]),
        epilogue=Epilogue(rng.random() < 0.8, rng.choice([None, "relu", "gelu", "silu"]), rng.random() < 0.4),
    )  # fmt: skip


def ffn(rng: Random) -> FfnProblem:
    order = rng.choice(["channel_major", "channel_major", "nchw", "channels_last"])
    out_layout = rng.choice([order, "nchw", "channel_major"])
    n = rng.choice([1, 2, 3]) if order == "channel_major" else 1
    h = rng.randint(1, 9) if order == out_layout == "channel_major" else 8
    return FfnProblem(
        n, rng.choice([64, 64, 128]), h, rng.randint(1, 9), rng.choice([32, 64, 96]),
        dtype=rng.choice(["float16", "bfloat16"]), layout=order, out_layout=out_layout,
        epilogue=Epilogue(True, rng.choice(["gelu", "relu", "silu"]), rng.random() < 0.7),
    )  # fmt: skip


def stem(rng: Random) -> StemProblem:
    order = rng.choice(["nchw", "nchw", "channel_major", "channels_last"])
    return StemProblem(
        rng.choice([1, 3]), rng.choice([1, 3, 3, 4]), rng.randint(1, 23), rng.choice([1, 16, 32, rng.randint(1, 40)]),
        rng.choice([16, 24, 64]), dtype=rng.choice(["float16", "bfloat16"]), layout=order,
        out_layout=rng.choice(["channel_major", "nchw", order]),
        epilogue=Epilogue(True, rng.choice(["relu", "relu", "gelu", "silu"])),
    )  # fmt: skip


def chain(rng: Random) -> FfnProblem | StemProblem:
    return rng.choice([ffn, stem])(rng)


DRAW: dict[str, Callable[[Random], Problem]] = {
    "toeplitz_hopper": many_images,
    "toeplitz": large_kernels,
    "direct": depthwise,
    "pointwise": pointwise,
    "implicit_gemm": few_channels,
    "convffn": ffn,
    "convstem": stem,
    "layerwise": chain,
}
"""By algorithm, what it serves; algorithms that are not named have no kernels of ours."""
