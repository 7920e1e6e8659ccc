"""Effective receptive field: against closed forms, against brute force, and the published table's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lk_triton.models import RepLKNet, randomize_
from lk_triton.models.analysis import published
from lk_triton.models.analysis.erf import (
    THRESHOLDS,
    Accumulation,
    area,
    centred_shares,
    contribution,
    feature_map,
    scores,
    tensors,
)


def positive_convolution(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.uniform_(conv.weight, 0.1, 1)
    return conv


def test_linear_network_is_its_kernel() -> None:
    """Positive weights and images keep every relu open: the contribution is the kernel, summed over channels."""
    conv = positive_convolution(3, 5, 7)
    found = contribution(conv, torch.rand(1, 3, 20, 24))
    expected = np.zeros((20, 24))
    expected[10 - 3 : 10 + 4, 12 - 3 : 12 + 4] = conv.weight.detach().sum((0, 1)).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_two_linear_layers_are_their_kernels_convolved() -> None:
    """Boxes of 5 and 3 taps make the trapezoid 1 2 3 3 3 2 1 in each direction."""
    network = nn.Sequential(positive_convolution(3, 1, 5), positive_convolution(1, 1, 3))
    for layer in network:
        nn.init.ones_(layer.weight)  # pyright: ignore[reportArgumentType]
    found = contribution(network, torch.rand(1, 3, 17, 17))
    line = np.array([1, 2, 3, 3, 3, 2, 1])
    expected = np.zeros((17, 17))
    expected[5:12, 5:12] = 3 * np.outer(line, line)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stride_moves_the_centre() -> None:
    """Map pixel (h // 2, w // 2) of stride 4 looks at image pixel 4 * (h // 2)."""
    found = contribution(positive_convolution(3, 2, 3, stride=4), torch.rand(1, 3, 32, 32))
    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 17, 15, 17)


