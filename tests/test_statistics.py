"""Statistics of layer inputs: moments against loops, mixtures against weighted samples, the quantized network
beside the float one.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import InputStatistics, Layer, Mixture
from onnx_dfmpc.spec.ops import to_rows
from onnx_dfmpc.statistics.mixing import mixture_of
from onnx_dfmpc.statistics.moments import chance_of, measure
from onnx_dfmpc.statistics.probe import QuantizedRun, moments, probe
from tests.arrays import layer, one_kind, seeds
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


def measured(
    at: Layer,
    node: NodeProto,
    batches: list[np.ndarray],
    mixture: Mixture | None = None,
    seed: int = 0,
    *,
    anchored: bool = True,
) -> InputStatistics:
    """Statistics of a layer's input, by default from inputs of one kind, behind a batch norm."""
    mixture = mixture or one_kind([{}] * len(batches))
    return measure(at, node, batches, mixture, seed=seed, source="test", anchored=anchored)


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
    found = measured(at, node, batches)
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
    found = measured(layer(op, shape, 1, axis), helper.make_node(op, ["x", "w"], ["y"]), batches)
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
    every = measured(at, node, batches)
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MANY_INPUTS", 1)
    found = measured(at, node, batches)
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
    alive = measured(layer("Conv", (4, 2, 3, 3)), node, [batch[:, :2] for batch in batches])
    batches[0][:, 2] = 1.5
    found = measured(at, node, batches)
    np.testing.assert_allclose(found.covariance.spatial, alive.covariance.spatial, atol=1e-5)
    assert np.isfinite(found.covariance.channels).all()


def test_a_sample_of_patches_is_close_to_all_of_them(monkeypatch):
    batches = [
        noise(8, 3, 30, 30, seed=s) + np.arange(3, dtype=np.float32).reshape(3, 1, 1) for s in range(2)
    ]
    at, node = layer("Conv", (4, 3, 3, 3)), helper.make_node("Conv", ["x", "w"], ["y"])
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.PATCHES_PER_INPUT", 1 << 20)
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_PATCHES", 1 << 20)
    every = measured(at, node, batches)
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_PATCHES", 4000)
    some = measured(at, node, batches)
    again, other = (measured(at, node, batches, seed=seed) for seed in (0, 1))
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
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.PATCHES_PER_INPUT", 1 << 20)
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
    found = measured(at, model.graph.node[0], [x[:100], x[100:]])
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
        measured(layer("Conv", (4, 3, 5, 5)), node, [noise(2, 3, 4, 4)])


# In the network


def test_matched_layers_can_be_measured_one_after_the_other():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    tested = PartialRun(model, ConstantTable(model), feeds)
    nodes = {node.output[0]: node for node in model.graph.node}
    for found in match(model).layers:
        known = measured(found, nodes[found.output], tested.value(found.input))
        assert known.covariance.shape[1] == found.size // found.channels


