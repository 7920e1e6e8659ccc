"""Compile kernels that show where the windows of ``toeplitz_hopper`` lie, where TRITON_INTERPRET is unset:
``python -m tests.algorithms.toeplitz_hopper_windows``."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from lk_triton.algorithms.depthwise.toeplitz_hopper.kernel import _owner, _shared, _window


@gluon.jit
def copy_window(x, out, i, COUNT: gl.constexpr, R: gl.constexpr, WT: gl.constexpr, K: gl.constexpr, PLAIN: gl.constexpr):
    """Window i of x [COUNT, R * WT, K], whose windows do not overlap, by way of shared memory to out [R * WT, K].

    PLAIN: windows are allocated as such and indexed by i; otherwise window i is what ``_window`` makes of block i * R.
    """
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [gl.num_warps(), 1], [1, 0])
    row = gl.arange(0, R * WT, gl.SliceLayout(1, layout))
    column = gl.arange(0, K, gl.SliceLayout(0, layout))
    offset = gl.expand_dims(row * K, 1) + gl.expand_dims(column, 0)  # [R * WT, K]
    if PLAIN:
        t = gl.allocate_shared_memory(x.dtype.element_ty, [COUNT, R * WT, K], _shared(K))
    else:
        t = gl.allocate_shared_memory(x.dtype.element_ty, [COUNT * R, WT, K], _owner(R, WT, K))
    for j in range(COUNT):
        window = t.index(j) if PLAIN else _window(t, j * R, R, WT, K)
        window.store(gl.load(x + j * (R * WT * K) + offset))
    window = t.index(i) if PLAIN else _window(t, i * R, R, WT, K)
    gl.store(out + offset, window.load(layout))


def compiled(r: int, wt: int, k: int, plain: bool) -> Any:
    constants = {"COUNT": 5, "R": r, "WT": wt, "K": k, "PLAIN": plain}
    types = {"x": "*fp16", "out": "*fp16", "i": "i32"} | dict.fromkeys(constants, "constexpr")
    return triton.compile(GluonASTSource(copy_window, types, constants), target=GPUTarget("cuda", 90, 32))


if __name__ == "__main__":
    triton.knobs.compilation.disable_line_info = True
    for shape in ((8, 32, 32), (8, 32, 16), (16, 16, 64), (4, 16, 32), (8, 8, 16)):
        plain, sliding = compiled(*shape, plain=True), compiled(*shape, plain=False)
        assert sliding.metadata.shared == plain.metadata.shared, shape
        assert sliding.asm["ptx"] == plain.asm["ptx"], shape
        print(*shape)
