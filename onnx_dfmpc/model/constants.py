"""Which tensors of a graph are constant, what they hold, and who else reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.model.external import array_of, is_mapped
from onnx_dfmpc.model.protobuf import graphs, subgraphs
from onnx_dfmpc.spec.ops import op_key

SMALL = 1 << 16
"""Bytes up to which a decoded array is kept; a convention. All large ones would be a second model."""


class ConstantTable(Mapping[str, NDArray[np.generic]]):
    """Constant tensors of the main graph by name: initializers, Constant nodes, and Identity of either.

    Arrays are read-only and decoded when asked for, those of mapped weights (see `external`) read from their
    file. Sparse and string constants are not in the table, nor are
    the initializers named in ``without``. The model, with its external data loaded, is never changed.

    Examples
    --------
    >>> from onnx import parser
    >>> table = ConstantTable(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["" : 17]>
    ...     g (float[2] x) => (float[2] y) <float[2] b = {1, 2}> { c = Identity(b)  y = Add(x, c) }'''))
    >>> table["c"], table.source("c"), table.uses("c")
    (array([1., 2.], dtype=float32), 'b', 1)
    >>> "x" in table
    False
    """

    def __init__(self, proto: ModelProto, *, without: Collection[str] = ()) -> None:
        graph = proto.graph
        self._stored: dict[str, TensorProto | AttributeProto] = {
            tensor.name: tensor
            for tensor in graph.initializer
            if tensor.data_type != TensorProto.STRING and tensor.name not in without
        }
        self._initializers = frozenset(self._stored)
        self._source = {name: name for name in self._stored}
        self._uses = Counter(value.name for value in graph.output)
        for node in graph.node:
            operator = op_key(node.op_type, node.domain)
            if operator == "Constant":
                attribute = _constant_attribute(node)
                if attribute is not None:
                    self._stored[node.output[0]] = attribute
                    self._source[node.output[0]] = node.output[0]
            elif operator == "Identity" and node.input[0] in self._source:
                self._source[node.output[0]] = self._source[node.input[0]]
                continue  # it only passes the constant on: its readers count, not it
            self._uses.update(node.input)
            for body in subgraphs(node):
                self._uses.update(outer_names(body))
        for name, source in self._source.items():
            if name != source:
                self._uses[source] += self._uses[name]
        self._arrays: dict[str, NDArray[np.generic]] = {}

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        source = self._source[name]
        if source in self._arrays:
            return self._arrays[source]
        array = _decode(self._stored[source])
        array.setflags(write=False)
        if array.nbytes <= SMALL:
            self._arrays[source] = array
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source  # without decoding, unlike Mapping's own

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a constant tensor, which is not decoded for it."""
        tensor = self._tensor(name)
        return tuple(tensor.dims) if tensor.data_type else self[name].shape

    def data_type(self, name: str) -> int:
        """``TensorProto`` element type of a constant tensor."""
        tensor = self._tensor(name)
        return tensor.data_type or helper.np_dtype_to_tensor_dtype(self[name].dtype)

    def _tensor(self, name: str) -> TensorProto:
        """What holds a constant; an empty tensor where an attribute holds plain numbers."""
        stored = self._stored[self._source[name]]
        return stored.t if isinstance(stored, AttributeProto) else stored

    def source(self, name: str) -> str:
        """Name of the initializer, or of the Constant node's output, that a constant tensor comes from."""
        return self._source[name]

    def is_mapped(self, name: str) -> bool:
        """Whether the numbers of a constant are in a file, so that to look at them is to read it."""
        return is_mapped(self._tensor(name))

    def is_initializer(self, name: str) -> bool:
        """Whether ``name`` itself is an initializer of the main graph."""
        return name in self._initializers

    def uses(self, name: str) -> int:
        """Number of readers of a constant's source: inputs of nodes, outputs of bodies and of the graph.

        Identity nodes that only pass it on are not counted, those who read them are.
        """
        return self._uses[self._source[name]]


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


def node_inputs(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, those that its bodies (of If, Loop) capture included."""
    yield from (name for name in node.input if name)
    for body in subgraphs(node):
        yield from outer_names(body)


def used_names(graph: GraphProto) -> Counter[str]:
    """Count the readers of every name in a graph and all that is nested in it, graph outputs included."""
    names: Counter[str] = Counter()
    for scope in graphs(graph):
        names.update(name for node in scope.node for name in node.input if name)
        names.update(value.name for value in scope.output)
    return names


def _constant_attribute(node: NodeProto) -> AttributeProto | None:
    readable = ("value", "value_float", "value_floats", "value_int", "value_ints")
    return next((attribute for attribute in node.attribute if attribute.name in readable), None)


def _decode(stored: TensorProto | AttributeProto) -> NDArray[np.generic]:
    if isinstance(stored, TensorProto):
        return array_of(stored)
    match stored.name:
        case "value_float":
            return np.array(stored.f, np.float32)
        case "value_floats":
            return np.array(stored.floats, np.float32)
        case "value_int":
            return np.array(stored.i, np.int64)
        case "value_ints":
            return np.array(stored.ints, np.int64)
    return numpy_helper.to_array(stored.t)
