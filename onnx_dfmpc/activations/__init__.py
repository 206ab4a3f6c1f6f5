"""Activations in 8 bits: where they are quantized, their ranges without data, and the nodes that do it."""
