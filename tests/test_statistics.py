"""Statistics of layer inputs: the stream against one run of the whole model, moments against loops, inputs as
the model declares them.
"""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper, parser

from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.runtime import batches as batches_room
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec.ops import to_rows
from onnx_dfmpc.statistics.moments import measure
from onnx_dfmpc.statistics.probe import Probe, _moments
from tests.arrays import layer, seeds


def parse(text: str, **initializers: np.ndarray) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()
    )
    return model


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(model: ModelProto, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """The oracle: one session on the whole model, with the tensors as extra outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [list(values) for values in zip(*(session.run(None, feed) for feed in feeds), strict=True)]


# PartialRun

FORKED = """g (float[N, 3, 6, 6] x) => (float[] y, float[] z) {
    w_same = Identity(w)
    two = Constant <value = float {2.0}> ()
    [c1] a = Conv(x, w_same)
    r = Relu(a)
    [c2] b = Conv(r, v)
    t = Mul(b, two)
    parts_a, parts_b = Split <axis = 1> (t)
    s = Add(parts_a, parts_b)
    shape = Shape(x)
    zeros = ConstantOfShape(shape)
    p = GlobalAveragePool(r)
    y = Mul(s, p2)
    p1 = ReduceMean(p)
    p2 = Identity(p1)
    z = Add(zeros, x)
}"""

BRANCHED = """g (float[N, 2, 4, 4] x, bool[] yes) => (float[] y) {
    [c1] a = Conv(x, w)
    r = Relu(a)
    b = If (yes) <
        then_branch = g1 () => (float[] t) { [inner] c = Conv(r, w)  t = Add(c, bias) },
        else_branch = g2 () => (float[] e) { e = Neg(a) }
    >
    [c2] y = Conv(b, w)
}"""


def forked() -> ModelProto:
    model = parse(FORKED, w=noise(4, 3, 3, 3), v=noise(6, 4, 2, 2, seed=1))
    # Nodes are sorted in a valid file: p1 and p2 come before y.
    nodes = {node.output[0]: node for node in model.graph.node}
    order = ["w_same", "two", "a", "r", "b", "t", "parts_a", "s", "shape", "zeros", "p", "p1", "p2", "y", "z"]
    sorted_nodes = [nodes[name] for name in order]
    del model.graph.node[:]
    model.graph.node.extend(sorted_nodes)
    return model


def stream(model: ModelProto, feeds: list[dict[str, np.ndarray]]) -> PartialRun:
    return PartialRun(model, ConstantTable(model), feeds)


@pytest.mark.parametrize(
    "wanted",
    [["a", "r", "b", "t", "parts_b", "s", "p2", "y", "z"], ["r", "y"], ["b"], ["y"], ["x", "a", "z"]],
)
def test_stream_computes_what_the_whole_model_computes(wanted):
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2, 3)]
    tested = stream(model, feeds)
    computed = [tested.value(name) for name in wanted]
    names = [name for name in wanted if name != "x"]
    for name, expected in zip(names, whole(model, names, feeds), strict=True):
        actual = computed[wanted.index(name)]
        assert len(actual) == len(feeds)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("yes", [True, False])
def test_stream_gives_branches_the_tensors_that_they_capture(yes):
    model = parse(BRANCHED, w=noise(2, 2, 1, 1), bias=np.float32(0.5))
    feeds = [{"x": noise(2, 2, 4, 4, seed=s), "yes": np.array(yes)} for s in (1, 2)]
    tested = stream(model, feeds)
    names = ["a", "b", "y"]
    computed = [
        tested.value(name) for name in names
    ]  # a and r are captured, and must live until the branch has run
    for actual, expected in zip(computed, whole(model, names, feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_stream_forgets_what_nobody_reads_any_more():
    steps = "".join(f"t{i + 1} = Relu(t{i}) " for i in range(20))
    model = parse(f"g (float[N, 4] t0) => (float[] y) {{ {steps} y = Neg(t20) }}")
    tested = stream(model, [{"t0": noise(3, 4)}])
    for i in range(1, 21):
        tested.value(f"t{i}")
        assert set(tested._live) == {f"t{i}"}


def test_stream_keeps_a_shortcut_until_it_is_added():
    model = parse("""g (float[N, 4] x) => (float[] y) {
        a = Neg(x)  b = Relu(a)  c = Neg(b)  y = Add(c, a) }""")
    feeds = [{"x": noise(3, 4)}]
    tested = stream(model, feeds)
    for name in ("a", "b", "c"):
        tested.value(name)
    assert set(tested._live) == {"a", "c"}
    np.testing.assert_allclose(tested.value("y"), whole(model, ["y"], feeds)[0])


def test_what_is_put_is_what_the_nodes_behind_see():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6)}]
    tested = stream(model, feeds)
    halved = [0.5 * value for value in tested.value("a")]
    tested.put("a", halved)
    np.testing.assert_allclose(tested.value("r")[0], np.maximum(halved[0], 0))


def test_stream_respects_a_fixed_batch():
    model = parse(
        "g (float[1, 2, 5] x) => (float[] y) { f = Reshape(x, s)  y = MatMul(f, w) }",
        s=np.array([1, 10]),
        w=noise(10, 3),
    )
    feeds = synthetic_feeds(model_inputs(model))
    assert len(feeds) > 1
    assert {feed["x"].shape for feed in feeds} == {(1, 2, 5)}
    assert [value.shape for value in stream(model, feeds).value("y")] == [(1, 3)] * len(feeds)


def test_stream_uses_local_functions():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x) => (float[] y) { t = local.twice(x)  y = Relu(t) }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (b) { b = Add(a, a) }""")
    x = noise(2, 4)
    np.testing.assert_allclose(stream(model, [{"x": x}]).value("y")[0], np.maximum(2 * x, 0))


