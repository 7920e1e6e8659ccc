"""A forward of RepLKNet-31B on the stub driver, timed: all that the host does for it, and nothing else.

    python -m lk_triton.bench.stub.eager

Fake tensors would cost the host more than the launches do. Here CUDA tensors are torch's own, with an address and without
memory: an allocation takes about as long as from torch's allocator. The three operations of the network that are not this
library's (a mean, an affine map, the head's product) return such tensors too. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lk_triton.bench.rounds import ROUNDS, fastest
from lk_triton.models import RepLKNet, create_model
from lk_triton.planning import verify

from . import build
from .pretend import ALIGNED, LOWEST_ADDRESS, machine

WARM_UP = 10

TINY = partial(RepLKNet, (31, 13), layers=(1, 1), channels=(64, 128), small_kernel=5)
"""Few kernels, that compile in seconds."""

GPU = torch.device("cuda", 0)


BLOCK = ALIGNED << 20
"""Bytes: more than any tensor has."""


class Memory:
    """Hands out addresses."""

    def __init__(self) -> None:
        self._addresses = count(LOWEST_ADDRESS, BLOCK)

    def tensor(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A CUDA tensor whose memory nobody may touch."""
        storage = torch._C._construct_storage_from_data_pointer(next(self._addresses), GPU, BLOCK)
        facts = {"device": GPU, "dtype": dtype, "size": shape, "stride": strides, "storage_offset": 0}
        return torch._C._construct_CUDA_Tensor_From_Storage_And_Metadata(facts, storage)

    def like(self, meta: Tensor) -> Tensor:
        """The same on the GPU."""
        return self.tensor(meta.shape, meta.stride(), meta.dtype)


def replace_torch(memory: Memory) -> None:
    """Have torch allocate from ``memory``, and compute only the shapes of what would run its own kernels."""
    empty, empty_strided = torch.empty, torch.empty_strided

    def ours(device: Any) -> bool:
        return device == GPU or (device is not None and torch.device(device).type == "cuda")

    def strided(shape: Any, strides: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        if not ours(device):
            return empty_strided(shape, strides, dtype=dtype, device=device, **options)
        return memory.tensor(shape, strides, dtype)

    def dense(*shape: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        if not ours(device):
            return empty(*shape, dtype=dtype, device=device, **options)
        if type(shape[0]) is int and len(shape) == 1:
            return memory.tensor(shape, (1,), dtype)
        return memory.like(empty(*shape, dtype=dtype, device="meta", **options))

    torch.empty, torch.empty_strided = dense, strided  # pyright: ignore[reportAttributeAccessIssue]
    torch.Tensor.mean = lambda x, dims: memory.tensor(x.shape[:2], (x.shape[1], 1), x.dtype)  # pyright: ignore
    torch.addcmul = lambda bias, x, weight: memory.like(x)  # pyright: ignore[reportAttributeAccessIssue]
    torch.mm = lambda a, b, *, out: out  # pyright: ignore[reportAttributeAccessIssue]
    F.linear = lambda x, w, b=None: memory.tensor((x.shape[0], w.shape[0]), (w.shape[0], 1), x.dtype)  # pyright: ignore


def network(memory: Memory, tiny: bool) -> RepLKNet:
    """The fused network."""
    options: dict[str, Any] = {"fused": True, "device": "meta", "dtype": torch.float16}
    model = TINY(**options) if tiny else create_model("replknet_31b", **options)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(memory.like(parameter), requires_grad=False))
    return model.eval()


@torch.inference_mode()
def main() -> None:
    """Time it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="a tiny network, two images")
    options = parser.parse_args()
    os.environ[verify.VARIABLE] = "0"  # nothing computes
    torch.set_num_threads(1)
    small, weight, bias = torch.randn(1, 8, 4, 4), torch.randn(8, 8, 3, 3), torch.randn(8)
    with tempfile.TemporaryDirectory() as folder:
        driver = machine(build(Path(folder)))
        memory = Memory()
        replace_torch(memory)
        shape = (2 if options.tiny else 1, 3, 224, 224)
        model, images = network(memory, options.tiny).prepare(shape), memory.like(torch.empty(shape, dtype=torch.float16))
        for _ in range(WARM_UP):
            model(images)
        driver.take()
        model(images)
        launches, refused = driver.take()
        if refused:
            raise SystemExit(f"the driver refused: {refused[0]}")
        driver.record(False)
        forward, unit = (lambda: model(images)), (lambda: F.conv2d(small, weight, bias, padding=1))
        seconds, unit_seconds = fastest([forward, unit], options.rounds)
    print(json.dumps({"seconds": seconds, "unit_seconds": unit_seconds, "launches": len(launches)}))


if __name__ == "__main__":
    main()
