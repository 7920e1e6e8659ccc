"""Kernels that no GPU has confirmed are checked at their first call of each problem, before its result is returned.

That is a version of a kernel form that no result file proves (``confirmed.py``), for a problem that was not checked on this
device before, which lies beside the user's cache. LK_TRITON_VERIFY asks for more checks, or for none. The check is that of the
accuracy gate (``accuracy.py``) on a few images and channels, and waits for the GPU. Only compiled kernels on a GPU are
checked, and never while a CUDA graph is captured.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import gpu as gpus
from ..algorithms import registry
from ..algorithms.base import Config, TritonAlgorithm
from ..algorithms.layerwise import LayerwiseAlgorithm
from ..gpu import Gpu
from ..log import logger
from ..ops import layout
from ..ops.problem import Chain, Operands, Problem
from . import cache, plan
from .accuracy import TF32_BITS, Verdict, doubled, judge
from .confirmed import confirmed
from .entry import problem_to_json, versions

VARIABLE = "LK_TRITON_VERIFY"

IMAGES = 4
"""Of a batch, the first and the last among them."""

FEWEST = 16
"""Channels, where there are so many, however large a kernel's tiles are."""

ELEMENTS = 1 << 22
"""Of the planes of one image that are compared at once, in float64."""

Key = tuple[Problem, str, Config, torch.device]

_settled: dict[Key, bool] = {}
"""What needs no check at its first call any more; and whether it is a kernel, which the variable may ask to check again."""

_remembered: dict[Path, set[str]] = {}
"""Lines of the files of ``_file``, read once per process."""


class Mode(NamedTuple):
    """Whether first calls are checked, and the share of all calls that is."""

    first: bool
    share: float


def mode() -> Mode:
    """What LK_TRITON_VERIFY asks for: ``first`` (the default), ``0``, ``always`` or a probability.

    Raises:
        ValueError: it is none of these.
    """
    return _mode(os.environ.get(VARIABLE) or "first")


@lru_cache
def _mode(text: str) -> Mode:
    if text in ("first", "always"):
        return Mode(True, float(text == "always"))
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{VARIABLE}={text}: expected first, 0, always, or a probability between 0 and 1 such as 0.01")
    return Mode(share > 0, share)


def due(problem: Problem, chosen: plan.Plan, x: Tensor) -> bool:
    """Whether a call's result is to be checked before it is returned. One look-up where that was settled.

    Raises:
        ValueError: LK_TRITON_VERIFY makes no sense.
    """
    if not _on_gpu(x):
        return False
    key = (problem, chosen.algorithm, chosen.config, x.device)
    kernel = _settled.get(key)
    if kernel is None:
        asked = mode()
        if asked == (False, 0.0) or _may_not(x):
            return False
        gpu = gpus.of(x.device)
        kernel = bool(_kernels(problem, chosen.algorithm, chosen.config, gpu))
        if kernel and not _known(problem, chosen, gpu):
            return True
        _settled[key] = kernel
    share = mode().share
    return kernel and share > 0 and random.random() < share and not _may_not(x)


def settled(problem: Problem, chosen: plan.Plan, x: Tensor) -> bool:
    """Whether no later call like this one is checked, as long as LK_TRITON_VERIFY stays what it is."""
    if not _on_gpu(x):
        return True
    kernel = _settled.get((problem, chosen.algorithm, chosen.config, x.device))
    return kernel is False or (mode().share == 0 and (kernel is True or not mode().first))