def test_a_skipped_layer_is_the_same_in_both_networks(digits_bn):
    proto = load(digits_bn).proto
    layers = match(proto).layers
    table = ConstantTable(proto)
    feeds = synthetic_feeds(model_inputs(proto), samples=8)
    known = probe(proto, layers, (), one_kind(feeds), source="probe", seed=0, with_outputs=True)
    run = QuantizedRun(proto, one_kind(feeds))
    for one in layers[:3]:
        found, now = known[one.name], run.respond(one, np.asarray(table[one.weight]))
        assert found.output is not None
        np.testing.assert_allclose(now.mean, found.output.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(now.variance, found.output.variance, rtol=1e-4, atol=1e-5)
        run.keep(one, found.anchor)


def test_behind_a_layer_both_networks_have_what_its_batch_norm_expects(digits_bn):
    proto = load(digits_bn).proto
    first = match(proto).layers[0]
    feeds = synthetic_feeds(model_inputs(proto), samples=32)
    mixture = one_kind(feeds)
    known = probe(proto, [first], (), mixture, source="probe", seed=0, with_outputs=True)[first.name]
    found, run = known.output, QuantizedRun(proto, mixture)
    assert found is not None
    weight = np.sign(np.asarray(ConstantTable(proto)[first.weight])) * np.float32(0.1)
    now = run.respond(first, weight)
    gain = np.sqrt(found.variance / now.variance)[0]
    run.commit(first, gain, gain * now.mean[0] - found.mean[0], known.anchor)
    mean, variance = moments(run._run.value(first.output), mixture, first)
    assert first.batch_norm is not None
    alive = (
        found.variance[0] > 0.1 * first.batch_norm.sigma**2
    )  # a channel that is nearly dead on synthetic inputs is not blown up
    assert alive.any()
    np.testing.assert_allclose(
        mean[0], first.batch_norm.mean, atol=0.02 * float(first.batch_norm.sigma.max())
    )
    np.testing.assert_allclose(variance[0, alive], first.batch_norm.sigma[alive] ** 2, rtol=0.02)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=6),
    st.sampled_from(["Conv", "MatMul"]),
    seeds,
)
def test_moments_of_batches_are_those_of_all_samples_of_a_kind_together(sizes, op, seed):
    rng = np.random.default_rng(seed)
    shape = (4, 3, 3) if op == "Conv" else (3, 4)
    batches = [
        (10 * kind + 3 * rng.standard_normal((size, *shape))).astype(np.float32) for size, kind in sizes
    ]
    kinds = tuple(kind for _, kind in sizes)
    mixture = mixture_of([[], [], []], np.full(3, 1 / 3), np.full(3, 1 / 3))
    mean, variance = moments(
        batches,
        replace(mixture, kinds=kinds),
        layer(op, (4, 3, 1, 1) if op == "Conv" else (3, 4), axis=0 if op == "Conv" else 1),
    )
    for kind in range(3):
        own = [batch for batch, its in zip(batches, kinds, strict=True) if its == kind]
        if not own:  # of which nothing is known
            np.testing.assert_array_equal([mean[kind], variance[kind]], [np.zeros(4), np.ones(4)])
            continue
        together = np.moveaxis(np.concatenate(own), 1 if op == "Conv" else -1, 0).reshape(4, -1)
        np.testing.assert_allclose(mean[kind], together.mean(axis=1, dtype=np.float64), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(variance[kind], together.var(axis=1, dtype=np.float64), rtol=1e-4)


# Several kinds of inputs


def weighed(patches: list[np.ndarray], weights: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and covariance of a mixture, patch by patch; patches of a kind have shape (P, n).

    Every patch counts with the weight, or the share, of its kind over the number and the power of its
    patches. How far the mean of a kind is from that of all counts over no less than the power of all.
    """
    power = [sum(float(value) ** 2 for value in kind.ravel()) / kind.size for kind in patches]
    total = sum(weight / p for weight, p in zip(weights, power, strict=True))
    n = patches[0].shape[1]
    mean, covariance = np.zeros(n), np.zeros((n, n))
    for kind, weight, p in zip(patches, weights, power, strict=True):
        for patch in kind:
            mean += weight / p / total / len(kind) * patch
    for kind, share, p in zip(patches, shares, power, strict=True):
        own = sum(kind) / len(kind)
        for patch in kind:
            covariance += share / p / total / len(kind) * np.outer(patch - own, patch - own)
        covariance += share / max(p, 1 / total) / total * np.outer(own - mean, own - mean)
    return mean, covariance


SCALES, CENTRES = (1.0, 0.02, 60.0), (0.0, 0.01, 80.0)
WEIGHTS, SHARES = np.array([0.6, 0.1, 0.3]), np.array([0.3, 0.5, 0.2])


def kinds_of(*shape: int, batches: int = 2) -> tuple[list[np.ndarray], Mixture]:
    """Batches of three kinds whose power differs by millions."""
    values = [
        [scale * noise(*shape, seed=10 * kind + batch) + np.float32(centre) for batch in range(batches)]
        for kind, (scale, centre) in enumerate(zip(SCALES, CENTRES, strict=True))
    ]
    values = [[batch.astype(np.float32) for batch in kind] for kind in values]
    mixture = mixture_of([[{}] * batches for _ in SCALES], WEIGHTS, SHARES)
    return [batch for kind in values for batch in kind], mixture


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """Relative to the diagonal: a covariance of float32."""
    size = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(found / np.outer(size, size), expected / np.outer(size, size), atol=2e-4)


def test_a_mixture_of_vectors_is_that_of_weighed_samples():
    batches, mixture = kinds_of(9, 5)
    found = measured(
        layer("MatMul", (5, 4), 1, 1), helper.make_node("MatMul", ["x", "w"], ["y"]), batches, mixture
    )
    patches = [np.concatenate(batches[k : k + 2]).astype(np.float64) for k in (0, 2, 4)]
    mean, covariance = weighed(patches, WEIGHTS, SHARES)
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-4)
    assert_near(found.covariance[0], covariance)


@pytest.mark.parametrize(("shape", "group"), [((4, 3, 3, 3), 1), ((4, 2, 2, 3), 2)])
def test_a_mixture_of_images_is_that_of_weighed_patches(monkeypatch, shape, group):
    batches, mixture = kinds_of(2, shape[1] * group, 5, 4)
    at, node = layer("Conv", shape, group), helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    found = measured(at, node, batches, mixture)
    n = int(np.prod(shape[1:]))
    probes = np.tile(np.eye(n, dtype=np.float32), (group, 1)).reshape(group * n, *shape[1:])
    seen = [
        responses(at, f"group = {group}", probes, batches[k : k + 2]).reshape(group, n, -1) for k in (0, 2, 4)
    ]
    # The power is that of all groups: kinds are weighed alike in each.
    power = [float(np.square(kind).mean()) for kind in seen]
    u = 1 / (WEIGHTS / power).sum() * WEIGHTS / power
    unit = 1 / (WEIGHTS / power).sum()
    v, t = unit * SHARES / power, unit * SHARES / np.maximum(power, unit)
    for g in range(group):
        mean = sum(one * kind[g].mean(axis=1) for one, kind in zip(u, seen, strict=True))
        covariance = sum(
            one * np.cov(kind[g], bias=True) + other * np.outer(*[kind[g].mean(axis=1) - mean] * 2)
            for one, other, kind in zip(v, t, seen, strict=True)
        )
        np.testing.assert_allclose(found.mean[g], mean, rtol=1e-4)
        assert_near(found.covariance[g], covariance)
    # Of many inputs, the channels of the same, over all taps: each tap has the mean of its own.
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MANY_INPUTS", 1)
    few = measured(at, node, batches, mixture)
    taps_of = n // shape[1]
    blocks = found.covariance.reshape(group, shape[1], taps_of, shape[1], taps_of)
    np.testing.assert_allclose(few.mean, found.mean)
    for g in range(group):
        assert_near(few.covariance.channels[g], np.einsum("iaja->ij", blocks[g]) / taps_of)
    np.testing.assert_allclose(np.einsum("gtt->gt", few.covariance.spatial).mean(axis=1), 1, rtol=1e-5)


def test_a_kind_without_weight_moves_no_mean_and_one_without_share_no_covariance():
    batches, mixture = kinds_of(9, 5)
    at, node = layer("MatMul", (5, 4), 1, 1), helper.make_node("MatMul", ["x", "w"], ["y"])
    one, other = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    alone = measured(at, node, batches[:2])
    found = measured(at, node, batches, replace(mixture, weights=one, shares=one))
    np.testing.assert_allclose(found.mean, alone.mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, alone.covariance, rtol=1e-5, atol=1e-7)
    assert found.samples == alone.samples
    # What is rounded for is the second kind, and how far its mean is from the one that is known.
    found = measured(at, node, batches, replace(mixture, weights=one, shares=other))
    np.testing.assert_allclose(found.mean, alone.mean, rtol=1e-6)
    patches = [np.concatenate(batches[k : k + 2]).astype(np.float64) for k in (0, 2, 4)]
    assert_near(found.covariance[0], weighed(patches, one, other)[1])


def test_every_kind_is_anchored_by_its_own_moments(digits_bn):
    proto = load(digits_bn).proto
    layers = match(proto).layers[:4]
    names = [one.name for one in layers]
    feeds = [
        [{name: scale * values + centre for name, values in feed.items()} for feed in drawn]
        for scale, centre, drawn in zip(
            np.float32([1, 20, 0.1]),
            np.float32([0, 50, 0.3]),
            [synthetic_feeds(model_inputs(proto), samples=8, seed=seed) for seed in (0, 1, 2)],
            strict=True,
        )
    ]
    mixture = mixture_of(feeds, WEIGHTS, SHARES, [False, False, True])
    together = probe(proto, layers, names, mixture, source="probe", seed=0, with_outputs=True)
    for kind, own in enumerate(feeds):
        mixture = one_kind(own, real=kind == 2)
        alone = probe(proto, layers, names, mixture, source="probe", seed=0, with_outputs=True)
        for one in layers:
            found, expected = together[one.name], alone[one.name]
            assert found.output is not None
            assert found.anchor is not None
            assert expected.output is not None
            np.testing.assert_allclose(found.output.mean[kind], expected.output.mean[0], rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(found.output.variance[kind], expected.output.variance[0], rtol=1e-3)
            if kind == 2:  # real ones are measured as they are
                assert expected.anchor is None
                np.testing.assert_array_equal(found.anchor.scale[kind], 1)
                np.testing.assert_array_equal(found.anchor.offset[kind], 0)
            else:
                assert expected.anchor is not None
                np.testing.assert_allclose(found.anchor.scale[kind], expected.anchor.scale[0], rtol=1e-3)


def test_what_is_unlikely_is_not_run():
    mixture = mixture_of([[{"x": noise(1)}] * 2, [{"x": noise(2)}], [{"x": noise(3)}]], WEIGHTS, SHARES)
    likely = mixture.only(0.2)
    assert likely.kinds == (0, 0, 2)
    assert [len(feed["x"]) for feed in likely.feeds] == [1, 1, 3]
    np.testing.assert_allclose(likely.weights, [2 / 3, 0, 1 / 3])


# Chance


def naive_chance(parts: list[np.ndarray]) -> float:
    """By definition, of parts (i, P) with as many patches each."""
    each = [part @ part.T / part.shape[1] for part in parts]
    mean = sum(each) / len(each)
    deviation = np.sqrt(np.diagonal(mean))
    made = correlated = 0.0
    for i in range(len(mean)):
        for j in range(len(mean)):
            if i != j:
                unit = deviation[i] * deviation[j]
                own = mean[i, j] / unit
                squares = [(one[i, j] / unit - own) ** 2 for one in each]
                made += sum(squares) / (len(each) * (len(each) - 1))
                correlated += own**2
    return min(made / correlated, 1.0)


@given(st.integers(2, 6), st.integers(2, 5), seeds)
def test_chance_is_the_scatter_between_the_parts_of_a_sample(parts, channels, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((channels, channels)) + 1
    samples = [mixing @ rng.standard_normal((channels, 7)) for _ in range(parts)]
    each = np.stack([one @ one.T / 7 for one in samples])[:, None]
    found = chance_of(each.mean(axis=0), np.square(each).mean(axis=0), parts)
    assert found == pytest.approx(naive_chance(samples), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (4, 6, 3, 3)])
def test_correlations_of_a_few_inputs_are_known_to_be_made_by_chance(shape):
    rng = np.random.default_rng(0)
    at, node = layer(shape=shape), single("Conv", "").graph.node[0]
    noise_ = [rng.standard_normal((1, 6, 5, 5)).astype(np.float32) for _ in range(8)]
    shared = [one + 3 * rng.standard_normal((1, 1, 5, 5)).astype(np.float32) for one in noise_]
    chances = [measured(at, node, batches).chance for batches in (noise_, shared, noise_[:1] * 4, noise_[:1])]
    assert chances[0] > 0.5  # nothing correlates
    assert chances[1] < 0.1
    assert chances[2] == pytest.approx(0, abs=1e-6)  # the parts are the same
    assert chances[3] == 0  # nobody knows


def test_chance_of_a_mixture_counts_by_the_squares_of_the_shares():
    rng = np.random.default_rng(0)
    at, node = layer(shape=(4, 6, 1, 1)), single("Conv", "").graph.node[0]
    batches = [rng.standard_normal((1, 6, 5, 5)).astype(np.float32) for _ in range(8)]
    alone = [measured(at, node, some).chance for some in (batches[:4], batches[4:])]
    mixture = mixture_of([[{}] * 4, [{}] * 4], np.array([0.9, 0.1]), np.array([0.6, 0.4]))
    found = measured(at, node, batches, mixture).chance
    assert found == pytest.approx(0.36 * alone[0] + 0.16 * alone[1], rel=1e-6)


@pytest.mark.parametrize(
    ("kernel", "real", "anchored", "expected"),
    [
        ((1, 1), (False, False), False, 8),  # the same in two kinds, half of the covariance each
        ((1, 1), (False, False), True, 16 * 25),
        ((1, 1), (True, True), False, 16 * 25),
        ((1, 1), (False, True), False, 8 / 0.5**2),
        ((3, 3), (False, False), False, 16 * 9),
    ],
)
def test_patches_of_a_synthetic_picture_count_once_where_no_batch_norm_anchors(
    kernel, real, anchored, expected
):
    at, node = layer(shape=(4, 3, *kernel)), single("Conv", "").graph.node[0]
    batches = [noise(4, 3, 5, 5, seed=seed) for seed in range(4)]
    mixture = mixture_of([[{}] * 2, [{}] * 2], np.array([0.9, 0.1]), np.array([0.5, 0.5]), real)
    assert measured(at, node, batches, mixture, anchored=anchored).samples == expected


def test_layers_behind_a_batch_norm_count_patches():
    conv = "y = Conv (x, v) a = Conv (y, w) z = Relu (a)"
    norm = "y = Conv (x, v) b = BatchNormalization (y, s, t, m, u) a = Conv (b, w) z = Relu (a)"
    found = []
    for body in (conv, norm):
        proto = parse(f"g (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] z) {{ {body} }}")
        weights = {"v": noise(4, 3, 1, 1, seed=1), "w": noise(4, 4, 1, 1, seed=2)}
        weights |= {name: np.ones(4, np.float32) for name in "stmu"}
        used = {name for node in proto.graph.node for name in node.input}
        proto.graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in weights.items() if name in used
        )
        layers = match(proto).layers
        feeds = [{"x": noise(4, 3, 8, 8, seed=seed)} for seed in range(2)]
        seen = probe(
            proto,
            layers,
            [one.name for one in layers],
            one_kind(feeds),
            source="probe",
            seed=0,
            with_outputs=False,
        )
        found.append([one.input.samples for one in seen.values()])
    assert found == [[8, 8], [8, 512]]
