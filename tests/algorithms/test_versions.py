"""Every kernel form's version stands for what it runs: nothing changes under a version that a measurement was made with."""

from __future__ import annotations

import ast
import os
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import compare_kernels
import pytest
from kernel_sources import ROOT, Sources, forms
from machine_code import ARCHS, BATCHES, DTYPES, GPUS, compiles, digest, digests
from record_kernels import FOLDER, Records, add_network, update

from lk_triton.algorithms import registry

RECORDS = Records.read()
HASHES = {form: Sources().hash(form) for form in forms()}


def names_of(form: str) -> set[str]:
    return {getattr(d.node, "name", "") for d in Sources().closure(form)}


def text_of(module: str) -> str:
    return (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def changed(module: str, old: str, new: str) -> set[str]:
    """The forms whose hash is another where ``old`` reads ``new`` in a module."""
    text = text_of(module)
    assert text.count(old) >= 1, (module, old)
    now = Sources({module: text.replace(old, new)})
    return {form for form in forms() if now.hash(form) != HASHES[form]}


@pytest.mark.parametrize("form", list(forms()))
def test_a_changed_kernel_has_another_version(form: str) -> None:
    now = {"version": forms()[form].versions[form], "hash": HASHES[form]}
    recorded = RECORDS.hashes.get(form)
    assert recorded == now, (
        f"the kernel form {form!r}, its launch or its packing has changed, or its version, and this is not recorded. If what "
        f"it computes, its machine code or its launch has changed, raise versions[{form!r}] in its host file: what was "
        "measured of it is stale then. In any case run, as CONTRIBUTING.md says: "
        f"{FOLDER}=FOLDER python tests/algorithms/record_kernels.py"
    )
    assert RECORDS.versions[form] == now["version"], f"{form} has digests of another version: run record_kernels.py"


def test_forms_are_those_of_the_registry() -> None:
    assert RECORDS.hashes.keys() == RECORDS.plans.keys() == forms().keys()
    for form, plans in RECORDS.plans.items():
        assert plans, form
        assert {plan.form for plan in plans} == {form}
        assert {plan.arch for plan in plans} == ({"sm_90"} if form == "toeplitz_hopper" else {"sm_80", "sm_90"}), form
        assert {plan.problem.dtype for plan in plans} >= {"float16", "bfloat16"}
        assert {plan.problem.n for plan in plans} >= {64} if form == "toeplitz_hopper" else {1, 64}


def test_every_plan_of_the_network_is_recorded() -> None:
    taken = set(RECORDS.answers.values())
    assert {p for p in taken if compiles(p) and p not in RECORDS.plans[p.form]} == set()
    assert {(p.arch, p.problem.dtype, p.problem.n) for p in taken} == set(product(ARCHS, DTYPES, BATCHES))
    assert {question.gpu for question in RECORDS.answers} == set(GPUS)
    assert any(question.bank_format for question in RECORDS.answers)
    assert not all(question.packing for question in RECORDS.answers)


# What a hash covers


def test_a_hash_covers_kernels_launch_and_packing() -> None:
    common = {"KernelLaunch", "launch", "submit", "kernel_launch", "prepack", "weight_format"}
    assert names_of("toeplitz") > common | {
        "toeplitz_kernel", "_accumulate", "activate", "follow", "pack_kernel", "row_length", "plane_arguments", "vector_width",
    }  # fmt: skip
    hopper = {"resident_kernel", "_shared", "_window", "activate", "pack_kernel", "steps_of"}
    assert names_of("toeplitz_hopper") > common | hopper
    assert names_of("pointwise") > common | {"pointwise_kernel", "store_tile", "column_offsets", "_descriptors", "describable"}
    assert names_of("cublas") > common | {"epilogue_kernel", "column_offsets"}
    assert names_of("direct") > common | {"direct_kernel", "_planes_launch", "_split"}
    assert names_of("direct_channels_last") > common | {"direct_channels_last_kernel", "channels_last_launch"}
    former = {name: old for old, name in registry.RENAMED.items()}  # which kernels are still called
    for form in forms():
        kernels = {name for name in names_of(form) if name.endswith("_kernel")}
        assert f"{former.get(form, form)}_kernel" in kernels or form == "cublas"
        assert not names_of(form) & {"estimate", "configs", "why_not", "roofline", "issued_macs", "launch_again"}, form


def test_text_that_runs_nothing_changes_no_hash() -> None:
    edited = {}
    for module in {d.module for form in forms() for d in Sources().closure(form)}:
        text = "# a comment\n" + text_of(module).replace('"""', '""" ', 1).replace("\ndef ", "\n\n\ndef ")
        edited[module] = re.sub(r'(\n +)"""(.*)"""\n', r'\1"""\2 More."""  # why\n', text)
    sources = Sources(edited)
    assert {form: sources.hash(form) for form in forms()} == HASHES


@pytest.mark.parametrize("module", ["shared.epilogue", "depthwise.toeplitz.kernel", "depthwise.toeplitz_hopper.cost"])
def test_a_definition_may_lie_elsewhere(module: str) -> None:
    module = f"lk_triton.algorithms.{module}"
    package = module.rpartition(".")[0]
    text = text_of(module)
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names += re.findall(r"^([A-Z_]+) = ", text, re.MULTILINE)
    sources = Sources({module: f"from .elsewhere import {', '.join(names)}", f"{package}.elsewhere": text})
    assert {form: sources.hash(form) for form in forms()} == HASHES


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("cost.roofline", "LAUNCH_SECONDS = 3e-6", "LAUNCH_SECONDS = 4e-6"),
        ("base", "Triton kernels need a CUDA or ROCm GPU", "no GPU"),
        ("depthwise.toeplitz.host", "OVERLAP = 0.65", "OVERLAP = 0.7"),
        ("depthwise.toeplitz.host", "few, many = BANK_VECTORS[problem.itemsize]", "few, many = 4, 4"),
        ("dense.pointwise.host", "STEP_LATENCY = 800e-9", "STEP_LATENCY = 700e-9"),
        ("depthwise.toeplitz_hopper.host", "has no wgmma", "cannot"),
        ("base", "out: Tensor) ->", "out: Any) ->"),
    ],
)
def test_the_cost_model_refusals_and_types_change_no_hash(module: str, old: str, new: str) -> None:
    assert changed(f"lk_triton.algorithms.{module}", old, new) == set()


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        ("algorithms.depthwise.toeplitz.kernel", "tl.dot(", "tl.dot( 0 + ", {"toeplitz"}),
        ("algorithms.depthwise.toeplitz.kernel", "def pack_kernel(", "def pack_kernel(a, ", {"toeplitz", "toeplitz_hopper"}),
        ("algorithms.depthwise.toeplitz_hopper.kernel", "warpgroup_mma_wait(", "warpgroup_mma_wait(0 + ", {"toeplitz_hopper"}),
        ("algorithms.depthwise.direct.kernel", "acc[7] + ", "acc[7] - ", {"direct"}),
        ("algorithms.depthwise.direct.kernel", "BLOCK: tl.constexpr", "BLOCK", {"direct"}),
        ("algorithms.fused.stem.kernel", "return tl.dot(a, b)", "return tl.dot(b, a)", {"convstem"}),
        ("algorithms.shared.pdl", "if PDL:", "if not PDL:", {*forms()} - {"toeplitz_hopper"}),
        ("algorithms.depthwise.direct.channels_last", '"V": vector,', '"V": 1,', {"direct_channels_last"}),
        ("algorithms.depthwise.direct.host", '"BLOCK": config.block', '"BLOCK": 32', {"direct"}),
        ("algorithms.depthwise.toeplitz_hopper.cost", "IMAGES = 64", "IMAGES = 32", {"toeplitz_hopper"}),
        ("algorithms.dense.cublas", "num_warps=4", "num_warps=8", {"cublas"}),
        ("algorithms.base", "x.stride(0) // xv", "x.stride(1) // xv", {"toeplitz", "toeplitz_hopper", "direct"}),
        ("ops.layout", "CHANNEL_STRIDE_MULTIPLE = 64", "CHANNEL_STRIDE_MULTIPLE = 8", {*forms()}),
    ],
)
def test_what_runs_changes_the_hash_of_its_forms_only(module: str, old: str, new: str, expected: set[str]) -> None:
    assert changed(f"lk_triton.{module}", old, new) == expected


