"""An H100 in this process that computes nothing: tensors with addresses and without values, on the stub driver.

CUDA tensors are torch's fake tensors: shapes, strides and aliases are true, and nothing is allocated or computed. What this
adds is their addresses, and that the ops of this library do not stop at the shapes: their implementation runs, with Triton's
launcher at its end. CPU tensors stay real.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from lk_triton.planning import accuracy

from .driver import NAME, Driver

LOWEST_ADDRESS = 1 << 40
"""No number that a launch is passed is as large."""

ALIGNED = 512
"""Bytes: what torch's allocator aligns memory on a GPU to."""

MILLISECONDS = 1000.0
"""Between any two events: long enough that one call makes a round of every timer."""


def become(library: Path) -> Driver:
    """Make this process one on a machine with an H100, until it ends. TRITON_INTERPRET must be unset.

    Args:
        library: what ``build`` built.
    """
    driver = machine(library)
    mode = Valueless(allow_non_fake_inputs=True)
    _torch()
    _accuracy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # CUDA's runtime finds the driver too old
        mode.__enter__()
    return driver


def machine(library: Path) -> Driver:
    """The GPU alone: what ``torch.cuda`` and Triton ask about it, and no tensors on it."""
    os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
    driver = Driver(library)
    _cuda(driver.properties())
    _triton()
    return driver


class Valueless(FakeTensorMode):
    """Fake CUDA tensors, real CPU tensors, and the implementation of this library's ops.

    Whoever reads a number from a CUDA tensor gets 1, and tensors that are compared are equal.
    """

    @property
    def avoid_device_init(self) -> bool:
        """CUDA's runtime is not asked: it knows that there is no GPU."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, FakeTensor) or _on_gpu(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        if func.namespace == "lk_triton":
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return func(torch.ones((), dtype=args[0].dtype)) if args[0].dtype != torch.bool else False
        if func is torch.ops.aten.equal.default:
            return True
        if "generator" in kwargs:
            kwargs = kwargs | {"generator": None}  # of a CPU, as there is no other
        return super().__torch_dispatch__(func, types, args, kwargs)


def _on_gpu(leaf: object) -> bool:
    return isinstance(leaf, torch.device) and leaf.type == "cuda"


class _Addresses:
    """Each storage has memory of its own, for good: what is launched with an address of before is seen to be."""

    def __init__(self) -> None:
        self._next = LOWEST_ADDRESS

    def of(self, tensor: torch.Tensor) -> int:
        storage: Any = tensor.untyped_storage()
        if not hasattr(storage, "_lk_triton_address"):
            storage._lk_triton_address = self._next
            self._next += -(-max(storage.nbytes(), 1) // ALIGNED) * ALIGNED
        start: int = storage._lk_triton_address
        return start + int(tensor.storage_offset()) * tensor.element_size()


class _Idle:
    """What a stream, an event and a CUDA graph have in common here: nothing waits, and nothing is run again."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any) -> None:
        pass

    record = replay = reset = synchronize = wait = wait_event = wait_stream = record_event = _nothing


class _Stream(_Idle):
    cuda_stream = 0


class _Event(_Idle):
    def elapsed_time(self, end: Any) -> float:
        return MILLISECONDS


class _Generator(torch.Generator):
    """Of a CPU, wherever it is asked for."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]


@contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _submit(pool: Any, fn: Any, /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
    """Do at once what a pool of threads is asked for: the mode of fake tensors is that of one thread."""
    done: futures.Future[Any] = futures.Future()
    try:
        done.set_result(fn(*args, **kwargs))
    except Exception as error:
        done.set_exception(error)
    return done


def _swap(one: torch.Tensor, two: torch.Tensor) -> None:
    """``torch.utils.swap_tensors`` without its check: something or other always refers to a fake tensor."""
    first: Any = one
    second: Any = two
    first.__dict__, second.__dict__ = second.__dict__, first.__dict__
    torch._C._swap_tensor_impl(one, two)


def _no_profiler(*_: Any, **__: Any) -> Any:
    raise RuntimeError("nothing runs that could be profiled")


def _torch() -> None:
    """What of torch, and of Python, does not get along with fake tensors."""
    torch.utils.swap_tensors = _swap
    torch.compile = lambda model, *_, **__: model  # it would make fake tensors of its own
    torch.profiler.profile = _no_profiler
    futures.ThreadPoolExecutor.submit = _submit


def _cuda(properties: Any) -> None:
    """``torch.cuda`` and what else asks for a GPU, as far as this library does."""
    addresses = _Addresses()
    FakeTensor.data_ptr = lambda tensor: addresses.of(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_properties": lambda device=None: properties,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_snapshot": lambda *_: [],
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: False,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": _Idle,
        "graph": _nothing,
        "stream": _nothing,
        "device": _nothing,
    }.items():
        setattr(torch.cuda, name, value)
    torch.Generator = _Generator  # pyright: ignore[reportAttributeAccessIssue]


def _accuracy() -> None:
    """What has no values may be timed, and is neither right nor wrong."""
    verdict: Any = accuracy.Verdict
    verdict.ok, verdict.gate = True, "not computed"
    accuracy.judge = lambda *_, **__: accuracy.Verdict(float("nan"), float("nan"), float("nan"))


def _triton() -> None:
    """Triton's own CUDA driver, on the library that is loaded."""
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    found: Any = CudaDriver()
    found.get_current_stream = lambda device: 0  # not torch's C function, which asks the real driver
    driver.set_active(found)
