"""Drawings as PNG. Those with axes come in two inks, for light and for dark pages, on a transparent ground."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .erf import Area, Map

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
