"""One form of a network after the other: built, checked, looked at, and timed in turns with the published one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lk_triton import context
from lk_triton.tuning.timing import CpuTimer, EventTimer, Timer, interleave

from . import report
from .forms import Call, Form, Shape
from .look import free, look, pool_bytes
from .providers import Unavailable

REFERENCES = {"published": "speedup", "published_graph": "graph_speedup"}
"""Forms that every later one takes turns with, and the column for their time over its."""


class Case:
    """One network, batch, size and dtype, in which forms are measured one by one.

    ``lost`` says what ended the GPU's context, where a form did: nothing more can be measured in this process.
    """

    def __init__(self, name: str, shape: Shape, dtype: torch.dtype, device: torch.device, rounds: int) -> None:
        self.name, self.shape, self.dtype, self.device, self.rounds = name, shape, dtype, device, rounds
        self.images = torch.randn(shape, device=device, dtype=dtype)
        self.references: dict[str, Timer] = {}
        self.lost: str | None = None

    def measure(
        self, name: str, provider: str, build: Callable[[], Form], check: Callable[[Form], report.Row] | None
    ) -> report.Row:
        """The finished row of one form: its figures, or why it has none. Without a ``check`` it is a peer."""
        row = {"kernel_name": name, "provider": provider, "layout": "nchw"} | self.facts()
        start = time.perf_counter()
        try:
            self._measure(provider, build, check, row)
        except Unavailable as reason:
            row["note"] = str(reason)
        except torch.OutOfMemoryError:
            alone = "latency_p50_us" not in row or not self.references
            row["note"] = "out of memory" + ("" if alone else f" beside {' and '.join(self.references)}")
        except Exception as error:  # one form's crash must not lose the others' figures
            row |= {"gate": "failed", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
            self.lost = context.lost(self.device)
        if self.lost is None:
            free(self.device)
        print(f"{provider}: measured in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        return row

    def facts(self) -> report.Row:
        """The columns that all rows share."""
        n, c, h, w = self.shape
        row: report.Row = {"n": n, "c": c, "h": h, "w": w, "dtype": str(self.dtype).removeprefix("torch.")}
        return row | report.facts(self.device)

    def _measure(
        self, provider: str, build: Callable[[], Form], check: Callable[[Form], report.Row] | None, row: report.Row
    ) -> None:
        """Fill the row; what is known stays in it where this raises."""
        pools = pool_bytes(self.device)
        form = build()
        images = self.images.contiguous(memory_format=form.memory_format)
        in_tf32 = images.is_cuda and images.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        row["config"] = form.config + (", TF32" if in_tf32 else "")
        row["layout"] = "channels_last" if form.memory_format == torch.channels_last else "nchw"
        row |= {"weight_mb": report.short(form.weight_bytes / 1e6), "bank_mb": report.short(form.bank_bytes / 1e6)}
        row |= {"gate": "peer"} if check is None else check(form)
        if row["gate"] == "failed":
            return
        row |= look(form, images, provider.startswith("lk_triton"), pools)
        timer = self._timer(form.call, images)
        timings = interleave(self.references | {provider: timer}, self.rounds)
        us = timings[provider].best(self.device)
        row |= report.figures(timings[provider]) | {"images_per_s": report.short(self.shape[0] * 1e6 / us)}
        if provider in REFERENCES:
            self.references[provider] = timer
        for reference in self.references:
            row[REFERENCES[reference]] = report.short(timings[reference].best(self.device) / us)

    def _timer(self, call: Call, images: Tensor) -> Timer:
        if self.device.type == "cuda":
            return EventTimer(lambda _: call(images), self.device)
        return CpuTimer(lambda _: call(images))
