"""The network as a class: keys and sizes as published, inputs, feature maps, timm's methods, in every form."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from lk_triton.models import RepLKNet, create_model, list_models, randomize_
from lk_triton.models.blocks import ConvFFN, DropPath
from lk_triton.ops.problem import DenseProblem, FfnProblem
from lk_triton.ops.tracing import Recorder

TINY: dict[str, Any] = {"channels": (8, 16, 24, 32), "layers": (1, 1, 2, 1), "large_kernel_sizes": (31, 29, 27, 13)}
FORMS = ("training", "merged", "fused")


def tiny(form: str = "training", **options: Any) -> RepLKNet:
    torch.manual_seed(0)
    model = randomize_(RepLKNet(**{**TINY, "num_classes": 10, **options})).eval()
    return model if form == "training" else model.convert(form)


# ---- keys: the patterns of upstream's files, written down without the model's code ----------------------------------

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_keys(form: str, layers: tuple[int, ...], small: bool, head: bool = True) -> list[str]:
    """Keys in the order in which upstream's modules are registered."""

    def unit(name: str) -> list[str]:
        if form == "fused":
            return [f"{name}.conv.weight", f"{name}.conv.bias"]
        return [f"{name}.conv.weight", *norm(f"{name}.bn")]

    def norm(name: str) -> list[str]:
        return [f"{name}.{k}" for k in BN]

    keys = [key for i in range(4) for key in unit(f"stem.{i}")]
    for i, pairs in enumerate(layers):
        for j in range(pairs):
            block, ffn = f"stages.{i}.blocks.{2 * j}", f"stages.{i}.blocks.{2 * j + 1}"
            keys += unit(f"{block}.pw1") + unit(f"{block}.pw2")
            if form == "training":
                keys += unit(f"{block}.large_kernel.lkb_origin")
                keys += unit(f"{block}.large_kernel.small_conv") if small else []
            else:
                keys += [f"{block}.large_kernel.lkb_reparam.weight", f"{block}.large_kernel.lkb_reparam.bias"]
            keys += [] if form == "fused" else norm(f"{block}.prelkb_bn")
            keys += [] if form == "fused" else norm(f"{ffn}.preffn_bn")
            keys += unit(f"{ffn}.pw1") + unit(f"{ffn}.pw2")
    for i in range(len(layers) - 1):
        keys += unit(f"transitions.{i}.0") + unit(f"transitions.{i}.1")
    if head:
        keys += ["norm.weight", "norm.bias"] if form == "fused" else norm("norm")
        keys += ["head.weight", "head.bias"]
    return keys


@pytest.mark.parametrize(
    ("name", "counts", "parameters"),
    [
        ("replknet_31b", (1171, 931, 264), (79_864_168, 79_527_272)),
        ("replknet_31l", (1171, 931, 264), (172_671_016, 172_165_672)),
        ("replknet_xl", (1027, 931, 264), (335_435_752, 335_399_656)),
    ],
)
def test_published_keys_and_parameters(name: str, counts: tuple[int, ...], parameters: tuple[int, ...]) -> None:
    for form, count in zip(FORMS, counts, strict=True):
        flags: dict[str, Any] = {} if form == "training" else {form: True}
        built = create_model(name, device="meta", **flags)
        converted = create_model(name, device="meta").eval().convert(form)
        wanted = published_keys(form, (2, 2, 18, 2), small=name != "replknet_xl")
        assert len(wanted) == count
        assert list(built.state_dict()) == wanted
        assert list(converted.state_dict()) == wanted
        assert [t.shape for t in built.state_dict().values()] == [t.shape for t in converted.state_dict().values()]
        if form != "fused":
            assert sum(p.numel() for p in built.parameters()) == parameters[FORMS.index(form)]


@pytest.mark.parametrize(
    ("name", "millions"), [("replknet_3", 71.9), ("replknet_7", 72.7), ("replknet_13", 74.2), ("replknet_25", 78.7)]
)
def test_study_variants(name: str, millions: float) -> None:
    model = create_model(name, device="meta")
    assert len(model.state_dict()) == (1027 if name == "replknet_3" else 1171)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_backbone_keys() -> None:
    options = {**TINY, "device": "meta", "out_indices": (0, 1, 2, 3)}
    keys = list(RepLKNet(**options).state_dict())
    assert keys == published_keys("training", TINY["layers"], small=True, head=False)
    normed = RepLKNet(**options, norm_intermediate_features=True)
    added = set(normed.state_dict()) - set(keys)
    assert added == {f"stages.{i}.norm.{k}" for i in range(4) for k in BN}
    fused = set(normed.eval().convert("fused").state_dict())
    assert {k for k in fused if ".norm." in k} == {f"stages.{i}.norm.{k}" for i in range(4) for k in ("weight", "bias")}


