"""The ``lk-triton`` command: ``main.py`` parses and dispatches, and what a command does lies in a module of its own."""

from .main import build_parser, main

__all__ = ["build_parser", "main"]