# What may be recorded


@pytest.fixture
def records() -> Records:
    return Records.read()


def in_base(old: str, new: str) -> Sources:
    text = text_of("lk_triton.algorithms.fused.ffn.kernel")
    assert old in text
    return Sources({"lk_triton.algorithms.fused.ffn.kernel": text.replace(old, new)})


CHANGED = ("tl.zeros((BP, C), dtype=tl.float32)", "tl.full((BP, C), 0, dtype=tl.float32)")
"""In ``convffn``'s kernel."""


def never(*_: object) -> Any:
    raise AssertionError("nothing is to be compiled")


def test_nothing_is_compiled_where_nothing_changed(records: Records) -> None:
    assert update(records, never, never, Sources()) == []
    assert records == Records.read()


def test_the_same_machine_code_keeps_the_version(records: Records) -> None:
    before, sources = Records.read(), in_base(*CHANGED)
    assert update(records, never, lambda plans: [before.plans["convffn"][p] for p in plans], sources) == []
    assert records.hashes["convffn"] == {"version": before.versions["convffn"], "hash": sources.hash("convffn")}
    assert records.plans == before.plans
    assert {**records.hashes, "convffn": None} == {**before.hashes, "convffn": None}


def test_other_machine_code_asks_for_a_raised_version(records: Records) -> None:
    before = Records.read()
    (refused,) = update(records, never, lambda plans: ["", *list(before.plans["convffn"].values())[1:]], in_base(*CHANGED))
    assert "convffn: 1 of its" in refused
    assert f'raise versions["convffn"] to {before.versions["convffn"] + 1}' in refused
    assert records == before


