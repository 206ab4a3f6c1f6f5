"""What each ONNX operator does to the statistics of its inputs."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics import operators, views
from onnx_dfmpc.statistics.activations import ACTIVATIONS, activation
from onnx_dfmpc.statistics.field import Field, Kernel, patches
from onnx_dfmpc.statistics.kinship import Activated
from onnx_dfmpc.statistics.moments import Window
from onnx_dfmpc.statistics.propagate import Constant, NotCovered, Propagation, Rule, Signal, Value, attributes
from onnx_dfmpc.statistics.windows import window_of


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
    return Signal(operators.linear(walk.field(node.input[0]), weight if given.get("transB", 0) else weight.T, offset, walk.birth()))


def _matmul(walk: Propagation, node: NodeProto) -> Value:
    weight = walk.constant(node.input[1]).astype(np.float64)
    if weight.ndim != 2:
        raise NotCovered(f"MatMul of node {node.name or node.output[0]!r} with a stack of matrices")
    source, rank = features(walk, node.input[0])
    result = operators.linear(source, weight.T, 0.0, walk.birth())
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
    size = tuple(int(v) if values.dtype.kind == "i" else int(n * v) for n, v in zip(source.size, values[2:], strict=True))
    return Signal(operators.enlarge(source, size, walk.birth()))


def _conv_transpose(walk: Propagation, node: NodeProto) -> Value:
    """A convolution of the enlarged input; every output place meets one tap in every stride, so that the kernel counts for that share."""
    source = spatial(walk.field(node.input[0]), node.input[0])
    given = attributes(node)
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in given:
        raise NotCovered(f"ConvTranspose of node {node.name or node.output[0]!r} with auto_pad or output_shape")
    weight = walk.constant(node.input[1]).astype(np.float64)
    bias = optional(walk, node, 2)
    axes, group = len(source.size), given.get("group", 1)
    strides, dilations = (np.array(given.get(name, (1,) * axes)) for name in ("strides", "dilations"))
    pads, extra = np.array(given.get("pads", (0,) * 2 * axes)), np.array(given.get("output_padding", (0,) * axes))
    kernel = np.array(weight.shape[2:])
    size = tuple((strides * (np.array(source.size) - 1) + extra + dilations * (kernel - 1) + 1 - pads[:axes] - pads[axes:]).tolist())
    i, r = weight.shape[:2]
    rows = weight.reshape(group, i // group, r, -1).swapaxes(1, 2).reshape(group * r, i // group, -1) / np.prod(strides)
    offsets = pads[:axes] - np.array(list(np.ndindex(*kernel))) * dilations
    wide = operators.enlarge(source, tuple((np.array(source.size) * strides).tolist()), walk.birth())
    return Signal(operators.spread(wide, Kernel(rows, offsets, (1,) * axes, group), 0.0 if bias is None else bias, size, walk.birth()))


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