def test_drop_path_is_linear_over_pairs_and_has_no_keys() -> None:
    model = create_model("replknet_31b", device="meta", drop_path_rate=0.3)
    rates = [getattr(b.drop_path, "p", None) for s in model.stages for b in cast("Any", s).blocks]
    wanted = torch.linspace(0, 0.3, 24).tolist()
    assert rates[:2] == [None, None]  # Identity where the rate is 0
    assert rates[0::2] == rates[1::2]
    assert rates[2::2] == pytest.approx(wanted[1:])
    assert len(model.state_dict()) == 1171


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 1, 1)
    y = DropPath(0.25)(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(x), x)


@torch.no_grad()
def test_a_fused_ffn_keeps_its_drop_path_in_training() -> None:
    """One kernel for both layers has no room for it. In 16 bits, which that kernel serves; meta stands for a GPU."""
    ffn = ConvFFN(128, 512, drop_path=0.5, fused=True, device="meta", dtype=torch.float16)
    dropped = []
    ffn.drop_path.register_forward_hook(lambda *_: dropped.append(1))
    x = torch.empty(2, 128, 7, 7, device="meta", dtype=torch.float16)
    for training in (False, True):
        with Recorder() as recorder:
            ffn.train(training)(x)
        kinds = {type(problem) for problem in recorder.problems}
        assert (kinds, len(dropped)) == (({DenseProblem}, 1) if training else ({FfnProblem}, 0))


def test_drop_path_acts_in_training_only() -> None:
    model = tiny(drop_path_rate=0.9)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), tiny()(x))
        for bn in (m for m in model.train().modules() if isinstance(m, nn.BatchNorm2d)):
            bn.eval()
        assert not torch.allclose(model(x), tiny()(x))


# ---- inputs and outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 31), (1, 1), (3, 200)])
def test_any_input_size(form: str, size: tuple[int, int]) -> None:
    model = tiny(form)
    h, w = size
    with torch.inference_mode():
        x = torch.randn(2, 3, h, w)
        assert model(x).shape == (2, 10)
        for _ in range(5):
            h, w = (h + 1) // 2, (w + 1) // 2
        features = model.forward_features(x)
    assert features.shape == (2, 32, h, w)
    assert features.is_contiguous()


@pytest.mark.parametrize("form", FORMS)
def test_empty_batch(form: str) -> None:
    with torch.inference_mode():
        assert tiny(form)(torch.empty(0, 3, 32, 32)).shape == (0, 10)


@pytest.mark.parametrize("form", FORMS)
def test_input_layout_does_not_matter(form: str) -> None:
    model = tiny(form)
    x = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(x.contiguous(memory_format=torch.channels_last)))
        torch.testing.assert_close(model(x[:, :, ::2]), model(x[:, :, ::2].contiguous()))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((3, 32, 32), r"x\[None\]"),
        ((1, 4, 32, 32), r"\(N, 3, H, W\), got shape \(1, 4, 32, 32\)"),
        ((1, 3, 0, 32), "at least 1x1"),
        ((1, 3), r"got shape \(1, 3\)"),
    ],
)
def test_bad_images(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": (8, 16)}, "one entry per stage"),
        ({"num_classes": -1}, "num_classes"),
        ({"norm_intermediate_features": True}, "out_indices"),
        ({"out_indices": (0, 4)}, "from -4 to 3"),
        ({"out_indices": ()}, "out_indices must hold"),
        ({"large_kernel_sizes": (30, 29, 27, 13)}, "odd"),
        ({"small_kernel": 4}, "even number"),
        ({"small_kernel": 15}, "15x15"),
    ],
)
def test_contradicting_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RepLKNet(**{**TINY, "device": "meta", **options})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normed", [False, True])
def test_feature_maps(form: str, normed: bool) -> None:
    model = tiny(form, out_indices=(3, -4, 1), norm_intermediate_features=normed)
    assert model.out_indices == (0, 1, 3)
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        maps = cast("list[Tensor]", model(x))
        _, raw = cast("tuple[Tensor, list[Tensor]]", model.forward_intermediates(x, (0, 1, 3)))
        wanted = cast("tuple[Tensor, list[Tensor]]", model.forward_intermediates(x, (0, 1, 3), norm=True))[1]
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 2, 3)]
    assert all(m.is_contiguous() for m in maps)
    torch.testing.assert_close(maps, wanted)
    assert torch.allclose(maps[0], raw[0]) is not normed
    for what in (lambda: model.forward_head(maps[-1]), lambda: model.reset_classifier(3), model.get_classifier):
        with pytest.raises(RuntimeError, match="out_indices"):
            what()


