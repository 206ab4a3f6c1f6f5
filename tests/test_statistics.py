"""Statistics of layer inputs: the stream against one run of the whole model, moments against loops, inputs as
the model declares them.
"""

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.inputs import synthetic
from onnx_dfmpc.inputs.data import real_feeds
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.recipe import Data
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import InputSpec
from onnx_dfmpc.spec.ops import to_rows
from onnx_dfmpc.statistics.moments import measure
from onnx_dfmpc.statistics.probe import QuantizedRun, _moments, probe
from tests.arrays import layer, seeds
from tests.graphs import forked, noise, parse, whole

# Moments

CONVS = [
    ("plain", (4, 3, 3, 3), 1, (7, 6), ""),
    ("pads and strides", (4, 3, 3, 3), 1, (7, 6), "pads = [1, 0, 2, 1], strides = [2, 1]"),
    ("dilations", (4, 3, 3, 2), 1, (9, 8), "dilations = [2, 3], pads = [1, 1, 1, 1]"),
    ("groups", (6, 2, 3, 3), 3, (6, 6), "group = 3, pads = [1, 1, 1, 1]"),
    ("depthwise", (5, 1, 3, 3), 5, (6, 6), "group = 5, strides = [2, 2]"),
    ("same upper", (4, 3, 4, 3), 1, (7, 6), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    ("same lower", (4, 3, 4, 2), 1, (7, 6), 'auto_pad = "SAME_LOWER", strides = [1, 2]'),
    ("valid", (4, 3, 3, 3), 1, (7, 6), 'auto_pad = "VALID"'),
    ("one axis", (4, 3, 5), 1, (12,), "pads = [2, 1], strides = [3]"),
    ("pointwise", (4, 3, 1, 1), 1, (5, 4), "strides = [2, 2]"),
]


def single(op: str, attributes: str) -> ModelProto:
    return parse(
        f"g (float[] x, float[] w) => (float[] y) {{ y = {op} {f'<{attributes}>' if attributes else ''} (x, w) }}"
    )


def responses(layer_: Any, attributes: str, weight: np.ndarray, batches: list[np.ndarray]) -> np.ndarray:
    """Outputs of the layer under ONNX Runtime, shape (channels, places)."""
    model = single(layer_.op_type, attributes)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    values = whole(model, ["y"], [{"x": batch} for batch in batches])[0]
    return np.concatenate(
        [np.moveaxis(value, 1, 0).reshape(value.shape[1], -1) for value in values], axis=1
    ).astype(np.float64)


@pytest.mark.parametrize(
    ("shape", "group", "spatial", "attributes"), [case[1:] for case in CONVS], ids=[case[0] for case in CONVS]
)
def test_moments_of_patches_are_those_of_the_inputs_that_each_tap_sees(shape, group, spatial, attributes):
    """A convolution with a one at a single tap outputs what this tap sees: ONNX Runtime itself does the
    im2col.
    """
    batches = [noise(3, shape[1] * group, *spatial, seed=s) + 0.5 for s in (0, 1)]
    at = layer("Conv", shape, group)
    node = single("Conv", attributes).graph.node[0]
    found = measure(at, node, batches, seed=0, source="test")
    n = int(np.prod(shape[1:]))
    assert found.mean.shape == (group, n)
    assert found.covariance.shape == (group, n, n)
    probes = np.tile(np.eye(n, dtype=np.float32), (group, 1)).reshape(group * n, *shape[1:])
    seen = responses(at, attributes, probes, batches).reshape(group, n, -1)
    assert found.samples == seen.shape[2]
    for g in range(group):
        np.testing.assert_allclose(found.mean[g], seen[g].mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(found.covariance[g], np.cov(seen[g], bias=True).reshape(n, n), atol=1e-4)


@pytest.mark.parametrize(
    ("op", "shape", "axis"), [("Gemm", (4, 7), 0), ("Gemm", (7, 4), 1), ("MatMul", (7, 4), 1)]
)
def test_moments_of_vectors(op, shape, axis):
    batches = [
        noise(*((5,) if op == "Gemm" else (5, 3)), 7, seed=s) * np.arange(1, 8, dtype=np.float32)
        for s in (0, 1)
    ]
    found = measure(
        layer(op, shape, 1, axis), helper.make_node(op, ["x", "w"], ["y"]), batches, seed=0, source="test"
    )
    every = np.concatenate([batch.reshape(-1, 7) for batch in batches]).astype(np.float64)
    np.testing.assert_allclose(found.mean, every.mean(axis=0)[None], atol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(every.T, bias=True)[None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "group"), [((4, 3, 3, 3), 1), ((6, 2, 3, 2), 3), ((4, 3, 5), 1)])
def test_of_many_inputs_the_channels_and_one_pattern_of_the_taps_are_measured(monkeypatch, shape, group):
    spatial = (6, 7)[: len(shape) - 2]
    batches = [
        noise(5, shape[1] * group, *spatial, seed=s)
        + np.arange(s, s + shape[1] * group).reshape(-1, *[1] * len(spatial))
        for s in (0, 1)
    ]
    batches = [batch.astype(np.float32) for batch in batches]
    at, node = (
        layer("Conv", shape, group),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 2 * len(spatial)),
    )
    every = measure(at, node, batches, seed=0, source="test")
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MANY_INPUTS", 1)
    found = measure(at, node, batches, seed=0, source="test")
    i, t = shape[1], int(np.prod(shape[2:]))
    blocks = every.covariance.reshape(group, i, t, i, t)
    channels = np.einsum("giaja->gij", blocks) / t
    spatial_ = np.mean([blocks[:, c, :, c] / channels[:, c, c, None, None] for c in range(i)], axis=0)
    np.testing.assert_allclose(found.mean, every.mean, atol=1e-6)
    np.testing.assert_allclose(found.covariance.channels, channels, atol=1e-4)
    np.testing.assert_allclose(found.covariance.spatial, spatial_, atol=1e-4)
    assert found.samples == every.samples


def test_a_dead_channel_does_not_spoil_the_pattern_of_the_others(monkeypatch):
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MANY_INPUTS", 1)
    batches = [noise(5, 3, 6, 6)]
    at, node = layer("Conv", (4, 3, 3, 3)), helper.make_node("Conv", ["x", "w"], ["y"])
    alive = measure(
        layer("Conv", (4, 2, 3, 3)), node, [batch[:, :2] for batch in batches], seed=0, source="test"
    )
    batches[0][:, 2] = 1.5
    found = measure(at, node, batches, seed=0, source="test")
    np.testing.assert_allclose(found.covariance.spatial, alive.covariance.spatial, atol=1e-5)
    assert np.isfinite(found.covariance.channels).all()


def test_a_sample_of_patches_is_close_to_all_of_them(monkeypatch):
    batches = [
        noise(8, 3, 30, 30, seed=s) + np.arange(3, dtype=np.float32).reshape(3, 1, 1) for s in range(2)
    ]
    at, node = layer("Conv", (4, 3, 3, 3)), helper.make_node("Conv", ["x", "w"], ["y"])
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_PATCHES", 1 << 20)
    every = measure(at, node, batches, seed=0, source="test")
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_PATCHES", 4000)
    some = measure(at, node, batches, seed=0, source="test")
    again, other = (measure(at, node, batches, seed=seed, source="test") for seed in (0, 1))
    assert every.samples == 16 * 28 * 28
    assert 3900 <= some.samples <= 4100
    np.testing.assert_array_equal(some.covariance, again.covariance)
    assert (some.covariance != other.covariance).any()
    # Some of the 27 means and 729 covariances are four standard errors off.
    np.testing.assert_allclose(some.mean, every.mean, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(some.covariance, every.covariance, atol=8 / np.sqrt(4000))


@pytest.mark.parametrize(
    ("shape", "group", "strides"),
    [((3, 4, 3, 3), 1, (1, 1)), ((3, 4, 4, 4), 1, (2, 2)), ((4, 3, 5), 2, (2,))],
)
def test_moments_of_a_transposed_convolution_are_those_of_an_average_phase(
    monkeypatch, shape, group, strides
):
    """On inputs that are constant in space, which is what the closed form stands on: it predicts mean and
    variance of the output.
    """
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_VECTORS", 1 << 20)  # all of them
    rng = np.random.default_rng(0)
    rank = len(shape) - 2
    colours = rng.standard_normal((200, shape[0])) @ rng.standard_normal(
        (shape[0], shape[0])
    ) + rng.standard_normal(shape[0])
    x = np.broadcast_to(colours.reshape(200, shape[0], *(1,) * rank), (200, shape[0], *(8,) * rank)).astype(
        np.float32
    )
    at = layer("ConvTranspose", shape, group, 1)
    model = single(
        "ConvTranspose",
        f"group = {group}, strides = {list(strides)}, pads = {[k - 1 for k in shape[2:]] * 2}",
    )
    found = measure(at, model.graph.node[0], [x[:100], x[100:]], seed=0, source="test")
    weight = noise(*shape) + 0.5
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    output = whole(model, ["y"], [{"x": x}])[0][0].astype(np.float64)  # padded so far that no border is left
    phases = [
        output[(..., *(slice(p, None, s) for p, s in zip(phase, strides, strict=True)))]
        for phase in np.ndindex(*strides)
    ]
    axes = tuple(range(2, rank + 2))
    rows = to_rows(weight, at)
    mean = np.mean([phase.mean(axis=(0, *axes)) for phase in phases], axis=0)
    variance = np.mean([phase.var(axis=(0, *axes)) for phase in phases], axis=0)
    np.testing.assert_allclose(np.einsum("grn,gn->gr", rows, found.mean).ravel(), mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        np.einsum("grn,gnm,grm->gr", rows, found.covariance, rows).ravel(), variance, rtol=1e-3
    )


def test_a_kernel_larger_than_its_input_is_named():
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    with pytest.raises(UnsupportedError, match="'conv'"):
        measure(layer("Conv", (4, 3, 5, 5)), node, [noise(2, 3, 4, 4)], seed=0, source="test")


# Inputs

shapes = st.sampled_from(
    [("N", 3, 12, 10), (2, 3, 8, 8), ("N", 4, 20), (1, 5), ("N", 6, 6, 3), ("N", 1, 9, 9), ()]
)
dtypes = st.sampled_from([np.float32, np.float16, np.float64, np.uint8, np.int8, np.int64, np.bool_])


@settings(max_examples=50)
@given(shapes, dtypes, seeds)
def test_synthetic_feeds_fit_the_model(shape, dtype, seed):
    spec = InputSpec("x", np.dtype(dtype), shape)
    with mock.patch.multiple(synthetic, MAX_SAMPLES=8, MIN_SAMPLES=8):
        feeds, again, changed = (synthetic_feeds([spec], seed=s) for s in (seed, seed, seed + 1))
    assert feeds
    for feed in feeds:
        x = feed["x"]
        assert x.dtype == dtype
        assert x.ndim == len(shape)
        assert all(
            size == wanted for size, wanted in zip(x.shape, shape, strict=True) if isinstance(wanted, int)
        )
        assert np.isfinite(x.astype(np.float64)).all()
        if x.dtype.kind in "iu":
            assert x.min() >= 0
    assert all((one["x"] == other["x"]).all() for one, other in zip(feeds, again, strict=True))
    if shape:
        assert any((one["x"] != other["x"]).any() for one, other in zip(feeds, changed, strict=True))


@pytest.mark.parametrize("shape", [("N", 3, 16, 16), ("N", 6, 50), ("N", 20), ("N", 16, 16, 3)])
def test_synthetic_floats_have_mean_zero_and_variance_one(shape):
    values = np.concatenate(
        [feed["x"] for feed in synthetic_feeds([InputSpec("x", np.dtype(np.float32), shape)])]
    )
    assert abs(values.mean()) < 0.2
    assert 0.7 < values.std() < 1.4
    assert values.reshape(len(values), -1).std(axis=0).min() > 0.5  # every input moves


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (10.0, 200.0)])
def test_input_range_is_respected_and_used(dtype, interval):
    feeds = synthetic_feeds([InputSpec("x", np.dtype(dtype), ("N", 3, 16, 16))], input_range=interval)
    values = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    assert values.min() >= interval[0]
    assert values.max() <= interval[1]
    assert values.max() - values.min() > 0.8 * (interval[1] - interval[0])


