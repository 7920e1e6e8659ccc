"""Whole networks: RepLKNet in every form, and timm's networks of the same accuracy, in images per second."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from lk_triton.models import RepLKNet, create_model, published_form, randomize_
from lk_triton.tuning.accuracy import judge
from lk_triton.tuning.timing import CpuTimer, EventTimer, Timer, interleave

from . import report, usage
from .forms import FORMS, GPU_ONLY, PEERS, Call, Form, Shape, peer_forms
from .shares import shares

COLUMNS = (
    "kernel_name", "provider", "n", "dtype", "p50_us", "spread", "images_per_s", "speedup", "latency_p50_us", "latency_p99_us",
    "activation_mb", "weight_mb", "depthwise_share", "pointwise_share", "kernels", "error", "gate", "note",
)  # fmt: skip
GATE_BATCH = 8
SIZES = {"replknet_31l": 384, "replknet_xl": 320}
"""Published input sizes; 224 for the others."""

CPU_FORMS = ("published", "merged_channels_last", "lk_triton")
LATENCY_SECONDS = 0.5
CALLS = (20, 200)
"""Single calls that are timed for the quantiles of the latency: as many as fit in LATENCY_SECONDS, within these limits."""


def tiny_network() -> RepLKNet:
    """A RepLKNet that Triton's interpreter computes within a second or two."""
    return RepLKNet((9, 9, 7, 7), layers=(1, 1, 1, 1), channels=(2, 2, 2, 2), small_kernel=3, num_classes=10)


class Case:
    """One network, batch, size and dtype, in which contestants are measured as they come.

    Contestants that are cheap to build take turns with each other. Each that compiles takes turns with the fastest of those,
    so that what is measured already is not held up by it.
    """

    def __init__(self, name: str, shape: Shape, dtype: torch.dtype, device: torch.device, rounds: int) -> None:
        self.name, self.shape, self.dtype, self.device, self.rounds = name, shape, dtype, device, rounds
        self.images = torch.randn(shape, device=device, dtype=dtype)
        self.rows: dict[str, report.Row] = {}
        self.timers: dict[str, Timer] = {}
        self.seconds: dict[str, float] = {}
        self.fastest: dict[str, Timer] = {}

    def add(self, name: str, provider: str, build: Callable[[], Form], check: Callable[[Call], report.Row] | None) -> None:
        """Build, check and look at a contestant; one that is right is timed by ``finish``."""
        n, c, h, w = self.shape
        row = self.rows[provider] = {
            "kernel_name": name, "provider": provider, "n": n, "c": c, "h": h, "w": w, "layout": "nchw",
            "dtype": str(self.dtype).removeprefix("torch."),
        } | report.facts(self.device)  # fmt: skip
        try:
            form = build()
            images = self.images.contiguous(memory_format=form.memory_format)
            row["weight_mb"] = report.short(form.weight_bytes / 1e6)
            row |= {"gate": "", "note": "a peer: not checked"} if check is None else check(form.call)
            if row["gate"] != "failed":
                self._look(form.call, images, row)
                self.timers[provider] = self._timer(form.call, images)
        except Exception as error:  # one contestant's crash must not lose the others' figures
            row |= {"gate": row.get("gate") or "failed", "note": f"{type(error).__name__}: {error}".splitlines()[0]}

    def _timer(self, call: Call, images: Tensor) -> Timer:
        if self.device.type == "cuda":
            return EventTimer(lambda _: call(images), self.device)
        return CpuTimer(lambda _: call(images))

    def _look(self, call: Call, images: Tensor, row: report.Row) -> None:
        """Memory, the shares of the kernels, and the latency of single calls."""
        for _ in range(3):
            call(images)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call(images)
            torch.cuda.synchronize(self.device)
            row["activation_mb"] = report.short((torch.cuda.max_memory_allocated(self.device) - before) / 1e6)
            found = shares(lambda: call(images), self.device)
            row |= {"depthwise_share": round(found.depthwise, 4), "pointwise_share": round(found.pointwise, 4)}
            row["kernels"] = found.kernels
        seconds: list[float] = []
        while len(seconds) < CALLS[0] or (sum(seconds) < LATENCY_SECONDS and len(seconds) < CALLS[1]):
            start = time.perf_counter()
            call(images)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)) * 1e6
        row |= {"latency_p50_us": report.short(quantiles[0].item()), "latency_p99_us": report.short(quantiles[1].item())}
        row["calls"] = len(seconds)

    def finish(self) -> list[report.Row]:
        """Time the contestants added since the last call, in turns, and return their rows."""
        if self.timers:
            contestants = self.fastest | self.timers
            for provider, timing in interleave(contestants, self.rounds).items():
                if provider in self.timers:
                    us = self.seconds[provider] = timing.best(self.device)
                    row = self.rows[provider]
                    row |= report.figures(timing) | {"images_per_s": report.short(self.shape[0] * 1e6 / us)}
                    if "published" in self.seconds:
                        row["speedup"] = report.short(self.seconds["published"] / us)
            best = min(contestants, key=lambda provider: self.seconds[provider])
            self.fastest = {best: contestants[best]}
        rows, self.rows, self.timers = list(self.rows.values()), {}, {}
        return rows


