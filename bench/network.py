"""Whole networks: RepLKNet in every form, and timm's networks of the same accuracy, in images per second."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from lk_triton import device as devices
from lk_triton.algorithms import registry
from lk_triton.models import RepLKNet, create_model, published_form, randomize_
from lk_triton.recorder import problems_of
from lk_triton.tuning.accuracy import judge
from lk_triton.tuning.plan import plan
from lk_triton.tuning.timing import CpuTimer, EventTimer, Timer, interleave

from . import report, usage
from .forms import FORMS, GPU_ONLY, Call, Form, Shape, peer_forms
from .providers import Unavailable
from .shares import shares

COLUMNS = (
    "kernel_name", "provider", "n", "dtype", "p50_us", "spread", "images_per_s", "speedup", "latency_p50_us", "latency_p99_us",
    "activation_mb", "weight_mb", "bank_mb", "depthwise_share", "pointwise_share", "rest_share", "kernels", "estimate_us",
    "error", "gate", "note",
)  # fmt: skip
GATE_BATCH = 8
SIZES = {"replknet_31l": 384, "replknet_xl": 320}
"""Published input sizes; 224 for the others."""

GPU_FORMS = tuple(form for form in FORMS if not form.endswith("_compile"))
EAGER_PEERS = ("timm/*", "timm_channels_last/*")
CPU_FORMS = ("published", "merged_channels_last", "lk_triton")
LATENCY_SECONDS = 1.0
CALLS = (5, 200)
"""Single calls that are timed for the quantiles of the latency: as many as fit in LATENCY_SECONDS, within these limits."""

CALLS_OF_ONE_IMAGE = 100
"""At least, at batch 1 on a GPU, whatever they take."""


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
        start = time.perf_counter()
        try:
            pools = pool_bytes(self.device)
            form = build()
            images = self.images.contiguous(memory_format=form.memory_format)
            in_tf32 = images.is_cuda and images.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
            row["config"] = form.config + (", TF32" if in_tf32 else "")
            row["layout"] = "channels_last" if form.memory_format == torch.channels_last else "nchw"
            row |= {"weight_mb": report.short(form.weight_bytes / 1e6), "bank_mb": report.short(form.bank_bytes / 1e6)}
            row |= {"gate": "peer"} if check is None else check(form.call)
            if row["gate"] != "failed":
                self._look(form, images, row, pools)
                self.timers[provider] = self._timer(form.call, images)
        except Unavailable as reason:
            row["note"] = str(reason)
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
        except Exception as error:  # one contestant's crash must not lose the others' figures
            row |= {"gate": "failed", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
        free(self.device)
        print(f"{provider}: built and checked in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

    def _timer(self, call: Call, images: Tensor) -> Timer:
        if self.device.type == "cuda":
            return EventTimer(lambda _: call(images), self.device)
        return CpuTimer(lambda _: call(images))

    def _look(self, form: Form, images: Tensor, row: report.Row, pools: int) -> None:
        """Latency of single calls, memory, estimate and shares; ``pools``: bytes of CUDA graphs before this form was built."""
        for _ in range(3 if self.device.type == "cuda" else 1):
            form.call(images)
        seconds = self._latencies(form.call, images)
        quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)) * 1e6
        row |= {"latency_p50_us": report.short(quantiles[0].item()), "latency_p99_us": report.short(quantiles[1].item())}
        row["calls"] = len(seconds)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            form.call(images)
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) - before
            row["activation_mb"] = report.short((peak + pool_bytes(self.device) - pools) / 1e6)
        ours = str(row["provider"]).startswith("lk_triton")
        try:
            if ours and self.device.type == "cuda":
                row["estimate_us"] = report.short(estimate_us(form.module, images))
            found = shares(lambda: form.call(images), self.device, by_name=ours)
            row |= {} if found.kernels is None else {"kernels": found.kernels}
            row |= {f"{kind}_share": round(share, 4) for kind, share in (found.of_time or {}).items()}
        except Exception as error:  # a profiler that does not work here costs the shares only
            row["note"] = f"no shares: {type(error).__name__}: {error}".splitlines()[0]

    def _latencies(self, call: Call, images: Tensor) -> list[float]:
        """Seconds of single calls, each waited for."""
        gpu = self.device.type == "cuda"
        least = CALLS_OF_ONE_IMAGE if gpu and len(images) == 1 else CALLS[0]
        seconds: list[float] = []
        while len(seconds) < least or (sum(seconds) < LATENCY_SECONDS and len(seconds) < CALLS[1]):
            start = time.perf_counter()
            call(images)
            if gpu:
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return seconds

    def finish(self) -> list[report.Row]:
        """Time the contestants added since the last call, in turns, and return their rows."""
        if self.timers:
            contestants = self.fastest | self.timers
            try:
                timings = interleave(contestants, self.rounds)
            except torch.OutOfMemoryError:  # each fits, but not beside the graphs and workspaces of all
                timings = {}
                for provider in self.timers:
                    self.rows[provider]["note"] = "out of memory beside the others: choose fewer --forms"
            for provider, timing in timings.items():
                if provider in self.timers:
                    us = self.seconds[provider] = timing.best(self.device)
                    row = self.rows[provider]
                    row |= report.figures(timing) | {"images_per_s": report.short(self.shape[0] * 1e6 / us)}
                    if "published" in self.seconds:
                        row["speedup"] = report.short(self.seconds["published"] / us)
            timed = [provider for provider in contestants if provider in self.seconds]
            self.fastest = {p: contestants[p] for p in sorted(timed, key=lambda p: self.seconds[p])[:1]}
        rows, self.rows, self.timers = list(self.rows.values()), {}, {}
        return rows


def pool_bytes(device: torch.device) -> int:
    """What the CUDA graphs there are hold: memory that stays theirs between replays."""
    if device.type != "cuda":
        return 0
    own = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) != (0, 0)]
    return sum(s["total_size"] for s in own if s["device"] == (device.index or 0))


def estimate_us(network: nn.Module, images: Tensor) -> float:
    """The cost model's sum over the layers."""
    facts = devices.of(images.device)
    total = 0.0
    for problem, count in problems_of(network, images).items():
        chosen = plan(problem, facts)
        total += count * registry.get(chosen.algorithm).estimate(problem, chosen.config, facts).seconds
    return total * 1e6


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def at_its_best() -> Iterator[None]:
    """torch for inference: cuDNN looks for its fastest algorithm, and matrix products take TF32 where convolutions may."""
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


