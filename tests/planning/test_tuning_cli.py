"""``lk-triton tune`` and ``lk-triton cache``."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import H100, LAYER, SMALL, Clock, edit, entry_of

from lk_triton import context
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.cli import main, tune
from lk_triton.ops.problem import ConvProblem
from lk_triton.planning import cache, entry, timing, tuner

DRY = ("tune", "--dry-run", "--batch", "64", "--size", "224")
TINY = replace(SMALL, c=1)


def test_a_dry_run_lists_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DRY, "--arch", "sm_80", "--top", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("candidates for a100 (sm_80); estimates come from the cost model, nothing was measured")
    assert "(64, 128, 56, 56) 31x31 float16" in text
    for word in ("toeplitz", "direct", "estimate us", "limiter", "rows="):
        assert word in text


@pytest.mark.usefixtures("no_interpreter")
def test_a_dry_run_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU and an architecture it is for an H100."""
    assert main([*DRY, "--dtype", "fp16", "bf16", "--batch", "1", "64", "--json"]) == 0
    header, *listed, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (header["type"], header["device"], header["arch"]) == ("device", "h100", "sm_90")
    assert {line["type"] for line in listed} == {"candidates"}
    assert summary == {"type": "summary", "problems": len(listed), "measured": 0, "failed": 0}
    assert header["problems"] == len(listed)
    large = [line for line in listed if line["problem"].get("kh", 1) > 3]
    assert len(large) == 4 * 2 * 2
    for posed in large:
        estimates = [c["estimate_us"] for c in posed["candidates"]]
        assert len(estimates) == 12
        assert estimates == sorted(estimates)
        assert set(posed["candidates"][0]) == {"algorithm", "config", "estimate_us", "limiter"}


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to tune on cpu: Triton kernels need a CUDA or ROCm GPU; --dry-run lists the candidates without one"),
        (("--arch", "sm_90"), "--arch is for --dry-run"),
        (("--dry-run", "--arch", "sm_90", "--device", "cpu"), "pass one of them"),
        (("--dry-run", "--model", "replknet"), "replknet_31b"),
        (("--dry-run", "--missing"), "--missing and --seconds are for measuring"),
        (("--dry-run", "--seconds", "5"), "--missing and --seconds are for measuring"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Clock:
    """A network that poses one problem which the interpreter can do, and launches that move the clock."""
    monkeypatch.setattr(tune, "fused_problems", lambda *_: [{TINY: 1}])
    monkeypatch.setattr(timing, "timer", clock.timer)
    direct = registry.get("direct")
    real = direct.launch

    def launch(*args: object) -> object:
        clock.now += 2.5e-6
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(direct, "launch", launch)

    def broken(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(registry.get("toeplitz"), "launch", broken)
    return clock


@pytest.mark.usefixtures("tiny", "one_thread")
def test_measuring(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["tune", "--top", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == "1/1 (1, 1, 6, 6) 5x5 float16: direct, 2.5 us\n"
    assert re.search(r"float16\s+direct\s+block=\d+ .*2\.5 ", out)
    assert "RuntimeError: out of resource: shared memory" in out
    assert f"saved in {folder / 'interpreter.json'}" in out
    assert main(["tune", "--top", "4", "--json"]) == 0
    header, result, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(header) == {"type", "device", "arch", "versions", "problems", "file"}
    assert header["file"] == str(folder / "interpreter.json")
    assert set(result) == {"type", "problem", "algorithm", "config", "microseconds", "estimate_us", "trials"}
    assert (result["type"], result["algorithm"], result["microseconds"]) == ("result", "direct", pytest.approx(2.5))
    assert summary == {"type": "summary", "problems": 1, "measured": 1, "failed": 0, "skipped": 0, "left": 0}
    assert {t["algorithm"] for t in result["trials"] if t["rejected"]} == {"toeplitz"}


@pytest.mark.usefixtures("tiny", "one_thread")
def test_nothing_measured_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry.get("direct"), "launch", registry.get("toeplitz").launch)
    assert main(["tune", "--top", "2"]) == 1
    assert "nothing measured" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny", "one_thread")
def test_a_problem_that_fails_does_not_lose_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Every line is out before the next problem is measured, so that a run that is killed keeps what it found."""
    monkeypatch.setattr(tune, "fused_problems", lambda *_: [{replace(TINY, n=64): 3, TINY: 2, replace(TINY, n=65): 1}])
    real, seen = tune.tune_problems, []

    def failing(asked: list[ConvProblem], **options: object) -> list[tuner.Result]:
        seen.append([json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()])
        if asked != [TINY]:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB.\nGPU 0 has ...")
        return real(asked, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tune, "tune_problems", failing)
    assert main(["tune", "--top", "4", "--json"]) == 1
    assert seen == [["device"], ["error"], ["result"]]
    error, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (error["type"], error["problem"]["n"]) == ("error", 65)
    assert error["error"] == "OutOfMemoryError: Tried to allocate 2 GiB."
    assert summary == {"type": "summary", "problems": 3, "measured": 1, "failed": 2, "skipped": 0, "left": 0}
    assert main(["tune", "--top", "4"]) == 1
    out, err = capsys.readouterr()
    assert "float16: OutOfMemoryError: Tried to allocate 2 GiB." in out
    assert "3/3 (65, 1, 6, 6) 5x5 float16: OutOfMemoryError" in err
    assert f"saved in {folder / 'interpreter.json'}" in out


@pytest.mark.usefixtures("tiny", "one_thread")
def test_missing_goes_on_where_the_last_command_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """The heaviest first; the time is of the whole command; what is left is told and measured by the next one."""
    light, heavy, middle = TINY, replace(TINY, c=2), replace(TINY, n=2)
    monkeypatch.setattr(tune, "fused_problems", lambda *_: [{light: 1, middle: 3, heavy: 9}])
    monkeypatch.setattr(tune.time, "monotonic", lambda: clock.now)
    real = tune.tune_problems

    def a_minute(asked: list[ConvProblem], **options: object) -> list[tuner.Result]:
        clock.now += 60
        return real(asked, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tune, "tune_problems", a_minute)

    def command(*arguments: str) -> tuple[list[str], dict[str, int], str]:
        assert main(["tune", "--top", "4", "--json", *arguments]) == 0
        out, err = capsys.readouterr()
        *lines, summary = map(json.loads, out.splitlines())
        problems = [str(entry.problem_from_json(line["problem"])) for line in lines if line["type"] == "result"]
        return problems, summary, err

    problems, summary, err = command("--missing", "--seconds", "90")
    assert problems == [str(heavy), str(middle)]
    assert (summary["problems"], summary["measured"], summary["skipped"], summary["left"]) == (3, 2, 0, 1)
    assert "1 of 3 problems left: the same command with --missing measures them" in err
    problems, summary, err = command("--missing")
    assert problems == [str(light)]
    assert (summary["problems"], summary["measured"], summary["skipped"], summary["left"]) == (3, 1, 2, 0)
    assert "left" not in err
    assert command("--missing")[0] == []
    assert len(command()[0]) == 3


@pytest.mark.usefixtures("tiny", "one_thread")
def test_a_lost_gpu_is_exit_code_75(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The process ends without destructors; the next one, started with --missing, finds what was measured."""
    wide = replace(TINY, c=2)
    monkeypatch.setattr(tune, "fused_problems", lambda *_: [{TINY: 9, wide: 1, replace(TINY, n=65): 1}])
    monkeypatch.setattr(context, "lost", lambda device: "CUDA error: an illegal memory access" if lost else None)
    real, lost = registry.get("direct").launch, []

    def launch(problem: ConvProblem, *rest: object) -> object:
        lost.extend([True] * (problem != TINY))
        return registry.get("toeplitz").launch() if lost else real(problem, *rest)  # type: ignore[arg-type, call-arg]

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(registry.get("direct"), "launch", launch)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(registry.get("toeplitz"), "configs", lambda *_: [])
    with pytest.raises(SystemExit) as stopped:
        main(["tune", "--top", "2", "--json"])
    assert stopped.value.code == context.EXIT_CODE == 75
    _, result, error, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (result["type"], error["type"], error["lost"], error["algorithm"]) == ("result", "error", True, "direct")
    assert "ContextLost: the GPU was lost" in error["error"]
    assert (summary["measured"], summary["failed"], summary["left"]) == (1, 1, 1)
    cache.reload()
    assert cache.user_entries(TINY, gpus.of(torch.device("cpu")))


@pytest.mark.usefixtures("tiny", "one_thread")
def test_lines_of_a_rehearsal_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for value, marks in (("1", {True}), ("0", {None}), ("", {None})):
        monkeypatch.setenv("LK_TRITON_REHEARSAL", value)
        assert main(["tune", "--top", "2", "--json"]) == 0
        assert {json.loads(line).get("rehearsal") for line in capsys.readouterr().out.splitlines()} == marks


def test_the_cache_command(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert main(["cache", "list"]) == 0
    assert "nothing was measured yet" in capsys.readouterr().out
    file = cache.record(H100, [entry_of(us=123.4), entry_of(SMALL, "direct")])
    assert file is not None
    edit(file, {"version": 0})
    (folder / "other.json").write_text("{")
    assert main(["cache", "list"]) == 0
    text = capsys.readouterr().out
    assert f"h100 (sm_90), {file}" in text
    assert str(LAYER) in text
    assert "123.4" in text
    assert "1 of other kernels" in text
    assert f"{folder / 'other.json'}: cannot be used" in text
    assert main(["cache", "clear", "--yes"]) == 0
    assert capsys.readouterr().out == f"deleted {file}\n"
    assert main(["cache", "clear"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_clearing_asks_and_takes_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    files = [cache.record(replace(H100, name=name), [entry_of()]) for name in ("h100", "another")]
    assert main(["cache", "clear"]) == 2
    captured = capsys.readouterr()
    assert "pass --yes to do it" in captured.err
    assert all(str(file) in captured.err and file.exists() for file in files if file)
    assert main(["cache", "clear", "--yes", "--device", "a100"]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert main(["cache", "clear", "--yes", "--device", "another"]) == 0
    assert capsys.readouterr().out == f"deleted {files[1]}\n"
    assert [file for file in files if file and file.exists()] == files[:1]
    assert main(["cache", "list", "--yes"]) == 2
    assert "--device and --yes go with cache clear" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "below"))
    monkeypatch.setattr(tune, "tune_problems", None)
    assert main(["tune"]) == 2
    assert "set LK_TRITON_CACHE_DIR to a directory to write to" in capsys.readouterr().err
