"""The list of what GPUs have confirmed is what the committed result files prove, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lk_triton.algorithms import registry
from lk_triton.planning import confirmed
from lk_triton.planning.confirmed import Row, collect, result_files


def test_every_row_has_a_result_file() -> None:
    found = collect(result_files())
    assert list(confirmed.rows()) == found, (
        "confirmed.json is not what the result files prove: run python -c "
        "'from lk_triton.planning import confirmed as c; c.write(c.collect(c.result_files()))'"
    )
    assert {row.form for row in found} >= {"toeplitz", "direct", "pointwise"}
    assert not {row.form for row in found} & {"torch", "onednn", "layerwise"}


def trial(algorithm: str, microseconds: float | None, **more: object) -> dict[str, object]:
    config = {"channels": 0} if algorithm == "direct" else {}
    return {"algorithm": algorithm, "config": config, "microseconds": microseconds, **more}


def written(folder: Path, *trials: dict[str, object], **header: object) -> Path:
    head = {"type": "device", "arch": "sm_90", "versions": {"triton": "3.7.1"}} | header
    file = folder / "bench" / "results" / "some" / "configs.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [head, {"type": "error"}, {"type": "result", "trials": trials}, {"type": "summary"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_what_passed_the_gate_is_confirmed(tmp_path: Path) -> None:
    trials = (
        trial("resident", 5.0, form="resident", version=3), trial("toeplitz_hopper", 4.0, form="toeplitz_hopper", version=3),
        trial("stem", None, form="stem", version=1), trial("toeplitz", 1.0), trial("pair", 2.0, form="pair", version=1),
        trial("gone", 2.0), {**trial("direct", 1.0), "config": {"channels": 8}},
    )  # fmt: skip
    written(tmp_path, *trials)
    files = result_files(tmp_path)
    name = "bench/results/some/configs.jsonl"
    assert collect(files, tmp_path) == [
        Row("direct_channels_last", 1, "sm_90", "3.7.1", name),
        Row("toeplitz", 1, "sm_90", "3.7.1", name),
        Row("toeplitz_hopper", 3, "sm_90", "3.7.1", name),
    ]
    confirmed.write(collect(files, tmp_path), tmp_path / "rows.json")
    assert [Row(**r) for r in json.loads((tmp_path / "rows.json").read_text())] == collect(files, tmp_path)
    written(tmp_path, *trials, rehearsal=True)
    assert collect(files, tmp_path) == []


def test_a_proof_counts_where_it_was_made_or_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmed, "rows", lambda: (Row("form", 2, "sm_90", "3.6.0", "file"),))
    assert confirmed.confirmed("form", 2, "sm_90", everywhere=False)
    assert confirmed.confirmed("form", 2, "sm_80", everywhere=True)
    assert not confirmed.confirmed("form", 2, "sm_80", everywhere=False)
    assert not confirmed.confirmed("form", 3, "sm_90", everywhere=True)
    assert not confirmed.confirmed("other", 2, "sm_90", everywhere=True)
    assert [name for name, a in registry.ALGORITHMS.items() if a.hand_synchronized] == ["toeplitz_hopper"]
