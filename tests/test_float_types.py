"""Weights in float64 and bfloat16: quantized where ONNX Runtime runs their operator, left float elsewhere."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from onnx_dfmpc import Recipe, inspect, quantize
from tests.graphs import noise, parse, whole

CHEAP: dict[str, Any] = {"samples": 4, "rounding": "nearest", "repair": "none"}


def doubles(*shape: int, seed: int = 0) -> np.ndarray:
    return noise(*shape, seed=seed).astype(np.float64) / np.sqrt(shape[0])


PERCEPTRON = """g (double[N, 24] x) => (double[N, 10] y) {
    [one] a = MatMul(x, u)  s = Add(a, b)  r = Relu(s)
    [two] t = Gemm <transB = 1> (r, v, c)  h = Tanh(t)
    [three] y = Gemm(h, w) }"""


def perceptron() -> tuple[ModelProto, dict[str, np.ndarray]]:
    weights = {
        "u": doubles(24, 32),
        "b": doubles(32),
        "v": doubles(40, 32, seed=1),
        "c": doubles(40),
        "w": doubles(40, 10, seed=2),
    }
    return parse(PERCEPTRON, **weights), weights


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8},
        {"bits": 4, "storage": "native"},
        {"bits": 2, "unpack": "float"},
        {"bits": 4, "unpack": "int8"},
    ],
)
def test_products_in_double_are_computed_with_the_numbers_of_their_codes(settings: dict[str, Any]) -> None:
    model, given = perceptron()
    made = quantize(model, None, Recipe(input_range=(-2, 2), **CHEAP, **settings), validated=False)
    assert made.plan.predicted_bytes == len(made.model.SerializeToString())
    x = doubles(5, 24, seed=3)
    (u,), (v,), (w,), (found,) = whole(made.model, ["u", "v", "w", "y"], [{"x": x}])
    expected = np.tanh(np.maximum(x @ u + given["b"], 0) @ v.T + given["c"]) @ w
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    stored = {tensor.name: tensor.data_type for tensor in made.model.graph.initializer}
    assert {name for name, kind in stored.items() if kind == TensorProto.DOUBLE} <= {"b", "c"}
    for name, weight in (("u", u), ("v", v), ("w", w)):
        assert np.corrcoef(weight.ravel(), given[name].ravel())[0, 1] > 0.9
    onnx.checker.check_model(made.model, full_check=True)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float64])
def test_tables_of_any_float_type_are_quantized_and_keep_it(dtype: Any) -> None:
    text = "g (int64[N, 7] i) => (float[N, 7, 16] y) { [t] a = Gather(table, i)  y = Cast <to = 1> (a) }"
    model = parse(text, table=noise(50, 16).astype(dtype))
    made = quantize(model, None, Recipe(bits=8, **CHEAP))
    assert [layer.name for layer in made.layers] == ["t"]
    assert made.validation is not None
    assert made.validation.sqnr_db is not None
    assert made.validation.sqnr_db > 40
    assert len(made.model.SerializeToString()) == made.plan.predicted_bytes


def test_what_onnx_runtime_does_not_run_in_double_stays_float_and_says_so() -> None:
    text = """g (double[N, 3, 8, 8] x, double[2, N, 24] z) => (double[N, 4, 6, 6] y, double[2, N, 10] q) {
        [conv] y = Conv(x, w)  [recurrent] h, last = GRU <hidden_size = 16> (z, k, r)
        [dense] q = MatMul(z, v) }"""
    weights = {"w": doubles(4, 3, 3, 3), "k": doubles(1, 48, 24), "r": doubles(1, 48, 16)}
    report = inspect(parse(text, **weights, v=doubles(24, 10)))
    assert [layer.name for layer in report.layers] == ["dense"]
    assert "float64, in which ONNX Runtime does not run Conv" in report.skipped[0].reason
    assert all("does not run GRU" in report.left[name] for name in ("k", "r"))


def test_a_slim_file_may_have_strings_and_large_tables_of_doubles() -> None:
    text = """g (float[N, 24] x, int64[N] i) => (float[N, 10] y, string[N] s, double[N] d) {
        y = MatMul(x, w)  s = Gather(words, i)  d = Gather(numbers, i) }"""
    words = onnx.helper.make_tensor("words", TensorProto.STRING, [3], [b"a", b"b", b"c"])
    model = parse(text, w=noise(24, 10), numbers=doubles(3))
    model.graph.initializer.append(words)
    made = quantize(model, None, Recipe(bits=4, slim=True, input_range=(-2, 2), **CHEAP), validated=False)
    assert made.plan.predicted_bytes == len(made.model.SerializeToString())
