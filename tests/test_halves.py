"""Scales and biases of 16 bits: the numbers, where they will do, and the tensor that holds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc.matching.match import match
from onnx_dfmpc.rewrite.apply import rewrite
from onnx_dfmpc.rewrite.halves import Halves, halves_of
from onnx_dfmpc.rewrite.sizes import base_size, predicted_size, shared_sizes, stored_sizes
from onnx_dfmpc.rewrite.slim import slim
from onnx_dfmpc.rewrite.vectors import pack_vectors
from onnx_dfmpc.runtime.session import Session, optimized_nodes
from onnx_dfmpc.spec import BatchNorm, Layer, StorageFormat
from onnx_dfmpc.spec.widths import WIDTHS
from onnx_dfmpc.storage.halves import at_least, is_exact, nearest, nearest_scale
from tests.graphs import noise, parse
from tests.test_sizes import quantized

EVERY = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64) / 256
"""All numbers that are not negative."""

NUMBERS = st.floats(0, float(EVERY[-1]), width=32)


@given(NUMBERS, st.booleans())
def test_the_nearest_number(value: float, negative: bool) -> None:
    value = -value if negative else value
    found = float(nearest(np.array([value]))[0])
    assert abs(found) in EVERY
    assert abs(found - value) == np.abs(EVERY - abs(value)).min()
    assert abs(found - value) <= max(2**-11 * abs(value), 2**-33)


@given(NUMBERS)
def test_the_smallest_number_that_is_not_less(value: float) -> None:
    (found,) = at_least(np.array([value]))
    assert found == EVERY[value <= EVERY].min()


def test_numbers_that_do_not_fit_stay() -> None:
    values = np.float32([0.1, 256.0])
    np.testing.assert_array_equal(nearest(values), values)
    assert not is_exact(values)
    assert is_exact(np.float32([0.5, 255.875]))


def test_no_scale_becomes_zero() -> None:
    (found,) = nearest_scale(np.float32([1e-30]))
    assert found == EVERY[1]


def layer(batch_norm: BatchNorm | None = None) -> Layer:
    return Layer("fc", "Gemm", "w", (2, 3), 0, 1, None, "", "x", "y", 2, batch_norm)


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("weight", "bias", "expected"),
    [
        (ONES, [1, 1], Halves(scale=True, bias=True)),
        (ONES.astype(np.float16), [1, 1], Halves()),
        (100 * ONES, [1, 1], Halves(scale=False, bias=True)),
        (1e-5 * ONES, [0, 0], Halves(scale=False, bias=True)),
        (0 * ONES, [0, 0], Halves(scale=True, bias=True)),
        (ONES, [20, 20], Halves(scale=True, bias=False)),  # the error would be beside a much smaller output
        (20 * ONES, [70, 70], Halves(scale=True, bias=False)),  # 255 with a margin
        (ONES * np.float32([[1], [1e-12]]), [1, 1], Halves(scale=True, bias=True)),  # a silent channel
    ],
)
def test_where_they_will_do(weight: np.ndarray, bias: list[float], expected: Halves) -> None:
    assert halves_of(layer(), weight, np.float32(bias), folded=False) == expected


def test_a_channel_is_not_silent_if_batch_norm_makes_it_loud() -> None:
    weight = ONES * np.float32([[1], [1e-6]])
    norm = BatchNorm("bn", "y", *np.array([[1, 1], [0, 0], [0, 0], [1, 1e-12]], float), epsilon=0.0)
    assert not halves_of(layer(norm), weight, None, folded=False).scale
    assert halves_of(layer(norm), weight, None, folded=True).scale
    assert halves_of(layer(replace(norm, var=np.ones(2))), weight, None, folded=False).scale


TWO = """g (float[N, 3, 6, 6] x) => (float[N, A, B, C] y) {
    [one] a = Conv(x, w, b)
    r = Relu(a)
    [two] y = Conv(r, v, c)
}"""


def two(rng_seed: int = 0, *, scale: float = 1.0, bias: float = 1.0) -> ModelProto:
    """Two convolutions; weights and biases of the second one are multiplied by these."""
    model, rng = parse(TWO), np.random.default_rng(rng_seed)
    shapes = {"w": (64, 3, 3, 3), "b": (64,), "v": (48, 64, 1, 1), "c": (48,)}
    factors = {"v": scale, "c": bias}
    for name, shape in shapes.items():
        values = (factors.get(name, 1.0) * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def with_halves(model: ModelProto) -> ModelProto:
    """The same with biases that are such numbers, before they are packed."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 1:
            tensor.CopyFrom(numpy_helper.from_array(nearest(numpy_helper.to_array(tensor)), tensor.name))
    return model


