"""Device facts: the table, what the driver tells, and what the interpreter stands in for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lk_triton import gpu as gpus

H100, A100 = gpus.for_arch("sm_90"), gpus.for_arch("sm_80")


def test_device_facts() -> None:
    assert (H100.capability, H100.shared_per_block, H100.sms) == (90, 227 * 1024, 132)
    assert (A100.capability, A100.shared_per_block, A100.sms) == (80, 163 * 1024, 108)
    assert gpus.for_arch("sm_86").arch == "sm_86"
    assert gpus.for_arch("sm_86").shared_per_block == gpus.TABLE["l4"].shared_per_block
    for arch, name in (("sm_80", "a100"), ("sm_90", "h100"), ("sm_100", "b200"), ("gfx942", "mi300x"), ("h200", "h200")):
        assert gpus.for_arch(arch) == gpus.TABLE[name]
    assert gpus.for_arch("gfx942").backend == "hip"
    assert gpus.for_arch("gfx942").capability == 0
    for arch in ("sm90", "sm_", "cuda", "gpu"):
        with pytest.raises(ValueError, match=r"unknown architecture .*expected sm_NN"):
            gpus.for_arch(arch)


def test_every_gpu_names_its_source_and_what_is_assumed() -> None:
    for name, facts in gpus.tomllib.loads(gpus.FACTS.read_text()).items():
        assert facts["source"].startswith("https://"), name
        assert set(facts["assumed"]) < facts.keys(), name
        if "dram_gbps" in facts["assumed"]:
            assert facts["dram_gbps"] == pytest.approx(0.9 * facts["dram_peak_gbps"], rel=0.02), name


def test_the_interpreter_stands_in_for_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("1", "interpreter"), ("true", "interpreter"), ("0", "cpu"), ("", "cpu")):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert gpus.of(torch.device("cpu")).name == expected
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert replace(gpus.of(torch.device("cpu")), name="h100") == H100


@pytest.mark.gpu
def test_facts_of_the_gpu_at_hand() -> None:
    facts = gpus.of(torch.device("cuda"))
    properties = torch.cuda.get_device_properties(0)
    assert (facts.name, facts.sms) == (properties.name, properties.multi_processor_count)
    assert 48 * 1024 <= facts.shared_per_block <= facts.shared_per_sm
    assert facts == gpus.of(torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"), ("NVIDIA H200", "h200"), ("NVIDIA L40S", None), ("AMD Instinct MI300X", "mi300x"),
        ("cpu, 2 threads", None),
    ],
)  # fmt: skip
def test_facts_by_marketing_name(name: str, expected: str | None) -> None:
    found = gpus.named(name)
    assert (found and found.name) == expected


def properties(name: str, arch: tuple[int, int], sms: int, mhz: float, memory_mhz: float, bits: int, l2_mib: int, **others):
    """What ``torch.cuda.get_device_properties`` returns, in its units."""
    threads = 1536 if arch >= (8, 6) and arch[0] not in (9, 10) else 2048
    shared = {(8, 0): 164, (9, 0): 228, (10, 0): 228}.get(arch, 100) * 1024
    return SimpleNamespace(**{
        "name": name, "major": arch[0], "minor": arch[1], "multi_processor_count": sms, "clock_rate": int(mhz * 1e3),
        "memory_clock_rate": int(memory_mhz * 1e3), "memory_bus_width": bits, "L2_cache_size": l2_mib * 2**20,
        "shared_memory_per_block_optin": shared - 1024, "shared_memory_per_multiprocessor": shared,
        "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": threads, "warp_size": 32, **others,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("a100", properties("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1410, 1215, 5120, 40)),
        ("h100", properties("NVIDIA H100 80GB HBM3", (9, 0), 132, 1980, 2619, 5120, 50)),
        ("l4", properties("NVIDIA L4", (8, 9), 58, 2040, 6251, 192, 48)),
        ("rtx4090", properties("NVIDIA GeForce RTX 4090", (8, 9), 128, 2520, 10501, 384, 72)),
    ],
)
def test_what_the_driver_tells_of_a_device_of_the_table_agrees_with_it(entry: str, told: SimpleNamespace) -> None:
    """Within 1 %: the table's clocks and peaks are rounded."""
    found, expected = gpus.from_properties(told), gpus.TABLE[entry]
    assert found.name == told.name
    for field in ("sms", "warps_per_sm", "registers_per_sm", "l2_bytes", "shared_per_block", "shared_per_sm", "arch"):
        assert getattr(found, field) == getattr(expected, field), field
    for field in ("clock_ghz", "mma_half_tflops", "mma_tf32_tflops", "fp32_tflops", "dram_gbps", "dram_peak_gbps", "l2_gbps"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=0.01), field


