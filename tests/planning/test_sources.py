"""Where a plan comes from: explicit > user cache > shipped table > nearest shipped entry > cost model."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from statistics import geometric_mean

import pytest
import torch
from fakes import DENSE, FFN, H100, LAYER, SMALL, STEM, entry_of, pretend_ranks

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.gpu import Gpu
from lk_triton.ops.problem import DenseProblem, Epilogue, Problem
from lk_triton.planning import cache, entry
from lk_triton.planning.choice import SLOWER, Pair
from lk_triton.planning.entry import Entry
from lk_triton.planning.nearest import FARTHEST, distance, family
from lk_triton.planning.plan import Plan, plan

H200 = replace(H100, name="h200")
RESULTS = Path(__file__).parents[2] / "bench/results/h100-2026-11/configs.jsonl"


def ship(tables: Path, gpu: Gpu, *found: Entry) -> None:
    """Write a shipped table: what the user's cache would hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(tables))
        cache.record(gpu, found)
    cache.reload()


def common(a: Problem, b: Problem) -> Entry:
    """An entry for ``a`` whose config is legal for ``b`` too, and is not what the cost model would have chosen for ``a``."""
    toeplitz = registry.get("toeplitz")
    legal, predicted = toeplitz.configs(b, H100), plan(a, H100, "toeplitz").config
    index = next(i for i, c in enumerate(toeplitz.configs(a, H100)) if c in legal and c != predicted)
    return entry_of(a, index=index)


@pytest.mark.parametrize("problem", [LAYER, DENSE, FFN, STEM], ids=lambda problem: type(problem).__name__)
def test_only_sizes_differ_between_neighbours(problem: Problem) -> None:
    """Whatever else a problem has decides which kernel runs, or what it must do."""
    sizes = {"n", "h", "w"} | ({"c"} if problem is LAYER else set())
    for field in fields(problem):
        value = getattr(problem, field.name)
        if isinstance(value, tuple):
            others = [(value[0] + 1, value[1]), (value[0], value[1] + 1)]
        elif isinstance(value, Epilogue):
            others = [replace(value, activation="silu"), replace(value, residual=not value.residual)]
        else:
            others = [value + 1 if isinstance(value, int) else f"not {value}"]
        for other in others:
            assert replace(problem, **{field.name: other}).alike(problem) == (field.name in sizes), field.name


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours' configs are taken however slow the cost model thinks them."""
    monkeypatch.setattr("lk_triton.planning.choice.SLOWER", float("inf"))


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


def test_entries_of_what_is_left_out_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = entry_of(algorithm="direct", us=50.0)
    cache.record(H100, [direct, entry_of(index=2, us=60.0)])
    assert plan(LAYER, H100) == Plan("direct", direct.config, "user cache")
    monkeypatch.setenv("LK_TRITON_WITHOUT", "direct")
    assert plan(LAYER, H100) == Plan("toeplitz", entry_of(index=2).config, "user cache")
    assert plan(LAYER, H100, "direct") == Plan("direct", direct.config, "explicit")


def test_a_bank_takes_what_was_measured_with_it() -> None:
    toeplitz = registry.get("toeplitz")
    by_format = {toeplitz.weight_format(c): i for i, c in enumerate(toeplitz.configs(LAYER, H100))}
    assert len(by_format) > 1
    found = [entry_of(index=i, us=100.0 + i) for i in by_format.values()]
    cache.record(H100, found)
    for bank_format, e in zip(by_format, found, strict=True):
        assert plan(LAYER, H100, bank_format=bank_format) == Plan("toeplitz", e.config, "user cache")
    cache.record(H100, found[:1])
    other = list(by_format)[1]
    chosen = plan(LAYER, H100, bank_format=other)
    assert (chosen.source, toeplitz.weight_format(chosen.config)) == ("cost model", other)


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
    far, near = (common(replace(LAYER, n=n), LAYER) for n in (40, 48))
    assert distance(LAYER, far.problem) > distance(LAYER, near.problem) > 0
    taken = (near.config, plan(far.problem, H100, "toeplitz").config)
    other = next(c for c in registry.get("toeplitz").configs(LAYER, H100) if c not in taken)
    ship(tables, H100, replace(far, config=other, microseconds=1.0), near)
    assert plan(LAYER, H100) == Plan("toeplitz", near.config, "nearest shipped entry")
    illegal = replace(near, config=entry_of(SMALL).config)
    ship(tables, H100, illegal)
    assert plan(LAYER, H100) == Plan("toeplitz", other, "nearest shipped entry")


