"""Analytic statistics: every closed form against another way to the same number, and whole graphs against
simulation.
"""

import ast
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper, parser
from scipy import stats

import onnx_dfmpc.statistics
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.spec import InputStatistics
from onnx_dfmpc.statistics import operators, views
from onnx_dfmpc.statistics.activations import activation
from onnx_dfmpc.statistics.analytic import analytic, analytic_layers
from onnx_dfmpc.statistics.anchoring import assimilate
from onnx_dfmpc.statistics.field import (
    Field,
    Kernel,
    averaged,
    back,
    coverage,
    filtered,
    offsets_of,
    patches,
    resample,
    transform,
    transposed,
)
from onnx_dfmpc.statistics.prior import Reading, prior
from onnx_dfmpc.statistics.propagate import Propagation, Signal, Unknown
from onnx_dfmpc.statistics.rectified import PiecewiseLinear, covariance, expand, largest_of
from onnx_dfmpc.statistics.rules import RULES
from onnx_dfmpc.statistics.windows import Window, window_of

RELU = PiecewiseLinear(0.0, 0.0, (0.0,), (1.0,))
FORMS = [
    ("Relu", {}, []),
    ("LeakyRelu", {"alpha": 0.2}, []),
    ("PRelu", {}, [np.array([0.25, -0.5, 1.5])]),
    ("Clip", {"min": 0.0, "max": 6.0}, []),
    ("Clip", {}, [np.array(-1.0), np.array(0.5)]),
    ("Clip", {"max": 0.3}, []),
    ("HardSigmoid", {}, []),
    ("Sigmoid", {}, []),
    ("HardSwish", {}, []),
    ("Tanh", {}, []),
    ("Elu", {"alpha": 0.5}, []),
    ("Gelu", {}, []),
    ("Softplus", {}, []),
]


def random_field(
    channels: int, size: tuple[int, ...], seed: int, torus: tuple[int, ...] | None = None
) -> Field:
    """NoStatistics noise through a random periodic filter: lags that are the covariance of something."""
    rng = np.random.default_rng(seed)
    torus = torus or size
    spectrum = np.fft.fftn(rng.standard_normal((*torus, channels, channels)), axes=range(len(torus)))
    spectrum = spectrum @ spectrum.conj().swapaxes(-1, -2)
    lags = np.fft.ifftn(spectrum, axes=range(len(torus))).real
    lags /= np.trace(lags[(0,) * len(torus)]) / channels
    return Field(rng.standard_normal(channels), lags.astype(np.float32), size, (1.0,) * len(size), -1)


def dense(field: Field) -> np.ndarray:
    """Covariance of all elements (channel, place) of a field on its torus."""
    places = np.array(list(np.ndindex(*field.size)))
    difference = (places[None] - places[:, None]) % np.array(field.size)
    blocks = field.lags[tuple(np.moveaxis(difference, -1, 0))]  # p, q, i, j
    n = len(places) * field.channels
    return blocks.transpose(2, 0, 3, 1).reshape(n, n).astype(np.float64)


# closed forms


@pytest.mark.parametrize(("op", "attributes", "constants"), FORMS)
def test_moments_of_activations_are_those_of_numerical_integration(op, attributes, constants):
    mean, variance = np.array([-1.3, 0.2, 2.0]), np.array([0.5, 2.0, 9.0])
    function = activation(op, attributes, constants, 3)
    z = np.linspace(-9, 9, 18001)
    mass = stats.norm.pdf(z) * (z[1] - z[0])
    values = function(mean + np.sqrt(variance) * z[:, None])
    found = expand(function, mean, variance)
    expected = mass @ values
    np.testing.assert_allclose(found.mean, expected, atol=1e-4)
    np.testing.assert_allclose(found.variance, mass @ values**2 - expected**2, atol=2e-4)
    np.testing.assert_allclose(found.coefficients[0], (mass * z) @ values, atol=1e-4)  # h_1


@pytest.mark.parametrize("rho", [-0.9, -0.4, 0.0, 0.3, 0.8, 0.99])
def test_relu_covariance_is_the_arc_cosine_kernel(rho):
    variance = np.array([0.5, 3.0])
    e = expand(RELU, np.zeros(2), variance)
    theta = np.arccos(rho)
    second = np.sqrt(variance.prod()) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    found = covariance(e, e, np.array([[1.0, rho], [rho, 1.0]]))
    assert found[0, 1] == pytest.approx(second - e.mean.prod(), abs=6e-3)
    np.testing.assert_allclose(np.diag(found), e.variance)


