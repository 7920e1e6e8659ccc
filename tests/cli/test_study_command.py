"""``lk-triton study kernel-size``, on tiny networks where it measures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import check

from lk_triton.cli import main
from lk_triton.models import RepLKNet, registry
from lk_triton.models.analysis import kernel_size, published

if TYPE_CHECKING:
    from browser import Browser

pytestmark = pytest.mark.usefixtures("no_interpreter", "one_thread")


def tiny(kernels: int) -> Any:
    def factory(**kwargs: Any) -> RepLKNet:
        tiny: dict[str, Any] = {"layers": (1, 1), "channels": (8, 16), "small_kernel": 3}
        return RepLKNet(**{"large_kernel_sizes": (kernels, kernels), **tiny, **kwargs})

    return factory


@pytest.fixture
def tiny_variants() -> Iterator[None]:
    """Tiny networks in the places of the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        for i, kernels in enumerate(kernel_size.VARIANTS):
            patch.setitem(registry._factories, f"tiny_{i}", tiny(2 * i + 3))
            patch.setitem(kernel_size.VARIANTS, kernels, f"tiny_{i}")
        yield


def test_measured(tiny_variants: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Browser) -> None:
    out = tmp_path / "out"
    assert main(["study", "kernel-size", "--size", "32", "--device", "cpu", "--batch", "2", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert found["estimated"] == "h100, batch 64, float16, 32x32"
    assert found["measured"].startswith("cpu, 1 threads, batch 2, float32")
    assert [row["kernels"] for row in rows] == [row["kernels"] for row in published.table("kernel_size").records()]
    assert all(row["measured_ms"] > 0 and row["measured_torch_ms"] > 0 and row["spread"] >= 1 for row in rows)
    assert all(0 < a["large_kernel_macs"] < b["large_kernel_macs"] for a, b in pairwise(rows))
    assert next(csv.DictReader((out / "kernel_size.csv").open()))["model"] == "tiny_0"
    assert {p.name for p in out.iterdir()} == {"kernel_size.csv", "kernel_size.png", "report.html"}
    numbers = [f"{row[key]:.1f} ms" for row in rows for key in ("measured_ms", "measured_torch_ms")]
    numbers += [f"{row['estimate_us']:.1f} us" for row in rows]
    check(browser, out / "report.html", *numbers, "83.07", "49.17", "by the cost model, not measured".capitalize())


def test_without_measuring(tiny_variants: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "kernel-size", "--no-measure", "--arch", "sm_80", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "estimated, not measured: a100, batch 64, float16" in out
    assert "whole network, measured: not measured" in out
    assert main(["study", "kernel-size", "--no-measure", "--arch", "z80", "--out", str(tmp_path)]) == 2
    assert "unknown architecture 'z80'" in capsys.readouterr().err
