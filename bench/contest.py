"""One form of a network after the other: built, checked, looked at, and timed in turns with the published one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lk_triton import context
from lk_triton.planning.timing import CpuTimer, EventTimer, Timer, interleave

from . import report
from .forms import Form
from .look import free, look, pool_bytes
from .providers import Unavailable

REFERENCES = {"published": "speedup", "published_graph": "graph_speedup"}
"""Forms that every later one takes turns with, and the column for their time over its."""

Rows = Mapping[tuple[str, str], Mapping[str, str]]
"""(kernel_name, provider) -> a row that was read."""

NOTHING: Rows = {}


@dataclass(frozen=True, eq=False)
class Case:
    """One network, batch, size and dtype: the ``images`` (N, 3, H, W), and how many rounds each form is timed."""

    name: str
    images: Tensor
    rounds: int

    def facts(self) -> report.Row:
        """The columns that all rows share."""
        shape = dict(zip("nchw", self.images.shape, strict=True))
        return {**shape, "dtype": str(self.images.dtype).removeprefix("torch."), **report.facts(self.images.device)}


class Contestant(NamedTuple):
    """A form of the network, or a peer.

    Attributes:
        network, provider: what its row calls them.
        build: makes it ready to be called.
        check: the columns of the gate; None of a peer, whose weights are its own, so that there is nothing to compare with.
    """

    network: str
    provider: str
    build: Callable[[], Form]
    check: Callable[[Form], report.Row] | None = None


def contest(case: Case, contestants: Iterable[Contestant], done: Rows = NOTHING) -> Iterator[report.Row]:
    """A row of each, as soon as it is finished; none follows that with which the GPU was lost.

    What is ``done`` has a row already; of that only a form that the others take turns with is measured again, if it can be.
    """
    references: dict[str, Timer] = {}
    for contestant in contestants:
        known = done.get((contestant.network, contestant.provider))
        if known is None:
            yield _row(case, contestant, references)
        elif contestant.provider in REFERENCES and known["p50_us"]:
            _row(case, contestant, references)
        if context.lost(case.images.device) is not None:
            return
        free(case.images.device)


def _row(case: Case, contestant: Contestant, references: dict[str, Timer]) -> report.Row:
    """What is known of a contestant, and if it has no figures, why."""
    row = {"kernel_name": contestant.network, "provider": contestant.provider, "layout": "nchw"} | case.facts()
    start = time.perf_counter()
    try:
        for columns in _columns(case, contestant, references):
            row |= columns
    except Unavailable as reason:
        row["note"] = str(reason)
    except torch.OutOfMemoryError:
        alone = "latency_p50_us" not in row or not references
        row["note"] = "out of memory" + ("" if alone else f" beside {' and '.join(references)}")
    except Exception as error:  # one form's crash must not lose the others' figures
        row |= {"gate": "failed", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(f"{contestant.provider}: measured in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return row


def _columns(case: Case, contestant: Contestant, references: dict[str, Timer]) -> Iterator[report.Row]:
    """Columns in the order in which they become known. A form that is wrong has no figures.

    ``references`` are timed in turns with the contestant, which joins them where later ones take turns with it.
    """
    device, provider = case.images.device, contestant.provider
    pools = pool_bytes(device)
    form = contestant.build()
    images = case.images.contiguous(memory_format=form.memory_format)
    yield _described(form, images)
    verdict: report.Row = {"gate": "peer"} if contestant.check is None else contestant.check(form)
    yield verdict
    if verdict["gate"] == "failed":
        return
    yield look(form, images, provider.startswith("lk_triton"), pools)

    def call(_: int) -> object:
        return form.call(images)

    timer = EventTimer(call, device) if device.type == "cuda" else CpuTimer(call)
    timings = interleave({**references, provider: timer}, case.rounds)
    if provider in REFERENCES:
        references[provider] = timer
    us = timings[provider].best(device)
    yield report.figures(timings[provider]) | {"images_per_s": report.short(len(images) * 1e6 / us)}
    yield {REFERENCES[name]: report.short(timings[name].best(device) / us) for name in references}


def _described(form: Form, images: Tensor) -> report.Row:
    """What runs, on which layout, and how large its weights are."""
    in_tf32 = images.is_cuda and images.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return {
        "config": form.config + (", TF32" if in_tf32 else ""),
        "layout": "channels_last" if form.memory_format == torch.channels_last else "nchw",
        "weight_mb": report.short(form.weight_bytes / 1e6), "bank_mb": report.short(form.bank_bytes / 1e6),
    }  # fmt: skip