def test_photographs_are_smooth_and_their_colours_go_together():
    images = np.concatenate(
        [feed["x"] for feed in synthetic_feeds([InputSpec("x", np.dtype(np.float32), ("N", 3, 32, 32))])]
    )
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    far = np.corrcoef(images[..., 16:].ravel(), images[..., :-16].ravel())[0, 1]
    colours = np.corrcoef(images[:, 0].ravel(), images[:, 1].ravel())[0, 1]
    assert neighbours > 0.7
    assert neighbours > far + 0.2
    assert colours > 0.5


def test_dynamic_sizes_get_a_number():
    image, signal = (
        synthetic_feeds([InputSpec("x", np.dtype(np.float32), shape)])[0]["x"]
        for shape in [(4, 2, "h", "w"), (4, 2, "t")]
    )
    assert image.shape[:2] == signal.shape[:2] == (4, 2)
    assert min(image.shape[2:]) >= 32
    assert signal.shape[2] >= 32


def test_inputs_as_the_file_declares_them():
    model = parse(
        "g (float[N, 3, 8, 8] x, int64[2] size, float[?, 4] z, float[4] w) => (float[] y) { y = Identity(x) }",
        w=noise(4),
    )
    assert [(spec.name, spec.dtype, spec.shape) for spec in model_inputs(model)] == [
        ("x", np.float32, ("N", 3, 8, 8)),
        ("size", np.int64, (2,)),
        ("z", np.float32, ("?", 4)),
    ]


