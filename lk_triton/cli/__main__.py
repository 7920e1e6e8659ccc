"""``python -m lk_triton.cli``: the command ``lk-triton``, where it is not installed."""

from __future__ import annotations

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