@pytest.mark.usefixtures("any_speed")
@pytest.mark.parametrize(
    ("change", "near"),
    [
        ({"n": 32}, True), ({"n": 31}, False), ({"c": 64}, True), ({"h": 40}, True), ({"h": 40, "w": 40}, True),
        ({"h": 28}, True), ({"h": 26}, False), ({"layout": "channel_major"}, False), ({"epilogue": Epilogue()}, False),
        ({"kh": 29, "padding": (14, 15)}, False), ({"dtype": "bfloat16"}, False), ({"padding": (14, 14)}, False),
    ],
)  # fmt: skip
def test_what_is_near(tables: Path, change: dict[str, object], near: bool) -> None:
    """Sizes may differ by a factor of two in all, and nothing else."""
    other = replace(LAYER, **change)
    ship(tables, H100, common(other, LAYER))
    assert (plan(LAYER, H100).source == "nearest shipped entry") == near


@pytest.mark.usefixtures("any_speed")
def test_channels_of_a_dense_layer_must_agree(tables: Path) -> None:
    """They decide how long its products are."""
    pointwise = registry.get("pointwise")
    config = next(c for c in pointwise.configs(DENSE, H100) if c != plan(DENSE, H100, "pointwise").config)
    for change, near in (({"c": 64}, False), ({"n": 48}, True)):
        other = replace(DENSE, **change)
        assert config in pointwise.configs(other, H100)
        ship(tables, H100, replace(entry_of(other, "pointwise"), config=config))
        assert (plan(DENSE, H100) == Plan("pointwise", config, "nearest shipped entry")) == near


@pytest.mark.usefixtures("any_speed")
def test_equally_near_entries(tables: Path) -> None:
    """Of this device before of another; and of its architecture family at all."""
    predicted = plan(LAYER, H100, "toeplitz").config
    first, second = [e for i in range(3) if (e := entry_of(index=i)).config != predicted][:2]
    problem = replace(LAYER, n=48)
    assert plan(problem, H100, "toeplitz").config not in (first.config, second.config)
    ship(tables, H200, replace(first, problem=problem))
    ship(tables, H100, replace(second, problem=problem))
    assert plan(LAYER, H100).config == second.config
    assert plan(LAYER, H200).config == first.config
    assert plan(LAYER, gpus.for_arch("sm_80")).source == "cost model"


# What a neighbour may say

NEAR = DenseProblem(64, 512, 14, 14, 512, layout="channel_major", out_layout="channel_major", epilogue=Epilogue(True, "relu"))


def slower(problem: Problem, least: float, most: float) -> Entry:
    """An entry of a ``pointwise`` config whose estimate is from ``least`` to ``most`` times the lowest one."""
    pointwise = registry.get("pointwise")
    seconds = [pointwise.estimate(problem, config, H100).seconds for config in pointwise.configs(problem, H100)]
    return entry_of(problem, "pointwise", next(i for i, s in enumerate(seconds) if least < s / min(seconds) <= most))


def test_a_neighbour_chooses_no_algorithm(tables: Path) -> None:
    """cuBLAS won nearby: here it still is the cost model that compares it with ``pointwise``, which it finds faster."""
    assert plan(NEAR, H100).algorithm == "pointwise"
    near = replace(NEAR, n=48)
    fastest, second = entry_of(near, "cublas", us=15.0), replace(slower(near, 1.0, SLOWER), microseconds=17.0)
    ship(tables, H100, fastest, second)
    assert plan(near, H100) == Plan("cublas", fastest.config, "shipped table")
    assert plan(NEAR, H100) == Plan("pointwise", second.config, "nearest shipped entry")


