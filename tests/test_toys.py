"""A new kind of op and a new algorithm are known everywhere by being registered; see ``toys.py``."""

from __future__ import annotations

from pathlib import Path

from compilation import run_compiling


def test_a_new_op_and_a_new_algorithm_are_known_everywhere() -> None:
    run_compiling([str(Path(__file__).with_name("toys.py"))])
