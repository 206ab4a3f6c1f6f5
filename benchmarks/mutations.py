"""Random changes to a model: of the bytes of its file, or of its graph, from hardly any to nonsense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Random = np.random.Generator
T = TypeVar("T")


def pick(options: Sequence[T], rng: Random) -> T:
    """One of some; IndexError where there is none."""
    if not options:
        raise IndexError("nothing to choose from")
    return options[int(rng.integers(len(options)))]


def changed_bytes(data: bytes, rng: Random) -> bytes:
    """A file with a few bytes changed, cut or doubled."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(changed)))
        kind = rng.integers(4)
        if kind == 0:
            changed[at] = int(rng.integers(256))
        elif kind == 1:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[at : at + int(rng.integers(1, 64))]
        else:
            changed[at:at] = changed[at : at + int(rng.integers(1, 64))]
        if not changed:
            break
    return bytes(changed[: int(rng.integers(1, len(changed) + 1))] if rng.integers(10) == 0 else changed)


# What leaves the model sound, as a rule.


def _weights(model: ModelProto, rng: Random) -> None:
    """Weights that are larger, smaller, equal, sparse, or have channels of zeros."""
    tensor = pick([one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT], rng)
    values = numpy_helper.to_array(tensor).copy()
    changes: tuple[Callable[[], object], ...] = (
        lambda: values * np.float32(10.0 ** rng.integers(-12, 13)),
        lambda: values * (rng.random(values.shape) < 0.1),
        lambda: np.full_like(values, rng.normal()),
        lambda: values * (np.arange(len(values)) % 3 > 0).reshape(-1, *[1] * (values.ndim - 1)),
        lambda: np.zeros_like(values),
        lambda: np.sign(values),
    )
    new = np.asarray(pick(changes, rng)(), np.float32).reshape(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))


UNARY = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Identity", "Abs", "Neg", "Elu", "Softplus", "Exp", "HardSigmoid",
    "Sqrt", "Floor", "Softmax", "Reciprocal", "Log", "Erf", "Sign", "Ceil", "Selu", "Softsign",
)  # fmt: skip


def _activation(model: ModelProto, rng: Random) -> None:
    node = pick([node for node in model.graph.node if node.op_type in UNARY], rng)
    node.op_type = pick(UNARY, rng)
    del node.attribute[:]


def _insert(model: ModelProto, rng: Random) -> None:
    """A node on an edge."""
    at = int(rng.integers(len(model.graph.node)))
    node = model.graph.node[at]
    place = int(rng.integers(len(node.input)))
    name = f"inserted_{len(model.graph.node)}"
    new = helper.make_node(pick(UNARY, rng), [node.input[place]], [name])
    node.input[place] = name
    model.graph.node.insert(at, new)


def _output(model: ModelProto, rng: Random) -> None:
    """An inner tensor is an output, too."""
    name = pick([name for node in model.graph.node for name in node.output], rng)
    model.graph.output.append(ValueInfoProto(name=name))


def _only_inner_output(model: ModelProto, rng: Random) -> None:
    del model.graph.output[:]
    _output(model, rng)


def _input(model: ModelProto, rng: Random) -> None:
    """A constant is an input, with or without a default."""
    tensor = pick(model.graph.initializer, rng)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if rng.integers(2):
        model.graph.initializer.remove(tensor)


def _to_constant(model: ModelProto, rng: Random) -> None:
    tensor = pick(model.graph.initializer, rng)
    node = helper.make_node("Constant", [], [tensor.name], value=tensor)
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, node)


def _half(model: ModelProto, rng: Random) -> None:
    """A weight in float16, cast to float32 where it is read."""
    tensor = pick([one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT], rng)
    values = numpy_helper.to_array(tensor).astype(np.float16)
    node = helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT)
    tensor.CopyFrom(numpy_helper.from_array(values, f"{tensor.name}_half"))
    model.graph.node.insert(0, node)


def _rename(model: ModelProto, rng: Random) -> None:
    """A tensor with a name that nobody expects."""
    old = pick([name for node in model.graph.node for name in (*node.input, *node.output) if name], rng)
    new = pick(("a b", "", "/", "x" * 300, "\x1b[2J", "\u202eabc", "a\nb", "w1", "0", "<b>", "é", ":"), rng)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = new if value.name == old else value.name


def _node_name(model: ModelProto, rng: Random) -> None:
    node = pick(model.graph.node, rng)
    node.name = pick(("", "a b", "\x1b]0;x\x07", "../x", "x" * 500, model.graph.node[0].name), rng)


def _forget(model: ModelProto, rng: Random) -> None:
    """No shapes, types, names, or documentation."""
    kind = int(rng.integers(4))
    if kind == 0:
        del model.graph.value_info[:]
        model.graph.name = ""
    elif kind == 1:
        pick(model.graph.output, rng).ClearField("type")
    elif kind == 2:
        pick(model.graph.input, rng).type.tensor_type.ClearField("shape")
    else:
        pick(model.graph.input, rng).ClearField("type")


