"""Slim files: the same outputs, bit for bit, in fewer bytes that are known before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.inputs.synthetic import synthetic_feeds
from onnx_dfmpc.model.files import load
from onnx_dfmpc.model.shapes import RULES
from onnx_dfmpc.report.document import quantize_document
from onnx_dfmpc.rewrite.slim import slim
from tests.graphs import noise, parse


def slimmed(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    slim(copy)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def outputs(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feeds)
    return found


SHUFFLE = """g (float[N, 4, H, 6] x) => (float[N, C, H2, W2] y) {
    shape = Shape(x)
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    three = Constant <value = int64 {3}> ()
    axis = Constant <value_ints = [0]> ()
    n = Gather(shape, zero)
    c = Gather(shape, one)
    h = Gather(shape, two)
    w = Gather(shape, three)
    half = Div(c, two)
    n1 = Unsqueeze(n, axis)
    half1 = Unsqueeze(half, axis)
    h1 = Unsqueeze(h, axis)
    two1 = Unsqueeze(two, axis)
    w1 = Unsqueeze(w, axis)
    c1 = Unsqueeze(c, axis)
    apart = Concat<axis = 0>(n1, two1, half1, h1, w1)
    a = Reshape(x, apart)
    b = Transpose<perm = [0, 2, 1, 3, 4]>(a)
    together = Concat<axis = 0>(n1, c1, h1, w1)
    s = Reshape(b, together)
    end1 = Mul(half1, two1)
    axis_c = Constant <value_ints = [1]> ()
    left = Slice(s, half1, end1, axis_c)
    y = Relu(left)
}"""


def test_a_channel_shuffle_is_two_reshapes() -> None:
    """With a batch that is open, and a height that is not known either: the second Reshape has to stay."""
    model = parse(SHUFFLE)
    small = slimmed(model)
    left = [node.op_type for node in small.graph.node]
    assert left.count("Div") == 0
    assert "Slice" in left
    feeds = {"x": noise(3, 4, 5, 6)}
    np.testing.assert_array_equal(outputs(small, feeds)[0], outputs(model, feeds)[0])


def test_with_one_open_dimension_nothing_is_left_of_the_arithmetic() -> None:
    model = parse(SHUFFLE.replace("H, 6", "5, 6"))
    small = slimmed(model)
    assert [node.op_type for node in small.graph.node] == ["Reshape", "Transpose", "Reshape", "Slice", "Relu"]
    feeds = {"x": noise(3, 4, 5, 6)}
    np.testing.assert_array_equal(outputs(small, feeds)[0], outputs(model, feeds)[0])


@pytest.mark.parametrize("a", [-7, 7])
@pytest.mark.parametrize("b", [-2, 2])
def test_integers_are_divided_as_onnx_does(a: int, b: int) -> None:
    node = onnx.helper.make_node("Div", ["a", "b"], ["c"])
    model = parse("g (int64[1] a, int64[1] b) => (int64[1] c) { c = Div(a, b) }")
    known = {"a": np.array([a], object), "b": np.array([b], object)}
    (expected,) = outputs(model, {"a": np.array([a]), "b": np.array([b])})
    assert np.asarray(RULES["Div"](node, known, {})).tolist() == expected.tolist()


def test_a_body_keeps_the_names_that_it_reads() -> None:
    text = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
        a_rather_long_name = Relu(x)
        y = If(c) <
            then_branch = t () => (float[N, 4] z) { z = Neg(a_rather_long_name) },
            else_branch = e () => (float[N, 4] z) { z = Abs(a_rather_long_name) }
        >
    }"""
    model = parse(text)
    small = slimmed(model)
    for flag in (True, False):
        feeds = {"x": noise(2, 4), "c": np.array(flag)}
        np.testing.assert_array_equal(outputs(small, feeds)[0], outputs(model, feeds)[0])


@pytest.mark.parametrize("activations", [None, 8])
@pytest.mark.parametrize("name", ["digits_bn", pytest.param("digits_folded", marks=pytest.mark.slow)])
def test_outputs_are_the_same_bit_for_bit(
    name: str, activations: int | None, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    plain, small = (
        quantize(path, None, Recipe(target_bits=3, slim=choice, activations=activations), validated=False)
        for choice in (False, True)
    )
    assert small.size < plain.size
    assert small.size == small.plan.predicted_bytes
    feeds = synthetic_feeds(model_inputs(plain.model), samples=4)[0]
    for a, b in zip(outputs(plain.model, feeds), outputs(small.model, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bits_lose_the_names_of_the_layers_too(digits_bn: Path) -> None:
    plain, small = (
        quantize(digits_bn, None, Recipe(low_bits=2, slim=s), validated=False) for s in (False, True)
    )
    bits = [
        next(json.loads(entry.value) for entry in one.model.metadata_props if entry.key == "onnx_dfmpc.bits")
        for one in (plain, small)
    ]
    assert bits[1] == list(bits[0].values())


def test_a_size_makes_it_slim_and_says_so(digits_bn: Path) -> None:
    result = quantize(digits_bn, None, Recipe(target_size="45KiB"), validated=False)
    assert result.size <= 45 * 1024
    assert any("--no-slim" in note for note in result.notes)
    assert not any(node.name for node in result.model.graph.node)
    fat = quantize(digits_bn, None, Recipe(target_size="45KiB", slim=False), validated=False)
    assert any(node.name for node in fat.model.graph.node)


def test_the_document_speaks_the_names_of_the_float_model(digits_bn: Path) -> None:
    result = quantize(digits_bn, None, Recipe(bits=4, slim=True), validated=False)
    document = quantize_document(result)
    names = {layer["name"] for layer in document["layers"]}
    assert "/blocks/blocks.0/conv1/Conv" in names
    made = {name for node in result.model.graph.node for name in node.output}
    assert set(document["names"]) <= made | {tensor.name for tensor in result.model.graph.initializer}
    assert all(len(short) < len(long) for short, long in document["names"].items())


def test_every_shared_network_is_the_same(shared_model: Path) -> None:
    model = load(shared_model).proto
    small = slimmed(model)
    assert small.ByteSize() < model.ByteSize()
    feeds = synthetic_feeds(model_inputs(model), samples=2)[0]
    for a, b in zip(outputs(model, feeds), outputs(small, feeds), strict=True):
        np.testing.assert_array_equal(a, b)