def test_negative_gradients_count_for_nothing() -> None:
    conv = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([2.0, -1.0, 3.0]).view(1, 3, 1, 1))
    found = contribution(conv, torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    assert found[2, 2] == pytest.approx(5)  # relu before the sum over colours: 2 + 0 + 3
    assert found.sum() == pytest.approx(5)


def test_against_perturbation() -> None:
    """Every pixel and colour of a network with closed and open relus is moved by hand."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.GELU(), nn.Conv2d(4, 6, 3, 2, 1)).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)

    def score(image: Tensor) -> Tensor:
        return network(image)[:, :, 2, 2].relu().sum()

    step = 1e-5
    expected = np.zeros((8, 8))
    with torch.no_grad():
        for colour, i, j in np.ndindex(3, 8, 8):
            moved = torch.zeros_like(x)
            moved[0, colour, i, j] = step
            expected[i, j] += max(0.0, float(score(x + moved) - score(x - moved)) / (2 * step))
    np.testing.assert_allclose(contribution(network, x), expected, rtol=1e-6, atol=1e-8)
    assert (expected > 0).any()


@pytest.fixture
def tiny() -> RepLKNet:
    sizes: dict[str, Any] = {"large_kernel_sizes": (7, 5), "layers": (1, 1), "channels": (4, 8), "small_kernel": 3}
    return randomize_(RepLKNet(**sizes, num_classes=5)).eval()


def test_replknet_is_seen_before_its_norm(tiny: RepLKNet) -> None:
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(feature_map(tiny, x), tiny.forward_features(x))


def test_forms_agree(tiny: RepLKNet) -> None:
    x = torch.randn(1, 3, 64, 64)
    before = contribution(tiny, x)
    np.testing.assert_allclose(contribution(tiny.reparameterize(), x), before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [("resnet18", {}), ("test_convnext", {}), ("test_vit", {"img_size": 64}),
                                               ("swin_s3_tiny_224", {"img_size": 64, "window_size": 2})])  # fmt: skip
def test_timm_models_give_their_last_map_before_any_norm(name: str, options: dict[str, Any]) -> None:
    import timm

    model = timm.create_model(name, num_classes=3, **options).eval()
    y = feature_map(model, torch.randn(1, 3, 64, 64))
    assert y.dim() == 4
    assert y.shape[1] == model.num_features


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = positive_convolution(3, 2, 3), kind

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return {"tuple": (y, y.mean((2, 3))), "dict": {"logits": y.mean((2, 3)), "map": y}, "maps": [x, y]}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "maps"])
def test_models_that_return_more_than_a_map(kind: str) -> None:
    model = Returns(kind)
    x = torch.rand(1, 3, 9, 9)
    np.testing.assert_allclose(contribution(model, x), contribution(model.conv, x))


def test_models_without_a_map_are_told_what_they_return() -> None:
    with pytest.raises(ValueError, match=r"returns \(1, 4\), expected a feature map"):
        feature_map(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(1, 3, 2, 2))
    assert tensors("text") == []


def test_too_small_images_are_named() -> None:
    with pytest.raises(ValueError, match="images of 4x4 are too small: the last feature map is 1x1"):
        contribution(positive_convolution(3, 2, 3, stride=4), torch.rand(1, 3, 4, 4))


# ---- scores and areas -----------------------------------------------------------------------------------------------------


def test_scores_are_logarithms_scaled_to_one() -> None:
    np.testing.assert_allclose(scores(np.array([[0.0, 9.0], [99.0, 0.0]])), [[0, 0.5], [1, 0]])


def test_scores_of_nothing() -> None:
    with pytest.raises(ValueError, match="no pixel contributes"):
        scores(np.zeros((4, 4)))


def test_area_of_hand_made_maps() -> None:
    point = np.zeros((101, 101))
    point[50, 50] = 1
    assert area(point, 99) == (3, 9 / 101**2)  # the published code never looks at a single pixel

    uniform = np.ones((100, 100))  # side s holds s * s / 10000: 0.2 lies between 43 and 45
    assert area(uniform, 20) == (45, 0.2025)
    assert area(uniform, 30) == (55, 0.3025)
    assert area(uniform, 50) == (71, 0.5041)

    corners = np.zeros((40, 40))
    corners[0, 0] = corners[-1, -1] = 1
    assert area(corners, 50) == (40, 1.0)  # row 0 lies outside every centred odd square of an even image

    exactly = np.zeros((11, 11))
    exactly[5, 5], exactly[5, 8] = 1, 1  # 50 % is not more than 50 %
    assert area(exactly, 50).side == 7


def test_area_as_the_published_loop_finds_it() -> None:
    """The authors' loop, slices and all, on heavy-tailed random maps of even and odd size."""
    generator = np.random.default_rng(0)
    for h, w in ((64, 64), (65, 65), (48, 64)):
        values = generator.exponential(size=(h, w)) ** 3
        for percent in THRESHOLDS:
            found = area(values, percent)
            for i in range(1, min(h, w) // 2):
                inside = values[h // 2 - i : h // 2 + 1 + i, w // 2 - i : w // 2 + 1 + i].sum()
                if inside / values.sum() > percent / 100:
                    assert found == (2 * i + 1, pytest.approx((2 * i + 1) / h * (2 * i + 1) / w))
                    break
            else:
                assert found == (min(h, w), 1.0)


def test_shares_end_at_one() -> None:
    shares = centred_shares(np.random.default_rng(0).random((10, 14)))
    assert shares[-1] == pytest.approx(1)
    assert (np.diff(shares) >= 0).all()


def test_published_arithmetic() -> None:
    """ResNet-101 at 20 %: a square of 103x103 of 1024x1024 is 1.0 %, as in the published table."""
    values = np.zeros((1024, 1024))
    values[512 - 51 : 512 + 52, 512 - 51 : 512 + 52] = 1  # 103x103 hold everything, 101x101 less than 99 %
    found = area(values, 99)
    assert found.side == 103
    assert f"{100 * found.ratio:.1f}" == published.table("erf").records()[0]["20 %"] == "1.0"


# ---- accumulation ---------------------------------------------------------------------------------------------------------


def test_accumulation_is_a_mean_and_survives_its_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    maps = {f"image {i}": generator.random((6, 8)) for i in range(5)}
    settings = {"model": "resnet101", "size": 8}
    accumulation = Accumulation(settings)
    accumulation.save(tmp_path / "nothing.npz")
    assert not list(tmp_path.iterdir())
    for name, values in maps.items():
        accumulation.add(name, values)
        accumulation.save(tmp_path / "a.npz")
        accumulation = Accumulation.load(tmp_path / "a.npz")
    assert accumulation.mean is not None
    np.testing.assert_allclose(accumulation.mean, np.mean(list(maps.values()), axis=0))
    assert (accumulation.images, accumulation.settings) == (list(maps), settings)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    accumulation = Accumulation({})
    accumulation.add("good", np.ones((2, 2)))
    with pytest.raises(ValueError, match="bad: the gradient is not finite"):
        accumulation.add("bad", np.array([[1.0, np.nan], [0, 0]]))
    assert accumulation.images == ["good"]
    assert accumulation.mean is not None
    assert (accumulation.mean == 1).all()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"a\.npz is no saved contribution map"):
        Accumulation.load(file)
    np.savez(file, other=np.ones(3))
    with pytest.raises(ValueError, match="is no saved contribution map"):
        Accumulation.load(file)
    np.savez(file, mean=np.ones((2, 2)), images=np.array([object()]), settings=np.array("{}"))
    with pytest.raises(ValueError, match="is no saved contribution map"):  # pickled objects are not read
        Accumulation.load(file)
