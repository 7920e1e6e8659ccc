"""The tables that ship: entries of this version, legal on the device that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.bench import measured
from lk_triton.planning import cache, entry

FILES = sorted(cache.TABLES.glob("*.json"))


def test_tables_are_of_devices_whose_results_are_kept() -> None:
    lines = (Path(__file__).parents[2] / "bench" / "results").glob("*/*.jsonl")
    tuned = {cache.file_name(t.device) for t in measured.read(lines).tuned}
    assert "NVIDIA_H100_80GB_HBM3.json" in tuned
    assert {file.name for file in FILES} == tuned


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_entries_are_in_use(file: Path) -> None:
    table = json.loads(file.read_text())
    device = gpus.named(table["device"])
    assert device is not None
    assert device.arch == table["arch"]
    assert table["entries"]
    for data in table["entries"]:
        assert not entry.stale(data), (
            f"{data['algorithm']} has changed since it was measured: measure again with lk-triton tune, or remove its entries"
        )
        found = entry.from_json(data)
        assert found.config in registry.get(found.algorithm).configs(found.problem, device)
        assert found.spread >= 1
