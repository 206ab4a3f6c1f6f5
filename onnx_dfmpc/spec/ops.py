"""The weighted operators, a row each: all that the other rooms know of Conv, ConvTranspose, Gemm and MatMul.

A new operator is a new row of `OPS`. NumPy alone.

A weight is the second input of its node. It is stored with its channels on axes 0 and 1, outputs on ``axis``
and inputs on the other, then the kernel, if there is one. Groups always lie along axis 0: the other channel
axis has the length of one group.

Arithmetic sees every stored weight as rows of inputs, group by group, shape (g, r, n): ``g`` groups, ``r``
output channels in each, ``n`` inputs of an output channel, which are input channels times kernel taps, taps
innermost. Output channel ``j`` of the layer is row ``divmod(j, r)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec.matched import Layer

HALF_OR_SINGLE = ("float32", "float16")


@dataclass(frozen=True)
class WeightedOp:
    """What one operator does with its weight."""

    axis: Callable[[Mapping[str, Any]], int]
    """Attributes of a node to the output-channel axis of its stored weight, 0 or 1."""
    spatial: bool
    """Whether the weight ends in kernel axes: the data does too then, and its channels are axis 1. Otherwise
    weights are matrices, and the channels of the data are its last axis."""
    grouped: bool
    """Whether there is an attribute ``group``."""
    batched: bool
    """Whether the data may have any number of axes in front of the channels."""
    bias_input: int | None
    """Position of the bias; None where a bias is an Add after the node."""
    types: tuple[str, ...] = HALF_OR_SINGLE
    """Types of weights: ONNX Runtime 1.32 has no convolution in float64, and no product in bfloat16."""
    unsupported: Callable[[Mapping[str, Any], bool], str] = lambda attributes, has_bias: ""
    """Attributes of a node, and whether it has a bias, to why it is no plain product; "" where it is one."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a stored weight has a legal number of axes."""
        return len(shape) >= 3 if self.spatial else len(shape) == 2

    def group(self, attributes: Mapping[str, Any]) -> int:
        """Number of groups of a node."""
        return int(attributes.get("group", 1)) if self.grouped else 1

    def channels(self, shape: Sequence[int], attributes: Mapping[str, Any]) -> tuple[int, int]:
        """Numbers of input and of output channels of a node, all groups together."""
        axis = self.axis(attributes)
        sizes = int(shape[0]), int(shape[1]) * self.group(attributes)
        return sizes[1 - axis], sizes[axis]


def _gemm_unsupported(attributes: Mapping[str, Any], has_bias: bool) -> str:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if attributes.get("transA", 0):
        return "transA=1: its rows are not samples"
    if alpha != 1.0 or (has_bias and beta != 1.0):
        return f"alpha={alpha:g}, beta={beta:g}: only a plain product can be quantized"
    return ""


OPS: dict[str, WeightedOp] = {
    "Conv": WeightedOp(lambda _: 0, spatial=True, grouped=True, batched=False, bias_input=2),
    "ConvTranspose": WeightedOp(lambda _: 1, spatial=True, grouped=True, batched=False, bias_input=2),
    "Gemm": WeightedOp(
        lambda attributes: 0 if attributes.get("transB", 0) else 1,
        spatial=False,
        grouped=False,
        batched=False,
        bias_input=2,
        types=(*HALF_OR_SINGLE, "float64"),
        unsupported=_gemm_unsupported,
    ),
    "MatMul": WeightedOp(
        lambda _: 1,
        spatial=False,
        grouped=False,
        batched=True,
        bias_input=None,
        types=(*HALF_OR_SINGLE, "float64"),
    ),
}
"""By `op_key`."""


LEAST_WEIGHTS = 256
"""Numbers of a constant from which on it is a weight: the codes of fewer take about as many bytes."""


