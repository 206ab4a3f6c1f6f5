"""Activations in 8 bits: where, in which ranges, and that the file does what it says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, parser

import onnx_dfmpc
from onnx_dfmpc import QuantizeResult, Recipe, quantize
from onnx_dfmpc.activations import ranges
from onnx_dfmpc.activations.activate import _corrected
from onnx_dfmpc.activations.cost import float_layers
from onnx_dfmpc.activations.insert import insert
from onnx_dfmpc.activations.placement import Placement, place
from onnx_dfmpc.activations.ranges import LEVELS, centres, histogram, quantization_range, scale_and_zero_point
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.report.document import quantize_document
from onnx_dfmpc.runtime import machine
from onnx_dfmpc.runtime.session import Session, optimized_nodes
from tests.conftest import MODELS, networks
from tests.graphs import noise, parse

ONE = np.ones(1)
FOUR_BITS = Recipe(bits=4, activations=8)

# ----------------------------------------------------------------------------
# ranges


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_every_value_is_in_a_bin_whose_middle_is_near(values: list[float]) -> None:
    x = np.array(values, np.float32)
    for value in x:
        counts = histogram(value)
        assert counts.sum() == 1
        middle = centres()[counts.argmax()]
        assert middle == pytest.approx(float(value), rel=2.0**-ranges.FRACTION_BITS, abs=1.2e-38)


@given(st.floats(0, 100), st.floats(0, 100))
def test_zero_has_a_code(low: float, high: float) -> None:
    scale, zero_point = scale_and_zero_point(-low, high)
    assert 0 <= zero_point <= LEVELS
    assert scale > 0
    if low == 0:
        assert zero_point == 0
    # the range is kept, but for the step that puts zero on a code
    assert (LEVELS - zero_point) * float(scale) >= high - float(scale)


def naive(counts: np.ndarray, tau: float, low: float, high: float) -> float:
    """J(l, h) of one kind by its formula, value by value."""
    x, n = centres()[counts > 0], counts[counts > 0]
    mean, power = (n @ x) / n.sum(), (n @ np.square(x)) / n.sum()
    error = total = 0.0
    for z in ranges.DEVIATIONS:
        chance, f = math.exp(-(z**2) / 2), math.exp(tau * z)
        moved = mean + f * (x - mean)
        clipped = moved - np.clip(moved, low, high)
        step = (high - low) / LEVELS
        error += chance * (step**2 / 12 + ranges.CLIPPING * (n @ np.square(clipped)) / n.sum()) / f**2
        total += chance
    return error / total / power


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_range_has_a_smaller_expected_error(seed: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    counts = histogram(rng.standard_normal(2000) * 3 + rng.uniform(-2, 2))
    low, high = quantization_range(counts[None], ONE, tau)
    best = naive(counts, tau, low, high)
    for factor in (0.7, 0.9, 1.1, 1.4, 2.0):
        assert naive(counts, tau, low * factor, high) >= best * (1 - 1e-9)
        assert naive(counts, tau, low, high * factor) >= best * (1 - 1e-9)


def test_the_less_is_known_the_wider_the_range() -> None:
    counts = histogram(np.random.default_rng(0).standard_normal(5000))[None]
    found = [quantization_range(counts, ONE, tau) for tau in (0.0, 0.2, 0.4)]
    widths = [high - low for low, high in found]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_a_score_that_was_never_positive_may_be() -> None:
    """A detector that sees nothing: all logits are far below 0, but they vary."""
    counts = histogram(np.random.default_rng(0).normal(-20, 8, 5000).clip(-40, -0.1))[None]
    assert quantization_range(counts, ONE, 0.0)[1] == pytest.approx(0, abs=0.1)
    assert quantization_range(counts, ONE, 0.4)[1] > 1


def test_a_bound_of_the_graph_is_never_left() -> None:
    counts = histogram(np.random.default_rng(0).uniform(0, 6, 5000))[None]
    assert quantization_range(counts, ONE, 0.5, (0.0, 6.0)) == (0.0, 6.0)


@pytest.mark.parametrize("values", [[0.0], [math.nan, math.inf], []])
def test_a_tensor_that_says_nothing_still_gets_a_range(values: list[float]) -> None:
    low, high = quantization_range(histogram(np.array(values, np.float32))[None], ONE, 0.3)
    assert low <= 0 < high


# ----------------------------------------------------------------------------
# placement


HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '


def parsed(body: str, outputs: str = "float[N,4,H,W] y") -> ModelProto:
    text = f"""{HEAD}(float[N,3,8,8] x) => ({outputs})
    <int8[4,3,3,3] c, float[4] s, float[4] b, int8[4,4,1,1] d, float[4] t, float lo, float hi>
    {{ w = DequantizeLinear<axis=0>(c, s) v = DequantizeLinear<axis=0>(d, t) {body} }}"""
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    arrays = {
        "c": rng.integers(-7, 8, (4, 3, 3, 3)).astype(np.int8),
        "d": rng.integers(-7, 8, (4, 4, 1, 1)).astype(np.int8),
        "s": np.full(4, 0.1, np.float32),
        "t": np.full(4, 0.1, np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "lo": np.array(0, np.float32),
        "hi": np.array(6, np.float32),
    }
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in arrays.items())
    return model


def placed(body: str, outputs: str = "float[N,4,H,W] y") -> Placement:
    return place(parsed(body, outputs))


def names(placement: Placement) -> list[str]:
    return [one.name for one in placement.activations]


def test_what_a_kernel_applies_is_not_quantized_before() -> None:
    found = placed("z = Conv(x, w, b) r = Relu(z) y = Conv(r, v)")
    assert names(found) == ["x", "r", "y"]
    assert found.layers == ("z", "y")
    assert [one.unsigned for one in found.activations] == [False, True, False]


def test_a_clip_gives_exact_bounds() -> None:
    found = placed("z = Conv(x, w, b) r = Clip(z, lo, hi) y = Conv(r, v)")
    assert {one.name: one.bounds for one in found.activations}["r"] == (0, 6)


def test_an_activation_that_others_read_too_is_quantized_on_both_sides() -> None:
    found = placed("z = Conv(x, w, b) r = Relu(z) q = Add(z, r) y = Conv(q, v)")
    assert names(found) == ["x", "z", "r", "q", "y"]


def test_what_moves_numbers_about_keeps_their_scale() -> None:
    found = placed(
        "z = Conv(x, w, b) r = Relu(z) p = MaxPool<kernel_shape=[2,2]>(r) "
        "i = Transpose<perm=[0,1,3,2]>(p) y = Conv(i, v)"
    )
    assert {one.name: one.like for one in found.activations if one.like != one.name} == {"p": "r", "i": "r"}


def test_a_tail_without_layers_stays_float() -> None:
    found = placed("z = Conv(x, w, b) r = Relu(z) p = GlobalAveragePool(r) y = Sigmoid(p)")
    assert names(found) == ["x", "r"]


def test_what_has_no_kernel_is_an_island() -> None:
    found = placed("z = Conv(x, w, b) e = Elu(z) y = Conv(e, v)")
    assert names(found) == ["x", "z", "e", "y"]


def test_a_float_layer_is_left_alone() -> None:
    model = parsed("z = Conv(x, w, b) y = ConvTranspose(z, v)")
    found = place(model)
    assert found.layers == ("z",)
    assert found.floats == {"y": "ONNX Runtime has no integer kernel for ConvTranspose"}


# ----------------------------------------------------------------------------
# the nodes


def inserted(model: ModelProto, reach: float = 8.0) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    placement = place(copy)
    insert(
        copy,
        placement,
        {
            one.name: (0.0 if one.unsigned else -reach, min(reach, one.bounds[1]))
            for one in placement.activations
        },
    )
    onnx.checker.check_model(copy, full_check=True)
    return copy


BODIES = {
    "chain": "z = Conv(x, w, b) r = Relu(z) y = Conv(r, v)",
    "clip": "z = Conv(x, w, b) r = Clip(z, lo, hi) y = Conv(r, v)",
    "residual": "z = Conv(x, w, b) r = Relu(z) u = Conv(r, v) q = Add(u, r) k = Relu(q) y = Conv(k, v)",
    "concat": (
        "z = Conv(x, w, b) r = Relu(z) a = Conv(r, v) e = Conv(r, v, b) "
        "k = Concat<axis=2>(a, e) y = Conv(k, v)"
    ),
    "pool": "z = Conv(x, w, b) r = Relu(z) p = AveragePool<kernel_shape=[4,4]>(r) y = Conv(p, v)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_model_is_close_to_the_float_one_in_another_implementation(body: str) -> None:
    """`onnx.reference` computes QuantizeLinear and DequantizeLinear by their definition, without kernels."""
    model = parsed(body)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    (actual,) = onnx.reference.ReferenceEvaluator(inserted(model)).run(None, {"x": x})
    noise = np.square(actual - expected).mean() / np.square(expected).mean()
    assert noise < 3e-3  # 25 dB: a step of a sixteenth against values around 1, a few times


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_layer_is_computed_in_integers(body: str) -> None:
    model = parsed(body)
    kernels = Counter(node.op_type for node in optimized_nodes(inserted(model)))
    assert kernels["QLinearConv"] == sum(node.op_type == "Conv" for node in model.graph.node)
    assert "Conv" not in kernels


def test_outputs_keep_their_names() -> None:
    model = inserted(
        parsed("z = Conv(x, w, b) r = Relu(z) y = Conv(r, v)", "float[N,4,H,W] y, float[N,4,H,W] r")
    )
    assert [value.name for value in model.graph.output] == ["y", "r"]
    assert {node.output[0]: node.op_type for node in model.graph.node}["y"] == "DequantizeLinear"


def test_who_asks_for_a_shape_gets_the_codes() -> None:
    body = "z = Conv(x, w, b) r = Relu(z) n = Shape(r) f = Reshape(r, n) y = Conv(f, v)"
    model = inserted(parsed(body))
    (shape,) = (node for node in model.graph.node if node.op_type == "Shape")
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    assert made[shape.input[0]] == "QuantizeLinear"


def test_a_bias_that_does_not_fit_makes_the_scale_wider() -> None:
    """A dead channel: weights of 1e-12 and a bias of 5. In units of the two, the bias is more than 2^31."""
    model = parsed("z = Conv(x, w, b) r = Relu(z) y = Conv(r, v)")
    for tensor in model.graph.initializer:
        if tensor.name == "s":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32([1e-12, 0.1, 0.1, 0.1]), "s"))
        elif tensor.name == "b":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32([5, 0, 0, 0]), "b"))
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    (actual,) = onnx.reference.ReferenceEvaluator(inserted(model)).run(None, {"x": x})
    assert np.square(actual - expected).mean() < 1e-3 * np.square(expected).mean()


def test_a_float_pool_stays_in_front_of_what_quantizes_it() -> None:
    """ONNX Runtime would otherwise pool integers, in the slow layout."""
    body = "z = Conv(x, g, b) r = Relu(z) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v)"
    model = parsed(body)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "g"))
    kernels = Counter(node.op_type for node in optimized_nodes(inserted(model)))
    assert kernels["QLinearConv"] == kernels["Conv"] == 1
    assert "Clip" not in kernels
    made = {node.output[0]: node for node in inserted(model).graph.node}
    clip = next(node for node in made.values() if node.op_type == "Clip")
    assert made[clip.input[0]].op_type == "MaxPool"


# ----------------------------------------------------------------------------
# what is faster


def test_a_large_first_layer_stays_float_and_a_small_one_does_not() -> None:
    for size, expected in ((224, ["c"]), (16, [])):
        text = f"""g (float[N, 3, {size}, {size}] x) => (float[N, C, H, W] y) {{
            [c] z = Conv<pads=[1,1,1,1]>(x, w)
            r = Relu(z)
            [d] y = Conv<pads=[1,1,1,1]>(r, v)
        }}"""
        model = parse(text, w=noise(32, 3, 3, 3), v=noise(32, 32, 3, 3))
        assert list(float_layers(model, match(model))) == expected


def test_a_network_of_thin_depthwise_layers_stays_float() -> None:
    text = """g (float[N, 8, 64, 64] x) => (float[N, 8, 64, 64] y) {
        [c] z = Conv<pads=[1,1,1,1], group=8>(x, w)
        r = Relu(z)
        [d] y = Conv<pads=[1,1,1,1], group=8>(r, v)
    }"""
    model = parse(text, w=noise(8, 1, 3, 3), v=noise(8, 1, 3, 3))
    found = float_layers(model, match(model))
    assert list(found) == ["c", "d"]
    assert "of their float time" in found["c"]
    result = quantize(model, None, Recipe(bits=4, activations=8))
    assert result.activations is not None
    assert result.activations.layers == 0
    assert any(note.startswith("activations stay float: ") for note in result.notes)
    assert result.validation


# ----------------------------------------------------------------------------
# the whole way


RECIPES: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 4, "storage": "native"},
    {"low_bits": 2, "high_bits": 6},
    {"target_size": "60KiB"},
    {"bits": 3, "rounding": "nearest", "repair": "none"},
]


@pytest.fixture(scope="module")
def four_bits() -> QuantizeResult:
    """The shipped network at 4 bits, in integers."""
    return quantize(MODELS / "digits_resnet_bn.onnx", None, FOUR_BITS, validated=False)


# Batch norm is folded before activations are placed: of a folded network two recipes say as much as five.
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(("digits_bn", recipe) for recipe in RECIPES),
        *(("digits_folded", recipe) for recipe in (RECIPES[0], RECIPES[-1])),
        *(pytest.param("digits_folded", recipe, marks=pytest.mark.slow) for recipe in RECIPES[1:-1]),
    ],
    ids=str,
)
def test_small_and_in_integers(
    name: str, recipe: dict, request: pytest.FixtureRequest, digits_data: Path
) -> None:
    path = request.getfixturevalue(name)
    result = quantize(path, None, Recipe(**recipe, activations=8, data=str(digits_data)))
    assert result.size <= result.plan.predicted_bytes <= result.size * 1.002
    assert result.activations is not None
    assert result.activations.fused == result.activations.layers == len(result.layers)
    assert not result.activations.floats
    assert result.validation is not None
    assert result.validation.top1_drop is not None
    assert result.validation.top1_drop < 0.012
    assert not result.validation.weight_only


def test_the_same_bytes_twice(digits_bn: Path, four_bits: QuantizeResult) -> None:
    again = quantize(digits_bn, None, FOUR_BITS, validated=False)
    assert again.model.SerializeToString() == four_bits.model.SerializeToString()


def test_a_plan_for_float_activations_can_be_used(digits_bn: Path) -> None:
    """Its 8-bit weights get the grid that integer kernels want."""
    plan = onnx_dfmpc.plan(digits_bn, Recipe(bits=8))
    recipe = Recipe(bits=8, activations=8)
    direct = quantize(digits_bn, None, recipe, validated=False)
    applied = onnx_dfmpc.apply(digits_bn, replace(plan, form=recipe.form), recipe, validated=False)
    assert applied.activations is not None
    assert applied.activations.fused == len(applied.layers)
    assert applied.size == direct.size


def test_the_document_has_them(four_bits: QuantizeResult) -> None:
    document = quantize_document(four_bits)
    assert document["form"]["activations"] == 8
    assert document["activations"]["layers"] == 16
    first = document["activations"]["ranges"][0]
    assert first["name"] == "input"
    assert first["low"] < 0 < first["high"]


@pytest.mark.parametrize("bits", [{"bits": 8}, {"low_bits": 2}, {"target_bits": 7.5}, {"bits": 7}], ids=str)
def test_weights_within_seven_bits(digits_bn: Path, bits: dict) -> None:
    """Whatever asks for more: an edge layer, a rule, a target. What DequantizeLinear gets is within +-64."""
    recipe = Recipe(**bits, set={"conv.*": 8}, activations=8, reduce_range=True)
    result = quantize(digits_bn, None, recipe, validated=False)
    assert 7 in {layer.bits for layer in result.layers} <= set(range(2, 8))
    assert result.size <= result.plan.predicted_bytes <= result.size * 1.002
    for codes in weight_codes(result.model):
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() <= 64


def test_a_plan_of_eight_bits_with_a_reduced_range(digits_bn: Path) -> None:
    plan = onnx_dfmpc.plan(digits_bn, Recipe(bits=8))
    recipe = Recipe(bits=8, activations=8, reduce_range=True)
    applied = onnx_dfmpc.apply(digits_bn, replace(plan, form=recipe.form), recipe, validated=False)
    assert {layer.bits for layer in applied.layers} == {7}
    assert applied.plan.predicted_bytes >= applied.size


def test_a_reduced_range_is_for_integer_kernels() -> None:
    with pytest.raises(RecipeError, match="activations are float"):
        Recipe(bits=8, reduce_range=True)


def weight_codes(model: ModelProto) -> list[np.ndarray]:
    """What DequantizeLinear gets for weights, as ONNX Runtime computes it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    quantized = {node.output[0] for node in copy.graph.node if node.op_type == "QuantizeLinear"}
    names = [
        node.input[0]
        for node in copy.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in quantized
    ]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feed = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    found = Session(copy, "codes").run(feed, names)
    return [codes for codes in found if codes.dtype != np.int32]  # biases


