"""Which tensors are quantized, so that ONNX Runtime computes whole stretches of a network in integers.

An integer kernel replaces a node whose inputs come from DequantizeLinear and whose outputs go to
QuantizeLinear. So the layers with quantized weights are taken, and of the nodes between them those that have
an integer kernel, or only move numbers about, and lead from one such node to another. A Relu or Clip right
after a layer or a sum is part of it: what is quantized is its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators whose weights are quantized and that have integer kernels."""

KERNELS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
"""Other operators with integer kernels, each with a scale for its output."""

MANY_TAPS = 16
"""An integer AveragePool takes 25 times as long as a float one (FastestDet, 3 x 3). That does not matter
where there are few outputs, as in front of a classifier: with a large kernel.
"""

MOVING = (
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
    "DepthToSpace", "SpaceToDepth", "Resize", "Pad",
)  # fmt: skip
"""Operators whose output has the scale of their first input."""

FUSED = ("Relu", "Clip")
"""Activations that a kernel applies by saturating."""

SEVERAL = ("Add", "Mul", "Concat")
"""Operators all of whose inputs are data; of the others it is the first one."""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Activation:
    """A tensor to quantize.

    Attributes
    ----------
    like : str
        The tensor whose scale and zero point it has: its own name, or that of another activation.
    bounds : (float, float)
        What the operators before it say about its values; infinite where they say nothing.
    """

    name: str
    like: str
    bounds: Bounds

    @property
    def unsigned(self) -> bool:
        """Whether no value is negative, so that the zero point is 0."""
        return self.bounds[0] >= 0


@dataclass(frozen=True)
class Placement:
    """Tensors to quantize, in the order of the graph; the layers, by their first output; and why others stay
    float.
    """

    activations: tuple[Activation, ...]
    layers: tuple[str, ...]
    floats: Mapping[str, str]


def place(proto: ModelProto) -> Placement:
    """Placement in a model whose weights are quantized."""
    graph = _Graph(proto)
    layers = [node for node in graph.nodes if graph.is_layer(node)]
    chosen = _connected(graph, layers)
    bounds = _bounds(graph)
    skipped = _before_activations(graph, chosen)
    outputs = {value.name for value in proto.graph.output}
    activations: dict[str, Activation] = {}
    for node in graph.nodes:
        if id(node) not in chosen:
            continue
        for name in (*graph.data(node), *node.output):
            if not name or name in activations or name in skipped:
                continue
            # Gemm and MatMul can write floats; only Conv would rather not.
            if name in outputs and node.op_type != "Conv" and name in node.output:
                continue
            like = name
            if name in node.output and node.op_type in MOVING:
                like = activations[node.input[0]].like
            activations[name] = Activation(name, like, bounds.get(name, FREE))
    floats = {node.output[0]: why for node in graph.nodes if (why := graph.why_float(node))}
    return Placement(tuple(activations.values()), tuple(node.output[0] for node in layers), floats)


FREE: Bounds = (-math.inf, math.inf)


