"""Several convolutions in one kernel."""
