"""What each ONNX operator does to the statistics of its inputs."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics import operators, views
from onnx_dfmpc.statistics.activations import ACTIVATIONS, activation
from onnx_dfmpc.statistics.field import Field, patches
from onnx_dfmpc.statistics.kinship import Activated
from onnx_dfmpc.statistics.propagate import Constant, Propagation, Rule, Signal, Value
from onnx_dfmpc.statistics.views import NotCovered
from onnx_dfmpc.statistics.windows import Window, attributes, window_of


def optional(walk: Propagation, node: NodeProto, position: int) -> Constant | None:
    """Constant input of a node, None where it is left out."""
    return (
        walk.constant(node.input[position]) if len(node.input) > position and node.input[position] else None
    )


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
    return Signal(
        operators.convolve(
            source, weight, 0.0 if bias is None else bias, at, group, patches(source, at, group), walk.birth()
        )
    )


def _gemm(walk: Propagation, node: NodeProto) -> Value:
    given = attributes(node)
    if given.get("transA", 0):
        raise NotCovered(f"Gemm of node {node.name or node.output[0]!r} with transA")
    weight = walk.constant(node.input[1]).astype(np.float64) * given.get("alpha", 1.0)
    bias = optional(walk, node, 2)
    offset = 0.0 if bias is None else bias.reshape(-1) * given.get("beta", 1.0)
    return Signal(
        operators.linear(
            walk.field(node.input[0]), weight if given.get("transB", 0) else weight.T, offset, walk.birth()
        )
    )


def _matmul(walk: Propagation, node: NodeProto) -> Value:
    weight = walk.constant(node.input[1]).astype(np.float64)
    if weight.ndim != 2:
        raise NotCovered(f"MatMul of node {node.name or node.output[0]!r} with a stack of matrices")
    source, rank = features(walk, node.input[0])
    result = operators.linear(source, weight.T, 0.0, walk.birth())
    return (
        Signal(result)
        if rank == 2
        else Signal(result, np.moveaxis(views.labels((1, result.channels, *result.size)), 1, -1))
    )


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


def _batch_norm(walk: Propagation, node: NodeProto) -> Value:
    source = walk.field(node.input[0])
    gamma, beta, mean, var = (walk.constant(name).astype(np.float64) for name in node.input[1:5])
    factor = gamma / np.sqrt(var + attributes(node).get("epsilon", 1e-5))
    return Signal(operators.normalize(source, mean, var, factor, beta - factor * mean, walk.birth()))


def _activation(walk: Propagation, node: NodeProto) -> Value:
    value = walk.value(node.input[0])
    assert isinstance(value, Signal)
    constants = [optional(walk, node, position) for position in range(1, len(node.input))]
    function = activation(node.op_type, attributes(node), constants, value.field.channels)
    if function is None:
        raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} in this form")
    return Signal(operators.activate(value.field, function, walk.birth()), value.labels)


def _per_channel(walk: Propagation, name: str, signal: Signal) -> Array:
    """A constant as it meets each channel of a signal's field, averaged over places."""
    try:
        constant = np.broadcast_to(walk.constant(name).astype(np.float64), signal.shape)
    except ValueError:
        raise NotCovered(f"{name!r} broadcasts the shape {list(signal.shape)}") from None
    channel = (signal.moved - 1) // int(np.prod(signal.field.size))
    met = channel >= 0
    count, total = (
        np.bincount(channel[met], weights, minlength=signal.field.channels)
        for weights in (None, constant[met])
    )
    average: Array = total / np.maximum(count, 1)
    return average


def _constant_operand(walk: Propagation, node: NodeProto) -> tuple[Signal, str, bool] | None:
    """The signal, the constant, and whether that comes first; None where both are signals."""
    for name, other, first in ((node.input[0], node.input[1], False), (node.input[1], node.input[0], True)):
        value = walk.value(name)
        if isinstance(value, Signal) and not isinstance(walk.value(other), Signal):
            return value, other, first
    return None


def _add(walk: Propagation, node: NodeProto) -> Value:
    sign = -1.0 if node.op_type == "Sub" else 1.0
    found = _constant_operand(walk, node)
    if found is not None:
        signal, name, first = found
        offset = _per_channel(walk, name, signal)
        field = operators.scale(
            signal.field, sign if first else 1.0, offset if first else sign * offset, walk.birth()
        )
        return Signal(field, signal.labels)
    a, b = (walk.field(name) for name in node.input)
    if (b.channels, b.size) != (a.channels, a.size):
        raise NotCovered(f"{node.op_type} of node {node.name or node.output[0]!r} broadcasts")
    return Signal(operators.add(a, b, sign, walk.birth()))


def _multiply(walk: Propagation, node: NodeProto) -> Value:
    found = _constant_operand(walk, node)
    if node.op_type == "Div" and (found is None or found[2]):
        raise NotCovered(f"Div of node {node.name or node.output[0]!r} by a variable")
    if found is not None:
        signal, name, _ = found
        factor = _per_channel(walk, name, signal)
        if node.op_type == "Div":
            factor = np.divide(1, factor, out=np.zeros_like(factor), where=factor != 0)
        return Signal(operators.scale(signal.field, factor, 0.0, walk.birth()), signal.labels)
    a, b = (walk.field(name) for name in node.input)
    for x, y in ((a, b), (b, a)):
        if (
            isinstance(y.origin, Activated) and y.origin.parent.birth == x.birth
        ):  # x times a function of x: SiLU, HardSwish in two nodes
            return Signal(operators.gate(x, y.origin.activation, walk.birth()))
    if a.channels != b.channels:
        raise NotCovered(f"Mul of node {node.name or node.output[0]!r} broadcasts over channels")
    if np.prod(a.size) < np.prod(b.size):
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
    return Signal(
        operators.average_pool(source, at, walk.birth(), count_pads=bool(given.get("count_include_pad", 0)))
    )


def _global_average(walk: Propagation, node: NodeProto) -> Value:
    return Signal(operators.global_average(walk.field(node.input[0]), walk.birth(), keep=True))


def _reduce_mean(walk: Propagation, node: NodeProto) -> Value:
    source = walk.field(node.input[0])
    given = attributes(node)
    rank = 2 + len(source.size)
    axes = given.get("axes", optional(walk, node, 1))
    if axes is None or sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
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
    size = tuple(
        int(v) if values.dtype.kind == "i" else int(n * v)
        for n, v in zip(source.size, values[2:], strict=True)
    )
    return Signal(operators.enlarge(source, size, walk.birth()))


def _conv_transpose(walk: Propagation, node: NodeProto) -> Value:
    source = spatial(walk.field(node.input[0]), node.input[0])
    given = attributes(node)
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in given:
        raise NotCovered(
            f"ConvTranspose of node {node.name or node.output[0]!r} with auto_pad or output_shape"
        )
    weight = walk.constant(node.input[1]).astype(np.float64)
    bias = optional(walk, node, 2)
    at = conv_window(node, weight, source.size)
    extra = given.get("output_padding", (0,) * len(source.size))
    size = tuple(
        s * (n - 1) + x + d * (k - 1) + 1 - b - a
        for n, s, x, d, k, b, a in zip(
            source.size, at.strides, extra, at.dilations, at.kernel, at.before, at.after, strict=True
        )
    )
    offset = 0.0 if bias is None else bias
    return Signal(
        operators.convolve_transposed(source, weight, offset, at, given.get("group", 1), size, walk.birth())
    )


RULES: dict[str, Rule] = {
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(["Cast", "Dropout"], lambda walk, node: walk.value(node.input[0])),
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
