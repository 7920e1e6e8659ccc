"""Reading and writing checkpoints: published files, other projects' key styles, and conversion to the model's form."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lk_triton.log import logger

from .checkpoint_file import read, safetensors
from .replknet import FORMS, RepLKNet

WRAPPERS = ("model", "state_dict", "module")
"""Under which of its keys a training checkpoint keeps the weights."""

PREFIXES = ("module.", "backbone.")
"""Of DistributedDataParallel, and of mmpretrain and the mm projects downstream."""

HEADS = ("head.fc.", "head.cls_22k.")
"""Other names of ``head.``: mmpretrain's, and that of the MegData73M pretraining file."""

BODY = ("stem.", "transitions.", "stages.")
"""What a backbone takes of a file."""

ANY_WEIGHTS = "stem.0.conv.weight"
"""A key that every RepLKNet has, in every form."""

State = dict[str, Tensor]


class CheckpointMismatch(ValueError):
    """The keys or shapes of a file are not those of the model.

    Attributes:
        text: what differs, without advice for callers of ``load_checkpoint``.
        looks_like: the registered network that the file fits, where there is one.
    """

    def __init__(self, text: str, looks_like: str | None, advice: str) -> None:
        super().__init__(text + advice)
        self.text, self.looks_like = text, looks_like


class CheckpointInfo(NamedTuple):
    """What to build a model with, so that it takes a file as it is: form, and number of classes, 0 without a head."""

    form: str
    num_classes: int


def inspect_checkpoint(file: str | os.PathLike[str]) -> CheckpointInfo:
    """Form and number of classes of the network in ``file``.

    Raises:
        FileNotFoundError, ImportError, ValueError: as ``load_checkpoint``.
    """
    state = _normalize(_unwrap(read(file), file), file)
    return CheckpointInfo(_form_of(state, file), _classes(state, file) or 0)


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
        ValueError: the file is damaged, no checkpoint or no RepLKNet; its form lies behind the model's; keys, shapes or the
            number of classes differ (``CheckpointMismatch``, which also says whether the file looks like another network);
            a tensor is sparse, quantized or of integers, holds NaN or Inf, or is a negative variance. The text names the
            file and the keys; the model is as it was.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model is on the meta device and holds no weights: call model.to_empty(device='cpu') first")
    content = read(file)
    weights = _unwrap(content, file)
    others = [key for key, value in content.items() if value is not weights and _has_weights(value)]
    if others:
        taken = next((f"under {key!r}" for key in content if content[key] is weights), "at its top")
        logger.warning("%s holds weights under %s too: those %s are taken", file, ", ".join(map(repr, others)), taken)
    state = _for_target(_normalize(weights, file), model)
    _check_head(state, model, file)
    form = _form_of(state, file)
    source = model if form == model.form else _twin(model, form, file)
    wanted = source.state_dict()
    _check(state, wanted, _why_not_plain, file)
    missing, unexpected = _compare(state, wanted, strict, file)
    _check(state, wanted, lambda key, tensor: _why_no_weight(key, tensor, wanted[key].dtype), file)
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
            safetensors().save_file(state, str(temporary))
        else:
            torch.save(state, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _unwrap(content: Any, file: str | os.PathLike[str]) -> Mapping[Any, Any]:
    """The mapping in ``content`` that holds tensors, at the top or under ``WRAPPERS``.

    Raises:
        ValueError: there is none.
    """
    outermost, seen = content, []
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        if any(content is one for one in seen):  # a pickle may contain itself
            break
        seen.append(content)
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
    else:
        if isinstance(content, Mapping):
            return content
    keys = shorten(", ".join(map(repr, outermost)), 100) if isinstance(outermost, Mapping) else ""
    found = f"found the keys {keys} and no tensors under {' or '.join(WRAPPERS)}" if keys else "found no tensors"
    raise _foreign(file, found)


def _foreign(file: str | os.PathLike[str], found: str) -> ValueError:
    return ValueError(f"{file} is no RepLKNet checkpoint: expected keys such as {ANY_WEIGHTS}, {found}")


def _has_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(key, str) and key.endswith(ANY_WEIGHTS) for key in value)


