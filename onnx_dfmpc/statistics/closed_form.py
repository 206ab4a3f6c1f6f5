"""Closed form: what every layer sees, from the initializers alone. Nothing is run, and no model is refused.

A tensor has channels with mean m and covariance C, the same at every place; correlations fall with distance,
r^distance, r = exp(-1 / L), L its reach. A layer sees channels i times kernel taps a, b:

    mean k_a m_i,    covariance S = C (x) R,    R_ab = k_ab r^|a - b|

with k the share of places at which these taps lie on the tensor and not on its padding. In graph order:

    y = W x + b               m = W E[x] + b,    C = W S W'
    batch norm                m = beta,          C rescaled to diag C = gamma^2 var / (var + epsilon)
    activation f of normals   m = E f,           C_ij <- g_i g_j C_ij + d_i d_j rho_ij^2
                              g = E f',          d_i^2 = Var f - g_i^2 C_ii
    sum                       m = m_x + m_y,     C = (1 + kappa) (C_x + C_y), kappa the branches' correlation
    product                   m = m_x m_y,       C = C_x m_y m_y' + C_y m_x m_x' + C_x C_y, elementwise
    concatenation             m and C side by side, parts uncorrelated
    average, largest          m, C mean(R); as of normals that have the mean correlation of R in common

A batch norm with mean mu and variance var tells what the layer before it sees: L becomes the reach with which
diag(W S W') is most nearly proportional to var, and m takes a Kalman step with G = W S W':

    m <- m + S W' (G + lambda diag G)^-1 (mu - b - W m),    averaged over the taps
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnx_dfmpc.linalg.matrices import Kronecker, through
from onnx_dfmpc.linalg.products import product
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.reference import evaluate
from onnx_dfmpc.spec import Array, InputStatistics, Layer
from onnx_dfmpc.spec.ops import OPS, input_channels, to_rows
from onnx_dfmpc.statistics import normal, windows

SOURCE = "closed form"

# Sources: the batch norms of five networks, and output SQNR on eight cases, see docs/method.md.
INPUT_REACH, SIGNAL_REACH, INNER_REACH = 8.0, 16.0, 1.4  # of inputs, of signals (1-D) inside, of all else
REACHES = 2.0 ** np.arange(-2, 6)
STICKINESS = 0.05  # mean |log(var / expected)| that a reach e times as far has to save; flat from 0.02 to 0.1
DOUBT = 0.3  # lambda, flat from 0.1 to 1
BRANCHES = 0.2  # kappa, flat from 0.1 to 0.4; at 0 deviations late in ResNet-56 fade
SHORTFALL = 1.2  # batch norms see 1.1 to 1.6 times the expected variance; networks without them fade at 1
COLOURS = 0.9  # correlation of the colours of an image, convention
OPEN_LENGTH = 64  # places along an axis whose length the file leaves open
FLOOR = 1e-6  # share of the mean variance that every input has at least
MOVING = {"Flatten", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
CURVED = {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Sigmoid", "Softplus", "Swish", "Tanh"}


@dataclass(frozen=True, eq=False)
class Field:
    """Mean (c,) and covariance (c, c) at every place; of an activation, the input and its moments too."""

    mean: Array
    covariance: Array
    reach: float
    size: tuple[int, ...]
    before: Field | None = None
    moments: partial[tuple[Array, Array, Array]] | None = None

    @property
    def variance(self) -> Array:
        """Variance of every channel (c,), positive."""
        return np.maximum(np.diagonal(self.covariance), 1e-12)

    def activated(self, moments: partial[tuple[Array, Array, Array]]) -> Field:
        """The tensor after an activation."""
        return Field(
            *normal.activated(self.mean, self.covariance, moments), self.reach, self.size, self, moments
        )

    def patches(self, reach: float, places: Array, share: Array, group: int) -> tuple[Array, Kronecker]:
        """Mean (g, n) and covariance S of what a layer sees, with variances above zero."""
        i, each = len(self.mean) // group, np.arange(group)
        channels = self.covariance + FLOOR * self.variance.mean() * np.eye(len(self.mean))
        taps = np.exp(-windows.distances(places) / reach) * share + FLOOR * np.eye(len(places))
        seen = Kronecker(channels.reshape(group, i, group, i)[each, :, each], np.stack([taps] * group))
        return (self.mean.reshape(group, i, 1) * np.diagonal(share)).reshape(group, -1), seen

    def view(self, axis: int = 1) -> View:
        """The field as a tensor with its channels on an axis."""
        return View(self, np.moveaxis(windows.numbered((1, len(self.mean), *self.size)), 1, axis), axis)


@dataclass(frozen=True, eq=False)
class View:
    """A tensor of batch 1 made of the elements of a field: their places in it, -1 for zeros."""

    field: Field
    labels: NDArray[np.int64]
    axis: int = 1  # of the channels


def closed_form(
    proto: ModelProto, layers: Sequence[Layer], *, input_range: tuple[float, float] | None
) -> dict[str, InputStatistics]:
    """Statistics of every layer's input, by name; a range covers two standard deviations to each side."""
    low, high = input_range or (-2.0, 2.0)
    graph = _Propagation(proto)
    for value in proto.graph.input:
        shape = [dim.dim_value or OPEN_LENGTH for dim in value.type.tensor_type.shape.dim]
        if value.name not in graph.table and len(shape) > 1:
            axis = 3 if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) else 1
            c = shape.pop(axis)
            covariance = np.where(np.eye(c), 1, COLOURS if c == 3 else 0) * ((high - low) / 4) ** 2
            x = Field(np.full(c, (low + high) / 2), covariance, INPUT_REACH, tuple(shape[1:]))
            graph.values[value.name] = x.view(axis)
    by_output, statistics = {layer.output: layer for layer in layers}, {}
    for node in proto.graph.node:
        layer = by_output.get(node.output[0]) if node.output else None
        if layer is not None:
            statistics[layer.name] = graph.layer(node, layer)
        elif len(statistics) < len(layers):
            graph.run(node)
    return statistics


