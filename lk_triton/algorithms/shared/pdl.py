"""Programmatic dependent launch: a kernel's programs are put on the SMs while the kernel before it in the stream still runs.

CUDA programming guide, "Programmatic Dependent Launch and Synchronization"; sm_90 and newer.
"""

import triton
import triton.language as tl


@triton.jit
def follow(PDL: tl.constexpr):
    """Wait until the kernel before this one has ended and its stores are visible, and let the kernel behind this one start.

    The first statement of a kernel: before it nothing may be read that an earlier kernel writes, nor written that one reads.
    The kernel before has waited in the same way, so that all earlier ones have ended too.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
