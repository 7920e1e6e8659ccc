"""The ``lk-triton`` command: arguments in, exit code out. What a subcommand does lies in the module of its name.

Exit codes: 0 done; 1 done, but an image could not be read, a check failed or something could not be written; 2 wrong usage, or
no such device; 130 after Ctrl-C; 141 where nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .. import __version__, program
from ..ops.problem import ACTIVATIONS
from .options import CommandError

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Names in torch, and short ones; both are understood."""


class Parser(argparse.ArgumentParser):
    """argparse, with one-line errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of every subcommand; each sets ``command`` to the function that runs it."""
    parser = Parser(prog="lk-triton", description="Large-kernel depthwise convolution and RepLKNet.")
    parser.add_argument("--version", action="version", version=f"lk-triton {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _add_run(subparsers.add_parser("run", help="run a network on images and compare its forms"))
    _add_info(subparsers.add_parser("info", help="versions, compiler, device, and the algorithm each layer takes"))
    _add_inspect(subparsers.add_parser("inspect", help="compile for a GPU that need not be here, and say what came out"))
    _add_tune(subparsers.add_parser("tune", help="measure a network's layers on this GPU and remember what is fastest"))
    _add_cache(subparsers.add_parser("cache", help="what was measured: where it lies, list it, delete it"))
    _add_bench(subparsers.add_parser("bench", help="measure layers and networks against their peers, and plot it"))
    _add_erf(subparsers.add_parser("erf", help="effective receptive fields: heat maps, area ratios, a report"))
    _add_shape_bias(subparsers.add_parser("shape-bias", help="by shape or by texture: decisions on cue-conflict images"))
    _add_kernels(subparsers.add_parser("kernels", help="where the weight of the large kernels lies, before and after merging"))
    _add_study(subparsers.add_parser("study", help="what each step in kernel size costs, beside the published accuracies"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs a RepLKNet in its fused form on images. On the first batch it also checks the fused form against the training "
        "form and times both and the published form. Results go to stdout, progress to stderr."
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE|DIR", help="image files, and directories of them")
    parser.add_argument("--sample", action="store_true", help="add the photograph that scikit-image ships")
    parser.add_argument("--model", default="replknet_31b", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; without it they are random, seeded")
    parser.add_argument(
        "--size", type=_positive, default=224, metavar="N", help="input height and width; default: %(default)s"
    )
    parser.add_argument("--batch", type=_positive, default=8, metavar="N", help="images a batch; default: %(default)s")
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:0; default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", type=_dtype, metavar="T", help="fp32, fp16 or bf16; default: fp16 on cuda, else fp32")
    parser.add_argument("--features", metavar="OUT.safetensors", help="write the feature maps and logits of all images")
    parser.add_argument("--topk", type=_positive, default=5, metavar="K", help="classes an image; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_run)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compiles the configs with the best estimates for a target, and shows registers, spills, shared memory, occupancy, "
        "the main loop's matrix instructions and loads, and what the cost model predicts. Needs no GPU and no driver. Results "
        "go to stdout, progress to stderr."
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--device", metavar="D", help="h100, h200, a100, l4, rtx4090, rtx5090, b200 or mi300x")
    target.add_argument("--arch", metavar="A", help="such as sm_80, sm_90, sm_100 (for a100, h100, b200) or gfx942 (mi300x)")
    problem = parser.add_mutually_exclusive_group(required=True)
    problem.add_argument("--shape", type=_sizes(4), metavar="N,C,H,W", help="one problem's input")
    problem.add_argument("--model", metavar="NAME", help="every layer of a fused network")
    parser.add_argument("--kernel", type=_sizes(2), metavar="KH,KW", help="with --shape; padded by half of it")
    parser.add_argument("--stride", type=_positive, metavar="S", help="with --shape; default: 1")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="with --shape; fused behind the bias; default: none")
    parser.add_argument("--residual", action="store_true", help="with --shape; a fused residual")
    parser.add_argument("--batch", type=_positive, metavar="N", help="with --model")
    parser.add_argument("--size", type=_positive, metavar="N", help="with --model: input height and width")
    parser.add_argument("--dtype", type=_dtype, default="float16", metavar="T", help="fp16, bf16 or fp32; default: fp16")
    parser.add_argument("--algorithm", metavar="A", help="toeplitz, resident or direct; default: the best of them")
    parser.add_argument("--top", type=_positive, metavar="K", help="configs a problem; default: 3; with --model 1")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--sass", metavar="FILE", help="with --shape: write the disassembly of the best config")
    parser.set_defaults(command=_inspect)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures the most promising configs of every layer of a fused network on this machine's GPU, and saves the "
        "fastest right ones for all processes to come. Results go to stdout, progress to stderr."
    )
    parser.add_argument("--model", default="replknet_31b", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--batch", type=_positive, nargs="+", default=[1, 8, 64], metavar="N", help="default: 1 8 64")
    parser.add_argument("--size", type=_positive, nargs="+", default=[224], metavar="N", help="default: 224")
    parser.add_argument("--dtype", type=_dtype, nargs="+", default=["float16"], metavar="T", help="default: fp16")
    parser.add_argument("--device", metavar="D", help="such as cuda:1; default: the current GPU")
    parser.add_argument("--top", type=_positive, default=12, metavar="K", help="candidates a problem; default: %(default)s")
    parser.add_argument("--missing", action="store_true", help="leave out what is measured already")
    parser.add_argument("--seconds", type=_positive, metavar="S", help="start no other problem after so many seconds")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates with their estimates; needs no GPU")
    parser.add_argument("--arch", metavar="A", help="with --dry-run: for this architecture or GPU, such as sm_90 or h200")
    parser.add_argument("--json", action="store_true", help="print JSON objects, one a line, as results come")
    parser.set_defaults(command=_tune)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.description = "The measured plans on disk. LK_TRITON_CACHE_DIR moves them."
    parser.add_argument("action", choices=("path", "list", "clear"), help="where they lie; what there is; delete them")
    parser.add_argument("--device", metavar="NAME", help="with clear: only what was measured on it; cache list has its name")
    parser.add_argument("--yes", action="store_true", help="with clear: do delete; without it the files are only named")
    parser.set_defaults(command=_cache)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.description = "Versions, compiler and device, and the algorithm that each layer of RepLKNet-31B takes."
    parser.add_argument("--arch", metavar="A", help="explain for this architecture, such as sm_90, instead of this machine's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_info)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from .bench import add_arguments, bench

    add_arguments(parser)
    parser.set_defaults(command=bench)


def _add_models(parser: argparse.ArgumentParser) -> None:
    """The networks of a study and their weights."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="ours, timm's, or package.module:function")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="F", help="weights; MODEL=F with several models")
    parser.add_argument("--pretrained", action="store_true", help="let timm fetch the weights of its models")


def _add_erf(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "How much each pixel contributes to the centre of the last feature map, by the authors' published method. Writes heat "
        "maps, arrays and report.html; a run that was cut off goes on where it stopped."
    )
    _add_models(parser)
    parser.add_argument("--images", nargs="+", default=[], metavar="DIR", help="directories of images, and image files")
    parser.add_argument("--sample", action="store_true", help="add the photograph that scikit-image ships")
    parser.add_argument("--size", type=_positive, default=1024, metavar="N", help="height and width; default: %(default)s")
    parser.add_argument("--num", type=_positive, default=50, metavar="N", help="images at most; default: %(default)s")
    parser.add_argument("--out", default="erf", metavar="DIR", help="where the files go; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what another run left there")
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:0; default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.set_defaults(command=_erf)


def _add_shape_bias(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Of the decisions on images with the shape of one class and the texture of another, the share that goes by shape. "
        "Writes the plot, the decisions as CSV, and report.html."
    )
    _add_models(parser)
    parser.add_argument("--stimuli", required=True, metavar="DIR", help="images named such as cat7-elephant1.png")
    parser.add_argument("--size", type=_positive, default=224, metavar="N", help="height and width; default: %(default)s")
    parser.add_argument("--batch", type=_positive, default=16, metavar="N", help="images a batch; default: %(default)s")
    parser.add_argument("--out", default="shape-bias", metavar="DIR", help="where the files go; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what another run left there")
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:0; default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.set_defaults(command=_shape_bias)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Mean |w| per tap of each stage's depthwise kernels, before and after the branches are merged: pictures, the share of "
        "the central 3x3, the effective size. Writes kernels.csv, maps.npz, kernels.png and report.html."
    )
    parser.add_argument("models", nargs=1, metavar="MODEL", help="one of ours, of timm's, or package.module:function")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="F", help="weights; without them they are random")
    parser.add_argument("--pretrained", action="store_true", help="let timm fetch the weights of its models")
    parser.add_argument("--out", default="kernels", metavar="DIR", help="where the files go; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what another run left there")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.set_defaults(command=_kernels)


def _add_study(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(required=True, metavar="WHAT", parser_class=Parser)
    parser = subparsers.add_parser("kernel-size", help="RepLKNet-31B with kernels from 3x3 to 31x31")
    parser.description = (
        "Parameters, FLOPs, estimated and measured latency of RepLKNet-31B with kernels from 3x3 to 31x31, with our kernels "
        "and with torch's, beside the published accuracies. Writes kernel_size.csv, kernel_size.png and report.html."
    )
    parser.add_argument("--batch", type=_positive, metavar="N", help="images measured at once; default: 64 on a GPU, else 1")
    parser.add_argument("--size", type=_positive, default=224, metavar="N", help="height and width; default: %(default)s")
    parser.add_argument("--dtype", type=_dtype, metavar="T", help="fp32, fp16 or bf16; default: fp16 on cuda, else fp32")
    parser.add_argument("--device", metavar="D", help="where to measure; default: cuda where there is one, else cpu")
    parser.add_argument("--arch", metavar="A", help="estimate for it, such as sm_80 or h200; default: this GPU, else h100")
    parser.add_argument("--no-measure", action="store_true", help="count and estimate only")
    parser.add_argument("--out", default="kernel-size", metavar="DIR", help="where the files go; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what another run left there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_kernel_size)


def _run(arguments: argparse.Namespace) -> int:
    from .run import run

    return run(arguments)


def _info(arguments: argparse.Namespace) -> int:
    from .info import info

    return info(arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    from .inspect import inspect

    return inspect(arguments)


def _tune(arguments: argparse.Namespace) -> int:
    from .tune import tune

    return tune(arguments)


def _cache(arguments: argparse.Namespace) -> int:
    from .cache import cache

    return cache(arguments)


def _erf(arguments: argparse.Namespace) -> int:
    from .analysis.erf import erf

    return erf(arguments)


def _shape_bias(arguments: argparse.Namespace) -> int:
    from .analysis.shape_bias import shape_bias

    return shape_bias(arguments)


def _kernels(arguments: argparse.Namespace) -> int:
    from .analysis.kernels import kernels

    return kernels(arguments)


def _kernel_size(arguments: argparse.Namespace) -> int:
    from .analysis.study import kernel_size

    return kernel_size(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    def sizes(text: str) -> tuple[int, ...]:
        numbers = text.split(",")
        if len(numbers) != count:
            raise argparse.ArgumentTypeError(f"expected {count} positive integers with commas between, got {text!r}")
        return tuple(map(_positive, numbers))

    return sizes


def _dtype(text: str) -> str:
    for name, short in DTYPES.items():
        if text in (name, short):
            return name
    raise argparse.ArgumentTypeError(f"expected one of {', '.join((*DTYPES.values(), *DTYPES))}, got {text!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""

    def work() -> int:
        arguments = build_parser().parse_args(argv)
        try:
            return arguments.command(arguments)
        except CommandError as error:
            print(f"lk-triton: error: {error}", file=sys.stderr)
            return 2

    return program.run("lk-triton", work)

