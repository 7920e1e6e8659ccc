"""A kernel that no GPU has confirmed is compared with torch before its first result is returned. Here the interpreter stands
in for a GPU, and a fault in one tap of one block of channels for a wrong kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import DENSE, FFN, H100, LAST, LAYER, STEM
from torch import Tensor

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import TritonAlgorithm
from lk_triton.ops import registration as library
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Operands, Problem, StemProblem
from lk_triton.planning import cache, verify
from lk_triton.planning import plan as plans
from lk_triton.planning.accuracy import draw
from lk_triton.planning.plan import plan
from lk_triton.tools.inspector import meta_launch

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ConvProblem(5, 18, 6, 8, 5, 5, padding=(2, 2), dtype="float32", epilogue=Epilogue(True, "relu", True))
PROBLEMS: tuple[Problem, ...] = (
    SMALL,
    replace(SMALL, n=2, layout="channels_last"),
    replace(SMALL, n=2, c=9, dtype="float16", multiplier=2, epilogue=Epilogue()),
    DenseProblem(3, 8, 6, 5, 40, dtype="float16", epilogue=Epilogue(True, "gelu", True)),
    DenseProblem(2, 3, 9, 9, 24, 3, 3, stride=(2, 2), padding=(1, 1), dtype="float16", epilogue=Epilogue(True)),
    FfnProblem(2, 64, 4, 4, 64),
    StemProblem(2, 3, 12, 12, 16),
)


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors pass for a GPU's; nothing is confirmed, settled or distrusted."""
    monkeypatch.setattr(verify, "_on_gpu", lambda x: True)
    monkeypatch.setattr(verify, "_may_not", lambda x: False)
    monkeypatch.setattr(verify, "confirmed", lambda *_: False)
    for module, name in ((verify, "_settled"), (verify, "_remembered"), (plans, "_distrusted")):
        monkeypatch.setattr(module, name, {})
    yield
    plans._auto.cache_clear()


class Watch:
    """Counts launches of an algorithm, and spoils their results. Torch stands in for ``direct``, unless ``real``."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[Tensor, Tensor], object] | None = None,
        real: bool = False,
    ) -> None:  # fmt: skip
        algorithm = registry.get(name)
        quick = name == "direct" and not real
        right: Any = (lambda problem, config, operands: problem.reference(operands)) if quick else algorithm.launch
        self.calls = 0

        def launch(problem: Any, config: Any, operands: Operands) -> Tensor:
            self.calls += 1
            y = right(problem, config, operands)
            if fault is not None:
                fault(operands["x"], y)
            return y

        monkeypatch.setattr(algorithm, "launch", launch)


def one_tap(x: Tensor, y: Tensor) -> None:
    """A tap of a block of four channels is off by a fifth of its input."""
    y[:, 8:12] += 0.2 * x[:, 8:12]


def serve(problem: Problem, algorithm: str = "auto", seed: int = 0, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the library answers, and what torch does."""
    operands = draw(problem, torch.device("cpu"), torch.Generator().manual_seed(seed))
    operands = operands if x is None else {**operands, "x": x}
    return library.run(problem, operands, algorithm), problem.reference(operands)


def close(pair: tuple[Tensor, Tensor]) -> bool:
    out, expected = pair
    return torch.allclose(out.float(), expected.float(), atol=2e-2)


def first_choice(problem: Problem = SMALL) -> str:
    return plan(problem, gpus.of(torch.device("cpu"))).algorithm


# What happens to a call


def test_a_wrong_kernel_is_caught_and_the_next_best_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = first_choice()
    watch = Watch(monkeypatch, name, one_tap)
    assert close(serve(SMALL))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for told in (name, "(version ", str(SMALL), f"torch {torch.__version__}", "triton", "error"):
        assert told in record.getMessage()
    following = first_choice()
    assert following not in (name, "torch")
    calls = watch.calls
    assert close(serve(SMALL, seed=1))
    assert watch.calls == calls, "it is not tried again"
    assert len(caplog.records) == 1
    # of another problem nothing is known
    assert first_choice(replace(SMALL, n=4)) == name


def test_the_next_best_is_checked_likewise(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    triton = [name for name in registry.meant_for(SMALL) if name not in ("torch", "onednn")]
    for name in triton:
        Watch(monkeypatch, name, one_tap)
    assert close(serve(SMALL))
    assert first_choice() in ("torch", "onednn")
    assert len(caplog.records) >= 2


def test_a_forced_kernel_that_is_wrong_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    Watch(monkeypatch, "toeplitz", one_tap)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"toeplitz \(version \d+, .*\) computes .* wrong .*algorithm='auto'"):
            serve(SMALL, "toeplitz")
    assert close(serve(SMALL, "direct"))


def test_a_wrong_layer_of_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = FfnProblem(2, 64, 4, 4, 64)
    layerwise: Any = registry.get("layerwise")
    layer = layerwise.plan(problem.layers[0], gpus.of(torch.device("cpu"))).algorithm
    Watch(monkeypatch, layer, lambda x, y: y[:, 3].zero_())
    with pytest.raises(RuntimeError, match="layerwise"):
        serve(problem, "layerwise")


