"""Tables of what was measured, as Markdown: networks, layers, the cost model's error, and what was not measured.

Losses are shown like wins, and marked. A speed is compared with a peer's only where both took turns in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.ops.problem import ConvProblem, Problem

from . import model_error, report
from .cases import cases
from .contest import REFERENCES
from .floor import floor
from .forms import FORMS, peer_forms
from .measured import Measured, Row, Tuned, algorithm_of, problem_of
from .network import SIZES
from .providers import OURS, PROVIDERS

NOTHING = "Not measured yet."
APART = "not measured together"
LARGE = 7
"""Kernels from this size up are shown on the first page."""

GRID = "table1-*"
FAMILIES = ("31b-224", "31b-384", "wide", "table1", "slak", "convnext")
NETWORKS = (("replknet_31b", 224), ("replknet_31b", 384), *SIZES.items())
BATCHES = (64, 1)
NO_TRITON = ("torch", "onednn", "cublas", "layerwise", "pair", "triple")
"""Algorithms without a Triton kernel of their own for the product."""

NO_PROVIDER = "the authors' CUTLASS kernel (implicit GEMM), which this benchmark does not run"


def number(value: float) -> str:
    """Three significant digits; thousands apart."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}".replace(",", " ")


def times(ratio: float, mark: str) -> str:
    """How many times as fast; a loss stands out."""
    text = f"{ratio:.2f}{mark}" if ratio >= 0.1 else f"{ratio:.2g}{mark}"
    return text if ratio >= 1 else f"**{text}, slower**"


def gpu_rows(measured: Measured) -> list[Row]:
    """Figures of GPUs; in a rehearsal of whatever there was."""
    return [row for row in measured.figures() if measured.rehearsal or not row["device"].startswith("cpu")]


# Networks


def networks(measured: Measured) -> str:
    """A table for each GPU and dtype: every form and peer, its last row."""
    groups: dict[tuple[str, str], dict[tuple[str, str, str], Row]] = {}
    for row in gpu_rows(measured):
        if row["images_per_s"]:
            latest = groups.setdefault((row["device"], row["dtype"]), {})
            latest[row["kernel_name"], row["n"], row["provider"]] = row
    parts = [_networks_of(list(rows.values()), measured.mark) for _, rows in sorted(groups.items())]
    return "\n\n".join(parts) or NOTHING


def _networks_of(rows: Sequence[Row], mark: str) -> str:
    lines = [
        (
            row["kernel_name"], row["n"], f"`{row['provider']}`", number(float(row["images_per_s"])) + mark,
            number(float(row["p50_us"]) / 1e3) + mark, f"{float(row['spread'] or 1):.2f}{mark}",
            *(times(float(row[column]), mark) if row[column] else APART for column in REFERENCES.values()),
        )
        for row in rows
    ]  # fmt: skip
    references = [f"times `{name}`" for name in REFERENCES]
    heads = ("network", "batch", "form", "images/s", "ms", "slowest / fastest round", *references)
    found = {row["provider"] for row in rows}
    absent = [f"`{name}`" for name in (*FORMS, *(peer for peer, _ in peer_forms(224))) if name not in found]
    lack = f"Not measured yet: {', '.join([*absent, NO_PROVIDER])}."
    return f"{source(rows)}\n\n{table(lines, heads)}\n\n{lack}"


# Layers


@dataclass(frozen=True)
class Layer:
    """What is known of a depthwise layer on one GPU: ours in microseconds, by which algorithm, and the fastest peer."""

    problem: ConvProblem
    us: float
    algorithm: str
    peer: str = ""
    peer_us: float = 0.0


def layers(measured: Measured) -> str:
    """Depthwise layers with large kernels; Table 1 of the paper in one sentence."""
    return _layers(measured, LARGE)


