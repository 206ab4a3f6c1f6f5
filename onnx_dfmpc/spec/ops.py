"""One layout for the arithmetic: every stored weight as rows of inputs, group by group.

A weight becomes an array of shape (g, r, n): ``g`` groups, ``r`` output channels in each, ``n`` inputs of an
output channel, that is input channels times kernel taps, taps innermost. Output channel ``j`` of the layer is
``divmod(j, r)``. Pure NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Layer


def to_rows(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Stored weight -> rows.

    Parameters
    ----------
    weight : array, shape ``layer.shape``
    layer : Layer

    Returns
    -------
    array, shape (g, r, n)
    """
    g = layer.group
    if layer.op_type == "Conv":
        return weight.reshape(g, weight.shape[0] // g, -1)
    if layer.op_type == "ConvTranspose":
        i, r = weight.shape[:2]
        return weight.reshape(g, i // g, r, -1).transpose(0, 2, 1, 3).reshape(g, r, -1)
    return (weight if layer.axis == 0 else weight.T)[None]


def from_rows(rows: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Rows -> an array in the layout of the stored weight; the inverse of `to_rows`."""
    if layer.op_type == "Conv":
        return np.ascontiguousarray(rows.reshape(layer.shape))
    if layer.op_type == "ConvTranspose":
        i, r = layer.shape[:2]
        g = layer.group
        return np.ascontiguousarray(rows.reshape(g, r, i // g, -1).transpose(0, 2, 1, 3).reshape(layer.shape))
    return np.ascontiguousarray(rows[0] if layer.axis == 0 else rows[0].T)


def taps(layer: Layer) -> int:
    """Kernel taps per input channel: 9 for a 3x3 convolution, 1 for Gemm and MatMul."""
    return int(np.prod(layer.shape[2:])) if layer.op_type in ("Conv", "ConvTranspose") else 1


def shares_grid(layer: Layer) -> bool:
    """Whether the per-channel axis of the file cannot tell the groups apart (grouped ConvTranspose), so that
    one grid serves all.
    """
    return layer.op_type == "ConvTranspose" and layer.group > 1
