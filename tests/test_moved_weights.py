"""Weights of recurrent layers that Slice, Concat and Unsqueeze put together from constants."""

from __future__ import annotations

import numpy as np
import onnx

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.model.moved_weights import fold_moved_weights
from tests.graphs import noise, parse, whole

HIDDEN, INPUTS = 16, 24
GATES = """
    a{n} = Slice({w}, from{n}_0, to{n}_0, axis)
    b{n} = Slice({w}, from{n}_1, to{n}_1, axis)
    c{n} = Concat<axis = 0>(b{n}, a{n})
    {out} = Unsqueeze(c{n}, axis)"""


def moved(n: int, weight: str, out: str) -> str:
    return GATES.format(n=n, w=weight, out=out)


def constants(*numbers: int) -> dict[str, np.ndarray]:
    """Bounds that swap the first two gates with the last two."""
    half, end = 2 * HIDDEN, 4 * HIDDEN
    bounds = {"from{}_0": 0, "to{}_0": half, "from{}_1": half, "to{}_1": end}
    made = {name.format(n): np.array([at], np.int64) for n in numbers for name, at in bounds.items()}
    return made | {"axis": np.array([0], np.int64)}


LAYER = f"{{after}}, , = LSTM<hidden_size = {HIDDEN}>({{before}}, W, R)"
PLAIN = f"""g (float[6, N, {INPUTS}] x) => (float[6, 1, N, {HIDDEN}] y) {{
    {moved(0, "w", "W")} {moved(1, "r", "R")}
    {LAYER.format(before="x", after="y")} }}"""


def lstm(body: str = PLAIN) -> onnx.ModelProto:
    return parse(body, w=noise(4 * HIDDEN, INPUTS), r=noise(4 * HIDDEN, HIDDEN, seed=1), **constants(0, 1))


def test_they_are_folded_and_quantized() -> None:
    model = lstm()
    result = quantize(model, None, Recipe())
    assert [(layer.op, layer.bits) for layer in result.layers] == [("LSTM", 8), ("LSTM", 8)]
    assert (result.validation.sqnr_db or 0) > 30
    feeds = [{"x": noise(6, 2, INPUTS)}]
    expected, actual = (whole(one, ["y"], feeds)[0][0] for one in (model, result.model))
    assert np.square(expected - actual).sum() < 1e-3 * np.square(expected).sum()
    assert len(model.graph.node) == 9  # what the caller gave is as it was


def test_folding_moves_rows_and_leaves_nothing_over() -> None:
    folded = lstm()
    fold_moved_weights(folded)
    assert [node.op_type for node in folded.graph.node] == ["LSTM"]
    assert {tensor.name for tensor in folded.graph.initializer} == {"W_1", "R_1"}
    made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in folded.graph.initializer}
    for name, weight in (("W_1", noise(4 * HIDDEN, INPUTS)), ("R_1", noise(4 * HIDDEN, HIDDEN, seed=1))):
        np.testing.assert_array_equal(made[name], np.roll(weight, 2 * HIDDEN, axis=0)[None])


def test_what_others_read_stays_and_equal_weights_are_one() -> None:
    text = f"""g (float[6, N, {INPUTS}] x, bool which) => (float[6, 1, N, {HIDDEN}] y, float[64, {INPUTS}] z) {{
        z = Neg(w)
        y = If(which) <
            then_branch = t () => (float[6, 1, N, {HIDDEN}] p) {{
                {moved(0, "w", "W")} {moved(1, "r", "R")} {LAYER.format(before="x", after="p")} }},
            else_branch = e () => (float[6, 1, N, {HIDDEN}] q) {{
                twice = Add(x, x)
                {moved(0, "w", "W")} {moved(1, "r", "R")} {LAYER.format(before="twice", after="q")} }}> }}"""
    model = lstm(text)
    folded = lstm(text)
    fold_moved_weights(folded)
    assert {tensor.name for tensor in folded.graph.initializer} == {"w", "W_1", "R_1"}
    for which in (True, False):
        feeds = [{"x": noise(6, 2, INPUTS), "which": np.array(which)}]
        (expected,), (actual,) = whole(model, ["y"], feeds)[0], whole(folded, ["y"], feeds)[0]
        np.testing.assert_allclose(actual, expected, atol=1e-6)  # constants are packed: other sums


def test_what_is_not_constant_stays() -> None:
    text = PLAIN.replace(f"(float[6, N, {INPUTS}] x)", f"(float[6, N, {INPUTS}] x, int64[1] to1_1)")
    model = lstm(text)
    position = [tensor.name for tensor in model.graph.initializer].index("to1_1")
    del model.graph.initializer[position]
    fold_moved_weights(model)
    assert {tensor.name for tensor in model.graph.initializer} >= {"r", "W_1"}
    assert [node.input[2] for node in model.graph.node if node.op_type == "LSTM"] == ["R"]