def all_layers(measured: Measured) -> str:
    """All depthwise layers, and every problem's best time by algorithm."""
    parts = [_layers(measured, 1)] if measured.rows or measured.tuned else []
    for device in measured.devices:
        tuned = [t for t in measured.tuned if t.device == device]
        names = list(dict.fromkeys(name for t in tuned for name in t.microseconds))
        lines = [(str(t.problem), *(_us(t.microseconds.get(name), measured.mark) for name in names)) for t in tuned]
        if lines:
            text = f"{device}: the best config of each algorithm in microseconds, all of a problem measured in turns:"
            parts.append(f"{text}\n\n{table(lines, ('problem', *(f'`{name}`' for name in names)))}")
    return "\n\n".join(parts) or NOTHING


def _us(value: float | None, mark: str) -> str:
    return "" if value is None else report.cell(value) + mark


def _layers(measured: Measured, least: int) -> str:
    parts = []
    for device in measured.devices:
        rows = [row for row in gpu_rows(measured) if row["device"] == device and row["useful_tflops"]]
        dtypes = [t.problem.dtype for t in measured.tuned if t.device == device] + [row["dtype"] for row in rows]
        parts += [_layers_of(measured, device, dtype, least) for dtype in dict.fromkeys(dtypes)]
    return "\n\n".join(filter(None, parts)) or NOTHING


def _layers_of(measured: Measured, device: str, dtype: str, least: int) -> str:
    """One GPU and dtype."""
    mark = measured.mark
    rows = [r for r in gpu_rows(measured) if (r["device"], r["dtype"]) == (device, dtype) and r["useful_tflops"]]
    grid = {name for name in (row["kernel_name"] for row in rows) if fnmatchcase(name, GRID)}
    found: dict[ConvProblem, Layer] = {}
    for t in measured.tuned:
        if (t.device, t.problem.dtype) == (device, dtype) and isinstance(t.problem, ConvProblem) and t.microseconds:
            algorithm = min(t.microseconds, key=lambda name: t.microseconds[name])
            found[t.problem] = Layer(t.problem, t.microseconds[algorithm], algorithm)
    for name in dict.fromkeys(row["kernel_name"] for row in rows if row["kernel_name"] not in grid):
        layer = _of_conv([row for row in rows if row["kernel_name"] == name])
        if layer:
            found = {p: known for p, known in found.items() if _same(p) != _same(layer.problem)} | {layer.problem: layer}
    facts = gpus.named(device)
    lines = [_line(layer, facts, mark) for layer in found.values() if max(layer.problem.kh, layer.problem.kw) >= least]
    if not lines and not grid:
        return ""
    versions = [t.versions for t in measured.tuned if t.device == device and t.problem.dtype == dtype]
    parts = [source(rows, device, dtype, versions)]
    if lines:
        heads = ("x", "kernel", "behind it", "lk_triton, us", "algorithm", "times the floor", "fastest peer, us", "times")
        parts.append(table(lines, heads))
    if grid:
        parts.append(_grid([_of_conv([row for row in rows if row["kernel_name"] == name]) for name in grid], mark))
    ran = {row["provider"] for row in rows}
    absent = [f"`{name}`" for name in PROVIDERS if not name.startswith(OURS) and name not in ran]
    parts.append(f"Peers not measured yet: {', '.join([*absent, NO_PROVIDER])}.")
    return "\n\n".join(parts)


def _same(problem: ConvProblem) -> tuple[object, ...]:
    """What makes two problems one line of the table: all but the layout."""
    return (*problem.out_shape, problem.kh, problem.kw, problem.stride, problem.dtype, problem.epilogue)


def _of_conv(rows: Sequence[Row]) -> Layer | None:
    """A case of ``bench conv``: the last rows of our own choice, in its best layout, and of the peers; None without ours."""
    last = {row["provider"]: row for row in rows}
    ours = [row for name, row in last.items() if name.startswith(OURS + "auto")]
    if not ours:
        return None
    best = min(ours, key=_median)
    run = best["peer"] and last.get(best["peer"])
    problem = problem_of(best)
    return Layer(problem, _median(best), algorithm_of(best), best["peer"], _median(run) if run else 0.0)


def _median(row: Row) -> float:
    return float(row["p50_us"])


