"""Closed-form statistics: rules against sampling or another way to the same number; models that nothing runs."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from scipy import integrate
from scipy import stats as distributions

from onnx_dfmpc.linalg.matrices import Kronecker, matrix
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec import InputStatistics
from onnx_dfmpc.statistics import closed_form as module
from onnx_dfmpc.statistics import normal
from onnx_dfmpc.statistics.closed_form import closed_form
from onnx_dfmpc.statistics.windows import Window, coverage, distances, grid, mean_decay, transposed_coverage

SIDE, SAMPLES = 4, 2000
PLACES = [(y, x) for y in range(SIDE) for x in range(SIDE)]


def model(body: str, weights: dict[str, np.ndarray], shape: str = f"N,3,{SIDE},{SIDE}") -> ModelProto:
    """A graph from x to y, as text, with initializers."""
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18, "odd" : 1]> '
        f"g (float[{shape}] x) => (float[?] y) {{ {body} }}"
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return proto


def statistics(proto: ModelProto) -> list[InputStatistics]:
    layers = match(proto).layers
    by_name = closed_form(proto, layers, input_range=None)
    return [by_name[layer.name] for layer in layers]


def filters(o: int, i: int, *kernel: int, seed: int = 0) -> np.ndarray:
    weight = np.random.default_rng(seed).standard_normal((o, i, *kernel))
    return (weight / np.sqrt(i * np.prod(kernel))).astype(np.float32)


@cache
def photographs() -> np.ndarray:
    """Samples of what the closed form takes inputs for: mean 0, deviation 1."""
    spatial = np.exp(-distances(np.array(PLACES, np.float64)) / module.INPUT_REACH)
    colours = np.full((3, 3), module.COLOURS) + (1 - module.COLOURS) * np.eye(3)
    white = np.random.default_rng(0).standard_normal((SAMPLES, 3, SIDE * SIDE))
    images = np.linalg.cholesky(colours) @ white @ np.linalg.cholesky(spatial).T
    return images.reshape(SAMPLES, 3, SIDE, SIDE).astype(np.float32)


@pytest.fixture
def exact(monkeypatch):
    """Reach and power as they are for a 1x1 convolution of such inputs, not as on average in networks."""
    monkeypatch.setattr(module, "INNER_REACH", module.INPUT_REACH)
    monkeypatch.setattr(module, "SHORTFALL", 1.0)


OPERATORS = {  # between c, which a 1x1 convolution made, and z, which a 1x1 convolution or a matrix reads
    "relu": "z = Relu(c)",
    "leaky": "z = LeakyRelu <alpha = 0.3> (c)",
    "prelu": "z = PRelu(c, slopes)",
    "clip": "z = Clip(c, low, high)",
    "sigmoid": "z = Sigmoid(c)",
    "swish": "s = Sigmoid(c) z = Mul(c, s)",
    "hard swish": "s = HardSigmoid(c) z = Mul(s, c)",
    "max of relu": "r = Relu(c) z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)",
    "max": "z = MaxPool <kernel_shape = [2, 2]> (c)",
    "largest": "z = GlobalMaxPool(c)",
    "average": "z = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
    "global average": "r = Relu(c) z = GlobalAveragePool(r)",
    "scale and offset": "s = Mul(c, slopes) z = Add(offsets, s)",
    "minus and over": "s = Sub(offsets, c) z = Div(s, slopes)",
    "shuffle": "r = Reshape(c, by_two) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) z = Reshape(t, as_before)",
    "shape": "s = Shape(c) r = Relu(c) z = Reshape(r, s)",
    "padded channels": "r = Relu(c) s = Slice(r, first, last, along) z = Pad(s, pads)",
    "channels last": "t = Transpose <perm = [0,2,3,1]> (c) r = Relu(t) z = Transpose <perm = [0,3,1,2]> (r)",
    "custom operator": "r = odd.Unheard(c) z = Relu(c)",
}
CONSTANTS = {
    "slopes": np.array([0.2, -0.5, 1.5, 0.7], np.float32).reshape(4, 1, 1),
    "offsets": np.array([0.2, -0.5, 1.5, 0.7], np.float32).reshape(1, 4, 1, 1),
    "low": np.float32(-0.5),
    "high": np.float32(0.4),
    "by_two": np.array([0, 2, 2, SIDE, SIDE]),
    "as_before": np.array([0, 4, SIDE, SIDE]),
    "first": np.array([1]),
    "last": np.array([4]),
    "along": np.array([1]),
    "pads": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
    "w": filters(4, 3, 1, 1),
    "b": np.array([0.1, -0.4, 0.3, 0.0], np.float32),
    "v": filters(2, 4, 1, 1, seed=1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_against_samples(name, exact):
    """Mean and covariance of what the second layer sees, as far as it is normal and the samples tell."""
    proto = model(f"c = Conv(x, w, b) {OPERATORS[name]} y = Conv(z, v)", CONSTANTS)
    seen = statistics(proto)[1]
    c = np.einsum("nchw,oc->nohw", photographs(), CONSTANTS["w"][..., 0, 0]) + CONSTANTS["b"][:, None, None]
    body = OPERATORS[name].replace("r = odd.Unheard(c)", "")
    part = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> '
        f"g (float[N,4,{SIDE},{SIDE}] c) => (float[?] z) {{ {body} }}"
    )
    part.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in CONSTANTS.items()
    )
    z = ReferenceEvaluator(part).run(None, {"c": c.astype(np.float32)})[0]
    samples = np.moveaxis(z, 1, -1).reshape(-1, z.shape[1])
    truth = np.cov(samples.T)
    variance = np.diag(truth)
    np.testing.assert_allclose(seen.mean[0], samples.mean(axis=0), atol=0.08 * np.sqrt(variance.max()))
    covariance = matrix(seen.covariance).dense()[0]
    np.testing.assert_allclose(np.diag(covariance), variance, rtol=0.12, atol=1e-5)
    # Clip bends both ways, so that the term of its series that rho^2 stands for is the next one.
    doubt = 0.35 if name == "clip" else 0.12
    np.testing.assert_allclose(covariance, truth, atol=doubt * variance.max())


def test_parts_of_a_split_are_joined_without_covariance(exact):
    text = "c = Conv(x, w, b) r = Relu(c) {} y = Conv(z, v)"
    whole = statistics(model(text.format("z = Identity(r)"), CONSTANTS))[1]
    moved = "p, q = Split <axis = 1, num_outputs = 2> (r) z = Concat <axis = -3> (q, p)"
    seen = statistics(model(text.format(moved), CONSTANTS))[1]
    np.testing.assert_allclose(seen.mean, np.roll(whole.mean, 2, axis=1))
    blocks = np.kron(np.eye(2), np.ones((2, 2)))
    np.testing.assert_allclose(
        seen.covariance, np.roll(whole.covariance, (2, 2), axis=(1, 2)) * blocks, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [((3, 3), "pads = [1, 1, 1, 1]"), ((3, 3), "strides = [2, 2]"), ((2, 1), "dilations = [2, 1]")],
)
def test_convolution_against_samples(kernel, attributes, exact):
    weights = {"w": filters(4, 3, *kernel), "v": filters(2, 4, 1, 1)}
    proto = model(f"c = Conv <{attributes}> (x, w) y = Conv(c, v)", weights)
    first, second = statistics(proto)
    assert isinstance(first.covariance, Kronecker)
    conv = model(f"y = Conv <{attributes}> (x, w)", {"w": weights["w"]})
    samples = np.moveaxis(ReferenceEvaluator(conv).run(None, {"x": photographs()})[0], 1, -1).reshape(-1, 4)
    truth = np.cov(samples.T)
    np.testing.assert_allclose(second.covariance[0], truth, atol=0.05 * np.diag(truth).max())


def test_groups_are_parts_of_one_convolution(exact):
    """A grouped convolution is a dense one with zeros; a depthwise one too."""
    for group in (2, 4):
        weight = filters(4, 4 // group, 3, 3)
        dense = np.zeros((4, 4, 3, 3), np.float32)
        for o in range(4):
            start = o // (4 // group) * (4 // group)
            dense[o, start : start + 4 // group] = weight[o]
        shared = {"w": CONSTANTS["w"], "v": CONSTANTS["v"]}
        text = "c = Conv(x, w) r = Relu(c) d = Conv <pads = [1, 1, 1, 1], group = {}> (r, u) y = Conv(d, v)"
        grouped = statistics(model(text.format(group), {**shared, "u": weight}))
        whole = statistics(model(text.format(1), {**shared, "u": dense}))
        assert grouped[1].mean.shape == (group, 36 // group)
        np.testing.assert_allclose(grouped[2].mean, whole[2].mean, atol=1e-6)
        np.testing.assert_allclose(grouped[2].covariance, whole[2].covariance, atol=1e-5)


@pytest.mark.parametrize("order", ["flat", "channels last"])
def test_matrix_after_flatten(order, exact):
    """All elements of a tensor, whichever of them comes first."""
    moved = "t = Transpose <perm = [0, 2, 3, 1]> (c)" if order == "channels last" else "t = Identity(c)"
    body = f"c = Conv(x, w, b) {moved} f = Flatten(t) y = Gemm(f, u)"
    weights = {**CONSTANTS, "u": filters(4 * SIDE**2, 3)}
    seen = statistics(model(body, weights))[1]
    c = np.einsum("nchw,oc->nohw", photographs(), weights["w"][..., 0, 0]) + weights["b"][:, None, None]
    samples = (c.transpose(0, 2, 3, 1) if order == "channels last" else c).reshape(SAMPLES, -1)
    np.testing.assert_allclose(seen.mean[0], samples.mean(axis=0), atol=0.06)
    np.testing.assert_allclose(matrix(seen.covariance).dense()[0], np.cov(samples.T), atol=0.1)
    assert isinstance(seen.covariance, Kronecker) == (order == "flat")


def test_channels_last_input(exact):
    """An image with its colours on the last axis, offset and scaled there."""
    body = "s = Sub(x, m) d = Div(s, q) t = Transpose <perm = [0, 3, 1, 2]> (d) y = Conv(t, w)"
    offset, scale = np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 4], np.float32)
    (seen,) = statistics(model(body, {"m": offset, "q": scale, "w": filters(4, 3, 1, 1)}, "N,8,8,3"))
    np.testing.assert_allclose(seen.mean[0], -offset / scale)
    np.testing.assert_allclose(np.diag(seen.covariance[0]), 1 / scale**2, rtol=1e-4)


def test_branches(exact):
    """A sum counts the branches' correlation, a product takes them for independent, a constant has none."""
    weights = {
        "w": CONSTANTS["w"],
        "u": filters(4, 3, 1, 1, seed=2),
        "v": CONSTANTS["v"],
        "one": np.float32(1),
    }
    text = "a = Conv(x, w) b = Conv(x, u) {} y = Conv(z, v)"
    power = [
        np.diag(statistics(model(text.format(f"z = Identity({k})"), weights))[2].covariance[0]) for k in "ab"
    ]
    for op, sign in (("Add", 1), ("Sub", -1)):
        seen = statistics(model(text.format(f"z = {op}(a, b)"), weights))[2]
        expected = (1 + sign * module.BRANCHES) * (power[0] + power[1])
        np.testing.assert_allclose(np.diag(seen.covariance[0]), expected, rtol=1e-5)
    seen = statistics(model(text.format("z = Mul(a, b)"), weights))[2]
    np.testing.assert_allclose(np.diag(seen.covariance[0]), power[0] * power[1], rtol=1e-4)
    seen = statistics(model(text.format("z = Add(a, one)"), weights))[2]
    np.testing.assert_allclose(seen.mean[0], 1)
    np.testing.assert_allclose(np.diag(seen.covariance[0]), power[0], rtol=1e-5)


