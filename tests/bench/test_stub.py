"""Whole networks through Triton's JIT, launcher and tensor-map encoding, on a driver that records and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from skips import STUB_MISSING

from lk_triton.bench import stub

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _needs_a_compiler() -> None:
    if (reason := stub.missing()) is not None:
        pytest.skip(f"{STUB_MISSING}: {reason}")


def run(*arguments: str, triton: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m ARGUMENTS`` from the root, where TRITON_INTERPRET is unset; ``triton``: a folder with another Triton."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    paths = [triton, str(ROOT), env.get("PYTHONPATH")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, env=env, cwd=ROOT, check=False)


def launch(*arguments: str, triton: str | None = None) -> list[dict[str, Any]]:
    """What ``launch_networks`` prints, one object a batch."""
    result = run("tests.bench.launch_networks", *arguments, triton=triton)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(found: list[dict[str, Any]], launches: int) -> None:
    assert found
    for network in found:
        assert network["refused"] == []
        assert network["differences"] == []
        assert network["launches"] >= launches


def test_31b() -> None:
    """The stem's kernel, then at least three kernels a RepLK block and one a ConvFFN; the 24 pairs of 31B."""
    found = launch("replknet_31b", "float16", "1", "64")
    check(found, launches=24 * 4)
    assert all(network["early"] == 0 and network["packing"] >= 24 for network in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "dtype", "batches"),
    [
        ("replknet_31b", "bfloat16", ("1", "64")),
        ("replknet_31b", "float32", ("1",)),
        ("replknet_31l", "float16", ("64",)),
        ("replknet_xl", "float16", ("64",)),
    ],
)
def test_other_networks_and_dtypes(model: str, dtype: str, batches: tuple[str, ...]) -> None:
    check(launch(model, dtype, *batches), launches=24 * 4)


@pytest.mark.slow
def test_kernels_that_start_early() -> None:
    (found,) = launch("replknet_31b", "float16", "64", "--early")
    check([found], launches=24 * 4)
    assert found["early"] > 24


@pytest.mark.slow
def test_the_oldest_triton() -> None:
    folder = os.environ.get("LK_TRITON_TEST_TRITON")
    if not folder:
        pytest.skip("LK_TRITON_TEST_TRITON names no folder with Triton 3.6")
    check(launch("replknet_31b", "float16", "64", triton=folder), launches=24 * 4)


def test_a_small_network_as_it_is() -> None:
    """What the sabotage below is measured by."""
    check(launch("small", "float16", "2"), launches=8)


def test_remembered_calls_launch_the_same() -> None:
    found = launch("small", "float16", "2", "--remembered")
    check(found, launches=8)
    assert [network["looked_up"] for network in found] == [0]


@pytest.mark.parametrize(("sabotage", "says"), [("grid", "became"), ("stride", "argument"), ("stale", "argument")])
def test_wrong_repeated_launches_are_seen(sabotage: str, says: str) -> None:
    (found,) = launch("small", "float16", "2", "--sabotage", sabotage)
    assert len(found["differences"]) >= 8
    assert all(says in difference for difference in found["differences"])


def test_too_much_shared_memory_is_refused() -> None:
    result = run("tests.bench.launch_networks", "small", "float16", "2", "--sabotage", "shared")
    assert result.returncode != 0
    assert "out of resource: shared memory" in result.stderr


def test_what_the_driver_refuses() -> None:
    """Asked by Triton's own launcher or encoder."""
    result = run("tests.bench.refused_launches")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("right") == []
    expected = {
        "grid": "a grid of 1 x 65536 x 1",
        "threads": "out of resource: threads, Required: 2048, Hardware limit: 1024",
        "address": "is no multiple of 16",
        "stride": "a stride of 72 bytes, wanted multiples of 16",
        "row": "rows of 8 bytes in a box",
        "empty": "dimension 1 has 0 elements",
    }
    assert {name: text in " ".join(found[name]) for name, text in expected.items()} == dict.fromkeys(expected, True), found
    assert found.keys() == expected.keys()


def test_a_module_of_the_project_runs_on_it() -> None:
    result = run("lk_triton.bench.stub", "lk_triton.cli", "info", "--json")
    assert result.returncode == 0, result.stderr
    assert "NVIDIA H100 80GB HBM3" in result.stdout
    result = run("lk_triton.bench.stub")
    assert result.returncode != 0
    assert "usage: python -m lk_triton.bench.stub MODULE" in result.stderr
