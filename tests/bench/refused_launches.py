"""Ask Triton's launcher and tensor-map encoder, on the stub driver, for what a driver refuses: name -> what was refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from lk_triton.bench.stub import build
from lk_triton.bench.stub.pretend import become


@triton.jit
def copy(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def copy_tile(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tile = x.load([0, 0])
    i = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None]
    tl.store(out + i, tile)


def launcher(kernel: Any) -> Any:
    """The kernel, whose options are no arguments of the function."""
    return kernel


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        driver = become(build(Path(folder)))
        x, out = (torch.empty(1 << 20, device="cuda", dtype=torch.float16) for _ in range(2))

        def plain(*grid: int, warps: int = 1) -> None:
            launcher(copy)[grid](x, out, BLOCK=64, num_warps=warps)

        def described(columns: int = 64, box: int = 64, rows: int = 32, start: int = 0) -> None:
            tensor: Any = TensorDescriptor.__new__(TensorDescriptor)  # its own checks would refuse some before the driver
            tensor.base, tensor.shape, tensor.strides = x[start:], [rows, columns], [columns, 1]
            tensor.block_shape, tensor.padding, tensor.round_f32_to_tf32 = [16, box], "zero", False
            launcher(copy_tile)[(1,)](tensor, out, ROWS=16, COLUMNS=box)

        found = {}
        for name, call in {
            "right": lambda: (plain(3), described()),
            "grid": lambda: plain(1, 65536),
            "threads": lambda: plain(1, warps=64),
            "address": lambda: described(start=4),
            "stride": lambda: described(columns=36),
            "row": lambda: described(box=4),
            "empty": lambda: described(rows=0),
        }.items():
            try:
                call()
                found[name] = driver.take()[1]
            except Exception as error:
                found[name] = [*driver.take()[1], str(error)]
        print(json.dumps(found))


if __name__ == "__main__":
    main()