def _line(layer: Layer, facts: gpus.Gpu | None, mark: str) -> tuple[str, ...]:
    p = layer.problem
    behind = ["bias"] * p.epilogue.bias + [p.epilogue.activation or ""] + ["residual"] * p.epilogue.residual
    least = floor(p, facts) if facts else None
    stride = "" if p.stride == (1, 1) else f", stride {p.stride[0]}"
    return (
        f"{p.n}x{p.c}x{p.h}x{p.w}", f"{p.kh}x{p.kw}{stride}", ", ".join(filter(None, behind)) or "nothing",
        report.cell(layer.us) + mark, f"`{layer.algorithm}`",
        f"{layer.us / least.us:.2f}{mark} ({least.limiter})" if least else "",
        f"{report.cell(layer.peer_us)}{mark} (`{layer.peer}`)" if layer.peer_us else APART,
        times(layer.peer_us / layer.us, mark) if layer.peer_us else "",
    )  # fmt: skip


def _grid(found: Sequence[Layer | None], mark: str) -> str:
    ratios = [layer.peer_us / layer.us for layer in found if layer and layer.peer_us]
    if not ratios:
        return f"Table 1 of the paper: {APART}."
    won = sum(ratio >= 1 for ratio in ratios)
    span = f"{min(ratios):.2g}{mark} to {max(ratios):.2g}{mark} times as fast"
    return f"Table 1 of the paper: faster in {won}{mark} of {len(ratios)} cases, {span}."


# The cost model


def error_of_model(measured: Measured) -> str:
    """Measured over estimated time, by device and algorithm."""
    comparisons, _ = model_error.compare_all(gpu_rows(measured))
    for file in measured.files:
        if file.suffix == ".jsonl":
            comparisons += model_error.compare_tuned(file.read_text(encoding="utf-8").splitlines())[0]
    lines = [
        (
            str(row["device"]), f"`{row['algorithm']}`", str(row["configs"]), f"{row['median_ratio']:.2f}{measured.mark}",
            f"{row['worst_ratio']:.1f}{measured.mark}", str(row["worst_case"]),
        )
        for row in model_error.by_algorithm(comparisons)
    ]  # fmt: skip
    heads = ("device", "algorithm", "configs", "median of measured / estimated", "worst", "where")
    return table(lines, heads) if lines else NOTHING


# What is missing


def missing(measured: Measured) -> str:
    """For each GPU what was measured and what was not, of all that the benchmarks offer; and the GPUs without a figure."""
    parts = []
    names = []
    for name in measured.devices:
        facts = gpus.named(name)
        if facts or measured.rehearsal:
            names.append(facts.name if facts else name)
            heads = (f"{name}, float16", "measured", "not measured yet")
            parts.append(table(_missing_of(measured, name), heads))
    others = ", ".join(name for name in gpus.TABLE if name not in names)
    return "\n\n".join([*parts, f"GPUs without any figure: {others}. Not compared on any GPU: {NO_PROVIDER}."])


def _missing_of(measured: Measured, device: str) -> list[tuple[str, str, str]]:
    rows = [row for row in gpu_rows(measured) if row["device"] == device]
    tuned = [t for t in measured.tuned if t.device == device]
    half = [row for row in rows if row["dtype"] == "float16"]
    lines = []
    for network, size in NETWORKS:
        for batch in BATCHES:
            mine = {r["provider"] for r in half if (r["kernel_name"], r["n"]) == (f"{network}-{size}", str(batch))}
            peers = {r["provider"] for r in half if "/" in r["provider"] and (r["h"], r["n"]) == (str(size), str(batch))}
            universe = [*FORMS, *(name for name, _ in peer_forms(size))]
            lines.append((f"`{network}` at {size}x{size}, batch {batch}", *_split(universe, mine | peers)))
    named = cases()
    for family in FAMILIES:
        for batch in dict.fromkeys(problem.n for name, problem in named.items() if name.startswith(family)):
            wanted = {n: p for n, p in named.items() if n.startswith(f"{family}-") and p.n == batch}
            lines.append(_family(f"layers `{family}-*`, batch {batch}", wanted, half, tuned))
    by_layers = {row["provider"] for row in half if row["useful_tflops"]}
    lines.append(("layers in `bench conv`, by", *_split(list(PROVIDERS), by_layers)))
    ran = {name for t in tuned for name in t.microseconds} | {algorithm_of(row) for row in rows}
    lines.append(("algorithms, each alone", *_split([name for name in registry.ALGORITHMS if name not in NO_TRITON], ran)))
    dtypes = {row["dtype"] for row in rows} | {t.problem.dtype for t in tuned}
    lines.append(("dtypes", *_split(["float16", "bfloat16", "float32"], dtypes)))
    return lines