@pytest.mark.parametrize(("op", "attributes", "constants"), FORMS)
def test_covariance_of_activations_against_simulation(op, attributes, constants):
    rng = np.random.default_rng(1)
    mean, variance, rho = np.array([-0.5, 0.2, 1.0]), np.array([0.5, 2.0, 1.0]), 0.7
    function = activation(op, attributes, constants, 3)
    z = rng.standard_normal((400_000, 3))
    other = rho * z + np.sqrt(1 - rho**2) * rng.standard_normal(z.shape)
    x, y = (function(mean + np.sqrt(variance) * noise) for noise in (z, other))
    e = expand(function, mean, variance)
    simulated = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0)
    np.testing.assert_allclose(
        np.diag(covariance(e, e, np.full((3, 3), rho))), simulated, atol=0.012 * max(1, e.variance.max())
    )


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_largest_of_independent_normals(count):
    largest = np.random.default_rng(0).standard_normal((400_000, count)).max(axis=1)
    assert largest_of(count) == pytest.approx((largest.mean(), largest.var()), abs=6e-3)


# fields


@given(st.lists(st.integers(1, 7), max_size=3).map(tuple), st.integers(0, 100))
@settings(max_examples=30)
def test_transform_is_the_fft(torus, seed):
    x = np.random.default_rng(seed).standard_normal((*torus, 2, 3)).astype(np.float32)
    axes = tuple(range(len(torus)))
    np.testing.assert_allclose(transform(x), np.fft.rfftn(x, axes=axes) if axes else x, atol=1e-3)
    np.testing.assert_allclose(back(transform(x), torus), x, atol=1e-4)


