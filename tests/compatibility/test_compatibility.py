"""What users have keeps working: files that an earlier version wrote (``files/``, by ``make.py``), and names that they use."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import public_names
import pytest
import torch
from make import answer_of_run, layers
from public_names import Parameter
from torch import nn

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.bench import measured, report
from lk_triton.models import RepLKNet, load_checkpoint
from lk_triton.planning import cache, confirmed, entry
from lk_triton.planning.plan import plan

FILES = Path(__file__).with_name("files")
NAMES = json.loads((FILES / "names.json").read_text(encoding="utf-8"))
TABLE = FILES / "NVIDIA_H100_80GB_HBM3.json"
ENTRIES = json.loads(TABLE.read_text(encoding="utf-8"))["entries"]

DELETED: set[str] = {
    "lk_triton.models.RepLKNet.set_chunk",  # saved an eighth of the memory for more launches
    "bench goals",  # bench model-error compares estimates with measurements
    "LK_TRITON_WARP_SPECIALIZE",  # configs that were 0.90 to 1.06 times as fast
}
"""Public names, commands, "command --option"s and variables of ``names.json`` that were deleted on purpose, and why."""

DELETED_FIELDS: set[tuple[str, str]] = {("pointwise", "warp_specialize")}
"""(Algorithm, field of its config) that were deleted on purpose: dropped on reading where they hold their old default."""

TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
"""Of float32 results on another CPU or by another algorithm; they are about 1."""

pytestmark = pytest.mark.usefixtures("no_interpreter")


# Modules and weights


@pytest.mark.skipif(torch.__version__ < "2.14", reason="torch reads a .pt2 of its own version and of older ones")
@torch.no_grad()
def test_an_exported_network_gives_the_same() -> None:
    program = torch.export.load(FILES / "every_op.pt2")
    values = torch.load(FILES / "every_op_values.pt", weights_only=True)
    used = {str(n.target.name()) for n in program.graph.nodes if n.op == "call_function" and hasattr(n.target, "_schema")}
    assert {schema.partition("(")[0] for schema in NAMES["ops"]} <= used
    torch.testing.assert_close(program.module()(values["input"]), values["output"], **TOLERANCE)
    torch.testing.assert_close(program.module()(values["input"][:1]), values["output"][:1], **TOLERANCE)


@pytest.fixture(scope="module")
def pickled() -> dict[str, nn.Module]:
    """Our own file: whole modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        return torch.load(FILES / "layers.pt", weights_only=False)


VALUES: dict[str, dict[str, Any]] = torch.load(FILES / "layer_values.pt", weights_only=True)


@pytest.mark.parametrize("name", VALUES)
@torch.no_grad()
def test_a_pickled_module_gives_the_same(name: str, pickled: dict[str, nn.Module]) -> None:
    values = VALUES[name]
    torch.testing.assert_close(pickled[name](values["input"]), values["output"], **TOLERANCE)
    assert pickled[name].state_dict().keys() == values["state"].keys()


@pytest.mark.parametrize("name", VALUES)
@torch.no_grad()
def test_a_state_dict_goes_into_a_module_made_the_same_way(name: str) -> None:
    module, values = layers()[name][0], VALUES[name]
    module.load_state_dict(values["state"])
    torch.testing.assert_close(module.eval()(values["input"]), values["output"], **TOLERANCE)


def test_every_recorded_class_was_pickled(pickled: dict[str, nn.Module]) -> None:
    values = [public_names.find(name) for name in NAMES["names"] if name not in DELETED and name.startswith("lk_triton.nn.")]
    classes = {value for value in values if isinstance(value, type) and issubclass(value, nn.Module)} | {RepLKNet}
    assert len(classes) > 1
    assert {c for c in classes if not any(isinstance(m, c) for m in pickled.values())} == set()


@pytest.mark.parametrize("form", ["training", "merged", "fused"])
@torch.no_grad()
def test_a_checkpoint_loads_into_every_form(form: str, pickled: dict[str, nn.Module]) -> None:
    model = pickled["network, training"]
    assert isinstance(model, RepLKNet)
    model = model.twin(form, "cpu").eval()
    assert load_checkpoint(model, FILES / "checkpoint.safetensors") == ([], [])
    values = VALUES["network, training"]
    torch.testing.assert_close(model(values["input"]), values["output"], rtol=1e-4, atol=1e-4)


# Measurements


