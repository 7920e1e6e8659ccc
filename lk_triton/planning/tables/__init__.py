"""Measured plans that ship: one JSON file per device, written by ``lk-triton tune`` on that device; see ``entry.py``."""