def test_a_neighbours_config_must_not_be_estimated_slower(tables: Path) -> None:
    """A large tile keeps every SM busy at batch 64, and too few at 36."""
    ship(tables, H100, replace(slower(NEAR, SLOWER, 2.0), problem=replace(NEAR, n=60)))
    assert plan(NEAR, H100).source == "cost model"


def test_a_neighbour_within_noise_says_nothing(tables: Path) -> None:
    """Where it was measured, what the cost model would have chosen there was as fast, by the spread of the rounds."""
    near = replace(NEAR, n=48)
    predicted = replace(entry_of(near, "pointwise"), config=plan(near, H100, "pointwise").config)
    fastest = replace(slower(near, 1.0, SLOWER), microseconds=100.0, spread=1.03)
    for us, source in ((103.0, "cost model"), (104.0, "nearest shipped entry")):
        ship(tables, H100, fastest, replace(predicted, microseconds=us, spread=1.02))
        assert plan(NEAR, H100).source == source
    ship(tables, H100, replace(predicted, microseconds=99.0))
    assert plan(NEAR, H100).source == "cost model"


def test_the_bound_follows_what_was_measured() -> None:
    """Another problem's fastest config against the cost model's own choice, where both were measured on an H100."""
    times = measured_on_an_h100()
    within, beyond = [], []
    for problem, other in product(times, repeat=2):
        if (
            problem == other
            or type(problem) is not type(other)
            or getattr(problem, "stride", None) != getattr(other, "stride", None)
        ):
            continue
        for name in {pair[0] for pair in times[problem].keys() & times[other].keys()} - {"cublas"}:
            own = {pair[1]: us for pair, us in times[problem].items() if pair[0] == name}
            fastest = min((us, str(pair), pair[1]) for pair, us in times[other].items() if pair[0] == name)[2]
            predicted = registry.get(name).estimate
            seconds = {config: predicted(problem, config, H100).seconds for config in own}
            if fastest in own:
                chosen = min(seconds, key=lambda config: seconds[config])
                ratios = within if seconds[fastest] <= SLOWER * seconds[chosen] else beyond
                ratios.append(own[fastest] / own[chosen])
    assert geometric_mean(within) == pytest.approx(1.0, abs=0.01)
    assert max(within) < 1.2
    assert geometric_mean(beyond) > 1.1


def measured_on_an_h100() -> dict[Problem, dict[Pair, float]]:
    """Problem -> config -> microseconds, of those that are legal; all problems are in float16."""
    found: dict[Problem, dict[Pair, float]] = {}
    for line in RESULTS.read_text().splitlines():
        data = json.loads(line)
        if data["type"] == "result":
            problem = entry.problem_from_json(data["problem"])
            legal = {name: registry.get(name).configs(problem, H100) for name in {t["algorithm"] for t in data["trials"]}}
            for trial in data["trials"]:
                config = entry.config_from_json(registry.get(trial["algorithm"]).config_type, trial["config"])
                if trial["microseconds"] is not None and config in legal[trial["algorithm"]]:
                    found.setdefault(problem, {})[trial["algorithm"], config] = trial["microseconds"]
    return found


def test_families_and_distance() -> None:
    assert family("sm_86") == family("sm_80") != family("sm_90") != family("sm_100")
    assert family("gfx942") == family("gfx940") != family("gfx90a")
    assert distance(LAYER, LAYER) == 0
    assert distance(LAYER, replace(LAYER, n=32, c=256)) == pytest.approx(2)
    assert 0 < FARTHEST < distance(LAYER, replace(LAYER, n=1))


def test_empty_batches_and_cpus_have_plans_too() -> None:
    assert plan(replace(LAYER, n=0), H100).source == "cost model"
    assert plan(LAYER, gpus.of(torch.device("meta"))).algorithm == "torch"
