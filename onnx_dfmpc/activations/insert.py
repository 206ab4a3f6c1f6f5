"""QuantizeLinear and DequantizeLinear around activations, and integer biases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.activations.placement import Placement
from onnx_dfmpc.activations.ranges import scale_and_zero_point
from onnx_dfmpc.model.protobuf import value_names
from onnx_dfmpc.spec import Array
from onnx_dfmpc.storage.halves import at_least, is_exact

SHAPES = ("Shape", "Size")
"""Operators that do not read the numbers: they get the codes, which are there anyway."""

LARGEST = 2.0**31 - 1


@dataclass(frozen=True)
class _Grid:
    """Names of a scale and a zero point in the graph, and the scale itself."""

    scale: str
    zero_point: str
    value: np.float32


@dataclass(frozen=True)
class _Pair:
    """Names of what is quantized, of its codes, and of what is dequantized."""

    source: str
    codes: str
    result: str
    grid: _Grid

    def nodes(self) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear."""
        parameters = [self.grid.scale, self.grid.zero_point]
        return [
            helper.make_node("QuantizeLinear", [self.source, *parameters], [self.codes]),
            helper.make_node("DequantizeLinear", [self.codes, *parameters], [self.result]),
        ]


def insert(proto: ModelProto, placement: Placement, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Quantize activations of a model, in place, and the biases of the layers that read them.

    ``ranges`` are those of the activations that have a scale of their own, by name. The number of bytes does
    not depend on them.
    """
    graph, label = proto.graph, _label(proto)
    new: dict[str, NDArray[np.generic]] = {}
    pairs = _pairs(placement, ranges, label, {value.name for value in graph.output}, new)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes = [node for value in graph.input if value.name in pairs for node in pairs[value.name].nodes()]
    lowest = f"{label}l"
    biases: set[str] = set()
    for node in graph.node:
        key = node.output[0] if node.output else ""
        grid = pairs[node.input[0]].grid if node.input and node.input[0] in pairs else None
        for position, name in enumerate(node.input):
            if name in pairs:
                pair = pairs[name]
                node.input[position] = pair.codes if node.op_type in SHAPES else pair.result
        for position, name in enumerate(node.output):
            if name in pairs:
                node.output[position] = pairs[name].source
        if key in placement.layers and grid is not None:
            weight = dequantized[node.input[1]]
            if len(node.input) > 2 and node.input[2] in constants:
                biases.add(node.input[2])
                nodes += _integer_bias(node, weight, grid, constants, f"{label}b{len(new)}", new)
            if node.op_type != "Conv" and len(weight.input) < 3:
                # The fusions of ONNX Runtime to QGemm and QLinearMatMul ask for a zero point.
                name = f"{label}w{len(new)}"
                new[name] = np.zeros(constants[weight.input[1]].dims, np.int8)
                weight.input.append(name)
        nodes.append(node)
        if node.op_type == "MaxPool" and grid is None and node.output[0] in pairs:
            # ONNX Runtime would move QuantizeLinear in front of it, and pool integers 20 times as slowly. It
            # does not past a Clip, even one that does nothing and is gone later.
            new[lowest] = np.array(np.finfo(np.float32).min)
            plain, node.output[0] = node.output[0], f"{pairs[node.output[0]].codes}p"
            nodes.append(helper.make_node("Clip", [node.output[0], lowest], [plain]))
            node = nodes[-1]
        nodes += [made for name in _originals(node, pairs) for made in pairs[name].nodes()]
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in new.items())
    _drop_unread(proto, biases)


def _pairs(
    placement: Placement,
    ranges: Mapping[str, tuple[float, float]],
    label: str,
    outputs: Collection[str],
    new: dict[str, NDArray[np.generic]],
) -> dict[str, _Pair]:
    """Pairs by name of the activation; their constants are added to ``new``."""
    grids: dict[str, _Grid] = {}
    pairs = {}
    for index, one in enumerate(placement.activations):
        if one.like == one.name:
            scale, zero_point = scale_and_zero_point(*ranges[one.name])
            # One zero for all that the graph says are not negative, so that the size is known before.
            grid = _Grid(f"{label}{index}s", f"{label}z" if one.unsigned else f"{label}{index}z", scale)
            new |= {grid.scale: np.array(scale), grid.zero_point: np.array(zero_point, np.uint8)}
            grids[one.name] = grid
        codes, result = f"{label}{index}q", f"{label}{index}"
        # A name that the user knows stays with the last node.
        last = one.name in outputs
        source, result = (result, one.name) if last else (one.name, result)
        pairs[one.name] = _Pair(source, codes, result, grids[one.like])
    return pairs


def _originals(node: NodeProto, pairs: Mapping[str, _Pair]) -> list[str]:
    """Activations that a node writes, by the names that they had."""
    return [name for name, pair in pairs.items() if pair.source in node.output]


def _integer_bias(
    node: NodeProto,
    weight: NodeProto,
    grid: _Grid,
    constants: Mapping[str, TensorProto],
    name: str,
    new: dict[str, NDArray[np.generic]],
) -> list[NodeProto]:
    """Give a layer its bias in INT32, in units of input scale times weight scale.

    Where that does not fit, since the weights of a channel are as good as zero, their scale grows until it
    does: they stay as good as zero. Scales of codes that layers share may be negative.
    """
    bias = _numbers(constants[node.input[2]])
    scales = constants[weight.input[1]]
    units = float(grid.value) * _numbers(scales)
    least = np.abs(bias) / LARGEST * (1 + 1e-6)
    if np.any(np.abs(units) < least):
        wider = (np.maximum(np.abs(units), least) / float(grid.value)).astype(np.float32)
        if is_exact(_numbers(scales)):
            wider = at_least(wider)
        wider = np.copysign(wider, units).astype(np.float32)
        units = float(grid.value) * wider.astype(np.float64)
        scales.CopyFrom(numpy_helper.from_array(wider, scales.name))
    codes = np.divide(bias, units, out=np.zeros_like(bias), where=units != 0)  # a silent channel has 0 and 0
    new[f"{name}q"] = np.rint(codes).astype(np.int32)
    node.input[2] = name
    return [
        helper.make_node("Mul", [grid.scale, weight.input[1]], [f"{name}s"]),
        helper.make_node("DequantizeLinear", [f"{name}q", f"{name}s"], [name], axis=0),
    ]


def _numbers(tensor: TensorProto) -> Array:
    """Numbers of a float constant; 1 where it has none, as in a model that only predicts a size."""
    if not (tensor.raw_data or tensor.float_data):
        return np.ones(tuple(tensor.dims))
    return numpy_helper.to_array(tensor).astype(np.float64)


def _label(proto: ModelProto) -> str:
    """A short prefix that no name of the model begins with."""
    taken = value_names(proto.graph)
    label = "a"
    while any(name.startswith(label) for name in taken):
        label += "_"
    return label


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _drop_unread(proto: ModelProto, names: Collection[str]) -> None:
    """Remove initializers that nobody reads any more, and the inputs that old models list for them."""
    read = {name for node in proto.graph.node for name in node.input}
    for values in (proto.graph.initializer, proto.graph.input):
        for index in reversed(range(len(values))):
            if values[index].name in names and values[index].name not in read:
                del values[index]