def test_transposed_convolution_against_samples(exact):
    """An output place meets one tap in every stride; what counts is the average place."""
    weights = {"w": CONSTANTS["w"], "u": filters(4, 2, 3, 3), "v": filters(3, 2, 1, 1)}
    _, transposed, last = statistics(
        model("c = Conv(x, w) t = ConvTranspose <strides = [3, 3]> (c, u) y = Conv(t, v)", weights)
    )
    assert transposed.mean.shape == (1, 36)
    alone = model("c = Conv(x, w) y = ConvTranspose <strides = [3, 3]> (c, u)", weights)
    samples = ReferenceEvaluator(alone).run(None, {"x": photographs()[:400]})[0]
    truth = np.cov(np.moveaxis(samples, 1, -1).reshape(-1, 2).T)
    np.testing.assert_allclose(last.covariance[0], truth, atol=0.1 * np.diag(truth).max())


NORM = {
    "gamma": np.array([1.0, -0.5, 2.0, 0.3], np.float32),
    "beta": np.array([0.5, -1.0, 0.0, 2.0], np.float32),
    "mu": np.array([0.3, 0.0, -0.2, 0.1], np.float32),
    "var": np.array([0.5, 2.0, 0.1, 1.0], np.float32),
}


def test_batch_norm_resets_mean_and_variance():
    body = "c = Conv(x, w) n = BatchNormalization <epsilon = 0.25> (c, gamma, beta, mu, var) y = Conv(n, v)"
    seen = statistics(model(body, {**CONSTANTS, **NORM}))[1]
    np.testing.assert_allclose(seen.mean[0], NORM["beta"])
    expected = NORM["gamma"] ** 2 * NORM["var"] / (NORM["var"] + 0.25)
    np.testing.assert_allclose(np.diag(seen.covariance[0]), expected, rtol=1e-5)


