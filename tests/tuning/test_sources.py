"""Where a plan comes from: explicit > user cache > shipped table > nearest shipped entry > cost model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import H100, LAYER, SMALL, entry_of, pretend_ranks

import lk_triton
from lk_triton import device as devices
from lk_triton.algorithms import registry
from lk_triton.device import Device
from lk_triton.problem import DenseProblem, Epilogue, Problem
from lk_triton.tuning import cache
from lk_triton.tuning.entry import Entry
from lk_triton.tuning.nearest import FARTHEST, distance, family
from lk_triton.tuning.plan import Plan, plan

H200 = replace(H100, name="h200")


def ship(tables: Path, device: Device, *found: Entry) -> None:
    """Write a shipped table: what the user's cache would hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(tables))
        cache.record(device, found)
    cache.reload()


def common(a: Problem, b: Problem) -> Entry:
    """An entry for ``a`` whose config is legal for ``b`` too."""
    toeplitz = registry.get("toeplitz")
    legal = toeplitz.configs(b, H100)
    index = next(i for i, c in enumerate(toeplitz.configs(a, H100)) if c in legal)
    return entry_of(a, index=index)


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours' plans are taken however slow the cost model thinks them."""
    monkeypatch.setattr("lk_triton.tuning.plan.MUCH_SLOWER", float("inf"))


@pytest.mark.usefixtures("any_speed")
def test_the_order(tables: Path) -> None:
    assert plan(LAYER, H100).source == "cost model"
    near = replace(LAYER, n=32)
    ship(tables, H100, common(near, LAYER))
    assert plan(LAYER, H100).source == "nearest shipped entry"
    ship(tables, H100, entry_of(index=1))
    assert plan(LAYER, H100) == Plan("toeplitz", entry_of(index=1).config, "shipped table")
    cache.record(H100, [entry_of(algorithm="direct", us=50.0), entry_of(index=2, us=60.0)])
    assert plan(LAYER, H100) == Plan("direct", entry_of(algorithm="direct").config, "user cache")
    assert plan(LAYER, H100, "toeplitz") == Plan("toeplitz", entry_of(index=2).config, "explicit")
    with lk_triton.use("toeplitz"):
        assert plan(LAYER, H100) == Plan("toeplitz", entry_of(index=2).config, "preference")
    assert plan(LAYER, H100, "torch").source == "explicit"
    assert plan(LAYER, H200).source == "nearest shipped entry"
    cache.clear()
    assert plan(LAYER, H100).source == "shipped table"


def test_a_bank_takes_what_was_measured_with_it() -> None:
    toeplitz = registry.get("toeplitz")
    by_format = {toeplitz.bank_format(c): i for i, c in enumerate(toeplitz.configs(LAYER, H100))}
    assert len(by_format) > 1
    found = [entry_of(index=i, us=100.0 + i) for i in by_format.values()]
    cache.record(H100, found)
    for bank_format, e in zip(by_format, found, strict=True):
        assert plan(LAYER, H100, bank_format=bank_format) == Plan("toeplitz", e.config, "user cache")
    cache.record(H100, found[:1])
    other = list(by_format)[1]
    chosen = plan(LAYER, H100, bank_format=other)
    assert (chosen.source, toeplitz.bank_format(chosen.config)) == ("cost model", other)


def test_an_illegal_config_is_passed_over(tables: Path) -> None:
    """As of a device that has less shared memory than the one of that name that was measured."""
    ship(tables, H100, entry_of(index=1))
    foreign = replace(entry_of(), config=entry_of(SMALL).config)
    assert foreign.config not in registry.get("toeplitz").configs(LAYER, H100)
    cache.record(H100, [foreign])
    assert plan(LAYER, H100).source == "shipped table"


def test_lookups_follow_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert plan(LAYER, H100).source == "cost model"
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "other"))
    cache.record(H100, [entry_of()])
    assert plan(LAYER, H100).source == "user cache"
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    assert plan(LAYER, H100).source == "cost model"
    folder.mkdir()
    (folder / "h100.json").write_bytes((tmp_path / "other" / "h100.json").read_bytes())  # another process has tuned
    assert plan(LAYER, H100).source == "cost model"
    cache.reload()
    assert plan(LAYER, H100).source == "user cache"


