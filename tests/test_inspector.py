"""Kernels compiled for four architectures without a GPU: tensor cores, load widths, spills, shared memory, occupancy.

They are compiled in a process of their own (``compilation.py``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from compilation import compile_all
from torch import Tensor

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.depthwise.toeplitz.cost import dot_of, shared_bytes
from lk_triton.algorithms.depthwise.toeplitz.host import ToeplitzAlgorithm
from lk_triton.ops.problem import ConvProblem, Epilogue
from lk_triton.planning.plan import plan
from lk_triton.tools import disassembly, inspector


def fields(n, c, size, kernel, dtype, stride=1):
    return {"n": n, "c": c, "h": size, "w": size, "kh": kernel, "kw": kernel, "dtype": dtype, "stride": (stride, stride),
            "padding": (kernel // 2, kernel // 2)}  # fmt: skip


def bound(problem: ConvProblem, target: gpus.Gpu) -> int:
    """The model's shared memory of the plan that would run."""
    config = plan(problem, target, "toeplitz").config
    return shared_bytes(problem, config, dot_of(problem, config, target))


# map, kernel -> bytes of an image load: as wide as the row pitch allows
LAYERS = {(128, 56, 31): 16, (256, 28, 29): 8, (512, 14, 27): 4, (1024, 7, 13): 2}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_layers_of_31b(arch, dtype):
    cases = [(arch, "toeplitz", fields(64, c, size, k, dtype), (True, "relu", False)) for c, size, k in LAYERS]
    for (_, _, p, epilogue), image_bytes, report in zip(cases, LAYERS.values(), compile_all(cases), strict=True):
        assert report["loop"]["mma"] > 0
        assert report["loop"]["mma_kind"].startswith("HGMMA" if arch == "sm_90" else "HMMA")
        assert report["spill_bytes"] == 0
        loads = {int(width): counts for width, counts in report["loop"]["loads"].items()}
        asynchronous = {width for width, (count, _) in loads.items() if count}
        synchronous = {width for width, (_, count) in loads.items() if count}
        assert asynchronous - {image_bytes} <= {8, 16}, "the bank is read by 8- or 16-byte loads"
        assert asynchronous & {8, 16}
        assert image_bytes in (synchronous if image_bytes == 2 else asynchronous)
        assert synchronous == ({2} if image_bytes == 2 else set()), "only 7 wide maps are too narrow for asynchronous loads"
        problem = ConvProblem(**p, epilogue=Epilogue(*epilogue))
        target = gpus.for_arch(arch)
        assert report["shared_bytes"] <= bound(problem, target)
        assert report["shared_bytes"] <= target.shared_per_block


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_other_epilogues_and_precisions_do_not_spill(arch):
    cases = [
        (arch, "toeplitz", fields(64, 128, 56, 31, "float16"), (True, "gelu", True)),
        (arch, "toeplitz", fields(1, 128, 56, 31, "float16"), (True, "silu", False)),
        (arch, "toeplitz", fields(64, 128, 56, 31, "float32"), (True, "relu", False)),
        (arch, "direct", fields(64, 128, 56, 31, "float32"), (True, "relu", True)),
    ]
    for report in compile_all(cases):
        assert report["spill_bytes"] == 0


@pytest.mark.slow
def test_direct_at_three_and_five():
    """No spills, 16-byte image loads at 3x3 (stride 1 and 2) and 5x5; at stride 1 all stays in registers."""
    cases = [
        ("sm_90", "direct", fields(64, 128, 56, k, "float16", stride), (True, "relu", False))
        for k, stride in ((3, 2), (3, 1), (5, 1))
    ]
    reports = compile_all(cases)
    assert all(report["spill_bytes"] == 0 and "16" in report["loop"]["loads"] for report in reports)
    assert [report["shared_bytes"] for report in reports[1:]] == [0, 0]


def draw(arch: str, count: int) -> list[tuple]:
    """Problems like RepLKNet's layers, each with one of the configs that are legal for it, drawn with a fixed seed."""
    random, target, found = Random(arch), gpus.for_arch(arch), []
    while len(found) < count:
        n, c, size = random.choice([1, 8, 64]), random.choice([8, 128]), random.choice([7, 12, 14, 24, 28, 48, 56, 96])
        p = fields(n, c, size, random.choice([3, 5, 7, 13, 25, 27, 29, 31]), random.choice(["float16", "float32"]))
        epilogue = (True, random.choice([None, "relu", "gelu"]), random.random() < 0.5)
        configs = ToeplitzAlgorithm().configs(ConvProblem(**p, epilogue=Epilogue(*epilogue)), target)
        found.append((arch, "toeplitz", p, epilogue, random.randrange(len(configs))))
    return found


MATRIX = {"mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA", "mfma": "v_mfma", "fma": ""}
"""What a dot's kind is called in the code."""


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "count"), [("sm_80", 12), ("sm_90", 12), ("sm_100", 6), ("gfx942", 6)])
def test_a_sample_of_legal_configs(arch, count):
    """Legal configs, not only the best ones: half types do not spill, shared memory keeps to its bound, tensor memory is what
    the model says, and so is what multiplies.

    A sample, not a proof: a few of the many thousand legal pairs of problem and config. float32 may spill: its smallest tile
    because it is served at any window, others by a register or two that ptxas gives up for one more program on an SM (seen
    at 80 registers with eight warps).
    """
    cases = draw(arch, count)
    target = gpus.for_arch(arch)
    for (_, _, p, epilogue, number), report in zip(cases, compile_all(cases), strict=True):
        problem = ConvProblem(**p, epilogue=Epilogue(*epilogue))
        config = ToeplitzAlgorithm().configs(problem, target)[number]
        dot = dot_of(problem, config, target)
        assert report["shared_bytes"] <= shared_bytes(problem, config, dot) <= target.shared_per_block, (problem, config)
        assert report["tensor_columns"] <= dot.tensor_columns <= target.tensor_columns, (problem, config)
        assert report["loop"]["mma_kind"].startswith(MATRIX[dot.kind]), (problem, config)
        assert bool(report["loop"]["mma"]) == (dot.kind != "fma"), (problem, config)
        smallest = config.tiles * config.outputs == 16 * 32
        allowed = 0 if problem.itemsize == 2 else math.inf if smallest else 16
        assert report["spill_bytes"] <= allowed, (problem, config)


