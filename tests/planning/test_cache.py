"""The tables on disk: the key survives JSON, nothing that cannot be read stops anybody, and nobody's entries are lost."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import DENSE, FFN, H100, LAST, LAYER, SMALL, STEM, edit, entry_of, pretend_ranks

from lk_triton.algorithms import registry
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, Problem
from lk_triton.planning import cache, entry
from lk_triton.planning.plan import plan

SHIPPED = cache.TABLES
"""As it is, before the tests' folder takes its place."""


# Entries


@pytest.mark.parametrize(
    "problem",
    [
        LAYER,
        SMALL,
        DENSE,
        FFN,
        STEM,
        ConvProblem(2, 3, 9, 8, 3, 5, (2, 1), (1, 2), (1, 2), 2, "bfloat16", "channels_last", Epilogue(False, None, True)),
        replace(SMALL, dtype="float32", precision="tf32x3"),
    ],
)
def test_the_key_survives_json(problem: Problem) -> None:
    """Lists are tuples again: a list in a key never equals a tuple, and every lookup would miss."""
    read = entry.problem_from_json(json.loads(json.dumps(entry.problem_to_json(problem))))
    assert read == problem
    assert {problem: 1}[read] == 1
    if isinstance(read, ConvProblem | DenseProblem):
        assert type(read.stride) is type(read.padding) is tuple


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_entries_survive_json(algorithm: str) -> None:
    problem = next(p for p in (LAYER, DENSE, FFN, STEM) if algorithm in registry.meant_for(p))
    for index in (0, -1):
        written = entry_of(problem, algorithm, index)
        read = entry.from_json(json.loads(json.dumps(entry.to_json(written))))
        assert read == written
        assert read.config in registry.get(algorithm).configs(problem, H100)


@pytest.mark.parametrize(("old", "name"), registry.RENAMED.items())
def test_entries_of_renamed_algorithms_are_read(old: str, name: str) -> None:
    problem = next(p for p in (LAYER, STEM.layers[0], FFN) if name in registry.meant_for(p))
    written = entry_of(problem, name)
    data = {**entry.to_json(written), "algorithm": old, "form": old}
    assert entry.from_json(data) == written
    assert not entry.stale(data)
    hashed = {k: v for k, v in data.items() if k not in ("form", "version")} | {"source_hash": entry.LAST_HASHES[old]}
    assert entry.brought_up_to_date(hashed).items() >= {"form": name, "version": 1}.items()


@pytest.mark.parametrize("name", [n for n in registry.ALGORITHMS if hasattr(registry.get(n).config_type, "dropped")])
def test_fields_that_configs_no_longer_have_are_read_where_they_change_nothing(name: str) -> None:
    problem = next(p for p in (LAYER, DENSE, FFN, STEM) if name in registry.meant_for(p))
    written = entry_of(problem, name)
    data = entry.to_json(written)
    for field, value in registry.get(name).config_type.dropped.items():
        assert entry.from_json({**data, "config": {**data["config"], field: value}}) == written
        with pytest.raises(ValueError, match=field):
            entry.from_json({**data, "config": {**data["config"], field: not value}})


@pytest.mark.parametrize("name", list(registry.ALGORITHMS))
def test_every_form_has_a_version_of_its_own(name: str) -> None:
    algorithm = registry.get(name)
    forms = [form for a in registry.ALGORITHMS.values() for form in a.versions]
    assert len(set(forms)) == len(forms)
    configs = [c for p in (LAYER, LAST, DENSE, FFN, STEM) if name in registry.meant_for(p) for c in algorithm.configs(p, H100)]
    assert {algorithm.form(c) for c in configs} == set(algorithm.versions)
    assert {algorithm.version(c) for c in configs} == set(algorithm.versions.values())


