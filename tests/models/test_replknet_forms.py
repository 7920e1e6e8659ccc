"""The three forms compute the same; upstream's known bugs are absent; the fused form really runs on the registered op."""

from __future__ import annotations

import copy
import io
from collections import Counter
from typing import Any, cast

import pytest
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from lk_triton.models import RepLKNet, create_model, published_form, randomize_
from lk_triton.models.reference import torch_form
from lk_triton.nn import ChannelAffine, DepthwiseConv2d
from lk_triton.nn.prepack import PrepackedConv2d

TINY: dict[str, Any] = {"channels": (8, 16, 24, 32), "layers": (1, 1, 2, 1), "num_classes": 10}
IMAGES = (2, 3, 33, 48)


def tiny(**options: Any) -> RepLKNet:
    torch.manual_seed(0)
    return randomize_(create_model("replknet_31b", **{**TINY, **options})).eval()


def relative(y: Tensor, reference: Tensor) -> float:
    """Random networks answer differently to each image, so that their answers are of the size of what images change."""
    return ((y.double() - reference.double()).norm() / reference.double().norm()).item()


# ---- equality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"small_kernel": None, "dw_ratio": 1.5}, {"small_kernel": 3, "ffn_ratio": 2}])
@torch.inference_mode()
def test_forms_compute_the_same(options: dict[str, Any]) -> None:
    model, x = tiny(**options), torch.randn(IMAGES)
    reference = published_form(copy.deepcopy(model).double())(x.double())
    for form in ("training", "merged", "fused"):
        assert relative(copy.deepcopy(model).convert(form)(x), reference) < 1e-5
    assert relative(copy.deepcopy(model).structural_reparam().reparameterize()(x), reference) < 1e-5
    in_float64 = copy.deepcopy(model).double().reparameterize()(x.double())
    assert relative(in_float64, reference) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_nan_in_an_image_reaches_its_logits_in_every_form(dtype: torch.dtype, no_interpreter: None) -> None:
    model, x = tiny().to(dtype), torch.randn(IMAGES, dtype=dtype)
    x[1, 0, 5, 5] = float("nan")
    for form in ("training", "merged", "fused"):
        y = copy.deepcopy(model).convert(form).prepare(IMAGES)(x)
        assert y[0].isfinite().all()
        assert y[1].isnan().all()


@pytest.mark.parametrize("options", [{}, {"out_indices": (0, 3), "norm_intermediate_features": True}], ids=["head", "maps"])
@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside another"])
@torch.inference_mode()
def test_timm_reparameterizes_ours(options: dict[str, Any], inside: bool) -> None:
    model, x = tiny(**options), torch.randn(IMAGES)
    for form in ("training", "merged", "fused"):
        given = copy.deepcopy(model).convert(form)
        converted: Any = reparameterize_model(nn.Sequential(given) if inside else given)
        network = converted[0] if inside else converted
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
        assert (given.form, network.form) == (form, "fused" if inside or form == "fused" or options else "merged")
        torch.testing.assert_close(network.reparameterize()(x), model(x), rtol=1e-4, atol=1e-5)
        assert not any(isinstance(m, _BatchNorm) for m in network.modules())


@pytest.mark.parametrize("form", ["training", "merged", "fused"])
@torch.inference_mode()
def test_a_whole_network_is_saved_and_loaded(form: str) -> None:
    model, x, file = tiny().convert(form).prepare(), torch.randn(IMAGES), io.BytesIO()
    torch.save(model, file, pickle_protocol=2)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.form == form
    torch.testing.assert_close(loaded(x), model(x))
    torch.save(torch_form(model), io.BytesIO())


@torch.inference_mode()
def test_maps_of_a_normed_backbone_are_the_same() -> None:
    model, x = tiny(out_indices=(0, 1, 2, 3), norm_intermediate_features=True), torch.randn(IMAGES)
    reference = cast("list[Tensor]", published_form(model)(x))
    fused = cast("list[Tensor]", model.reparameterize()(x))
    assert max(relative(a, b) for a, b in zip(fused, reference, strict=True)) < 1e-5