@pytest.fixture
def h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[gpus.Gpu]:
    """The GPU of the recorded cache, which is the user's."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    shutil.copy(TABLE, tmp_path)
    cache.reload()
    name = json.loads(TABLE.read_text())["device"]
    found = gpus.named(name)
    assert found is not None
    yield replace(found, name=name)
    cache.reload()


def serves(data: dict[str, Any]) -> bool:
    """Whether this entry decides in 0.1.0: no automatic choice takes a warp-specialized config, and what a hash says of
    ``resident`` is of a version before."""
    return not data["config"].get("warp_specialize") and (data["algorithm"], "source_hash" in data) != ("resident", True)


@pytest.mark.parametrize("data", ENTRIES, ids=lambda d: f"{d['algorithm']}-{d['problem']['kind']}-n{d['problem']['n']}")
def test_a_measured_plan_serves(data: dict[str, Any], h100: gpus.Gpu) -> None:
    found = plan(entry.problem_from_json(data["problem"]), h100)
    assert (found.source == "user cache") == serves(data)
    if serves(data):
        assert registry.get(found.algorithm) is registry.get(data["algorithm"])
        kept = {k: v for k, v in data["config"].items() if (data["algorithm"], k) not in DELETED_FIELDS}
        assert json.loads(json.dumps(asdict(found.config))) == kept


def test_old_entries_stay_when_others_are_added(h100: gpus.Gpu) -> None:
    data = ENTRIES[0]
    file = cache.record(h100, [entry.from_json(data)])
    assert file is not None
    written = json.loads(file.read_text())["entries"]
    assert [e for e in written if e != data] == [e for e in ENTRIES if e != data]
    assert data in written


def test_confirmed_kernels_stay_confirmed() -> None:
    for row in json.loads((FILES / "confirmed.json").read_text()):
        assert confirmed.confirmed(row["form"], row["version"], row["arch"], everywhere=False), row


def test_rows_of_bench_and_tune_are_read() -> None:
    found = measured.read([FILES / name for name in ("network.csv", "conv.csv", "configs.jsonl")])
    assert len(found.figures()) == len(found.rows) == 6
    assert {measured.algorithm_of(row) for row in found.rows} == {"", "torch", "onednn"}
    assert found.devices == [json.loads(TABLE.read_text())["device"], "cpu, 1 threads"]
    lines = [json.loads(line) for line in (FILES / "configs.jsonl").read_text().splitlines()]
    assert [entry.problem_to_json(t.problem) for t in found.tuned] == [d["problem"] for d in lines if d["type"] == "result"]


def test_a_run_goes_on_behind_its_rows(tmp_path: Path) -> None:
    file = Path(shutil.copy(FILES / "conv.csv", tmp_path))
    rows = report.read([file])
    report.start(file)
    report.append(file, [{**rows[0], "provider": "another"}])
    assert {provider for _, provider in report.done(file, rows[0])} == {*(row["provider"] for row in rows), "another"}


def test_run_prints_the_same_fields() -> None:
    assert list(lost(json.loads((FILES / "run.json").read_text()), answer_of_run())) == []


def lost(recorded: Any, now: Any, place: str = "") -> Iterator[str]:
    """Fields of JSON objects that are not there any more, or of another type; of a list the first element stands for all."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for name, value in recorded.items():
            yield from lost(value, now[name], f"{place}.{name}") if name in now else (f"{place}.{name}",)
    elif isinstance(recorded, list) and isinstance(now, list) and recorded and now:
        yield from lost(recorded[0], now[0], f"{place}[]")
    elif type(recorded) is not type(now):
        yield f"{place}: {recorded!r}, now {now!r}"


# Names


def test_what_is_deleted_was_there_and_is_gone() -> None:
    recorded = {*NAMES["names"], *NAMES["shown"], *NAMES["variables"], *commands_and_options(NAMES["commands"])}
    assert recorded >= DELETED
    dotted = {name for name in DELETED if name.startswith("lk_triton.")}
    there = {*filter(public_names.exists, dotted), *public_names.variables(), *commands_and_options(public_names.commands())}
    assert there & DELETED == set()


def commands_and_options(commands: dict[str, Any]) -> set[str]:
    """Every "command", and every "command --option"."""
    return {*commands, *(f"{command} {option}" for command, of in commands.items() for option in of["options"])}


@pytest.mark.parametrize("name", [n for n in NAMES["names"] if n not in DELETED])
def test_a_public_name_takes_the_same_parameters(name: str) -> None:
    recorded, now = NAMES["names"][name], public_names.parameters(find(name))
    assert complaints(recorded or [], now or []) == []


@pytest.mark.parametrize("name", [n for n in NAMES["shown"] if n not in DELETED])
def test_a_name_that_pages_show_exists(name: str) -> None:
    public_names.find(name)


def find(name: str) -> Any:
    """What a public name stands for; the fields of a dataclass, which have no default, are found by name only."""
    owner, _, member = name.rpartition(".")
    fields = getattr(public_names.find(owner), "__dataclass_fields__", {})
    return fields[member] if member in fields else public_names.find(name)


def complaints(recorded: list[Parameter], now: list[Parameter]) -> list[str]:
    """What a caller by the ``recorded`` parameters meets at those of ``now``."""
    found = []
    known = {name: (kind, default) for name, kind, default in now}
    for name, kind, default in recorded:
        if name not in known:
            found.append(f"no parameter {name}")
        elif known[name] != (kind, default):
            found.append(f"{name} was {kind} with the default {default}, is {known[name]}")
    positional = [[name for name, kind, _ in of if kind.startswith("POSITIONAL")] for of in (recorded, now)]
    if positional[1][: len(positional[0])] != positional[0]:
        found.append(f"positional parameters were {positional[0]}, are {positional[1]}")
    old = {name for name, *_ in recorded}
    return found + [f"{name} has no default" for name, kind, d in now if name not in old and d is None and "VAR" not in kind]


@pytest.mark.parametrize("command", [c for c in NAMES["commands"] if c not in DELETED])
def test_a_command_takes_the_same_options(command: str) -> None:
    recorded = NAMES["commands"][command]
    usual = public_names.values(recorded["line"])
    assert recorded["values"].items() <= usual.items()
    for option, lines in recorded["options"].items():
        for line in lines if f"{command} {option}" not in DELETED else ():
            assert public_names.values(line) != usual or sorted(line) == sorted(recorded["line"]), line


def test_a_variable_is_read() -> None:
    assert set(NAMES["variables"]) - DELETED <= set(public_names.variables())


@pytest.mark.parametrize("schema", NAMES["ops"], ids=lambda schema: schema.partition("(")[0])
def test_an_op_takes_the_same_arguments(schema: str) -> None:
    """Arguments with a default may follow."""
    head, _, result = schema.partition(") -> ")
    (now,) = [s for s in public_names.ops() if s.partition("(")[0] == schema.partition("(")[0]]
    found, _, found_result = now.partition(") -> ")
    assert result == found_result
    assert found.startswith(head)
    more = found.removeprefix(head)
    assert more == "" or all("=" in argument for argument in more.removeprefix(", ").split(", "))