def _family(what: str, wanted: Mapping[str, ConvProblem], rows: Sequence[Row], tuned: Sequence[Tuned]) -> tuple[str, str, str]:
    """The cases of a family: measured at all, and beside a peer."""
    ours = {_shape(t.problem) for t in tuned}
    ours |= {_shape(problem_of(r)) for r in rows if r["provider"].startswith(OURS + "auto")}
    compared = {r["kernel_name"] for r in rows if r["provider"].startswith(OURS + "auto") and r["peer"]}
    alone = sum(_shape(problem) in ours for problem in wanted.values())
    beside = sum(name in compared for name in wanted)
    total = len(wanted)
    have = f"{alone} of {total} by lk_triton, {beside} of them beside a peer" if alone else "none"
    lack = [f"{total - alone} of {total}"] if alone < total else []
    lack += [f"{alone - beside} beside a peer"] if beside < alone else []
    return what, have, ", ".join(lack)


def _shape(problem: Problem) -> tuple[object, ...]:
    kernel = (problem.kh, problem.kw) if isinstance(problem, ConvProblem) else ()
    return (problem.n, problem.c, problem.h, problem.w, kernel, getattr(problem, "stride", ()), problem.dtype)


def _split(universe: Sequence[str], found: set[str]) -> tuple[str, str]:
    """Names that are there, and those that are not."""
    if not found & set(universe):
        return "none", "all"
    there, absent = ([f"`{name}`" for name in universe if (name in found) == wanted] for wanted in (True, False))
    return ", ".join(there), ", ".join(absent)


# A folder of results


def visit(measured: Measured) -> str:
    """What a folder of results holds: the files, and under which versions they were measured; what failed."""
    lines = []
    for file in sorted(measured.files):
        rows = [row for row in measured.rows if row["file"] == file.name]
        tuned = [t for t in measured.tuned if t.file == file.name]
        device = ", ".join(dict.fromkeys([row["device"] for row in rows] + [t.device for t in tuned]))
        versions = dict.fromkeys(
            [f"torch {row['torch_version']}, triton {row['triton_version']}" for row in rows]
            + [f"torch {t.versions.get('torch')}, triton {t.versions.get('triton')}" for t in tuned]
        )
        commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
        holds = f"{len(rows)} rows" if rows else f"{len(tuned)} problems"
        lines.append((f"`{file.name}`", holds, device, ", ".join(versions), commits))
    parts = [table(lines, ("file", "holds", "device", "versions", "commit"))]
    failed = measured.failed()
    if failed:
        parts.append("Failed, and therefore without a figure:\n\n" + "\n".join(f"- {text}" for text in failed))
    return "\n\n".join(parts)


def source(rows: Sequence[Row], device: str = "", dtype: str = "", versions: Sequence[Mapping[str, str | None]] = ()) -> str:
    """Where the figures of a table come from."""
    device, dtype = device or rows[0]["device"], dtype or rows[0]["dtype"]
    torch = {row["torch_version"] for row in rows} | {v.get("torch") or "" for v in versions}
    triton = {row["triton_version"] for row in rows} | {v.get("triton") or "" for v in versions}
    commits = sorted({row["commit"] for row in rows})
    text = f"{device}, {dtype}, torch {', '.join(sorted(torch))}, Triton {', '.join(sorted(triton))}"
    return f"{text}, commit {', '.join(commits)}:" if commits else f"{text}:"


def table(lines: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """A Markdown table, cells as wide as they are."""
    rule = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


GENERATORS: dict[str, Callable[[Measured], str]] = {
    "networks": networks,
    "layers": layers,
    "all-layers": all_layers,
    "model-error": error_of_model,
    "missing": missing,
    "visit": visit,
}
"""Name of a block -> what stands in it."""
