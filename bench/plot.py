"""A roofline of what a CSV of ``bench conv`` holds: useful FLOP per compulsory byte against useful TFLOP/s.

What ``bench network`` wrote is drawn by ``network_plot.py``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import atan2, degrees
from pathlib import Path
from typing import TYPE_CHECKING

from lk_triton import gpu as gpus
from lk_triton.gpu import Gpu
from lk_triton.ops.problem import ConvProblem

from . import network_plot, report, usage
from .floor import compulsory_bytes, mma_tflops
from .providers import OURS, PROVIDERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PEER_COLOURS = ("#7f7f7f", "#4c78a8", "#9467bd", "#8c564b")
OUR_COLOURS = ("#d62728", "#ff9896", "#ff7f0e", "#2ca02c", "#bcbd22", "#17becf")
MARKERS = "osD^v<>Ph*X"
Row = Mapping[str, str]


def problem_of(row: Row) -> ConvProblem:
    """The problem of a row, of stride 1 and "same" padding as all cases are.

    Raises:
        UsageError: the row does not say which.
    """
    sizes = [row[field] for field in ("n", "c", "h", "w", "kh", "kw")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes) or row["dtype"] not in usage.DTYPES.values():
        raise usage.UsageError(f"the row of {row['kernel_name']}, {row['provider']} lacks its sizes or its dtype")
    n, c, h, w, kh, kw = map(int, sizes)
    return ConvProblem(n, c, h, w, kh, kw, padding=(kh // 2, kw // 2), dtype=row["dtype"])


def intensity(row: Row) -> float:
    """Useful FLOP per compulsory byte."""
    problem = problem_of(row)
    return 2 * problem.useful_macs / compulsory_bytes(problem)


def roofline(rows: Sequence[Row]) -> Figure:
    """One mark a provider and case, under the roofs of the device where its facts are known.

    Raises:
        UsageError: matplotlib is missing, or the rows are of more than one device or dtype, or none is measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise usage.missing_extra("matplotlib", "plot") from None
    rows = report.latest(rows)
    if not rows:
        raise usage.UsageError("nothing to plot: no row has a figure")
    report.check_one_device(rows)
    figure = Figure(figsize=(12, 7.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", ylabel="useful TFLOP/s")
    axes.set_xlabel("arithmetic intensity: useful FLOP per byte that must move")
    draw_marks(axes, rows)
    limits(axes, rows)
    facts = gpus.named(rows[0]["device"])
    if facts is not None:
        draw_roofs(axes, facts, rows[0]["dtype"])
    name_cases(axes, rows)
    axes.grid(which="major", color="0.93")
    axes.set_axisbelow(True)
    roofs = "" if facts else " (no roofs: the facts of this device are not known)"
    first = rows[0]
    title = f"{first['device']}, {first['dtype']}, torch {first['torch_version']}, triton {first['triton_version']}"
    figure.suptitle(f"{title}, commit {first['commit']}{roofs}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw_marks(axes: Axes, rows: Sequence[Row]) -> None:
    """Peers in cool colours, lk_triton's in warm ones and on top."""
    present = {row["provider"] for row in rows}
    names = [name for name in PROVIDERS if name in present] + sorted(present - PROVIDERS.keys())
    ours, peers = iter(OUR_COLOURS * len(names)), iter(PEER_COLOURS * len(names))
    for i, name in enumerate(names):
        own = name.startswith(OURS)
        mine = [row for row in rows if row["provider"] == name]
        axes.scatter(
            [intensity(row) for row in mine], [float(row["useful_tflops"]) for row in mine],
            label=name, marker=MARKERS[i % len(MARKERS)], color=next(ours if own else peers),
            s=46 if own else 38, zorder=4 if own else 3, alpha=0.85, edgecolors="white", linewidths=0.6,
        )  # fmt: skip


def limits(axes: Axes, rows: Sequence[Row]) -> None:
    """Room around the marks, in both directions."""
    xs, ys = [intensity(row) for row in rows], [float(row["useful_tflops"]) for row in rows]
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    axes.set_ylim(min(ys) / 2, max(ys) * 2)


def draw_roofs(axes: Axes, gpu: Gpu, dtype: str) -> None:
    """DRAM and L2 bandwidth as slopes that end at the MMA peak; the peaks of FMA and MMA as levels."""
    left, right = axes.get_xlim()
    mma = mma_tflops(gpu, dtype)
    axes.set_ylim(top=max(axes.get_ylim()[1], mma * 2))
    bottom = axes.get_ylim()[0]
    for name, gbps, style in (("DRAM", gpu.dram_gbps, "-"), ("L2", gpu.l2_gbps, ":")):
        ridge = mma / gbps * 1e3
        xs = [left, max(left, min(ridge, right))]
        axes.plot(xs, [x * gbps / 1e3 for x in xs], color="black", linestyle=style, linewidth=1.2, zorder=2)
        x = max(left, bottom / gbps * 1e3) * 1.06
        y = x * gbps / 1e3
        axes.text(
            x, y * 1.08, f"{name} {gbps / 1e3:.2g} TB/s", rotation=degrees(atan2(y, x)), rotation_mode="anchor",
            transform_rotates_text=True, va="bottom", fontsize=9,
        )  # fmt: skip
    for name, peak, style in (("FMA", gpu.fp32_tflops, "--"), ("MMA", mma, "-")):
        start = min(max(left, peak / gpu.dram_gbps * 1e3), right)
        axes.plot([start, right], [peak, peak], color="black", linestyle=style, linewidth=1.2, zorder=2)
        axes.annotate(
            f"{name}\n{peak:.3g} TFLOP/s", (right, peak), (4, 0), textcoords="offset points", va="center", fontsize=9
        )


def name_cases(axes: Axes, rows: Sequence[Row]) -> None:
    """Above the plot, each with a line down to its marks; names are pushed apart where they would overlap."""
    from matplotlib.transforms import blended_transform_factory

    where = {row["kernel_name"]: intensity(row) for row in rows}
    names = sorted(where, key=lambda name: where[name])
    size = min(8.5, 780 / len(names) / 1.35)  # of the letters, in points; the axes are about 780 points wide
    to_axes = axes.transScale + axes.transLimits
    wanted = [float(to_axes.transform((where[name], axes.get_ylim()[0]))[0]) for name in names]
    mixed = blended_transform_factory(axes.transData, axes.transAxes)
    for name, at in zip(names, spread(wanted, size * 1.35 / 780), strict=True):
        axes.axvline(where[name], color="0.85", linewidth=0.7, zorder=1)
        axes.annotate(
            name, (where[name], 1), (at, 1.06), xycoords=mixed, textcoords="axes fraction",
            rotation=90, ha="center", va="bottom", fontsize=size,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0, "relpos": (0.5, 0)},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions in 0 to 1, moved as little as keeps them ``gap`` apart (or equally far, where 1 is too short)."""
    if (len(wanted) - 1) * gap >= 1:
        return [i / (len(wanted) - 1) for i in range(len(wanted))]
    # Without the gaps the positions must only not descend: neighbours that do are pooled at their mean.
    pools: list[tuple[float, int]] = []
    for i, position in enumerate(wanted):
        mean, count = position - i * gap, 1
        while pools and pools[-1][0] > mean:
            before, number = pools.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        pools.append((mean, count))
    room = 1 - (len(wanted) - 1) * gap
    level = [min(max(mean, 0.0), room) for mean, count in pools for _ in range(count)]
    return [position + i * gap for i, position in enumerate(level)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv", help="what bench conv or bench network wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture; .svg and .pdf work too")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="shell patterns; default: all")
    parser.add_argument("--device", default="*", metavar="PATTERN", help="of its name; needed where there are several")
    parser.add_argument("--dtype", type=usage.dtype, metavar="T", help="needed where there are several")


def run(options: argparse.Namespace) -> int:
    """Write the picture."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise usage.missing_extra("matplotlib", "plot") from None
    usage.check_out(options.out, [f".{name}" for name in FigureCanvasBase.get_supported_filetypes()])
    rows = [
        row for row in report.read(options.files)
        if fnmatchcase(row["device"], options.device) and options.dtype in (None, row["dtype"])
        and any(fnmatchcase(row["kernel_name"], pattern) for pattern in options.cases)
    ]  # fmt: skip
    networks = [row for row in rows if network_plot.is_network(row)]
    if networks and len(networks) < sum(row["p50_us"] != "" for row in rows):
        raise usage.UsageError("rows of layers and of networks: choose some with --cases")
    (network_plot.scatter(networks) if networks else roofline(rows)).savefig(options.out)
    print(options.out)
    return 0
