"""Modules: convolutions with their epilogue fused, and what a network for inference is built of."""

# pickled modules name the private classes here
from .dense import PointwiseConv2d, StemConv2d, _PointwiseConv2d, _StemConv2d  # noqa: F401
from .depthwise import DepthwiseConv2d, _DepthwiseConv2d  # noqa: F401
from .fused import ConvFFN2d, Stem2d
from .reparam import ReparamDepthwiseConv2d
from .units import ChannelAffine, ConvUnit, from_conv_bn

__all__ = ["ChannelAffine", "ConvFFN2d", "ConvUnit", "DepthwiseConv2d", "PointwiseConv2d", "ReparamDepthwiseConv2d",
           "Stem2d", "StemConv2d", "from_conv_bn"]  # fmt: skip
