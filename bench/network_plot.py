"""What a CSV of ``bench network`` holds, against the accuracy that was published: images per second and ImageNet top-1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lk_triton.models.analysis import published

from . import report, usage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, str]
NAMES = {"replknet_31b": "31B", "replknet_31l": "31L", "replknet_xl": "XL"}
COLOURS = {"lk_triton": "#d62728", "timm": "#4c78a8"}
OTHER_COLOUR = "#7f7f7f"
MARKERS = "osD^v<>P"


def top1() -> dict[tuple[str, int], float]:
    """ImageNet-1K top-1 in percent, by network and input size; RepLKNet's first published weights of that size."""
    found: dict[tuple[str, int], float] = {}
    names = {short: name for name, short in NAMES.items()}
    for record in published.table("imagenet").records():
        found.setdefault((names[record["network"]], int(record["input"])), float(record["top-1"]))
    for record in published.table("peers").records():
        found[record["network"], int(record["input"])] = float(record["top-1"])
    return found


def is_network(row: Row) -> bool:
    """Whether a row is a network's, not a layer's."""
    return row["images_per_s"] != ""


def accuracy(row: Row) -> float | None:
    """The published top-1 of a row's network at its size, where there is one."""
    name, size = row["kernel_name"].removesuffix(f"-{row['h']}"), row["h"]
    return top1().get((name, int(size))) if size.isdecimal() else None


def scatter(rows: Sequence[Row]) -> Figure:
    """One panel a batch size: a mark for each network and form, the last measurement of each.

    Raises:
        UsageError: matplotlib is missing, or the rows are of more than one device or dtype, or none has a figure and a
            published accuracy.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise usage.missing_extra("matplotlib", "plot") from None
    last = {(row["kernel_name"], row["h"], row["provider"], row["n"]): row for row in rows if accuracy(row) is not None}
    if not last:
        raise usage.UsageError("nothing to plot: no row has a figure and a published accuracy")
    report.check_one_device(last.values())
    batches = sorted({int(row["n"]) for row in last.values()})
    figure = Figure(figsize=(6.5 * len(batches), 5.5), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    forms = list(dict.fromkeys(form(row) for row in last.values()))
    for axes, batch in zip(panels, batches, strict=True):
        mine = [row for row in last.values() if int(row["n"]) == batch]
        for i, name in enumerate(forms):
            marks = [row for row in mine if form(row) == name]
            colour = next((c for start, c in COLOURS.items() if name.startswith(start)), OTHER_COLOUR)
            axes.scatter(
                [float(row["images_per_s"]) for row in marks], [accuracy(row) for row in marks],
                label=name, marker=MARKERS[i % len(MARKERS)], color=colour, s=48, alpha=0.85, edgecolors="white",
            )  # fmt: skip
        best: dict[str, Row] = {}
        for row in mine:
            best[row["kernel_name"]] = max(best.get(row["kernel_name"], row), row, key=lambda r: float(r["images_per_s"]))
        for name, row in best.items():
            at = (float(row["images_per_s"]), accuracy(row))
            axes.annotate(name, at, (0, 7), textcoords="offset points", ha="right", fontsize=8)
        axes.set(xscale="log", xlabel="images per second", title=f"batch {batch}")
        axes.margins(0.12, 0.18)
        axes.grid(which="both", color="0.93")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("published ImageNet-1K top-1, percent")
    first = next(iter(last.values()))
    figure.suptitle(
        f"{first['device']}, {first['dtype']}, torch {first['torch_version']}, commit {first['commit']}", fontsize=10
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def form(row: Row) -> str:
    """The form of a row, without the peer's name."""
    return row["provider"].split("/")[0]