@pytest.mark.parametrize(("group", "stride"), [(1, 1), (1, 2), (2, 1), (4, 2)])
def test_convolution_on_a_torus_is_exact(group, stride):
    rng = np.random.default_rng(group + stride)
    field = random_field(4, (6, 8), 3)
    weight = rng.standard_normal((4, 4 // group, 3, 2))
    offsets = offsets_of(Window((3, 2), (stride, stride), (1, 2), (1, 0), (1, 0)))
    kernel = Kernel(weight.reshape(4, 4 // group, -1), offsets, (stride, stride), group)
    out = (6 // stride, 8 // stride)
    matrix = np.zeros((4, *out, 4, 6, 8))
    for o, p, q, i, (t, offset) in product(
        range(4), range(out[0]), range(out[1]), range(4 // group), list(enumerate(offsets))
    ):
        source = o // (4 // group) * (4 // group) + i
        matrix[o, p, q, source, (p * stride + offset[0]) % 6, (q * stride + offset[1]) % 8] += kernel.weight[
            o, i, t
        ]
    matrix = matrix.reshape(4 * out[0] * out[1], -1)
    expected = matrix @ dense(field) @ matrix.T
    result = Field(np.zeros(4), filtered(field.lags, kernel, (6, 8), out), out, (1.0, 1.0), 0)
    np.testing.assert_allclose(dense(result), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("group", "pads", "stride", "dilation"),
    [(1, 1, 1, 1), (1, 1, 2, 1), (3, 1, 1, 1), (1, 2, 1, 2), (3, 0, 2, 1)],
)
def test_patches_count_the_zeros_of_the_padding(group, pads, stride, dilation):
    field = random_field(3, (7, 6), 5, (15, 15))
    at = Window((3, 3), (stride,) * 2, (dilation,) * 2, (pads,) * 2, (pads,) * 2)
    mean, cov = patches(field, at, group)
    counts = [(n + 2 * pads - 2 * dilation - 1) // stride + 1 for n in field.size]
    first, second = np.zeros(27), np.zeros((27, 27))
    for corner in np.ndindex(*counts):
        taps = [
            tuple(c * stride - pads + t * dilation for c, t in zip(corner, tap, strict=True))
            for tap in np.ndindex(3, 3)
        ]
        inside = [all(0 <= p < n for p, n in zip(tap, field.size, strict=True)) for tap in taps]
        m = np.array([field.mean[i] * ok for i in range(3) for ok in inside])
        block = np.zeros((3, 9, 3, 9))
        for a, b in product(range(9), repeat=2):
            if inside[a] and inside[b]:
                block[:, a, :, b] = field.at([q - p for p, q in zip(taps[a], taps[b], strict=True)])
        first += m / np.prod(counts)
        second += (block.reshape(27, 27) + np.outer(m, m)) / np.prod(counts)
    expected = second - np.outer(first, first)
    n = 27 // group
    for g in range(group):
        np.testing.assert_allclose(mean[g], first[g * n : (g + 1) * n], atol=1e-6)
        np.testing.assert_allclose(cov[g], expected[g * n : (g + 1) * n, g * n : (g + 1) * n], atol=1e-5)


def test_coverage_without_padding_is_full():
    assert np.all(coverage(Window((3, 3), (2, 1), (1, 1), (0, 0), (0, 0)), (9, 8)) == 1)


def test_average_over_all_places():
    field = random_field(2, (5, 4), 0)
    smooth = Field(field.mean, np.full_like(field.lags, 1.0), (5, 4), (1.0, 1.0), 0)
    np.testing.assert_allclose(averaged(smooth.lags, (5, 4)), 1, atol=1e-5)
    white = np.zeros((5, 4, 2, 2), np.float32)
    white[0, 0] = np.eye(2)
    np.testing.assert_allclose(averaged(white, (5, 4)), np.eye(2) / 20, atol=1e-6)


def test_transposed_exchanges_the_two_and_resample_keeps_what_it_can():
    lags = random_field(3, (6, 5), 1).lags
    np.testing.assert_allclose(transposed(lags), lags, atol=1e-5)  # a covariance with itself
    small = resample(lags, (3, 3))
    for lag in product((-1, 0, 1), repeat=2):
        np.testing.assert_array_equal(small[lag], lags[lag])
    np.testing.assert_array_equal(resample(lags, (3, 5), (2, 1))[1], lags[2])


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 12), st.integers(1, 9))
@settings(max_examples=40)
def test_assimilation_agrees_better_and_stays_a_covariance(seed, g, r, n):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((g, n, n))
    prior_covariance = (root @ root.swapaxes(1, 2) / n).astype(np.float32)
    weight, mean = rng.standard_normal((g, r, n)), rng.standard_normal((g, n))
    variance = np.einsum("grn,gnm,grm->gr", weight, prior_covariance, weight)
    target = variance * rng.uniform(0.3, 3, (g, r))
    shift = (weight @ mean[..., None])[..., 0] + rng.standard_normal((g, r))
    new_mean, new = assimilate(weight, mean, prior_covariance, shift, target)
    assert np.linalg.eigvalsh(new).min() > -1e-4 * np.abs(new).max()
    before, after = (np.square(shift - (weight @ m[..., None])[..., 0]) / variance for m in (mean, new_mean))
    assert np.all(after.sum(axis=1) <= before.sum(axis=1) * (1 + 1e-6))
    same_mean, same = assimilate(weight, mean, prior_covariance, (weight @ mean[..., None])[..., 0], variance)
    np.testing.assert_allclose(same, prior_covariance, atol=1e-3 * np.abs(prior_covariance).max())
    np.testing.assert_allclose(same_mean, mean, atol=1e-6)


def test_a_single_measurement_is_believed_as_far_as_it_should():
    weight, identity = np.array([[[1.0, 0.0]]]), np.eye(2, dtype=np.float32)[None]
    mean, new = assimilate(weight, np.zeros((1, 2)), identity, np.array([[1.3]]), np.array([[2.3]]))
    np.testing.assert_allclose(mean, [[1.0, 0.0]])  # 1.3 / (1 + lambda)
    np.testing.assert_allclose(new, [[[2.0, 0.0], [0.0, 1.0]]], rtol=1e-5)


def test_first_batch_norm_says_scale_mean_and_reach_of_the_input():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 3, 3, 3))
    at = Window((3, 3), (1, 1), (1, 1), (0, 0), (0, 0))
    true = prior(3, (32, 32), [], (0.0, 70.0), 0)
    true = Field(np.array([120.0, 110.0, 100.0]), true.lags, true.size, true.step, 0)
    mean, cov = patches(true, at, 1)
    rows = weight.reshape(24, -1)
    reading = Reading(weight, at, 1, rows @ mean[0], np.einsum("rn,nm,rm->r", rows, cov[0], rows))
    found = prior(3, (32, 32), [reading], (0.0, 1.0), 0)
    np.testing.assert_allclose(found.mean, true.mean, rtol=0.05)
    np.testing.assert_allclose(found.lags[:3, :3], true.lags[:3, :3], rtol=0.02)


def test_window_resolves_auto_pad_and_ceil_mode():
    assert window_of({"auto_pad": b"SAME_UPPER", "strides": (2, 2)}, (3, 3), (8, 7)) == Window(
        (3, 3), (2, 2), (1, 1), (0, 1), (1, 1)
    )
    assert window_of({"auto_pad": b"SAME_LOWER", "strides": (2,)}, (3,), (8,)) == Window(
        (3,), (2,), (1,), (1,), (0,)
    )
    assert window_of({"ceil_mode": 1, "strides": (2,)}, (3,), (8,)) == Window((3,), (2,), (1,), (0,), (1,))


# graphs


GRAPHS = {
    "conv": "y = Conv<pads = [1, 1, 1, 1]>(x, w, b)",
    "strided": "y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)",
    "two convolutions": "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(r, v)",
    "depthwise": "a = Conv(x, w, b) r = Relu(a) y = Conv<group = 4>(r, d)",
    "grouped": "a = Conv(x, w, b) y = Conv<group = 2>(a, g)",
    "relu": "a = Conv(x, w, b) y = Relu(a)",
    "clip": "a = Conv(x, w, b) y = Clip(a, low, high)",
    "leaky": "a = Conv(x, w, b) y = LeakyRelu<alpha = 0.1>(a)",
    "prelu": "a = Conv(x, w, b) y = PRelu(a, slope)",
    "silu": "a = Conv(x, w, b) s = Sigmoid(a) y = Mul(a, s)",
    "hard swish": "a = Conv(x, w, b) s = HardSigmoid<alpha = 0.166667, beta = 0.5>(a) y = Mul(s, a)",
    "batch norm": "a = Conv(x, w, b) y = BatchNormalization(a, gamma, beta, mu, var)",
    "two filters": "a = Conv(x, w, b) c = Conv(x, w2, b) y = Sub(a, c)",
    "cropped residual": "a = Conv(x, w, b) c = Conv(x, q) s = Slice(c, crop, less_one, axes) y = Add(a, s)",
    "two strided filters": "a = Conv<strides = [2, 2]>(x, w, b) c = Slice(x, crop, less_one, axes, steps) e = Conv(c, q) y = Sub(a, e)",
    "linear bottleneck": "a = Conv(x, w, b) c = Conv(a, v) s = Slice(a, crop, less_two, axes) y = Add(c, s)",
    "two activated filters": "a = Conv(x, w, b) c = Conv(x, w2, b) r = Relu(a) e = Relu(c) y = Sub(r, e)",
    "residual": "a = Conv(x, w, b) r = Conv<pads = [1, 1, 1, 1]>(a, v) y = Add(a, r)",
    "residual with relu": (
        "a = Conv(x, w, b) r = Relu(a) s = Conv<pads = [1, 1, 1, 1]>(r, v) t = Relu(s) u = Conv<pads = [1, 1, 1, 1]>(t, v) y = Add(r, u)"
    ),
    "two branches": "a = Conv(x, w, b) r = Relu(a) s = Conv<pads = [1, 1, 1, 1]>(r, v) t = Conv(r, p) y = Sub(s, t)",
    "strided branches": (
        "r = Relu(x) s = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, w) t = Relu(s) u = Conv<pads = [1, 1, 1, 1]>(t, v) "
        "o = Conv<strides = [2, 2]>(r, q) y = Add(u, o)"
    ),
    "concat": "a = Conv(x, w, b) s = Conv<pads = [1, 1, 1, 1]>(a, v) t = Conv(a, p) y = Concat<axis = 1>(s, t)",
    "split and shuffle": (
        "a = Conv(x, w, b) l, r = Split<axis = 1>(a, two) e = Relu(r) n = Concat<axis = 1>(l, e) o = Reshape(n, apart) "
        "z = Transpose<perm = [0, 2, 1, 3, 4]>(o) y = Reshape(z, together)"
    ),
    "gather": (
        "a = Conv(x, w, b) o = Reshape(a, apart) z = Transpose<perm = [1, 0, 2, 3, 4]>(o) s = Reshape(z, halves) "
        "y = Gather<axis = 0>(s, one)"
    ),
    "option A": "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) s = Slice(a, starts, ends, axes, steps) y = Pad(s, channels)",
    "computed shape": (
        "a = Conv(x, w, b) i = Shape(a) c = Gather(i, batch) e = Unsqueeze(c, batch_axis) f = Concat<axis = 0>(e, rest) y = Reshape(a, f)"
    ),
    "average pool": "a = Conv(x, w, b) y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)",
    "padded average pool": "a = Conv(x, w, b) r = Relu(a) y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r)",
    "max pool": "a = Conv(x, w, b) r = Relu(a) y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)",
    "global average": "r = Relu(x) y = GlobalAveragePool(r)",
    "head": "r = Relu(x) e = ReduceMean<axes = [2, 3], keepdims = 0>(r) y = Gemm<transB = 1, alpha = 0.5>(e, h, b)",
    "flatten": "a = AveragePool<kernel_shape = [12, 12], strides = [12, 12]>(x) f = Flatten(a) y = MatMul(f, m)",
    "channels last": (
        "a = Conv(x, w, b) t = Transpose<perm = [0, 2, 3, 1]>(a) f = MatMul(t, k) o = Add(f, b) y = Transpose<perm = [0, 3, 1, 2]>(o)"
    ),
    "gate": "a = Conv(x, w, b) c = Conv(x, w2, b) s = Sigmoid(c) y = Mul(a, s)",
    "affine": "a = Conv(x, w, b) s = Mul(a, scale) y = Sub(one_f, s)",
    "transposed": "a = Conv(x, w, b) y = ConvTranspose<strides = [2, 2]>(a, up, b)",
    "enlarged": (
        'a = Conv(x, w, b) y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(a, , scales)'
    ),
    "one-dimensional padding": 'a = Conv<auto_pad = "SAME_UPPER">(x, w, b) y = Relu(a)',
}
SINGLE = {"global average", "head", "flatten"}
"""One place per sample: more samples."""

LOOSE = {"max pool", "gate", "transposed", "residual with relu", "strided branches", "global average", "head"}
"""Not exact even where everything is normal: a model of the maximum, an independent gate, averages over
phases, first-order terms, and the average over a torus, which real images are not.
"""


def graph_of(body: str, seed: int = 0) -> ModelProto:
    rng = np.random.default_rng(seed)
    n = rng.standard_normal
    arrays = {
        "w": n((4, 3, 3, 3)) / 3,
        "w2": n((4, 3, 3, 3)) / 3,
        "b": n(4) / 2,
        "v": n((4, 4, 3, 3)) / 4,
        "p": n((4, 4, 1, 1)) / 2,
        "q": n((4, 3, 1, 1)) / 2,
        "d": n((4, 1, 3, 3)) / 3,
        "g": n((4, 2, 1, 1)) / 2,
        "h": n((4, 3)),
        "k": n((4, 4)),
        "m": n((12, 4)),
        "up": n((4, 4, 2, 2)) / 2,
        "slope": rng.uniform(0, 0.5, (4, 1, 1)),
        "low": np.array(0.0),
        "high": np.array(1.0),
        "gamma": rng.uniform(0.5, 2, 4),
        "beta": n(4),
        "mu": n(4),
        "var": rng.uniform(0.5, 2, 4),
        "scale": n((4, 1, 1)),
        "one_f": np.array(1.0),
        "scales": np.array([1.0, 1.0, 2.0, 2.0]),
    }
    integers = {
        "two": [2, 2],
        "apart": [1, 2, 2, 22, 22],
        "together": [1, 4, 22, 22],
        "halves": [2, 1, 2, 22, 22],
        "one": 1,
        "starts": [0, 0],
        "ends": [24, 24],
        "axes": [2, 3],
        "steps": [2, 2],
        "crop": [1, 1],
        "less_two": [21, 21],
        "less_one": [23, 23],
        "channels": [0, 1, 0, 0, 0, 2, 0, 0],
        "batch": 0,
        "batch_axis": [0],
        "rest": [4, 484],
    }
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 24, 24] x) => (y) {{ {body} }}'
    )
    tensors = [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()]
    tensors += [numpy_helper.from_array(np.asarray(a, np.int64), name) for name, a in integers.items()]
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(tensor for tensor in tensors if tensor.name in read)
    return model


