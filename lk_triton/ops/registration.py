"""One registration for every op: implementation, fake kernel, autograd and autocast rules, from its schema and its problem.

The plan is looked up inside the implementation, never while tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..algorithms import registry
from ..planning import verify
from ..planning.autotune import may_tune, plan_for_call
from . import layout, second_call, transforms
from .base import Convolution, Operands, Problem, activate, convolve, operands_of
from .validation import autocast_dtype

AUTOCAST_KEYS = {"cuda": "AutocastCUDA", "cpu": "AutocastCPU"}
OF_PLANNING = ("bank", "bank_format", "algorithm")
"""Arguments that say how to compute, not what."""

Arguments = Mapping[str, Any]
"""Of a call, by name."""

Backward = Callable[[Problem, Operands, Tensor, Sequence[str]], Mapping[str, Tensor | None]]
"""(problem, saved operands, gradient of the output, roles whose gradient is wanted) -> their gradients."""

OPS: dict[Any, Op] = {}
"""Every registered op, by torch's."""

_library = torch.library.Library("lk_triton", "FRAGMENT")


class Op:
    """A registered op.

    Attributes:
        op: torch's.
        names: of its arguments, in order.
        roles: those of them that are operands.
    """

    def __init__(
        self,
        op: Any,
        problem_of: Callable[..., Problem],
        validate: Callable[..., Arguments],
        backward: Backward,
        by_layers: Callable[..., Tensor] | None,
    ) -> None:
        self.op, self._problem_of, self._validate, self._backward, self._by_layers = (
            op, problem_of, validate, backward, by_layers,
        )  # fmt: skip
        self.names = tuple(argument.name for argument in op._schema.arguments)
        tensors = (argument.name for argument in op._schema.arguments if "Tensor" in str(argument.type))
        self.roles = tuple(name for name in tensors if name not in OF_PLANNING)

    def __call__(self, **given: Any) -> Tensor:
        """A call of the public function: validated, and differentiable; at once, where it is one that was made before.

        Raises:
            TypeError, ValueError: what the public function documents.
        """
        key = second_call.key(self, given)
        if key is not None and (known := second_call.find(key)) is not None:
            return known.run({role: given[name] for role, name in known.reads})
        arguments = self.validated(given)
        algorithm, operands = arguments["algorithm"], self.operands(arguments)
        if algorithm != "auto":
            registry.get(algorithm)
        if key is not None:
            bank, bank_format = arguments.get("bank"), arguments.get("bank_format")
            return run(self.problem(arguments), operands, algorithm, bank, bank_format, key)
        if transforms.active(*operands.values(), algorithm=algorithm):
            return transforms.compute(self.problem(arguments), operands)
        if needs_grad(operands):
            check_gradients(algorithm)
            return self.differentiable(arguments)
        return self.op(*arguments.values())

    def differentiable(self, arguments: Arguments) -> Tensor:
        """By torch: the op without its epilogue, which follows as torch's operations; of a chain, layer after layer."""
        if self._by_layers is not None:
            return self._by_layers(**arguments)
        plain = {"algorithm": "torch", "bank": None, "bank_format": None, "activation": None, "residual": None}
        y = activate(self.op(*(plain.get(name, value) for name, value in arguments.items())), arguments.get("activation"))
        residual = arguments.get("residual")
        return y if residual is None else y + residual.to(y.dtype)

    def validated(self, given: Arguments) -> dict[str, Any]:
        """The arguments of a public call as the schema has them, those that were not given None."""
        checked = self._validate(**{name: value for name, value in given.items() if name not in OF_PLANNING})
        return {**dict.fromkeys(self.names), **given, **checked}

    def posed(self, **given: Any) -> Problem:
        """The problem that a call of the public function poses, under autocast too."""
        return self.problem(self.cast(self.validated(given)))

    def arguments(self, args: Sequence[Any], kwargs: Arguments | None = None) -> dict[str, Any]:
        """Those of a call of torch's op, by name; lists are tuples."""
        given = dict(zip(self.names, args, strict=False)) | dict(kwargs or {})
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def problem(self, arguments: Arguments) -> Problem:
        """What they pose."""
        return self._problem_of(**{name: value for name, value in arguments.items() if name not in OF_PLANNING})

    def operands(self, arguments: Arguments) -> Operands:
        """The tensors among them that are there."""
        return operands_of(**{role: arguments[role] for role in self.roles})

    def cast(self, arguments: Arguments) -> dict[str, Any]:
        """As autocast has them: every tensor in its dtype; a bank in another one is not used, nor is ``precision``, which is
        for float32 only."""
        values = dict(arguments)
        x = values[self.roles[0]]
        dtype = autocast_dtype(x) or x.dtype
        if values.get("bank") is not None and values["bank"].dtype != dtype:
            values["bank"] = values["bank_format"] = None
        if dtype != torch.float32 and "precision" in values:
            values["precision"] = None
        return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in values.items()}

    def implementation(self, *args: Any, **kwargs: Any) -> Tensor:
        """Plan and launch."""
        given = self.arguments(args, kwargs)
        problem, operands = self.problem(given), self.operands(given)
        return run(problem, operands, given["algorithm"], given.get("bank"), given.get("bank_format"))

    def fake(self, *args: Any, **kwargs: Any) -> Tensor:
        """A tensor like the output, where nothing is computed."""
        given = self.arguments(args, kwargs)
        output = self.problem(given).output()
        return layout.empty(output.shape, output.layout, given[self.roles[0]])

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass reads; a residual, whose gradient is that of the output, is not."""
        given = self.arguments(inputs)
        operands = self.operands(given)
        ctx.problem, ctx.present = self.problem(given), tuple(operands)
        ctx.saved = tuple(role for role in operands if role != "residual")
        ctx.save_for_backward(*(operands[role] for role in ctx.saved))

    def backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all arguments."""
        needed = dict(zip(self.names, ctx.needs_input_grad, strict=True))
        wanted = [role for role in ctx.saved if needed[role]]
        found = dict(self._backward(ctx.problem, dict(zip(ctx.saved, ctx.saved_tensors, strict=True)), grad, wanted))
        if "residual" in ctx.present and needed["residual"]:
            found["residual"] = grad
        return tuple(found.get(name) for name in self.names)

    def autocast(self, device_type: str) -> Callable[..., Tensor]:
        """The rule for devices of that type."""

        def rule(_: Any, *args: Any, **kwargs: Any) -> Tensor:
            values = self.cast(self.arguments(args, kwargs))
            with torch.amp.autocast(device_type, enabled=False):
                return self.op(*values.values())

        return rule


