"""Launch whole networks on the stub driver, and compare repeated launches with those that are built anew.

In a process of its own, where TRITON_INTERPRET is unset:

    python -m tests.bench.launch_networks replknet_31b float16 1 64 [--early] [--sabotage KIND]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lk_triton.algorithms import base
from lk_triton.algorithms import launch_cache as relaunch
from lk_triton.bench.network import SIZES
from lk_triton.bench.stub import build
from lk_triton.bench.stub.driver import Driver, Launch
from lk_triton.bench.stub.eager import TINY, Memory, network, replace_torch
from lk_triton.bench.stub.pretend import LOWEST_ADDRESS, become, machine
from lk_triton.models import create_model
from lk_triton.ops import second_call
from lk_triton.planning import verify


class LookedUp:
    """How often a launch was looked up by what it is: not, where the call is remembered."""

    calls = 0

    @classmethod
    def count(cls) -> None:
        launch_again = base.launch_again

        def counted(*args: Any) -> None:
            cls.calls += 1
            launch_again(*args)

        base.launch_again = counted


class Forgetful(dict[Any, Any]):
    """Of what is put in, nothing stays."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("batches", type=int, nargs="+")
    parser.add_argument("--early", action="store_true", help="kernels may start early")
    parser.add_argument("--remembered", action="store_true", help="calls are remembered too: on tensors of torch's own class")
    parser.add_argument("--sabotage", choices=SABOTAGE)
    options = parser.parse_args()
    if options.early:
        os.environ[base.PDL] = "1"
    LookedUp.count()
    if options.sabotage:
        SABOTAGE[options.sabotage]()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if options.remembered:
            os.environ[verify.VARIABLE] = "0"  # nothing computes
            driver, memory = machine(build(Path(folder))), Memory()
            replace_torch(memory)
            model = network(memory, options.model == "small")
        else:
            driver = become(build(Path(folder)))
            placed: dict[str, Any] = {"device": "cuda", "dtype": getattr(torch, options.dtype)}
            model = TINY(**placed) if options.model == "small" else create_model(options.model, **placed)
            model.eval().convert("fused")
        for batch in options.batches:
            print(json.dumps(compare(driver, model, batch, SIZES.get(options.model, 224))), flush=True)


def compare(driver: Driver, model: Any, batch: int, size: int) -> dict[str, Any]:
    """Three forwards: every launch built; built where it is the first of its kind; all repeated."""
    shape = (batch, 3, size, size)
    model.prepare(shape)
    packing, refused = driver.take()
    dtype = next(model.parameters()).dtype
    kept, passes = [], []
    remembered = relaunch._known
    for known in (Forgetful(), remembered, remembered):
        relaunch._known = known
        if known is not remembered:
            second_call.forget()
        before = LookedUp.calls
        images = torch.empty(shape, device="cuda", dtype=dtype)
        kept += [images, model(images)]
        launches, more = driver.take()
        passes.append(launches)
        refused += more
        again = LookedUp.calls - before
        if known is not remembered:
            second_call.forget()
    persistent = addresses(model)
    built = passes[0]
    differences = [d for repeated in passes[1:] for d in compare_launches(built, repeated, persistent)]
    return {
        "batch": batch, "launches": len(built), "packing": len(packing), "refused": refused, "differences": differences,
        "looked_up": again, "early": sum(launch.early for launch in built),
        "kernels": len({launch.kernel for launch in built}),
    }  # fmt: skip


def addresses(model: Any) -> set[int]:
    """Of what stays the same from call to call: parameters and packed weights."""
    banks = [m._prepared.packed for m in model.modules() if getattr(m, "_prepared", None) is not None]
    return {t.data_ptr() for t in (*model.parameters(), *model.buffers(), *banks)}


def compare_launches(built: list[Launch], repeated: list[Launch], persistent: set[int]) -> list[str]:
    """What differs but for addresses, each of which must stand for the same tensor throughout: one for one, and what is
    persistent for itself."""
    if len(built) != len(repeated):
        return [f"{len(built)} launches built, {len(repeated)} repeated"]
    there: dict[int, int] = {a: a for a in persistent}
    back: dict[int, int] = {a: a for a in persistent}
    found = []
    for number, (one, two) in enumerate(zip(built, repeated, strict=True)):
        if one._replace(arguments=()) != two._replace(arguments=()) or len(one.arguments) != len(two.arguments):
            found.append(f"launch {number}: {one[:-1]} became {two[:-1]}")
            continue
        for position, (a, b) in enumerate(zip(one.arguments, two.arguments, strict=True)):
            # an address, or a tensor map, which begins with one
            old, new = (int.from_bytes(v[:8], "little") if len(v) in (8, 128) else 0 for v in (a, b))
            if old < LOWEST_ADDRESS:
                same = a == b
            else:
                same = there.setdefault(old, new) == new and back.setdefault(new, old) == old and a[8:] == b[8:]
            if not same:
                found.append(f"launch {number}, {one.kernel}, argument {position}: {a.hex()} became {b.hex()}")
    return found


def _relaunch(change: Callable[[relaunch.Relaunch, list[str]], None]) -> None:
    """Have every repeated launch changed; ``change`` is also told the names of the arguments."""
    initialize = relaunch.Relaunch.__init__

    def changed(self: relaunch.Relaunch, launch: base.KernelLaunch, *args: Any) -> None:
        initialize(self, launch, *args)
        change(self, launch.kernel.arg_names)

    relaunch.Relaunch.__init__ = changed  # pyright: ignore[reportAttributeAccessIssue]


def _grid() -> None:
    """One program where several are wanted."""
    _relaunch(lambda again, names: setattr(again, "grid", (1, 1, 1)))


def _stride() -> None:
    """Another stride."""

    def change(again: relaunch.Relaunch, names: list[str]) -> None:
        for i, name in enumerate(names):
            if name.startswith("stride") and again.args[i] is not None:
                again.args[i] += 16

    _relaunch(change)


def _stale() -> None:
    """The output goes to another tensor of the call."""

    def change(again: relaunch.Relaunch, names: list[str]) -> None:
        again.plain = [(i, "x" if names[i] == "out" else name) for i, name in again.plain]

    _relaunch(change)


def _shared() -> None:
    """More buffers than shared memory has room for."""
    run = base.KernelLaunch.run

    def changed(self: base.KernelLaunch, device: torch.device) -> Any:
        self.num_stages += 40 if self.num_stages > 1 else 0
        return run(self, device)

    base.KernelLaunch.run = changed


SABOTAGE = {"grid": _grid, "stride": _stride, "stale": _stale, "shared": _shared}


if __name__ == "__main__":
    main()
