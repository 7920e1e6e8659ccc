"""The ``lk-triton`` command: arguments in, exit code out. COMMANDS names the module of each command.

Exit codes: 0 done; 1 done, but an image could not be read, a check failed or something could not be written; 2 wrong usage, or
no such device; 130 after Ctrl-C; 141 where nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from .. import __version__, program
from .options import UsageError

BENCH = {
    "conv": ("..bench.conv", "depthwise layers against every peer"),
    "network": ("..bench.network", "a whole network, fused against published"),
    "host": ("..bench.host", "what a call costs the host, against torch's convolution"),
    "plot": ("..bench.plot", "a roofline of what bench conv wrote"),
    "report": ("..bench.page", "what bench conv and bench network wrote, as one HTML page"),
    "model-error": ("..bench.model_error", "the cost model's estimates against what bench conv measured"),
    "adopt": ("..bench.adopt", "take over what a visit to a GPU measured, and write the figures of README and docs/"),
}
STUDY = {"kernel-size": (".analysis.kernel_size", "RepLKNet-31B with kernels from 3x3 to 31x31")}
COMMANDS = {
    "run": (".run", "run a network on images and compare its forms"),
    "info": (".info", "versions, compiler, device, and the algorithm each layer takes"),
    "inspect": (".inspect", "compile for a GPU that need not be here, and say what came out"),
    "tune": (".tune", "measure a network's layers on this GPU and remember what is fastest"),
    "cache": (".cache", "what was measured: where it lies, list it, delete it"),
    "bench": (BENCH, "measure layers and networks against their peers, and plot it"),
    "erf": (".analysis.erf", "effective receptive fields: heat maps, area ratios, a report"),
    "shape-bias": (".analysis.shape_bias", "by shape or by texture: decisions on cue-conflict images"),
    "kernels": (".analysis.kernels", "where the weight of the large kernels lies, before and after merging"),
    "study": (STUDY, "what each step in kernel size costs, beside the published accuracies"),
}
"""Name -> (module with ``add_arguments(parser)`` and ``run(arguments)``, or a table of commands of its own; what it does)."""


class Parser(argparse.ArgumentParser):
    """argparse, with one-line errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser(words: Sequence[str] | None = None) -> Parser:
    """The parser of the command line ``words``, or of all commands. Each sets ``run`` to the function that runs it.

    Only the command that ``words`` name is imported; the others have a name and a line of help.
    """
    parser = Parser(prog="lk-triton", description="Large-kernel depthwise convolution and RepLKNet.")
    parser.add_argument("--version", action="version", version=f"lk-triton {__version__}")
    names = None if words is None else [word for word in words if not word.startswith("-")]
    _add_commands(parser, COMMANDS, "COMMAND", names)
    return parser


def _add_commands(parser: Parser, commands: Mapping[str, Any], metavar: str, names: Sequence[str] | None) -> None:
    """A subparser a command. Those that ``names`` does not begin with get no arguments, unless it is None."""
    subparsers = parser.add_subparsers(required=True, metavar=metavar)
    for name, (module, text) in commands.items():
        subparser = subparsers.add_parser(name, help=text)
        if names is not None and names[:1] != [name]:
            continue
        if isinstance(module, Mapping):
            _add_commands(subparser, module, "WHAT", names and names[1:])
        else:
            command = import_module(module, __package__)
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""

    def work() -> int:
        words = sys.argv[1:] if argv is None else argv
        arguments = build_parser(words).parse_args(words)
        try:
            return arguments.run(arguments)
        except UsageError as error:
            print(f"lk-triton: error: {error}", file=sys.stderr)
            return 2

    return program.run("lk-triton", work)