def _normalize(content: Mapping[Any, Any], file: str | os.PathLike[str]) -> State:
    """The weights in ``content`` under the published keys."""
    state: State = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            continue
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
        for head in HEADS:
            key = f"head.{key.removeprefix(head)}" if key.startswith(head) else key
        state[key] = tensor
    if ANY_WEIGHTS not in state:
        raise _foreign(file, f"found {shorten(', '.join(sorted(state)[:3]), 100)}, ..." if state else "found no tensors")
    stages = {match[1] for key in state if (match := re.match(r"stages\.(\d+)\.", key))}
    normed = {match[1] for key in state if (match := re.match(r"stages\.(\d+)\.norm\.", key))}
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


def _classes(state: State, file: str | os.PathLike[str]) -> int | None:
    """Of the head; None where there is none."""
    if "head.weight" not in state:
        return None
    _check(state, ["head.weight"], _why_not_plain, file)
    shape = tuple(state["head.weight"].shape)
    if len(shape) != 2:
        raise ValueError(f"{file}: head.weight has the shape {shape}, expected (classes, channels)")
    return shape[0]


def _check_head(state: State, model: RepLKNet, file: str | os.PathLike[str]) -> None:
    classes = _classes(state, file)
    if classes not in (None, model.num_classes):
        raise ValueError(
            f"{file} has a head of {classes} classes, the model has {model.num_classes}: build the model with "
            f"num_classes={classes}, or with num_classes=0 to load all but the head and then reset_classifier("
            f"{model.num_classes})"
        )


def _check(
    state: State, keys: Iterable[str], why_not: Callable[[str, Tensor], str | None], file: str | os.PathLike[str]
) -> None:
    """Refuse what ``load_state_dict`` would trip over half-way, or take without a word.

    Raises:
        ValueError: ``why_not`` has a reason against one of the tensors called ``keys``.
    """
    for key in keys:
        reason = why_not(key, state[key]) if key in state else None
        if reason is not None:
            raise ValueError(f"{file}: {key} {reason}")


def _why_not_plain(key: str, tensor: Tensor) -> str | None:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "is sparse, quantized, nested or without data, expected a plain tensor"
    counts = key.endswith("num_batches_tracked")
    floating, other = tensor.is_floating_point(), tensor.is_complex() or tensor.dtype == torch.bool
    if other or floating == counts or (floating and tensor.itemsize < 2):
        expected = "an integer" if counts else "float16, bfloat16, float32 or float64"
        return f"is of {str(tensor.dtype).removeprefix('torch.')}, expected {expected}"
    return None


def _why_no_weight(key: str, tensor: Tensor, dtype: torch.dtype) -> str | None:
    if not tensor.isfinite().all():
        return "holds NaN or Inf"
    if not tensor.to(dtype).isfinite().all():
        name = str(dtype).removeprefix("torch.")
        return f"holds numbers beyond {name}, the model's dtype: load into a float32 model, reparameterize, then cast"
    if key.endswith("running_var") and (tensor < 0).any():
        return "holds negative numbers, which are no variances"
    return None


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
        looks_like = _name_of(state, _form_of(state, file)) if _body(state) != _body(wanted) else None
        named = f", it looks like {looks_like}" if looks_like else ""
        raise CheckpointMismatch(f"{file} does not fit the model{named}: {'; '.join(problems)}", looks_like, advice)
    return missing, unexpected


def _body(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of stem, stages and transitions; norms of stages, and counters, which some files lack, left out."""
    left_out = re.compile(r"stages\.\d+\.norm\.|.*num_batches_tracked$")
    return {key: tuple(t.shape) for key, t in state.items() if key.startswith(BODY) and not left_out.match(key)}


def _name_of(state: State, form: str) -> str | None:
    """The registered network whose keys and shapes these are."""
    from .registry import create_model, list_models

    options: dict[str, Any] = {} if form == "training" else {form: True}
    found, body = None, _body(state)
    for name in list_models():
        try:
            model = create_model(name, num_classes=0, device="meta", **options)
        except TypeError:  # somebody's own, which takes other arguments
            continue
        found = name if _body(model.state_dict()) == body else found
    return found


def _module_of(key: str) -> str:
    return key.rpartition(".")[0]


def _listed(items: list[str], most: int = 8) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
