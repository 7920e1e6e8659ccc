"""Device functions that several kernels call."""
