"""Quantized layers -> an edited copy of the model: the room that puts codes, gains and corrections into the graph."""

from onnx_dfmpc.rewrite.apply import PREFIX, Rewritten, StoredLayer, rewrite
from onnx_dfmpc.rewrite.sizes import base_size, predicted_size, stored_sizes

__all__ = ["PREFIX", "Rewritten", "StoredLayer", "base_size", "predicted_size", "rewrite", "stored_sizes"]