def _shuffle(model: ModelProto, rng: Random) -> None:
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in rng.permutation(len(nodes)))


def _share(model: ModelProto, rng: Random) -> None:
    """Two nodes of a kind read one weight."""
    first, second = (pick([node for node in model.graph.node if len(node.input) > 1], rng) for _ in "ab")
    first.input[1] = second.input[1]


def _fixed(model: ModelProto, rng: Random) -> None:
    """Another batch, or another size of the inputs."""
    dims = pick(model.graph.input, rng).type.tensor_type.shape.dim
    dimension = dims[0] if rng.integers(2) else pick(dims, rng)
    if rng.integers(3):
        dimension.dim_value = int(rng.integers(1, 12))
    else:
        dimension.dim_param = pick(("n", "batch", "h", "?", "a b"), rng)


def _opset(model: ModelProto, rng: Random) -> None:
    model.opset_import[0].version = int(rng.integers(7, 29))
    model.ir_version = max(model.ir_version, 8)


# What breaks it, as a rule.


def _drop_node(model: ModelProto, rng: Random) -> None:
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


def _swap_nodes(model: ModelProto, rng: Random) -> None:
    a, b = (pick(model.graph.node, rng) for _ in range(2))
    a.op_type, b.op_type = b.op_type, a.op_type


def _rewire(model: ModelProto, rng: Random) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)] + ["", "nowhere"]
    node = pick(model.graph.node, rng)
    node.input[int(rng.integers(len(node.input)))] = pick(names, rng)


def _attribute(model: ModelProto, rng: Random) -> None:
    attribute = pick([attribute for node in model.graph.node for attribute in node.attribute], rng)
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = int(rng.integers(-3, 1000))
    else:
        attribute.i = int(rng.integers(-3, 1000))
        attribute.f = float(rng.normal() * 10.0 ** rng.integers(-9, 30))


def _small_attribute(model: ModelProto, rng: Random) -> None:
    every = [attribute for node in model.graph.node for attribute in node.attribute]
    attribute = pick([one for one in every if one.ints or one.i], rng)
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = int(rng.integers(0, 4))
    else:
        attribute.i = int(rng.integers(0, 4))


def _dimension(model: ModelProto, rng: Random) -> None:
    dims = pick(model.graph.initializer, rng).dims
    dims[int(rng.integers(len(dims)))] = int(rng.integers(-1, 100))


def _type(model: ModelProto, rng: Random) -> None:
    pick(model.graph.initializer, rng).data_type = int(rng.integers(0, 26))


def _numbers(model: ModelProto, rng: Random) -> None:
    tensor = pick([one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT], rng)
    values = numpy_helper.to_array(tensor).copy().ravel()
    values[: int(rng.integers(1, 9))] = pick((np.nan, np.inf, -np.inf, 1e30, 1e-40, 0.0, -1.0), rng)
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))


def _versions(model: ModelProto, rng: Random) -> None:
    model.ir_version = int(rng.integers(0, 20))
    model.opset_import[0].version = int(rng.integers(0, 40))


def _repeat(model: ModelProto, rng: Random) -> None:
    model.graph.node.add().CopyFrom(pick(model.graph.node, rng))


def _external(model: ModelProto, rng: Random) -> None:
    tensor = pick(model.graph.initializer, rng)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", pick(("../x", "weights", "/etc/passwd"), rng)), ("offset", "-1")):
        tensor.external_data.add(key=key, value=value)


Edit = Callable[[ModelProto, Random], None]

MILD: tuple[Edit, ...] = (
    _weights, _weights, _activation, _insert, _output, _only_inner_output, _input, _to_constant, _half, _rename,
    _node_name, _forget, _shuffle, _share, _fixed, _opset, _small_attribute,
)  # fmt: skip
HARSH: tuple[Edit, ...] = (
    _drop_node, _swap_nodes, _rewire, _attribute, _dimension, _type, _numbers, _versions, _repeat, _external,
)  # fmt: skip


BYTES, NONSENSE, SOUND = "bytes changed", "graph changed to nonsense", "graph changed mildly"
CHANGES = (BYTES, NONSENSE, SOUND, SOUND, SOUND, SOUND)
"""Kinds of changes, as often as they are tried."""


def mutated(data: bytes, change: str, rng: Random) -> bytes:
    """A file with a change of a kind."""
    if change == BYTES:
        return changed_bytes(data, rng)
    model = ModelProto.FromString(data)
    for _ in range(int(rng.integers(1, 4))):
        try:
            pick(HARSH if change == NONSENSE else MILD, rng)(model, rng)
        except (ValueError, IndexError, TypeError):
            continue  # nothing left of what it changes
    return bytes(model.SerializeToString())