def propagate(model: ModelProto, source: Field) -> Field:
    walk = Propagation(model, RULES)
    walk.start("x", Field(source.mean, source.lags, source.size, source.step, walk.birth()))
    for node in model.graph.node:
        walk.run(node)
    return walk.field("y")


def sample(source: Field, count: int, seed: int) -> np.ndarray:
    """Normal samples with the covariance of a field, shape (count, c, *size)."""
    rng = np.random.default_rng(seed)
    axes = tuple(range(len(source.size)))
    spectrum = np.fft.fftn(source.lags.astype(np.float64), axes=axes).conj()
    values, vectors = np.linalg.eigh(spectrum)
    root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :] @ vectors.conj().swapaxes(-1, -2)
    noise = np.fft.fftn(
        rng.standard_normal((count, *source.size, source.channels)), axes=tuple(a + 1 for a in axes)
    )
    fields = np.fft.ifftn((root @ noise[..., None])[..., 0], axes=tuple(a + 1 for a in axes)).real
    return np.moveaxis(fields + source.mean, -1, 1).astype(np.float32)


def simulate(model: ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Outputs with channels on the last axis, places and samples flattened."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(None, {"x": x[None]})[0] for x in inputs])
    return np.moveaxis(outputs, 1, -1).reshape(-1, outputs.shape[1])


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_against_simulation(name):
    model = graph_of(GRAPHS[name])
    source = random_smooth_field()
    found = propagate(model, source)
    outputs = simulate(model, sample(source, 4000 if name in SINGLE else 500, 0))
    mean, deviation = outputs.mean(axis=0), outputs.std(axis=0)
    estimated = np.sqrt(found.variance)
    live = deviation > 0
    if name == "batch norm":  # knows better than the input of this test
        gamma, beta, var = (
            numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == n))
            for n in ("gamma", "beta", "var")
        )
        mean, deviation = beta, np.abs(gamma) * np.sqrt(var / (var + 1e-5))
    loose = name in LOOSE
    np.testing.assert_array_equal(found.mean[~live], 0)
    np.testing.assert_allclose(
        found.mean[live] / deviation[live], mean[live] / deviation[live], atol=0.25 if loose else 0.1
    )
    np.testing.assert_allclose(estimated[live] / deviation[live], 1, atol=0.3 if loose else 0.08)
    correlation = found.covariance[np.ix_(live, live)] / np.outer(estimated[live], estimated[live])
    np.testing.assert_allclose(correlation, np.corrcoef(outputs[:, live].T), atol=0.15 if loose else 0.07)