class _Graph:
    """Who makes and who reads a tensor, and what is constant."""

    def __init__(self, proto: ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.outputs = {value.name for value in proto.graph.output}
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.inputs = {value.name for value in proto.graph.input} - set(self.initializers)
        self.floats_in = {
            value.name for value in proto.graph.input if value.type.tensor_type.elem_type == FLOAT
        } & self.inputs
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        constants = set(self.initializers)
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            if node.op_type == "Constant" or (node.input and all(n in constants for n in node.input if n)):
                constants.update(node.output)
        self.constants = constants

    def is_layer(self, node: NodeProto) -> bool:
        """Whether a node has a quantized weight and a kernel for it."""
        return node.op_type in LAYERS and self._quantized_weight(node)

    def _quantized_weight(self, node: NodeProto) -> bool:
        source = self.producer.get(node.input[1]) if len(node.input) > 1 else None
        return source is not None and source.op_type == "DequantizeLinear" and node.input[1] in self.constants

    def why_float(self, node: NodeProto) -> str:
        """Why a node with a quantized weight is not computed in integers; "" for all others."""
        if node.op_type in LAYERS or not self._quantized_weight(node):
            return ""
        return f"ONNX Runtime has no integer kernel for {node.op_type}"

    def data(self, node: NodeProto) -> list[str]:
        """Inputs that are activations."""
        some = node.input if node.op_type in SEVERAL else node.input[:1]
        return [name for name in some if name and name not in self.constants]

    def is_between(self, node: NodeProto) -> bool:
        """Whether a node without weights may be computed in integers."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in SEVERAL:  # a constant operand would have to be quantized, too
            return all(name not in self.constants for name in node.input)
        if node.op_type == "AveragePool":
            sizes = [a.ints for a in node.attribute if a.name == "kernel_shape"]
            return math.prod(sizes[0] if sizes else ()) >= MANY_TAPS
        if node.op_type == "Resize":
            return _text(node, "mode", "nearest") == "nearest"
        if node.op_type == "Pad":
            return _text(node, "mode", "constant") == "constant" and len(node.input) < 4 and self._zero(node)
        return node.op_type in (*KERNELS, *MOVING, *FUSED)

    def _zero(self, node: NodeProto) -> bool:
        if len(node.input) < 3 or not node.input[2]:
            return True
        value = self.constant(node.input[2])
        return value is not None and not value.any()

    def constant(self, name: str) -> np.ndarray | None:
        """Value of an initializer or a Constant node."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return numpy_helper.to_array(attribute.t)
                return np.array(helper.get_attribute_value(attribute))
        return None


FLOAT = 1


def _text(node: NodeProto, name: str, default: str) -> str:
    for attribute in node.attribute:
        if attribute.name == name:
            return str(attribute.s.decode())
    return default


def _connected(graph: _Graph, layers: Sequence[NodeProto]) -> set[int]:
    """The layers, and the nodes between them that every input leads to from one, and an output on to one."""
    chosen = {id(node) for node in layers}
    between = [node for node in graph.nodes if graph.is_between(node)]
    chosen |= {id(node) for node in between}

    layer_inputs = {node.input[0] for node in layers}

    def made(name: str) -> bool:
        # What a layer reads is quantized, whoever made it.
        return name in graph.floats_in or name in layer_inputs or id(graph.producer.get(name)) in chosen

    def read(node: NodeProto) -> bool:
        return any(id(reader) in chosen for name in node.output for reader in graph.readers.get(name, ()))

    def fits(node: NodeProto) -> bool:
        data = graph.data(node)
        return bool(data) and all(map(made, data)) and (read(node) or _ends(graph, node))

    while lost := {id(node) for node in between if id(node) in chosen and not fits(node)}:
        chosen -= lost
    return chosen


def _ends(graph: _Graph, node: NodeProto) -> bool:
    """Whether a node is the activation of a layer, and so a part of it wherever its output goes."""
    source = graph.producer.get(node.input[0])
    return (
        node.op_type in FUSED
        and source is not None
        and graph.is_layer(source)
        and len(graph.readers[node.input[0]]) == 1
        and node.input[0] not in graph.outputs
    )


def _before_activations(graph: _Graph, chosen: set[int]) -> set[str]:
    """Tensors between a kernel and the activation that it applies."""
    return {
        node.input[0]
        for node in graph.nodes
        if id(node) in chosen
        and node.op_type in FUSED
        and len(graph.readers[node.input[0]]) == 1
        and node.input[0] not in graph.outputs
        and (source := graph.producer.get(node.input[0])) is not None
        and id(source) in chosen
        and source.op_type in (*LAYERS, "Add", "Mul")
    }


def _bounds(graph: _Graph) -> dict[str, Bounds]:
    """Bounds on tensors, where operators give any."""
    found: dict[str, Bounds] = {}

    def of(name: str) -> Bounds:
        return found.get(name, FREE)

    for node in graph.nodes:
        rule = RULES.get(node.op_type)
        if rule is not None and node.input:
            bounds = rule(graph, node, [of(name) for name in graph.data(node)])
            if bounds != FREE:
                found |= dict.fromkeys(node.output, bounds)
    return found


def _clip(graph: _Graph, node: NodeProto, inputs: Sequence[Bounds]) -> Bounds:
    low, high = inputs[0] if inputs else FREE
    limits = {a.name: a.f for a in node.attribute}
    for position, key in ((1, "min"), (2, "max")):
        if len(node.input) > position and node.input[position]:
            value = graph.constant(node.input[position])
            if value is not None:
                limits[key] = float(value.reshape(()))
    low, high = max(low, limits.get("min", -math.inf)), min(high, limits.get("max", math.inf))
    return low, high


def _union(graph: _Graph, node: NodeProto, inputs: Sequence[Bounds]) -> Bounds:
    if len(inputs) < (len(node.input) if node.op_type in SEVERAL else 1):
        return FREE
    return min(low for low, _ in inputs), max(high for _, high in inputs)


def _sum(graph: _Graph, node: NodeProto, inputs: Sequence[Bounds]) -> Bounds:
    if len(inputs) < 2:
        return FREE
    return sum(low for low, _ in inputs), sum(high for _, high in inputs)


RULES: dict[str, Callable[[_Graph, NodeProto, Sequence[Bounds]], Bounds]] = {
    "Relu": lambda graph, node, inputs: (0.0, max(0.0, inputs[0][1] if inputs else math.inf)),
    "Clip": _clip,
    "Sigmoid": lambda graph, node, inputs: (0.0, 1.0),
    "Softmax": lambda graph, node, inputs: (0.0, 1.0),
    "Add": _sum,
    **dict.fromkeys(("Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", *MOVING), _union),
}
"""What an operator says about its output."""