def test_a_raised_version_is_recorded_with_its_plans(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    before, sources = Records.read(), in_base(*CHANGED)
    all_plans = [p for plans in before.plans.values() for p in plans][::-1]
    raised = before.versions["convffn"] + 1
    monkeypatch.setitem(forms()["convffn"].versions, "convffn", raised)
    assert update(records, lambda: all_plans, lambda plans: ["new"] * len(plans), sources) == []
    assert records.hashes["convffn"] == {"version": raised, "hash": sources.hash("convffn")}
    assert set(records.plans["convffn"].values()) == {"new"}
    assert all(records.plans[form] == before.plans[form] for form in forms() if form != "convffn")
    monkeypatch.setitem(forms()["convffn"].versions, "convffn", raised - 1)
    (refused,) = update(records, never, never, Sources())
    assert "only rise" in refused


def test_records_survive_their_files(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HASHES", "CODE"):
        monkeypatch.setattr(f"record_kernels.{name}", tmp_path / name)
    records.write()
    assert Records.read() == records == RECORDS


def test_what_the_network_takes_is_recorded_with_it(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Records.read()
    chosen = list(before.answers)[:20]
    known = next(p for p in map(before.answers.__getitem__, chosen) if compiles(p))
    del records.plans[known.form][known]
    monkeypatch.setattr("record_kernels.questions", lambda: chosen)
    add_network(records, lambda plans: [before.plans[p.form][p] for p in plans])
    assert records.plans == before.plans
    assert records.answers == {question: before.answers[question] for question in chosen}


# Digests


def test_a_comparison_says_what_differs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plans = [p for plans in RECORDS.plans.values() for p in plans][:3]
    code = [(["MOV"], ["grid"]), (["MOV"], ["grid"]), (["ADD"], ["grid"])]
    rows = [(p.to_json(), digest(["MOV"], ["grid"])) for p in plans]
    monkeypatch.setattr(compare_kernels, "digests_in", lambda _: {"some": rows[:1], "other": rows[1:]})
    monkeypatch.setattr(compare_kernels, "listings", lambda wanted, *_: code[-len(wanted) :])
    assert compare_kernels.changed_plans([], "") == [plans[2].to_json()]
    assert compare_kernels.changed_plans(["other"], "") == [plans[2].to_json()]
    assert capsys.readouterr().out == f"{plans[2]}: other machine code\n" * 2


def test_a_comparison_says_which_layers_take_another_plan(capsys: pytest.CaptureFixture[str]) -> None:
    question, taken = next((q, p) for q, p in RECORDS.answers.items() if p.algorithm == "toeplitz")
    another = next(p for p in RECORDS.plans["toeplitz"] if p.config != taken.config)
    assert compare_kernels.changed_answers(Records(answers={question: another})) == 1
    assert f"{question}: takes toeplitz {taken.config}, took toeplitz {another.config}" in capsys.readouterr().out


@pytest.mark.slow
def test_digests_are_of_this_code() -> None:
    """A few plans of each form, compiled again."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        pytest.skip(f"{FOLDER} names no folder with Triton 3.6: pip install --no-deps --target FOLDER triton==3.6.0")
    chosen = {plan: d for plans in RECORDS.plans.values() for plan, d in [*plans.items()][:: max(len(plans) - 1, 1)]}
    assert dict(zip(chosen, digests(list(chosen), folder), strict=True)) == chosen


@pytest.mark.slow
def test_a_digest_notices_what_runs_and_nothing_else(tmp_path: Path) -> None:
    for name in ("lk_triton", "models", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "results"))
    plans: list[Any] = [*RECORDS.plans["cublas"]]
    plan = next(p for p in plans if p.problem.epilogue.activation == "relu")
    (before,) = digests([plan])

    def edited(file: str, old: str, new: str) -> tuple[bool, bool]:
        """Whether the hashes of machine code and of arguments are what they were."""
        path = tmp_path / "lk_triton" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        (after,) = digests([plan], str(tmp_path))
        path.write_text(text)
        code, arguments = zip(before.split(), after.split(), strict=True)
        return code[0] == code[1], arguments[0] == arguments[1]

    more = '"""More text,\n\non lines of its own. # as a comment\n\n'
    assert edited("algorithms/shared/epilogue.py", '"""', more) == (True, True)
    assert edited("algorithms/shared/epilogue.py", "tl.maximum(acc, 0.0", "tl.maximum(acc, 1.0") == (False, True)
    assert edited("algorithms/dense/cublas.py", "BLOCK = 1024", "BLOCK = 512") == (False, False)
    assert edited("algorithms/dense/cublas.py", "out_channels * blocks,", "out_channels * blocks + 1,") == (True, False)
