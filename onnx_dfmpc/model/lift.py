"""Weights out of bodies and local functions, to where there is one place for them: the main graph.

A body reads what the graphs around it have, by name. So a weight of a body can be an initializer of the main
graph, and whatever unpacks its codes stands there too, where runtimes compute it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from math import prod

from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, inliner

from onnx_dfmpc.model.protobuf import FLOATS, defined_names, graphs, subgraphs
from onnx_dfmpc.spec.ops import LEAST_WEIGHTS, OPS, PLAIN, op_key


def lift_weights(proto: ModelProto) -> None:
    """Move the weights of bodies of If, Loop and Scan to the main graph, in place.

    Before IR version 4 initializers have to be graph inputs: then all stays where it is.
    """
    bodies = [inner for node in proto.graph.node for body in subgraphs(node) for inner in graphs(body)]
    if proto.ir_version < 4 or not any(True for body in bodies for _ in _weights(body)):
        return
    defined = Counter(name for graph in (proto.graph, *bodies) for name in defined_names(graph))
    for body in bodies:
        renamed: dict[str, str] = {}
        moved: set[str] = set()
        for tensor in list(_weights(body)):
            name = tensor.name
            if defined[name] > 1:  # branches often use the same names for weights of their own
                name = next(new for i in count(1) if not defined[new := f"{tensor.name}_{i}"])
                defined[name] += 1
                renamed[tensor.name] = name
            lifted = proto.graph.initializer.add()
            lifted.CopyFrom(tensor)
            lifted.name = name
            moved.add(tensor.name)
        for position in reversed(range(len(body.initializer))):
            if body.initializer[position].name in moved:
                del body.initializer[position]
        for position in reversed(range(len(body.node))):
            if not moved.isdisjoint(body.node[position].output):
                del body.node[position]
        _rename(body, renamed)


def inline_weighted_functions(proto: ModelProto) -> None:
    """Put the bodies of local functions that have weighted nodes where they are called, in place.

    Functions that are operators of their own (`OPS`), and those of another opset than the model, stay.
    """
    weighted = {key for key in (*OPS, *PLAIN) if key != "Gather"}  # which is most often about shapes
    chosen: dict[str, FunctionProto] = {}
    while True:
        # Who calls one that is put in gets its weighted nodes.
        more = {
            key: function
            for function in proto.functions
            if (key := op_key(function.name, function.domain)) not in chosen
            and key not in OPS
            and not _operators(function).isdisjoint(weighted | chosen.keys())
        }
        if not more:
            break
        chosen |= more
    if chosen:
        with suppress(Exception):  # then they stay, and their weights are listed
            ids = [(function.domain, function.name) for function in chosen.values()]
            proto.CopyFrom(inliner.inline_selected_functions(proto, ids))


def _weights(body: GraphProto) -> Iterator[TensorProto]:
    """Constants of a body that are worth a move; those of Constant nodes by the name of the output."""
    seen = {value.name for value in (*body.input, *body.output)}
    for tensor in body.initializer:
        if tensor.name not in seen and _is_weight(tensor):
            yield tensor
    for node in body.node:
        if node.op_type == "Constant" and node.output[0] not in seen:
            for attribute in node.attribute:
                if attribute.name == "value" and _is_weight(attribute.t):
                    named = TensorProto()
                    named.CopyFrom(attribute.t)
                    named.name = node.output[0]
                    yield named


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and len(tensor.dims) > 1 and prod(tensor.dims) >= LEAST_WEIGHTS


def _rename(body: GraphProto, names: Mapping[str, str]) -> None:
    """Let the nodes of a body, and of bodies in it, read other names."""
    for graph in graphs(body) if names else ():
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]


def _operators(function: FunctionProto) -> set[str]:
    bodies = [inner for node in function.node for body in subgraphs(node) for inner in graphs(body)]
    nodes = (*function.node, *(node for body in bodies for node in body.node))
    return {op_key(node.op_type, node.domain) for node in nodes}