def test_batch_norm_tells_the_mean_of_the_input():
    """The Kalman step explains the means that training saw, short of what is not believed."""
    rng = np.random.default_rng(0)
    weight, mean = rng.standard_normal((32, 3, 1, 1)).astype(np.float32), np.array([0.5, -0.3, 1.0])
    norm = {"gamma": np.ones(32), "beta": np.zeros(32), "mu": weight[:, :, 0, 0] @ mean, "var": np.ones(32)}
    weights = {"w": weight, "v": filters(2, 32, 1, 1)} | {
        key: np.float32(value) for key, value in norm.items()
    }
    body = "c = Conv(x, w) n = BatchNormalization(c, gamma, beta, mu, var) y = Conv(n, v)"
    np.testing.assert_allclose(statistics(model(body, weights))[0].mean[0], mean, atol=0.15)


@pytest.mark.parametrize("reach", [0.5, 2.0, 16.0])
def test_batch_norm_tells_the_reach_of_the_input(reach):
    """Variances of many filters give away how alike neighbours are, whatever their scale."""
    weight = filters(64, 3, 3, 3)
    colours = np.full((3, 3), module.COLOURS) + (1 - module.COLOURS) * np.eye(3)
    spatial = np.exp(-distances(grid((3, 3))) / reach)
    rows = weight.reshape(64, 27)
    variance = 7 * np.einsum("rn,nm,rm->r", rows, np.kron(colours, spatial), rows)
    norm = {"gamma": np.ones(64), "beta": np.zeros(64), "mu": np.zeros(64), "var": variance}
    weights = {"w": weight, "v": filters(2, 64, 1, 1)} | {
        key: np.float32(value) for key, value in norm.items()
    }
    body = "c = Conv(x, w) n = BatchNormalization(c, gamma, beta, mu, var) y = Conv(n, v)"
    covariance = statistics(model(body, weights, "N,3,32,32"))[0].covariance
    assert isinstance(covariance, Kronecker)
    np.testing.assert_allclose(covariance.spatial[0], spatial, rtol=1e-4)


