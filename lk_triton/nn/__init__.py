"""Modules: convolutions with their epilogue fused, and what a network for inference is built of."""

from .layers import (  # noqa: F401  # pickled modules name the private ones here
    ChannelAffine,
    ConvUnit,
    DepthwiseConv2d,
    PointwiseConv2d,
    ReparamDepthwiseConv2d,
    StemConv2d,
    _DepthwiseConv2d,
    _PointwiseConv2d,
    _StemConv2d,
    from_conv_bn,
)

__all__ = ["ChannelAffine", "ConvUnit", "DepthwiseConv2d", "PointwiseConv2d", "ReparamDepthwiseConv2d",
           "StemConv2d", "from_conv_bn"]  # fmt: skip
