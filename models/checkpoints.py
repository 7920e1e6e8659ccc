"""Reading and writing checkpoints: published files, other projects' key styles, and conversion to the model's form."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .replknet import FORMS, RepLKNet

WRAPPERS = ("model", "state_dict", "module")
"""Under which of its keys a training checkpoint keeps the weights."""

PREFIXES = ("module.", "backbone.")
"""Of DistributedDataParallel, and of mmpretrain and the mm projects downstream."""

HEADS = ("head.fc.", "head.cls_22k.")
"""Other names of ``head.``: mmpretrain's, and that of the MegData73M pretraining file."""

BODY = ("stem.", "transitions.", "stages.")
"""What a backbone takes of a file."""

State = dict[str, Tensor]


class CheckpointInfo(NamedTuple):
    """What to build a model with, so that it takes a file as it is: form, and number of classes, 0 without a head."""

    form: str
    num_classes: int


def inspect_checkpoint(file: str | os.PathLike[str]) -> CheckpointInfo:
    """Form and number of classes of the network in ``file``.

    Raises:
        FileNotFoundError, ImportError, ValueError: as ``load_checkpoint``.
    """
    state = _normalize(_read(file), file)
    head = state.get("head.weight")
    return CheckpointInfo(_form_of(state, file), 0 if head is None else len(head))


def load_checkpoint(model: RepLKNet, file: str | os.PathLike[str], strict: bool = True) -> tuple[list[str], list[str]]:
    """Load ``file`` into ``model``, converted to the model's form; all or nothing.

    Args:
        model: a RepLKNet in any form. A file of an earlier form is converted (training -> merged -> fused).
        file: a .pth, .pt or .safetensors file: a flat state_dict or one under "model", "state_dict" or "module"; with the
            published keys or mmpretrain's; with "module." prefixes; a head of the MegData73M file (``head.cls_22k``).
            A model without a head (``num_classes=0``) ignores the file's head; a backbone (``out_indices``) takes
            stem, stages and transitions only.
        strict: if false, keys that one side lacks are left alone. A conversion needs every key but those of the head
            and the norms in any case.

    Returns:
        (missing, unexpected): keys that the file lacks and that the model lacks, both empty if ``strict``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a .safetensors file without the package safetensors.
        ValueError: the file is truncated, no checkpoint or no RepLKNet; its form lies behind the model's; keys, shapes or
            the number of classes differ. The text names the file and the keys; the model is as it was.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model is on the meta device and holds no weights: call model.to_empty(device='cpu') first")
    state = _for_target(_normalize(_read(file), file), model)
    _check_head(state, model, file)
    form = _form_of(state, file)
    source = model if form == model.form else _twin(model, form, file)
    missing, unexpected = _compare(state, source.state_dict(), strict, file)
    if source is not model:
        state = _convert(state, missing, source, model.form, file)
    model.load_state_dict(state, strict=False)
    return missing, unexpected


def save_checkpoint(model: RepLKNet, file: str | os.PathLike[str]) -> None:
    """Write the model's state_dict, in the form that it has now: .safetensors by that suffix, otherwise torch's format.

    The file appears whole or not at all.
    """
    path = Path(file)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    try:
        if path.suffix == ".safetensors":
            _safetensors().save_file(state, str(temporary))
        else:
            torch.save(state, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: str | os.PathLike[str]) -> Any:
    """What the file holds, on the CPU; never executes code from it."""
    path = Path(file)
    if path.suffix == ".safetensors":
        load = _safetensors().load_file
    else:

        def load(name: str) -> Any:
            # Upstream's training checkpoints carry their command line as an argparse.Namespace, which is plain data.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(name, map_location="cpu", weights_only=True)

    try:
        return load(str(path))
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"cannot read {path} as a checkpoint: {type(error).__name__}: {reason}; is it whole, and a file of tensors only?"
        ) from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("reading and writing .safetensors needs: pip install 'lk-triton[demo]'") from error
    return safetensors.torch


def _normalize(content: Any, file: str | os.PathLike[str]) -> State:
    """The weights in ``content`` under the published keys."""
    while isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        content = next((content[key] for key in WRAPPERS if key in content), None)
    state: State = {}
    for key, tensor in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            continue
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
        for head in HEADS:
            key = f"head.{key.removeprefix(head)}" if key.startswith(head) else key
        state[key] = tensor
    if "stem.0.conv.weight" not in state:
        found = f"found {', '.join(sorted(state)[:3])}, ..." if state else "found no tensors"
        raise ValueError(f"{file} is no RepLKNet checkpoint: expected keys such as stem.0.conv.weight, {found}")
    stages = {key.split(".")[1] for key in state if key.startswith("stages.")}
    normed = {key.split(".")[1] for key in state if key.startswith("stages.") and key.split(".")[2] == "norm"}
    if len(stages) > 1 and normed == {max(stages, key=int)} and "norm.weight" not in state:
        # mmpretrain keeps a classifier's final norm in its last stage.
        own = f"stages.{normed.pop()}.norm."
        state = {f"norm.{key.removeprefix(own)}" if key.startswith(own) else key: t for key, t in state.items()}
    return state


def _for_target(state: State, model: RepLKNet) -> State:
    """Without what ``model`` has no place for by intention: a backbone's norm and head, a head where there are no classes."""
    if model.out_indices is not None:
        return {key: t for key, t in state.items() if key.startswith(BODY)}
    return state if model.num_classes else {key: t for key, t in state.items() if not key.startswith("head.")}


