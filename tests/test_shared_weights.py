"""Layers that read one weight: its codes are in the file once, and everything else is each layer's own."""

import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import QuantizeResult, Recipe, apply, inspect, load_plan, plan, quantize, save_plan
from onnx_dfmpc.linalg.low_rank import LowRank
from onnx_dfmpc.linalg.matrices import Diagonal, Kronecker, matrix
from onnx_dfmpc.pipeline.run import inspect_result, plan_result
from onnx_dfmpc.report.document import inspect_document, quantize_document
from onnx_dfmpc.report.plans import plan_document
from onnx_dfmpc.spec import InputStatistics, QuantizedWeight, StorageFormat
from onnx_dfmpc.statistics.moments import pooled
from onnx_dfmpc.storage.layouts import lay_out
from onnx_dfmpc.storage.sharing import with_codes_of
from onnx_dfmpc.storage.tables import shared_parts
from onnx_dfmpc.storage.types import WeightNames, WeightSpec

LEVELS = range(3)
CHANNELS = 16
FIRST, LAST = [[f"{part}{level}" for level in LEVELS] for part in ("first", "last")]


def head(*, norm: bool, copies: bool = False, seed: int = 0) -> ModelProto:
    """A head of two convolutions, as RetinaNet has it, or EfficientDet where every level has a batch norm of
    its own. ``copies`` gives every level weights of its own, with the same numbers.
    """
    lines = ["[stem] s = Conv<pads = [1, 1, 1, 1]>(x, k, kb)", "p0 = Relu(s)"]
    lines += [f"p{n + 1} = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(p{n})" for n in LEVELS[:-1]]
    for n in LEVELS:
        own = n if copies else ""
        after = (
            f"a{n} = BatchNormalization(c{n}, g{n}, b{n}, m{n}, v{n})" if norm else f"a{n} = Identity(c{n})"
        )
        bias = "" if norm else ", wb"
        lines += [
            f"[first{n}] c{n} = Conv<pads = [1, 1, 1, 1]>(p{n}, w{own}{bias})",
            after,
            f"r{n} = Relu(a{n})",
            f"[last{n}] y{n} = Conv<pads = [1, 1, 1, 1]>(r{n}, u{own}, ub)",
        ]
    outputs = ", ".join(f"float[N, 8, A{n}, B{n}] y{n}" for n in LEVELS)
    interface = f"g (float[N, 3, 32, 32] x) => ({outputs})"
    model: ModelProto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> {interface} {{ {"  ".join(lines)} }}'
    )
    rng = np.random.default_rng(seed)
    c, deviation = CHANNELS, 1 / np.sqrt(9 * CHANNELS)
    arrays = {"k": rng.standard_normal((c, 3, 3, 3)) / 5, "kb": rng.standard_normal(c) / 3}
    w, u = (deviation * rng.standard_normal((count, c, 3, 3)) for count in (c, 8))
    for n in LEVELS if copies else [""]:
        arrays |= {f"w{n}": w, f"u{n}": u}
    arrays |= {"wb": rng.standard_normal(c) / 3, "ub": rng.standard_normal(8)}
    for n in LEVELS if norm else ():  # of channels that turn around in some levels, and one that is silent
        signs = np.where(rng.random(c) < 0.3, -1, 1) * (np.arange(c) != n)
        arrays |= {f"g{n}": rng.uniform(0.5, 1.5, c) * signs, f"b{n}": rng.standard_normal(c) / 2}
        arrays |= {f"m{n}": rng.standard_normal(c) / 3, f"v{n}": rng.uniform(0.1, 3, c)}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in arrays.items()
        if name in read
    )
    return model


def quantized(model: ModelProto, *, validated: bool = False, **recipe: Any) -> QuantizeResult:
    """Quick: statistics in closed form, and no comparison."""
    quick = Recipe(**{"statistics": "closed_form", "samples": 4} | recipe)
    return quantize(model, None, quick, validated=validated)


