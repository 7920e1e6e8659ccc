"""No form of a network is timed that computes something else: what ``bench network`` asks of it first."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

from lk_triton.models import RepLKNet, published_form
from lk_triton.models.gate import Gate, failures

from . import report
from .contest import Case
from .forms import Form

IMAGES = 8
"""Of the batch, at most, that answers are compared on."""


def gate(case: Case, model: RepLKNet) -> Callable[[Form], report.Row]:
    """The check of every form of a ``model`` in the training form; what it compares with is computed at the first.

    ``lk_triton.models.gate`` checks the form's network, and the logits of what is timed, which may be a graph of the network.
    ``error`` and ``torch_error`` are those of the logits, relative to what a black image changes.
    """

    @cache
    def reference() -> Gate:
        return Gate(published_form(deepcopy(model).double()), case.images[:IMAGES], case.images.dtype, len(case.images))

    def check(form: Form) -> report.Row:
        if not isinstance(form.module, RepLKNet):
            raise TypeError(f"the form's module must be a RepLKNet, got {type(form.module).__name__}")
        logits = reference().outputs({"logits": form.call(case.images)})
        verdicts = reference().check(form.module) | logits
        row: report.Row = {"error": f"{logits['logits'].error:.2e}", "torch_error": f"{logits['logits'].torch_error:.2e}"}
        failed = failures(verdicts)
        row["gate"] = "failed" if failed else logits["logits"].gate
        if failed:
            row["note"] = f"{failed[0]}: not timed"
        return row

    return check