def _check_head(state: State, model: RepLKNet, file: str | os.PathLike[str]) -> None:
    head = state.get("head.weight")
    if head is not None and head.shape[0] != model.num_classes:
        raise ValueError(
            f"{file} has a head of {head.shape[0]} classes, the model has {model.num_classes}: build the model with "
            f"num_classes={head.shape[0]}, or with num_classes=0 to load all but the head and then reset_classifier("
            f"{model.num_classes})"
        )


def _form_of(state: State, file: str | os.PathLike[str]) -> str:
    parts = {part for key in state for part in key.split(".")}
    folded_convolutions = "stem.0.conv.bias" in state
    if folded_convolutions and parts & {"prelkb_bn", "preffn_bn", "lkb_origin"}:
        raise ValueError(f"{file} is partly folded (upstream's deep_fuse_BN): load the file that it was made from")
    return "fused" if folded_convolutions else "training" if "lkb_origin" in parts else "merged"


def _twin(model: RepLKNet, form: str, file: str | os.PathLike[str]) -> RepLKNet:
    """A network like ``model`` in the file's form, without memory (meta device)."""
    if FORMS.index(form) > FORMS.index(model.form):
        raise ValueError(
            f"{file} holds the {form} form, the model has the {model.form} form: conversions go {' -> '.join(FORMS)} only; "
            f"build the model with {form}=True"
        )
    return model.twin(form).eval()


def _convert(state: State, missing: list[str], twin: RepLKNet, form: str, file: str | os.PathLike[str]) -> State:
    """``state`` in ``form``: ``twin`` takes the file's tensors as its own and is converted."""
    incomplete = {_module_of(key) for key in missing}
    needed = [key for key in missing if _module_of(key) != "head" and not _module_of(key).endswith("norm")]
    if needed:
        raise ValueError(f"{file} cannot be converted to the {form} form, it lacks {_listed(needed)}")
    # Half-precision files are folded in float32, so that the fold is rounded once, to the model's dtype.
    complete = {key: t.float() if t.is_floating_point() and t.itemsize < 4 else t for key, t in state.items()
                if _module_of(key) not in incomplete}  # fmt: skip
    twin.load_state_dict(complete, strict=False, assign=True)
    twin.convert(form)
    return {key: t for key, t in twin.state_dict().items() if not t.is_meta}


def _compare(state: State, wanted: State, strict: bool, file: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Missing and unexpected keys; raises where they are not allowed, and where shapes differ."""
    # num_batches_tracked, which old files lack, plays no part in what a BatchNorm computes.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(t.shape)}"
        for key, t in wanted.items() if key in state and state[key].shape != t.shape
    ]  # fmt: skip
    problems = [f"shapes: {_listed(shapes)}"] if shapes else []
    if strict:
        problems += [f"missing keys: {_listed(missing)}"] if missing else []
        problems += [f"unexpected keys: {_listed(unexpected)}"] if unexpected else []
    if problems:
        advice = "" if shapes else "; strict=False loads what fits"
        raise ValueError(f"{file} does not fit the model: {'; '.join(problems)}{advice}")
    return missing, unexpected


def _module_of(key: str) -> str:
    return key.rpartition(".")[0]


def _listed(items: list[str], most: int = 8) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
