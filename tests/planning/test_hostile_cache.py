"""Whatever lies in the cache directory or holds its lock: no call crashes or hangs, nothing is lost or trusted unasked."""

from __future__ import annotations

import json
import os
import pwd
import stat
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import H100, LAYER, SMALL, edit, entry_of

import lk_triton
from lk_triton.cli import main
from lk_triton.planning import cache, entry
from lk_triton.planning.plan import plan

NOBODY = 54321


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No home directory, as in a container that runs as some user; returns where the cache lies then."""
    for variable in (cache.VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary" / f"lk_triton-{os.getuid()}"


# Directories


@pytest.mark.usefixtures("no_interpreter")
def test_without_a_home_everything_works(homeless: Path) -> None:
    assert cache.directory() == homeless
    lk_triton.depthwise_conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3))
    assert not homeless.exists(), "a call makes no directory"
    file = cache.record(H100, [entry_of()])
    assert file == homeless / "h100.json"
    assert stat.S_IMODE(homeless.stat().st_mode) == 0o700
    cache.reload()
    assert cache.user_entries(LAYER, H100) == (entry_of(),)


def test_without_a_temporary_directory(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert cache.directory() == Path("/tmp") / homeless.name


def test_names_without_a_home(homeless: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.VARIABLE, "~nouser/x")
    assert cache.directory() == tmp_path / "~nouser/x"
    assert cache.user_entries(LAYER, H100) == ()
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.directory() == homeless


@pytest.mark.parametrize("whose", ["another user's", "writable by all", "a link"])
def test_a_foreign_fallback_is_not_trusted(
    whose: str, homeless: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache.record(H100, [entry_of()])
    if whose == "another user's":
        os.chown(homeless, NOBODY, NOBODY)
    elif whose == "writable by all":
        homeless.chmod(0o777)
    else:
        homeless.rename(homeless.with_name("theirs"))
        homeless.symlink_to("theirs")
    before = (homeless / "h100.json").read_text()
    cache.reload()
    for _ in range(2):
        assert cache.user_entries(LAYER, H100) == ()
    assert caplog.text.count("is not this user's own directory") == 1
    assert cache.record(H100, [entry_of(SMALL)]) is None
    assert caplog.text.count("is not this user's own directory") == 2
    assert main(["cache", "clear", "--yes"]) == 2
    assert "is not this user's own directory" in capsys.readouterr().err
    assert (homeless / "h100.json").read_text() == before


# Entries and files


def hostile_entries() -> list[Any]:
    problem = entry.problem_to_json(LAYER)
    problems = [
        {"n": {}}, {"n": 64.0}, {"n": "64"}, {"n": True}, {"n": None}, {"stride": [[1], 1]}, {"stride": [1]},
        {"layout": {}}, {"dtype": 16}, {"precision": 1}, {"epilogue": {**problem["epilogue"], "bias": 1}},
    ]  # fmt: skip
    config = asdict(entry_of().config)
    configs = [{**config, "rows": 4.0}, {**config, "rows": [4]}, {**config, "rows": {}}, {**config, "num_warps": "4"}]
    others = [{"algorithm": {}}, {"versions": []}, {"versions": {"torch": 2}}, {"rounds": True}, {"spread": "small"},
              {"form": []}, {"version": 1.5}, {"microseconds": 1e999}, {"microseconds": True}]  # fmt: skip
    return [*({"problem": {**problem, **p}} for p in problems), *({"config": c} for c in configs), *others]


@pytest.mark.parametrize("change", hostile_entries(), ids=str)
def test_entries_with_other_types_are_skipped_and_kept(
    change: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.record(H100, [entry_of()])
    edit(folder / "h100.json", {"microseconds": 1.0} | change)
    for _ in range(2):
        assert cache.user_entries(LAYER, H100) == (entry_of(),)
    assert len(caplog.records) <= 1
    cache.record(H100, [entry_of(SMALL)])
    raw = json.loads((folder / "h100.json").read_text())["entries"]
    assert len(raw) == 3
    assert raw[1] == raw[0] | {"microseconds": 1.0} | json.loads(json.dumps(change))


def test_a_plans_config_is_one_of_the_algorithms() -> None:
    """What equals a legal config, as 1.0 equals 1, is no config for a kernel."""
    measured = entry_of()
    cache.record(H100, [replace(measured, config=replace(measured.config, rows=float(measured.config.rows)))])
    chosen = plan(LAYER, H100)
    assert chosen.source == "user cache"
    assert chosen.config == measured.config
    assert type(chosen.config.rows) is int


def pipe(file: Path) -> None:
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def deep(file: Path) -> None:
    file.write_text('{"lk_triton_tuning": 1, "device": "h100", "arch": "sm_90", "entries": ' + "[" * 100_000)


def deep_entry(file: Path) -> None:
    """Shallow enough for ``json``, as newer versions of Python read it, and too deep for a recursive function."""
    nested = json.dumps({"lk_triton_tuning": 1, "device": "h100", "arch": "sm_90", "entries": []})
    file.write_text(nested.replace("[]", '[{"problem": {"kind": ' + "[" * 900 + "]" * 900 + "}}]"))


def huge(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(cache.LARGEST + 1)


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("make", [pipe, endless, deep, deep_entry, huge])
def test_files_that_are_no_tables(
    make: Any, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    make(folder / "h100.json")
    for _ in range(2):
        assert cache.user_entries(LAYER, H100) == ()
    assert len(caplog.records) == 1
    assert "skipping" in caplog.text
    assert main(["cache", "list"]) == 0
    cache.record(H100, [entry_of()])
    assert cache.user_entries(LAYER, H100) == (entry_of(),)
    if make is deep_entry:
        assert "[" * 900 in (folder / "h100.json").read_text().replace(" ", "")
    else:
        assert os.path.lexists(folder / "h100.json.unreadable-1")


# Writing


@pytest.fixture
def stopped(folder: Path) -> Any:
    """Another process has the lock and never goes on."""
    import fcntl

    cache.record(H100, [entry_of(SMALL)])
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


@pytest.mark.usefixtures("stopped")
def test_a_lock_that_is_never_released(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.1)
    assert cache.record(H100, [entry_of()]) is None
    assert "cannot save what was measured" in caplog.text
    assert "has held" in caplog.text
    assert cache.user_entries(LAYER, H100) == (entry_of(),)
    assert main(["cache", "clear", "--yes"]) == 2
    assert "has held" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_lock_that_is_something_else(what: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    if what == "link":
        (folder / ".lock").symlink_to(folder / "made")
    else:
        os.mkfifo(folder / ".lock")
    assert cache.record(H100, [entry_of()]) is None
    assert "cannot save what was measured" in caplog.text
    assert not (folder / "made").exists()


def test_a_linked_table_stays_a_link(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "dotfiles").mkdir()
    (folder / "h100.json").symlink_to(tmp_path / "dotfiles" / "tuned.json")
    for found in (entry_of(), entry_of(SMALL)):
        cache.record(H100, [found])
    assert (folder / "h100.json").is_symlink()
    assert [p.name for p in (tmp_path / "dotfiles").iterdir()] == ["tuned.json"]
    cache.reload()
    assert cache.user_entries(LAYER, H100)
    assert cache.user_entries(SMALL, H100)


def test_what_a_killed_writer_left_is_swept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", killed)
        patch.setattr(cache.os, "unlink", lambda _: None)
        for device in ("one", "two"):
            with pytest.raises(KeyboardInterrupt):
                cache.record(cache.replace(H100, name=device), [entry_of()])
    old, young = sorted(folder.glob("*.tmp"))
    theirs = folder / "notes.json.tmp"
    theirs.touch()
    for file in (old, theirs):
        os.utime(file, (0, time.time() - cache.LEFT_BEHIND - 1))
    cache.record(H100, [entry_of()])
    assert {p.name for p in folder.iterdir()} == {"h100.json", ".lock", young.name, theirs.name}


def test_the_umask_is_never_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the process's: a file that another thread makes meanwhile would be open to all."""
    monkeypatch.setattr(cache.os, "umask", None)
    before = []
    monkeypatch.setattr(cache.os, "fsync", before.append)
    assert cache.record(H100, [entry_of()])
    assert len(before) == 1, "what a power cut leaves is a whole file"