@pytest.mark.parametrize("name", list(registry.ALGORITHMS))
def test_a_right_kernel_is_checked_once(name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    gpu = gpus.of(torch.device("cpu"))
    watch = Watch(monkeypatch, name, real=True)
    for problem in PROBLEMS:
        if name in registry.meant_for(problem) and plans.why_not(problem, gpu, name) is None:
            counts = []
            for seed in range(2):
                watch.calls = 0
                assert close(serve(problem, name, seed=seed))
                counts.append(watch.calls)
            kernels = name not in ("torch", "onednn")
            assert counts[0] == counts[1] * (1 + kernels), "launched, and launched again as later calls are"
    assert not caplog.records


def test_what_was_checked_is_remembered_for_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, "direct")
    serve(SMALL, "direct")
    verify._settled.clear()
    verify._remembered.clear()
    watch.calls = 0
    serve(SMALL, "direct")
    assert watch.calls == 1
    (file,) = (cache.directory() / "verified").iterdir()
    assert len(file.read_text().splitlines()) == 1
    assert cache.user_tables() == {}, "it is no table"
    # not of another problem, version, torch or device
    for changed in ("version", "torch", "problem", "device"):
        verify._settled.clear()
        with pytest.MonkeyPatch.context() as patch:
            problem = replace(SMALL, n=4) if changed == "problem" else SMALL
            if changed == "version":
                patch.setitem(registry.get("direct").versions, "direct", 99)
            if changed == "torch":
                patch.setattr(verify, "versions", lambda: {"torch": "99", "triton": "3"})
            if changed == "device":
                patch.setattr(gpus, "of", lambda device: replace(H100, name="another", backend="cuda"))
            assert verify.due(problem, plan(problem, gpus.of(torch.device("cpu")), "direct"), torch.zeros(1)), changed


def test_a_cache_that_cannot_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    Watch(monkeypatch, "direct")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "below"))
    assert close(serve(SMALL, "direct"))