def test_whether_kernels_saturate_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.saturates.cache_clear()
    assert machine.saturates() == any("avx2" in flags and "vnni" not in flags for flags in cpu_flags())
    machine.saturates.cache_clear()
    monkeypatch.setattr(Session, "run", lambda *_: [np.full((1, machine.TERMS), 32767 * 32, np.int32)])
    assert machine.saturates()
    machine.saturates.cache_clear()


def cpu_flags() -> list[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        pytest.skip("only Linux says what its processor can do")
    return [line for line in path.read_text().splitlines() if line.startswith("flags")]


def test_the_kernel_of_every_layer_is_named(digits_bn: Path, four_bits: QuantizeResult) -> None:
    """As `optimized_nodes` has them: the classifier is a Gemm, the others are convolutions."""
    expected = {"Conv": "QLinearConv", "Gemm": "QGemm"}
    assert [layer.kernel for layer in four_bits.layers] == [expected[layer.op] for layer in four_bits.layers]
    plain = quantize(digits_bn, None, Recipe(bits=4, rounding="nearest", repair="none"), validated=False)
    assert {layer.kernel for layer in plain.layers} == {""}


def test_a_bias_that_is_listed_as_an_input_does_not_stay_one(digits_bn: Path) -> None:
    """Models of IR 3 list all initializers as inputs: without its initializer one would have to be fed."""
    model = onnx.load(digits_bn)
    listed = [t for t in model.graph.initializer if t.name not in {value.name for value in model.graph.input}]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in listed
    )
    result = quantize(model, None, Recipe(bits=4, activations=8, repair="none", rounding="nearest"))
    assert [spec.name for spec in Session(result.model, "it").specs()] == ["input"]


