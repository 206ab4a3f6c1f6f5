"""Random convolutional networks, each of which ONNX Runtime runs, and what has to hold for every one.

`random_network` draws one by a function that chooses from a sequence: a NumPy generator in `fuzz`, hypothesis
in the tests, which then finds the smallest network that fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_dfmpc import QuantizeResult, Recipe, quantize
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.session import Session

OPSETS = range(9, 28)
LOW_BITS = (1.58, 2, 2.58, 3, 4)

LEAST_DB = 20.0
"""SQNR at 8 bits that only a wrong model misses; the lowest of 3,000 networks was 26 dB."""

SILENT = 1e-3
"""Most that an output may be which is 0 in the float model: a new bias, where a Relu lets nothing through."""

SPARE = 120
"""Most bytes for a layer that are predicted and not needed: a zero point and its nodes, a bias that is none."""

MOST_VALUES = 4096
"""Elements of a tensor of one sample, so that a network takes milliseconds."""

Array = NDArray[Any]
T = TypeVar("T")


class Choose(Protocol):
    """One of some options."""

    def __call__(self, options: Sequence[T], /) -> T: ...


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: its name, and its shape without the batch."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]


@dataclass
class Builder:
    """Nodes and weights so far; a method adds one operator and returns what it makes."""

    choose: Choose
    opset: int
    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    shared: dict[tuple[int, ...], str] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> Tensor:
        """A node with one output."""
        name = f"t{len(self.nodes)}"
        title = self.choose((f"{op}_{len(self.nodes)}", ""))
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=title, **attributes))
        return Tensor(name, tuple(shape))

    def constant(self, values: Array) -> str:
        """An initializer, a Constant node, or one of these behind an Identity."""
        name = f"w{len(self.weights)}_{len(self.nodes)}"
        tensor = numpy_helper.from_array(values, name)
        kind = self.choose(("initializer", "initializer", "initializer", "node", "identity"))
        if kind == "node":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.weights.append(tensor)
        return name if kind == "initializer" else self.node("Identity", [name], values.shape).name

    def random(self, *shape: int, center: float = 0.0, spread: float = 1.0) -> Array:
        return (center + spread * self.rng.normal(size=shape)).astype(np.float32)

    def weight(self, *shape: int, fan_in: int) -> str:
        """A random weight that keeps the variance, or one that another layer has already."""
        if shape in self.shared and self.choose((False, True)):
            return self.shared[shape]
        self.shared[shape] = self.constant(self.random(*shape, spread=fan_in**-0.5))
        return self.shared[shape]

    def bias(self, channels: int, *, needed: bool = False) -> list[str]:
        return [self.constant(self.random(channels))] if needed or self.choose((True, False)) else []

    def conv(self, x: Tensor) -> Tensor:
        """Dense, grouped or depthwise, with any stride, dilation and padding that leaves something."""
        group = self.choose([g for g in (1, 2, 4, x.channels) if x.channels % g == 0])
        channels = group * self.choose((1, 2) if group == x.channels else (2, 4))
        axes: list[tuple[int, ...]] = []
        for size in x.shape[1:]:
            k, stride, dilation = self.choose((1, 2, 3)), self.choose((1, 1, 2)), self.choose((1, 1, 2))
            reach = (k - 1) * dilation
            before, after = (self.choose((reach // 2, reach, 0)) for _ in range(2))
            if size + before + after <= reach:
                before = reach
            places = (size + before + after - reach - 1) // stride + 1
            axes.append((k, stride, dilation, before, after, places))
        kernel, strides, dilations, begin, end, sizes = map(list, zip(*axes, strict=True))
        attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
        if self.choose((False, False, True)) and max(dilations) == 1:
            attributes |= {"auto_pad": self.choose(("SAME_UPPER", "SAME_LOWER"))}
            sizes = [-(-size // stride) for size, stride in zip(x.shape[1:], strides, strict=True)]
        else:
            attributes |= {"pads": begin + end}
        taps = x.channels // group * math.prod(kernel)
        weight = self.weight(channels, x.channels // group, *kernel, fan_in=taps)
        return self.node("Conv", [x.name, weight, *self.bias(channels)], [channels, *sizes], **attributes)

    def conv_transpose(self, x: Tensor) -> Tensor:
        group, stride, kernel = self.choose((1, 2)), self.choose((1, 2)), self.choose((1, 2, 3))
        group = group if x.channels % group == 0 else 1
        channels = group * self.choose((2, 3))
        sizes = [(size - 1) * stride + kernel for size in x.shape[1:]]
        if channels * math.prod(sizes) > MOST_VALUES:
            return x
        window = [kernel] * len(sizes)
        weight = self.weight(x.channels, channels // group, *window, fan_in=x.channels // group * kernel)
        inputs = [x.name, weight, *self.bias(channels)]
        shape = [channels, *sizes]
        return self.node("ConvTranspose", inputs, shape, group=group, strides=[stride] * len(sizes))

    def batch_norm(self, x: Tensor) -> Tensor:
        shifts = [self.constant(self.random(x.channels)) for _ in range(2)]
        scales = [self.constant(self.rng.uniform(0.3, 2, x.channels).astype(np.float32)) for _ in range(2)]
        inputs = [x.name, scales[0], *shifts, scales[1]]
        return self.node("BatchNormalization", inputs, x.shape, epsilon=1e-3)

    def activation(self, x: Tensor) -> Tensor:
        names = [
            "Relu",
            "Relu",
            "LeakyRelu",
            "Clip",
            "Sigmoid",
            "Tanh",
            "Elu",
            "PRelu",
            "SiLU",
            "HardSigmoid",
        ]
        op = self.choose(names + ["HardSwish"] * (self.opset >= 14) + ["Gelu"] * (self.opset >= 20))
        if op == "SiLU":
            return self.node("Mul", [x.name, self.node("Sigmoid", [x.name], x.shape).name], x.shape)
        if op == "PRelu":
            slope = self.rng.uniform(0, 0.5, (x.channels, *[1] * (len(x.shape) - 1))).astype(np.float32)
            return self.node(op, [x.name, self.constant(slope)], x.shape)
        if op != "Clip":
            return self.node(op, [x.name], x.shape)
        if self.opset < 11:
            return self.node(op, [x.name], x.shape, min=0.0, max=6.0)
        bounds = [self.constant(np.array(value, np.float32)) for value in (0, 6)]
        return self.node(op, [x.name, *bounds], x.shape)

    def pool(self, x: Tensor) -> Tensor:
        if min(x.shape[1:]) < 2:
            return x
        sizes = [size // 2 for size in x.shape[1:]]
        window = [2] * len(sizes)
        op = self.choose(("MaxPool", "AveragePool"))
        return self.node(op, [x.name], [x.channels, *sizes], kernel_shape=window, strides=window)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half, whole = x.channels // 2, x.channels
        names = [f"t{len(self.nodes)}{side}" for side in "ab"]
        sizes = [half, whole - half]
        if self.opset < 13:
            self.nodes.append(helper.make_node("Split", [x.name], names, axis=1, split=sizes))
        else:
            lengths = self.constant(np.array(sizes, np.int64))
            self.nodes.append(helper.make_node("Split", [x.name, lengths], names, axis=1))
        first, second = (Tensor(name, (size, *x.shape[1:])) for name, size in zip(names, sizes, strict=True))
        return first, second

    def concat(self, *parts: Tensor) -> Tensor:
        shape = [sum(part.channels for part in parts), *parts[0].shape[1:]]
        return self.node("Concat", [part.name for part in parts], shape, axis=1)

    def join(self, x: Tensor, other: Tensor) -> Tensor:
        """Add, Mul with a gate, or Concat, where the shapes let them."""
        if x.shape[1:] != other.shape[1:]:
            return x
        if x.shape == other.shape and self.choose((True, True, False)):
            return self.node(self.choose(("Add", "Sub")), [x.name, other.name], x.shape)
        return self.concat(x, other) if x.channels + other.channels <= 24 else x

    def squeeze_excite(self, x: Tensor) -> Tensor:
        ones = [1] * (len(x.shape) - 1)
        pooled = self.node("GlobalAveragePool", [x.name], [x.channels, *ones])
        weight = self.weight(x.channels, x.channels, *ones, fan_in=x.channels)
        inner = self.node("Conv", [pooled.name, weight, *self.bias(x.channels)], pooled.shape)
        return self.node("Mul", [x.name, self.node("Sigmoid", [inner.name], inner.shape).name], x.shape)

    def block(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        kinds = ("conv", "conv", "conv", "transpose", "norm", "pool", "split", "join", "gate")
        kind = self.choose(kinds)
        if kind == "conv":
            y = self.conv(x)
            y = self.batch_norm(y) if self.choose((True, False)) else y
            return self.activation(y) if self.choose((True, False)) else y
        if kind == "split" and x.channels > 1:
            first, second = self.split(x)
            return self.concat(self.conv_like(first), second)
        if kind == "join":
            return self.join(x, self.choose(earlier))
        steps = {"transpose": self.conv_transpose, "pool": self.pool, "gate": self.squeeze_excite}
        return steps.get(kind, self.batch_norm)(x)

    def conv_like(self, x: Tensor) -> Tensor:
        """A pointwise convolution."""
        ones = [1] * (len(x.shape) - 1)
        weight = self.weight(x.channels, x.channels, *ones, fan_in=x.channels)
        return self.node("Conv", [x.name, weight, *self.bias(x.channels)], x.shape)

    def head(self, x: Tensor, batch: int | str) -> Tensor:
        """The end: as it is, or dense layers on what is pooled or flattened."""
        kind = self.choose(("dense", "dense", "none"))
        if kind == "none":
            return x
        if self.choose((True, False)) or math.prod(x.shape) > 512:
            x = self.node("GlobalAveragePool", [x.name], [x.channels, *[1] * (len(x.shape) - 1)])
        n = math.prod(x.shape)
        how = self.choose(("Flatten", "Reshape"))
        shape = [] if how == "Flatten" else [self.constant(np.array([0, -1], np.int64))]
        x = self.node(how, [x.name, *shape], [n])
        if self.choose((True, False)):
            x = self.activation(self.dense(x, 6))
        return self.dense(x, self.choose((3, 10)))

    def dense(self, x: Tensor, units: int) -> Tensor:
        n = x.channels
        if self.choose((True, False)):
            y = self.node("MatMul", [x.name, self.weight(n, units, fan_in=n)], [units])
            bias = self.bias(units)
            return self.node("Add", [y.name, *bias], [units]) if bias else y
        transposed = self.choose((0, 1))
        weight = self.weight(*((units, n) if transposed else (n, units)), fan_in=n)
        bias = self.bias(units, needed=self.opset < 11)
        return self.node("Gemm", [x.name, weight, *bias], [units], transB=transposed)


def random_network(choose: Choose) -> ModelProto:
    """A network of one to three dimensions, of any opset, with at least one convolution."""
    opset = choose(OPSETS)
    batch: str | int = choose(("n", "1", "2"))
    batch = batch if batch == "n" else int(batch)
    build = Builder(choose, opset, np.random.default_rng(choose(range(1 << 16))))
    sizes = choose(((9,), (16,), (6, 6), (5, 8), (8, 8), (4, 5, 4)))
    x = given = Tensor("x", (choose((1, 3, 4)), *sizes))
    tensors = [x := build.conv(x)]
    for _ in range(choose(range(6))):
        tensors.append(x := build.block(x, tensors))
        if math.prod(x.shape) > MOST_VALUES:
            break
    y = build.head(x, batch)
    build.nodes.append(helper.make_node("Identity", [y.name], ["y"], name="end"))
    kind = TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kind, [batch, *given.shape])]
    results = [helper.make_tensor_value_info("y", kind, [batch, *y.shape])]
    graph = helper.make_graph(build.nodes, "random", inputs, results, build.weights)
    imports = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(imports)
    return helper.make_model(graph, opset_imports=imports, ir_version=max(4, version))


def outputs(model: ModelProto, what: str, seed: int = 0) -> list[Any]:
    """What ONNX Runtime makes of a model on random inputs; open dimensions are 2."""
    session, rng = Session(model, what), np.random.default_rng(seed)
    feeds = {
        spec.name: rng.normal(size=[size if isinstance(size, int) else 2 for size in spec.shape])
        .astype(spec.dtype)
        for spec in session.specs()
    }  # fmt: skip
    return session.run(feeds)


def sqnr_db(expected: Array, found: Array) -> float:
    """Ratio of signal to error."""
    error, signal = float(np.square(found - expected).sum()), float(np.square(expected).sum())
    return math.inf if error == 0 else 10 * math.log10(max(signal, 1e-30) / error)


def require(holds: bool, what: str) -> None:
    """AssertionError with the words, with `python -O` as well."""
    if not holds:
        raise AssertionError(what)


def check(model: ModelProto, low: float, recipe: Callable[..., Recipe] = Recipe) -> float:
    """Quantize a network at 8 and at few bits; AssertionError where a promise does not hold. SQNR at 8 bits."""
    before = model.SerializeToString()
    (expected,) = outputs(model, "float")
    fine = quantize(model, None, recipe(bits=8), validated=False)
    (found,) = outputs(fine.model, "8 bits")
    quality = sqnr_db(expected, found) if expected.any() else math.inf
    require(quality >= LEAST_DB, f"{quality:.1f} dB at 8 bits")
    require(bool(expected.any() or np.abs(found).max() < SILENT), "not 0 at 8 bits")
    coarse, again = (quantize(model, None, recipe(bits=low), validated=False) for _ in range(2))
    (found,) = outputs(coarse.model, f"{low} bits")
    require(bool(np.isfinite(found).all()), f"not finite at {low} bits")
    require(found.shape == expected.shape, f"shape {found.shape} instead of {expected.shape}")
    data = coarse.model.SerializeToString()
    require(data == again.model.SerializeToString(), "two runs, two files")
    require(model.SerializeToString() == before, "the input has changed")
    for made in (fine, coarse):
        size = len(made.model.SerializeToString())
        more = (made.plan.predicted_bytes or 0) - size
        require(0 <= more <= SPARE * len(made.layers), f"{more} bytes more predicted than written, {size}")
        missing = float_bytes(model) - accounted(made)
        require(missing == 0, f"no line of the report has {missing} float bytes")
    return quality


def float_bytes(model: ModelProto) -> int:
    """Bytes of all float constants."""
    constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    arrays = map(numpy_helper.to_array, [*model.graph.initializer, *constants])
    return sum(array.nbytes for array in arrays if array.dtype == np.float32)


def norms(model: ModelProto) -> list[NodeProto]:
    """Batch norms of a model."""
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def accounted(made: QuantizeResult) -> int:
    """Bytes of the weights that were quantized, once each, and those that the report says are left."""
    (line,) = (note for note in made.notes if note.startswith("float bytes left"))
    left = re.match(r"float bytes left: ([\d,]+) of", line)
    require(left is not None, line)
    assert left is not None
    quantized = {layer.name for layer in made.layers}
    layers = [layer for layer in match(made.source.proto).layers if layer.name in quantized]
    sizes = {layer.weight: layer.size for layer in layers}  # shared ones are counted once
    table, kept = ConstantTable(made.source.proto), {node.output[0] for node in norms(made.model)}
    for node in norms(made.source.proto):  # that are gone have been folded
        if node.output[0] not in kept:
            sizes |= {table.source(name): table[name].size for name in node.input[1:]}
    return int(left[1].replace(",", "")) + 4 * sum(sizes.values())
