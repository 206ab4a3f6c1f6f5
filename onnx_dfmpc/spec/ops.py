"""The weighted operators, a row each: all that the other rooms know about Conv, ConvTranspose, Gemm and
MatMul.

Arithmetic sees every stored weight as rows of inputs, group by group, shape (g, r, n): ``g`` groups, ``r``
output channels in each, ``n`` inputs of an output channel, which are input channels times kernel taps, taps
innermost. Output channel ``j`` of the layer is row ``divmod(j, r)``. A new operator is a new row of `OPS`.
NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec.matched import Layer, OpType


@dataclass(frozen=True)
class WeightedOp:
    """What one operator does with its weight, its second input.

    Attributes
    ----------
    axis : callable
        Attributes of a node to the output-channel axis of its stored weight.
    spatial : bool
        The weight ends in kernel axes, the data in as many places, and the channels of the output are axis 1.
        Otherwise weights are matrices, and the channels are the last axis.
    grouped : bool
        Whether there is an attribute ``group``.
    bias_input : int or None
        Position of the bias; None where a bias is an Add after the node.
    to_rows, from_rows : callable
        ``(array, layer)`` from the layout of the file to rows, and back.
    """

    axis: Callable[[Mapping[str, Any]], int]
    spatial: bool
    grouped: bool
    bias_input: int | None
    to_rows: Callable[[NDArray[Any], Layer], NDArray[Any]]
    from_rows: Callable[[NDArray[Any], Layer], NDArray[Any]]


def _conv_rows(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    rows: NDArray[Any] = weight.reshape(layer.group, weight.shape[0] // layer.group, -1)
    return rows


def _conv_weight(rows: NDArray[Any], layer: Layer) -> NDArray[Any]:
    return rows.reshape(layer.shape)


def _transposed_rows(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """(i, r, taps) in the file: inputs come first there, and the groups are along them."""
    i, r = weight.shape[:2]
    g = layer.group
    return weight.reshape(g, i // g, r, -1).transpose(0, 2, 1, 3).reshape(g, r, -1)


def _transposed_weight(rows: NDArray[Any], layer: Layer) -> NDArray[Any]:
    i, r = layer.shape[:2]
    g = layer.group
    return rows.reshape(g, r, i // g, -1).transpose(0, 2, 1, 3).reshape(layer.shape)


def _matrix_rows(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    rows: NDArray[Any] = (weight if layer.axis == 0 else weight.T)[None]
    return rows


def _matrix_weight(rows: NDArray[Any], layer: Layer) -> NDArray[Any]:
    weight: NDArray[Any] = rows[0] if layer.axis == 0 else rows[0].T
    return weight


OPS: Mapping[OpType, WeightedOp] = {
    "Conv": WeightedOp(lambda _: 0, True, True, 2, _conv_rows, _conv_weight),
    "ConvTranspose": WeightedOp(lambda _: 1, True, True, 2, _transposed_rows, _transposed_weight),
    "Gemm": WeightedOp(
        lambda given: 0 if given.get("transB", 0) else 1, False, False, 2, _matrix_rows, _matrix_weight
    ),
    "MatMul": WeightedOp(lambda _: 1, False, False, None, _matrix_rows, _matrix_weight),
}


def to_rows(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Stored weight, shape ``layer.shape``, to rows, shape (g, r, n)."""
    return OPS[layer.op_type].to_rows(weight, layer)


def from_rows(rows: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Rows to an array in the layout of the stored weight; the inverse of `to_rows`."""
    return np.ascontiguousarray(OPS[layer.op_type].from_rows(rows, layer))


def spatial_rank(layer: Layer) -> int:
    """Number of spatial axes: 2 for an image convolution, 0 for a matrix."""
    return len(layer.shape) - 2 if OPS[layer.op_type].spatial else 0


def taps(layer: Layer) -> int:
    """Kernel taps per input channel: 9 for a 3x3 convolution, 1 for a matrix."""
    return int(np.prod(layer.shape[2:])) if OPS[layer.op_type].spatial else 1


def input_channels(layer: Layer) -> int:
    """Number of input channels, group included."""
    return layer.size * layer.group // (layer.channels * taps(layer))


def output_axis(layer: Layer, ndim: int) -> int:
    """Axis of the channels of a layer's output, which has ``ndim`` axes."""
    return 1 if OPS[layer.op_type].spatial else ndim - 1


def per_channel(values: NDArray[Any], layer: Layer, ndim: int) -> NDArray[Any]:
    """Numbers (channels,) in a shape that broadcasts along the channels of a layer's output of ``ndim`` axes."""
    axis = output_axis(layer, ndim)
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])


def along_inputs(factor: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Factors of the input channels (i,), each where the stored weight meets its channel, shape
    ``layer.shape``.
    """
    row = np.repeat(factor.reshape(layer.group, -1), taps(layer), axis=1)  # (g, n)
    rows = np.broadcast_to(row[:, None], (layer.group, layer.channels // layer.group, row.shape[1]))
    return from_rows(rows, layer)


def shares_grid(layer: Layer) -> bool:
    """Whether one grid has to serve all groups, since the file's channel axis cannot tell them apart.

    That is so where the axis of the channels is not the one along which the groups lie: in a grouped
    ConvTranspose.
    """
    return layer.group > 1 and layer.axis != 0
