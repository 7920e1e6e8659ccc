"""Looking into compiled kernels without a GPU."""