@pytest.mark.parametrize("x", [torch.zeros(5, 18, 6, 8), torch.full((5, 18, 6, 8), float("nan")), torch.ones(5, 18, 6, 8)])
def test_noise_stands_in_for_images_that_tell_nothing(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    Watch(monkeypatch, "direct", lambda x, y: seen.append(x))
    out, expected = serve(SMALL, "direct", x=x)
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert seen[1].std() > 0.9
    Watch(monkeypatch, "direct", one_tap)
    with pytest.raises(RuntimeError, match="wrong"):
        serve(replace(SMALL, n=4), "direct", x=x[:4])


def test_nothing_is_concluded_from_weights_that_are_not_finite(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is right gives NaN too, and is neither refused nor taken for checked."""
    name = first_choice()
    watch = Watch(monkeypatch, name)
    for tries in (1, 2):
        drawn = draw(SMALL, torch.device("cpu"), torch.Generator().manual_seed(0))
        drawn["weight"].fill_(float("nan"))
        out = library.run(SMALL, drawn, name)
        assert out.isnan().all()
        assert watch.calls == 2 * tries
    assert not caplog.records
    assert first_choice() == name


def test_confirmed_kernels_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(verify, "confirmed", lambda *row: asked.append(row) or True)
    watch = Watch(monkeypatch, "direct", one_tap)
    serve(SMALL, "direct")
    assert watch.calls == 1
    assert asked == [("direct", registry.get("direct").versions["direct"], gpus.of(torch.device("cpu")).arch, True)]


def test_unconfirmed_is_resident_on_what_it_did_not_run_on() -> None:
    config = registry.get("toeplitz_hopper").configs(LAYER, H100)[0]
    version = registry.get("toeplitz_hopper").version(config)
    assert verify._kernels(LAYER, "toeplitz_hopper", config, H100) == [("toeplitz_hopper", version, False)]


# When


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, "direct")

    def launches(mode: str | None, calls: int) -> int:
        monkeypatch.setenv(verify.VARIABLE, mode) if mode else monkeypatch.delenv(verify.VARIABLE, raising=False)
        verify._settled.clear()
        (cache.directory() / "verified" / "none").parent.mkdir(parents=True, exist_ok=True)
        for file in (cache.directory() / "verified").iterdir():
            file.unlink()
        verify._remembered.clear()
        watch.calls = 0
        for _ in range(calls):
            serve(SMALL, "direct")
        return watch.calls

    assert launches(None, 3) == launches("first", 3) == 4
    assert launches("0", 3) == 3
    assert launches("always", 3) == launches("1", 3) == 6
    drawn = iter([0.2, 0.6, 0.4])
    monkeypatch.setattr(verify, "random", SimpleNamespace(random=lambda: next(drawn), Random=verify.random.Random))
    assert launches("0.5", 4) == 4 + 1 + 2
    for bad in ("2", "-1", "nan", "sometimes"):
        with pytest.raises(ValueError, match=f"LK_TRITON_VERIFY={bad}: expected first, 0, always, or a probability"):
            launches(bad, 1)


def test_never_under_capture_nor_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(verify, "_settled", {})
    x = torch.zeros(1)
    assert not verify._on_gpu(x)
    assert verify._may_not(x), "interpreted here"
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert verify._may_not(x)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert not verify._may_not(x)
    with torch._subclasses.FakeTensorMode():
        assert verify._may_not(torch.zeros(1))
    monkeypatch.setattr(verify, "_on_gpu", lambda x: True)
    monkeypatch.setattr(verify, "confirmed", lambda *_: False)
    chosen = plan(SMALL, H100, "direct")
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=capturing: now)
        monkeypatch.setattr(gpus, "of", lambda device: H100)
        assert verify.due(SMALL, chosen, x) is not capturing
        assert verify._settled == {}, "a capture settles nothing"


def test_a_cpu_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_on_gpu", lambda x: False)
    monkeypatch.setattr(verify, "mode", None)
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5)
    lk_triton.depthwise_conv2d(x, weight, padding=2)


# What is compared


@pytest.mark.parametrize("name", list(registry.ALGORITHMS))
def test_a_channel_of_every_tile_is_drawn(name: str) -> None:
    algorithm = registry.get(name)
    for problem in (LAYER, LAST, DENSE, replace(DENSE, out_channels=1000), FFN, STEM, STEM.layers[0], *PROBLEMS):
        if name not in registry.meant_for(problem):
            continue
        count = problem.out_shape[1]
        for config in algorithm.configs(problem, H100)[::9]:
            tile = algorithm.channel_tile(problem, config)
            channels = verify.drawn_channels(count, tile, verify.seed_of(problem))
            assert {c // tile for c in channels} == set(range(-(-count // tile))), (problem, config)
            assert len(channels) >= min(count, verify.FEWEST)
            assert set(channels) <= set(range(count))


def test_tiles_are_those_that_programs_compute() -> None:
    """No program computes fewer adjacent channels than a tile has."""
    blocks = {"pointwise": "BM", "implicit_gemm": "BM", "convffn": "C", "convstem": "M", "direct_channels_last": "CHANNELS"}
    for problem in (LAYER, LAST, DENSE, FFN, STEM, STEM.layers[0]):
        for name, algorithm in registry.meant_for(problem).items():
            if isinstance(algorithm, TritonAlgorithm):
                for config in algorithm.configs(problem, H100)[::99]:
                    args = meta_launch(problem, name, config).args
                    assert algorithm.channel_tile(problem, config) == args.get(blocks.get(algorithm.form(config), ""), 1)


def test_draws_are_the_same_in_every_process() -> None:
    assert verify.seed_of(LAYER) == verify.seed_of(replace(LAYER)) != verify.seed_of(LAST)
    assert verify.drawn_images(1, 7) == [0]
    assert verify.drawn_images(2, 7) == [0, 1]
    assert verify.drawn_images(3, 7) == [0, 1, 2]
    assert verify.drawn_images(64, 7) == verify.drawn_images(64, 7)
    for seed in range(20):
        images = verify.drawn_images(64, seed)
        assert len(set(images)) == verify.IMAGES
        assert (images[0], images[-1]) == (0, 63)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_reference_is_torch_on_those_channels(problem: Problem) -> None:
    drawn = draw(problem, torch.device("cpu"), torch.Generator().manual_seed(3))
    channels = verify.drawn_channels(problem.out_shape[1], 8, 5)[::2]
    expected = problem.reference(drawn)[-1:, channels]
    result, exact = verify.reference(*problem.of_images(drawn, slice(problem.n - 1, problem.n)), channels)
    assert exact.dtype == torch.float64
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(exact, expected.double(), rtol=1e-2, atol=2e-2)


def test_tf32_is_compared_with_what_tf32_can() -> None:
    problem = replace(SMALL, precision="tf32", epilogue=Epilogue())
    x, weight = torch.randn(1, 18, 6, 8), torch.randn(18, 1, 5, 5)
    result, exact = verify.reference(problem, {"x": x, "weight": weight}, range(18))
    assert 1e-5 < (result - exact).abs().max() / exact.abs().max() < 4e-3


def test_large_planes_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    Watch(monkeypatch, "direct")
    monkeypatch.setattr(verify, "ELEMENTS", 3 * 6 * 8)
    sizes = []
    right = verify.reference
    monkeypatch.setattr(verify, "reference", lambda *given: sizes.append(len(given[2])) or right(*given))
    assert close(serve(SMALL, "direct"))
    assert sizes == [3] * 6 * verify.IMAGES


def test_without_memory_for_a_check_the_result_is_returned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no")

    Watch(monkeypatch, "direct")
    monkeypatch.setattr(verify, "reference", full)
    with caplog.at_level(logging.WARNING):
        assert close(serve(SMALL, "direct"))
    assert "could not be checked" in caplog.text