@dataclass(frozen=True)
class PlainInput:
    """An input of an operator that is no product whose data can be measured, and yet holds weights."""

    suffix: str
    """What is added to the name of the node for the name of the weight."""
    axis: Callable[[Mapping[str, Any]], int]
    """Attributes of a node to the axis of the weight along which every index has a scale."""
    types: tuple[str, ...] = HALF_OR_SINGLE
    """Types of weights."""


_GATES = {1: PlainInput(".W", lambda _: 1), 2: PlainInput(".R", lambda _: 1)}  # (directions, gates, inputs)

PLAIN: dict[str, dict[int, PlainInput]] = {
    "Gather": {
        0: PlainInput(
            "",
            lambda attributes: int(attributes.get("axis", 0)),
            types=(*HALF_OR_SINGLE, "bfloat16", "float64"),
        )
    },
    "LSTM": _GATES,
    "GRU": _GATES,
    "RNN": _GATES,
}
"""Weights that are rounded to nearest, by `op_key` and position of the input."""


def op_key(op_type: str, domain: str | None) -> str:
    """Operator with its domain in front where that is not ONNX's own: "Conv", "com.example::Linear"."""
    return op_type if domain in (None, "", "ai.onnx") else f"{domain}::{op_type}"


def why_type(dtype: str, operator: str, types: Sequence[str]) -> str:
    """Why a weight cannot be quantized because of its type, in words; "" where it can."""
    if dtype in types:
        return ""
    if "float" in dtype:
        return f"{dtype}, in which ONNX Runtime does not run {operator}"
    return f"{dtype}: only {', '.join(types[:-1])} and {types[-1]} weights of {operator} can be quantized"


def to_rows(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Stored weight, shape ``layer.shape``, to rows, shape (g, r, n)."""
    g = layer.group
    rows: NDArray[Any]
    if layer.axis == 0:  # (g * r, i, taps)
        rows = weight.reshape(g, weight.shape[0] // g, -1)
    else:  # (g * i, r, taps); a view where there are no taps, as matrices have none
        i, r = weight.shape[0] // g, weight.shape[1]
        rows = weight.reshape(g, i, r, -1).transpose(0, 2, 1, 3).reshape(g, r, -1)
    return rows


def from_rows(rows: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Rows to a contiguous array in the layout of the stored weight; the inverse of `to_rows`."""
    if layer.axis == 1:
        g, r = layer.group, layer.shape[1]
        rows = rows.reshape(g, r, layer.shape[0] // g, -1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(rows.reshape(layer.shape))


def spatial_rank(layer: Layer) -> int:
    """Number of spatial axes: 2 for an image convolution, 0 for a matrix."""
    return len(layer.shape) - 2


def taps(layer: Layer) -> int:
    """Kernel taps per input channel: 9 for a 3x3 convolution, 1 for a matrix."""
    return int(np.prod(layer.shape[2:]))


def input_channels(layer: Layer) -> int:
    """Number of input channels, all groups together."""
    return layer.size * layer.group // (layer.channels * taps(layer))


def output_axis(layer: Layer, ndim: int) -> int:
    """Axis of the channels of a layer's output, which has ``ndim`` axes."""
    return 1 if OPS[layer.op_type].spatial else ndim - 1


def per_channel(values: NDArray[Any], layer: Layer, ndim: int) -> NDArray[Any]:
    """Numbers (channels,) in a shape that broadcasts along the channels of an output of ``ndim`` axes."""
    axis = output_axis(layer, ndim)
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])


def along_inputs(factor: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Factors (i,) of the input channels, each where the stored weight meets its channel: ``layer.shape``."""
    row = np.repeat(factor.reshape(layer.group, -1), taps(layer), axis=1)  # (g, n)
    rows = np.broadcast_to(row[:, None], (layer.group, layer.channels // layer.group, row.shape[1]))
    return from_rows(rows, layer)


def shares_grid(layer: Layer) -> bool:
    """Whether one grid has to serve all groups, since the file's channel axis cannot tell them apart.

    That is so where the channels' axis is not the one along which groups lie: in a grouped ConvTranspose.
    """
    return layer.group > 1 and layer.axis != 0
