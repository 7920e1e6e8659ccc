"""The same input many times through the same kernel: every output bit for bit the first one, and that one right.

A kernel whose warps are synchronised by hand may be right nearly always. By default ``toeplitz_hopper`` on the four layers of
RepLKNet-31B: with Triton 3.6 it has no fence between copies and products.
"""

from __future__ import annotations

import argparse

import torch

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import with_prepacked
from lk_triton.ops.problem import DenseProblem, Epilogue, Operands, Problem
from lk_triton.planning.accuracy import Gate
from lk_triton.planning.plan import plan

from . import report, usage
from .cases import cases, select, tiny
from .providers import config_to_json

COLUMNS = ("kernel_name", "algorithm", "calls", "different", "error", "gate", "note")
POINTWISE = DenseProblem(
    1, 512, 14, 14, 2048, layout="channel_major", out_layout="channel_major", epilogue=Epilogue(True, "gelu")
)  # fmt: skip
"""A 1x1 convolution of one image: of RepLKNet-31B's third stage."""


@torch.inference_mode()
def repeat(name: str, problem: Problem, algorithm: str, calls: int, device: torch.device) -> report.Row:
    """How many of ``calls`` outputs differ from the first, and whether that is right by the accuracy gate."""
    row: report.Row = {"kernel_name": name, "algorithm": algorithm, "calls": calls}
    try:
        chosen = plan(problem, gpus.of(device), algorithm)
    except ValueError as error:
        return row | {"gate": "failed", "note": str(error)}
    found = registry.get(chosen.algorithm)
    gate = Gate(problem, device)
    operands = with_prepacked(found, problem, chosen.config, gate.operands)

    def call(_: Operands = operands) -> torch.Tensor:
        return found.launch(problem, chosen.config, operands)

    verdict = gate.check(call)
    first = call()
    different = sum(not torch.equal(call(), first) for _ in range(calls - 1))
    row |= {"algorithm": chosen.algorithm, "different": different, "error": f"{verdict.error:.2e}"}
    row |= {"gate": verdict.gate, "note": config_to_json(chosen)}
    return row if different == 0 else row | {"gate": "failed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--cases", nargs="+", default=["31b-224-*-n64"], metavar="PATTERN", help="as of bench conv")
    parser.add_argument("--pointwise", action="store_true", help="a 1x1 convolution of one image too")
    parser.add_argument("--algorithm", default="toeplitz_hopper", metavar="A", help="or auto; default: %(default)s")
    parser.add_argument("--calls", type=usage.positive, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--dtype", type=usage.dtype, default="float16", metavar="T", help="fp16, bf16 or fp32; default: fp16")
    usage.add_device(parser)
    parser.add_argument("--tiny", action="store_true", help="shrink the cases to what Triton's interpreter can do")


def run(options: argparse.Namespace) -> int:
    """Call and compare. Exit code 1 where an output differs or is wrong."""
    device = usage.torch_device(options.device)
    chosen: dict[str, Problem] = {}
    for name, problem in select(cases(options.dtype), options.cases).items():
        chosen[name] = tiny(problem) if options.tiny else problem
    if options.pointwise:
        chosen["1x1-512-2048-n1"] = POINTWISE
    if not chosen:
        raise usage.UsageError(f"nothing to call; cases: {', '.join(cases())}")
    rows = [repeat(name, problem, options.algorithm, options.calls, device) for name, problem in chosen.items()]
    print(report.table(rows, COLUMNS), flush=True)
    return int(any(row["gate"] == "failed" for row in rows))


main = usage.as_program("repeat", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