@torch.inference_mode()
def measure(case: Case, model: RepLKNet, forms: Sequence[str], peers: Sequence[str]) -> Iterator[list[report.Row]]:
    """Rows of a ``model`` in the training form in some ``forms``, and of timm's ``peers``, as they come."""
    few = case.images[:GATE_BATCH]
    expected = published_form(deepcopy(model).double())(few.double())
    by_torch = published_form(deepcopy(model).to(case.dtype))(few)

    def check(call: Call) -> report.Row:
        # a graph or a compiled form is of the whole batch's shape
        verdict = judge(call(case.images)[:GATE_BATCH], by_torch, expected)
        row: report.Row = {"error": f"{verdict.error:.2e}", "torch_error": f"{verdict.torch_error:.2e}"}
        row["gate"] = verdict.gate
        if not verdict.ok:
            row["note"] = f"error above {verdict.allowed:.1e}: not timed"
        return row

    for late in (False, True):
        for form in forms:
            if form.endswith("_compile") == late:
                case.add(case.name, form, lambda f=form: FORMS[f](model, case.dtype, case.shape), check)
                if late:
                    yield case.finish()
        for peer, build in peer_forms(case.shape[2]):
            if peer in peers and ("_compile/" in peer) == late:
                case.add(peer.split("/")[1], peer, lambda b=build: b(case.device, case.dtype), None)
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
        "--peers", nargs="*", metavar="PATTERN", help="timm's networks of the size; default: the eager ones, on a CPU none"
    )
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:1; default: the GPU where there is one")
    parser.add_argument("--rounds", type=usage.positive, default=10, metavar="N", help="of each form; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on 32x32 images, for the interpreter")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Exit code 1 where a form failed the gate or crashed."""
    device = usage.place(options.device)
    gpu = device.type == "cuda"
    patterns = options.forms or (GPU_FORMS if gpu else CPU_FORMS)
    forms = [f for f in FORMS if any(fnmatchcase(f, p) for p in patterns) and (gpu or f not in GPU_ONLY)]
    if not forms and not options.peers:
        raise usage.UsageError(f"nothing to measure; forms: {', '.join(FORMS)} ({', '.join(GPU_ONLY)} need a GPU)")
    if options.out is not None:
        report.start(options.out)
    failed = False
    for name in options.model:
        for size in [32] if options.tiny else options.size or [SIZES.get(name, 224)]:
            chosen = options.peers if options.peers is not None else EAGER_PEERS if gpu else ()
            peers = [peer for peer, _ in peer_forms(size) if any(matches(peer, pattern) for pattern in chosen)]
            for dtype in options.dtype or ["float16" if gpu else "float32"]:
                for batch in options.batch or ([64, 1] if gpu else [1]):
                    failed |= _run_case(options, name, size, getattr(torch, dtype), batch, device, forms, peers)
    return int(failed)


def matches(peer: str, pattern: str) -> bool:
    """Whether a peer such as ``timm_compile/convnext_base``, or the network's name alone, matches a shell pattern."""
    return fnmatchcase(peer, pattern) or fnmatchcase(peer.split("/")[1], pattern)


def _run_case(
    options: argparse.Namespace, name: str, size: int, dtype: torch.dtype, batch: int, device: torch.device,
    forms: Sequence[str], peers: Sequence[str],
) -> bool:  # fmt: skip
    """Measure one case; whether something failed."""
    torch.manual_seed(0)
    try:
        model = (tiny_network() if options.tiny else create_model(name, device=device)).to(device)
    except ValueError as error:
        raise usage.UsageError(str(error)) from None
    shape = (min(batch, 2) if options.tiny else batch, 3, size, size)
    case = Case("tiny" if options.tiny else f"{name}-{size}", shape, dtype, device, options.rounds)
    failed = False
    with at_its_best():
        for rows in measure(case, randomize_(model).eval(), forms, peers):
            if rows:
                failed |= not report.kept(options.out, rows)
                print(f"{report.table(rows, COLUMNS)}\n", flush=True)
                failed |= any(row.get("gate") == "failed" for row in rows)
    free(device)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lk_triton.bench.network``."""
    return usage.main("network", add_arguments, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