def agrees(
    problem: Problem, chosen: plan.Plan, compute: Callable[[Operands], Tensor], operands: Operands, forced: bool
) -> bool:
    """Whether a kernel computes what torch does. It computes once more: a launch is built at first and repeated later.

    If a map tells nothing, because it does not vary or is not finite, noise stands in for it. If torch's own result is not
    finite, because a weight is not, nothing is concluded. What is right is settled, in
    this process and for others. What is wrong is warned of, and no automatic choice of this process takes that algorithm
    for ``problem`` again.

    Raises:
        RuntimeError: it is wrong, and ``forced`` by the caller.
    """
    device = next(iter(operands.values())).device
    gpu = gpus.of(device)
    try:
        with torch.no_grad():
            probe = telling(problem, operands)
            verdict = compare(problem, chosen, compute(probe), probe)
            if verdict is None:
                return True
    except torch.OutOfMemoryError:
        logger.warning("%s of %s could not be checked on %s: out of memory", chosen.algorithm, problem, gpu.name)
        _settled[problem, chosen.algorithm, chosen.config, device] = True
        return True
    if verdict.ok:
        _settled[problem, chosen.algorithm, chosen.config, device] = True
        _remember(problem, chosen, gpu)
        return True
    reason = told(problem, chosen, gpu, verdict)
    if forced:
        raise RuntimeError(f"{reason}; pass algorithm='auto' to have another serve")
    plan.distrust(problem, gpu, chosen.algorithm)
    logger.warning("%s; another algorithm serves this problem from now on", reason)
    return False


def told(problem: Problem, chosen: plan.Plan, gpu: Gpu, verdict: Verdict) -> str:
    """What was found, with all versions that it depends on."""
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    algorithm, config = registry.get(chosen.algorithm), chosen.config
    return (
        f"{algorithm.form(config)} (version {algorithm.version(config)}, {config}) computes {problem} wrong on {gpu.name} "
        f"with {software}: its relative error is {verdict.error:.2g}, at most {verdict.allowed:.2g} is allowed"
    )


def compare(problem: Problem, chosen: plan.Plan, out: Tensor, operands: Operands) -> Verdict | None:
    """The gate's worst verdict on some images and channels of ``out``; None where torch's own result is not finite."""
    tile, seed = registry.get(chosen.algorithm).channel_tile(problem, chosen.config), seed_of(problem)
    if not problem.batched:
        pieces = [(problem, operands, out)]
    else:
        images = (slice(i, i + 1) for i in drawn_images(problem.n, seed))
        pieces = ((*problem.of_images(operands, some), out[some]) for some in images)
    verdicts = []
    for of_images, given, found in pieces:
        for channels in _parts(of_images, drawn_channels(found.shape[int(problem.batched)], tile, seed)):
            torch_result, exact = reference(of_images, given, channels)
            if torch_result.isfinite().all() and exact.isfinite().all():
                picked = found[:, channels] if problem.batched else found[channels]
                verdicts.append(judge(picked.contiguous(), torch_result, exact))
    worst = max(verdicts, key=lambda v: v.error / v.allowed, default=None)
    return next((v for v in verdicts if not v.ok), worst)


def seed_of(problem: Problem) -> int:
    """The same in every process."""
    return int.from_bytes(hashlib.sha256(repr(problem).encode()).digest()[:8], "big")


def drawn_images(n: int, seed: int) -> list[int]:
    """At most ``IMAGES`` of a batch of n, with the first and the last."""
    inner = random.Random(seed).sample(range(1, n - 1), max(min(n, IMAGES) - 2, 0)) if n > 2 else []
    return sorted({0, *inner, n - 1})


