"""What ONNX Runtime takes and nobody else: nodes in any order, sparse initializers, outputs without a type.

A model is brought into the form that the checker, shape inference and the version converter want, where it
has another one, and its weights to where they can be quantized. Nothing else is touched.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import numpy as np
from onnx import GraphProto, ModelProto, SparseTensorProto, TensorProto, numpy_helper, shape_inference

from onnx_dfmpc.model.constants import node_inputs
from onnx_dfmpc.model.lift import inline_weighted_functions, lift_weights
from onnx_dfmpc.model.moved_weights import fold_moved_weights
from onnx_dfmpc.model.protobuf import graphs, skeleton


def normalize(proto: ModelProto) -> None:
    """Sort nodes, fill in sparse initializers, and give outputs a type, in place, where that is missing; move
    weights to the main graph.
    """
    inline_weighted_functions(proto)
    for graph in graphs(proto.graph):
        _sort(graph)
        _densify(graph)
    fold_moved_weights(proto)
    lift_weights(proto)
    if any(not value.type.tensor_type.HasField("shape") for value in proto.graph.output):
        _complete_outputs(proto)


def _sort(graph: GraphProto) -> None:
    """Put nodes behind those that make what they read; a graph with a circle stays as it is."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    before = [
        {producer[name] for name in node_inputs(node) if name in producer} - {index}
        for index, node in enumerate(graph.node)
    ]
    if all(not needed or max(needed) < index for index, needed in enumerate(before)):
        return
    readers: dict[int, list[int]] = {}
    for index, needed in enumerate(before):
        for other in needed:
            readers.setdefault(other, []).append(index)
    missing = [len(needed) for needed in before]
    ready = deque(index for index, count in enumerate(missing) if not count)
    order: list[int] = []
    while ready:
        index = ready.popleft()
        order.append(index)
        for reader in readers.get(index, ()):
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(order) == len(graph.node):
        nodes = [graph.node[index] for index in order]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _densify(graph: GraphProto) -> None:
    """Write sparse initializers out; runtimes do so, too, when they load them."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    del graph.sparse_initializer[:]


def _dense(sparse: SparseTensorProto) -> TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    dense = np.zeros(shape, values.dtype)
    dense.reshape(-1)[flat] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _complete_outputs(proto: ModelProto) -> None:
    """Types and shapes of outputs that have none, as far as they can be inferred."""
    outline = skeleton(proto)
    with suppress(Exception):  # whatever is wrong with the model, the checks say so
        inferred = shape_inference.infer_shapes(outline, data_prop=True)
        found = {value.name: value for value in inferred.graph.output}
        for value in proto.graph.output:
            if not value.type.tensor_type.HasField("shape"):
                value.type.CopyFrom(found[value.name].type)
