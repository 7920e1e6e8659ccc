"""Convolutions over all channels: 1x1, and a network's first layer."""