@pytest.mark.slow
@torch.inference_mode()
def test_full_31b_fuses_exactly() -> None:
    torch.manual_seed(0)
    model, x = randomize_(create_model("replknet_31b")).eval(), torch.randn(1, 3, 160, 160)
    reference = published_form(model)(x)
    assert relative(model(x), reference) < 1e-5
    assert relative(model.structural_reparam()(x), reference) < 1e-5
    assert relative(model.reparameterize()(x), reference) < 1e-5


def test_fused_form_has_no_batch_norm_and_one_affine_on_the_pooled_features() -> None:
    model = tiny().switch_to_deploy()
    assert model.form == "fused"
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    shapes = []
    assert isinstance(model.norm, ChannelAffine)
    model.norm.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    model(torch.randn(IMAGES))
    assert shapes == [(2, 32)]


def test_fused_parameters_keep_dtype_device_and_requires_grad() -> None:
    model = tiny().half()
    model.stem[0].requires_grad_(False)
    model.reparameterize()
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in model.stem[0].parameters())
    assert all(p.requires_grad for p in model.stem[1].parameters())
    assert all(p.is_meta for p in create_model("replknet_3", device="meta", **TINY).eval().reparameterize().parameters())


# ---- refusals leave the network as it was ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["structural_reparam", "reparameterize", "prepare"])
def test_training_mode_is_refused(method: str) -> None:
    model = tiny()
    keys = list(model.state_dict())
    cast("Any", model.stages[2]).blocks[1].preffn_bn.train()
    with pytest.raises(RuntimeError, match=r"stages\.2\.blocks\.1\.preffn_bn is in training mode: call \.eval\(\)"):
        getattr(model, method)()
    with pytest.raises(RuntimeError, match="the network is in training mode"):
        getattr(model.train(), method)()
    assert list(model.state_dict()) == keys
    assert model.form == "training"


def test_conversions_go_forwards_only() -> None:
    model = tiny().reparameterize()
    assert model.reparameterize() is model
    for form in ("training", "merged"):
        with pytest.raises(ValueError, match="training -> merged -> fused"):
            model.convert(form)
    with pytest.raises(ValueError, match="'deployed'"):
        model.convert("deployed")


def test_reparameterize_is_eager_about_banks_and_prepare_knows_every_input_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: dict[DepthwiseConv2d, tuple[Any, ...]] = {}
    monkeypatch.setattr(DepthwiseConv2d, "prepare", lambda self, *shapes: prepared.update({self: shapes}))
    model = tiny().reparameterize()
    layers = [m for m in model.modules() if isinstance(m, DepthwiseConv2d)]
    assert set(prepared) == set(layers)
    examples = ((1, 3, 65, 97), (2, 3, 32, 64))
    model.prepare(*examples)
    seen: dict[DepthwiseConv2d, list[tuple[int, ...]]] = {layer: [] for layer in layers}
    for layer in layers:
        layer.register_forward_hook(lambda m, inputs, output: seen[cast("Any", m)].append(tuple(inputs[0].shape)))
    for example in examples:
        model(torch.zeros(example))
    assert {layer: list(shapes) for layer, shapes in prepared.items()} == seen
    with pytest.raises(ValueError, match=r"images \(N, 3, H, W\), got \(1, 4, 8, 8\)"):
        model.prepare((1, 4, 8, 8))


# ---- upstream's bugs ------------------------------------------------------------------------------------------------


def test_padding_attribute_after_merging() -> None:
    """Upstream #48: with its fast kernel the merged layer took padding (0, 0) from it."""
    for m in tiny().structural_reparam().modules():
        if isinstance(m, DepthwiseConv2d):
            assert m.padding == tuple(k // 2 for k in m.kernel_size)


def test_sync_batch_norm_is_folded_too() -> None:
    """Upstream's deep_fuse_BN silently does nothing to SyncBatchNorm, its own default."""
    model, x = tiny(), torch.randn(IMAGES)
    synced = cast("RepLKNet", nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)))
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    assert list(synced.state_dict()) == list(model.state_dict())
    synced.reparameterize()
    assert not any(isinstance(m, _BatchNorm) for m in synced.modules())
    with torch.inference_mode():
        assert relative(synced(x), model(x)) < 1e-5


