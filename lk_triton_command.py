"""The command ``lk-triton``, beside the package: whatever lies inside it imports torch first, where Ctrl-C counts too."""

from __future__ import annotations


def main() -> int:
    """``lk_triton.cli.main``; 130 after Ctrl-C."""
    try:
        from lk_triton.cli import main

        return main()
    except KeyboardInterrupt:
        return 130
