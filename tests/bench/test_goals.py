"""docs/tuning.md's tables of estimates are what the cost model computes, and nobody types a figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from lk_triton import device
from lk_triton.bench import goals
from lk_triton.cli import main

H100 = device.TABLE["h100"]


def test_the_page_is_up_to_date() -> None:
    assert main(["bench", "goals", "--check"]) == 0


def test_it_rewrites_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{goals.BEGIN}\nstale\n{goals.END}\nafter\n")
    assert main(["bench", "goals", "--check", "--page", str(page)]) == 1
    assert "out of date" in capsys.readouterr().out
    assert main(["bench", "goals", "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{goals.BEGIN}\nGoals")
    assert text.endswith(f"{goals.END}\nafter\n")
    assert "stale" not in text
    with pytest.raises(SystemExit):
        goals.main(["--page", str(tmp_path / "none.md")])
    assert "none.md: run it in a source tree" in capsys.readouterr().err


def test_every_goal_of_the_list_has_a_line() -> None:
    wanted = {name: goal for name, _, goal in goals.wanted(H100)}
    assert {k: v for k, v in wanted.items() if k in goals.MICROSECONDS} == goals.MICROSECONDS
    assert {f"convnext-stage{i}-n64" for i in (1, 2, 3, 4)} < wanted.keys()
    assert {f"table1-r{r}-k{k}-n64" for r in (16, 32, 64) for k in (3, 5, 7)} < wanted.keys()
    table = goals.goals_table(H100).splitlines()[2:]
    assert len(table) == len(wanted)
    for line, goal in zip(table, wanted.values(), strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert ("missed" in cells[-1]) == (float(cells[2]) > goal)


def test_floors_scale_with_the_device() -> None:
    """A goal over the floor follows the device's DRAM; one in microseconds does not."""
    h200 = {name: goal for name, _, goal in goals.wanted(device.TABLE["h200"])}
    for name, _, goal in goals.wanted(H100):
        ratio = 1 if name in goals.MICROSECONDS else H100.dram_gbps / device.TABLE["h200"].dram_gbps
        assert h200[name] == pytest.approx(goal * ratio)
