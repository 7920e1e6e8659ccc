"""Networks on lk_triton: RepLKNet, its checkpoints and its registry."""
