"""Whole networks: RepLKNet in every form, and timm's networks of the same accuracy, in images per second."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from pathlib import Path

import torch

from lk_triton.models import RepLKNet, create_model, randomize_

from . import report, usage
from .contest import NOTHING, Case, Contestant, Rows, contest
from .forms import FORMS, GPU_ONLY, peer_forms
from .look import free
from .network_gate import gate

COLUMNS = (
    "kernel_name", "provider", "n", "dtype", "p50_us", "spread", "images_per_s", "speedup", "graph_speedup", "latency_p50_us",
    "latency_p99_us", "activation_mb", "weight_mb", "bank_mb", "depthwise_share", "pointwise_share", "rest_share", "kernels",
    "estimate_us", "error", "gate", "note",
)  # fmt: skip
SIZES = {"replknet_31l": 384, "replknet_xl": 320}
"""Published input sizes; 224 for the others."""

GPU_FORMS = tuple(form for form in FORMS if not form.endswith("_compile"))
EAGER_PEERS = ("timm/*", "timm_channels_last/*")
CPU_FORMS = ("published", "merged_channels_last", "lk_triton")


def tiny_network() -> RepLKNet:
    """A RepLKNet that Triton's interpreter computes within a second or two."""
    return RepLKNet((9, 9, 7, 7), layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), small_kernel=3, num_classes=10)


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
def measure(
    case: Case, model: RepLKNet, forms: Sequence[str], peers: Sequence[str], done: Rows = NOTHING
) -> Iterator[report.Row]:
    """Rows of a ``model`` in the training form in some ``forms``, and of timm's ``peers``, as of ``contest``.

    What compiles comes last.
    """
    images, check = case.images, gate(case, model)
    shape = tuple(images.shape)
    found = [Contestant(case.name, form, partial(FORMS[form], model, images.dtype, shape), check) for form in forms]
    found += [
        Contestant(peer.split("/")[1], peer, partial(build, images.device, images.dtype))
        for peer, build in peer_forms(shape[2])
        if peer in peers
    ]
    if not all(contestant[:2] in done for contestant in found):
        yield from contest(case, sorted(found, key=lambda contestant: "_compile" in contestant.provider), done)


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
    usage.add_device(parser)
    parser.add_argument("--rounds", type=usage.positive, default=10, metavar="N", help="of each form; default: %(default)s")
    parser.add_argument("--missing", action="store_true", help="leave out what has a row of this device and commit in --out")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on 32x32 images, for the interpreter")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Exit code 1 where a form failed the gate or crashed, 75 where one ended the GPU's context."""
    device = usage.torch_device(options.device)
    gpu = device.type == "cuda"
    patterns = options.forms or (GPU_FORMS if gpu else CPU_FORMS)
    forms = [f for f in FORMS if any(fnmatchcase(f, p) for p in patterns) and (gpu or f not in GPU_ONLY)]
    if not forms and not options.peers:
        raise usage.UsageError(f"nothing to measure; forms: {', '.join(FORMS)} ({', '.join(GPU_ONLY)} need a GPU)")
    report.start(options.out, options.missing)
    dtypes, batches = options.dtype or ["float16" if gpu else "float32"], options.batch or ([64, 1] if gpu else [1])
    chosen = options.peers if options.peers is not None else EAGER_PEERS if gpu else ()
    failed = False
    for name in options.model:
        sizes = [32] if options.tiny else options.size or [SIZES.get(name, 224)]
        for size, dtype, batch in product(sizes, dtypes, batches):
            peers = [peer for peer, _ in peer_forms(size) if any(matches(peer, pattern) for pattern in chosen)]
            shape = (min(batch, 2) if options.tiny else batch, 3, size, size)
            failed |= _run_case(options, name, shape, getattr(torch, dtype), device, forms, peers)
    return int(failed)


def matches(peer: str, pattern: str) -> bool:
    """Whether a peer such as ``timm_compile/convnext_base``, or the network's name alone, matches a shell pattern."""
    return fnmatchcase(peer, pattern) or fnmatchcase(peer.split("/")[1], pattern)


def _run_case(
    options: argparse.Namespace, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device,
    forms: Sequence[str], peers: Sequence[str],
) -> bool:  # fmt: skip
    """Measure one case; whether something failed."""
    torch.manual_seed(0)
    try:
        model = (tiny_network() if options.tiny else create_model(name, device=device)).to(device)
    except ValueError as error:
        raise usage.UsageError(str(error)) from None
    images = torch.randn(shape, device=device, dtype=dtype)
    case = Case("tiny" if options.tiny else f"{name}-{shape[2]}", images, options.rounds)
    failed = False
    done = report.done(options.out, case.facts()) if options.missing else NOTHING
    with at_its_best():
        for row in measure(case, randomize_(model).eval(), forms, peers, done):
            failed |= not report.kept(options.out, [row])
            print(f"{report.table([row], COLUMNS)}\n", flush=True)
            failed |= row.get("gate") == "failed"
    usage.leave_if_lost(device)
    free(device)
    return failed


main = usage.as_program("network", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