def test_a_model_that_cannot_run_is_a_model_error():
    shapes = parse("g (float[N, 4] x) => (float[] y) { y = MatMul(x, w) }", w=noise(5, 3))
    with pytest.raises(ModelError, match="'y'"):
        stream(shapes, [{"x": noise(2, 4)}]).value("y")
    unknown = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[N, 4] x) => (float[] y) { y = other.Mystery(x) }""")
    with pytest.raises(ModelError, match="'y'"):
        stream(unknown, [{"x": noise(2, 4)}]).value("y")


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
    found = measure(at, node, batches, seed=0, provider="test")
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
        layer(op, shape, 1, axis), helper.make_node(op, ["x", "w"], ["y"]), batches, seed=0, provider="test"
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
    every = measure(at, node, batches, seed=0, provider="test")
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MANY_INPUTS", 1)
    found = measure(at, node, batches, seed=0, provider="test")
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
        layer("Conv", (4, 2, 3, 3)), node, [batch[:, :2] for batch in batches], seed=0, provider="test"
    )
    batches[0][:, 2] = 1.5
    found = measure(at, node, batches, seed=0, provider="test")
    np.testing.assert_allclose(found.covariance.spatial, alive.covariance.spatial, atol=1e-5)
    assert np.isfinite(found.covariance.channels).all()


def test_a_sample_of_patches_is_close_to_all_of_them(monkeypatch):
    batches = [
        noise(8, 3, 30, 30, seed=s) + np.arange(3, dtype=np.float32).reshape(3, 1, 1) for s in range(2)
    ]
    at, node = layer("Conv", (4, 3, 3, 3)), helper.make_node("Conv", ["x", "w"], ["y"])
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_PATCHES", 1 << 20)
    every = measure(at, node, batches, seed=0, provider="test")
    monkeypatch.setattr("onnx_dfmpc.statistics.moments.MAX_PATCHES", 4000)
    some = measure(at, node, batches, seed=0, provider="test")
    again, other = (measure(at, node, batches, seed=seed, provider="test") for seed in (0, 1))
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
    found = measure(at, model.graph.node[0], [x[:100], x[100:]], seed=0, provider="test")
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
        measure(layer("Conv", (4, 3, 5, 5)), node, [noise(2, 3, 4, 4)], seed=0, provider="test")


def test_matched_layers_can_be_measured_one_after_the_other():
    model = forked()
    feeds = [{"x": noise(2, 3, 6, 6, seed=s)} for s in (1, 2)]
    tested = stream(model, feeds)
    for found in match(model).layers:
        node = next(node for node in model.graph.node if found.output in node.output)
        known = measure(
            found, node, tested.value(found.input), seed=0, provider="test"
        )
        assert known.covariance.shape[1] == found.size // found.channels


def test_a_skipped_layer_is_the_same_in_both_networks(digits_bn):
    proto = load(digits_bn).proto
    layers = match(proto).layers
    table = ConstantTable(proto)
    probe = Probe(proto, synthetic_feeds(model_inputs(proto), samples=8), provider="probe")
    for one in layers[:3]:
        found = probe.respond(one, np.asarray(table[one.weight]))
        np.testing.assert_allclose(found.quantized_mean, found.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.quantized_variance, found.variance, rtol=1e-4, atol=1e-5)
        probe.skip(one)


def test_behind_a_layer_both_networks_have_what_its_batch_norm_expects(digits_bn):
    proto = load(digits_bn).proto
    first = match(proto).layers[0]
    probe = Probe(proto, synthetic_feeds(model_inputs(proto), samples=32), provider="probe")
    weight = np.sign(np.asarray(ConstantTable(proto)[first.weight])) * np.float32(0.1)
    found = probe.respond(first, weight)
    gain = np.sqrt(found.variance / found.quantized_variance)
    probe.commit(first, gain, gain * found.quantized_mean - found.mean)
    mean, variance = _moments(probe._quantized.value(first.output), first)
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


def test_large_tensors_of_a_run_wait_in_files_and_change_nothing(digits_bn, monkeypatch):
    proto = load(digits_bn).proto
    first, second, *_ = match(proto).layers

    def measured() -> list[np.ndarray]:
        probe = Probe(proto, synthetic_feeds(model_inputs(proto), samples=8), provider="probe")
        known = probe.measure(first)
        probe.skip(first)
        after = probe.measure(second)
        return [known.mean, known.covariance, after.mean, after.covariance]

    expected = measured()
    monkeypatch.setattr(batches_room, "IN_MEMORY", 0)
    for found, wanted in zip(measured(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