def test_shared_memory_is_bounded_by_the_estimate():
    """One quick compilation in the fast suite."""
    case = ("sm_90", "toeplitz", fields(1, 8, 14, 13, "float16"), (True, "relu", False))
    (report,) = compile_all([case])
    p = ConvProblem(**case[2], epilogue=Epilogue(*case[3]))
    assert 0 < report["shared_bytes"] <= bound(p, gpus.for_arch("sm_90"))
    assert report["loop"]["mma"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["toeplitz", "direct"])
def test_arguments_of_one_and_wide_kernels_compile(algorithm):
    """Triton makes an argument of 1 a constant: batch, channels, rows, row vectors, filter rows. And 51 columns."""
    cases = [
        ("sm_90", algorithm, fields(1, 1, 8, 1, "float16"), (False, None, False)),
        ("sm_90", algorithm, fields(1, 1, 1, 3, "float32"), (True, "relu", True)),
        ("sm_80", algorithm, {**fields(1, 4, 8, 3, "bfloat16"), "h": 1}, (True, "gelu", False)),
        ("sm_80", algorithm, {**fields(64, 4, 56, 51, "float16"), "kh": 5, "padding": (2, 25)}, (True, None, False)),
        ("sm_90", algorithm, {**fields(64, 4, 56, 51, "float16"), "kw": 5, "padding": (25, 2)}, (True, None, False)),
        ("sm_90", algorithm, fields(64, 4, 64, 51, "float16"), (True, "silu", False)),
    ]
    assert all(report["spill_bytes"] == 0 for report in compile_all(cases))


@pytest.mark.slow
def test_the_best_plans_on_newer_and_other_hardware():
    """31B's layers: tcgen05 on sm_100 and mfma on gfx942, no spills. sm_120 has mma.sync, its bank loads are asynchronous; on
    gfx942 every load goes to registers."""
    archs = ("sm_100", "sm_120", "gfx942")
    layers = [fields(64, c, size, k, "float16") for c, size, k in LAYERS]
    cases = [(arch, "toeplitz", layer, (True, "relu", False)) for arch in archs for layer in layers]
    for case, report in zip(cases, compile_all(cases), strict=True):
        target = gpus.for_arch(case[0])
        assert report["loop"]["mma_kind"].startswith(MATRIX[target.mma_family]), case
        assert report["spill_bytes"] == 0, case
        assert report["shared_bytes"] <= target.shared_per_block, case
        asynchronous = sum(straight for straight, _ in report["loop"]["loads"].values())
        assert (asynchronous > 0) == (target.backend == "cuda"), case


@pytest.mark.parametrize("name", ["toeplitz", "direct"])
def test_channels_last_compiles_what_runs(name):
    """The copies to dense planes come first: the kernel sees what it sees of an NCHW problem."""
    last = ConvProblem(2, 8, 14, 14, 13, 13, padding=(6, 6), layout="channels_last", epilogue=Epilogue(residual=True))
    config = registry.get(name).configs(last, gpus.TABLE["h100"])[-1]
    seen, dense = (inspector.meta_launch(p, name, config).args for p in (last, replace(last, layout="nchw")))
    assert {k: v for k, v in seen.items() if not isinstance(v, Tensor)} == {
        k: v for k, v in dense.items() if not isinstance(v, Tensor)
    }
    assert seen["stride_xc"] * seen["XV"] == 14 * 14


def test_errors():
    p = ConvProblem(1, 8, 14, 14, 13, 13, padding=(6, 6))
    config = ToeplitzAlgorithm().configs(p, gpus.TABLE["h100"])[0]
    launch = inspector.meta_launch(p, "toeplitz", config)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        inspector.compile_launch(launch, "sm_90")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        inspector.require_compiler()
    with pytest.raises(ValueError, match="no Triton kernel"):
        inspector.meta_launch(p, "torch", None)


EMPTY = disassembly.Mix(0, 0, "", {})


@pytest.mark.parametrize(
    ("target", "registers", "shared", "num_warps", "tensor_columns", "programs"),
    [
        ("h100", 224, 110592, 8, 0, 1),  # registers: two warps in each quarter of the SM
        ("h100", 40, 110592, 4, 0, 2),  # shared memory
        ("h100", 40, 115712, 4, 0, 2),  # with the 1 KiB that CUDA keeps, exactly half
        ("h100", 40, 116736, 4, 0, 1),
        ("h100", 32, 0, 4, 0, 16),  # warps
        ("rtx4090", 32, 0, 4, 0, 12),
        ("h100", 16, 0, 1, 0, 32),  # programs
        ("a100", 193, 36864, 4, 0, 2),
        ("b200", 100, 1024, 4, 256, 2),  # tensor memory
        ("mi300x", 118, 36864, 4, 0, 1),
        ("mi300x", 138, 512, 2, 0, 6),
    ],
)
def test_programs_per_sm(target, registers, shared, num_warps, tensor_columns, programs):
    report = inspector.Report(registers, 0, shared, num_warps, tensor_columns, EMPTY, "")
    assert report.programs_per_sm(gpus.TABLE[target]) == programs