def test_no_option_sticks_to_later_networks() -> None:
    """Upstream keeps use_sync_bn in a module global that is never switched off."""
    before = repr(tiny())
    tiny(small_kernel=None, out_indices=(0,), norm_intermediate_features=True, drop_path_rate=0.5, dtype=torch.float64)
    create_model("replknet_xl", device="meta", fused=True)
    assert repr(tiny()) == before


@pytest.mark.parametrize("small", [2, 4])
def test_even_difference_only(small: int) -> None:
    """Upstream pads by (K - k) // 2 and is silently wrong where K - k is odd."""
    with pytest.raises(ValueError, match="differ by an even number"):
        tiny(small_kernel=small)


def test_no_small_kernel() -> None:
    model = tiny(small_kernel=None)
    assert not any("small_conv" in key for key in model.state_dict())
    assert any("lkb_reparam" in key for key in model.structural_reparam().state_dict())


# ---- what runs ------------------------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


def test_fused_31b_on_a_gpu_runs_on_our_op() -> None:
    with FakeTensorMode(), torch.no_grad():
        model = create_model("replknet_31b", fused=True, device="cuda", dtype=torch.float16).eval()
        with Recorder() as recorder:
            logits = model(torch.empty(64, 3, 224, 224, device="cuda", dtype=torch.float16))
    assert (tuple(logits.shape), logits.dtype, logits.device.type) == ((64, 1000), torch.float16, "cuda")
    kernels = Counter(args[1].shape[-1] for name, args in recorder.calls if name == "lk_triton.depthwise_conv2d.default")
    assert kernels == {3: 4, 31: 2, 29: 2, 27: 18, 13: 2}
    assert not [args for name, args in recorder.calls if name.startswith("aten.convolution") and args[8] > 1]
    assert not [name for name, _ in recorder.calls if "batch_norm" in name]


def test_compiles_without_graph_breaks() -> None:
    x = torch.randn(IMAGES)
    for model in (tiny().reparameterize(), tiny(out_indices=(0, 3)).reparameterize()):
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_reduce_overhead(no_interpreter: None) -> None:
    """On a CPU there are no CUDA graphs, and packed weights, which nothing can trace, are not used."""
    run_reduce_overhead(tiny().reparameterize(), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_reduce_overhead_on_a_gpu(dtype: torch.dtype) -> None:
    counters["inductor"].clear()
    run_reduce_overhead(tiny().to("cuda", dtype).reparameterize(), "cuda", dtype)
    assert counters["inductor"]["cudagraph_skips"] == 0


@torch.inference_mode()
def run_reduce_overhead(model: RepLKNet, device: str, dtype: torch.dtype = torch.float32) -> None:
    """Three calls on fresh images: the one that warms up, the one that captures, and a replay."""
    torch._dynamo.reset()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        x = torch.randn(IMAGES, device=device, dtype=dtype)
        assert relative(compiled(x).clone(), model(x)) < 10 * torch.finfo(dtype).eps


def test_exports_where_weights_are_packed(no_interpreter: None) -> None:
    model, x = tiny().reparameterize(), torch.randn(IMAGES)
    assert sum(m.bank_bytes for m in model.modules() if isinstance(m, PrepackedConv2d)) > 0
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_exports_for_any_batch() -> None:
    model = tiny().reparameterize()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(IMAGES),), dynamic_shapes=({0: batch},))
    targets = Counter(str(node.target) for node in program.graph.nodes)
    assert targets["lk_triton.depthwise_conv2d.default"] == 5 + 5
    x = torch.randn(3, *IMAGES[1:])
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("form", ["training", "merged", "fused"])
def test_gradients_reach_every_parameter(form: str) -> None:
    model = tiny(drop_path_rate=0.1).convert(form).train(form == "training")
    x = torch.randn(IMAGES, requires_grad=True)
    cast("Tensor", model(x)).square().sum().backward()
    assert x.grad is not None
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_gradients_of_the_training_form_are_those_of_the_published_form() -> None:
    model, x = tiny().double(), torch.randn(IMAGES, dtype=torch.float64)
    published = published_form(model)
    gradients = [torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for net in (model, published)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_autocast_runs_in_every_form() -> None:
    x = torch.randn(IMAGES)
    for form in ("training", "merged", "fused"):
        model = tiny().convert(form)
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16):
                y = model(x)
            assert y.dtype == torch.bfloat16
            assert relative(y, model(x)) < 0.03