def packed(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    pack_vectors(copy)
    return copy


def test_packed_vectors_are_the_same_numbers_and_are_gone_when_loaded() -> None:
    model = with_halves(two())
    small = packed(model)
    assert small.ByteSize() < model.ByteSize()
    assert [node.op_type for node in small.graph.node][:3] == ["Cast", "Mul", "Split"]
    feed = {"x": noise(2, 3, 6, 6)}
    for run in (lambda m: ReferenceEvaluator(m).run(None, feed)[0], lambda m: Session(m, "it").run(feed)[0]):
        np.testing.assert_array_equal(run(small), run(model))
    loaded = [[node.op_type for node in optimized_nodes(one)] for one in (model, small)]
    assert loaded[0] == loaded[1]
    again = packed(small)
    assert again == small


@pytest.mark.parametrize(
    "change",
    {
        "other numbers": lambda model: None,
        "too few": lambda model: with_halves(model).graph.initializer.pop(1),
        "before opset 13": lambda model: setattr(with_halves(model).opset_import[0], "version", 11),
    }.items(),
    ids=lambda change: change[0],
)
def test_what_is_not_packed(change: tuple) -> None:
    model = two()
    change[1](model)
    if change[0] == "too few":
        model.graph.node[0].input.pop()
    assert packed(model) == model


def test_constants_that_runtimes_need_early_stay() -> None:
    model = parse("g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) { y = Resize(x, , s) }")
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 2, 2]), "s"))
    assert packed(model) == model


FORMS = [
    StorageFormat(storage, unpack, slim=True)
    for storage in ("table", "native")
    for unpack in ("none", "float")
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.storage}-{form.unpack}")
@pytest.mark.parametrize(("scale", "bias"), [(1, 1), (1e-6, 1e-6), (1, 1000)])
def test_sizes_are_known_before(form: StorageFormat, scale: float, bias: float) -> None:
    """In float16, and where scales or biases are out of its range."""
    model = two(scale=scale, bias=bias)
    report, rng = match(model), np.random.default_rng(1)
    bits = {"one": 4, "two": 4}
    layers = [
        quantized(one, bits[one.name], "asymmetric", form, rng, corrected=True) for one in report.layers
    ]
    second = layers[1]
    weight = replace(second.weight, scale=np.float32(scale) * second.weight.scale)
    layers[1] = replace(second, weight=weight, bias=np.float32(bias) * second.bias)
    done = rewrite(model, report, layers, form=form, half=True)
    slim(done.proto, done.weights)
    assert done.proto.ByteSize() == predicted_size(model, report, bits, form, half=True)
    table = stored_sizes(model, report, WIDTHS, form, half=True)
    rows = {
        one.name: row[WIDTHS.index(bits[one.name])] for one, row in zip(report.layers, table, strict=True)
    }
    assert {name: stored.bytes for name, stored in done.layers.items()} == rows
    base = base_size(model, report, list(bits), [4], form, half=True)
    base += int(shared_sizes(model, report, list(bits), [4], form)[0])
    assert 0 <= base + sum(rows.values()) - done.proto.ByteSize() <= 8
