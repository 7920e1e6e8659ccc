"""Which algorithm and config serve a problem, and where that choice comes from."""