@torch.inference_mode()
def measure(case: Case, model: RepLKNet, forms: Sequence[str], peers: Sequence[str]) -> Iterator[list[report.Row]]:
    """Rows of a ``model`` in the training form in some ``forms``, and of timm's ``peers``, as they come."""
    few = case.images[:GATE_BATCH]
    exact = published_form(deepcopy(model).double())
    expected = exact(few.double())
    del exact
    by_torch = published_form(deepcopy(model).to(case.dtype))(few)

    def check(call: Call) -> report.Row:
        # a graph or a compiled form is of the whole batch's shape
        verdict = judge(call(case.images)[:GATE_BATCH], by_torch, expected)
        row: report.Row = {"error": f"{verdict.error:.2e}", "torch_error": f"{verdict.torch_error:.2e}"}
        row["gate"] = "ok" if verdict.ok else "failed"
        if not verdict.ok:
            row["note"] = f"error above {verdict.allowed:.1e}: not timed"
        return row

    for late in (False, True):
        for form in forms:
            if form.endswith("_compile") == late:
                case.add(case.name, form, lambda f=form: FORMS[f](model, case.dtype, case.shape), check)
                if late:
                    yield case.finish()
        for peer in peers:
            for provider, build in peer_forms(peer, case.shape[2]):
                if provider.endswith("_compile") == late:
                    case.add(peer, f"{provider}/{peer}", lambda b=build: b(case.device, case.dtype), None)
                    if late:
                        yield case.finish()
        yield case.finish()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="append the rows to this file as they come")
    parser.add_argument("--model", nargs="+", default=["replknet_31b"], metavar="NAME", help="default: replknet_31b")
    parser.add_argument("--batch", type=usage.positive, nargs="+", metavar="N", help="default: 64 1, on a CPU 1")
    parser.add_argument("--size", type=usage.positive, nargs="+", metavar="N", help="default: each network's published one")
    parser.add_argument(
        "--dtype", type=usage.dtype, nargs="+", metavar="T", help="fp16, bf16, fp32; default: fp16, on a CPU fp32"
    )
    parser.add_argument("--forms", nargs="+", metavar="PATTERN", help=f"shell patterns; there are {', '.join(FORMS)}")
    parser.add_argument(
        "--peers", nargs="*", metavar="PATTERN", help="of timm's networks; default on a GPU: those of the size"
    )
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:1; default: the GPU where there is one")
    parser.add_argument("--rounds", type=usage.positive, default=10, metavar="N", help="of each form; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on 32x32 images, for the interpreter")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Exit code 1 where a form failed the gate or has no figure."""
    device = usage.place(options.device)
    gpu = device.type == "cuda"
    patterns = options.forms or (("*",) if gpu else CPU_FORMS)
    forms = [f for f in FORMS if any(fnmatchcase(f, p) for p in patterns) and (gpu or f not in GPU_ONLY)]
    if not forms and not options.peers:
        raise usage.UsageError(f"nothing to measure; forms: {', '.join(FORMS)} ({', '.join(GPU_ONLY)} need a GPU)")
    failed = False
    for name in options.model:
        for size in [32] if options.tiny else options.size or [SIZES.get(name, 224)]:
            chosen = options.peers if options.peers is not None else (["*"] if gpu and not options.tiny else [])
            peers = [peer for peer in PEERS.get(size, ()) if any(fnmatchcase(peer, p) for p in chosen)]
            for dtype in options.dtype or ["float16" if gpu else "float32"]:
                for batch in options.batch or ([64, 1] if gpu else [1]):
                    failed |= _run_case(options, name, size, getattr(torch, dtype), batch, device, forms, peers)
    return int(failed)


def _run_case(
    options: argparse.Namespace, name: str, size: int, dtype: torch.dtype, batch: int, device: torch.device,
    forms: Sequence[str], peers: Sequence[str],
) -> bool:  # fmt: skip
    """Measure one case; whether something failed."""
    torch.manual_seed(0)
    try:
        model = tiny_network() if options.tiny else create_model(name)
    except ValueError as error:
        raise usage.UsageError(str(error)) from None
    shape = (min(batch, 2) if options.tiny else batch, 3, size, size)
    case = Case("tiny" if options.tiny else f"{name}-{size}", shape, dtype, device, options.rounds)
    failed = False
    for rows in measure(case, randomize_(model).eval().to(device), forms, peers):
        if rows:
            if options.out is not None:
                report.append(options.out, rows)
            print(f"{report.table(rows, COLUMNS)}\n", flush=True)
            failed |= not all("p50_us" in row for row in rows)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lk_triton.bench.network``."""
    return usage.main("network", add_arguments, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
