"""Quantized layers into an edited copy of the graph, and the size of that before it is made."""