def register(
    schema: str,
    problem_of: Callable[..., Problem],
    *,
    validate: Callable[..., Arguments] = lambda **_: {},
    backward: Backward | None = None,
    by_layers: Callable[..., Tensor] | None = None,
) -> Op:
    """Register an op of the library ``lk_triton``.

    Args:
        schema: as ``torch.library`` wants it, without a namespace. Its tensors are the problem's operands, by their roles; it
            has an argument ``algorithm``, and may have a prepacked weight as ``bank`` with its ``bank_format``.
        problem_of: the arguments by name, but for these three -> the problem.
        validate: checks the arguments of a public call, by name, and returns those that the schema has in another form.
        backward: by default the derivative of ``problem.reference``. A residual needs none.
        by_layers: computes a chain by the ops of its layers, where a gradient is needed.
    """
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.needs_exact_strides,))
    op = getattr(torch.ops.lk_triton, name).default
    made = OPS[op] = Op(op, problem_of, validate, backward or differentiate_reference, by_layers)
    _library.impl(name, made.implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lk_triton::{name}", made.fake, lib=_library)
    torch.library.register_autograd(
        f"lk_triton::{name}", made.backward, setup_context=made.setup_context, lib=_library
    )
    for device_type, key in AUTOCAST_KEYS.items():
        _library.impl(name, made.autocast(device_type), key, with_keyset=True)
    return made


def needs_grad(operands: Operands) -> bool:
    """Whether a call is to be differentiated."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in operands.values())


def check_gradients(algorithm: str) -> None:
    """Raise ValueError where a call that is to be differentiated forces an algorithm other than torch's."""
    if algorithm not in ("auto", "torch"):
        raise ValueError(
            f"algorithm={algorithm!r} has no gradients yet: use algorithm='auto' (which takes torch where a gradient "
            "is needed), or call it under torch.no_grad() or torch.inference_mode()"
        )


def differentiate_reference(
    problem: Problem, operands: Operands, grad: Tensor, wanted: Sequence[str]
) -> Mapping[str, Tensor | None]:
    """By torch's own rules."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = {role: tensor.view_as(tensor) for role, tensor in operands.items()}  # whatever they depend on is not ours
        y = problem.reference(inputs)
    grads = torch.autograd.grad(y, [inputs[role] for role in wanted], grad, create_graph=again)
    return dict(zip(wanted, grads, strict=True))


def differentiate_convolution(
    problem: Any, operands: Operands, grad: Tensor, wanted: Sequence[str]
) -> Mapping[str, Tensor | None]:
    """By torch's formula; the value before the activation is computed again, not stored."""
    x, weight, bias = operands["x"], operands["weight"], operands.get("bias")
    grads = torch.ops.aten.convolution_backward(
        before_activation(grad, problem, x, weight, bias), x, weight, None if bias is None else [bias.shape[0]],
        problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.groups,
        [role in wanted for role in ("x", "weight", "bias")],
    )  # fmt: skip
    return dict(zip(("x", "weight", "bias"), grads, strict=True))


def before_activation(grad: Tensor, problem: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The gradient of the value before the activation, which is computed again."""
    activation = problem.epilogue.activation
    if activation is None:
        return grad
    before = convolve(problem, x, weight, bias)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, before, 0)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, before)
    share = torch.sigmoid(before)  # aten.silu_backward itself has no derivative
    return grad * share * (1 + before * (1 - share))


_packing_forbidden: ContextVar[bool] = ContextVar("lk_triton_packing_forbidden", default=False)


@contextmanager
def no_packing() -> Iterator[None]:
    """Inside the ``with`` block, a call that would pack its weight raises RuntimeError."""
    token = _packing_forbidden.set(True)
    try:
        yield
    finally:
        _packing_forbidden.reset(token)


def run(
    problem: Problem, operands: Operands, algorithm: str, bank: Tensor | None = None, bank_format: str | None = None,
    key: second_call.Key | None = None,
) -> Tensor:  # fmt: skip
    """Plan and launch; packs the weight where the plan reads another format than ``bank_format``, that of ``bank``.

    What was decided is remembered under ``key``, but where a call packs, may be tuned for, or is to be checked.

    A kernel that no GPU has confirmed is checked first (``planning/verify.py``); if it is wrong, another algorithm serves.

    Raises:
        RuntimeError: ``algorithm`` names a kernel that is wrong; or the weight would be packed under capture.
    """
    like = next(iter(operands.values()))
    chosen = plan_for_call(problem, like.device, algorithm, bank_format)
    wanted = problem.output()
    if 0 in wanted.shape:
        return layout.empty(wanted.shape, wanted.layout, like)
    serving = registry.get(chosen.algorithm)
    read = serving.weight_format(chosen.config)
    if read is None:
        prepacked = {}
    elif bank is not None and read == bank_format:
        prepacked = {"weight": bank}
    elif _packing_forbidden.get():
        raise RuntimeError(
            f"{problem} would pack its weight in every replay of the graph that is being captured: call prepare() on the "
            "layer, with the input shape of the capture, after the last change of its weight"
        )
    else:
        prepacked = {"weight": serving.prepack(operands["weight"], problem, chosen.config)}

    def compute(given: Operands) -> Tensor:
        return serving.launch(problem, chosen.config, {**given, **prepacked})

    out = compute(operands)
    if verify.due(problem, chosen, like) and not verify.agrees(problem, chosen, compute, operands, algorithm != "auto"):
        return run(problem, operands, algorithm, bank, bank_format, key)
    packs = bool(prepacked) and prepacked["weight"] is not bank
    if key is not None and not packs and not may_tune(chosen) and verify.settled(problem, chosen, like):
        reads = {**dict(zip(operands, operands, strict=True)), **({"weight": "bank"} if prepacked else {})}
        again = serving.repeated(problem, chosen.config, {**operands, **prepacked}, out)
        second_call.remember(key, second_call.Call(again, tuple(reads.items())))
    return out
