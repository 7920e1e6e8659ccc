"""The authors' figures: well-formed, consistent with each other, and all in docs/results.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lk_triton.models.analysis import published
from lk_triton.models.analysis.kernel_size import cost

PAGE = Path(__file__).parents[3] / "docs/results.md"


@pytest.mark.parametrize("name", published.names())
def test_tables_are_well_formed_and_in_the_docs(name: str) -> None:
    table = published.table(name)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert any(source in table.source for source in published.sources())
    lines = [re.sub(r"\s*\|\s*", "|", line.strip()) for line in PAGE.read_text().splitlines()]
    for row in (table.columns, *table.rows):
        assert f"|{'|'.join(row)}|" in lines, f"docs/results.md lacks {row} of {name}"
    assert table.title in PAGE.read_text()


def test_what_the_paper_says_of_its_own_table() -> None:
    """From 3x3 to 31x31: 18.6 % more FLOPs, 10.4 % more parameters."""
    first, *_, last = published.table("kernel_size").records()
    assert float(last["GFLOPs"]) / float(first["GFLOPs"]) == pytest.approx(1.186, abs=5e-4)
    assert float(last["parameters, M"]) / float(first["parameters, M"]) == pytest.approx(1.104, abs=6e-4)


def test_unknown_table() -> None:
    with pytest.raises(KeyError):
        published.table("imagenet_2")


def test_our_counts_in_the_docs() -> None:
    """The table of what was counted here is what is counted here."""
    rows = re.findall(r"\| `(replknet_\w+)` \| (\d+) \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|", PAGE.read_text())
    assert len(rows) == 8
    for name, size, parameters, flops in rows:
        found = cost(name, int(size))
        assert (parameters, flops) == (f"{found.parameters / 1e6:.2f}", f"{found.macs / 1e9:.2f}"), name
