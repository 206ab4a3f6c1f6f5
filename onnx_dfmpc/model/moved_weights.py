"""Weights of recurrent layers that nodes put together from constants, computed once.

torch keeps the gates of LSTM and GRU in its own order, and its exporter lets Slice, Concat and Unsqueeze
bring them into that of ONNX, at every run unless a runtime folds them. Here they are folded, as runtimes do:
the weight is then a constant that can be quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.model.protobuf import defined_names, graphs, subgraphs
from onnx_dfmpc.spec.ops import PLAIN, op_key

MOVES = frozenset({"Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that put numbers elsewhere and change none."""


def fold_moved_weights(proto: ModelProto) -> None:
    """Replace, in place, weights of recurrent layers that are put together from constants by initializers of
    the main graph, wherever that takes no more bytes; equal ones are one.

    Before IR version 4 initializers have to be graph inputs: then all stays where it is.
    """
    scopes = list(graphs(proto.graph))
    if proto.ir_version >= 4 and any(_weight_inputs(node) for graph in scopes for node in graph.node):
        folding = _Folding(proto, {name for graph in scopes for name in defined_names(graph)})
        folding.fold(proto.graph, {})
        _drop(proto.graph, folding.spent)


def _weight_inputs(node: NodeProto) -> list[int]:
    """Positions of the weights of a recurrent layer; tables of Gather are wherever they are."""
    key = op_key(node.op_type, node.domain)
    return [] if key == "Gather" else [p for p in PLAIN.get(key, {}) if p < len(node.input)]


class _Folding:
    """``made`` are names of folded weights by what is in them, ``spent`` all that made them."""

    def __init__(self, proto: ModelProto, names: set[str]) -> None:
        self.proto, self.names = proto, names
        self.made: dict[tuple[object, ...], str] = {}
        self.spent: set[str] = set()

    def fold(self, graph: GraphProto, outer: Mapping[str, TensorProto]) -> None:
        """Fold the weights of a graph that sees these constants, and those of its bodies."""
        listed = {value.name for value in graph.input}
        constants = {**outer, **{one.name: one for one in graph.initializer if one.name not in listed}}
        moves: dict[str, NodeProto] = {}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
            elif node.op_type in MOVES and not node.domain:
                moves[node.output[0]] = node
        for node in graph.node:
            for position in _weight_inputs(node):
                name = node.input[position]
                chain, sources = _origin(name, moves, constants)
                value = _value(self.proto, name, chain, sources) if chain else None
                if value is not None:
                    node.input[position] = self._initializer(value, name)
                    self.spent |= {output for one in chain for output in one.output} | sources.keys()
            for body in subgraphs(node):
                self.fold(body, constants)

    def _initializer(self, value: NDArray[np.generic], name: str) -> str:
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self.made:
            self.made[key] = next(new for i in count(1) if (new := f"{name}_{i}") not in self.names)
            self.names.add(self.made[key])
            self.proto.graph.initializer.append(numpy_helper.from_array(value, self.made[key]))
        return self.made[key]


def _origin(
    name: str, moves: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """Nodes that put a tensor together, in the order of the graph, and what from; no nodes where not all of
    that is constant and in the file.
    """
    chain: set[str] = set()
    sources: dict[str, TensorProto] = {}
    missing = [name]
    while missing:
        wanted = missing.pop()
        if wanted in moves and wanted not in chain:
            chain.add(wanted)
            missing += filter(None, moves[wanted].input)
        elif wanted in constants:
            sources[wanted] = constants[wanted]
        elif wanted not in chain:
            return [], {}
    if any(source.data_location == TensorProto.EXTERNAL for source in sources.values()):
        return [], {}
    return [node for output, node in moves.items() if output in chain], sources


def _value(
    proto: ModelProto, name: str, chain: Sequence[NodeProto], sources: Mapping[str, TensorProto]
) -> NDArray[np.generic] | None:
    """What the chain makes of its sources; None for no floats, and for more of them than there were."""
    graph = helper.make_graph(chain, "moves", [], [helper.make_empty_tensor_value_info(name)])
    for source, tensor in sources.items():
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = source
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    (value,) = map(np.asarray, ReferenceEvaluator(model).run(None, {}))
    floats = value.dtype.kind == "f" and value.size <= max(prod(one.dims) for one in sources.values())
    return value if floats else None


def _drop(graph: GraphProto, spent: set[str]) -> None:
    """Remove what was spent and nobody reads any more, here and in bodies."""
    scopes = list(graphs(graph))
    while True:
        read = {value.name for scope in scopes for value in scope.output}
        read.update(name for scope in scopes for node in scope.node for name in node.input)
        dead = 0
        for scope in scopes:
            kept = read | {value.name for value in scope.input}
            nodes = [i for i, node in enumerate(scope.node) if spent.intersection(node.output) - kept]
            tensors = [i for i, tensor in enumerate(scope.initializer) if tensor.name in spent - kept]
            for index in reversed(nodes):
                del scope.node[index]
            for index in reversed(tensors):
                del scope.initializer[index]
            dead += len(nodes) + len(tensors)
        if not dead:
            return
