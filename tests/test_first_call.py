"""What the first call does where nothing is cached: it chooses a config by estimate, and compiles one kernel at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lk_triton.bench import first_call


@pytest.mark.slow
def test_every_layer_of_31b_compiles_one_kernel_at_most() -> None:
    """Into an empty cache, in a process of its own; what was compiled for a layer before is not compiled again."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "lk_triton.bench.first_call"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 33, "large kernels, 3x3s, 1x1s by sizes and epilogue, two ConvFFNs, the stem, its first layer"
    for row in rows:
        assert row["source"] in ("cost model", "nearest shipped entry"), "nothing is timed"
        assert row["registers"] > 0
        assert row["kernels"] in (0, 1), row["problem"]
    assert sum(row["kernels"] for row in rows) > 20, "compiled afresh"


def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        first_call.main([])
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    for arguments, message in ((["--arch", "h1000"], "h1000"), (["--model", "replknet"], "replknet_31b")):
        with pytest.raises(SystemExit, match="2"):
            first_call.main(arguments)
        assert message in capsys.readouterr().err