class _Propagation:
    """What is known of the tensors so far."""

    def __init__(self, proto: ModelProto) -> None:
        self.table = ConstantTable(proto)
        self.values: dict[str, Any] = {}  # a view, a constant, or None
        self._opsets = proto.opset_import

    def layer(self, node: NodeProto, layer: Layer) -> InputStatistics:
        """Statistics of a layer's input, corrected by its batch norm; the output's value is kept."""
        x, places, share, size = self._reads(node, layer)
        view, norm, g = self.values.get(layer.input), layer.batch_norm, layer.group
        rows = to_rows(self.table[layer.weight], layer).astype(np.float64)
        bias = self.table[layer.bias].astype(np.float64).ravel() if layer.bias else np.zeros(layer.channels)
        flat = rows.reshape(g, -1, len(x.mean) // g, len(places))
        if norm is not None and layer.op_type != "ConvTranspose":
            x = _corrected(x, flat, places, share, norm.mean - bias, norm.var)
            if isinstance(view, View) and len(view.field.mean) == len(x.mean):  # for its other readers
                self.values[layer.input] = replace(view, field=x)
        mean, seen = x.patches(x.reach, places, share, g)
        between = x.covariance.reshape(g, flat.shape[2], g, -1)
        passed = product(flat, seen.spatial[:, None]) * (SHORTFALL if norm is None else 1)
        covariance = np.einsum("grit,gihj,hsjt->grhs", passed, between, flat, optimize=True)
        center = np.einsum("grn,gn->gr", rows, mean).ravel() + (bias if layer.bias_node == layer.name else 0)
        reach = SIGNAL_REACH if len(size) == 1 else INNER_REACH
        y = Field(center, covariance.reshape(layer.channels, layer.channels), reach, size)
        self.values[layer.output] = y.view(1 if OPS[layer.op_type].spatial else -1)
        channels, taps = seen.channels.astype(np.float32), seen.spatial.astype(np.float32)
        return InputStatistics(mean, Kronecker(channels, taps) if len(places) > 1 else channels, 0, SOURCE)

    def _reads(self, node: NodeProto, layer: Layer) -> tuple[Field, Array, Array, tuple[int, ...]]:
        """What a layer reads, its taps (t, axes), their shares k (t, t), and the size of the output."""
        view, n, spatial = self.values.get(layer.input), input_channels(layer), OPS[layer.op_type].spatial
        if not isinstance(view, View):
            x = Field(np.zeros(n), np.eye(n), INNER_REACH, ())
        elif not spatial and np.array_equal(view.labels.ravel(), np.arange(n)):
            # A matrix that reads a whole flattened tensor is a convolution with a kernel of its size.
            return view.field, windows.grid(view.field.size), np.ones((n // len(view.field.mean),) * 2), ()
        else:
            x = self.field(layer.input, 1 if spatial else -1)
        if len(x.mean) != n:  # not what the layer expects: all channels are as their average
            x = Field(np.full(n, x.mean.mean()), x.variance.mean() * np.eye(n), x.reach, x.size)
        if not spatial:
            return x, windows.grid(()), np.ones((1, 1)), x.size
        kernel = layer.shape[2:]
        size = x.size if len(x.size) == len(kernel) else (OPEN_LENGTH,) * len(kernel)
        at = windows.window_of(windows.attributes(node), kernel, size)
        covered = windows.transposed_coverage if layer.op_type == "ConvTranspose" else windows.coverage
        return x, windows.grid(at.kernel) * at.dilations, *covered(at, size)

    def field(self, name: str, axis: int = 1) -> Field:
        """A tensor with its channels on an axis, each as it is at the middle place."""
        view: View = self.values[name]
        base, labels = view.field, np.moveaxis(view.labels, axis, 0)
        if len(labels) == len(base.mean) and np.array_equal(labels.ravel(), np.arange(labels.size)):
            return base
        middle = labels[(slice(None), *(n // 2 for n in labels.shape[1:]))]
        channel, place = np.divmod(np.maximum(middle, 0), math.prod(base.size))
        covariance = base.covariance[channel][:, channel] * np.outer(middle >= 0, middle >= 0)
        if labels.ndim == 2:  # flattened: neighbours in one channel are alike, not the same
            covariance *= np.exp(-windows.distances(windows.grid(base.size)[place]) / base.reach)
        x = Field(base.mean[channel] * (middle >= 0), covariance, base.reach, labels.shape[2:])
        self.values[name] = x.view(axis)
        return x

    def run(self, node: NodeProto) -> None:
        """Values of a node's outputs; an operator, or a form of it, without a rule passes its input on."""
        try:
            outputs = self._outputs(node)
        except Exception:  # whatever an unforeseen form raises: statistics may be rough, but not missing
            first = (value for value in map(self.values.get, node.input) if isinstance(value, View))
            outputs = [next(first, None)] * len(node.output)
        self.values.update(zip(node.output, outputs, strict=False))

    def _outputs(self, node: NodeProto) -> Sequence[Any]:
        given, op = windows.attributes(node), node.op_type
        values = {name: self.values.get(name, self.table.get(name)) for name in node.input if name}
        views = {name: value for name, value in values.items() if isinstance(value, View)}
        constants = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        if not views:
            return evaluate(node, constants, self._opsets)
        name, x = next(iter(views.items()))
        if op == "Shape":
            return [np.array(x.labels.shape[given.get("start", 0) : given.get("end")], np.int64)]
        if op in MOVING:  # as the reference implementation moves the labels; whatever pads is taken for zeros
            pads = {key: np.zeros((), np.int64) for key in node.input[2:3] if op == "Pad"}
            moved = evaluate(node, {name: x.labels + 1, **constants, **pads}, self._opsets)
            return [View(x.field, out.astype(np.int64) - 1) for out in moved]
        if op in ("Relu", "LeakyRelu", "PRelu"):
            slope = np.ravel(constants[node.input[1]]) if op == "PRelu" else given.get("alpha", 0.01)
            f = partial(normal.rectified, 0.0 if op == "Relu" else slope)
            return [replace(x, field=x.field.activated(f))]
        if op in CURVED:
            f = partial(normal.quadrature, lambda z: evaluate(node, {name: z, **constants}, self._opsets)[0])
            return [replace(x, field=x.field.activated(f))]
        fields = [self.field(key, x.axis) for key in views]
        if op in ("Add", "Sub", "Mul", "Div", "Sum"):
            for constant in constants.values():  # averaged over places
                each = np.moveaxis(np.broadcast_to(constant, x.labels.shape), x.axis, 0)
                mean = each.reshape(len(each), -1).mean(axis=1)
                still = replace(fields[0], mean=mean, covariance=0 * fields[0].covariance)
                fields.insert(int(node.input[0] == name), still)
            return [_combined(op, fields, BRANCHES if len(views) > 1 else 0.0).view(x.axis)]
        if op == "BatchNormalization":
            gamma, beta, _, var = (array.astype(np.float64) for array in constants.values())
            variance = gamma**2 * var / (var + given.get("epsilon", 1e-5))
            gain = np.sign(gamma) * np.sqrt(variance / fields[0].variance)
            covariance = np.where(np.eye(len(gain)), variance, fields[0].covariance * np.outer(gain, gain))
            return [Field(beta, covariance, fields[0].reach, fields[0].size).view()]
        if op == "Concat" and given["axis"] % x.labels.ndim == 1 and not constants:
            blocks: list[list[Array]] = [
                [np.zeros((len(a.mean), len(b.mean))) for b in fields] for a in fields
            ]
            for k, part in enumerate(fields):
                blocks[k][k] = part.covariance
            mean = np.concatenate([y.mean for y in fields])
            return [replace(fields[0], mean=mean, covariance=np.block(blocks), before=None).view()]
        return [_pooled(op, fields[0], given).view()]


def _corrected(x: Field, flat: Array, places: Array, share: Array, mean: Array, variance: Array) -> Field:
    """Reach and mean with which a layer's input explains mean and variance of its outputs."""
    g, r, _, t = flat.shape
    variance = variance.reshape(g, r)
    channels = x.patches(x.reach, places, share, g)[1].channels
    by_taps = product(flat.swapaxes(2, 3), product(channels[:, None], flat))  # of every output, (g, r, t, t)

    def misfit(reach: float) -> float:
        expected = np.einsum("grab,ab->gr", by_taps, np.exp(-windows.distances(places) / reach) * share)
        ratio = np.log((variance + FLOOR * variance.max()) / (expected + FLOOR * expected.max()))
        return float(np.abs(ratio - np.median(ratio)).mean()) + STICKINESS * abs(math.log(reach / x.reach))

    reach = float(min(REACHES, key=misfit)) if t > 1 else x.reach
    inputs, seen = x.patches(reach, places, share, g)
    rows = flat.reshape(g, r, -1)
    passed = through(rows, seen)
    gram = product(passed, rows.swapaxes(1, 2))
    doubt = (DOUBT * np.einsum("grr->gr", gram) + 1e-12)[..., None] * np.eye(r)
    surprise = mean.reshape(g, r) - np.einsum("grn,gn->gr", rows, inputs)
    shift = passed.swapaxes(1, 2) @ np.linalg.solve(gram + doubt, surprise[..., None])
    return replace(x, mean=x.mean + shift.reshape(len(x.mean), t).mean(axis=1), reach=reach)


def _combined(op: str, fields: Sequence[Field], kin: float) -> Field:
    """Sum, difference or product; quotient by a constant."""
    x, y = fields[0], fields[-1]
    if op in ("Add", "Sum", "Sub"):
        sign = -1.0 if op == "Sub" else 1.0
        mean = x.mean + sign * np.sum([field.mean for field in fields[1:]], axis=0)
        return Field(mean, (1 + sign * kin) * np.sum([f.covariance for f in fields], axis=0), x.reach, x.size)
    for gate, gated in ((x, y), (y, x)):  # x f(x), as SiLU is
        moments = gate.moments
        if gate.before is gated and moments and moments.func is normal.quadrature:
            return gated.activated(partial(normal.quadrature, partial(normal.gated, moments.args[0])))
    y = replace(y, mean=1 / y.mean) if op == "Div" else y
    size = max(x.size, y.size, key=math.prod)
    return Field(*normal.product(x.mean, x.covariance, y.mean, y.covariance), x.reach, size)


def _pooled(op: str, x: Field, given: Mapping[str, Any]) -> Field:
    """Averages and maxima of places; KeyError for any other operator."""
    kernel, size = x.size, (1,) * len(x.size) if given.get("keepdims", 1) else ()
    if op not in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
        at = windows.window_of(given, given["kernel_shape"], x.size)
        kernel, size = at.kernel, windows.coverage(at, x.size)[1]
    k, common = math.prod(kernel), windows.mean_decay(kernel, x.reach)
    if not op.endswith("MaxPool"):
        return Field(x.mean, x.covariance * common, x.reach, size)
    if x.before and x.moments:  # activations grow: the largest comes from the largest
        return _pooled(op, x.before, given).activated(x.moments)
    common = (common * k - 1) / max(k - 1, 1)  # of different places
    return Field(*normal.largest(x.mean, x.covariance, common, k), x.reach, size)
