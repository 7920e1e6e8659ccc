"""Host side of every algorithm: what it serves, its configs, its cost, its launch."""
