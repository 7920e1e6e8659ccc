"""Networks that a study looks at: ours by name, timm's by name, anybody's as ``package.module:function``."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ...models import CheckpointMismatch, list_models
from .. import images, networks
from ..options import UsageError, missing_extra

Result = TypeVar("Result")
RANDOM = "random"
"""``Backbone.weights`` of an untrained network."""


def add_arguments(parser: argparse.ArgumentParser, count: int | str = "+") -> None:
    """``count`` networks and their weights, for ``sources``."""
    parser.add_argument("models", nargs=count, metavar="MODEL", help="ours, timm's, or package.module:function")
    parser.add_argument(
        "--checkpoint", action="append", default=[], metavar="F", help="weights, else random; MODEL=F with several models"
    )
    parser.add_argument("--pretrained", action="store_true", help="let timm fetch the weights of its models")


@dataclass(frozen=True)
class Backbone:
    """A network in eval mode without gradients of its own, how its images are normalized, and where its weights are from."""

    module: nn.Module
    normalization: images.Normalization
    weights: str

    @property
    def fingerprint(self) -> str:
        """A digest of its layers and tensors: it changes where the function that made the network, or its file, does."""
        digest = hashlib.sha256(repr(self.module).encode())
        for name, tensor in chain(self.module.named_parameters(), self.module.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A network that was asked for and not built yet."""

    name: str
    checkpoint: str | None = None
    pretrained: bool = False

    @property
    def kind(self) -> str:
        """Whose it is: ours, anybody's (callable) or timm's."""
        return "ours" if self.name in list_models() else "callable" if ":" in self.name else "timm"

    @property
    def file_name(self) -> str:
        """The name as the stem of a file."""
        return self.name.replace(":", "_").replace("/", "_")

    @property
    def identity(self) -> dict[str, Any]:
        """What the built network depends on, as far as it is known before it is built; a callable may depend on anything."""
        file = Path(self.checkpoint).stat() if self.checkpoint else None
        return {
            "model": self.name, "checkpoint": self.checkpoint, "pretrained": self.pretrained and self.kind == "timm",
            "modified": file and file.st_mtime_ns,
        }  # fmt: skip

    def build(self, size: int, device: torch.device) -> Backbone:
        """The network, for images of ``size``. Without weights it is random, seeded, and stderr says so.

        Raises:
            UsageError: it cannot be built, or its weights cannot be had.
        """
        torch.manual_seed(networks.SEED)
        make = {"ours": self._ours, "callable": self._callable, "timm": self._timm}[self.kind]
        try:
            found = make(size)
        except UsageError:
            raise
        except Exception as error:  # foreign constructors and downloads raise almost anything
            text = error.text if isinstance(error, CheckpointMismatch) else str(error)
            reason = shorten(text or type(error).__name__, 400)  # torch lists each key of a checkpoint that does not fit
            file = f" from {self.checkpoint}" if self.checkpoint and self.kind == "timm" else ""  # ours name it themselves
            raise UsageError(f"cannot build {self.name}{file}: {reason}") from error
        if found.weights == RANDOM:
            print(f"lk-triton: warning: {random_warning(self.name)}", file=sys.stderr)
        return Backbone(found.module.eval().requires_grad_(False).to(device), found.normalization, found.weights)

    def _ours(self, size: int) -> Backbone:
        normalization = images.NORMALIZATION.get(self.name, images.IMAGENET)
        return Backbone(networks.load(self.name, self.checkpoint), normalization, self.checkpoint or RANDOM)

    def _timm(self, size: int) -> Backbone:
        import timm
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(self.name)
        options: dict[str, Any] = {"img_size": size} if known and known.fixed_input_size else {}
        fetch = self.pretrained and self.checkpoint is None
        model = timm.create_model(self.name, fetch, checkpoint_path=self.checkpoint or "", **options)
        facts = cast("dict[str, Any]", model.pretrained_cfg)
        weights = self.checkpoint or (f"timm's {facts['architecture']}.{facts['tag']}" if self.pretrained else RANDOM)
        return Backbone(model, images.Normalization(facts["mean"], facts["std"]), weights)

    def _callable(self, size: int) -> Backbone:
        made = _imported(self.name)()
        if not isinstance(made, nn.Module):
            raise UsageError(f"{self.name} returns {type(made).__name__}, expected a torch.nn.Module")
        return Backbone(made, images.IMAGENET, f"as {self.name} returns it")


def sources(names: Sequence[str], checkpoints: Sequence[str] = (), pretrained: bool = False) -> list[Source]:
    """The networks called ``names``; a checkpoint is FILE where there is one network, NAME=FILE where there are more.

    Raises:
        UsageError: an unknown or repeated name, or a checkpoint that is not there, belongs to none or is one too many.
    """
    if len(set(names)) < len(names):
        raise UsageError(f"each model once, please, got {' '.join(names)}")
    owned = [_owner(text, names) for text in checkpoints]
    files = dict(owned)
    if len(files) < len(owned):
        raise UsageError(f"one checkpoint a model, please, got {' '.join(checkpoints)}")
    found = [Source(name, files.get(name), pretrained) for name in names]
    for source in found:
        _check(source)
    return found


def each(sources: Sequence[Source], measure: Callable[[Source], Result]) -> tuple[list[Result], dict[str, str]]:
    """What ``measure`` finds of each network, and by name why it fails for others, without losing what the rest gives."""
    results, failed = [], {}
    for source in sources:
        try:
            results.append(measure(source))
        except Exception as error:
            failed[source.name] = str(error) or type(error).__name__
    return results, failed


def _owner(text: str, names: Sequence[str]) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if equals and name in names:
        return name, file
    if len(names) > 1:
        raise UsageError(f"--checkpoint {text}: say whose it is, such as --checkpoint {names[0]}=FILE")
    return names[0], text


def _check(source: Source) -> None:
    if source.kind == "callable":
        _imported(source.name)
        if source.checkpoint is not None:
            raise UsageError(f"--checkpoint goes with our networks and timm's: let {source.name} load its weights itself")
    elif source.kind == "timm":
        try:
            import timm
        except ImportError:
            raise missing_extra("timm", "timm") from None
        if not timm.is_model(source.name):
            raise UsageError(
                f"unknown model {source.name!r}: expected one of {', '.join(list_models())}, a model of timm's such as "
                "resnet101, or package.module:function"
            )
    if source.checkpoint is not None and not Path(source.checkpoint).is_file():
        raise UsageError(f"cannot read {source.checkpoint}: there is no such file")


def _imported(name: str) -> Any:
    """The function that ``package.module:function`` names, also from the working directory."""
    module, _, function = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a foreign module may raise anything
        raise UsageError(
            f"cannot import {name}: {str(error) or type(error).__name__}; expected package.module:function"
        ) from error
    if not callable(found):
        raise UsageError(f"{name} is {type(found).__name__}, expected a function that returns a torch.nn.Module")
    return found


def random_warning(*names: str) -> str:
    """What to say of untrained networks."""
    return (
        f"{', '.join(names)}: random weights. What an untrained network shows says little about the trained one; "
        "give --checkpoint FILE, or --pretrained for timm's"
    )
