"""Convolutions on a CPU: torch's ``F.conv2d`` against oneDNN with a packed weight (``onednn``), in the layout of the input.

    python -m lk_triton.bench.cpu --out convolutions.json

One thread, the fastest of many interleaved rounds, in microseconds. What ``auto`` takes on a CPU follows these figures
(``algorithms/torch_.py``). bfloat16 is measured where the CPU has instructions for it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import with_prepacked
from lk_triton.ops.problem import Convolution, ConvProblem, DenseProblem, Epilogue
from lk_triton.planning.accuracy import draw
from lk_triton.planning.entry import problem_to_json

from . import usage
from .rounds import fastest

MAPS = (
    (1, 32, 16), (1, 64, 14), (1, 384, 14), (1, 512, 14), (1, 768, 7), (1, 1024, 7), (1, 64, 28), (1, 96, 56),
    (1, 24, 112), (8, 384, 14), (8, 96, 28),
)  # fmt: skip
"""Images, channels, rows and columns of the depthwise layers."""

KERNELS = (3, 5, 7, 9, 11, 13, 15, 21, 31)
MOST_WORK = 1e9
"""Multiply-adds of a layer: larger ones are left out."""

WIDTHS = ((8, 8), (16, 64), (64, 64), (64, 256), (128, 512))
"""Channels of the input and the output of the 1x1 layers."""


def posed() -> Iterator[Convolution]:
    """The layers, in every layout and dtype."""
    epilogue = Epilogue(bias=True)
    layers: list[Convolution] = [
        ConvProblem(n, c, size, size, k, k, padding=(k // 2, k // 2), epilogue=epilogue)
        for n, c, size in MAPS for k in KERNELS if k < 2 * size
    ]  # fmt: skip
    layers += [DenseProblem(n, c, size, size, out_channels, epilogue=epilogue)
               for n in (1, 2, 8) for c, out_channels in WIDTHS for size in (4, 7, 14, 28)]  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        for layout in ("nchw", "channels_last"):
            for layer in layers:
                orders = {"layout": layout} if isinstance(layer, ConvProblem) else {"layout": layout, "out_layout": layout}
                if layer.nominal_macs <= MOST_WORK:
                    yield replace(layer, dtype=dtype, **orders)


def measure(problem: Convolution) -> dict[str, float]:
    """Microseconds of both ways."""
    onednn = registry.get("onednn")
    (config,) = onednn.configs(problem, gpus.CPU)
    operands = draw(problem, torch.device("cpu"))
    packed = with_prepacked(onednn, problem, config, operands)
    options = problem.stride, problem.padding, problem.dilation, problem.groups
    calls = {
        "torch": lambda: F.conv2d(operands["x"], operands["weight"], operands["bias"], *options),
        "onednn": lambda: onednn.launch(problem, config, packed),
    }
    seconds = fastest(list(calls.values()), rounds=25, seconds=0.001)
    return dict(zip(calls, (round(s * 1e6, 1) for s in seconds), strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> int:
    """Measure all, then write.

    Raises:
        UsageError: the file cannot be written.
    """
    usage.check_out(arguments.out, (".json",))
    torch.set_num_threads(1)
    onednn = registry.get("onednn")
    served = [problem for problem in posed() if onednn.why_not(problem, gpus.CPU) is None]
    lines = [json.dumps({"problem": problem_to_json(problem), **measure(problem)}) for problem in served]
    arguments.out.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lk_triton.bench.cpu``."""
    return usage.main("cpu", add_arguments, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
