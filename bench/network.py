"""A whole network: the fused form against the published one, in images per second."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch

from lk_triton.models import RepLKNet, create_model, published_form, randomize_
from lk_triton.tuning.accuracy import judge
from lk_triton.tuning.timing import interleave, timer

from . import report, usage

COLUMNS = ("kernel_name", "provider", "n", "dtype", "p50_us", "spread", "images_per_s", "speedup", "error", "gate", "note")
GATE_BATCH = 8


def tiny_network() -> RepLKNet:
    """A RepLKNet that Triton's interpreter computes within a second or two."""
    return RepLKNet((9, 9, 7, 7), layers=(1, 1, 1, 1), channels=(2, 2, 2, 2), small_kernel=3, num_classes=10)


@torch.inference_mode()
def measure(name: str, model: RepLKNet, shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> list[report.Row]:
    """Two rows, ``published`` and ``fused``, of a ``model`` in the training form, on its device."""
    device = next(model.parameters()).device
    model = randomize_(model).eval()
    exact = published_form(deepcopy(model).double())
    forms = {
        "published": published_form(deepcopy(model).to(dtype)),
        "fused": deepcopy(model).reparameterize().to(dtype).prepare(shape),
    }
    inputs = torch.randn(shape, device=device, dtype=dtype)
    few = inputs[:GATE_BATCH]
    expected, by_torch = exact(few.double()), forms["published"](few)
    n, c, h, w = shape
    rows: dict[str, report.Row] = {}
    timers = {}
    for provider, form in forms.items():
        row = rows[provider] = {
            "kernel_name": name, "provider": provider, "n": n, "c": c, "h": h, "w": w, "layout": "nchw",
            "dtype": str(dtype).removeprefix("torch."), "config": "CUDA graph" if device.type == "cuda" else "eager",
        } | report.facts(device)  # fmt: skip
        try:
            verdict = judge(form(few), by_torch, expected)
            row |= {"error": f"{verdict.error:.2e}", "torch_error": f"{verdict.torch_error:.2e}"}
            row["gate"] = "ok" if verdict.ok else "failed"
            if verdict.ok:
                timers[provider] = timer(lambda _, f=form: f(inputs), 1, device)
            else:
                row["note"] = f"error above {verdict.allowed:.1e}: not timed"
        except Exception as error:  # one form's crash must not lose the other's figures
            row |= {"gate": row.get("gate", "failed"), "note": f"{type(error).__name__}: {error}".splitlines()[0]}
    timings = interleave(timers, rounds)
    for provider, timing in timings.items():
        rows[provider] |= report.figures(timing)
        rows[provider]["images_per_s"] = report.short(n * 1e6 / timing.best(device))
        if "published" in timings:
            rows[provider]["speedup"] = report.short(timings["published"].best(device) / timing.best(device))
    return list(rows.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="append the rows to this file")
    parser.add_argument("--model", default="replknet_31b", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--batch", type=usage.positive, nargs="+", default=[64, 1], metavar="N", help="default: 64 1")
    parser.add_argument("--size", type=usage.positive, default=224, metavar="N", help="default: %(default)s")
    parser.add_argument("--dtype", type=usage.dtype, metavar="T", help="fp16, bf16 or fp32; default: fp16 on a GPU, else fp32")
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:1; default: the GPU where there is one")
    parser.add_argument("--rounds", type=usage.positive, default=10, metavar="N", help="of each form; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on 32x32 images, for the interpreter")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Exit code 1 where a form failed the gate or has no figure."""
    device = usage.place(options.device)
    dtype = getattr(torch, options.dtype or ("float16" if device.type == "cuda" else "float32"))
    failed = False
    for batch in options.batch:
        torch.manual_seed(0)
        try:
            model = tiny_network() if options.tiny else create_model(options.model)
        except ValueError as error:
            raise usage.UsageError(str(error)) from None
        size, name = (32, "tiny") if options.tiny else (options.size, options.model)
        shape = (min(batch, 2) if options.tiny else batch, 3, size, size)
        rows = measure(name, model.to(device), shape, dtype, options.rounds)
        if options.out is not None:
            report.append(options.out, rows)
        print(report.table(rows, COLUMNS), flush=True)
        failed |= not all("p50_us" in row for row in rows)
    return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lk_triton.bench.network``."""
    return usage.main("network", add_arguments, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
