"""Arithmetic on shapes, evaluated as far as shapes are known.

A dimension is a number, or the name of an open one, such as a batch. A tensor of numbers becomes a constant;
the shape of a Reshape may hold one open dimension, which is written as 0 where the data has it at the same
place, else -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc.model.protobuf import skeleton, subgraphs, value_names

Known = NDArray[np.object_]
"""Integers, and names of open dimensions; None for what is not known."""

ROUNDS = 64
"""Shapes after a folded Reshape are known in the next round only. More than any network has in a row."""

SMALL = 64
"""Elements of a tensor that may be a shape."""

INTEGERS = (TensorProto.INT64, TensorProto.INT32)


def fold_shapes(proto: ModelProto) -> None:
    """Make constants of arithmetic on known shapes, in place, and remove what nobody reads then."""
    _constants_to_initializers(proto)
    for _ in range(ROUNDS):
        if not _fold_round(proto):
            break
    drop_dead(proto)


def _constants_to_initializers(proto: ModelProto) -> None:
    """Constant nodes are initializers with more bytes."""
    graph = proto.graph
    outputs = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type != "Constant" or node.output[0] in outputs or len(node.attribute) != 1:
            continue
        (attribute,) = node.attribute
        kinds = {
            "value_int": np.int64,
            "value_ints": np.int64,
            "value_float": np.float32,
            "value_floats": np.float32,
        }
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
        elif attribute.name in kinds:
            values = np.array(helper.get_attribute_value(attribute), kinds[attribute.name])
            tensor = numpy_helper.from_array(values, node.output[0])
        else:
            continue
        graph.initializer.append(tensor)
        del graph.node[index]


def _fold_round(proto: ModelProto) -> bool:
    """One round: whether anything became a constant."""
    graph = proto.graph
    shapes = inferred_shapes(proto)
    known: dict[str, Known] = {
        tensor.name: numpy_helper.to_array(tensor).astype(object)
        for tensor in graph.initializer
        if tensor.data_type in INTEGERS and np.prod(tensor.dims, dtype=int) <= SMALL
    }
    constants = set(known)
    for node in graph.node:
        rule = RULES.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            continue
        try:
            value = rule(node, known, shapes)
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
            continue  # something that it needs is not known
        if value is not None and (found := np.asarray(value, object)).size <= SMALL:
            known[node.output[0]] = found
    folded = False
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in known or name in constants or name in outputs:
                continue
            value = known[name]
            if node.op_type == "Reshape" and position == 1:
                value = _reshaped(value, shapes.get(node.input[0]))
            elif node.output[0] in known:
                continue  # arithmetic itself goes when nobody reads it
            if value is None or not all(isinstance(item, int | np.integer) for item in value.flat):
                continue
            kind = np.int32 if shapes.get(f"{name}::type") == (TensorProto.INT32,) else np.int64
            constant = f"{node.output[0]}::{position}"
            graph.initializer.append(numpy_helper.from_array(value.astype(kind), constant))
            node.input[position] = constant
            folded = True
    if folded:
        drop_dead(proto)
    return folded


def _reshaped(value: Known, data: tuple[object, ...] | None) -> Known | None:
    """Shape for a Reshape with open dimensions written as 0 or -1; None where that does not do."""
    items: list[object] = list(value)
    if any(item == 0 for item in items if isinstance(item, int | np.integer)):
        return None  # it copies a dimension already, or there is nothing to reshape
    for index, item in enumerate(items):
        if isinstance(item, str) and data is not None and index < len(data) and data[index] == item:
            items[index] = 0
    unknown = [index for index, item in enumerate(items) if not isinstance(item, int | np.integer)]
    if len(unknown) > 1 or (unknown and -1 in items):
        return None
    for index in unknown:
        items[index] = -1
    return np.array(items, object)


def inferred_shapes(proto: ModelProto) -> dict[str, tuple[object, ...]]:
    """Shapes of tensors as far as they can be inferred: numbers, names of open dimensions, or None."""
    inferred = onnx.shape_inference.infer_shapes(skeleton(proto), data_prop=True).graph
    found: dict[str, tuple[object, ...]] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in kind.shape.dim
            )
        found[f"{value.name}::type"] = (kind.elem_type,)
    return found


Rule = Callable[[NodeProto, Mapping[str, Known], Mapping[str, tuple[object, ...]]], object]


def _attributes(node: NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _shape(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
    dims = list(shapes[node.input[0]])
    bounds = _attributes(node)
    start, end = bounds.get("start", 0), bounds.get("end", len(dims))
    assert isinstance(start, int)
    assert isinstance(end, int)
    return np.array(dims, object)[start:end]


def _gather(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
    if _attributes(node).get("axis", 0) != 0:
        return None
    data, indices = known[node.input[0]], known[node.input[1]]
    return np.array(data[indices.astype(np.int64)], object)


def _unsqueeze(
    node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]
) -> object:
    data = known[node.input[0]]
    return data.reshape(1) if data.ndim == 0 else None


def _squeeze(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
    data = known[node.input[0]]
    return data.reshape(()) if data.shape == (1,) else None


def _concat(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
    return np.concatenate([known[name] for name in node.input])


def _slice(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
    data, *bounds = (known[name] for name in node.input if name)
    if data.ndim != 1:
        return None
    start, end = (int(bounds[position][0]) for position in (0, 1))
    step = int(bounds[3][0]) if len(bounds) > 3 else 1
    return data[slice(start, None if end >= len(data) else end, step)]


def _cast(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
    return known[node.input[0]] if _attributes(node)["to"] in INTEGERS else None


def _elementwise(compute: Callable[[int, int], int]) -> Rule:
    def rule(node: NodeProto, known: Mapping[str, Known], shapes: Mapping[str, tuple[object, ...]]) -> object:
        a, b = np.broadcast_arrays(known[node.input[0]], known[node.input[1]])
        values = [
            compute(int(x), int(y))
            if not isinstance(x, str) and not isinstance(y, str) and None not in (x, y)
            else None
            for x, y in zip(a.flat, b.flat, strict=True)
        ]
        made = np.empty(len(values), object)
        made[:] = values
        return made.reshape(a.shape)

    return rule


RULES: dict[str, Rule] = {
    "Shape": _shape,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Cast": _cast,
    "Identity": lambda node, known, shapes: known[node.input[0]],
    "Add": _elementwise(lambda x, y: x + y),
    "Sub": _elementwise(lambda x, y: x - y),
    "Mul": _elementwise(lambda x, y: x * y),
    # ONNX divides integers towards zero.
    "Div": _elementwise(lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)),
}
"""Integers that an operator makes of integers."""


def read_names(proto: ModelProto) -> Counter[str]:
    """How often each tensor is read, bodies and outputs of the graph included."""
    counted: Counter[str] = Counter(value.name for value in proto.graph.output)
    for node in proto.graph.node:
        counted.update(node.input)
        for body in subgraphs(node):
            counted.update(value_names(body))
    return counted


def drop_dead(proto: ModelProto) -> None:
    """Remove nodes and constants that nobody reads; graph inputs stay."""
    graph = proto.graph
    read = read_names(proto)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if not any(read[name] for name in node.output if name):
            read.subtract(node.input)
            for body in subgraphs(node):
                read.subtract(value_names(body))
            del graph.node[index]
    listed = {value.name for value in graph.input}
    for index in reversed(range(len(graph.initializer))):
        name = graph.initializer[index].name
        if not read[name] and name not in listed:
            del graph.initializer[index]