def test_a_shared_bias_takes_the_shift_of_each_layer_once() -> None:
    model = parsed("z = Conv(x, w, b) r = Relu(z) y = Conv(r, v, b)")
    shifts = {"z": np.full(4, 0.25), "y": np.full(4, -1.0)}
    made = _corrected(model, shifts)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    before = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "b")
    for node in made.graph.node:
        if node.op_type == "Conv":
            expected = before - shifts[node.output[0]].astype(np.float32)
            np.testing.assert_array_equal(arrays[node.input[2]], expected)


OTHER_FLOATS = {
    "float16": """g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(c)  h = Cast<to = 10>(r)  [other] g = Conv(h, v, b)  s = Relu(g)
        f = Cast<to = 1>(s)  y = Conv<pads = [1, 1, 1, 1]>(f, u) }""",
    "float64": """g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(c)  d = Cast<to = 11>(r)  [other] m = MatMul(d, v)  s = Relu(m)
        f = Cast<to = 1>(s)  y = Conv<pads = [1, 1, 1, 1]>(f, u) }""",
    "bfloat16": """g (float[N, 8, 6, 6] x, int64[6, 6] i) => (float[N, 8, 6, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(c)  rows = Gather(v, i)  t = Transpose<perm = [2, 0, 1]>(rows)
        f = Cast<to = 1>(t)  a = Add(r, f)  y = Conv<pads = [1, 1, 1, 1]>(a, u) }""",
}