def test_siblings_have_facts_of_their_own() -> None:
    """More DRAM bandwidth on the 80 GB A100; less of everything on an H100 PCIe, whose 756 TFLOP/s are not in the table; and a
    laptop's part that bears a desktop part's name."""
    a100 = gpus.from_properties(properties("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1410, 1593, 5120, 40))
    assert a100.dram_peak_gbps == pytest.approx(2039, rel=0.001)
    assert a100.dram_gbps == pytest.approx(2039 * A100.dram_gbps / A100.dram_peak_gbps, rel=0.001)
    assert a100.mma_half_tflops == A100.mma_half_tflops

    pcie = gpus.from_properties(properties("NVIDIA H100 PCIe", (9, 0), 114, 1755, 1593, 5120, 50))
    assert pcie.mma_half_tflops == pytest.approx(756, rel=0.01)
    assert pcie.fp32_tflops == pytest.approx(51.2, rel=0.01)
    assert pcie.dram_peak_gbps == pytest.approx(2039, rel=0.001)
    assert pcie.l2_gbps == pytest.approx(H100.l2_gbps * 1755 / 1980)

    laptop = gpus.from_properties(properties("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 76, 2040, 9001, 256, 64))
    desktop = gpus.TABLE["rtx4090"]
    assert laptop.mma_half_tflops == pytest.approx(desktop.mma_half_tflops * 76 / 128 * 2.04 / 2.52)
    assert laptop.dram_peak_gbps == pytest.approx(576, rel=0.001)
    assert laptop.clocks < desktop.clocks


def test_devices_that_the_table_lacks() -> None:
    """Others of an architecture scale from the nearest entry; GeForce parts from a GeForce, whose MMA rate is half."""
    l40s = gpus.from_properties(properties("NVIDIA L40S", (8, 9), 142, 2520, 9001, 384, 96))
    assert l40s.mma_half_tflops == pytest.approx(gpus.TABLE["l4"].mma_half_tflops * 142 / 58 * 2.52 / 2.04)
    rtx3090 = gpus.from_properties(properties("NVIDIA GeForce RTX 3090", (8, 6), 82, 1695, 9751, 384, 6))
    assert (rtx3090.arch, rtx3090.mma_family) == ("sm_86", "mma")
    assert rtx3090.mma_half_tflops == pytest.approx(gpus.TABLE["rtx4090"].mma_half_tflops * 82 / 128 * 1.695 / 2.52)


def test_what_the_driver_does_not_tell_is_the_tables() -> None:
    """Older torch has fewer fields, and virtual machines may report zeros."""
    told = properties("NVIDIA H100 80GB HBM3", (9, 0), 132, 0, 0, 0, 0)
    for field in ("regs_per_multiprocessor", "shared_memory_per_block_optin"):
        delattr(told, field)
    assert gpus.from_properties(told) == replace(H100, name="NVIDIA H100 80GB HBM3")


def test_rocm_reports_some_facts_in_other_terms() -> None:
    """L2 of one die, a memory clock of another kind: not read. Compute units, clock and threads are."""
    told = properties("AMD Instinct MI300X", (9, 4), 304, 2100, 1300, 8192, 4, gcnArchName="gfx942:sramecc+:xnack-",
                      shared_memory_per_block_optin=65536, shared_memory_per_multiprocessor=65536, warp_size=64,
                      max_threads_per_multi_processor=2048)  # fmt: skip
    mi300x = gpus.TABLE["mi300x"]
    assert gpus.from_properties(told, hip=True) == replace(mi300x, name=told.name, max_clock_ghz=2.1)
    part = gpus.from_properties(SimpleNamespace(**{**vars(told), "multi_processor_count": 38}), hip=True)
    assert part.mma_half_tflops == pytest.approx(mi300x.mma_half_tflops / 8)
