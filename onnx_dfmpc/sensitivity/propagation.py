"""Closed form: the share of each layer's noise in that of the network's outputs, from the graph and the power
of its tensors.

The noise-to-signal ratio passes operators of one input unchanged. Where signals are added, and where they are
concatenated, each counts with its share of the power. A tensor that is read several times counts through
every reader. So with A(t) the ratio at the outputs for a ratio of 1 at tensor t,

    A(output) = 1 / outputs
    A(x_i)   += A(y) P(x_i) / sum_k P(x_k)        Add, Sum, Sub, Concat
    A(x)     += A(y) / sqrt(n)                    averages of n places
    A(x)     += A(y)                              all others.

P is the variance summed over the channels: measured at the input and at the output of every layer, elsewhere
that of the tensors it is made of. An average leaves 1/n of the ratio where the noise is white and the signal
is not, and all of it where both are alike; what rounding leaves is in between, and taken to be the geometric
mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, shape_inference

from onnx_dfmpc.linalg.matrices import matrix, through
from onnx_dfmpc.linalg.products import slabs
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.protobuf import skeleton
from onnx_dfmpc.spec import InputStatistics, Layer, LayerStatistics
from onnx_dfmpc.spec.ops import taps, to_rows

SUMMED = ("Add", "Sum", "Sub", "Concat")
AVERAGED = ("GlobalAveragePool", "AveragePool", "ReduceMean")
SHAPES = ("Shape", "Size")
"""Operators whose outputs do not depend on the values of their inputs."""


def amplification(
    proto: ModelProto, layers: Sequence[Layer], statistics: Mapping[str, LayerStatistics]
) -> dict[str, float]:
    """A(t) of every tensor, by name; tensors that reach no output are left out."""
    table = ConstantTable(proto)
    power: dict[str, float] = {}
    for layer in layers:
        seen = statistics[layer.name].input if layer.name in statistics else None
        if seen is not None:
            power |= _powers(layer, seen, table)
    producer = {name: node for node in proto.graph.node for name in node.output if name}
    places = _places(proto)

    def power_of(name: str) -> float:
        """Power of a tensor: as measured, or of what it is made of. One pass over the ancestors, without
        recursion.
        """
        stack = [name]
        while stack:
            top = stack[-1]
            parts = _made_of(top, producer, table)
            waiting = [read for read in parts if read not in power]
            if top not in power and waiting:
                stack += waiting
                continue
            if top not in power:
                power[top] = sum(power[read] for read in parts)
            stack.pop()
        return power[name]

    def shares(node: NodeProto) -> dict[str, float]:
        inputs = [name for name in node.input if name and name not in table]
        if node.op_type in SHAPES or not inputs:
            return {}
        if node.op_type in AVERAGED:
            before, after = places.get(inputs[0]), places.get(node.output[0], 1)
            return {inputs[0]: 1.0 if before is None else float(np.sqrt(after / before))}
        if node.op_type not in SUMMED:
            return dict.fromkeys(inputs, 1.0)
        parts = [power_of(name) for name in inputs]
        total = sum(parts)
        found: dict[str, float] = {}
        for name, part in zip(inputs, parts, strict=True):
            found[name] = found.get(name, 0.0) + (part / total if total > 0 else 1 / len(inputs))
        return found

    outputs = [output.name for output in proto.graph.output]
    ratio: dict[str, float] = {}
    for name in outputs:
        ratio[name] = ratio.get(name, 0.0) + 1 / len(outputs)
    for node in reversed(proto.graph.node):
        total = sum(ratio.get(name, 0.0) for name in node.output)
        if total:
            for name, share in shares(node).items():
                ratio[name] = ratio.get(name, 0.0) + total * share
    return ratio


def noise_at_outputs(amplified: Mapping[str, float], layer: Layer, local: float) -> float:
    """Noise at the network's outputs for a layer's own, both relative to the signal."""
    return amplified.get(layer.end, 0.0) * local


def _powers(layer: Layer, seen: InputStatistics, table: ConstantTable) -> dict[str, float]:
    """Power of a layer's input and of its output."""
    before = float(matrix(seen.covariance).diagonal().sum(dtype=np.float64)) / taps(layer)
    if layer.batch_norm is not None:
        after = float(np.square(layer.batch_norm.gamma).sum())
    else:
        rows = to_rows(table[layer.weight].astype(np.float32, copy=False), layer)
        parts = (rows[:, part] for part in slabs(rows))
        after = sum(float(np.einsum("grn,grn->", through(part, seen.covariance), part)) for part in parts)
    return {layer.input: before, layer.end: after}


def _made_of(name: str, producer: Mapping[str, NodeProto], table: ConstantTable) -> list[str]:
    """Tensors whose powers add up to that of a tensor."""
    node = producer.get(name)
    if node is None or node.op_type in SHAPES:
        return []
    inputs = [read for read in node.input if read and read not in table]
    return inputs if node.op_type in SUMMED else inputs[:1]


def _places(proto: ModelProto) -> dict[str, int]:
    """Number of places, all but the first two dimensions, of every tensor whose shape is known."""
    inferred = shape_inference.infer_shapes(skeleton(proto)).graph
    found = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
        if all(sizes):
            found[value.name] = int(np.prod(sizes))
    return found
