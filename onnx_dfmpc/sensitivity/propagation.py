"""Closed form: the share of each layer's noise in that of the network's outputs, from the graph and the power
of its tensors.

The noise-to-signal ratio passes operators of one input unchanged. Where signals are added, and where they are
concatenated, each counts with its share of the power. A tensor that is read several times is heard through
every reader. So with A(t) the ratio at the outputs for a ratio of 1 at tensor t,

    A(output) = 1 / outputs
    A(x_i)   += A(y) P(x_i) / sum_k P(x_k)        Add, Sum, Sub, Concat
    A(x)     += A(y) / sqrt(n)                    averages of n places
    A(x)     += A(y)                              all others.

P is the variance summed over the channels: known at the input and at the output of every layer, elsewhere
that of the tensors it is made of. An average leaves 1/n of the ratio where the noise is white and the signal
is not, and all of it where both are alike; what rounding leaves is in between, and taken to be the geometric
mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, shape_inference

from onnx_dfmpc.linalg.matrices import matrix, through
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.protobuf import skeleton
from onnx_dfmpc.spec import InputStatistics, Layer
from onnx_dfmpc.spec.ops import taps, to_rows

SUMMED = ("Add", "Sum", "Sub", "Concat")
AVERAGED = ("GlobalAveragePool", "AveragePool", "ReduceMean")
SILENT = ("Shape", "Size")
"""Operators behind which nothing is heard of the values."""


class NoisePropagation:
    """The power of a network's tensors, as far as its layers show it, and what follows for their noise.

    Parameters
    ----------
    proto : ModelProto
    """

    def __init__(self, proto: ModelProto) -> None:
        self._proto = proto
        self._table = ConstantTable(proto)
        self._producer = {name: node for node in proto.graph.node for name in node.output if name}
        self._places = _places(proto)
        self._power: dict[str, float] = {}

    def see(self, layer: Layer, statistics: InputStatistics) -> None:
        """Take note of a layer's input and of its output."""
        self._power[layer.input] = float(
            matrix(statistics.covariance).diagonal().sum(dtype=np.float64)
        ) / taps(layer)
        end = layer.output
        if layer.batch_norm is not None:
            end, power = layer.batch_norm.output, float(np.square(layer.batch_norm.gamma).sum())
        else:
            power = _response(to_rows(self._table[layer.weight].astype(np.float32), layer), statistics)
        self._power[end] = power

    def amplification(self) -> dict[str, float]:
        """A(t) of every tensor, by name; 0 where no output hears it."""
        heard: dict[str, float] = {}
        outputs = [output.name for output in self._proto.graph.output]
        for name in outputs:
            heard[name] = heard.get(name, 0.0) + 1 / len(outputs)
        for node in reversed(self._proto.graph.node):
            total = sum(heard.get(name, 0.0) for name in node.output)
            if total:
                for name, share in self._shares(node).items():
                    heard[name] = heard.get(name, 0.0) + total * share
        return heard

    def _shares(self, node: NodeProto) -> dict[str, float]:
        inputs = [name for name in node.input if name and name not in self._table]
        if node.op_type in SILENT:
            return {}
        if node.op_type in AVERAGED:
            return {inputs[0]: self._left_by_average(inputs[0], node.output[0])}
        if node.op_type not in SUMMED:
            return dict.fromkeys(inputs, 1.0)
        power = [self._power_of(name) for name in inputs]
        total = sum(power)
        shares: dict[str, float] = {}
        for name, part in zip(inputs, power, strict=True):
            shares[name] = shares.get(name, 0.0) + (part / total if total > 0 else 1 / len(inputs))
        return shares

    def _left_by_average(self, before: str, behind: str) -> float:
        """Share of the noise-to-signal ratio that an average leaves; 1 where it is not known over how many
        places.
        """
        return (
            float(np.sqrt(self._places.get(behind, 1) / self._places[before]))
            if before in self._places
            else 1.0
        )

    def _power_of(self, name: str) -> float:
        """Power of a tensor: as seen, or of what it is made of."""
        if name not in self._power:
            node = self._producer.get(name)
            inputs = [] if node is None else [read for read in node.input if read and read not in self._table]
            if node is not None and node.op_type not in SUMMED:
                inputs = [] if node.op_type in SILENT else inputs[:1]
            self._power[name] = sum(self._power_of(read) for read in inputs)
        return self._power[name]


def _places(proto: ModelProto) -> dict[str, int]:
    """Number of places, all but the first two dimensions, of every tensor whose shape is known."""
    inferred = shape_inference.infer_shapes(skeleton(proto)).graph
    found = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
        if all(sizes):
            found[value.name] = int(np.prod(sizes))
    return found


def noise_at_outputs(amplification: Mapping[str, float], layer: Layer, local: float) -> float:
    """Noise at the network's outputs for a layer's own, both relative to the signal."""
    end = layer.output if layer.batch_norm is None else layer.batch_norm.output
    return amplification.get(end, 0.0) * local


def _response(rows: NDArray[np.float32], statistics: InputStatistics) -> float:
    """Variance of all outputs of some rows together."""
    return float(np.einsum("grn,grn->", through(rows, statistics.covariance), rows))
