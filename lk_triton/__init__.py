"""Large-kernel depthwise convolution on GPUs, in Triton, and RepLKNet on top of it.

    >>> import torch, lk_triton
    >>> x, w = torch.randn(1, 8, 32, 32), torch.randn(8, 1, 31, 31)
    >>> lk_triton.depthwise_conv2d(x, w, activation="relu").shape
    torch.Size([1, 8, 32, 32])

Importing this package touches no GPU and does not import Triton. ``lk_triton.models`` has the networks.
"""

from . import _moved, nn
from .functional import Explanation, conv_ffn, conv_stem, dense_conv2d, depthwise_conv2d, explain, pointwise_conv2d, tune
from .graph import Graph, graph
from .log import logger
from .ops import flops
from .planning.plan import Plan, use

__version__ = "0.1.0"

_moved.install()
flops.register()

__all__ = [
    "Explanation", "Graph", "Plan", "conv_ffn", "conv_stem", "dense_conv2d", "depthwise_conv2d", "explain", "graph", "logger",
    "nn", "pointwise_conv2d", "tune", "use",
]  # fmt: skip