def drawn_channels(count: int, tile: int, seed: int) -> list[int]:
    """One of every ``tile`` adjacent channels, and one of every ``FEWEST``-th part of all."""
    rng = random.Random(seed)
    sizes = (tile, max(count // FEWEST, 1))
    return sorted({rng.randrange(first, min(first + size, count)) for size in sizes for first in range(0, count, size)})


def reference(problem: Problem, operands: Operands, channels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some output channels: as torch computes them in its dtype, and in float64.

    With precision ``tf32`` torch's part rounds its inputs as tensor cores do, since that is what was asked for.
    """
    picked = list(channels)
    part = problem.of_channels(operands, picked)
    part_problem, given = (problem, operands) if part is None else part
    given = {role: tensor.contiguous() for role, tensor in given.items()}
    exact = part_problem.reference(doubled(given))
    if problem.precision == "tf32":
        of_products = {role: tensor for role, tensor in given.items() if role != "residual" and tensor.dim() > 1}
        given |= {role: _tf32(tensor) for role, tensor in of_products.items()}
    results = part_problem.reference(given), exact
    if part is not None:
        return results
    by_torch, exact = (result[:, picked] if problem.batched else result[picked] for result in results)
    return by_torch, exact


def _parts(problem: Problem, channels: list[int]) -> Iterator[list[int]]:
    """``channels`` in groups whose planes have at most ``ELEMENTS`` elements, one at least."""
    planes = (prod(spec.shape[2:]) for spec in (*problem.maps().values(), problem.output()))
    size = max(ELEMENTS // max(*planes, 1), 1)
    yield from (channels[i : i + size] for i in range(0, len(channels), size))


def _tf32(values: Tensor) -> Tensor:
    """Rounded towards zero to what TF32 holds."""
    return values.contiguous().view(torch.int32).bitwise_and(-1 << TF32_BITS).view(torch.float32)


def telling(problem: Problem, operands: Operands) -> Operands:
    """``operands``, with normal values in place of each map on which a wrong kernel cannot show."""
    silent = {role: spec for role, spec in problem.maps().items() if not _tells(operands[role])}
    if not silent:
        return operands
    like = next(iter(operands.values()))
    generator = torch.Generator(like.device).manual_seed(seed_of(problem) >> 1)
    noise = {role: layout.empty(spec.shape, spec.layout, like).normal_(generator=generator) for role, spec in silent.items()}
    return {**operands, **noise}


def _on_gpu(x: Tensor) -> bool:
    """Whether a call on ``x`` launches compiled kernels."""
    return x.device.type == "cuda"


def _may_not(x: Tensor) -> bool:
    """Whether nothing can be compared now: tensors without values, interpreted kernels, a CUDA graph that is captured."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return not plain or gpus.interpreted() or torch.cuda.is_current_stream_capturing()


def _tells(x: Tensor) -> bool:
    """Whether a wrong kernel can show on ``x``: its values are finite and not all the same."""
    low, high = torch.aminmax(x)
    return bool((high > low) & torch.isfinite(high - low))


def _kernels(problem: Problem, name: str, config: Config, gpu: Gpu) -> list[tuple[str, int, bool]]:
    """(form, version, whether confirmed anywhere counts) of every kernel of ours that a call runs."""
    algorithm = registry.get(name)
    if isinstance(algorithm, LayerwiseAlgorithm) and isinstance(problem, Chain):
        plans = [(layer, algorithm.plan(layer, gpu)) for layer in problem.layers]
        return [kernel for layer, p in plans for kernel in _kernels(layer, p.algorithm, p.config, gpu)]
    if not isinstance(algorithm, TritonAlgorithm):
        return []
    return [(algorithm.form(config), algorithm.version(config), not algorithm.hand_synchronized)]


def _known(problem: Problem, chosen: plan.Plan, gpu: Gpu) -> bool:
    """Whether result files prove all kernels, or this problem was checked before."""
    kernels = _kernels(problem, chosen.algorithm, chosen.config, gpu)
    if all(confirmed(form, version, gpu.arch, everywhere) for form, version, everywhere in kernels):
        return True
    return not cache.ignored() and _line(problem, chosen, gpu) in _lines(_file(gpu))


def _file(gpu: Gpu) -> Path:
    """What was checked on ``gpu``: a JSON object a line."""
    return cache.directory() / "verified" / f"{cache.file_name(gpu.name)}l"


def _lines(file: Path) -> set[str]:
    if file not in _remembered:
        try:
            _remembered[file] = set(file.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):
            _remembered[file] = set()
    return _remembered[file]


def _line(problem: Problem, chosen: plan.Plan, gpu: Gpu) -> str:
    kernels: dict[str, Any] = {
        form: version for form, version, _ in _kernels(problem, chosen.algorithm, chosen.config, gpu)
    }
    software = {name: version for name, version in versions().items() if name != "lk_triton"}
    found = {"problem": problem_to_json(problem), "algorithm": chosen.algorithm, "config": asdict(chosen.config)}
    return json.dumps({**found, "versions": kernels, **software})


def _remember(problem: Problem, chosen: plan.Plan, gpu: Gpu) -> None:
    """For other processes, where a file can be written."""
    file, line = _file(gpu), _line(problem, chosen, gpu)
    if cache.ignored() or line in _lines(file):
        return
    _lines(file).add(line)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")  # one short write: of two processes none splits the other's line
    except OSError as error:
        logger.info("cannot remember in %s what was checked: %s", file, error)
