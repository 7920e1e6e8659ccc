"""Which problems a model poses, its layers not being run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from fakes import Net

from lk_triton.models import create_model
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue
from lk_triton.ops.tracing import problems_of


def test_the_problems_of_a_model() -> None:
    net = Net().eval()
    expected = {
        ConvProblem(2, 4, 9, 7, 5, 5, padding=(2, 2), dtype="float32", epilogue=Epilogue(True, "relu")): 2,
        DenseProblem(2, 4, 9, 7, 4, dtype="float32", epilogue=Epilogue(True)): 1,
        ConvProblem(2, 4, 9, 7, 3, 3, padding=(1, 1), dtype="float32", epilogue=Epilogue(False, None, True)): 1,
    }
    assert problems_of(net, (2, 4, 9, 7)) == problems_of(net, torch.ones(2, 4, 9, 7)) == expected
    assert problems_of(net.to("meta"), (2, 4, 9, 7)) == expected
    half = problems_of(Net().eval().half(), (2, 4, 9, 7))
    assert list(half) == [replace(p, dtype="float16") for p in expected]
    x = torch.ones(2, 4, 9, 7).to(memory_format=torch.channels_last)
    assert {p.output().layout for p in problems_of(Net().eval(), x)} == {"channels_last"}
    with torch.autocast("cpu", torch.bfloat16):
        assert {p.dtype for p in problems_of(Net().eval(), (2, 4, 9, 7))} == {"bfloat16"}


def test_the_problems_of_a_network_that_is_not_there() -> None:
    network = create_model("replknet_31b", device="meta").eval().reparameterize()
    found = problems_of(network, (64, 3, 224, 224))
    large = {(p.c, p.h, p.kh): count for p, count in found.items() if isinstance(p, ConvProblem) and p.kh > 3}
    assert large == {(128, 56, 31): 2, (256, 28, 29): 2, (512, 14, 27): 18, (1024, 7, 13): 2}
    dense: Counter[tuple[int, int, int]] = Counter()
    for p, count in found.items():
        if isinstance(p, DenseProblem) and p.h == 14:
            dense[p.c, p.out_channels, p.h] += count
    assert dense == {(512, 512, 14): 36, (512, 2048, 14): 18, (2048, 512, 14): 18, (512, 1024, 14): 1}
    inside = [x for p in found if (x := p.inputs()["x"]).shape[1] != 3]
    assert {x.layout for x in inside} == {p.output().layout for p in found} == {"channel_major"}
