"""Closed form: what every layer sees, from the initializers alone. Nothing is run, no model is refused.

A tensor has channels with mean m and covariance C, the same at every place, and its correlation falls with
distance as exp(-d / L), L its reach. What a layer sees, channels times kernel taps a, is then

    mean  k_a m_i        covariance  S = C (x) R,   R_ab = k_ab exp(-|a - b| / L),

k the share of places at which taps lie on the tensor and not on its padding. Through the graph, in order:

    y = W x + b                     m = W E[x] + b,   C = W S W'
    batch norm gamma, beta          m = beta,         C = D C D with diag C = gamma^2 sigma^2 / (sigma^2 + eps)
    activation f of a normal        m = E f,          C_ij = g_i g_j C_ij + d_i d_j rho_ij^2
                                    g = E f',         d^2 = Var f - g^2 C_ii
    sum, concatenation              m and C add up, side by side: branches count as uncorrelated
    product of two tensors          m = m_x m_y,      C = C_x m_y m_y' + C_y m_x m_x' + C_x C_y   (elementwise)
    average of places               C times the mean of R
    largest of places               as of normals that have the mean of R in common

(Cov(f(x), f(y)) is a power series in rho; the square stands for all terms but the first.) Relu, LeakyRelu, PRelu
and Clip have their moments in closed form, other activations by the trapezoidal rule.

A batch norm with mean mu and variance sigma^2 behind a layer is evidence of what the layer sees. It chooses
the reach, that which makes diag(W S W') most nearly proportional to sigma^2, and then corrects m and C by a
Kalman step each, with G = W S W', D = diag G and an even doubt of both sides, lambda:

    m <- m + S W' (G + lambda D)^-1 (mu - b - W m)
    S <- S + S W' diag(alpha) W S,      (G o G + lambda D o D) alpha = sigma^2 - diag G

of which the mean over the taps is taken, so that S stays a Kronecker product. Other readers of the tensor get
the corrected m and C. That is what makes uncorrelated branches good enough: in a chain of residual blocks the
next batch norm corrects every sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.linalg.matrices import Kronecker, through
from onnx_dfmpc.linalg.products import product
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.spec import Array, BatchNorm, InputStatistics, Layer
from onnx_dfmpc.spec.ops import OPS, input_channels, taps, to_rows
from onnx_dfmpc.statistics.windows import Window, attributes, window_of

PROVIDER = "analytic"
REACHES = 2.0 ** np.arange(-2, 6)
INPUT_REACH, SIGNAL_REACH, INNER_REACH = 8.0, 16.0, 1.0
COLOURS = 0.9
HESITATION = 0.05
DOUBT = 0.3
MOST_OUTPUTS = 256
MOST_FEATURES = 4096
OPEN_LENGTH = 64
TINY = 1e-12
OPT = dict(kcov=True, kmean=True, scale1=True, feed=True)

Moments = tuple[Array, Array, Array]
Function = Callable[[Array, Array], Moments]


@dataclass(frozen=True, eq=False)
class Field:
    mean: Array
    covariance: Array
    reach: float
    size: tuple[int, ...]
    source: Field | None = None
    function: Function | None = None

    @property
    def variance(self) -> Array:
        return np.maximum(np.diagonal(self.covariance), TINY)


@dataclass(frozen=True, eq=False)
class View:
    field: Field
    labels: NDArray[np.int64]


def whole(field: Field, axis: int = 1) -> View:
    shape = (1, len(field.mean), *field.size)
    return View(field, np.moveaxis(np.arange(math.prod(shape)).reshape(shape), 1, axis))


def closed_form(
    proto: ModelProto, layers: Sequence[Layer], *, input_range: tuple[float, float] | None
) -> dict[str, InputStatistics]:
    low, high = input_range or (-2.0, 2.0)
    walk = Walk(proto)
    for value in proto.graph.input:
        if value.name not in walk.table:
            walk.values[value.name] = input_view(value, (low + high) / 2, (high - low) / 4)
    by_output = {layer.output: layer for layer in layers}
    found = {}
    for node in proto.graph.node:
        layer = by_output.get(node.output[0]) if node.output else None
        if layer is None:
            walk.run(node)
        else:
            found[layer.name] = walk.layer(node, layer)
    return found


def white(layer: Layer) -> InputStatistics:
    raise


def input_view(value: ValueInfoProto, mean: float, std: float) -> View | None:
    shape = [dim.dim_value or OPEN_LENGTH for dim in value.type.tensor_type.shape.dim]
    if len(shape) < 2:
        return None
    axis = 3 if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) else 1
    c = shape.pop(axis)
    q = COLOURS if c == 3 else 0.0
    covariance = std**2 * (q + (1 - q) * np.eye(c))
    return whole(Field(np.full(c, mean), covariance, INPUT_REACH, tuple(shape[1:])), axis)


class Walk:
    def __init__(self, proto: ModelProto) -> None:
        self.table = ConstantTable(proto)
        self.values: dict[str, Any] = {}
        self.opsets = proto.opset_import

    def value(self, name: str):
        return self.values[name] if name in self.values or name not in self.table else self.table[name]

    def constant(self, node, position, default=None):
        if len(node.input) <= position or not node.input[position]:
            return default
        value = self.value(node.input[position])
        if not isinstance(value, np.ndarray): raise TypeError
        return value.astype(np.float64)

    def field(self, name: str, axis: int = 1) -> Field:
        view = self.value(name)
        base = view.field
        labels = np.moveaxis(view.labels, axis, 0)
        n, size = len(labels), labels.shape[2:]
        if n > MOST_FEATURES: raise ValueError
        middle = labels[(slice(None), *(k // 2 for k in labels.shape[1:]))]
        channel, place = np.divmod(np.maximum(middle, 0), math.prod(base.size))
        alive = middle >= 0
        covariance = base.covariance[channel][:, channel] * np.outer(alive, alive)
        if len(size) == 0 and base.size:
            covariance = covariance * decay(np.stack(np.unravel_index(place, base.size), -1), base.reach)
        field = replace(base, mean=base.mean[channel] * alive, covariance=covariance, size=size)
        if n == len(base.mean) and (channel == np.arange(n)).all() and alive.all() and size == base.size: field = base
        elif n != len(base.mean) or (channel != np.arange(n)).any(): field = replace(field, source=None, function=None)
        self.values[name] = whole(field, axis)
        return field

    def layer(self, node, layer) -> InputStatistics:
        spatial = OPS[layer.op_type].spatial
        i = input_channels(layer)
        view = self.values.get(layer.input)
        places, share = np.zeros((1, 1)), np.ones((1, 1))
        x = None
        size = ()
        if isinstance(view, View) and not spatial and np.array_equal(view.labels.ravel(), np.arange(i)):
            x = view.field
            places, share = grid(x.size), np.ones((i // len(x.mean),) * 2)
        elif isinstance(view, View):
            try: x = self.field(layer.input, 1 if spatial else -1)
            except ValueError: pass
        if x is None or len(x.mean) * len(places) != i:
            x = averaged(x, i)
        size = x.size if spatial or len(places) == 1 else ()
        if spatial and len(x.size) == len(layer.shape) - 2:
            at = window_of(attributes(node), layer.shape[2:], x.size)
            places = offsets(at)
            share, size = transposed_coverage(at, x.size) if layer.op_type == "ConvTranspose" else coverage(at, x.size)
        elif spatial:
            places = grid(layer.shape[2:]); share = np.ones((len(places),) * 2)
        g, t = layer.group, len(places)
        rows = to_rows(self.table[layer.weight], layer).astype(np.float64)
        bias = self.table[layer.bias].astype(np.float64).ravel() if layer.bias and layer.bias_node == layer.name else 0.0
        bn_bias = self.table[layer.bias].astype(np.float64).ravel() if layer.bias else 0.0
        first = isinstance(view, View) and layer.edge == "first"
        if layer.batch_norm is not None and layer.op_type != "ConvTranspose":
            x = anchored(x, rows, places, share, layer.batch_norm, bn_bias, first)
            if isinstance(self.values.get(layer.input), View) and OPT["feed"]:
                v = self.values[layer.input]
                if len(v.field.mean) == len(x.mean): self.values[layer.input] = replace(v, field=x)
        seen = Kronecker(blocks(x.covariance, g), np.repeat((decay(places, x.reach) * share)[None], g, axis=0))
        mean = np.repeat(x.mean.reshape(g, -1, 1), t, axis=2) * np.diagonal(share)
        mean = mean.reshape(g, -1)
        out = Field(np.einsum("grn,gn->gr", rows, mean).ravel() + bias, spread(rows, x.covariance, seen),
                    SIGNAL_REACH if len(size) == 1 else INNER_REACH, size)
        self.values[layer.output] = whole(out, 1 if spatial else np.ndim(view.labels) - 1 if isinstance(view, View) else 1)
        cov = seen.channels if t == 1 else seen
        return InputStatistics(mean, Kronecker(seen.channels.astype(np.float32), seen.spatial.astype(np.float32)) if t > 1 else seen.channels.astype(np.float32), 0, PROVIDER)

    def run(self, node) -> None:
        try:
            outputs = self.outputs(node)
        except Exception as e:
            if OPT.get("debug"): print(node.op_type, node.name, repr(e))
            outputs = [next((v for v in map(self.values.get, node.input) if isinstance(v, View)), None)] * len(node.output)
        self.values.update(zip(node.output, [whole(o) if isinstance(o, Field) else o for o in outputs]))

    def evaluate(self, node, values):
        names = [name for name in dict.fromkeys(node.input) if name]
        untyped = helper.make_empty_tensor_value_info
        graph = helper.make_graph([node], "one", [untyped(n) for n in names], [untyped(n) for n in node.output if n])
        model = helper.make_model(graph, opset_imports=self.opsets)
        return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, {n: values[n] for n in names})]

    def outputs(self, node):
        op, given = node.op_type, attributes(node)
        if op == "Constant": return [self.table[node.output[0]]]
        values = {name: self.value(name) for name in node.input if name}
        views = [v for v in values.values() if isinstance(v, View)]
        if op == "Shape" and views: return [np.array(views[0].labels.shape[given.get("start", 0):given.get("end")], np.int64)]
        if not views: return self.evaluate(node, values)
        x = views[0]
        if op in MOVING:
            moved = {n: v.labels + 1 if isinstance(v, View) else v for n, v in values.items()}
            return [View(x.field, l.astype(np.int64) - 1) for l in self.evaluate(node, moved)]
        if op in SMOOTH or op in RECTIFIED:
            return [replace(x, field=activated(x.field, self.function(node, given)))]
        if op in ("Add", "Sub", "Mul", "Div") and len(views) == 1:
            return [self.affine(node, x)]
        fields = [self.field(n) for n in node.input if isinstance(values[n], View)]
        f = fields[0]
        if op == "BatchNormalization":
            gamma, beta, mean, var = (self.constant(node, k) for k in range(1, 5))
            known = gamma**2 * var / (var + given.get("epsilon", 1e-5))
            gain = np.sqrt(known / f.variance) * (f.variance > 1e-9 * f.variance.max()) * np.sign(gamma)
            return [replace(f, mean=beta, covariance=with_diagonal(f.covariance * np.outer(gain, gain), known), source=None, function=None)]
        if op in ("Add", "Sum", "Sub"):
            sign = -1 if op == "Sub" else 1
            return [replace(f, mean=f.mean + sign * sum(o.mean for o in fields[1:]), covariance=sum(o.covariance for o in fields), source=None, function=None)]
        if op == "Mul":
            b = fields[1]
            for u, v in ((f, b), (b, f)):
                if v.source is u and v.smooth is not None:
                    return [activated(u, lambda m, s: quadrature(lambda z: z * v.smooth(z), m, s))]
            size = max(f.size, b.size, key=math.prod)
            cov = f.covariance * np.outer(b.mean, b.mean) + b.covariance * np.outer(f.mean, f.mean) + f.covariance * b.covariance
            return [Field(f.mean * b.mean, cov, f.reach, size)]
        if op == "Concat":
            if given["axis"] != 1: raise ValueError
            n = sum(len(p.mean) for p in fields)
            cov = np.zeros((n, n)); at = 0
            for p in fields:
                e = at + len(p.mean); cov[at:e, at:e] = p.covariance; at = e
            return [Field(np.concatenate([p.mean for p in fields]), cov, f.reach, f.size)]
        if op in ("GlobalAveragePool", "ReduceMean"):
            R = decay(grid(f.size), f.reach).mean()
            return [replace(f, covariance=f.covariance * R, size=(1,) * len(f.size) if given.get("keepdims", 1) else (), source=None, function=None)]
        if op in ("AveragePool", "MaxPool"):
            at = window_of(given, given["kernel_shape"], f.size)
            R = decay(offsets(at), f.reach).mean(); size = coverage(at, f.size)[1]
            if op == "AveragePool": return [replace(f, covariance=f.covariance * R, size=size, source=None, function=None)]
            src = f.source or f
            k = math.prod(at.kernel)
            z = np.linspace(-8, 8, 641)
            mass = np.diff(cdf(z) ** k); mid = (z[1:] + z[:-1]) / 2
            top = mass @ mid; left = mass @ mid**2 - top**2
            r = (R * k - 1) / max(k - 1, 1)
            p = replace(src, mean=src.mean + np.sqrt(src.variance * (1 - r)) * top, covariance=src.covariance * (r + (1 - r) * left), size=size, source=None, function=None)
            return [activated(p, f.function) if f.source else p]
        raise ValueError("unknown")

    def affine(self, node, x):
        first = isinstance(self.value(node.input[1]), View)
        constant = self.constant(node, 0 if first else 1)
        f = x.field
        channel = x.labels // math.prod(f.size)
        on = x.labels >= 0
        constant = np.broadcast_to(constant, x.labels.shape)[on]
        n = len(f.mean)
        k = np.bincount(channel[on], constant, n) / np.maximum(np.bincount(channel[on], minlength=n), 1)
        scale, offset = {"Add": (1.0, k), "Sub": (-1.0, k) if first else (1.0, -k), "Mul": (k, 0.0), "Div": (1 / k if node.op_type == "Div" else 1, 0.0)}[node.op_type]
        if node.op_type == "Div" and first: raise ValueError
        scale = np.broadcast_to(scale, n)
        return replace(x, field=replace(f, mean=scale * f.mean + offset, covariance=f.covariance * np.outer(scale, scale), source=None, function=None))

    def function(self, node, given):
        if node.op_type in SMOOTH:
            return lambda m, s: quadrature(lambda z: SMOOTH[node.op_type](z, given), m, s)
        slope = given.get("alpha", .01) if node.op_type == "LeakyRelu" else self.constant(node, 1).ravel() if node.op_type == "PRelu" else 0.0
        low, high = 0.0, 1e30
        if node.op_type == "Clip":
            low, high = (np.clip(self.constant(node, k, given.get(w, d)), -1e6, 1e30).item() for k, w, d in ((1, "min", -1e6), (2, "max", 1e30)))
        return lambda m, s: rectified(m, s, low, high, slope)


MOVING = frozenset({"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
RECTIFIED = frozenset({"Relu", "LeakyRelu", "PRelu", "Clip"})

def averaged(x, channels):
    if x is None: return Field(np.zeros(channels), np.eye(channels), INNER_REACH, ())
    return Field(np.full(channels, x.mean.mean()), np.eye(channels) * x.variance.mean(), x.reach, x.size)

def grid(size):
    return np.array(list(np.ndindex(*size)), dtype=np.float64).reshape(math.prod(size), len(size))

def decay(places, reach):
    return np.exp(-np.sqrt(((places[:, None] - places[None])**2).sum(-1)) / reach)

def offsets(at):
    return grid(at.kernel) * at.dilations

def with_diagonal(m, d):
    m = m.copy(); np.fill_diagonal(m, d); return m

def coverage(at, size):
    joint, out = np.ones((1, 1)), []
    for n, k, s, d, b, a in zip(size, at.kernel, at.strides, at.dilations, at.before, at.after):
        count = max((n + b + a - d * (k - 1) - 1) // s + 1, 1)
        where = np.arange(count)[:, None] * s - b + np.arange(k) * d
        inside = ((where >= 0) & (where < n)).astype(np.float64)
        joint = np.kron(joint, inside.T @ inside / count); out.append(count)
    return joint, tuple(out)

def transposed_coverage(at, size):
    phase = offsets(at) % np.array(at.strides)
    return (phase[:, None] == phase[None]).all(-1) / math.prod(at.strides), tuple(n * s for n, s in zip(size, at.strides))

def blocks(c, g):
    i = len(c) // g; k = np.arange(g)
    return c.reshape(g, i, g, i)[k, :, k]

def spread(rows, covariance, seen):
    g, r, n = rows.shape; t = seen.grain; i = n // t
    if i == 1 and g > 1:
        flat = rows.reshape(g * r, t)
        return product(product(flat, seen.spatial[0]), flat.T) * np.repeat(np.repeat(covariance, r, 0), r, 1)
    full = np.zeros((g, r, g, i, t)); k = np.arange(g)
    full[k, :, k] = rows.reshape(g, r, i, t)
    full = full.reshape(1, g * r, g * n)
    return product(through(full, Kronecker(covariance[None], seen.spatial[:1])), full.swapaxes(1, 2))[0]

def anchored(x, rows, places, share, norm, bias, first):
    g, r, n = rows.shape; t = len(places); i = n // t
    mean, variance = (norm.mean - bias).reshape(g, r), norm.var.reshape(g, r)
    base = blocks(x.covariance, g)
    def seen(L): return Kronecker(base, np.repeat((decay(places, L) * share)[None], g, 0))
    def misfit(L):
        expected = np.einsum("grn,grn->gr", through(rows, seen(L)), rows)
        ok = (variance > 1e-6 * variance.max()) & (expected > 1e-6 * expected.max())
        if not ok.any(): return 0, 0
        ratio = np.log(variance[ok] / expected[ok])
        return float(np.abs(ratio - np.median(ratio)).mean()) + HESITATION * abs(math.log(L / x.reach)), float(np.median(ratio))
    reach = min(REACHES, key=lambda L: misfit(L)[0]) if t > 1 else x.reach
    if first and OPT["scale1"]: base = base * math.exp(misfit(reach)[1])
    keep = np.linspace(0, r - 1, min(MOST_OUTPUTS, r)).astype(int)
    W, mean, variance = rows[:, keep], mean[:, keep], variance[:, keep]
    P = through(W, seen(reach))
    G = product(W, P.swapaxes(1, 2))
    D = np.einsum("grr->gr", G)
    alive = D > 1e-6 * D.max(); D = np.where(alive, D, 1e-6 * D.max() + TINY)
    eye = np.eye(len(keep))
    P = P.reshape(g, -1, i, t)
    m = x.mean
    surprise = mean - np.einsum("grit,gi,t->gr", W.reshape(P.shape), m.reshape(g, i), np.diagonal(share))
    def solve(a, b): return np.linalg.solve(a, np.where(alive, b, 0)[..., None])[..., 0]
    beta = solve(G + DOUBT * D[..., None] * eye, surprise)
    if OPT["kmean"]: m = m + np.einsum("gr,grit->git", beta, P).mean(2).ravel()
    C = x.covariance.copy(); k = np.arange(g)
    if OPT["kcov"]:
        alpha = solve(G**2 + DOUBT * D[..., None]**2 * eye, variance - D)
        w, u = np.linalg.eigh(base + np.einsum("grit,gr,grjt->gij", P, alpha, P, optimize=True) / t)
        w = np.maximum(w, 1e-3 * np.maximum(w.mean(1, keepdims=True), TINY))
        base = (u * w[:, None]) @ u.swapaxes(1, 2)
    C.reshape(g, i, g, i)[k, :, k] = base
    return replace(x, mean=m, covariance=C, reach=reach)

def cdf(x): return np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[float])(x)

def ramp(m, s):
    a = m / s
    p, d = cdf(a), np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return m * p + s * d, (m * m + s * s) * p + m * s * d, p

def rectified(m, s, low, high, slope=0.0):
    r1, r2, p = ramp(m - low, s)
    h1, h2, q = ramp(m - high, s)
    e, e2, g = r1 - h1, r2 - h2 - 2 * (high - low) * h1, p - q
    if low == 0:
        e, e2, g = e + slope * (m - r1), e2 + slope**2 * (m * m + s * s - r2), g + slope * (1 - p)
    return low + e, e2 - e**2, g

Z = np.linspace(-8, 8, 641)[:, None]
WZ = np.exp(-Z**2 / 2); WZ /= WZ.sum()

def quadrature(f, m, s):
    v = f(m + s * Z)
    e = (WZ * v).sum(0)
    return e, (WZ * (v - e) ** 2).sum(0), (WZ * Z * v).sum(0) / s

def sigmoid(x): return 0.5 * (1 + np.tanh(x / 2))

SMOOTH = {
    "Sigmoid": lambda x, a: sigmoid(x), "Tanh": lambda x, a: np.tanh(x), "HardSwish": lambda x, a: x * np.clip(x / 6 + .5, 0, 1),
    "HardSigmoid": lambda x, a: np.clip(a.get("alpha", .2) * x + a.get("beta", .5), 0, 1),
    "Softplus": lambda x, a: np.logaddexp(0, x), "Exp": lambda x, a: np.exp(np.minimum(x, 30)), "Mish": lambda x, a: x * np.tanh(np.logaddexp(0, x)),
    "Elu": lambda x, a: np.where(x > 0, x, a.get("alpha", 1.) * np.expm1(np.minimum(x, 0))), "Gelu": lambda x, a: x * cdf(x),
    "Swish": lambda x, a: x * sigmoid(a.get("alpha", 1.) * x),
}

def activated(x, function):
    v0 = x.variance; s = np.sqrt(v0)
    e, v, g = function(x.mean, s)
    d = np.sqrt(np.maximum(v - (g * s) ** 2, 0))
    corr = np.clip(x.covariance / np.outer(s, s), -1, 1)
    cov = with_diagonal(np.outer(g, g) * x.covariance + np.outer(d, d) * corr**2, np.maximum(v, 0))
    return replace(x, mean=e, covariance=cov, source=x, function=function)
