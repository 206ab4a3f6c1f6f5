"""Walk a graph and let every operator act on the statistics of its inputs.

A value is a constant (also what exporters compute from shapes), a `Signal` (a random field, perhaps with its elements moved about), or
`Unknown` with the reason why nothing is known of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnx_dfmpc.graph import ConstantTable
from onnx_dfmpc.graph.constants import outer_names
from onnx_dfmpc.graph.protobuf import subgraphs
from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics import operators, views
from onnx_dfmpc.statistics.activations import ACTIVATIONS, activation
from onnx_dfmpc.statistics.field import Field, Kernel, Lags, filtered, patches
from onnx_dfmpc.statistics.kinship import Activated, Filtered
from onnx_dfmpc.statistics.moments import Window
from onnx_dfmpc.statistics.windows import window_of

Constant = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Signal:
    """A random tensor of batch size 1: a field, and which of its elements each element is (None: all, in order)."""

    field: Field
    labels: views.Labels | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return (1, self.field.channels, *self.field.size) if self.labels is None else self.labels.shape

    @property
    def moved(self) -> views.Labels:
        """Labels of all elements."""
        return views.labels(self.shape) if self.labels is None else self.labels


@dataclass(frozen=True)
class Unknown:
    """Nothing is known of a value, and why."""

    reason: str


Value = Constant | Signal | Unknown


class NotCovered(Exception):
    """An operator, or a use of it, that has no rule; the text says which."""


class Propagation:
    """Values of a graph's tensors, node by node.

    Parameters
    ----------
    proto : ModelProto
    inputs : mapping
        Field of every input of the graph.
    """

    def __init__(self, proto: ModelProto, inputs: Mapping[str, Field]) -> None:
        self.proto = proto
        self.table = ConstantTable(proto)
        self.values: dict[str, Value] = {name: Signal(field) for name, field in inputs.items()}
        self._waiting = Counter(name for node in proto.graph.node for name in _reads(node))
        self._birth = len(inputs)

    def birth(self) -> int:
        """Number of the next field."""
        self._birth += 1
        return self._birth

    def value(self, name: str) -> Value:
        """What is known of a tensor."""
        if name in self.values:
            return self.values[name]
        if name in self.table:
            return self.table[name]
        return Unknown(f"nothing is known of tensor {name!r}")

    def constant(self, name: str) -> Constant:
        """A tensor that has to be constant."""
        value = self.value(name)
        if not isinstance(value, np.ndarray):
            raise NotCovered(f"{name!r} is not constant")
        return value

    def field(self, name: str) -> Field:
        """A tensor as a field, channels on axis 1."""
        value = self.value(name)
        if isinstance(value, Unknown):
            raise NotCovered(value.reason)
        if not isinstance(value, Signal):
            raise NotCovered(f"{name!r} is constant")
        if value.labels is None:
            return value.field
        if value.labels.ndim < 2 or value.labels.shape[0] != 1:
            raise NotCovered(f"{name!r} has no axis of channels")
        found = views.read(value.field, value.labels, self.birth())
        if found is None:
            raise NotCovered(f"channels of {name!r} mix those of what it was made from")
        self.values[name] = Signal(found)
        return found

    def run(self, node: NodeProto) -> None:
        """Work out the outputs of a node, and forget what no node is left to read."""
        try:
            outputs = self._outputs(node)
        except NotCovered as error:
            outputs = [Unknown(str(error))] * len(node.output)
        for name, value in zip(node.output, outputs, strict=False):
            if name:
                self.values[name] = value
        for name in _reads(node):
            self._waiting[name] -= 1
            if not self._waiting[name]:
                self.values.pop(name, None)
        self._forget()

    def _forget(self) -> None:
        """Where everything passes through one field, what lies before it is of no more use."""
        live = {value.field.birth: name for name, value in self.values.items() if isinstance(value, Signal)}
        if len(live) == 1:
            for name, value in self.values.items():
                if isinstance(value, Signal) and isinstance(value.field.origin, Activated):
                    origin = replace(value.field.origin, parent=replace(value.field.origin.parent, origin=None))
                    self.values[name] = replace(value, field=replace(value.field, origin=origin))
                elif isinstance(value, Signal):
                    self.values[name] = replace(value, field=replace(value.field, origin=None))

    def _outputs(self, node: NodeProto) -> list[Value]:
        if node.domain not in ("", "ai.onnx"):
            raise NotCovered(f"operator {node.domain}::{node.op_type}")
        values = {name: self.value(name) for name in node.input if name}
        for value in values.values():
            if isinstance(value, Unknown):
                raise NotCovered(value.reason)
        signals = [name for name, value in values.items() if isinstance(value, Signal)]
        if node.op_type == "Shape" and signals:
            values = {name: np.empty(self.values[name].shape, bool) for name in signals}  # type: ignore[union-attr]
            signals = []
        if not signals:
            if node.output[0] in self.table:
                return [self.table[node.output[0]]]
            return list(views.evaluate(node, values, self.proto))  # type: ignore[arg-type]
        if node.op_type in views.MOVING:
            return self._moved(node, signals, values)
        rule = RULES.get(node.op_type)
        if rule is None:
            raise NotCovered(f"operator {node.op_type} of node {node.name or node.output[0]!r}")
        return [rule(self, node)]

    def _moved(self, node: NodeProto, signals: list[str], values: dict[str, Value]) -> list[Value]:
        if signals != [node.input[0]]:
            raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} depends on the input")
        source = self.values[signals[0]]
        assert isinstance(source, Signal)
        feeds = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        if node.op_type == "Pad" and (attributes(node).get("mode", b"constant") != b"constant" or np.any(feeds.get(_third(node), 0))):
            raise NotCovered(f"Pad of node {node.name or node.output[0]!r} with other than zeros")
        moved = views.evaluate(node, {**feeds, signals[0]: source.moved}, self.proto)
        return [Signal(source.field, labels.astype(np.int64)) for labels in moved]


Rule = Callable[[Propagation, NodeProto], Value]


def _reads(node: NodeProto) -> list[str]:
    names = {name for name in node.input if name}
    for body in subgraphs(node):
        names.update(outer_names(body))
    return sorted(names)


def _third(node: NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def optional(walk: Propagation, node: NodeProto, position: int) -> Constant | None:
    """Constant input of a node, None where it is left out."""
    return walk.constant(node.input[position]) if len(node.input) > position and node.input[position] else None


def spatial(source: Field, name: str) -> Field:
    """The field, which must have spatial axes."""
    if not source.size:
        raise NotCovered(f"{name!r} has no spatial axes")
    return source


def conv_window(node: NodeProto, weight: Constant, size: tuple[int, ...]) -> Window:
    """Window of a convolution."""
    return window_of(attributes(node), weight.shape[2:], size)


def _conv(walk: Propagation, node: NodeProto) -> Value:
    source = spatial(walk.field(node.input[0]), node.input[0])
    weight = walk.constant(node.input[1]).astype(np.float64)
    bias = optional(walk, node, 2)
    at = conv_window(node, weight, source.size)
    group = attributes(node).get("group", 1)
    return Signal(operators.convolve(source, weight, 0.0 if bias is None else bias, at, group, patches(source, at, group), walk.birth()))


def _gemm(walk: Propagation, node: NodeProto) -> Value:
    given = attributes(node)
    if given.get("transA", 0):
        raise NotCovered(f"Gemm of node {node.name or node.output[0]!r} with transA")
    weight = walk.constant(node.input[1]).astype(np.float64) * given.get("alpha", 1.0)
    bias = optional(walk, node, 2)
    offset = 0.0 if bias is None else bias.reshape(-1) * given.get("beta", 1.0)
    return Signal(linear(walk.field(node.input[0]), weight if given.get("transB", 0) else weight.T, offset, walk.birth()))


def _matmul(walk: Propagation, node: NodeProto) -> Value:
    weight = walk.constant(node.input[1]).astype(np.float64)
    if weight.ndim != 2:
        raise NotCovered(f"MatMul of node {node.name or node.output[0]!r} with a stack of matrices")
    source, rank = features(walk, node.input[0])
    result = linear(source, weight.T, 0.0, walk.birth())
    return Signal(result) if rank == 2 else Signal(result, np.moveaxis(views.labels((1, result.channels, *result.size)), 1, -1))


def features(walk: Propagation, name: str) -> tuple[Field, int]:
    """A tensor as a field whose channels are its last axis, and its rank."""
    value = walk.value(name)
    if not isinstance(value, Signal):
        raise NotCovered(f"{name!r} is constant")
    rank = len(value.shape)
    if rank == 2:
        return walk.field(name), rank
    found = views.read(value.field, np.moveaxis(value.moved, -1, 1), walk.birth())
    if found is None:
        raise NotCovered(f"features of {name!r} mix channels of what it was made from")
    return found, rank


def linear(source: Field, weight: Array, offset: Array | float, birth: int) -> Field:
    """A matrix times the channels at every place; weight of shape (o, i)."""
    axes = len(source.size)
    kernel = Kernel(weight[..., None], np.zeros((1, axes), np.int64), (1,) * axes)
    lags = filtered(source.lags, kernel, source.size, source.size)
    return Field(weight @ source.mean + offset, lags, source.size, source.step, birth, Filtered(source, kernel))


def _batch_norm(walk: Propagation, node: NodeProto) -> Value:
    source = walk.field(node.input[0])
    gamma, beta, mean, var = (walk.constant(name).astype(np.float64) for name in node.input[1:5])
    factor = gamma / np.sqrt(var + attributes(node).get("epsilon", 1e-5))
    known = operators.anchor(source, mean, var, walk.birth())
    return Signal(operators.scale(known, factor, beta - factor * mean, walk.birth()))


def _activation(walk: Propagation, node: NodeProto) -> Value:
    value = walk.value(node.input[0])
    assert isinstance(value, Signal)
    constants = [optional(walk, node, position) for position in range(1, len(node.input))]
    function = activation(node.op_type, attributes(node), constants, value.field.channels)
    if function is None:
        raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} in this form")
    return Signal(operators.activate(value.field, function, walk.birth()), value.labels)


def _per_channel(walk: Propagation, name: str, shape: tuple[int, ...]) -> Array:
    """A constant as it meets each channel, averaged over places."""
    constant = np.broadcast_to(walk.constant(name).astype(np.float64), shape)
    average: Array = constant.mean(axis=(0, *range(2, len(shape))))
    return average


def _operands(walk: Propagation, node: NodeProto) -> tuple[str, str, bool]:
    """The signal, the other operand, and whether they change places."""
    first, second = node.input
    swapped = not isinstance(walk.value(first), Signal)
    return (second, first, True) if swapped else (first, second, False)


def _add(walk: Propagation, node: NodeProto) -> Value:
    sign = -1.0 if node.op_type == "Sub" else 1.0
    name, other, swapped = _operands(walk, node)
    a = walk.field(name)
    shape = (1, a.channels, *a.size)
    if not isinstance(walk.value(other), Signal):
        offset = _per_channel(walk, other, shape)
        return Signal(operators.scale(a, sign if swapped else 1.0, offset if swapped else sign * offset, walk.birth()))
    b = walk.field(other)
    if (b.channels, b.size) != (a.channels, a.size):
        raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} broadcasts")
    return Signal(operators.add(a, b, sign, walk.birth()))


def _multiply(walk: Propagation, node: NodeProto) -> Value:
    name, other, swapped = _operands(walk, node)
    a = walk.field(name)
    shape = (1, a.channels, *a.size)
    if not isinstance(walk.value(other), Signal):
        factor = _per_channel(walk, other, shape)
        if node.op_type == "Div" and swapped:
            raise NotCovered(f"Div of node {node.name or node.output[0]!r} by a variable")
        return Signal(operators.scale(a, 1 / factor if node.op_type == "Div" else factor, 0.0, walk.birth()))
    if node.op_type == "Div":
        raise NotCovered(f"Div of node {node.name or node.output[0]!r} by a variable")
    b = walk.field(other)
    for x, y in ((a, b), (b, a)):
        if isinstance(y.origin, Activated) and y.origin.parent.birth == x.birth:  # x times a function of x: SiLU, HardSwish in two nodes
            gate = y.origin.activation
            return Signal(operators.activate(x, lambda values, gate=gate: values * gate(values), walk.birth()))  # type: ignore[misc]
    if a.channels != b.channels:
        raise NotCovered(f"Mul of node {node.name or node.output[0]!r} broadcasts over channels")
    if int(np.prod(a.size)) < int(np.prod(b.size)):
        a, b = b, a
    return Signal(operators.multiply(a, b, walk.birth()))


def _concat(walk: Propagation, node: NodeProto) -> Value:
    parts = [walk.field(name) for name in node.input]
    axis = attributes(node)["axis"]
    if axis % (2 + len(parts[0].size)) != 1:
        raise NotCovered(f"Concat of node {node.name or node.output[0]!r} along axis {axis}")
    return Signal(operators.join(parts, walk.birth()))


def _pool(walk: Propagation, node: NodeProto) -> Value:
    source = spatial(walk.field(node.input[0]), node.input[0])
    given = attributes(node)
    at = window_of(given, tuple(given["kernel_shape"]), source.size)
    if node.op_type == "MaxPool":
        return Signal(operators.max_pool(source, at, walk.birth()))
    return Signal(operators.average_pool(source, at, walk.birth(), count_pads=bool(given.get("count_include_pad", 0))))


def _global_average(walk: Propagation, node: NodeProto) -> Value:
    return Signal(operators.global_average(walk.field(node.input[0]), walk.birth(), keep=True))


def _reduce_mean(walk: Propagation, node: NodeProto) -> Value:
    source = walk.field(node.input[0])
    given = attributes(node)
    rank = 2 + len(source.size)
    axes = given["axes"] if "axes" in given else np.ravel(optional(walk, node, 1) if len(node.input) > 1 else [])
    if sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
        raise NotCovered(f"ReduceMean of node {node.name or node.output[0]!r} over other axes than space")
    return Signal(operators.global_average(source, walk.birth(), keep=bool(given.get("keepdims", 1))))


def _resize(walk: Propagation, node: NodeProto) -> Value:
    source = spatial(walk.field(node.input[0]), node.input[0])
    shaped = [walk.constant(name) for name in node.input[1:] if name]
    values = next((value for value in reversed(shaped) if value.size == 2 + len(source.size)), None)
    if values is None and "scales" in attributes(node):
        values = np.asarray(attributes(node)["scales"], np.float32)
    if values is None:
        raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} to an unknown size")
    size = tuple(int(v) if values.dtype.kind == "i" else int(n * v) for n, v in zip(source.size, values[2:], strict=True))
    return Signal(operators.enlarge(source, size, walk.birth()))


def _conv_transpose(walk: Propagation, node: NodeProto) -> Value:
    """Each output place meets one tap in every stride; statistics are those of the average place."""
    source = spatial(walk.field(node.input[0]), node.input[0])
    given = attributes(node)
    weight = walk.constant(node.input[1]).astype(np.float64)
    bias = optional(walk, node, 2)
    axes = len(source.size)
    strides = tuple(given.get("strides", (1,) * axes))
    pads = tuple(given.get("pads", (0,) * 2 * axes))
    extra = tuple(given.get("output_padding", (0,) * axes))
    dilations = tuple(given.get("dilations", (1,) * axes))
    group = given.get("group", 1)
    size = tuple(
        s * (n - 1) + x + d * (k - 1) + 1 - b - a
        for n, s, x, d, k, b, a in zip(source.size, strides, extra, dilations, weight.shape[2:], pads[:axes], pads[axes:], strict=True)
    )
    i, r = weight.shape[:2]
    rows = weight.reshape(group, i // group, r, -1).swapaxes(1, 2).reshape(group * r, i // group, -1)
    offsets = -np.array(np.unravel_index(np.arange(rows.shape[-1]), weight.shape[2:])).T * np.array(dilations) + np.array(pads[:axes])
    kernel = Kernel(rows / float(np.prod(strides)), offsets, (1,) * axes, group)
    wide = operators.enlarge(source, tuple(n * s for n, s in zip(source.size, strides, strict=True)), walk.birth())
    lags = filtered(wide.lags, kernel, wide.size, wide.size)
    mean = (kernel.weight.sum(axis=-1).reshape(group, r, -1) @ source.mean.reshape(group, -1, 1)).reshape(-1)
    at = replace_step(wide, size)
    return Signal(Field(mean + (0.0 if bias is None else bias), lags, size, at.step, walk.birth(), Filtered(wide, kernel)))


def replace_step(source: Field, size: tuple[int, ...]) -> Field:
    return replace(source, size=size)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(["Add", "Sub"], _add),
    **dict.fromkeys(["Mul", "Div"], _multiply),
    **dict.fromkeys(["AveragePool", "MaxPool"], _pool),
    **dict.fromkeys(["Resize", "Upsample"], _resize),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "MatMul": _matmul,
    "ReduceMean": _reduce_mean,
}
for _ in ("Dropout", "Cast"):
    RULES[_] = lambda walk, node: walk.value(node.input[0])