def test_branches_hear_what_one_batch_norm_says():
    """All readers of a tensor get the reach that one of them found."""
    weight = filters(64, 3, 3, 3)
    rows = weight.reshape(64, 27)
    spatial = np.kron(np.ones((3, 3)), np.exp(-distances(grid((3, 3))) / 0.25))
    variance = np.einsum("rn,nm,rm->r", rows, spatial, rows)
    norm = {"gamma": np.ones(64), "beta": np.zeros(64), "mu": np.zeros(64), "var": variance}
    weights = {"w": weight, "u": filters(4, 3, 3, 3)} | {
        key: np.float32(value) for key, value in norm.items()
    }
    norm_of = "c = Conv(x, w) n = BatchNormalization(c, gamma, beta, mu, var)"
    body = f"{norm_of} d = Conv(x, u) y = Concat <axis = 1> (n, d)"
    first, second = (known.covariance for known in statistics(model(body, weights)))
    assert isinstance(first, Kronecker)
    assert isinstance(second, Kronecker)
    np.testing.assert_allclose(first.spatial, second.spatial)


UNFORESEEN = {
    "an unknown input": "c = odd.Source() y = Conv(c, w)",
    "an operator that changes the channels": "c = odd.Fold(x) y = Conv(c, v)",
    "places that are gone": "m = ReduceMean <keepdims = 0> (x, along) y = Gemm(m, m2)",
    "channels that are mixed": "m = ReduceMean <keepdims = 0> (x, channels) y = Gemm(m, m2)",
    "a gate of other channels": "c = Conv(x, w) s = Conv(x, o) g = Mul(s, c) y = Conv(g, v)",
    "a join along places": "j = Concat <axis = 2> (x, x) y = Conv(j, w)",
    "another rank than the kernel's": "c = Conv(x, w) f = Flatten(c) y = Conv(f, v)",
    "a shape from nowhere": "s = odd.Source() r = Reshape(x, s) y = Conv(r, w)",
}


