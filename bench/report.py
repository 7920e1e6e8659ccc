"""How results are written: rows of one CSV format, appended as they come, and a table for the eye."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path

import torch
from tabulate import tabulate

from lk_triton.gpu import interpreted, rehearsal
from lk_triton.planning.entry import versions
from lk_triton.planning.timing import Timing

from .usage import UsageError, check_out

FIELDS = (
    "kernel_name", "provider", "n", "c", "h", "w", "kh", "kw", "dtype", "layout",
    "p20_us", "p50_us", "p80_us", "min_us", "spread", "gb_per_s", "nominal_tflops", "useful_tflops", "images_per_s",
    "latency_p50_us", "latency_p99_us", "calls", "activation_mb", "weight_mb", "bank_mb",
    "depthwise_share", "pointwise_share", "rest_share", "kernels", "estimate_us",
    "floor_us", "floor_limiter", "floor_ratio", "peer", "speedup", "graph_speedup", "error", "torch_error", "gate", "note",
    "device", "sms", "torch_version", "triton_version", "lk_triton_version", "commit", "config", "problem", "timestamp",
    "rehearsal",
)  # fmt: skip
"""Columns. GB/s: of the bytes that must move. Nominal FLOP: every tap; useful: those that meet a pixel. ``floor_ratio``: time
over floor. ``speedup``: over ``peer``, the fastest that is not lk_triton; of networks over the published form, and
``graph_speedup`` over that as a CUDA graph. ``gate``: ok, failed, peer (other weights, nothing to compare with), or empty (did
not run). ``sms``: the GPU's number of them. ``problem``: all its fields as JSON. ``rehearsal``: true, or empty.

