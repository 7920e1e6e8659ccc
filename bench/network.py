"""``python -m lk_triton.bench.network --out FILE.csv``: fused RepLKNet-31B against the published form, images per second."""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import torch

from lk_triton.models import RepLKNet, create_model, published_form, randomize_

from . import report
from .gate import judge
from .timing import interleave, timer

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


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where a form failed the gate or has no figure."""
    parser = argparse.ArgumentParser(prog="python -m lk_triton.bench.network", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV file to append to")
    parser.add_argument("--model", default="replknet_31b")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--size", type=int, default=224)
    gpu = torch.cuda.is_available()
    parser.add_argument("--dtype", default="float16" if gpu else "float32", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="a tiny network on 32x32 images, for the interpreter")
    options = parser.parse_args(arguments)
    failed = False
    for batch in options.batch:
        torch.manual_seed(0)
        model = tiny_network() if options.tiny else create_model(options.model)
        size, name = (32, "tiny") if options.tiny else (options.size, options.model)
        shape = (min(batch, 2) if options.tiny else batch, 3, size, size)
        rows = measure(name, model.to(options.device), shape, getattr(torch, options.dtype), options.rounds)
        report.append(options.out, rows)
        print(report.table(rows, COLUMNS), flush=True)
        failed |= not all("p50_us" in row for row in rows)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
