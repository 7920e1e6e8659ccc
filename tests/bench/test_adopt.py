"""``bench adopt``: a visit's files become tables, results and figures, all of them or none; a rehearsal's never do."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_figures as made
import pytest

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.bench import adopt, figures, measured, pages, report, usage
from lk_triton.bench.cases import cases
from lk_triton.cli import main
from lk_triton.planning import cache, entry

ROOT = Path(__file__).resolve().parents[2]
H100 = gpus.for_arch("h100")
TIMES = {"torch": 9.0, "lk_triton_auto": 1.5}
MONTH = "2031-02"
FOLDER = f"bench/results/h100-{MONTH}"
TABLE = "lk_triton/planning/tables/NVIDIA_H100_80GB_HBM3.json"


# A source tree and a visit


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with pages of blocks, and a table with an entry to replace, one to keep and a stale one."""
    root = tmp_path / "tree"
    for folder in ("docs", "bench/results", "lk_triton/planning/tables"):
        (root / folder).mkdir(parents=True)
    blocks = {"README.md": ("networks", "layers"), "docs/benchmarks.md": ("missing", "model-error")}
    for page, names in blocks.items():
        (root / page).write_text("text\n" + "".join("\n".join(pages.markers(name)) + "\n" for name in names) + "end\n")
    stale = plan_entry("31b-224-stage4-n64", 7.0)
    spoil(stale)
    old = [plan_entry("31b-224-stage1-n64", 300.0), plan_entry("31b-224-stage2-n64", 99.0), stale]
    (root / TABLE).write_text(cache.text(made.GPU, "sm_90", old))
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What a visit to an H100 wrote."""
    return visit(tmp_path / "out")


def visit(folder: Path, scale: float = 1.0, rehearsal: str = "") -> Path:
    """The files of a visit; ``scale`` changes every figure: our times, more so the peers', and the spread."""
    folder.mkdir()
    times = {provider: multiple * (scale if "lk" in provider else scale**2) for provider, multiple in TIMES.items()}
    layers = made.rows(times, "31b-224-*-n64", "table1-r16-k7-*")
    layers += made.rows(times | {"torch": 1.2 * scale**2}, "table1-r16-k3-*")
    write_csv(folder / "conv.csv", layers, rehearsal)
    networks = [
        network_row("published", 64, 60e3 * scale), network_row("lk_triton", 64, 70e3 * scale, 60 / 70 * scale),
        network_row("lk_triton_graph", 64, 6e3 * scale, 10 * scale),
        network_row("timm/convnext_base", 64, 50e3 * scale, gate="peer"),
        network_row("merged", 64, 55e3 * scale, gate="failed", note="error above 1e-3: not timed"),
    ]  # fmt: skip
    write_csv(folder / "network.csv", networks, rehearsal)
    head = {"type": "device", "device": made.GPU, "arch": "sm_90", "versions": entry.versions()}
    problem = cases()["31b-224-stage1-n1"]
    config = json.loads(json.dumps(plan_entry("31b-224-stage1-n1", 1.0)["config"]))
    trial = {"algorithm": "toeplitz", "config": config, "microseconds": 11.0 * scale, "spread": 1.0, "rejected": None}
    result = {"type": "result", "problem": entry.problem_to_json(problem), "trials": [trial, trial | {"microseconds": None}]}
    lines = [head | ({"rehearsal": True} if rehearsal else {}), result]
    (folder / "tune.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plans = [plan_entry("31b-224-stage1-n64", 200.0 * scale), plan_entry("31b-224-stage3-n64", 30.0 * scale)]
    (folder / "tuned.json").write_text(cache.text(made.GPU, "sm_90", plans))
    (folder / "device.txt").write_text("NVIDIA H100 80GB HBM3, 1980 MHz\n")
    (folder / "tests.log").write_text("passed\n")
    return folder


def network_row(form: str, n: int, us: float, speedup: float = 1.0, gate: str = "ok", note: str = "") -> report.Row:
    row = made.rows(TIMES, "31b-224-stage1-n64")[0]
    row = {key: row[key] for key in ("device", "torch_version", "triton_version", "lk_triton_version", "commit")}
    row |= {"kernel_name": "convnext_base" if "/" in form else "replknet_31b-224", "provider": form, "n": n, "c": 3, "h": 224}
    row |= {"dtype": "float16", "gate": gate, "note": note}
    if gate == "failed":
        return row
    row |= {"speedup": speedup, "graph_speedup": speedup / 2, "spread": speedup}
    return row | {"p50_us": us, "images_per_s": n * 1e6 / us}


def write_csv(file: Path, rows: list[report.Row], rehearsal: str = "") -> None:
    with file.open("w", newline="") as stream:
        writer: csv.DictWriter[str] = csv.DictWriter(stream, report.FIELDS)
        writer.writeheader()
        writer.writerows(row | {"rehearsal": rehearsal, "timestamp": f"{MONTH}-03T12:00:00+00:00"} for row in rows)


def plan_entry(name: str, us: float) -> dict[str, Any]:
    """An entry of this version: a layer by ``toeplitz``, with its first config."""
    problem, algorithm = cases()[name], registry.get("toeplitz")
    config = algorithm.configs(problem, H100)[0]
    return entry.to_json(entry.of_measured(problem, algorithm.name, config, microseconds=us, rounds=5, spread=1.01))


def spoil(data: dict[str, Any]) -> None:
    """Make an entry one of another kernel."""
    data["version"] = 0


def content(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


# Adopting


def test_the_pages_are_up_to_date() -> None:
    assert main(["bench", "adopt", "--check"]) == 0


def test_every_block_has_a_writer() -> None:
    found = {name for page in adopt.page_files(ROOT) for name in pages.names((ROOT / page).read_text())}
    assert found == set(figures.GENERATORS)


def test_a_visit_is_adopted(tree: Path, out: Path) -> None:
    said = "\n".join(adopt.adopt(tree, [out]))
    for name in ("conv.csv", "network.csv", "tune.jsonl", "device.txt"):
        assert (tree / FOLDER / name).read_bytes() == (out / name).read_bytes()
    names = {file.name for file in (tree / FOLDER).iterdir()}
    assert names == {"conv.csv", "network.csv", "tune.jsonl", "device.txt", "README.md"}
    table = json.loads((tree / TABLE).read_text())["entries"]
    stages = {data["problem"]["c"]: data["microseconds"] for data in table}
    assert stages == {256: 99.0, 128: 200.0, 512: 30.0}  # kept, replaced, new; the stale one is dropped
    assert "2 plans adopted, 1 kept, 1 stale ones dropped" in said
    readme = (tree / "README.md").read_text()
    assert "| replknet_31b-224 | 64 | `lk_triton_graph` | 10 667 | 6 | 10.00 | 10.00 | 5.00 |" in readme
    assert "**0.86, slower**" in readme
    assert "| 64x128x56x56 | 31x31 | bias, relu |" in readme
    assert "(`torch`) | 6.00 |" in readme
    assert "| 1x128x56x56 | 31x31 | bias, relu | 11.00 | `toeplitz` |" in readme
    assert figures.APART in readme
    assert "faster in 1 of 2 cases, 0.8 to 6 times as fast" in readme
    assert readme.endswith("end\n")
    missing = (tree / "docs/benchmarks.md").read_text()
    assert "| layers `31b-224-*`, batch 64 | 4 of 4 by lk_triton, 4 of them beside a peer |  |" in missing
    assert "h200" in missing
    assert "CUTLASS" in missing
    assert "`toeplitz` | 1 |" in missing  # the error of the cost model
    proved = [row for row in json.loads((tree / adopt.CONFIRMED).read_text()) if row["form"] == "toeplitz"]
    assert {row["file"] for row in proved} == {f"{FOLDER}/tune.jsonl"}
    assert adopt.filled(tree) == {page: (tree / page).read_bytes() for page in adopt.page_files(tree)}


def test_what_failed_is_listed_and_no_figure(tree: Path, out: Path) -> None:
    said = adopt.adopt(tree, [out])
    assert any("merged" in text and "failed" in text for text in said)
    page = (tree / FOLDER / "README.md").read_text()
    assert "Failed" in page
    assert "replknet_31b-224, batch 64, merged: error above 1e-3: not timed" in page
    assert "| `merged` |" not in (tree / "README.md").read_text()


def test_adopting_again_changes_nothing(tree: Path, out: Path) -> None:
    adopt.adopt(tree, [out])
    before = content(tree)
    said = "\n".join(adopt.adopt(tree, [out]))
    assert "known already" in said
    assert "written: nothing" in said
    assert content(tree) == before


def test_a_second_visit_in_a_month_loses_nothing(tree: Path, out: Path, tmp_path: Path) -> None:
    adopt.adopt(tree, [out, visit(tmp_path / "second", 2.0)])
    assert (tree / FOLDER / "network.csv").read_bytes() == (out / "network.csv").read_bytes()
    assert (tree / FOLDER / "network-2.csv").read_bytes() == (tmp_path / "second" / "network.csv").read_bytes()
    assert "| `lk_triton_graph` | 5 333 |" in (tree / "README.md").read_text()  # the later one


def test_figures_of_two_runs_are_not_compared(tree: Path, out: Path) -> None:
    alone = network_row("lk_triton_graph", 64, 5e3)
    write_csv(out / "network.csv", [network_row("published", 64, 60e3), alone | {"speedup": "", "graph_speedup": ""}])
    adopt.adopt(tree, [out])
    assert f"| `lk_triton_graph` | 12 800 | 5 | 1.00 | {figures.APART} | {figures.APART} |" in (tree / "README.md").read_text()


# Refusing


def edit(file: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda out: (out / file).write_text(change((out / file).read_text()))


def rewrite_entry(key: str, value: object) -> Callable[[Path], object]:
    def change(out: Path) -> None:
        raw = json.loads((out / "tuned.json").read_text())
        raw["entries"][0][key] = value
        (out / "tuned.json").write_text(json.dumps(raw))

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "is no folder"),
    "nothing": (lambda out: [(out / name).unlink() for name in os.listdir(out)], "nothing to adopt"),
    "csv of others": (edit("conv.csv", lambda text: "a,b\n1,2\n"), r"conv\.csv is no CSV file of bench conv"),
    "unknown column": (edit("conv.csv", lambda text: text.replace("floor_limiter,", "colour,", 1)), "has colour"),
    "csv cut short": (edit("network.csv", lambda text: text[: len(text) - 30]), r"network\.csv, row \d+: it has fewer cells"),
    "no csv": (lambda out: (out / "conv.csv").write_bytes(b"\xff\xfe\x00"), r"conv\.csv is no CSV file"),
    "no number": (edit("network.csv", lambda text: text.replace("6000.0", "fast")), r"row \d+: .*fast"),
    "negative": (edit("network.csv", lambda text: text.replace("6000.0", "-1")), "positive"),
    "no date": (edit("network.csv", lambda text: text.replace(f"{MONTH}-03", "../../../x")), r"row \d+"),
    "no problem": (edit("conv.csv", lambda text: text.replace('""kind"": ""depthwise""', '""kind"": ""other""')), "kind"),
    "jsonl cut short": (edit("tune.jsonl", lambda text: text[:-20]), r"tune\.jsonl: line 2: no JSON object"),
    "jsonl of others": (edit("tune.jsonl", lambda text: '{"a": 1}\n'), "expected an object with a type"),
    "jsonl without device": (edit("tune.jsonl", lambda text: text.splitlines()[1]), r"tune\.jsonl: "),
    "deep": (edit("tune.jsonl", lambda text: "[" * 100_000), r"tune\.jsonl: "),
    "no trials": (edit("tune.jsonl", lambda text: text.replace('"trials"', '"trails"')), "line 2: .*trials"),
    "no table": (edit("tuned.json", lambda text: "{}"), r"tuned\.json: not a tuning table"),
    "foreign plan": (rewrite_entry("microseconds", "soon"), r"tuned\.json: "),
    "two devices": (edit("tuned.json", lambda text: text.replace(made.GPU, "NVIDIA A100-SXM4-40GB")), "one device"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_and_foreign_files_change_nothing(case: str, tree: Path, out: Path) -> None:
    spoil_visit, message = BROKEN[case]
    spoil_visit(out)
    before = content(tree)
    with pytest.raises(usage.UsageError, match=message):
        adopt.adopt(tree, [out])
    assert content(tree) == before


def test_a_gpu_without_facts_is_refused(tree: Path, out: Path) -> None:
    for file in ("conv.csv", "network.csv", "tune.jsonl", "tuned.json"):
        edit(file, lambda text: text.replace(made.GPU, "NVIDIA T4"))(out)
    with pytest.raises(usage.UsageError, match=r"no facts of NVIDIA T4: .*gpus\.toml"):
        adopt.adopt(tree, [out])


@pytest.mark.parametrize("keep", ["conv.csv", "network.csv", "tune.jsonl", "tuned.json"])
def test_rehearsals_are_refused(keep: str, tree: Path, tmp_path: Path) -> None:
    """Each kind of file says by itself that it is one."""
    out = visit(tmp_path / "out", rehearsal="true")
    raw = json.loads((out / "tuned.json").read_text())
    (out / "tuned.json").write_text(json.dumps(raw | {"rehearsal": True}))
    for file in out.iterdir():
        if file.name != keep:
            file.unlink()
    before = content(tree)
    with pytest.raises(usage.UsageError, match=rf"{re.escape(keep)} is of a rehearsal: .*--scratch"):
        adopt.adopt(tree, [out])
    assert content(tree) == before


def test_what_ran_in_the_interpreter_is_a_rehearsal(tree: Path, out: Path) -> None:
    for file in ("conv.csv", "network.csv", "tune.jsonl", "tuned.json"):
        edit(file, lambda text: text.replace(made.GPU, f"{made.GPU} interpreted"))(out)
    with pytest.raises(usage.UsageError, match="rehearsal"):
        adopt.adopt(tree, [out])


def test_plans_that_a_rehearsal_saves_are_refused(
    tree: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LK_TRITON_REHEARSAL", "1")
    monkeypatch.setenv("LK_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    found = entry.from_json(plan_entry("31b-224-stage3-n64", 30.0))
    file = cache.record(replace(H100, name=made.GPU), [found])
    assert file is not None
    shutil.copy(file, out / "tuned.json")
    monkeypatch.delenv("LK_TRITON_REHEARSAL")
    with pytest.raises(usage.UsageError, match=r"tuned\.json is of a rehearsal"):
        adopt.adopt(tree, [out])


@pytest.mark.parametrize("failing", [1, 3])
def test_a_write_that_fails_leaves_all_as_it_was(failing: int, tree: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, count = content(tree), os.replace, 0

    def replace(source: str, target: Path) -> None:
        nonlocal count
        if tree in Path(target).parents:
            count += 1
            if count == failing:
                raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(usage.UsageError, match=r"nothing was adopted: .*No space left"):
        adopt.adopt(tree, [out])
    assert count == failing
    assert content(tree) == before


# Rehearsing


def test_a_rehearsal_fills_a_scratch_folder(tree: Path, tmp_path: Path) -> None:
    before = content(tree)
    adopt.adopt(tree, [visit(tmp_path / "out", rehearsal="true")], tmp_path / "scratch")
    assert content(tree) == before
    found = content(tmp_path / "scratch")
    assert {"README.md", "docs/benchmarks.md", TABLE, f"{FOLDER}/README.md", f"{FOLDER}/conv.csv"} <= found.keys()
    for page in adopt.page_files(tmp_path / "scratch"):
        assert (tmp_path / "scratch" / page).read_bytes().startswith(adopt.BANNER)


def test_every_figure_of_a_rehearsal_is_marked(tree: Path, tmp_path: Path) -> None:
    """Two rehearsals that differ in their times alone: whatever differs in the pages is a figure, and is marked."""
    for scale, name in ((1.0, "slow"), (1.7, "slower")):
        adopt.adopt(tree, [visit(tmp_path / f"out-{name}", scale, "true")], tmp_path / name)
    differing = 0
    for page in adopt.page_files(tmp_path / "slow"):
        pair = [re.split(r"[|\n]| to | cases, ", (tmp_path / name / page).read_text()) for name in ("slow", "slower")]
        for first, second in zip(*pair, strict=True):
            if first != second:
                differing += 1
                assert "(rehearsal" in first, f"{page}: {first!r}"
    assert differing > 30


def test_what_was_measured_is_marked_too(tree: Path, tmp_path: Path) -> None:
    """On pages of a rehearsal nobody takes one figure for the other."""
    shutil.copytree(ROOT / "bench" / "results", tree / "bench" / "results", dirs_exist_ok=True)
    adopt.adopt(tree, [visit(tmp_path / "out", rehearsal="true")], tmp_path / "scratch")
    text = (tmp_path / "scratch" / "bench/results/h100-2026-11/README.md").read_text()
    assert "10 297 (rehearsal)" in text
    assert "10 297 |" not in text


def test_gates_that_were_not_computed_count_in_a_rehearsal_alone(tree: Path, tmp_path: Path) -> None:
    out = visit(tmp_path / "out", rehearsal="true")
    edit("network.csv", lambda text: text.replace(",ok,", ",not computed,"))(out)
    adopt.adopt(tree, [out], tmp_path / "scratch")
    assert "| `lk_triton_graph` | 10 667 (rehearsal) |" in (tmp_path / "scratch/README.md").read_text()
    edit("network.csv", lambda text: text.replace(",true", ","))(out)
    (out / "tune.jsonl").unlink()
    (out / "conv.csv").unlink()
    adopt.adopt(tree, [out])
    assert "lk_triton_graph` | 10 667" not in (tree / "README.md").read_text()


def test_scratch_is_an_empty_folder_outside(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(ROOT / "bench" / "results")
    for folder, message in ((ROOT / "build" / "x", "lies in the source tree"), (tmp_path, "not an empty folder")):
        assert main(["bench", "adopt", str(out), "--scratch", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert main(["bench", "adopt", "--check", str(out)]) == 2
    assert content(ROOT / "bench" / "results") == before
    assert not (ROOT / "build" / "x").exists()


# Checking


def test_check_says_what_is_out_of_date(
    tree: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adopt, "ROOT", tree)
    assert main(["bench", "adopt", "--check"]) == 1
    assert "README.md" in capsys.readouterr().out
    assert main(["bench", "adopt", str(out)]) == main(["bench", "adopt", "--check"]) == 0
    page = tree / "README.md"
    page.write_text(page.read_text().replace("10 667", "10 668"))
    assert main(["bench", "adopt", "--check"]) == 1
    assert main(["bench", "adopt"]) == main(["bench", "adopt", "--check"]) == 0
    assert "10 667" in page.read_text()


def test_an_installed_package_has_no_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adopt, "ROOT", tmp_path)
    assert main(["bench", "adopt", "--check"]) == 2
    assert "run it in a source tree" in capsys.readouterr().err


def test_without_results_nothing_is_claimed(tree: Path) -> None:
    adopt.adopt(tree, [])
    assert (tree / "README.md").read_text().count(figures.NOTHING) == 2
    assert f"GPUs without any figure: {', '.join(gpus.TABLE)}." in (tree / "docs/benchmarks.md").read_text()


def test_pages_without_both_markers_are_refused() -> None:
    begin, end = pages.markers("x")
    for text in ("", begin, f"{end}\n{begin}", f"{begin}{end}{begin}{end}"):
        with pytest.raises(usage.UsageError, match="once each"):
            pages.rewrite(text, "x", "")


def test_a_block_that_nobody_writes_is_refused(tree: Path) -> None:
    (tree / "docs/extra.md").write_text("\n".join(pages.markers("wishes")))
    with pytest.raises(usage.UsageError, match=r"docs/extra\.md: nothing writes a block 'wishes'"):
        adopt.filled(tree)


def test_a_network_ran_no_algorithm_of_its_own() -> None:
    """Its row says in words what ran, where a layer's has a plan."""
    row = {"provider": "lk_triton_graph", "config": "lk_triton.graph", "problem": ""}
    assert measured.algorithm_of(row) == ""
    assert measured.algorithm_of(row | {"config": '{"algorithm": "direct"}', "problem": "{}"}) == "direct"
