"""What the first call of each layer costs where nothing is cached and nothing is timed: choosing a config, and compiling.

For a GPU that need not be here. Seconds are CPU time of the process and its compilers, because the machine may be busy.
Reading the result back (cuobjdump, nvdisasm), which a call does not do, is part of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from lk_triton import gpu as gpus
from lk_triton.cli.networks import fused_problems
from lk_triton.planning.plan import plan
from lk_triton.planning.tuner import with_layers
from lk_triton.tools import inspector

from . import usage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--arch", default="h100", metavar="A", help="such as sm_80 or h200; default: %(default)s")
    parser.add_argument("--model", default="replknet_31b", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--batch", type=usage.positive, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", type=usage.positive, default=224, metavar="N", help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Print one JSON object a layer: problem, source of its plan, registers, kernels that were compiled, seconds."""
    if gpus.interpreted():
        raise usage.UsageError("interpreted kernels are not compiled: unset TRITON_INTERPRET")
    gpu = usage.gpu_for(options.arch)
    (posed,) = fused_problems(options.model, [options.batch], [options.size], ["float16"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for problem in with_layers(posed):
            kernels, start = _compiled(folder), sum(os.times()[:4])
            chosen = plan(problem, gpu)  # of cublas, its epilogue is compiled
            report = inspector.compile_launch(inspector.meta_launch(problem, chosen.algorithm, chosen.config), gpu.name)
            row = {"problem": str(problem), "source": chosen.source, "registers": report.registers}
            row |= {"kernels": _compiled(folder) - kernels, "seconds": round(sum(os.times()[:4]) - start, 2)}
            print(json.dumps(row), flush=True)
    return 0


def _compiled(folder: str) -> int:
    """Kernels in Triton's cache."""
    return sum(1 for _ in Path(folder).rglob("*.cubin"))


main = usage.as_program("first_call", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