def test_a_raised_version_makes_its_form_stale_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        form: entry.to_json(entry.of_measured(p, name, config, microseconds=1.0, rounds=7, spread=1.0))
        for p in (LAYER, LAST, DENSE, FFN, STEM)
        for name, algorithm in registry.meant_for(p).items()
        for config in algorithm.configs(p, H100)
        if (form := algorithm.form(config))
    }
    assert not any(map(entry.stale, found.values()))
    for algorithm in registry.ALGORITHMS.values():
        for form, version in algorithm.versions.items():
            monkeypatch.setitem(algorithm.versions, form, version + 1)
            assert [name for name, data in found.items() if entry.stale(data)] == [form]
            monkeypatch.undo()


def test_entries_with_source_hashes_are_read(folder: Path) -> None:
    """A file as the version before wrote it: the hash of each algorithm's last sources is version 1, any other is stale."""
    folder.mkdir()
    file = folder / "h100.json"
    file.write_bytes((Path(__file__).parent / "h100_with_hashes.json").read_bytes())
    chosen = plan(LAYER, H100)
    assert (chosen.algorithm, chosen.source) == ("toeplitz", "user cache")
    assert chosen.config == registry.get("toeplitz").configs(LAYER, H100)[-1]
    (table,) = cache.user_tables().values()
    assert table is not None
    assert table.stale == 1
    assert [(e.form, e.version) for group in table.entries.values() for e in group] == [
        ("toeplitz", 1), ("direct_channels_last", 1),
    ]  # fmt: skip
    before = json.loads(file.read_text())["entries"]
    cache.record(H100, [entry_of(SMALL)])
    assert json.loads(file.read_text())["entries"][:-1] == before, "they are kept as they are"


# Files


def test_where_tables_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.directory() == tmp_path / "cache"
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "lk_triton"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.directory().is_absolute()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.directory() == tmp_path / "home" / ".cache" / "lk_triton"
    assert cache.file_name("NVIDIA H100 80GB HBM3") == "NVIDIA_H100_80GB_HBM3.json"
    assert cache.file_name("../a/b\\c:d") == ".._a_b_c_d.json"


def test_recorded_and_found_again(folder: Path) -> None:
    slow, fast = entry_of(us=120.0), entry_of(algorithm="direct", us=80.0)
    assert cache.record(H100, [slow, fast]) == folder / "h100.json"
    for _ in range(2):
        assert cache.user_entries(LAYER, H100) == (fast, slow)
        assert cache.user_entries(replace(LAYER, n=32), H100) == ()
        assert cache.user_entries(LAYER, replace(H100, name="another")) == ()
        cache.reload()
    text = (folder / "h100.json").read_text()
    plain = folder.parent / "plain"
    plain.touch()
    assert (folder / "h100.json").stat().st_mode == plain.stat().st_mode  # others may read it, as far as the umask says
    assert '"kh": 31' in text
    assert '"activation": "relu"' in text
    assert {p.name for p in folder.iterdir()} == {"h100.json", ".lock"}


