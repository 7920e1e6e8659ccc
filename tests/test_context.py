"""A GPU that was lost is noticed by asking it, and left without destructors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lk_triton import context


def test_a_lost_gpu_is_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    assert context.lost(gpu) is None
    assert context.lost(torch.device("cpu")) is None
    assert asked == [gpu]

    def dead(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert context.lost(gpu) == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_it_is_left_with_all_that_was_said_and_without_destructors() -> None:
    code = "import atexit; from lk_triton import context; atexit.register(print, 'late'); print('said'); context.abandon()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=1800)
    assert (done.returncode, done.stdout) == (context.EXIT_CODE, "said\n")
