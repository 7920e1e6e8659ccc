"""``lk-triton info``."""

from __future__ import annotations

import json

import pytest

from lk_triton.algorithms.depthwise.toeplitz_hopper.host import why_no_gluon
from lk_triton.algorithms.registry import meant_for
from lk_triton.cli import main
from lk_triton.ops.problem import ConvProblem, DenseProblem, FfnProblem, StemProblem

pytestmark = pytest.mark.usefixtures("no_interpreter")

KINDS = {"dense": DenseProblem, "ConvFFN": FfnProblem, "stem": StemProblem}


@pytest.mark.parametrize("arch", [None, "sm_90", "sm_80", "sm_70"])
def test_info_json(capsys: pytest.CaptureFixture[str], arch: str | None) -> None:
    assert main(["info", "--json", *(("--arch", arch) if arch else ())]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["versions"]) == {"lk_triton", "torch", "triton", "python"}
    assert {"c_compiler", "python_headers", "device"} <= set(result)
    layers = result["layers"]
    half = [layer for layer in layers if layer["dtype"] == "float16"]
    assert sum(layer["count"] for layer in half) == 130 - 4 - 2, (
        "four ConvFFNs and the stem's first three layers are posed whole"
    )
    assert sum(layer["count"] for layer in layers if layer["dtype"] == "float32") == 130
    for layer in layers:
        assert layer["algorithm"] in layer["estimate_us"]
        kind = next((k for word, k in KINDS.items() if f" {word} " in layer["problem"]), ConvProblem)
        meant = meant_for(kind).keys()
        assert set(layer["estimate_us"]) | set(layer["refusals"]) == meant
    large = next(layer for layer in half if "31x31" in layer["problem"])
    if arch in ("sm_90", "sm_80"):
        assert large["algorithm"] == ("toeplitz_hopper" if arch == "sm_90" and why_no_gluon() is None else "toeplitz")
    elif arch == "sm_70":
        assert "toeplitz" in large["refusals"]


def test_info_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert main(["info", "--arch", "sm_90"]) == 0
    out = capsys.readouterr().out
    assert "apt install gcc" in out
    assert "(64, 128, 56, 56) 31x31 float16" in out
    assert "not from a measurement" in out
