"""Shape bias: the mapping, the decision rule, the counting and the interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lk_triton.models.analysis import pictures
from lk_triton.models.analysis.shape_bias import Tally, Trial, by_class, categories, cues, decide, probabilities, tally

SYNSETS = {
    "airplane": "n02690373", "bear": "n02132136 n02133161 n02134084 n02134418", "bicycle": "n02835271 n03792782",
    "boat": "n02951358 n03344393 n03662601 n04273569 n04612504", "bottle": "n02823428 n03937543 n03983396 n04557648 n04560804 "
    "n04579145 n04591713", "car": "n02814533 n03100240 n04285008", "cat": "n02123045 n02123159 n02123394 n02123597 n02124075 "
    "n02125311", "chair": "n02791124 n03376595 n04099969 n04429376", "clock": "n02708093 n03196217 n04548280",
    "elephant": "n02504013 n02504458", "keyboard": "n03085013 n04505470", "knife": "n03041632", "oven": "n04111531",
    "truck": "n03345487 n03417042 n03770679 n03796401 n03930630 n03977966 n04461696 n04467665",
}  # fmt: skip
"""WordNet ids of the members, from the same source as the indices; birds and dogs, which are many, are checked otherwise."""


def test_the_16_classes_are_the_published_ones() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    mapping = categories()
    assert list(mapping) == sorted({*SYNSETS, "bird", "dog"})
    for name, synsets in SYNSETS.items():
        assert [info.index_to_label_name(i) for i in mapping[name]] == synsets.split(), name
    assert (len(mapping["bird"]), len(mapping["dog"])) == (49, 109)
    assert set(mapping["dog"]) < set(range(151, 269))  # ImageNet's domestic dogs
    assert all(info.index_to_label_name(i) < "n02057000" for i in mapping["bird"])  # up to the penguins and the albatross
    every = [i for indices in mapping.values() for i in indices]
    assert len(every) == len(set(every)) == 207


@pytest.mark.parametrize(("stem", "expected"), [
    ("cat7-elephant1", ("cat", "elephant")), ("airplane10-bicycle2", ("airplane", "bicycle")), ("cat-dog", ("cat", "dog")),
    ("0001_cc_s1_dog10-bird2", ("dog", "bird")),
])  # fmt: skip
def test_cues(stem: str, expected: tuple[str, str]) -> None:
    assert cues(stem) == expected


@pytest.mark.parametrize(("stem", "message"), [
    ("cat7", "not of the form"), ("cat7_dog1", "not of the form"), ("cat7-dog1-car2", "not of the form"),
    ("cat7-zebra1", "unknown class 'zebra', expected one of airplane, bear"),
])  # fmt: skip
def test_names_that_tell_no_cues(stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cues(stem)


def test_decision_is_by_the_mean_and_not_by_the_sum() -> None:
    p = torch.zeros(2, 1000)
    p[0, list(categories()["dog"])] = 0.6 / 109
    p[0, categories()["knife"][0]] = 0.1
    p[1, list(categories()["dog"])] = 0.6 / 109
    p[1, 999] = 0.4  # no member of any class
    assert decide(p) == ["knife", "dog"]


def test_probabilities_of_whatever_a_model_returns() -> None:
    logits = torch.randn(3, 1000)
    torch.testing.assert_close(probabilities((torch.randn(3, 7, 7), logits)), logits.softmax(1))
    torch.testing.assert_close(probabilities({"logits": logits.half()}), logits.half().float().softmax(1))
    with pytest.raises(ValueError, match=r"returns \(3, 21841\), expected the logits of ImageNet-1K"):
        probabilities(torch.randn(3, 21841))
    with pytest.raises(ValueError, match="returns no tensor"):
        probabilities("nothing")


def trial(shape: str, texture: str, decision: str) -> Trial:
    return Trial("", shape, texture, decision)


def test_counting() -> None:
    trials = [
        trial("cat", "dog", "cat"), trial("cat", "dog", "dog"), trial("cat", "car", "cat"), trial("cat", "car", "oven"),
        trial("dog", "cat", "cat"), trial("bird", "bird", "bird"),
    ]  # fmt: skip
    overall = tally(trials)
    assert overall == Tally(shape=2, texture=2, trials=5)  # the bird has no conflict
    assert overall.bias == 0.5
    assert overall.accuracy == (0.4, 0.4)
    classes = by_class(trials)
    assert classes == {"cat": Tally(2, 1, 4), "dog": Tally(0, 1, 1)}
    assert classes["cat"].bias == pytest.approx(2 / 3)
    assert Tally(0, 0, 3).bias is None
    assert Tally(0, 0, 3).interval() is None


@pytest.mark.parametrize(("counted", "expected"), [(Tally(30, 0, 40), (1, 1)), (Tally(0, 9, 9), (0, 0))])
def test_interval_of_certainty(counted: Tally, expected: tuple[float, float]) -> None:
    assert counted.interval() == expected


def test_interval_is_the_bootstrap_over_stimuli() -> None:
    counted = Tally(shape=120, texture=180, trials=400)
    outcomes = np.repeat([1.0, 0.0, np.nan], [120, 180, 100])
    drawn = np.random.default_rng(1).choice(outcomes, (4000, 400))
    expected = np.quantile(np.nanmean(drawn, axis=1), (0.025, 0.975))
    found = counted.interval()
    assert found == counted.interval()
    assert found == pytest.approx(tuple(expected), abs=0.006)


def test_plot_of_many_models_with_gaps() -> None:
    one = {"cat": Tally(1, 2, 3), "dog": Tally(0, 0, 2)}
    results = {f"model {i}": (Tally(1, 2, 5), one) for i in range(12)} | {"nothing": (Tally(0, 0, 5), {})}
    light, dark = pictures.two_inks(lambda ink: pictures.shape_bias(results, ink))
    assert light.startswith(b"\x89PNG")
    assert light != dark
