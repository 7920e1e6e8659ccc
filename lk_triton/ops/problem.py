"""Every kind of problem, and what ``base.py`` has for them."""

from .base import (
    ACTIVATIONS,
    ITEMSIZE,
    KINDS,
    PRECISIONS,
    Chain,
    Convolution,
    Epilogue,
    Operands,
    Problem,
    Spec,
    activate,
    convolve,
    operands_of,
    output_size,
    pair,
    same_padding,
)
from .dense import DenseProblem
from .depthwise import ConvProblem
from .ffn import FfnProblem
from .stem import StemProblem

__all__ = [
    "ACTIVATIONS", "ITEMSIZE", "KINDS", "PRECISIONS", "Chain", "ConvProblem", "Convolution", "DenseProblem", "Epilogue",
    "FfnProblem", "Operands", "Problem", "Spec", "StemProblem", "activate", "convolve", "operands_of", "output_size", "pair",
    "same_padding",
]  # fmt: skip
