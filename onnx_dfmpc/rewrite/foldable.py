"""Which batch norms can go into the layer before them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, shape_inference

from onnx_dfmpc.fold import fits
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.protobuf import skeleton
from onnx_dfmpc.spec import Layer, MatchReport
from onnx_dfmpc.spec.ops import shares_grid


def why_kept(proto: ModelProto, report: MatchReport) -> dict[str, str]:
    """Why the batch norm of a layer cannot be folded into scales and bias, in words.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    report : MatchReport

    Returns
    -------
    dict of str by layer name
        Of the layers with a batch norm; "" where it can be folded.
    """
    table = ConstantTable(proto)
    behind = [layer for layer in report.layers if layer.batch_norm is not None]
    matrices = _matrices(proto) if any(layer.op_type == "MatMul" for layer in behind) else frozenset()
    return {layer.name: _why_kept(layer, table, matrices) for layer in behind}


def floats(array: NDArray[np.generic]) -> NDArray[np.floating]:
    """Numbers in float32, or in float16 where they are."""
    return array.astype(np.float16 if array.dtype == np.float16 else np.float32, copy=False)


def _why_kept(layer: Layer, table: ConstantTable, matrices: frozenset[str]) -> str:
    if shares_grid(layer):
        return "the groups of a ConvTranspose share one scale"
    if layer.op_type == "MatMul" and layer.output not in matrices:
        return "its input is not known to be a matrix, and in larger ones batch norm has another axis"
    weight = floats(table[layer.weight])
    if not fits(layer, weight, None if layer.bias is None else floats(table[layer.bias]).ravel()):
        return f"scales or biases would leave the range of {weight.dtype}"
    return ""


def _matrices(proto: ModelProto) -> frozenset[str]:
    """Tensors that are known to have two dimensions."""
    graph = shape_inference.infer_shapes(skeleton(proto)).graph
    shapes = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    return frozenset(
        name for name, kind in shapes.items() if kind.HasField("shape") and len(kind.shape.dim) == 2
    )
