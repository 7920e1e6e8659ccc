"""README's table is what ``bench/results`` holds, and nobody types a figure."""

from __future__ import annotations

from pathlib import Path

import bench_figures as figures
import pytest

from lk_triton.bench import readme, report, usage
from lk_triton.cli import main

TIMES = {"torch": 9.0, "torch_channels_last": 5.0, "lk_triton_auto": 1.5, "lk_triton_direct": 0.5}


def strings(rows: list[report.Row]) -> list[dict[str, str]]:
    return [{field: str(row.get(field, "")) for field in report.FIELDS} for row in rows]


def test_readme_is_up_to_date() -> None:
    assert main(["bench", "readme", "--check"]) == 0


def test_without_gpu_results_it_says_so() -> None:
    assert readme.block([]) == readme.NOT_MEASURED
    assert readme.block(strings(figures.rows(TIMES, "31b-*", device="cpu, 2 threads"))) == readme.NOT_MEASURED
    assert "not measured yet" in readme.NOT_MEASURED


def test_table_shows_wins_and_losses_and_where_they_come_from() -> None:
    losses = figures.rows(TIMES | {"lk_triton_auto": 10.0}, "31b-224-stage2-n64", "table1-r16-k3-*")
    text = readme.block(strings([*figures.rows(TIMES, "31b-224-*-n64", "table1-r16-*"), *losses]))
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "-n64" in line]
    lines = {name: rest for name, *rest in cells}
    assert list(lines) == [f"31b-224-stage{i}-n64" for i in (1, 2, 3, 4)]
    stage1, stage2 = lines["31b-224-stage1-n64"], lines["31b-224-stage2-n64"]
    assert stage1[0] == "64x128x56x56, 31x31"
    assert stage1[2].endswith("(torch_channels_last)")
    assert stage1[3:] == ["3.33", "1.50 (MMA)"]
    assert stage2[3:] == ["0.50", "10.00 (DRAM)"]
    assert "faster in 9 of 10 cases, 0.50 to 3.3 times as fast" in text
    for fact in (figures.GPU, "float16", "torch 2", "commit c0ffee", "lk-triton bench conv"):
        assert fact in text


def test_rewriting_twice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    report.append(results / "h100.csv", figures.rows(TIMES, "wide-*"))
    command = ["bench", "readme", "--readme", str(page), "--results", str(results)]
    assert main([*command, "--check"]) == 1
    assert "old" in page.read_text()
    assert "out of date" in capsys.readouterr().out
    assert main(command) == 0
    first = page.read_text()
    assert first.startswith(f"before\n{readme.BEGIN}\nNVIDIA H100")
    assert first.endswith(f"{readme.END}\nafter\n")
    assert main(command) == main([*command, "--check"]) == 0
    assert page.read_text() == first


def test_pages_without_markers_are_left_alone(tmp_path: Path) -> None:
    for text in ("", readme.BEGIN, f"{readme.END}\n{readme.BEGIN}"):
        with pytest.raises(usage.UsageError, match="once each"):
            readme.rewrite(text, "")
    assert main(["bench", "readme", "--readme", str(tmp_path / "none.md")]) == 2