def test_the_same_problem_is_replaced_and_others_stay() -> None:
    cache.record(H100, [entry_of(us=120.0), entry_of(algorithm="direct", us=80.0)])
    cache.record(H100, [entry_of(SMALL)])
    cache.record(H100, [entry_of(us=90.0)])
    for _ in range(2):
        assert [e.microseconds for e in cache.user_entries(LAYER, H100)] == [90.0]
        assert cache.user_entries(SMALL, H100)
        cache.reload()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"lk_triton_tuning": 99, "device": "h100", "arch": "sm_90", "entries": []}',
     '{"lk_triton_tuning": 1, "entries": {}}', "\xff"],
)  # fmt: skip
def test_a_corrupt_file_is_skipped_with_one_warning_and_set_aside(
    folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    (folder / "h100.json").write_text(text, encoding="latin-1")
    for _ in range(3):
        assert cache.user_entries(LAYER, H100) == ()
    assert len(caplog.records) == 1
    assert "skipping" in caplog.text
    cache.record(H100, [entry_of()])
    assert (folder / "h100.json.unreadable-1").read_text(encoding="latin-1") == text
    cache.reload()
    assert cache.user_entries(LAYER, H100) == (entry_of(),)


def test_foreign_entries_are_skipped_with_one_warning_and_kept(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = cache.record(H100, [entry_of()])
    assert file is not None
    problem = entry.problem_to_json(LAYER)
    lost = {k: v for k, v in problem.items() if k != "dilation"}
    foreign = [{"algorithm": "winograd"}, {"config": {"rows": 1}}, {"microseconds": -1.0}, {"problem": lost}, {"more": 1}, 7]
    edit(file, *foreign, {"microseconds": "fast"})
    for _ in range(3):
        assert cache.user_entries(LAYER, H100) == (entry_of(),)
    assert len(caplog.records) == 1
    assert "skipping 7 of the 8 entries" in caplog.text
    cache.record(H100, [entry_of(SMALL)])
    raw = json.loads(file.read_text())["entries"]
    assert len(raw) == 9
    assert 7 in raw


def test_entries_of_other_kernels_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    file = cache.record(H100, [entry_of()])
    assert file is not None
    edit(file, {"version": 0, "config": {"of": "another version"}, "microseconds": 1.0})
    with caplog.at_level(logging.INFO, "lk_triton"):
        assert cache.user_entries(LAYER, H100) == (entry_of(),)
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "lk-triton tune" in caplog.text
    (table,) = cache.user_tables().values()
    assert table is not None
    assert table.stale == 1


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The results count for this process all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "below"))
    assert cache.record(H100, [entry_of()]) is None
    assert "LK_TRITON_CACHE_DIR" in caplog.text
    assert cache.user_entries(LAYER, H100) == (entry_of(),)


def test_an_interrupted_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.record(H100, [entry_of()])
    before = (folder / "h100.json").read_text()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.record(H100, [entry_of(SMALL)])
    assert (folder / "h100.json").read_text() == before
    assert {p.name for p in folder.iterdir()} == {"h100.json", ".lock"}


WRITER = """
import sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
from fakes import H100, SMALL, entry_of
from lk_triton.planning import cache
print("ready", flush=True)
sys.stdin.readline()
for n in range(15):
    cache.record(H100, [replace(entry_of(SMALL), problem=replace(SMALL, n=2 * n + {parity} + 1))])
"""


def test_two_processes_lose_nothing() -> None:
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c"]
    writers = [
        subprocess.Popen([*command, WRITER.format(tests=tests, parity=p)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for p in (0, 1)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    assert [writer.wait(1800) for writer in writers] == [0, 0]
    for writer in writers:
        writer.communicate()
    assert all(cache.user_entries(replace(SMALL, n=n + 1), H100) for n in range(30))


def test_clear_deletes_tables_and_nothing_else(folder: Path) -> None:
    assert cache.clear() == []
    file = cache.record(H100, [entry_of()])
    (folder / "notes.json").write_text('{"mine": true}')
    (folder / "h100.json.unreadable-1").write_text("{")
    assert cache.clear() == [file]
    assert {p.name for p in folder.iterdir()} == {"notes.json", "h100.json.unreadable-1", ".lock"}
    assert cache.user_entries(LAYER, H100) == ()


# Jobs of several processes


def test_ranks_share_a_cache_only_where_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.record(H100, [entry_of()])
    pretend_ranks(monkeypatch, 1)
    assert cache.user_entries(LAYER, H100)
    pretend_ranks(monkeypatch, 2)
    assert cache.ignored()
    assert cache.user_entries(LAYER, H100) == ()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "lk_triton"))
    assert not cache.ignored()
    assert cache.user_entries(LAYER, H100)


# What ships


def test_shipped_tables_are_current(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A table whose kernels have changed is dead weight: measure again or remove it."""
    monkeypatch.setattr(cache, "TABLES", SHIPPED)
    files = sorted(SHIPPED.glob("*.json"))
    shipped = cache.shipped_tables()
    assert len(shipped) == len(files)
    assert not caplog.records
    for file, table in zip(files, shipped, strict=True):
        assert file.name == cache.file_name(table.device)
        assert table.stale == 0
