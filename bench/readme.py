"""README's table of GPU speed, written from the CSV files in ``bench/results``; nobody types a figure."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tabulate import tabulate

from . import report, usage
from .providers import OURS

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- bench readme: begin -->", "<!-- bench readme: end -->"
NOT_MEASURED = "Layers on a GPU: not measured yet. `lk-triton bench readme` will write the table here, from `bench/results`."
SHOWN = ("31b-*", "wide-*", "slak-*", "convnext-*")
GRID = "table1-*"
Row = Mapping[str, str]


def block(rows: Sequence[Row]) -> str:
    """What stands between the markers: a table for each GPU and dtype."""
    rows = [row for row in report.latest(rows) if not row["device"].startswith("cpu")]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["device"], row["dtype"]), []).append(row)
    return "\n\n".join(section(group) for _, group in sorted(groups.items())) or NOT_MEASURED


def section(rows: Sequence[Row]) -> str:
    """One GPU and dtype: where the figures come from, the table with its losses, and the grid in one sentence."""
    pairs = {name: pair for name in dict.fromkeys(row["kernel_name"] for row in rows) if (pair := best(rows, name))}
    shown = {name: pair for name, pair in pairs.items() if any(fnmatchcase(name, pattern) for pattern in SHOWN)}
    first = rows[0]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    head = (
        f"{first['device']}, {first['dtype']}, torch {first['torch_version']}, triton {first['triton_version']}, commit "
        f"{commits}, `lk-triton bench conv`; medians in us, images outside L2. The floor is the larger of DRAM's and the "
        "tensor cores'."
    )
    table = tabulate(
        [line(name, *pair) for name, pair in shown.items()],
        ("layer", "x, kernel", "lk_triton", "fastest peer", "times as fast", "times the floor"),
        "github", disable_numparse=True,
    )  # fmt: skip
    grid = [ratio(*pair) for name, pair in pairs.items() if fnmatchcase(name, GRID)]
    parts = [head, table] if shown else [head]
    if grid:
        won = sum(r >= 1 for r in grid)
        span = f"{min(grid):.2f} to {max(grid):.1f} times as fast"
        parts.append(f"Table 1 of the paper: faster in {won} of {len(grid)} cases, {span}.")
    return "\n\n".join(parts)


def best(rows: Sequence[Row], name: str) -> tuple[Row, Row] | None:
    """A case's fastest row of this library's own choice, and its fastest peer's; None where either is missing."""
    of_case = [row for row in rows if row["kernel_name"] == name]
    ours = [row for row in of_case if row["provider"].startswith(OURS + "auto")]
    peers = [row for row in of_case if not row["provider"].startswith(OURS)]
    return (min(ours, key=median), min(peers, key=median)) if ours and peers else None


def median(row: Row) -> float:
    """Microseconds."""
    return float(row["p50_us"])


def ratio(ours: Row, peer: Row) -> float:
    """How many times as fast ours is."""
    return median(peer) / median(ours)


def line(name: str, ours: Row, peer: Row) -> tuple[str, ...]:
    """One line of the table."""
    shape = "x".join(ours[field] for field in ("n", "c", "h", "w"))
    least = float(ours["floor_us"]) if ours["floor_us"] else None
    return (
        name,
        f"{shape}, {ours['kh']}x{ours['kw']}",
        report.cell(median(ours)),
        f"{report.cell(median(peer))} ({peer['provider']})",
        f"{ratio(ours, peer):.2f}",
        f"{median(ours) / least:.2f} ({ours['floor_limiter']})" if least else "",
    )


def rewrite(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with ``content`` between the markers ``begin`` and ``end``.

    Raises:
        UsageError: the text does not have each marker once.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise usage.UsageError(f"expected the lines {begin!r} and {end!r}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where it is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="of CSV files; default: %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    """Write or check."""
    if not options.readme.exists():
        raise usage.UsageError(f"no {options.readme}: run it in a source tree, or pass --readme")
    if not options.check:
        usage.check_out(options.readme, [".md"])
    text = options.readme.read_text()
    wanted = rewrite(text, block(report.read(sorted(options.results.glob("*.csv")))))
    if options.check:
        if text != wanted:
            print(f"{options.readme} is out of date: lk-triton bench readme")
        return int(text != wanted)
    options.readme.write_text(wanted)
    return 0