Of networks: latency of single calls, each waited for, of how many; in 10^6 bytes, peak memory of a forward beside its weights,
these with their banks, and the banks alone; shares of the kernels' time, and how many kernels; the cost model's sum over the
layers."""

NOTE_WIDTH = 60
"""Characters, in a table."""

WORDS = ("kernel_name", "provider", "peer", "gate", "note", "device", "dtype", "algorithm", "limiter", "worst_case")
"""Columns that stand to the left."""

TEXT = (
    "kernel_name", "provider", "dtype", "layout", "floor_limiter", "peer", "gate", "note", "device", "torch_version",
    "triton_version", "lk_triton_version", "commit", "config", "problem", "timestamp", "error", "torch_error",
    "rehearsal",
)  # fmt: skip
"""Columns that need be no finite numbers."""

Row = dict[str, object]


def facts(device: torch.device) -> Row:
    """What every figure must name: device, versions, commit, time."""
    sms: Row = {}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        sms["sms"] = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    if interpreted():
        name += ", Triton interpreted"
    return {
        "device": name,
        **sms,
        **{f"{package}_version": versions()[package] or "none" for package in ("torch", "triton", "lk_triton")},
        "commit": commit(),
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rehearsal": "true" if rehearsal() else "",
    }


def commit() -> str:
    """LK_TRITON_COMMIT, else the commit of this source tree, with ``+`` for uncommitted changes."""
    named = os.environ.get("LK_TRITON_COMMIT")
    if named:
        return named
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head, dirty = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def figures(timing: Timing) -> Row:
    """The timing columns."""
    columns = {f"p{q}_us": timing.quantile(q / 100) for q in (20, 50, 80)}
    columns |= {"min_us": min(timing.rounds), "spread": timing.spread}
    return {name: short(value) for name, value in columns.items()}


def short(value: float) -> float:
    """Five significant digits: no timing has more."""
    return float(f"{value:.5g}")


def start(file: Path | None, missing: bool = False) -> None:
    """See to it that rows can be appended to ``file`` (--out), before anything is measured; a new file has its header then.

    Raises:
        UsageError: it cannot be written, is not called .csv, or has other columns: another version wrote it. Or there is none,
            and what is ``missing`` in it was asked for.
    """
    if file is None:
        if missing:
            raise UsageError("--missing leaves out what --out holds: name that file too")
        return
    check_out(file, [".csv"], makes_folders=True)
    try:
        append(file, [])
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None


def append(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Append rows; writes the header into a new file. The file is complete after every call.

    Raises:
        UsageError: the file has other columns: another version wrote it.
    """
    new = not file.exists() or file.stat().st_size == 0
    if not new:
        with file.open(newline="", encoding="utf-8", errors="replace") as stream:
            header = stream.readline().rstrip("\r\n").split(",")
        if tuple(header) != FIELDS:
            differing = ", ".join(sorted(set(header) ^ set(FIELDS))) or "only their order"
            raise UsageError(f"{file} has other columns than this version writes ({differing}): name another file")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer: csv.DictWriter[str] = csv.DictWriter(stream, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def kept(file: Path | None, rows: Sequence[Mapping[str, object]]) -> bool:
    """``append``, where there is a file; False, said on stderr, where that fails: the caller can still print the rows."""
    try:
        if file is not None:
            append(file, rows)
    except (OSError, UsageError) as error:
        print(f"error: these rows are not in {file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return False
    return True


def done(file: Path, facts: Mapping[str, object]) -> dict[tuple[str, str], dict[str, str]]:
    """(kernel_name, provider) -> the last row in ``file`` of the same device, commit, batch, size and dtype."""
    same = {name: str(facts[name]) for name in ("device", "commit", "rehearsal", "n", "c", "h", "w", "dtype")}
    return {(row["kernel_name"], row["provider"]): row for row in read([file]) if same.items() <= row.items()}


def read(files: Iterable[Path]) -> list[dict[str, str]]:
    """All rows of some files, in order; columns that an older file does not have are empty.

    Raises:
        UsageError: a file cannot be read, or is no CSV of ours: it has no such columns, rows of another length, or something
            else than numbers in them.
    """
    rows: list[dict[str, str]] = []
    for file in files:
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                found = list(reader)
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error):
            raise UsageError(f"{file} is no CSV file of bench conv or bench network") from None
        if not {"kernel_name", "p50_us"} <= set(reader.fieldnames or FIELDS):
            raise UsageError(f"{file} is no CSV file of bench conv or bench network: it lacks their columns")
        for number, row in enumerate(found, 1):
            reason = _why_wrong(row)
            if reason is not None:
                raise UsageError(f"{file}, row {number}: {reason}")
            rows.append(dict.fromkeys(FIELDS, "") | row)
    return rows


def _why_wrong(row: Mapping[str | None, str]) -> str | None:
    """What in a row no version of ours would have written, or None."""
    if None in row or None in row.values():
        return f"it has {'more' if None in row else 'fewer'} cells than the file has columns"
    for column in set(FIELDS).difference(TEXT) & row.keys():
        if row[column] and not _is_number(row[column]):
            return f"{column} is {row[column]!r}, expected a number"
    return None


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def latest(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The last measured row of each provider for each case, dtype and device, in the order of first appearance."""
    key = ("device", "dtype", "kernel_name", "provider")
    return list({tuple(row[k] for k in key): row for row in rows if row["useful_tflops"]}.values())


def check_one_device(rows: Collection[Mapping[str, str]]) -> None:
    """Of what becomes one picture.

    Raises:
        UsageError: the rows are of more than one device or dtype.
    """
    for field in ("device", "dtype"):
        if len(found := sorted({row[field] for row in rows})) > 1:
            raise UsageError(f"rows of more than one {field} ({', '.join(found)}): choose one with --{field}")


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Some columns of the rows, without those that are empty in all of them."""
    columns = [c for c in columns if any(row.get(c, "") != "" for row in rows)]
    cells = [[cell(row.get(c, "")) for c in columns] for row in rows]
    sides = ["left" if c in WORDS else "right" for c in columns]
    widths = [NOTE_WIDTH if c == "note" else None for c in columns]
    return tabulate(cells, columns, "simple", disable_numparse=True, colalign=sides, maxcolwidths=widths)


def cell(value: object) -> str:
    """Four digits, more where they stand before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
