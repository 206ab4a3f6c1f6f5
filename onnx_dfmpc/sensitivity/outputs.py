"""Measured: one layer at a time is quantized, the rest of the float network runs, and its outputs are
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.sensitivity.candidates import Candidate
from onnx_dfmpc.spec import Layer
from onnx_dfmpc.spec.ops import spatial_rank

Value = NDArray[Any]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

SQUASHING = (
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
    "HardSigmoid",
    "ArgMax",
    "TopK",
    "Identity",
    "Cast",
    "Flatten",
    "Reshape",
    "Squeeze",
)
"""Operators at the end of a network that hide how far its scores moved, or only put them into shape."""


class OutputNoise:
    """The float network on a few batches of inputs; its layers are asked for in topological order."""

    def __init__(
        self,
        proto: ModelProto,
        table: ConstantTable,
        layers: Sequence[Layer],
        feeds: Sequence[Mapping[str, Value]],
    ) -> None:
        self._table = table
        self._run = PartialRun(proto, table, feeds)
        self._names = scores(proto, layers)
        self._float: dict[
            str, list[Value]
        ] = {}  # by name: a network may have outputs that the first layer misses

    def noise(self, layer: Layer, candidates: Mapping[float, Candidate]) -> dict[float, float]:
        """Noise at the network's worst output when this layer alone is quantized, relative to the signal
        there, by width.
        """
        weight = self._table[layer.weight]
        self._run.value(layer.input)
        rest = self._run.downstream(layer.output, self._names, open_weight=True)
        if not self._float.keys() >= set(rest.outputs):
            self._float |= rest.with_weight(weight, _shift(np.zeros(layer.channels), layer, weight))
        noise: dict[float, float] = {}
        for width, candidate in candidates.items():
            shift = _shift(candidate.shift, layer, weight)
            quantized = self._float | rest.with_weight(candidate.weight.astype(weight.dtype), shift)
            moved = (relative(self._float[name], quantized[name]) for name in self._float)
            noise[width] = max(moved, default=0.0)  # no output depends on any layer
        return noise


def scores(proto: ModelProto, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Tensors to compare: the float outputs of the network, in front of what squashes them; if there are
    none, those of its last layers.
    """
    producer = {name: node for node in proto.graph.node for name in node.output}
    names = []
    for output in proto.graph.output:
        name = output.name
        while name in producer and producer[name].op_type in SQUASHING:
            name = producer[name].input[0]
        if name != output.name or output.type.tensor_type.elem_type in FLOATS:
            names.append(name)
    return tuple(dict.fromkeys(names or (layer.end for layer in layers if layer.edge == "last")))


def relative(reference: Sequence[Value], other: Sequence[Value]) -> float:
    """Noise power of some outputs, minus its mean over the samples, relative to their power.

    Arrays have shape (N, ...), one for each batch; UnsupportedError if they cannot be compared. An offset
    that is the same for all samples is left out: on inputs of another kind than those that the statistics
    come from, it says more about the inputs than about the layer.
    """
    if any(x.shape != y.shape for x, y in zip(reference, other, strict=True)):
        raise UnsupportedError("the shape of an output depends on what is in it")
    if len({x.shape[1:] for x in reference}) > 1 or not all(x.ndim for x in reference):
        # The first axis is not that of the samples, as in what recurrent layers give: no mean over these.
        reference, other = (
            [np.concatenate([np.ravel(x) for x in side])[None]] for side in (reference, other)
        )
    a, b = (
        np.concatenate([np.reshape(batch, (len(batch), -1)) for batch in side]).astype(np.float64)
        for side in (reference, other)
    )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UnsupportedError("an output is not finite")
    difference = b - a
    samples = len(difference)
    if samples > 1:
        # Bessel's correction: the mean that is taken out was measured on the same few samples.
        difference = (difference - difference.mean(axis=0)) * np.sqrt(samples / (samples - 1))
    signal = float(np.square(a).sum())
    return float(np.square(difference).sum()) / signal if signal > 0 else 0.0


def _shift(values: NDArray[np.floating], layer: Layer, weight: Value) -> Value:
    """Values per channel in the weight's dtype and the shape in which they broadcast along the layer's
    output.
    """
    return values.astype(weight.dtype).reshape(-1, *[1] * spatial_rank(layer))
