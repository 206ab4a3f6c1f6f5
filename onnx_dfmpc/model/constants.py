"""Which tensors of a graph are constant, what they hold, and who else uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.model.protobuf import graphs, subgraphs


@dataclass(frozen=True)
class Uses:
    """How often a constant is read, whatever Identity nodes lie in between.

    Attributes
    ----------
    nodes : int
        Inputs of nodes of the main graph, the Identity nodes that only pass it on not counted.
    subgraphs : int
        Inputs of nodes, and outputs, of bodies of If, Loop and Scan.
    outputs : int
        Outputs of the main graph.
    """

    nodes: int
    subgraphs: int
    outputs: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.nodes + self.subgraphs + self.outputs


SMALL = 1 << 16
"""Bytes of an array that is kept: all large ones together would be a second copy of the model."""


class ConstantTable(Mapping[str, NDArray[np.generic]]):
    """Constant tensors of the main graph by name: initializers, outputs of Constant nodes, and Identity of
    either.

    Arrays are read-only and decoded when asked for; only small ones are kept. Sparse and string constants are
    not in the table.

    Parameters
    ----------
    proto : ModelProto
        Model with its external data loaded; read, never changed.

    Examples
    --------
    >>> from onnx import parser
    >>> table = ConstantTable(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     g (float[2] x) => (float[2] y) <float[2] b = {1, 2}> { c = Identity(b)  y = Add(x, c) }'''))
    >>> table["c"], table.source("c"), table.uses("c")
    (array([1., 2.], dtype=float32), 'b', Uses(nodes=1, subgraphs=0, outputs=0))
    >>> "x" in table
    False
    """

    def __init__(self, proto: ModelProto) -> None:
        graph = proto.graph
        self._held: dict[str, TensorProto | AttributeProto] = {
            tensor.name: tensor for tensor in graph.initializer if tensor.data_type != TensorProto.STRING
        }
        listed = {value.name for value in graph.input}
        self._overridable = listed & set(self._held) if proto.ir_version >= 4 else set()
        self._initializers = frozenset(self._held)
        self._source = {name: name for name in self._held}
        aliases: set[int] = set()
        for index, node in enumerate(graph.node):
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                attribute = _constant_attribute(node)
                if attribute is not None:
                    self._held[node.output[0]] = attribute
                    self._source[node.output[0]] = node.output[0]
            elif (
                node.op_type == "Identity"
                and node.domain in ("", "ai.onnx")
                and node.input[0] in self._source
            ):
                self._source[node.output[0]] = self._source[node.input[0]]
                aliases.add(index)
        nodes = Counter(name for i, node in enumerate(graph.node) if i not in aliases for name in node.input)
        bodies: Counter[str] = Counter()
        for node in graph.node:
            for body in subgraphs(node):
                bodies.update(outer_names(body))
        outputs = Counter(value.name for value in graph.output)
        self._uses = tuple(self._by_source(counts) for counts in (nodes, bodies, outputs))
        self._arrays: dict[str, NDArray[np.generic]] = {}

    def _by_source(self, counts: Counter[str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for name, count in counts.items():
            if name in self._source:
                total[self._source[name]] += count
        return total

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        source = self._source[name]
        if source in self._arrays:
            return self._arrays[source]
        array = _decode(self._held[source])
        array.setflags(write=False)
        if array.nbytes <= SMALL:
            self._arrays[source] = array
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def data_type(self, name: str) -> int:
        """``TensorProto`` element type of a constant tensor."""
        held = self._held[self._source[name]]
        tensor = held.t if isinstance(held, AttributeProto) else held
        return tensor.data_type or helper.np_dtype_to_tensor_dtype(self[name].dtype)

    def source(self, name: str) -> str:
        """Name of the initializer, or of the Constant node's output, that a constant tensor comes from.
        KeyError if it is not constant.
        """
        return self._source[name]

    def is_initializer(self, name: str) -> bool:
        """Whether ``name`` itself is an initializer of the main graph."""
        return name in self._initializers

    def overridable(self, name: str) -> bool:
        """Whether the caller of the model may replace the constant, because its initializer is listed as a
        graph input (IR 4 and later).
        """
        return self._source.get(name) in self._overridable

    def uses(self, name: str) -> Uses:
        """Count the readers of the source of a constant tensor."""
        source = self._source[name]
        return Uses(*(counts[source] for counts in self._uses))


def outer_names(body: GraphProto) -> Counter[str]:
    """Count the names that a body reads from the graphs around it."""
    local = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    local |= {name for node in body.node for name in node.output}
    names = Counter(name for node in body.node for name in node.input if name)
    names.update(value.name for value in body.output)
    for node in body.node:
        for inner in subgraphs(node):
            names.update(outer_names(inner))
    return Counter({name: count for name, count in names.items() if name not in local})


def used_names(graph: GraphProto) -> Counter[str]:
    """Count the readers of every tensor name in a graph and everything nested in it, graph outputs included."""
    names: Counter[str] = Counter()
    for scope in graphs(graph):
        names.update(name for node in scope.node for name in node.input if name)
        names.update(value.name for value in scope.output)
    return names


def _constant_attribute(node: NodeProto) -> AttributeProto | None:
    readable = ("value", "value_float", "value_floats", "value_int", "value_ints")
    return next((attribute for attribute in node.attribute if attribute.name in readable), None)


def _decode(held: TensorProto | AttributeProto) -> NDArray[np.generic]:
    if isinstance(held, TensorProto):
        return numpy_helper.to_array(held)
    match held.name:
        case "value_float":
            return np.array(held.f, np.float32)
        case "value_floats":
            return np.array(held.floats, np.float32)
        case "value_int":
            return np.array(held.i, np.int64)
        case "value_ints":
            return np.array(held.ints, np.int64)
    return numpy_helper.to_array(held.t)
