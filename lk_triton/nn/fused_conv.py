"""What the convolution modules share: an activation behind the sum, and when they are an ``nn.Conv2d``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Self

from ..ops.problem import ACTIVATIONS


class FusedConv2d(_ConvNd):
    """A convolution with an activation fused behind it. It has the parameters and attributes of an ``nn.Conv2d``.

    It is an ``nn.Conv2d`` where it has no activation, and only there: tools that fold a BatchNorm into the ``nn.Conv2d``
    before it would fold it through the activation, which no fold can do. As with ``pathlib.Path``, the constructor of a public
    class chooses: without an activation it makes an instance of the class's ``plain`` twin, which derives from both.
    """

    plain: type[nn.Conv2d] | None = None
    """The twin; a class that inherits this from another one has none."""

    def __new__(cls, *args: Any, activation: str | None = None, **kwargs: Any) -> Self:
        plain: Any = vars(cls).get("plain")
        return super().__new__(plain if plain is not None and activation is None else cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {"activation": self.activation}  # copies are made by __new__ alone

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "activation" in state:  # saved when the class did not depend on it
            state = {**state, "_activation": state["activation"]}
            if state.pop("activation") is not None:
                self.__class__ = public_class(type(self))
        super().__setstate__(state)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        bias: bool,
        activation: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_activation(activation)
        _ConvNd.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, False, (0, 0), groups, bias, "zeros",
            device, dtype,
        )  # fmt: skip
        self._activation = activation

    @property
    def activation(self) -> str | None:
        """What the sum goes through. Fixed, as the class depends on it: ``with_activation`` makes another layer."""
        return self._activation

    def _weight_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attributes; past ``nn.Module``'s look-up, which is slow, where they are parameters of this very module."""
        own = self._parameters
        weight = own.get("weight")
        return (self.weight, self.bias) if weight is None or "bias" not in own else (weight, own["bias"])

    def with_activation(self, activation: str | None) -> Self:
        """This layer with another activation; it shares the parameters."""
        check_activation(activation)
        kind: Any = public_class(type(self))
        other = FusedConv2d.__new__(kind, activation=activation)
        other.__dict__.update(self.__dict__, _parameters=dict(self._parameters), _activation=activation)
        return other

    def _get_name(self) -> str:
        return public_class(type(self)).__name__

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation}" if self.activation else "")


def public_class(cls: type[Any]) -> type[Any]:
    """The class that ``cls`` is the plain twin of, else ``cls``."""
    base = cls.__bases__[0]
    return base if vars(base).get("plain") is cls else cls


def check_activation(activation: str | None) -> None:
    """Raise ValueError where there is no such activation."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def with_parameters(module: Any, weight: Tensor, bias: Tensor, old: Tensor) -> Any:
    """Set weight and bias of ``module``, trainable where ``old`` was."""
    module.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    module.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
    return module
