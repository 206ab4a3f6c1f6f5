"""Matching: what stays float, and why; operators from outside."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec.ops import OPS, WeightedOp, to_rows
from tests.nets import NORM, VECTORS, WEIGHTED, W, check_accounts, list_inputs, net, set_initializer

M = {"w": (4, 4)}
SKIPPED = {
    "weight is an input": (
        net("z = Conv(x, w)", x="float[1, 4, 8, 8] x, float[4, 4, 1, 1] w"),
        "'w' is a graph input",
    ),
    "weight is computed": (net("w = Relu(x) z = MatMul(x, w)", x=VECTORS), "not a constant: Relu 'w'"),
    "weight is folded": (net("v = Mul(w, w) z = MatMul(x, v)", M, x=VECTORS), "fold constants first"),
    "two activations": (net("z = MatMul(x, x)", x=VECTORS), "'x' is a graph input"),
    "constant comes first": (net("z = MatMul(w, x)", M, x=VECTORS), "first operand"),
    "batched constant": (net("z = MatMul(x, w)", {"w": (2, 4, 4)}, x=VECTORS), "only a matrix"),
    "vector": (net("z = MatMul(x, w)", {"w": (4,)}, x=VECTORS), "only a matrix"),
    "transA": (net("z = Gemm <transA = 1> (x, w)", M, x=VECTORS), "transA=1"),
    "alpha": (net("z = Gemm <alpha = 0.5> (x, w)", M, x=VECTORS), "alpha=0.5"),
    "beta": (net("z = Gemm <beta = 2.0> (x, w, b)", M | {"b": (4,)}, x=VECTORS), "beta=2"),
    "already quantized": (
        net(
            "q = Constant <value = int8[1, 4, 1, 1] {1, 2, 3, 4}> () w = DequantizeLinear(q, s) z = Conv(x, w)",
            {"s": ()},
        ),
        "already quantized",
    ),
    "empty": (net("z = Conv(x, w)", {"w": (0, 4, 1, 1)}), "empty"),
    "wrong rank": (net("z = Conv(x, w)", {"w": (4, 4)}), "does not fit Conv"),
    "computed bias": (
        net("b = ReduceMax <axes = [0, 2, 3], keepdims = 0> (x) z = Conv(x, w, b)", W),
        "bias 'b' is not a constant",
    ),
    "scalar bias": (net("z = Gemm(x, w, b)", M | {"b": ()}, x=VECTORS), "not a constant per output channel"),
    "graph output": (net("z = Conv(x, w)", W, z="float[] z, float[4, 4, 1, 1] w"), "'w' is a graph output"),
    "graph output as Identity": (
        net("v = Identity(w) z = Conv(x, w)", W, z="float[] z, float[] v"),
        "'v' is a graph output",
    ),
    "used otherwise": (net("y = Conv(x, w) z = Add(y, w)", W), "also used by Add 'z'"),
    "used otherwise as Identity": (
        net("v = Identity(w) y = Conv(x, w) z = Add(y, v)", W),
        "also used by Add 'z'",
    ),
    "used as data": (net("y = Conv(x, w) z = Conv(w, y)", W), "also used by Conv 'z', not as a weight"),
    "training_mode": (
        net("y = Conv(x, w) z, p, q = BatchNormalization <training_mode = 1> (y, g, b, m, v)", NORM),
        "'z' after it is in training mode: export the model again in eval mode",
    ),
    "training before opset 14": (
        net("y = Conv(x, w) z, p, q, r, s = BatchNormalization(y, g, b, m, v)", NORM, opset=9),
        "eval mode",
    ),
    "overridable": (list_inputs(net("z = Conv(x, w, b)", W | {"b": (4,)}), ["w"]), "'w' is overridable"),
    "overridable bias": (list_inputs(net("z = Conv(x, w, b)", W | {"b": (4,)}), ["b"]), "'b' is overridable"),
    "used in a subgraph": (
        net(
            "y = Conv(x, w) z = If (c) <then_branch = t () => (float[] p) { p = Add(y, w) },"
            " else_branch = e () => (float[] q) { q = Identity(y) }>",
            W,
            x="float[1, 4, 8, 8] x, bool c",
        ),
        "'w' is used in a subgraph of If 'z'",
    ),
}


@pytest.mark.parametrize(("model", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_skipped(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    matched = match(model)
    check_accounts(model, matched)
    assert any(reason in skipped.reason for skipped in matched.skipped), matched.skipped
    assert model.graph.node[-1].op_type not in WEIGHTED or matched.skipped[-1].name == "z"
    assert not any(layer.weight == "w" for layer in matched.layers)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("operator", "shape", "dtype"),
    [("Conv", (4, 4, 3, 3), np.float64), ("MatMul", (4, 4), np.int32), ("Gemm", (4, 4), ml_dtypes.bfloat16)],
)
def test_skipped_dtype(operator: str, shape: tuple[int, ...], dtype: type) -> None:
    model = net(
        f"z = {operator}(x, w)", {"w": shape}, x="float[1, 4, 8, 8] x" if len(shape) == 4 else VECTORS
    )
    set_initializer(model, "w", np.ones(shape, dtype))
    assert np.dtype(dtype).name in match(model).skipped[0].reason


def test_sparse_weight_is_skipped() -> None:
    model = net("z = MatMul(x, w)", x=VECTORS)
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
    )
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4, 4]))
    assert "sparse" in match(model).skipped[0].reason


def test_nodes_in_subgraphs_and_functions_are_skipped_with_unique_names() -> None:
    branches = ", ".join(
        f"{branch} = g () => (float[] {p}) {{ {p}0 = Conv(x, w) {p} = Conv({p}0, w) }}"
        for branch, p in (("then_branch", "p"), ("else_branch", "q"))
    )
    model = net(
        f"y = If (c) <{branches}> z = own.f(y, w)",
        W,
        x="float[1, 4, 8, 8] x, bool c",
        functions='<domain: "own", opset_import: ["" : 17]> f (a, k) => (r) { r = Conv(a, k) }',
        functions_opset=', "own" : 1',
    )
    matched = match(model)
    check_accounts(model, matched)
    assert matched.layers == ()
    reasons = [skipped.reason for skipped in matched.skipped]
    assert sum("subgraph of If" in reason for reason in reasons) == 4
    assert sum("local function 'f'" in reason for reason in reasons) == 1


def test_custom_domain_is_not_matched() -> None:
    matched = match(net("z = own.Conv(x, w)", W, functions_opset=', "own" : 1'))
    assert matched.weighted_nodes == 0


# --- An operator from outside
# ----------------------------------------------------------------------------------------------------------


def test_a_weighted_operator_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "y = own.Linear(x, w) a = Add(b, y) r = Relu(a) z = MatMul(r, v)"
    weights = {"w": (4, 6), "b": (6,), "v": (6, 3)}
    model = net(body, weights, x=VECTORS, z="float[4, 3] z", functions_opset=', "own" : 1')
    assert match(model).names == ("z",)
    monkeypatch.setitem(OPS, "own::Linear", OPS["MatMul"])
    matched = match(load(model).proto)
    layer = matched["y"]
    assert matched.names == ("y", "z")
    assert (layer.op_type, layer.weight, layer.axis, layer.group, layer.channels) == (
        "own::Linear",
        "w",
        1,
        1,
        6,
    )
    assert (layer.bias, layer.bias_node, layer.activation, layer.edge) == ("b", "a", "Relu", "first")
    assert (matched.chains[0].consumers, matched.chains[0].homogeneous) == (("z",), True)
    rows = to_rows(np.arange(24).reshape(4, 6), layer)
    np.testing.assert_array_equal(rows, np.arange(24).reshape(4, 6).T[None])
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.full((4, 6), np.nan, np.float32), "w"))
    with pytest.raises(ModelError, match="'w' holds NaN"):
        load(model)


def test_a_row_says_what_cannot_be_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    row = WeightedOp(
        lambda _: 0,
        spatial=True,
        grouped=True,
        batched=False,
        bias_input=3,
        unsupported=lambda attributes, has_bias: "mode=1" if attributes.get("mode") and has_bias else "",
    )
    monkeypatch.setitem(OPS, "own::Filter", row)
    body = "y = own.Filter <group = 2, mode = 1> (x, w, x, b)"
    model = net(body, {"w": (6, 2, 1, 1), "b": (6,)}, z="float[1, 6, 8, 8] y", functions_opset=', "own" : 1')
    assert match(model).skipped[0].reason == "mode=1"
    del model.graph.node[0].attribute[1]
    assert (match(model)["y"].bias, match(model)["y"].channels) == ("b", 6)
    with pytest.raises(KeyError, match="nobody"):
        match(model)["nobody"]
    set_initializer(model, "w", np.ones((6, 3, 1, 1), np.float32))
    with pytest.raises(ModelError, match="takes 6 channels, but the input has 4"):
        load(model)