def test_other_channel_count_and_dtype() -> None:
    model = tiny("fused", in_chans=5, dtype=torch.float64)
    with torch.inference_mode():
        assert model(torch.randn(1, 5, 32, 32, dtype=torch.float64)).dtype == torch.float64


# ---- timm's methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_head_methods(form: str) -> None:
    model = tiny(form)
    x = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
        torch.testing.assert_close(model(x), model.forward_head(features))
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(7, "avg")
        assert model(x).shape == (2, 7)
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(7, "max")
    assert tiny(form, num_classes=0)(x).shape == (2, 32)


@pytest.mark.parametrize("form", FORMS)
def test_forward_intermediates(form: str) -> None:
    model = tiny(form)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        last, maps = cast("tuple[Tensor, list[Tensor]]", model.forward_intermediates(x))
        assert [m.shape[1] for m in maps] == [8, 16, 24, 32]
        torch.testing.assert_close(last, model.forward_features(x))
        two = cast("list[Tensor]", model.forward_intermediates(x, 2, intermediates_only=True))
        torch.testing.assert_close(two, maps[2:])
        early, first = cast("tuple[Tensor, list[Tensor]]", model.forward_intermediates(x, [1], stop_early=True))
        torch.testing.assert_close(early, first[0])
        normed = cast("list[Tensor]", model.forward_intermediates(x, 1, norm=True, intermediates_only=True))
        torch.testing.assert_close(normed[0].mean((2, 3)), model.forward_head(last, pre_logits=True))
        for bad in (0, 5, [4]):
            with pytest.raises(ValueError, match="indices"):
                model.forward_intermediates(x, bad)
        with pytest.raises(ValueError, match="NCHW"):
            model.forward_intermediates(x, output_fmt="NLC")


def test_feature_info_matches_the_maps() -> None:
    model = tiny()
    _, maps = cast("tuple[Tensor, list[Tensor]]", model.forward_intermediates(torch.randn(1, 3, 64, 64)))
    for info, y in zip(model.feature_info, maps, strict=True):
        assert (info["num_chs"], 64 // info["reduction"]) == (y.shape[1], y.shape[2])
        model.get_submodule(info["module"])


@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_orders_by_depth(coarse: bool) -> None:
    from timm.models import group_parameters

    model = tiny()
    groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
    order = [
        "stem.0.conv.weight", "stages.0.blocks.0.pw1.conv.weight", "transitions.0.0.conv.weight",
        "stages.1.blocks.1.pw2.conv.weight", "transitions.1.1.bn.bias", "stages.3.blocks.0.pw1.conv.weight", "head.bias",
    ]  # fmt: skip
    depths = [groups[name] for name in order]
    assert depths == sorted(depths)
    # As upstream's layer decay has it, a transition shares the group of what stands before it.
    assert depths[4] == depths[3]
    assert len(set(depths)) == (5 if coarse else 6)
    assert model.no_weight_decay() == set()


def test_timm_layer_decay_accepts_the_network() -> None:
    from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]

    groups = param_groups_layer_decay(tiny(), weight_decay=0.05, layer_decay=0.7)
    assert sum(len(cast("list[Any]", g["params"])) for g in groups) == len(list(tiny().parameters()))


def test_gradient_checkpointing_changes_nothing() -> None:
    x = torch.randn(2, 3, 16, 16)
    gradients = []
    for enable in (False, True):
        model = tiny()
        model.set_grad_checkpointing(enable)
        cast("Tensor", model(x)).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g is not None for g in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", list_models())
def test_nothing_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    create_model(name, device="meta", drop_path_rate=0.1)
    assert capsys.readouterr() == ("", "")
    assert re.fullmatch(r"replknet_\w+", name)
