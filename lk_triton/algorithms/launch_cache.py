"""Launching a kernel again without working everything out again, which costs the host several times what a launch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import KernelLaunch

Tensors = Mapping[str, Tensor | None]
"""All that a kernel reads and writes, by the name of its parameter."""

LIMIT = 4096
"""Launches remembered; beyond, all are forgotten."""

_known: dict[tuple[Any, ...], Relaunch] = {}


class Relaunch:
    """A compiled kernel with its arguments, to be launched on other tensors of the same strides and alignment.

    It keeps no tensor alive.
    """

    def __init__(self, launch: KernelLaunch, compiled: Any, tensors: Tensors) -> None:
        from triton import knobs
        from triton.runtime import driver

        self.compiled, self.launch = compiled, compiled.run
        self.hooks, self.stream_of = knobs.runtime, cast("Any", driver.active).get_current_stream
        self.grid = (*launch.grid, 1, 1)[:3]  # a compiled kernel wants all three
        self.args = [launch.args[name] for name in launch.kernel.arg_names]
        self.plain: list[tuple[int, str]] = []
        self.described: list[tuple[int, str, type[Any], dict[str, Any]]] = []
        for position, name in enumerate(launch.kernel.arg_names):
            argument = self.args[position]
            tensor = getattr(argument, "base", argument)
            if not isinstance(tensor, Tensor):
                continue
            given = tensors[name]
            assert given is not None
            assert given.data_ptr() == tensor.data_ptr(), f"{name} is launched on a copy, which is not made again"
            self.args[position] = None
            if tensor is argument:
                self.plain.append((position, name))
            else:
                self.described.append((position, name, type(argument), {**vars(argument), "base": None}))

    def run(self, tensors: Tensors, index: int | None) -> None:
        """Launch on the device with the number ``index`` and its current stream."""
        if index != torch.cuda.current_device():
            with torch.cuda.device(index):
                return self.run(tensors, index)
        args = self.args.copy()
        for position, name in self.plain:
            args[position] = tensors[name]
        for position, name, kind, facts in self.described:
            args[position] = descriptor = object.__new__(kind)  # whose constructor checks what was checked
            descriptor.__dict__.update(facts, base=tensors[name])
        self._launch(args, self.stream_of(index))
        return None

    def _launch(self, args: list[Any], stream: Any) -> None:
        """As Triton's JIT does at its end."""
        compiled, hooks = self.compiled, self.hooks
        enter, leave = _asked(hooks.launch_enter_hook), _asked(hooks.launch_exit_hook)
        metadata = None if enter is None else compiled.launch_metadata(self.grid, stream, *args)
        self.launch(*self.grid, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *args)


def _asked(hook: Any) -> Any:
    """A hook of Triton's, or None where nobody has set it: an empty chain of hooks would be called too."""
    return hook if getattr(hook, "calls", hook) else None


def signature(tensors: Tensors) -> tuple[Any, ...]:
    """What a launch depends on besides the problem: strides, and whether addresses are aligned."""
    return tuple([None if t is None else (t.stride(), t.data_ptr() % 16) for t in tensors.values()])


def launch_again(
    form: tuple[Any, ...], early: bool, tensors: Tensors, first: Callable[[], KernelLaunch], device: torch.device
) -> None:
    """Launch what ``first`` describes; the next time, its compiled kernel, on the ``tensors`` of that time.

    Args:
        form: what decides the launch together with the tensors' strides and alignment: algorithm, problem, config.
        early: whether it may start before the kernel in front of it has ended.
        tensors: in the same order each time.
        first: builds the launch from the same tensors.
        device: where they lie.
    """
    key = _key(form, early, tensors, device)
    known = _known.get(key)
    if known is not None:
        known.run(tensors, device.index)
        return
    launch = first()
    compiled = launch.run(device)
    if device.type == "cuda" and hasattr(compiled, "function"):
        if len(_known) >= LIMIT:
            _known.clear()
        _known[key] = Relaunch(launch, compiled, tensors)


def find(form: tuple[Any, ...], early: bool, tensors: Tensors, device: torch.device) -> Relaunch | None:
    """What ``launch_again`` with these arguments would repeat, if it has launched it."""
    return _known.get(_key(form, early, tensors, device))


def _key(form: tuple[Any, ...], early: bool, tensors: Tensors, device: torch.device) -> tuple[Any, ...]:
    return form, early, device.index, signature(tensors)