def large_tensors(model: ModelProto) -> list[int]:
    """Bytes of what holds codes, or float weights: all that is larger than a vector of channels."""
    sizes = [len(numpy_helper.to_array(tensor).tobytes()) for tensor in model.graph.initializer]
    return sorted(size for size in sizes if size > 4 * CHANNELS + 64)


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    """Float weight of every convolution by what it reads as data, as ONNX's reference computes it."""
    convs: list[NodeProto] = [node for node in model.graph.node if node.op_type == "Conv"]
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(node.input[1], TensorProto.FLOAT, None) for node in convs
    )
    names = [node.input[1] for node in convs]
    feed = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    found = ReferenceEvaluator(copy).run(names, feed)
    return {node.input[0]: values for node, values in zip(convs, found, strict=True)}


def run(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


FORMS: list[dict[str, Any]] = [
    {"storage": "table", "bits": 4},
    {"storage": "vector", "bits": 3},
    {"storage": "native", "bits": 2, "unpack": "int8", "fold_batch_norm": "yes"},
    {"storage": "table", "bits": 2.58, "unpack": "float", "fold_batch_norm": "yes"},
    {"storage": "vector", "bits": 2, "slim": True},
]


@pytest.mark.parametrize(("form", "norm"), [(form, True) for form in FORMS] + [(FORMS[0], False)], ids=str)
def test_codes_are_stored_once_and_the_size_is_known(form: dict[str, Any], norm: bool) -> None:
    model = head(norm=norm)
    result, apart = quantized(model, **form), quantized(head(norm=norm, copies=True), **form)
    assert result.size == len(result.model.SerializeToString()) == result.plan.predicted_bytes
    # What levels add is small beside their codes, of which there are three times as many without sharing.
    per_weight = next(layer.bytes for layer in result.layers if layer.name == FIRST[0])
    assert apart.size - result.size > 1.5 * per_weight
    assert sum(large_tensors(result.model)) < 0.55 * sum(large_tensors(apart.model))
    rows = {layer.name: layer for layer in result.layers}
    for first, *others in (FIRST, LAST):
        assert rows[first].codes_of == ""
        assert all(rows[name].codes_of == first and rows[name].bytes < 150 for name in others)


def test_sharing_costs_hardly_any_quality() -> None:
    """Codes were rounded for the inputs of all levels."""
    shared, apart = (
        quantized(head(norm=True, copies=copies), bits=3, statistics="probe", validated=True).validation
        for copies in (False, True)
    )
    assert shared is not None
    assert apart is not None
    losses = [other.sqnr_db - one.sqnr_db for one, other in zip(shared.outputs, apart.outputs, strict=True)]
    assert max(losses) < 1.5
    assert np.mean(losses) < 1


def inputs(covariance: Any) -> InputStatistics:
    return InputStatistics(np.zeros((2, 6)), covariance, 100, "probe")


def test_pooled_covariances_count_by_their_power() -> None:
    """In every form that statistics have them in, against all their elements."""
    rng = np.random.default_rng(0)
    forms: list[list[Any]] = [[], [], []]
    for scale in (1.0, 100.0, 1e-3):
        a = rng.standard_normal((2, 6, 9))
        forms[0].append((scale * a @ a.swapaxes(1, 2)).astype(np.float32))
        forms[1].append(Kronecker(forms[0][-1][:, ::2, ::2], np.stack([np.eye(2, dtype=np.float32)] * 2)))
        forms[2].append(LowRank(np.zeros((2, 6)), np.sqrt(scale) * a[..., :3]))
    for several in forms:
        dense = [matrix(one).dense() for one in several]
        power = [np.trace(one, axis1=1, axis2=2).sum() for one in dense]
        wanted = power[0] * np.mean([one / own for one, own in zip(dense, power, strict=True)], axis=0)
        found = pooled([inputs(one) for one in several])
        np.testing.assert_allclose(matrix(found.covariance).dense(), wanted, rtol=1e-4, atol=1e-5)
    mixed = [inputs(forms[0][0]), inputs(forms[2][0])]
    assert pooled(mixed) is mixed[0]
    white = [inputs(Diagonal(np.ones((2, 6))))] * 2
    assert pooled(white) is white[0]


@pytest.mark.parametrize("storage", ["vector", "native"])
def test_levels_differ_by_a_factor_per_channel_alone(storage: str) -> None:
    """And that is theirs: batch norms that turn some channels around, and silence others, are folded in."""
    model = head(norm=True)
    result = quantized(model, storage=storage, bits=3, fold_batch_norm="yes", slim=False)
    assert not any(node.op_type == "BatchNormalization" for node in result.model.graph.node)
    found = weights_of(result.model)
    float_weights = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w"))
    by_name = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for n in LEVELS:
        factor = by_name[f"g{n}"] / np.sqrt(by_name[f"v{n}"] + 1e-5)
        wanted = (factor[:, None, None, None] * float_weights).reshape(CHANNELS, -1)
        got = found[f"p{n}"].reshape(CHANNELS, -1)
        assert not got[n].any()
        reference = found["p0" if n else "p1"].reshape(CHANNELS, -1)
        for channel in set(range(CHANNELS)) - set(LEVELS):
            one, other, true = got[channel], reference[channel], wanted[channel]
            assert one @ true > 0.8 * np.linalg.norm(one) * np.linalg.norm(true)
            ratio = (one @ other) / (other @ other)
            np.testing.assert_allclose(one, ratio * other, rtol=1e-5, atol=1e-7)
    x = np.random.default_rng(1).random((2, 3, 32, 32), np.float32)
    reference_outputs = ReferenceEvaluator(result.model).run(None, {"x": x})
    for one, other in zip(run(result.model, x), reference_outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_integer_kernels_read_shared_codes() -> None:
    """With scales that are negative where a batch norm turns a channel around, and biases in their units."""
    model = head(norm=True)
    result = quantized(model, activations=8, bits=4, statistics="probe", validated=True)
    assert result.size == result.plan.predicted_bytes
    assert {layer.kernel for layer in result.layers} == {"QLinearConv"}
    assert Counter(layer.codes_of for layer in result.layers) == {"": 3, "first0": 2, "last0": 2}
    x = np.random.default_rng(1).random((2, 3, 32, 32), np.float32)
    for one, other in zip(run(model, x), run(result.model, x), strict=True):
        assert np.mean((one - other) ** 2) < 0.01 * np.var(one)


@pytest.mark.parametrize("target", [{"target_bits": 3.0}, {"target_size": 5000}])
def test_a_budget_chooses_one_width_for_all_readers(target: dict[str, Any], tmp_path: Any) -> None:
    model, recipe = head(norm=True), Recipe(samples=2, statistics="closed_form", **target)
    made = plan(model, recipe)
    for names in (FIRST, LAST):
        assert len({made[name].bits for name in names}) == 1
        assert all(made[name].reason == f"shares the codes of '{names[0]}'" for name in names[1:])
    save_plan(made, tmp_path / "plan.json")
    result = apply(model, load_plan(tmp_path / "plan.json"), validated=False)
    assert result.size == made.predicted_bytes == len(result.model.SerializeToString())
    if recipe.target_size:
        assert 0.9 * recipe.target_size < result.size <= recipe.target_size
    if recipe.target_bits:
        stored = [layer for layer in result.layers if not layer.codes_of]
        counts = [int(np.prod(layer.shape)) for layer in stored]
        mean = np.average([layer.bits for layer in stored], weights=counts)
        assert mean <= recipe.target_bits
        assert quantize_document(result)["totals"]["nominal_bits"] == pytest.approx(mean)


def test_a_rule_for_one_reader_gives_it_codes_of_its_own() -> None:
    model = head(norm=False)
    recipe = Recipe(bits=4, set={"^first1$": 6}, samples=2, statistics="closed_form")
    result = quantize(model, None, recipe, validated=False)
    rows = {layer.name: layer for layer in result.layers}
    assert [rows[name].bits for name in FIRST] == [4, 6, 4]
    assert [rows[name].codes_of for name in FIRST] == ["", "", "first0"]
    assert "codes of its own: other bits than those of 'first0'" in rows["first1"].notes
    assert result.size == result.plan.predicted_bytes == plan(model, recipe).predicted_bytes
    # With a target, the others are one decision still, and one that has its bits to itself is no part of it.
    made = plan(model, Recipe(target_bits=4, set={"^first0$": 6}, samples=2, statistics="closed_form"))
    assert made["first0"].bits == 6
    assert made["first1"].bits == made["first2"].bits


def test_a_reader_that_stays_float_keeps_the_float_weight() -> None:
    result = quantized(head(norm=False), bits=4, nodes_to_exclude=["first0"])
    rows = {layer.name: layer for layer in result.layers}
    assert [rows[name].codes_of for name in FIRST[1:]] == ["", "first1"]
    assert "its weight stays in the file beside the codes: 'first0' is float" in rows["first1"].notes
    assert result.size == result.plan.predicted_bytes


def test_pairs_of_the_paper_share_too() -> None:
    result = quantized(head(norm=False), method="paper", low_bits=2, high_bits=6)
    assert [layer.codes_of for layer in result.layers] == ["", "", "", "first0", "last0", "first0", "last0"]


def test_weights_are_counted_once() -> None:
    model, recipe = head(norm=False), Recipe(bits=4, samples=2, rounding="nearest", repair="none")
    stored = CHANNELS * 9 * (3 + CHANNELS + 8)
    assert inspect_document(inspect_result(model))["totals"]["weights"] == stored
    result = plan_result(model, recipe)
    assert plan_document(result.plan, result)["totals"]["weights"] == stored
    document = quantize_document(quantize(model, None, recipe, validated=False))
    assert document["totals"]["weights"] == stored
    assert document["totals"]["layers"] == 7
    assert json.loads(json.dumps(document))["layers"][3]["codes_of"] == "first0"


def test_matrices_that_every_block_shares() -> None:
    """As ALBERT's: one matrix, read by MatMul and by Gemm, through Identity."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 24] x) => (float[N, 24] y) {
            [one] a = MatMul(x, w)  b = Tanh(a)  i = Identity(w)
            [two] c = Gemm(b, i, d)  e = Tanh(c)  [three] y = MatMul(e, w) }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (24, 24)), ("d", (24,))):
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 4, name)
        )
    assert [layer.name for layer in inspect(model).layers] == ["one", "two", "three"]
    result = quantized(model, bits=5, first_last_bits=5)
    assert [layer.codes_of for layer in result.layers] == ["", "one", "one"]
    assert result.size == result.plan.predicted_bytes
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(("none", "int8", "float"), repeat=2)))
@pytest.mark.parametrize("storage", ["table", "native"])
def test_both_weights_are_exact(storage: str, first: str, second: str, data_type: int) -> None:
    """However each is unpacked, from the same codes, zero points and two sets of scales."""
    rng, shape = np.random.default_rng(0), (7, 5, 3)
    codes, zeros = rng.integers(0, 8, shape).astype(np.uint8), rng.integers(0, 8, 7).astype(np.uint8)
    weights = [
        QuantizedWeight(
            codes, rng.uniform(-1, 1, 7).astype(np.float16).astype(np.float32), zeros, 3, False, 0
        )
        for _ in range(2)
    ]
    whole = [
        lay_out(
            WeightSpec(
                name, shape, data_type, WeightNames(label, name, "q"), "", 3, False, 0, zero_point=True
            ),
            StorageFormat(storage, unpack),
        )
        for name, label, unpack in (("one", "q0", first), ("two", "q1", second))
    ]
    layouts = [whole[0], with_codes_of(whole[1], whole[0])]
    assert layouts[1].size < whole[1].size
    stored = [layout.fill(weight) for layout, weight in zip(layouts, weights, strict=True)]
    assert [one.size for one in stored] == [layout.size for layout in layouts]
    packed = [tensor for one in stored for tensor in one.initializers if len(tensor.raw_data) > 30]
    assert len(packed) == 1
    extra, nodes = shared_parts(layouts[0].shared)
    graph = onnx.helper.make_graph(
        [*nodes, *stored[0].nodes, *stored[1].nodes],
        "g",
        [],
        [onnx.helper.make_tensor_value_info(name, data_type, shape) for name in ("one", "two")],
        [*extra, *stored[0].initializers, *stored[1].initializers],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    for found, weight in zip(ReferenceEvaluator(model).run(None, {}), weights, strict=True):
        np.testing.assert_array_equal(found, weight.dequantize().astype(dtype))
