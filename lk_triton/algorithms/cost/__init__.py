"""What the estimates of several algorithms are made of."""
