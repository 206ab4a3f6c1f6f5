"""Weights and biases that Cast, Transpose, Slice and their like put together from constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.model.external import is_mapped, map_tensor
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


def test_equal_weights_of_branches_are_one() -> None:
    text = f"""g (float[6, N, {INPUTS}] x, bool which) => (float[6, 1, N, {HIDDEN}] y) {{
        y = If(which) <
            then_branch = t () => (float[6, 1, N, {HIDDEN}] p) {{
                {moved(0, "w", "W")} {moved(1, "r", "R")} {LAYER.format(before="x", after="p")} }},
            else_branch = e () => (float[6, 1, N, {HIDDEN}] q) {{
                twice = Add(x, x)
                {moved(0, "w", "W")} {moved(1, "r", "R")} {LAYER.format(before="twice", after="q")} }}> }}"""
    model = lstm(text)
    folded = lstm(text)
    fold_moved_weights(folded)
    assert {tensor.name for tensor in folded.graph.initializer} == {"W_1", "R_1"}
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


# A float16 export as converters write it: every constant is cast where it is read.
HALF = """g (float[N, 4, 6, 6] x) => (float[N, 5] y) {
    w = Cast<to = 1>(w16)  b = Cast<to = 1>(b16)  s = Cast<to = 1>(s16)  o = Cast<to = 1>(o16)
    m = Cast<to = 1>(m16)  v = Cast<to = 1>(v16)  d = Cast<to = 1>(d16)  dt = Transpose<perm = [1, 0]>(d)
    e = Cast<to = 1>(e16)
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  n = BatchNormalization(c, s, o, m, v)  r = Relu(n)
    p = GlobalAveragePool(r)  f = Flatten(p)  h = MatMul(f, dt)  y = Add(h, e) }"""


def half_export(text: str = HALF) -> onnx.ModelProto:
    shapes = {"w16": (8, 4, 3, 3), "d16": (5, 8), "e16": (5,)} | dict.fromkeys(
        ("b16", "s16", "o16", "m16"), (8,)
    )
    made = {name: noise(*shape, seed=i).astype(np.float16) for i, (name, shape) in enumerate(shapes.items())}
    return parse(text, **made, v16=np.abs(noise(8, seed=9)).astype(np.float16) + np.float16(1))


def test_a_half_size_export_is_a_float_network() -> None:
    model = half_export()
    result = quantize(model, None, Recipe(bits=8, input_range=(-2, 2)))
    assert [layer.op for layer in result.layers] == ["Conv", "MatMul"]
    assert not result.skipped
    assert (result.validation.sqnr_db or 0) > 30
    folded = half_export()
    fold_moved_weights(folded)
    assert [node.op_type for node in folded.graph.node] == [
        "Conv", "BatchNormalization", "Relu", "GlobalAveragePool", "Flatten", "MatMul", "Add",
    ]  # fmt: skip
    feeds = [{"x": noise(3, 4, 6, 6)}]
    np.testing.assert_array_equal(whole(folded, ["y"], feeds)[0][0], whole(model, ["y"], feeds)[0][0])


@pytest.mark.parametrize("steps", ["v = Reshape(w, shape)", "v = Transpose<perm = [3, 2, 1, 0]>(w)"])
@pytest.mark.parametrize("before", [True, False])
def test_a_cast_in_any_company(steps: str, before: bool) -> None:
    cast = "w = Cast<to = 1>(w16)" if before else "w = Identity(w16)"
    after = "u = Identity(v)" if before else "u = Cast<to = 1>(v)"
    text = f"g (float[N, 4, 6, 6] x) => (float[] y) {{ {cast} {steps} {after} y = Conv(x, u) }}"
    weight = noise(3, 3, 4, 8).astype(np.float16)
    made, feeds = {"w16": weight, "shape": np.array([8, 4, 3, 3])}, [{"x": noise(2, 4, 6, 6)}]
    folded = parse(text, **made)
    fold_moved_weights(folded)
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert folded.graph.initializer[-1].data_type == onnx.TensorProto.FLOAT
    expected = whole(parse(text, **made), ["y"], feeds)[0][0]
    np.testing.assert_array_equal(whole(folded, ["y"], feeds)[0][0], expected)


@pytest.mark.parametrize(
    "text",
    [
        "w = Cast<to = 1>(w16) y = Conv(x, w) z = Neg(w)",
        "w = Cast<to = 1>(w16) y = Conv(x, w) z = Cast<to = 11>(w16)",
        "w = Cast<to = 1>(w16) y = Conv(x, w) v = Transpose(w) z = Neg(v)",
        "z = Cast<to = 1>(w16) y = Conv(x, z)",
        "w = Cast<to = 1>(s16) v = Mul(w, s) y = Conv(x, v) z = Neg(x)",
    ],
)
def test_what_others_read_stays_since_it_would_be_there_twice(text: str) -> None:
    model = parse(
        f"g (float[N, 4, 6, 6] x) => (float[] y, float[] z) {{ {text} }}",
        w16=noise(8, 4, 3, 3).astype(np.float16),
        s16=noise(4).astype(np.float16),
        s=noise(1),
    )
    before = model.SerializeToString()
    fold_moved_weights(model)
    assert model.SerializeToString() == before


def test_numbers_that_are_in_their_file_stay_there(tmp_path: Path) -> None:
    model = half_export()
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w16"]
    (tmp_path / "w16.bin").write_bytes(weight.raw_data)
    map_tensor(weight, tmp_path / "w16.bin", 0, len(weight.raw_data))
    fold_moved_weights(model)
    casts = [node.input[0] for node in model.graph.node if node.op_type == "Cast"]
    assert casts == ["w16"]
    assert is_mapped(next(tensor for tensor in model.graph.initializer if tensor.name == "w16"))
