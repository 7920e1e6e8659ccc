"""The published networks at full size: fused against the training form, on a CPU and, marked ``gpu``, on a GPU.

Images are small: every layer runs, with kernels larger than its map.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lk_triton.models import create_model, published_form, randomize_

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IMAGES = (1, 3, 64, 64)


def relative(y: Tensor, reference: Tensor) -> float:
    return ((y.double() - reference.double()).norm() / reference.double().norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["replknet_31b", "replknet_31l", "replknet_xl"])
@torch.inference_mode()
def test_fused_is_as_accurate_as_the_training_form(name: str, device: str, no_interpreter: None) -> None:
    """float32 (no TF32): 1e-4. float16 and bfloat16: at most 1.5 times the error of the training form in that dtype."""
    torch.manual_seed(0)
    training = randomize_(create_model(name, device=device)).eval()
    x = torch.randn(IMAGES, device=device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = published_form(training)(x)
        fused = copy.deepcopy(training).convert("fused")
        assert relative(copy.deepcopy(fused).prepare(IMAGES)(x), exact) < 1e-4
    for dtype in (torch.float16, torch.bfloat16):
        by_training = published_form(copy.deepcopy(training).to(dtype))(x.to(dtype))
        by_fused = copy.deepcopy(fused).to(dtype).prepare(IMAGES)(x.to(dtype))
        assert relative(by_fused, exact) <= 1.5 * relative(by_training, exact)