def random_smooth_field() -> Field:
    """Three channels with something in common, reaching over a few places; a torus as large as the tensor."""
    field = prior(3, (24, 24), [], (0.3, 1.0), 0)
    lag = np.abs(np.fft.fftfreq(24, 1 / 24))
    fade = np.exp(-np.hypot(lag[:, None], lag[None]) / 2)
    channels = np.array([[1.0, 0.5, 0.2], [0.5, 1.5, -0.3], [0.2, -0.3, 0.7]])
    return Field(field.mean, (fade[..., None, None] * channels).astype(np.float32), (24, 24), (1.0, 1.0), 0)


def test_without_the_covariance_of_the_branches_a_residual_sum_is_wrong(monkeypatch):
    model, source = graph_of(GRAPHS["residual"]), random_smooth_field()
    deviation = simulate(model, sample(source, 500, 0)).std(axis=0)
    right = np.sqrt(propagate(model, source).variance) / deviation
    monkeypatch.setattr(operators, "cross_covariance", lambda a, b: None)
    wrong = np.sqrt(propagate(model, source).variance) / deviation
    assert np.abs(wrong - 1).max() > 3 * np.abs(right - 1).max()


def test_unknown_operators_are_named_and_leave_the_rest_alone():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z)
        {
            a = Conv(x, w)  i = Conv(a, v)  s = Sin(a)  y = Conv(s, u)  z = Relu(i)
        }""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 3, 3)), ("v", (4, 4, 1, 1)), ("u", (4, 4, 1, 1))):
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    layers = match(model).layers
    found = {layer.output: result for layer, result in analytic_layers(model, layers)}
    assert isinstance(found["a"], InputStatistics)
    assert isinstance(found["i"], InputStatistics)
    assert isinstance(found["y"], Unknown)
    assert "Sin" in found["y"].reason
    assert [layer.output for layer, _ in analytic(model, layers)] == ["a", "i"]