def test_inputs_that_cannot_be_drawn():
    with pytest.raises(UnsupportedError, match="'x'"):
        model_inputs(parse("g (string[N] x) => (string[] y) { y = Identity(x) }"))


def test_real_feeds_are_the_users_rows_and_not_more_than_a_few_hundred():
    model = parse("g (float[N, 4] x) => (float[] y) { y = Relu(x) }")
    data = noise(700, 4)
    few = real_feeds(model, Data(data={"x": data[:30]}))
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in few]), data[:30])
    many = np.concatenate([feed["x"] for feed in real_feeds(model, Data(data={"x": data}))])
    assert len(many) == 512
    assert {row.tobytes() for row in many} <= {row.tobytes() for row in data}
    loaded = real_feeds(
        model, Data(data=lambda: ({"x": data[start : start + 7]} for start in range(0, 28, 7)), samples=3)
    )
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in loaded]), data[:28])


def test_matched_layers_can_be_measured_one_after_the_other():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    tested = PartialRun(model, ConstantTable(model), feeds)
    nodes = {node.output[0]: node for node in model.graph.node}
    for found in match(model).layers:
        known = measure(found, nodes[found.output], tested.value(found.input), seed=0, source="test")
        assert known.covariance.shape[1] == found.size // found.channels


def test_a_skipped_layer_is_the_same_in_both_networks(digits_bn):
    proto = load(digits_bn).proto
    layers = match(proto).layers
    table = ConstantTable(proto)
    feeds = synthetic_feeds(model_inputs(proto), samples=8)
    measured = probe(proto, layers, (), feeds, source="probe", seed=0, with_outputs=True)
    run = QuantizedRun(proto, feeds)
    for one in layers[:3]:
        found, now = measured[one.name], run.respond(one, np.asarray(table[one.weight]))
        assert found.output is not None
        np.testing.assert_allclose(now.mean, found.output.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(now.variance, found.output.variance, rtol=1e-4, atol=1e-5)
        run.keep(one, found.anchor)


def test_behind_a_layer_both_networks_have_what_its_batch_norm_expects(digits_bn):
    proto = load(digits_bn).proto
    first = match(proto).layers[0]
    feeds = synthetic_feeds(model_inputs(proto), samples=32)
    measured = probe(proto, [first], (), feeds, source="probe", seed=0, with_outputs=True)[first.name]
    found, run = measured.output, QuantizedRun(proto, feeds)
    assert found is not None
    weight = np.sign(np.asarray(ConstantTable(proto)[first.weight])) * np.float32(0.1)
    now = run.respond(first, weight)
    gain = np.sqrt(found.variance / now.variance)
    run.commit(first, gain, gain * now.mean - found.mean, measured.anchor)
    mean, variance = _moments(run._run.value(first.output), first)
    assert first.batch_norm is not None
    alive = (
        found.variance > 0.1 * first.batch_norm.sigma**2
    )  # a channel that is nearly dead on synthetic inputs is not blown up
    assert alive.any()
    np.testing.assert_allclose(mean, first.batch_norm.mean, atol=0.02 * float(first.batch_norm.sigma.max()))
    np.testing.assert_allclose(variance[alive], first.batch_norm.sigma[alive] ** 2, rtol=0.02)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from(["Conv", "MatMul"]), seeds)
def test_moments_of_batches_are_those_of_all_samples_together(sizes, op, seed):
    rng = np.random.default_rng(seed)
    shape = (4, 3, 3) if op == "Conv" else (3, 4)
    batches = [(10 + 3 * rng.standard_normal((size, *shape))).astype(np.float32) for size in sizes]
    mean, variance = _moments(
        batches, layer(op, (4, 3, 1, 1) if op == "Conv" else (3, 4), axis=0 if op == "Conv" else 1)
    )
    together = (
        np.moveaxis(np.concatenate(batches), 1 if op == "Conv" else -1, 0).reshape(4, -1).astype(np.float64)
    )
    np.testing.assert_allclose(mean, together.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(variance, together.var(axis=1), rtol=1e-4)