@pytest.mark.parametrize("kind", OTHER_FLOATS)
def test_layers_in_other_floats_stay_float_and_the_others_do_not(kind: str) -> None:
    shape = {"float16": (8, 8, 1, 1), "float64": (6, 6), "bfloat16": (40, 8)}[kind]
    other = {"v": noise(*shape, seed=1).astype(np.dtype(kind))}
    if kind == "float16":
        other["b"] = noise(8, seed=3).astype(np.float16)
    model = parse(OTHER_FLOATS[kind], w=noise(8, 8, 3, 3), u=noise(8, 8, 3, 3, seed=2), **other)
    result = quantize(model, None, Recipe(bits=8, activations=8, input_range=(-2, 2)))
    integer = result.activations
    assert integer is not None
    assert len(result.layers) == 3  # their weights are quantized
    assert not result.skipped
    assert integer.layers == 2 == integer.fused
    assert list(integer.floats) == ([] if kind == "bfloat16" else ["other"])
    assert all(kind in why for why in integer.floats.values())
    assert result.plan.predicted_bytes == result.model.ByteSize()
    assert (result.validation.sqnr_db or 0) > 25


@pytest.mark.parametrize("slim", [False, True])
def test_where_all_layers_are_in_another_float_weights_alone_are_quantized(slim: bool) -> None:
    text = "g (float16[N, 8, 4, 4] x) => (float16[N, 8, 4, 4] y) { [c] y = Conv(x, w) }"
    model = parse(text, w=noise(8, 8, 1, 1).astype(np.float16))
    result = quantize(model, None, Recipe(bits=8, activations=8, slim=slim))
    assert any(
        "activations stay float: integer kernels take float32, not float16" in note for note in result.notes
    )
    assert (result.validation.sqnr_db or 0) > 30


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"activations": 4}, ["activations = 4", "8"]),
        ({"activations": 8, "unpack": "float"}, ["unpack = 'float'", "activations = 8"]),
        ({"activations": 8, "fold_batch_norm": "no"}, ["fold_batch_norm = 'no'", "activations = 8"]),
    ],
)
def test_what_does_not_go_together(keywords: dict, words: list[str]) -> None:
    with pytest.raises(RecipeError) as raised:
        Recipe(**keywords)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    "shared_model", networks("cifar10_shufflenetv2", "cifar10_resnet20_folded"), indirect=True
)
def test_shared_networks_end_to_end(shared_model: Path) -> None:
    """Every layer that can be is computed in integers, and the size is known: but for zero points, which all
    layers are expected to have.
    """
    # In a mean of 4 bits FastestDet is next to the gate's 6 dB on noise, with float activations as well.
    bits = 5 if "fastestdet" in shared_model.name else 4
    result = quantize(shared_model, None, Recipe(activations=8, target_bits=bits))
    assert result.activations is not None
    assert result.activations.fused == result.activations.layers
    assert result.size <= result.plan.predicted_bytes <= result.size * 1.003
    assert result.validation
