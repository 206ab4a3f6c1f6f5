"""Weights that are rounded to nearest, in networks whose activations are quantized, too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from onnx import checker

from onnx_dfmpc import Recipe, quantize
from tests.graphs import parse, whole

CHEAP = Recipe(bits=8, activations=8, samples=8, input_range=(-2, 2), rounding="nearest", repair="none")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model, its constants, its inputs, and what of it is rounded to nearest."""

    text: str
    constants: dict[str, np.ndarray]
    feeds: dict[str, np.ndarray]
    plain: set[str] = field(default_factory=set)


X = noise(5, 3, 10, 10, seed=8) * 10
CONVOLUTIONS = """[c1] a = Conv <pads = [1, 1, 1, 1]> (x, u)  r1 = Relu(a)
    [c2] b = Conv <pads = [1, 1, 1, 1]> (r1, w)  r = Relu(b)  p = GlobalAveragePool(r)  f = Flatten(p)"""
KERNELS = {"u": noise(32, 3, 3, 3), "w": noise(32, 32, 3, 3, seed=1)}
IMAGES = "float[N, 3, 10, 10] x"

CASES = {
    "LSTM": Case(
        """g (float[N, 16, 20] x) => (float[N, 8] y) {
        [c1] a = Conv <pads = [1, 1]> (x, u)  r = Relu(a)  t = Transpose <perm = [2, 0, 1]> (r)
        [l] s, h, c = LSTM <hidden_size = 16> (t, k, q)  z = Squeeze(h, zero)  [d] y = MatMul(z, v) }""",
        {
            "u": noise(32, 16, 3),
            "k": noise(1, 64, 32),
            "q": noise(1, 64, 16),
            "v": noise(16, 8),
            "zero": np.array([0]),
        },
        {"x": noise(5, 16, 20, seed=8) * 15},
        {"l.W", "l.R"},
    ),
    "a table beside convolutions": Case(
        f"""g ({IMAGES}, int64[N] i) => (float[N, 8] y) {{ {CONVOLUTIONS}
        [t] e = Gather(table, i)  s = Add(f, e)  [d] y = MatMul(s, v) }}""",
        {**KERNELS, "table": noise(60, 32), "v": noise(32, 8)},
        {"x": X, "i": np.arange(5) * 7},
        {"t"},
    ),
    "bodies of If": Case(
        f"""g ({IMAGES}, bool c) => (float[N, 8] y) {{ {CONVOLUTIONS}
        y = If (c) <then_branch = yes () => (float[N, 8] j) {{ j = MatMul(f, v) }},
            else_branch = no () => (float[N, 8] k) {{ k = MatMul(f, vv) }}> }}""",
        {**KERNELS, "v": noise(32, 8), "vv": noise(32, 8, seed=5)},
        {"x": X, "c": np.array(True)},
        {"j", "k"},
    ),
    "the body of a Loop": Case(
        f"""g ({IMAGES}) => (float[N, 32] y) {{ {CONVOLUTIONS}
        n = Constant <value = int64 {{3}}> ()  t = Constant <value = bool {{1}}> ()
        y = Loop (n, t, f) <body = body (int64 it, bool more, float[N, 32] s) => (bool go, float[N, 32] o) {{
            go = Identity(more)  m = MatMul(s, v)  o = Tanh(m) }}> }}""",
        {**KERNELS, "v": noise(32, 32)},
        {"x": X},
        {"m"},
    ),
    # Nothing of it is a layer that writes its output with a bias of its own.
    "a table and matrices": Case(
        """g (int64[N, 9] i) => (float[N, 9, 8] y) {
        [t] e = Gather(table, i)  [d1] a = MatMul(e, w)  s = Add(a, b)  r = Relu(s)  [d2] y = MatMul(r, v) }""",
        {"table": noise(60, 32), "w": noise(32, 40), "b": noise(40), "v": noise(40, 8)},
        {"i": np.arange(18).reshape(2, 9)},
        {"t"},
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_plain_weights_are_codes_and_layers_are_in_integers(what: str) -> None:
    case = CASES[what]
    model = parse(case.text, **case.constants)
    made = quantize(model, None, CHEAP, validated=False)
    checker.check_model(made.model, full_check=True)
    assert made.plan.predicted_bytes == len(made.model.SerializeToString())
    assert {layer.name for layer in made.layers if layer.role == "plain"} == case.plain
    stored = {tensor.name: tensor.data_type for tensor in made.model.graph.initializer}
    floats = [name for name in case.constants if stored.get(name) == 1]
    assert set(floats) <= {"b"}  # the operand of an Add
    operators = Counter(node.op_type for node in made.model.graph.node)
    assert made.activations is not None
    assert operators["QuantizeLinear"] == len(made.activations.ranges) > 0
    ((expected,),), ((found,),) = (whole(one, ["y"], [case.feeds]) for one in (model, made.model))
    error, signal = np.square(found - expected).mean(), np.square(expected).mean()
    assert 10 * np.log10(signal / error) > 20


def test_a_network_of_one_matrix_has_activations_in_integers() -> None:
    model = parse("g (float[N, 32] x) => (float[N, 8] y) { y = MatMul(x, w) }", w=noise(32, 8))
    made = quantize(model, None, CHEAP)
    assert made.activations is not None
    assert made.activations.fused == 1