def test_a_second_domain_is_not_mistaken_for_a_known_operator():
    walk = Propagation(graph_of("y = Relu(x)"), RULES)
    walk.start("x", random_smooth_field())
    walk.run(helper.make_node("Relu", ["x"], ["z"], domain="com.example"))
    assert walk.values["z"] == Unknown("operator com.example::Relu")


def test_scale_and_offset_of_a_batch_norm_are_kept(digits_bn):
    model = onnx_dfmpc.model.load(digits_bn).proto
    walk = Propagation(model, RULES)
    walk.start("input", prior(1, (8, 8), [], (0.0, 1.0), walk.birth()))
    seen = 0
    for node in model.graph.node:
        walk.run(node)
        value = walk.values.get(node.output[0])
        if node.op_type == "BatchNormalization" and isinstance(value, Signal):
            gamma, beta, _, var = (walk.table[name].astype(np.float64) for name in node.input[1:5])
            np.testing.assert_allclose(value.field.mean, beta, atol=1e-6)
            np.testing.assert_allclose(value.field.variance, gamma**2 * var / (var + 1e-5), rtol=1e-3)
            seen += 1
    assert seen > 10


def test_the_past_is_forgotten():
    blocks = ["r0 = Relu(x) c0 = Conv<pads = [1, 1, 1, 1]>(r0, f) s0 = Add(r0, c0)"]
    blocks += [
        f"r{i} = Relu(s{i - 1}) c{i} = Conv<pads = [1, 1, 1, 1]>(r{i}, f) s{i} = Add(r{i}, c{i})"
        for i in range(1, 30)
    ]
    body = " ".join(blocks)
    model = graph_of(body + " y = Relu(s29)")
    model.graph.initializer.append(numpy_helper.from_array(np.full((3, 3, 3, 3), 0.01, np.float32), "f"))
    walk = Propagation(model, RULES)
    walk.start("x", random_smooth_field())
    most = 0
    for node in model.graph.node:
        walk.run(node)
        most = max(most, len(ancestors(walk)))
    assert most < 12


