"""Which batch norms can go into the layer before them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, shape_inference

from onnx_dfmpc.fold import fits
from onnx_dfmpc.graph import ConstantTable
from onnx_dfmpc.graph.protobuf import skeleton
from onnx_dfmpc.layout import shares_grid
from onnx_dfmpc.spec import Layer, MatchReport


def foldable(proto: ModelProto, report: MatchReport) -> frozenset[str]:
    """Layers whose batch norm can be folded into scales and bias.

    Not that of a grouped ConvTranspose, whose groups share scales; nor that behind a MatMul of more than two dimensions, which normalizes
    another axis than that of the scales; nor one that would leave float16.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    report : MatchReport

    Returns
    -------
    frozenset of str
        Names of layers.
    """
    table = ConstantTable(proto)
    behind = [layer for layer in report.layers if layer.batch_norm is not None and not shares_grid(layer)]
    matrices = _matrices(proto) if any(layer.op_type == "MatMul" for layer in behind) else frozenset()
    return frozenset(layer.name for layer in behind if (layer.op_type != "MatMul" or layer.output in matrices) and _fits(layer, table))


def _fits(layer: Layer, table: ConstantTable) -> bool:
    return fits(layer, _floats(table[layer.weight]), None if layer.bias is None else _floats(table[layer.bias]).ravel())


def _floats(array: NDArray[np.generic]) -> NDArray[np.floating]:
    return array.astype(np.float16 if array.dtype == np.float16 else np.float32, copy=False)


def _matrices(proto: ModelProto) -> frozenset[str]:
    """Tensors that are known to have two dimensions."""
    graph = shape_inference.infer_shapes(skeleton(proto)).graph
    shapes = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    return frozenset(name for name, kind in shapes.items() if kind.HasField("shape") and len(kind.shape.dim) == 2)
