"""Providers: who computes torch's depthwise layers, and in which layout each is measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lk_triton.bench import conv
from lk_triton.bench.cases import layer
from lk_triton.bench.providers import PROVIDERS, Built, Unavailable, flags
from lk_triton.ops.layout import layout_of
from lk_triton.ops.problem import ConvProblem, operands_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = layer(1, 2, 6, 6, 3)
OF_A_GPU = [name for name in PROVIDERS if name.startswith(("torch_native", "torch_cudnn"))]


def test_a_case_keeps_its_layout_where_a_provider_has_none_of_its_own() -> None:
    """So that plans of the layers as networks pose them are used."""
    for layout in ("channel_major", "channels_last", "nchw"):
        for name, expected in (
            ("lk_triton_auto", layout), ("lk_triton_direct", layout), ("lk_triton_auto_nchw", "nchw"),
            ("lk_triton_auto_channels_last", "channels_last"), ("torch", "nchw"), ("torch_channels_last", "channels_last"),
        ):  # fmt: skip
            seen: list[str] = []

            def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None, seen: list[str] = seen) -> Built:
                def run(x: Tensor, weight: Tensor) -> Tensor:
                    seen.append(layout_of(x))
                    return problem.reference(operands_of(x=x, weight=weight, bias=bias))

                seen.append(problem.layout)
                return Built(run, weight, "")

            provider = PROVIDERS[name]._replace(build=build)
            (row,) = conv.measure("small", replace(SMALL, n=2, layout=layout), CPU, {name: provider}, 5)
            assert (row["gate"], row["layout"], set(seen)) == ("ok", expected, {expected})


@pytest.mark.parametrize("kernel", ["native", "cudnn"])
def test_who_computes_torchs_depthwise_layers(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.13 lets one choose; before, cuDNN is switched off, or takes what is in channels_last."""
    gpu = torch.device("cuda")
    assert flags("auto", "nchw", gpu) == flags("auto", "channels_last", CPU) == {"enabled": True}
    with pytest.raises(Unavailable, match="only on a GPU"):
        flags(kernel, "nchw", CPU)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(depthwise_kernel="auto"))
    assert flags(kernel, "nchw", gpu) == flags(kernel, "channels_last", gpu) == {"enabled": True, "depthwise_kernel": kernel}
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace())
    assert flags(kernel, "channels_last", gpu) == {"enabled": kernel == "cudnn"}
    if kernel == "native":
        assert flags(kernel, "nchw", gpu) == {"enabled": False}
    else:
        with pytest.raises(Unavailable, match=r"in channels_last only; 2\.13 lets one choose"):
            flags(kernel, "nchw", gpu)


def test_torch_takes_what_flags_says() -> None:
    for kernel in ("native", "cudnn"):
        chosen = flags(kernel, "channels_last", torch.device("cuda"))
        with torch.backends.cudnn.flags(benchmark=True, allow_tf32=False, **chosen):
            assert torch.backends.cudnn.enabled == chosen["enabled"]
            assert getattr(torch.backends.cudnn, "depthwise_kernel", kernel) == kernel


def test_peers_of_a_gpu_say_so_on_a_cpu() -> None:
    rows = conv.measure("small", SMALL, CPU, {name: PROVIDERS[name] for name in OF_A_GPU}, 5)
    assert len(rows) == 4
    assert all("only on a GPU" in str(row["note"]) and "gate" not in row for row in rows)