def ancestors(walk: Propagation) -> set[int]:
    """Identities of all fields that the values keep alive."""
    found: dict[int, Field] = {}
    stack = [value.field for value in walk.values.values() if isinstance(value, Signal)]
    while stack:
        field = stack.pop()
        if id(field) not in found:
            found[id(field)] = field
            origin = field.origin
            stack.extend(getattr(origin, "parts", ()))
            stack.extend([origin.parent] if hasattr(origin, "parent") else [])
    return set(found)


def test_every_layer_of_a_shared_model_is_reached(shared_model):
    if shared_model.stem in (
        "ultraface_rfb_320_bn",
        "fastestdet_folded",
        "fer_xception_bn",
        "cifar10_resnet56_bn",
        "cifar10_resnet56_folded",
    ):
        pytest.skip("takes seconds and has no operator that the others lack")
    model = onnx_dfmpc.model.load(shared_model).proto
    layers = match(model).layers
    for layer, found in analytic_layers(model, layers):
        assert isinstance(found, InputStatistics), f"{layer.name}: {found}"
        g, n = found.mean.shape
        assert found.covariance.shape == (g, n, n)
        assert g * n * (layer.channels // g) == layer.size
        assert np.isfinite(found.mean).all()
        assert np.isfinite(found.covariance).all()
        deviation = np.sqrt(np.maximum(np.einsum("gnn->gn", found.covariance), 1e-30))
        np.linalg.cholesky(found.covariance / deviation[:, :, None] / deviation[:, None] + 0.01 * np.eye(n))


def test_runs_no_model():
    directory = Path(onnx_dfmpc.statistics.__file__).parent
    running = {"probe", "stream", "moments", "ranges", "feeds", "synthetic", "__init__"}
    for path in directory.glob("*.py"):
        if path.stem in running:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", "")]
            )
            assert not any(str(name).startswith("onnxruntime") for name in names), path


def test_labels_of_a_channel_shuffle():
    field = random_field(4, (3, 3), 0)
    shuffled = views.labels((1, 4, 3, 3)).reshape(1, 2, 2, 3, 3).swapaxes(1, 2).reshape(1, 4, 3, 3)
    found = views.read(field, shuffled, 1)
    np.testing.assert_array_equal(found.mean, field.mean[[0, 2, 1, 3]])
    np.testing.assert_array_equal(found.covariance, field.covariance[np.ix_([0, 2, 1, 3], [0, 2, 1, 3])])


def test_mixed_channels_are_not_a_field():
    mixed = views.labels((1, 4, 3, 3)).reshape(1, 2, 6, 3)
    assert views.read(random_field(4, (3, 3), 0), mixed, 1) is None
