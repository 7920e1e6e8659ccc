"""The published RepLKNets and the variants of the paper's study of kernel sizes (its table 5).

Every factory takes the arguments of ``RepLKNet``; what is given replaces what the variant says.
"""

from __future__ import annotations

from typing import Any

from .registry import register
from .replknet import RepLKNet


@register
def replknet_31b(**kwargs: Any) -> RepLKNet:
    """RepLKNet-31B: 79.9 M parameters."""
    return RepLKNet(**kwargs)


@register
def replknet_31l(**kwargs: Any) -> RepLKNet:
    """RepLKNet-31L: 172.7 M parameters."""
    return RepLKNet(**{"channels": (192, 384, 768, 1536), **kwargs})


@register
def replknet_xl(**kwargs: Any) -> RepLKNet:
    """RepLKNet-XL: 335.4 M parameters, no small kernels. Its images are normalized with mean = std = 0.5."""
    xl = {"large_kernel_sizes": (27, 27, 27, 13), "channels": (256, 512, 1024, 2048), "small_kernel": None, "dw_ratio": 1.5}
    return RepLKNet(**{**xl, **kwargs})


@register
def replknet_3(**kwargs: Any) -> RepLKNet:
    """31B with 3x3 kernels everywhere, no small kernels."""
    return RepLKNet(**{"large_kernel_sizes": (3, 3, 3, 3), "small_kernel": None, **kwargs})


@register
def replknet_7(**kwargs: Any) -> RepLKNet:
    """31B with 7x7 kernels."""
    return RepLKNet(**{"large_kernel_sizes": (7, 7, 7, 7), **kwargs})


@register
def replknet_13(**kwargs: Any) -> RepLKNet:
    """31B with 13x13 kernels, upstream's second network for effective receptive fields."""
    return RepLKNet(**{"large_kernel_sizes": (13, 13, 13, 13), **kwargs})


@register
def replknet_25(**kwargs: Any) -> RepLKNet:
    """31B with kernels 25, 25, 25, 13."""
    return RepLKNet(**{"large_kernel_sizes": (25, 25, 25, 13), **kwargs})
