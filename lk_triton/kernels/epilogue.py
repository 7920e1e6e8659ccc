"""The epilogue's activation, shared by every kernel."""

import triton
import triton.language as tl


@triton.jit
def activate(acc, ACTIVATION: tl.constexpr):
    """``acc`` (any shape, float32) through None, "relu", "gelu" (exact: x * Phi(x)) or "silu" (x * sigmoid(x))."""
    if ACTIVATION == "relu":
        # not tl.maximum: NaN must stay NaN, as in torch
        acc = tl.where(acc < 0.0, 0.0, acc)
    elif ACTIVATION == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    elif ACTIVATION == "silu":
        acc = acc / (1.0 + tl.exp(-acc))
    return acc
