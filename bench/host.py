"""What a call costs the host, beside what torch's own convolution costs it; and small kernels on a CPU beside torch's.

Three parts, one thread. ``layers``: prepared layers on inputs so small that nothing but the call is left to time. ``network``:
a forward of the fused RepLKNet-31B at batch 1, launched on the driver of ``bench/stub``, where no GPU takes any time, in units
of one ``F.conv2d`` of the same process. ``kernels``: small depthwise kernels on a CPU, where the layer has to take no longer
than torch's, whichever of its ways it goes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from lk_triton.nn import DepthwiseConv2d, PointwiseConv2d

from . import stub, usage
from .rounds import ROUNDS, fastest

GOALS = {"layers": 2.0, "network": 280.0, "kernels": 1.15}
"""At most so many times what the peer takes."""

SMALLEST = (1, 8, 4, 4)
"""Shape of the inputs of ``layers``."""

MAPS = ((384, 14), (768, 7), (96, 56))
"""Channels, and rows and columns, of ``kernels``."""

KERNELS = (3, 5, 7, 9)

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


class Figure(NamedTuple):
    """One comparison, in microseconds."""

    part: str
    name: str
    us: float
    peer: str
    peer_us: float

    @property
    def times(self) -> float:
        """Of what the peer takes."""
        return self.us / self.peer_us

    @property
    def goal(self) -> float:
        """At most so many."""
        return GOALS[self.part]


def layers(rounds: int) -> Iterator[Figure]:
    """Prepared layers against ``nn.Conv2d`` and a ReLU in place, channels_last."""
    channels = SMALLEST[1]
    relu = nn.ReLU(inplace=True)
    pairs = {
        "depthwise 3x3": (
            DepthwiseConv2d(channels, 3, activation="relu"), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        ),
        "1x1": (PointwiseConv2d(channels, channels, activation="relu"), nn.Conv2d(channels, channels, 1)),
    }  # fmt: skip
    x = torch.randn(SMALLEST).to(memory_format=torch.channels_last)
    for name, (layer, conv) in pairs.items():
        layer.eval().prepare(SMALLEST)
        conv = conv.eval().to(memory_format=torch.channels_last)
        times = fastest([_call(layer, x), lambda conv=conv: relu(conv(x))], rounds)
        yield _figure("layers", name, "nn.Conv2d + ReLU", times)


def kernels(rounds: int) -> Iterator[Figure]:
    """Prepared small kernels against ``nn.Conv2d`` in the layout of the input."""
    for layout, memory_format in LAYOUTS.items():
        for channels, size in MAPS:
            shape = (1, channels, size, size)
            x = torch.randn(shape).to(memory_format=memory_format)
            for k in KERNELS:
                layer = DepthwiseConv2d(channels, k).eval().prepare(shape)
                conv = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels).eval()
                times = fastest([_call(layer, x), _call(conv.to(memory_format=memory_format), x)], rounds)
                yield _figure("kernels", f"{k}x{k} on {channels}x{size}x{size}, {layout}", "nn.Conv2d", times)


def network(rounds: int, tiny: bool) -> Figure:
    """In a process of its own, which takes itself for one with a GPU.

    Raises:
        UsageError: the process failed.
    """
    command = [sys.executable, "-m", "lk_triton.bench.stub.eager", "--rounds", str(rounds), *(["--tiny"] if tiny else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise usage.UsageError(f"the forward on the stub driver failed: {result.stderr.strip().splitlines()[-1]}")
    found = json.loads(result.stdout)
    name = f"{'tiny network, batch 2' if tiny else 'fused 31B, batch 1'}, {found['launches']} launches"
    return _figure("network", name, "F.conv2d", (found["seconds"], found["unit_seconds"]))


def measure(parts: Sequence[str], rounds: int, tiny: bool = False) -> Iterator[Figure]:
    """The figures of ``parts``, as they come; ``tiny``: of another network, which compiles in seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            if "layers" in parts:
                yield from layers(rounds)
            if "network" in parts:
                yield network(rounds, tiny)
            if "kernels" in parts:
                yield from kernels(rounds)
    finally:
        torch.set_num_threads(threads)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``lk-triton bench host``."""
    parser.description = "What a call costs the host, against torch's convolution: single layers, a network, small kernels."
    parser.add_argument("--parts", nargs="+", choices=GOALS, default=list(GOALS), metavar="PART",
                        help=f"{', '.join(GOALS)}; default: all")  # fmt: skip
    parser.add_argument("--rounds", type=usage.positive, default=ROUNDS, metavar="N", help="at least 5; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a tiny network in place of 31B, which compiles in seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns 0, whatever the figures are.

    Raises:
        UsageError: too few rounds, or what a part needs is missing.
    """
    if arguments.rounds < 5:
        raise usage.UsageError(f"--rounds must be at least 5, got {arguments.rounds}")
    if "network" in arguments.parts and (reason := stub.missing()) is not None:
        raise usage.UsageError(f"the part network needs the stub driver: {reason}; without it: --parts layers kernels")
    found = []
    for figure in measure(arguments.parts, arguments.rounds, arguments.tiny):
        found.append(figure)
        if arguments.json:
            print(json.dumps({**figure._asdict(), "times": round(figure.times, 3), "goal": figure.goal}), flush=True)
    if not arguments.json:
        print(table(found))
    return 0


def table(figures: Sequence[Figure]) -> str:
    """Each figure, its goal, and whether that is met."""
    rows = [
        (f.part, f.name, f"{f.us:.4g}", f.peer, f"{f.peer_us:.4g}", f"{f.times:.4g}", f"{f.goal:g}",
         "met" if f.times <= f.goal else "missed")
        for f in figures
    ]  # fmt: skip
    return tabulate(rows, ("part", "what", "us", "peer", "us", "times", "goal", ""), "simple", disable_numparse=True)


def _call(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _figure(part: str, name: str, peer: str, seconds: Sequence[float]) -> Figure:
    ours, theirs = (round(value * 1e6, 3) for value in seconds)
    return Figure(part, name, ours, peer, theirs)


main = usage.as_program("host", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
