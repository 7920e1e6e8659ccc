"""``lk-triton bench``: the programs in ``bench/`` as subcommands."""

from __future__ import annotations

import argparse

from ..bench import adopt, conv, host, model_error, network, page, plot
from ..bench.usage import UsageError
from .options import CommandError

PROGRAMS = {
    "conv": (conv, "depthwise layers against every peer"),
    "network": (network, "a whole network, fused against published"),
    "host": (host, "what a call costs the host, against torch's convolution"),
    "plot": (plot, "a roofline of what bench conv wrote"),
    "report": (page, "what bench conv and bench network wrote, as one HTML page"),
    "model-error": (model_error, "the cost model's estimates against what bench conv measured"),
    "adopt": (adopt, "take over what a visit to a GPU measured, and write the figures of README and docs/"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``lk-triton bench``."""
    parser.description = "Measures, and shows what was measured. Correctness comes first: a wrong result gets no figure."
    subparsers = parser.add_subparsers(required=True, metavar="WHAT")
    for name, (program, text) in PROGRAMS.items():
        subparser = subparsers.add_parser(name, help=text)
        program.add_arguments(subparser)
        subparser.set_defaults(program=program)


def bench(arguments: argparse.Namespace) -> int:
    """Run the chosen program; returns its exit code."""
    try:
        return arguments.program.run(arguments)
    except UsageError as error:
        raise CommandError(str(error)) from None
