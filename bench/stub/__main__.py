"""``python -m lk_triton.bench.stub MODULE ARGUMENTS...``: run a module of this project as on a machine with an H100."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path

from . import build
from .pretend import become


def main() -> None:
    """Run the module that the command line names."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m lk_triton.bench.stub MODULE ARGUMENTS...")
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        become(build(Path(folder)))
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