def test_the_disk_is_read_once(monkeypatch: pytest.MonkeyPatch, tables: Path) -> None:
    ship(tables, H100, entry_of())
    plan(LAYER, H100)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(json, "loads", forbidden)
    for n in range(1, 20):
        plan(replace(LAYER, n=n), H100)


def test_ranks_of_a_job_take_the_same_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tables: Path) -> None:
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ship(tables, H100, entry_of(index=1))
    cache.record(H100, [entry_of(index=2)])
    assert plan(LAYER, H100).source == "user cache"
    pretend_ranks(monkeypatch, 2)
    assert plan(LAYER, H100).source == "shipped table"
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "lk_triton"))
    assert plan(LAYER, H100).source == "user cache"


# Nearest


@pytest.mark.usefixtures("any_speed")
def test_the_nearest_comes_first(tables: Path) -> None:
    far, near = (common(replace(LAYER, n=n), LAYER) for n in (16, 48))
    near = replace(near, config=common(near.problem, LAYER).config)
    assert distance(LAYER, far.problem) > distance(LAYER, near.problem) > 0
    other = next(c for c in registry.get("toeplitz").configs(LAYER, H100) if c != near.config)
    ship(tables, H100, replace(far, config=other, microseconds=1.0), near)
    assert plan(LAYER, H100) == Plan("toeplitz", near.config, "nearest shipped entry")
    illegal = replace(near, config=entry_of(SMALL).config)
    ship(tables, H100, illegal)
    assert plan(LAYER, H100) == Plan("toeplitz", other, "nearest shipped entry")


@pytest.mark.usefixtures("any_speed")
@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"n": 8}, True), ({"n": 4}, False), ({"h": 28, "w": 28, "n": 32}, True), ({"h": 14, "w": 14}, False),
        ({"layout": "channel_major"}, True), ({"epilogue": Epilogue()}, True),
        ({"kh": 29, "padding": (14, 15)}, False), ({"dtype": "bfloat16"}, False), ({"stride": (2, 2)}, False),
    ],
)  # fmt: skip
def test_what_is_alike(tables: Path, change: dict[str, object], alike: bool) -> None:
    ship(tables, H100, replace(entry_of(algorithm="direct"), problem=replace(LAYER, **change)))
    assert (plan(LAYER, H100).source == "nearest shipped entry") == alike


@pytest.mark.usefixtures("any_speed")
def test_equally_near_entries(tables: Path) -> None:
    """Of this device before of another; and of its architecture family at all."""
    first, second = (entry_of(index=i) for i in (1, 2))
    problem = replace(LAYER, epilogue=Epilogue())
    ship(tables, H200, replace(first, problem=problem))
    ship(tables, H100, replace(second, problem=problem))
    assert plan(LAYER, H100).config == second.config
    assert plan(LAYER, H200).config == first.config
    assert plan(LAYER, devices.for_arch("sm_80")).source == "cost model"


def test_a_neighbours_plan_that_is_much_slower_here_is_passed_over(tables: Path) -> None:
    """A large tile keeps every SM busy at batch 64, and 16 of 132 at batch 8."""
    many = DenseProblem(64, 4096, 7, 7, 1024, layout="channel_major", out_layout="channel_major")
    pointwise = registry.get("pointwise")
    config = next(c for c in pointwise.configs(many, H100) if (c.rows, c.columns) == (128, 256) and c.step_k == 64)
    ship(tables, H100, replace(entry_of(many, "pointwise"), config=config))
    assert plan(many, H100) == Plan("pointwise", config, "shipped table")
    assert plan(replace(many, n=60), H100) == Plan("pointwise", config, "nearest shipped entry")
    few = replace(many, n=8)
    assert config in pointwise.configs(few, H100)
    assert plan(few, H100).source == "cost model"


def test_families_and_distance() -> None:
    assert family("sm_86") == family("sm_80") != family("sm_90") != family("sm_100")
    assert family("gfx942") == family("gfx940") != family("gfx90a")
    assert distance(LAYER, LAYER) == 0
    assert distance(LAYER, replace(LAYER, n=32, c=256)) == pytest.approx(2)
    assert 0 < FARTHEST < distance(LAYER, replace(LAYER, n=1))


def test_empty_batches_and_cpus_have_plans_too() -> None:
    assert plan(replace(LAYER, n=0), H100).source == "cost model"
    assert plan(LAYER, devices.of(torch.device("meta"))).algorithm == "torch"