@pytest.mark.parametrize("name", UNFORESEEN)
def test_no_model_is_refused(name):
    """Rough statistics, but finite ones with variances above zero, of every layer."""
    weights = {
        **CONSTANTS,
        "m2": filters(3, 2),
        "o": filters(1, 3, 1, 1),
        "along": np.array([2, 3]),
        "channels": np.array([1, 3]),
    }
    for seen in statistics(model(UNFORESEEN[name], weights)):
        assert np.isfinite(seen.mean).all()
        assert (matrix(seen.covariance).diagonal() > 0).all()
        matrix(seen.covariance).damped(0.01).cholesky()


def test_a_model_that_nothing_runs():
    proto = model("c = odd.Unheard(x) d = Conv(c, w, b) z = Relu(d) y = Conv(z, v)", CONSTANTS)
    layers = match(proto).layers
    found = closed_form(proto, layers, input_range=(0.0, 1.0))
    assert {seen.source for seen in found.values()} == {"closed form"}
    first = found[layers[0].name]
    np.testing.assert_allclose(first.mean, 0.5)
    np.testing.assert_allclose(np.diag(first.covariance[0]), 1 / 16, rtol=1e-4)


def test_shared_networks(shared_model: Path):
    proto = load(shared_model).proto
    layers = match(proto).layers
    found = closed_form(proto, layers, input_range=None)
    assert list(found) == [layer.name for layer in layers]
    for seen in found.values():
        assert np.isfinite(seen.mean).all()
        assert (matrix(seen.covariance).diagonal() > 0).all()
        matrix(seen.covariance).damped(0.01).cholesky()


@settings(max_examples=25)
@given(st.floats(-3, 3), st.floats(0.05, 3), st.floats(-1, 2))
def test_rectified_against_integration(mean, deviation, slope):
    def f(x):
        return max(x, 0) + slope * min(x, 0)

    density = distributions.norm(mean, deviation).pdf
    ends = mean - 9 * deviation, mean + 9 * deviation
    knot = [min(max(0.0, ends[0]), ends[1])]

    def expectation(g):
        return integrate.quad(lambda x: g(x) * density(x), *ends, points=knot, epsabs=1e-10, limit=200)[0]

    center, variance, tilt = (
        float(v[0]) for v in normal.rectified(slope, np.array([mean]), np.array([deviation]))
    )
    assert center == pytest.approx(expectation(f), abs=1e-6)
    assert variance == pytest.approx(expectation(lambda x: (f(x) - center) ** 2), abs=1e-6)
    assert tilt == pytest.approx(expectation(lambda x: 1.0 if x > 0 else slope), abs=1e-6)


@given(st.floats(-3, 3), st.floats(0.05, 3))
def test_quadrature_against_the_closed_form(mean, deviation):
    """A kink is the worst that there is for it."""
    at = np.array([mean]), np.array([deviation])
    by_rule = normal.quadrature(lambda x: np.maximum(x, 0), *at)
    for found, exact_value in zip(by_rule, normal.rectified(0.0, *at), strict=True):
        np.testing.assert_allclose(found, exact_value, atol=1e-3 * max(deviation, deviation**2, 1))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(0, 0.95))
def test_largest_of_correlated_normals(seed, count, common):
    rng = np.random.default_rng(seed)
    mean, covariance = rng.standard_normal(1), rng.uniform(0.5, 2, (1, 1))
    shared, own = rng.standard_normal((20000, 1)), rng.standard_normal((20000, count))
    x = mean + np.sqrt(covariance[0]) * (np.sqrt(common) * shared + np.sqrt(1 - common) * own)
    found_mean, found = normal.largest(mean, covariance, common, count)
    assert found_mean[0] == pytest.approx(x.max(axis=1).mean(), abs=0.06)
    assert found[0, 0] == pytest.approx(x.max(axis=1).var(), rel=0.08)


windows = st.builds(
    lambda k, s, d, b, a: Window((k, 2), (s, 1), (d, 1), (b, 0), (a, 1)),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2),
)  # fmt: skip


@settings(max_examples=25)
@given(windows, st.integers(5, 8))
def test_coverage_by_counting(at, side):
    share, counts = coverage(at, (side, 4))
    taps = grid(at.kernel) * at.dilations - at.before
    places = grid(counts) * at.strides
    met = places[:, None] + taps
    inside = ((met >= 0) & (met < (side, 4))).all(axis=2).astype(np.float64)
    np.testing.assert_allclose(share, inside.T @ inside / len(places))
    assert transposed_coverage(at, (side, 4))[1] == (side * at.strides[0], 4)


def test_mean_decay_is_the_mean_over_all_pairs():
    for size in ((), (5,), (3, 4)):
        assert mean_decay(size, 1.7) == pytest.approx(np.exp(-distances(grid(size)) / 1.7).mean())
