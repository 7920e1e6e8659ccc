"""Faults that tests once looked past, each with the test that sees it now.

A fault is a replacement in a file. ``test_mutants.py`` applies each to a copy of the package and runs its test there, which
must fail. Where code moves, a fault moves with it: a replacement that no longer fits is an error, not a pass.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace ``old``, which stands in ``file`` ``times`` times, by ``new``; ``test`` (pytest's name of it) must then fail."""

    file: str
    old: str
    new: str
    test: str
    times: int = 1


MUTANTS = {
    "every batch as one block of tiles": Mutant(
        "lk_triton/algorithms/depthwise/toeplitz/kernel.py", "blocks = N // BM", "blocks = 1",
        "tests/algorithms/test_toeplitz.py::test_every_way_that_images_fill_blocks_of_tiles",
    ),
    "images counted in 32 bits": Mutant(
        "lk_triton/algorithms/depthwise/toeplitz/kernel.py", "image = image.to(tl.int64)", "image = image.to(tl.int32)",
        "tests/algorithms/test_forward.py::test_images_beyond_two_to_the_31",
    ),
    "packed weights of any format": Mutant(
        "lk_triton/ops/registration.py", "elif bank is not None and read == bank_format:", "elif bank is not None:",
        "tests/test_bank.py::test_a_plan_that_reads_another_format_packs_for_itself",
    ),
    "the residual by the output's strides": Mutant(
        "lk_triton/algorithms/shared/epilogue.py", "column_offsets(j, r_plane_v, stride_rn, R_ROW, RV)[None, :]",
        "column_offsets(j, o_plane_v, stride_on, O_ROW, OV)[None, :]",
        "tests/algorithms/test_dense.py::test_a_residual_in_another_memory_order",
    ),
    "a stem's rows padded like its columns": Mutant(
        "lk_triton/algorithms/dense/implicit_gemm/kernel.py", "OW * STRIDE_H - PAD_H", "OW * STRIDE_H - PAD_W",
        "tests/algorithms/test_dense.py::test_a_stem_of_another_height_than_width",
    ),
    "vectors across the end of a row": Mutant(
        "lk_triton/algorithms/dense/base.py", " and t.stride(1) == layout.row_length(n, h, w)", "",
        "tests/algorithms/test_dense.py::test_vectors_end_where_rows_do",
    ),
    "one loaded kernel for all devices": Mutant(
        "lk_triton/algorithms/launch_cache.py", "return form, early, device.index, signature(tensors)",
        "return form, early, signature(tensors)",
        "tests/algorithms/test_relaunch.py::test_each_device_has_its_own",
    ),
    "the mean of the rounds": Mutant(
        "lk_triton/planning/tuner.py", "timing.quantile(0.5)", "sum(timing.rounds) / len(timing.rounds)",
        "tests/planning/test_tuner.py::test_one_slow_round_does_not_change_the_figure", 2,
    ),
    "neighbours of another dilation": Mutant(
        "lk_triton/ops/depthwise.py", '= ("n", "c", "h", "w")', '= ("n", "c", "h", "w", "dilation")',
        "tests/planning/test_sources.py::test_only_sizes_differ_between_neighbours",
    ),
    "expanded channels as rows of their own": Mutant(
        "lk_triton/ops/layout.py", " and x.stride(1) >= n * h * w:", ":",
        "tests/test_layout.py::test_empty_and_expanded_tensors",
    ),
    "NaN made zero": Mutant(
        "lk_triton/algorithms/shared/epilogue.py", "acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)",
        "acc = tl.maximum(acc, 0.0)", "tests/algorithms/test_invariants.py::test_nan_stays_nan",
    ),
    "graphs that outlive train()": Mutant(
        "lk_triton/graph.py", "any(module.training for module in self._modules)", "False",
        "tests/test_graph.py::test_a_change_of_the_model_ends_the_graph",
    ),
    "one kernel for a ConvFFN in training": Mutant(
        "lk_triton/nn/fused.py", "not unit.fused or unit.training", "not unit.fused",
        "tests/models/test_replknet.py::test_a_fused_ffn_keeps_its_drop_path_in_training",
    ),
}  # fmt: skip
