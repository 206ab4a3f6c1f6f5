"""Weights and biases that nodes put together from constants, computed once.

Exporters leave such nodes to the runtime, which computes them when it loads the model: half-size exports
store float16 and cast it, torch keeps the gates of LSTM and GRU in its own order, and matrices are transposed
where they are used. Here they are folded, as runtimes do: the weight is then a constant that can be
quantized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.model.protobuf import FLOATS, defined_names, graphs, subgraphs
from onnx_dfmpc.spec.ops import LEAST_WEIGHTS, OPS, PLAIN, op_key

MOVES = frozenset({"Cast", "Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose result is the same bit for bit, whoever computes it."""

PER_CHANNEL = {"BatchNormalization": (1, 2, 3, 4), **dict.fromkeys(("Add", "Div", "Mul", "Sub"), (0, 1))}
"""Inputs that may hold a number per channel: biases and batch norm, in one node or in several."""


def fold_moved_weights(proto: ModelProto) -> None:
    """Replace, in place, what layers read and nodes put together from constants by initializers of the main
    graph, wherever nobody else reads it and it has no more numbers; equal ones are one.

    Numbers that are still in their file stay as they are: folded, they would be in memory. So does everything
    before IR version 4, where initializers have to be graph inputs.
    """
    if proto.ir_version < 4:
        return
    scopes = list(graphs(proto.graph))
    names = {name for graph in scopes for name in defined_names(graph)}
    made: dict[tuple[object, ...], str] = {}
    spent: set[str] = set()
    computed = _computed(proto.graph, _kept(proto.graph), _read(scopes), {}, {})
    for node, position, chain, sources in list(computed):
        name = node.input[position]
        value = _value(proto, name, chain, sources)
        if value is None or not _is_worth(node, position, value):
            continue
        key = (str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).data).digest())
        if key not in made:
            made[key] = next(new for i in count(1) if (new := f"{name}_{i}") not in names)
            names.add(made[key])
            proto.graph.initializer.append(numpy_helper.from_array(value, made[key]))
        node.input[position] = made[key]
        spent |= {output for one in chain for output in one.output} | sources.keys()
    if spent:
        _drop(proto.graph, spent)


def _is_move(node: NodeProto) -> bool:
    return op_key(node.op_type, node.domain) in MOVES


def _parameters(node: NodeProto) -> tuple[int, ...]:
    """Positions of the inputs of a node that may be a weight, or numbers per channel."""
    key = op_key(node.op_type, node.domain)
    if key in OPS:
        bias = OPS[key].bias_input
        positions: Sequence[int] = (1,) if bias is None else (1, bias)
    else:
        positions = (*PLAIN.get(key, ()), *PER_CHANNEL.get(key, ()))
    return tuple(position for position in positions if position < len(node.input))


def _is_worth(node: NodeProto, position: int, value: NDArray[np.generic]) -> bool:
    """Whether a value is what can be quantized there, or small."""
    key = op_key(node.op_type, node.domain)
    if key in OPS and position == 1:
        return OPS[key].fits(value.shape)
    if key in PLAIN:
        return value.size >= LEAST_WEIGHTS
    return value.size == max(value.shape, default=1)


def _kept(graph: GraphProto) -> set[str]:
    """Names that somebody reads otherwise than as a parameter, or computes such a thing from."""
    kept = {value.name for value in graph.output}
    for node in reversed(graph.node):
        for body in subgraphs(node):
            kept |= _kept(body)
        if not _is_move(node):
            places = _parameters(node)
            kept.update(name for position, name in enumerate(node.input) if position not in places)
        elif not kept.isdisjoint(node.output):
            kept.update(node.input)
    return kept


def _read(scopes: Sequence[GraphProto]) -> set[str]:
    """Names that are read as parameters, those that Identity nodes only pass on included."""
    nodes = [node for graph in scopes for node in graph.node]
    passed: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "Identity" and node.input and node.output:
            passed[node.output[0]] = passed.get(node.input[0], node.input[0])
    read = {node.input[position] for node in nodes for position in _parameters(node)}
    made = {name for node in nodes if node.op_type != "Constant" for name in node.output}
    return read | ({passed[name] for name in read if name in passed} - made)


def _computed(
    graph: GraphProto,
    kept: set[str],
    parameters: set[str],
    outer: Mapping[str, TensorProto],
    moved: Mapping[str, NodeProto],
) -> Iterator[tuple[NodeProto, int, list[NodeProto], dict[str, TensorProto]]]:
    """Inputs that are put together from constants, in a graph and its bodies: the node, the position, the
    nodes that do it, in the order of the graph, and what from.

    ``kept`` are the names of `_kept`, ``parameters`` those that are read as such somewhere: to compute from
    either would leave it where it is, beside the result. ``outer`` are the constants that the graph sees,
    ``moved`` what nodes around it put together.
    """
    listed = {value.name for value in graph.input}
    constants = {**outer, **{one.name: one for one in graph.initializer if one.name not in listed}}
    moves = dict(moved)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        elif _is_move(node) and node.output:
            moves[node.output[0]] = node
    for node in graph.node:
        # What reads constants alone is a constant itself, such as scales that are unpacked.
        fixed = all(name in constants or name in moves for name in node.input)
        for position in () if fixed else _parameters(node):
            name = node.input[position]
            chain, sources = _origin(name, moves, constants) if name not in kept else ([], {})
            floats = {source for source, tensor in sources.items() if tensor.data_type in FLOATS}
            between = {output for one in chain for output in one.output if output != name}
            before = floats | between
            if chain and before.isdisjoint(kept) and before.isdisjoint(parameters):
                yield node, position, chain, sources
        for body in subgraphs(node):
            yield from _computed(body, kept, parameters, constants, moves)


def _origin(
    name: str, moves: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """Nodes that put a tensor together, in the order of the graph, and what from; no nodes where not all of
    that is constant and in memory, where there are no floats in it, and where it is only passed on, which
    others see through.
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
    nodes = [node for output, node in moves.items() if output in chain]
    if (
        all(node.op_type == "Identity" for node in nodes)
        or any(source.data_location == TensorProto.EXTERNAL for source in sources.values())
        or not any(source.data_type in FLOATS for source in sources.values())
    ):
        return [], {}
    return nodes, sources


def _value(
    proto: ModelProto, name: str, chain: Sequence[NodeProto], sources: Mapping[str, TensorProto]
) -> NDArray[np.generic] | None:
    """What the chain makes of its sources; None for no floats, and for more of them than there were."""
    graph = helper.make_graph(chain, "moves", [], [helper.make_empty_tensor_value_info(name)])
    for source, tensor in sources.items():
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = source
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    try:
        (value,) = map(np.asarray, ReferenceEvaluator(model).run(None, {}))
    except Exception:  # whatever is wrong with the model, the checks say so
        return None
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
