"""Drawings as PNG. Those with axes come in two inks, for light and for dark pages, on a transparent ground."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .erf import Area, Map
from .kernel_maps import Stage
from .shape_bias import Tally, categories

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "magma"
"""From nothing to the most; perceptually uniform, and it reads in grey too."""

INK, DARK_INK = "#1c1f23", "#e7e9ec"


def png(figure: Figure) -> bytes:
    """The figure, on a transparent ground."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=True)
    return stream.getvalue()


def on_white(png: bytes) -> bytes:
    """A PNG with a transparent ground, on white: for a file that is opened on its own."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGBA")
    stream = io.BytesIO()
    Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").save(stream, format="png")
    return stream.getvalue()


def two_inks(draw: Callable[[str], Figure]) -> tuple[bytes, bytes]:
    """What ``draw(ink)`` draws, for a light page and for a dark one."""
    return png(draw(INK)), png(draw(DARK_INK))


def heat_map(values: Map, areas: Mapping[int, Area]) -> bytes:
    """values (H, W) from 0 to 1 as colours, with a centred square and its percentage for each area."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=160)
    draw_heat_map(figure.add_axes((0, 0, 1, 1)), values, areas)
    return png(figure)


def side_by_side(maps: Mapping[str, tuple[Map, Mapping[int, Area]]], ink: str = INK) -> Figure:
    """The heat maps of several models in a row, named, with one colour bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(maps) + 0.7, 4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, (values, areas)) in zip(panels, maps.items(), strict=True):
        draw_heat_map(axes, values, areas)
        axes.set_title(name, color=ink, fontsize=11)
    bar = figure.colorbar(panels[-1].images[0], ax=list(panels), fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(colors=ink, labelsize=8)
    return figure


def draw_heat_map(axes: Axes, values: Map, areas: Mapping[int, Area]) -> None:
    """One heat map without ticks or frame. A square that is the whole image is left out, a name that would hide one too."""
    from matplotlib.patches import Rectangle

    h, w = values.shape
    axes.imshow(values, cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    named = 0
    for percent, area in sorted(areas.items()):
        if area.side >= min(h, w):
            continue
        left, top = w // 2 - area.side // 2 - 0.5, h // 2 - area.side // 2 - 0.5
        for colour, width in (("black", 2.4), ("white", 1.0)):
            axes.add_patch(Rectangle((left, top), area.side, area.side, fill=False, edgecolor=colour, linewidth=width))
        if area.side - named > min(h, w) / 8:
            named = area.side
            axes.annotate(
                f"{percent} %", (left, top), (3, -3), textcoords="offset points", va="top", color="white", fontsize=8,
                bbox={"facecolor": "black", "alpha": 0.55, "pad": 1.5, "edgecolor": "none"},
            )  # fmt: skip


def kernel_maps(stages: Sequence[Stage], ink: str = INK) -> Figure:
    """A column a stage: mean |w| per tap, above before the merge and below after it, each stage in one range of colours."""
    from matplotlib.figure import Figure

    rows = ("before", "after") if any(stage.before is not None for stage in stages) else ("after",)
    figure = Figure(figsize=(3 * len(stages), 3 * len(rows) + 0.3), dpi=130, layout="constrained")
    panels = figure.subplots(len(rows), len(stages), squeeze=False)
    for column, stage in enumerate(stages):
        maps = [getattr(stage, row) for row in rows]
        most = max(values.max() for values in maps if values is not None)
        for axes, row, values in zip(panels[:, column], rows, maps, strict=True):
            axes.set_axis_off()
            if values is not None:
                axes.imshow(values, cmap=COLOURS, vmin=0, vmax=most, interpolation="nearest")
                kh, kw = values.shape
                merging = f", {row} merging" if len(rows) > 1 else ""
                axes.set_title(f"{kh}x{kw}{merging}", color=ink, fontsize=10)
    return figure


def kernel_size(rows: Sequence[Mapping[str, Any]], ink: str = INK) -> Figure:
    """Relative to the first row: estimated time with torch's kernels and with ours; beside it the published top-1."""
    from matplotlib.figure import Figure

    names = [row["kernels"] for row in rows]
    figure = Figure(figsize=(8.4, 3.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label, colour, mark in (
        ("estimate_torch_us", "torch's kernels", MARK_COLOURS[1], "s"), ("estimate_us", "our kernels", MARK_COLOURS[0], "o"),
    ):  # fmt: skip
        left.plot(names, [row[key] / rows[0][key] for row in rows], marker=mark, color=colour, label=label)
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}x")
    left.set_title("depthwise layers, estimated: time over that of 3x3", color=ink, fontsize=10)
    left.legend(frameon=False, labelcolor=ink)
    right.plot(names, [row["published_top1"] for row in rows], marker="D", color=MARK_COLOURS[2])
    right.set_title("ImageNet top-1, published", color=ink, fontsize=10)
    for axes in (left, right):
        axes.tick_params(colors=ink, which="both", length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.grid(color=ink, alpha=0.12)
    return figure


MARKS = "osD^v<>Ph*X"
MARK_COLOURS = ("#d6562b", "#2f7fd1", "#2a9d5c", "#9b59c6", "#c79a1e", "#1aa3a3", "#c2428a", "#808890")
"""Legible on white and on near black."""


def shape_bias(results: Mapping[str, tuple[Tally, Mapping[str, Tally]]], ink: str = INK) -> Figure:
    """The usual plot: a row a class, a mark a model, from all texture to all shape; a line is a model's overall bias.

    ``results``: model -> (overall, by class). The top row has the overall bias with its interval.
    """
    from matplotlib.figure import Figure

    rows = ["all", *categories()]
    figure = Figure(figsize=(7.5, 7), dpi=130, layout="constrained")
    axes = figure.subplots()
    for i, (name, (overall, classes)) in enumerate(results.items()):
        colour, mark = MARK_COLOURS[i % len(MARK_COLOURS)], MARKS[i % len(MARKS)]
        tallies = {"all": overall, **classes}
        shift = 0.5 * ((i + 0.5) / len(results) - 0.5)  # so that marks of one bias do not hide each other
        biases = {rows.index(row) + shift: t.bias for row, t in tallies.items() if t.bias is not None}
        axes.scatter(list(biases.values()), list(biases), label=name, marker=mark, color=colour, s=42, zorder=3, clip_on=False)
        interval = overall.interval()
        if overall.bias is not None and interval is not None:
            axes.axvline(overall.bias, color=colour, linewidth=1.2, alpha=0.7, zorder=1)
            axes.plot(interval, (shift, shift), color=colour, linewidth=3, alpha=0.6, zorder=2, solid_capstyle="round")
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows)
    axes.set_xlabel("share of shape decisions", color=ink)
    top = axes.secondary_xaxis("top", functions=(lambda x: 1 - x, lambda x: 1 - x))
    top.set_xlabel("share of texture decisions", color=ink)
    for each in (axes, top):
        each.tick_params(colors=ink, length=0, pad=8)
        each.spines[:].set_visible(False)
    axes.grid(color=ink, alpha=0.12)
    axes.axhline(0.5, color=ink, alpha=0.5, linewidth=0.8)
    axes.set_axisbelow(True)
    columns = max(1, 72 // (max(map(len, results)) + 8))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, labelcolor=ink)
    return figure
