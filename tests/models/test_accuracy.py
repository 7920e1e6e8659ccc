"""The published networks at full size: fused against the training form, on a CPU and, marked ``gpu``, on a GPU.

Images are small: every layer runs, with kernels larger than its map. That the gate notices what is
wrong in one place is shown in ``test_gate.py``; end to end this test allows less than the gate.
"""

from __future__ import annotations

import copy

import pytest
import torch

from lk_triton.models import create_model, randomize_
from lk_triton.models.gate import Gate, failures, maps_and_logits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IMAGES = (1, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["replknet_31b", "replknet_31l", "replknet_xl"])
@torch.inference_mode()
def test_fused_is_as_accurate_as_the_training_form(name: str, device: str, no_interpreter: None) -> None:
    """float32 (no TF32): 1e-4 of what another image changes. float16 and bfloat16: 1.5 times the training form's error."""
    torch.manual_seed(0)
    training = randomize_(create_model(name, device=device)).eval()
    x = torch.randn(IMAGES, device=device)
    fused = copy.deepcopy(training).convert("fused")
    exact = training if device == "cpu" else copy.deepcopy(training).double()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            gate = Gate(exact, x, dtype)
            prepared = copy.deepcopy(fused).to(dtype).prepare(IMAGES)
            ends = gate.outputs(maps_and_logits(prepared, gate.x))
            assert ends.keys() == {"stages.0", "stages.1", "stages.2", "stages.3", "logits"}
            for place, verdict in ends.items():
                assert verdict.error <= max(1.5 * verdict.torch_error, 1e-4 if dtype == torch.float32 else 0), place
            assert failures(ends | gate.blocks(prepared) | gate.taps(prepared)) == []
