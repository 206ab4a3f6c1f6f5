"""Matching: patterns and asymmetric cases as text, properties on generated chains, the shared networks, and
factors really moved.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.spec import Layer, MatchReport
from onnx_dfmpc.spec.ops import OPS, WeightedOp, to_rows

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def net(
    body: str,
    weights: dict[str, tuple[int, ...]] | None = None,
    *,
    x: str = "float[1, 4, 8, 8] x",
    z: str = "float[] z",
    opset: int = 17,
    ir: int = 8,
    functions: str = "",
    functions_opset: str = "",
) -> ModelProto:
    """A model from the body of its graph; ``weights`` become random initializers, positive so that they can
    be variances too.
    """
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}{functions_opset}]>\nnet ({x}) => ({z}) {{ {body} }}\n{functions}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (weights or {}).items():
        model.graph.initializer.append(
            numpy_helper.from_array(rng.uniform(0.1, 1, shape).astype(np.float32), name)
        )
    return model


def list_inputs(model: ModelProto, names: Iterable[str]) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in names:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return model


def set_initializer(model: ModelProto, name: str, array: np.ndarray) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(array, name)])


def naive_count(model: ModelProto) -> int:
    """Weighted nodes, counted without the code under test: every NodeProto anywhere in the message."""

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += node.op_type in WEIGHTED and node.domain in ("", "ai.onnx")
            for attribute in node.attribute:
                total += count(attribute.g.node) + sum(count(graph.node) for graph in attribute.graphs)
        return total

    return count(model.graph.node) + sum(count(function.node) for function in model.functions)


def check_accounts(model: ModelProto, matched: MatchReport) -> None:
    names = [layer.name for layer in matched.layers] + [skipped.name for skipped in matched.skipped]
    assert matched.weighted_nodes == naive_count(model) == len(names)
    assert len(set(names)) == len(names)
    assert len({layer.output for layer in matched.layers}) == len(matched.layers)
    nodes = {node.output[0]: i for i, node in enumerate(model.graph.node)}
    positions = [nodes[layer.output] for layer in matched.layers]
    assert positions == sorted(positions)
    assert all(skipped.reason for skipped in matched.skipped)
    known = {layer.name for layer in matched.layers}
    assert len({chain.producer for chain in matched.chains}) == len(matched.chains)
    for chain in matched.chains:
        assert chain.consumers
        assert known >= {chain.producer, *chain.consumers}
        assert len(set(chain.consumers)) == len(chain.consumers)
        assert chain.homogeneous == (chain.reason == "")
    for layer, position in zip(matched.layers, positions, strict=True):
        node = model.graph.node[position]
        assert (node.op_type, node.output[0], node.input[0]) == (layer.op_type, layer.output, layer.input)


# --- One layer: where its parts are
# --------------------------------------------------------------------------------------------------

LAYERS = {
    "conv": (
        net("z = Conv(x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
        ("w", (6, 4, 3, 3), 0, 1, 6, "b", "z"),
    ),
    "conv 1-D": (
        net("z = Conv(x, w)", {"w": (6, 4, 3)}, x="float[1, 4, 8] x"),
        ("w", (6, 4, 3), 0, 1, 6, None, ""),
    ),
    "conv 3-D": (
        net("z = Conv(x, w)", {"w": (6, 4, 3, 3, 3)}, x="float[1, 4, 8, 8, 8] x"),
        ("w", (6, 4, 3, 3, 3), 0, 1, 6, None, ""),
    ),
    "grouped": (
        net("z = Conv <group = 2> (x, w)", {"w": (6, 2, 3, 3)}),
        ("w", (6, 2, 3, 3), 0, 2, 6, None, ""),
    ),
    "depthwise": (
        net("z = Conv <group = 4> (x, w)", {"w": (4, 1, 3, 3)}),
        ("w", (4, 1, 3, 3), 0, 4, 4, None, ""),
    ),
    "transposed": (
        net("z = ConvTranspose (x, w)", {"w": (4, 6, 3, 3)}),
        ("w", (4, 6, 3, 3), 1, 1, 6, None, ""),
    ),
    "transposed grouped": (
        net("z = ConvTranspose <group = 2> (x, w, b)", {"w": (4, 3, 3, 3), "b": (6,)}),
        ("w", (4, 3, 3, 3), 1, 2, 6, "b", "z"),
    ),
    "gemm transB": (
        net("z = Gemm <transB = 1> (x, w, b)", {"w": (6, 4), "b": (6,)}, x="float[2, 4] x"),
        ("w", (6, 4), 0, 1, 6, "b", "z"),
    ),
    "gemm": (
        net("z = Gemm <beta = 2.0> (x, w)", {"w": (4, 6)}, x="float[2, 4] x"),
        ("w", (4, 6), 1, 1, 6, None, ""),
    ),
    "matmul": (net("z = MatMul(x, w)", {"w": (4, 6)}, x="float[2, 4] x"), ("w", (4, 6), 1, 1, 6, None, "")),
    "matmul with Add": (
        net("y = MatMul(x, w) z = Add(b, y)", {"w": (4, 6), "b": (6,)}, x="float[2, 4] x"),
        ("w", (4, 6), 1, 1, 6, "b", "z"),
    ),
    "matmul with residual": (
        net("y = MatMul(x, w) z = Add(x, y)", {"w": (4, 4)}, x="float[2, 4] x"),
        ("w", (4, 4), 1, 1, 4, None, ""),
    ),
    "empty bias": (net('z = Conv(x, w, "")', {"w": (6, 4, 3, 3)}), ("w", (6, 4, 3, 3), 0, 1, 6, None, "")),
    "identity": (
        net("v = Identity(w) u = Identity(v) z = Conv(x, u)", {"w": (6, 4, 3, 3)}),
        ("w", (6, 4, 3, 3), 0, 1, 6, None, ""),
    ),
    "constant node": (
        net(
            "w = Constant <value = float[1, 4, 1, 1] {1, 2, 3, 4}> () b = Constant <value_floats = [1.0]> () z = Conv(x, w, b)"
        ),
        ("w", (1, 4, 1, 1), 0, 1, 1, "b", "z"),
    ),
}


@pytest.mark.parametrize(("model", "expected"), LAYERS.values(), ids=LAYERS)
def test_layer(model: ModelProto, expected: tuple[object, ...]) -> None:
    before = model.SerializeToString()
    matched = match(model)
    check_accounts(model, matched)
    (layer,) = matched.layers
    assert (
        layer.weight,
        layer.shape,
        layer.axis,
        layer.group,
        layer.channels,
        layer.bias,
        layer.bias_node,
    ) == expected
    assert model.SerializeToString() == before


def test_computed_zero_bias_is_as_good_as_none() -> None:
    body = "n = Shape <start = 0, end = 1> (w) zero = Constant <value_float = 0.0> () o = CastLike(zero, x) b = Expand(o, n) z = Conv(x, w, b)"
    (layer,) = match(net(body, {"w": (6, 4, 3, 3)})).layers
    assert layer.bias is None
    assert "always zero" in layer.notes[0]


def test_float16() -> None:
    model = net("z = Conv(x, w)", {"w": (6, 4, 3, 3)}, x="float16[1, 4, 8, 8] x", z="float16[] z")
    set_initializer(model, "w", np.ones((6, 4, 3, 3), np.float16))
    assert len(match(model).layers) == 1


ACTIVATIONS = {
    "none": ("z = Identity(y)", 17, ""),
    "Relu": ("z = Relu(y)", 17, "Relu"),
    "through Identity": ("i = Identity(y) z = Relu(i)", 17, "Relu"),
    "ReLU6 as attributes": ("z = Clip <min = 0.0, max = 6.0> (y)", 9, "Clip"),
    "ReLU6 as inputs": (
        "l = Constant <value_float = 0.0> () h = Constant <value_float = 6.0> () z = Clip(y, l, h)",
        17,
        "Clip",
    ),
    "LeakyRelu": ("z = LeakyRelu <alpha = 0.1> (y)", 17, "LeakyRelu"),
    "PRelu": ("z = PRelu(y, slope)", 17, "PRelu"),
    "HardSwish": ("z = HardSwish(y)", 17, "HardSwish"),
    "HardSwish in two": ("h = HardSigmoid <alpha = 0.16666667> (y) z = Mul(h, y)", 11, "HardSwish"),
    "another HardSigmoid in two": ("h = HardSigmoid(y) z = Mul(h, y)", 11, ""),
    "SiLU": ("s = Sigmoid(y) z = Mul(y, s)", 17, "SiLU"),
    "Swish": ("z = Swish(y)", 24, "SiLU"),
    "Sigmoid": ("z = Sigmoid(y)", 17, "Sigmoid"),
    "HardSigmoid": ("z = HardSigmoid(y)", 17, "HardSigmoid"),
    "Tanh": ("z = Tanh(y)", 17, "Tanh"),
    "Gelu": ("z = Gelu(y)", 20, "Gelu"),
    "Elu": ("z = Elu(y)", 17, "Elu"),
    "not alone": ("r = Relu(y) z = Add(r, y)", 17, ""),
    "someone else's Sigmoid": ("s = Sigmoid(x) z = Mul(y, s)", 17, ""),
    "behind a residual Add": ("a = Add(y, x) z = Relu(a)", 17, ""),
}


@pytest.mark.parametrize(("body", "opset", "expected"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activation(body: str, opset: int, expected: str) -> None:
    weights = {"w": (4, 4, 1, 1), "slope": (4, 1, 1)}
    assert match(net(f"y = Conv(x, w) {body}", weights, opset=opset)).layers[0].activation == expected


# --- Batch norm
# -----------------------------------------------------------------------------------------------------------------------

NORM = {"w": (4, 4, 1, 1), "g": (4,), "b": (4,), "m": (4,), "v": (4,)}
BATCH_NORMS = {
    "kept": ("y = Conv(x, w) n = BatchNormalization(y, g, b, m, v) z = Relu(n)", True),
    "through Identity": (
        "y = Conv(x, w) i = Identity(y) k = Identity(g) n = BatchNormalization(i, k, b, m, v) z = Relu(n)",
        True,
    ),
    "not alone": ("y = Conv(x, w) n = BatchNormalization(y, g, b, m, v) z = Add(n, y)", False),
    "behind the activation": ("y = Conv(x, w) r = Relu(y) z = BatchNormalization(r, g, b, m, v)", False),
    "computed parameters": (
        "y = Conv(x, w) h = ReduceMax <axes = [0, 2, 3], keepdims = 0> (x) z = BatchNormalization(y, h, b, m, v)",
        False,
    ),
}


@pytest.mark.parametrize(("body", "there"), BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_batch_norm(body: str, there: bool) -> None:
    (layer,) = match(net(body, NORM)).layers
    assert (layer.batch_norm is not None) == there


def test_batch_norm_behind_matmul_and_its_bias() -> None:
    body = "y = MatMul(x, w) a = Add(y, c) n = BatchNormalization <epsilon = 0.5> (a, g, b, m, v) z = Relu(n)"
    model = net(body, NORM | {"w": (4, 4), "c": (4,)}, x="float[2, 4] x")
    (layer,) = match(model).layers
    assert (layer.bias, layer.activation) == ("c", "Relu")
    assert layer.batch_norm is not None
    assert (layer.batch_norm.output, layer.batch_norm.epsilon) == ("n", 0.5)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    norm = layer.batch_norm
    for name, parameter in zip("gbmv", (norm.gamma, norm.beta, norm.mean, norm.var), strict=True):
        assert parameter.dtype == np.float64
        np.testing.assert_array_equal(parameter, values[name])


def test_batch_norm_along_another_axis_than_the_features() -> None:
    body = "y = MatMul(x, w) z = BatchNormalization(y, g, b, m, v)"
    (layer,) = match(net(body, {"w": (4, 4)} | dict.fromkeys("gbmv", (4,)), x="float[2, 4, 4] x")).layers
    assert layer.batch_norm is None
    assert "along another axis" in layer.notes[0]


def test_batch_norm_that_leaves_the_graph() -> None:
    model = net("y = Conv(x, w) z = BatchNormalization(y, g, b, m, v)", NORM, z="float[] z, float[] y")
    assert match(model).layers[0].batch_norm is None


# --- What stays float, and why
# ----------------------------------------------------------------------------------------------------------

W = {"w": (4, 4, 1, 1)}
M = {"w": (4, 4)}
VECTORS = "float[4, 4] x"
SKIPPED = {
    "weight is an input": (
        net("z = Conv(x, w)", x="float[1, 4, 8, 8] x, float[4, 4, 1, 1] w"),
        "'w' is a graph input",
    ),
    "weight is computed": (net("w = Relu(x) z = MatMul(x, w)", x=VECTORS), "not a constant: Relu 'w'"),
    "weight is folded": (
        net("v = Transpose <perm = [1, 0]> (w) z = MatMul(x, v)", M, x=VECTORS),
        "fold constants first",
    ),
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


# --- Shared weights, listed inputs, names, order
# ----------------------------------------------------------------------------------------


def test_shared_weight_says_so() -> None:
    matched = match(net("y = Conv(x, w) v = Identity(w) z = Conv(y, v) u = Conv(z, w)", W))
    assert [layer.weight for layer in matched.layers] == ["w", "w", "w"]
    notes = [layer.notes for layer in matched.layers]
    assert notes == [("weight shared with 'z', 'u'",), *[("weight shared with 'y'",)] * 2]


def test_layers_share_codes_where_weight_rows_and_widths_are_the_same() -> None:
    text = "y = Conv(x, w) z = Conv(y, w) t = ConvTranspose(z, w) u = Conv(t, w)"
    matched = match(net(text, W))
    assert matched.sharing(dict.fromkeys("yztu", 4)) == {"z": "y", "u": "y"}
    assert matched.sharing({"y": 4, "z": 3, "t": 4, "u": 3}) == {"u": "z"}
    assert matched.sharing({"z": 4, "u": 4}) == {"u": "z"}


def test_weight_shared_with_a_float_layer_stays_float() -> None:
    model = net(
        "y = Conv(x, w, c) b = ReduceMax <axes = [0, 2, 3], keepdims = 0> (x) z = Conv(y, w, b)",
        W | {"c": (4,)},
    )
    matched = match(model)
    check_accounts(model, matched)
    assert [(s.name, "stays float" in s.reason) for s in matched.skipped] == [("y", True), ("z", False)]


@pytest.mark.parametrize("ir", [3, 8])
def test_every_initializer_listed_is_a_habit(ir: int) -> None:
    model = list_inputs(net("y = Conv(x, w, b) z = BatchNormalization(y, g, b, m, v)", NORM, ir=ir), NORM)
    (layer,) = match(model).layers
    assert layer.batch_norm is not None
    assert "the entry will be dropped" in layer.notes[0]


def test_overridable_batch_norm_is_left_alone() -> None:
    (layer,) = match(
        list_inputs(net("y = Conv(x, w) z = BatchNormalization(y, g, b, m, v)", NORM), ["g"])
    ).layers
    assert layer.batch_norm is None
    assert "left as it is" in layer.notes[0]


def test_names() -> None:
    model = net("a = Conv(x, w) b = Conv(a, w) c = Conv(b, w) d = Conv(c, w) z = Conv(d, w)", W)
    for node, name in zip(model.graph.node, ["twin", "twin", "", "c", "own"], strict=True):
        node.name = name
    matched = match(model)
    check_accounts(model, matched)
    assert [layer.name for layer in matched.layers] == ["a", "b", "c_1", "c", "own"]


def test_weights_are_not_decoded() -> None:
    model = net("y = Conv(x, w) z = BatchNormalization(y, g, b, m, v)", NORM)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    onnx.external_data_helper.set_external_data(tensors["w"], "nowhere.bin")
    tensors["w"].ClearField("raw_data")
    assert match(model, read_mapped=False).layers[0].shape == (4, 4, 1, 1)


def test_graph_that_cannot_be_read() -> None:
    model = net("z = Relu(x)")
    model.graph.initializer.add(name="broken", data_type=99)
    with pytest.raises(ModelError, match="cannot be read"):
        match(model)


def test_no_nodes() -> None:
    matched = match(onnx.ModelProto())
    assert (matched.layers, matched.chains, matched.skipped, matched.weighted_nodes) == ((), (), (), 0)


# --- Chains
# ---------------------------------------------------------------------------------------------------------------------------


def ints(name: str, *values: int) -> str:
    """Text of a Constant node with a vector of integers."""
    return f"{name} = Constant <value_ints = {list(values)}> ()"


C = {
    "w": (4, 4, 1, 1),
    "v": (4, 4, 1, 1),
    "u": (4, 4, 1, 1),
    "d": (4, 1, 3, 3),
    "fc": (3, 4),
    "fc256": (3, 256),
    "g": (4,),
    "k": (4, 1, 1),
    "slope": (4, 1, 1),
}
TO_CONV = {
    "Relu": "r = Relu(y)",
    "LeakyRelu": "r = LeakyRelu(y)",
    "PRelu": "r = PRelu(y, slope)",
    "Identity, Dropout": "a = Identity(y) r = Dropout(a)",
    "MaxPool": "a = Relu(y) r = MaxPool <kernel_shape = [2, 2]> (a)",
    "AveragePool": "r = AveragePool <kernel_shape = [2, 2]> (y)",
    "GlobalAveragePool": "r = GlobalAveragePool(y)",
    "ReduceMean": "r = ReduceMean <axes = [2, -1]> (y)",
    "Mul by a constant": "r = Mul(y, k)",
    "Div by a constant": "r = Div(y, k)",
    "Pad": f"{ints('p', 0, 0, 1, 1, 0, 0, 1, 1)} r = Pad(y, p)",
    "Pad by arithmetic": f"{ints('o', 2)} n = ConstantOfShape <value = int64[1] {{0}}> (o)"
    f" {ints('i', 1, 1, 0, 0, 1, 1)} p = Concat <axis = 0> (n, i) r = Pad(y, p)",
    "Pad by reflection": f'{ints("p", 0, 0, 1, 1, 0, 0, 1, 1)} r = Pad <mode = "reflect"> (y, p)',
    "depthwise": "a = Relu(y) r = Conv <group = 4> (a, d)",
    "grouped": "r = Conv <group = 2> (y, h)",
    "transposed": "r = ConvTranspose <group = 2> (y, t)",
}
TO_GEMM = {
    "Flatten of one pixel": "p = GlobalAveragePool(y) r = Flatten(p)",
    "Flatten of one pixel by size": "p = AveragePool <kernel_shape = [8, 8]> (y) r = Flatten(p)",
    "ReduceMean without dimensions": "r = ReduceMean <axes = [2, 3], keepdims = 0> (y)",
    "Squeeze": f"p = GlobalMaxPool(y) {ints('i', 2, 3)} r = Squeeze(p, i)",
    "Reshape [0, -1]": f"p = AveragePool <kernel_shape = [8, 8]> (y) {ints('s', 0, -1)} r = Reshape(p, s)",
    "Reshape [-1, C] of one pixel": f"p = GlobalAveragePool(y) {ints('s', -1, 4)} r = Reshape(p, s)",
    "Reshape as torch writes it": "p = GlobalAveragePool(y) n = Shape(p) i = Constant <value_int = 0> ()"
    f" b = Gather(n, i) {ints('j', 0)} c = Unsqueeze(b, j) {ints('m', -1)} s = Concat <axis = 0> (c, m) r = Reshape(p, s)",
}
MORE = {"h": (4, 2, 1, 1), "t": (4, 2, 1, 1)}
HOMOGENEOUS = {
    **{name: net(f"y = Conv(x, w, g) {body} z = Conv(r, v)", C | MORE) for name, body in TO_CONV.items()},
    **{
        name: net(f"y = Conv(x, w, g) {body} z = Gemm <transB = 1> (r, fc)", C)
        for name, body in TO_GEMM.items()
    },
    "batch norm": net(
        "y = Conv(x, w) n = BatchNormalization(y, g, b, m, v) r = Relu(n) z = Conv(r, u)",
        NORM | {"u": (4, 4, 1, 1)},
    ),
    "several consumers": net("y = Conv(x, w) r = Relu(y) a = Conv(r, v) b = Conv(r, u) z = Add(a, b)", C),
    "Gemm to Gemm": net(
        "y = Gemm <transB = 1> (x, w, b) r = Relu(y) z = Gemm(r, v)",
        {"w": (6, 4), "v": (6, 3), "b": (6,)},
        x=VECTORS,
    ),
    "MatMul to MatMul": net(
        "y = MatMul(x, w) a = Add(y, b) r = Relu(a) z = MatMul(r, v)",
        {"w": (4, 6), "v": (6, 3), "b": (6,)},
        x="float[1, 2, 5, 4] x",
    ),
    "ConvTranspose to ConvTranspose": net(
        "y = ConvTranspose <group = 2> (x, w, b) r = Relu(y) z = ConvTranspose(r, v)",
        {"w": (4, 3, 2, 2), "v": (6, 2, 1, 1), "b": (6,)},
    ),
}


@pytest.mark.parametrize("model", HOMOGENEOUS.values(), ids=HOMOGENEOUS)
def test_homogeneous_chain_lets_a_factor_move(model: ModelProto) -> None:
    matched = match(model)
    check_accounts(model, matched)
    assert matched.chains[0].homogeneous, matched.chains[0].reason
    assert outputs_differ(model, move_factors(model, matched)) < 1e-5


NOT_HOMOGENEOUS = {
    "Clip": (
        "c = Constant <value_float = 6.0> () r = Clip(y, , c) z = Conv(r, v)",
        "Clip 'r' is not positively homogeneous",
    ),
    "SiLU": ("s = Sigmoid(y) r = Mul(y, s) z = Conv(r, v)", "of a SiLU is not positively homogeneous"),
    "HardSwish": ("r = HardSwish(y) z = Conv(r, v)", "HardSwish 'r' is not positively homogeneous"),
    "Sigmoid": ("r = Sigmoid(y) z = Conv(r, v)", "not positively homogeneous"),
    "residual Add": ("a = Add(x, y) r = Relu(a) z = Conv(r, v)", "Add 'a' joins it with another branch"),
    "Add of a constant": ("r = Add(y, k) z = Conv(r, v)", "joins it with a constant"),
    "Add to itself": ("r = Add(y, y) z = Conv(r, v)", "Add 'r' joins it"),
    "square": ("r = Mul(y, y) z = Conv(r, v)", "Mul 'r' multiplies it"),
    "gate": ("s = Sigmoid(x) r = Mul(y, s) z = Conv(r, v)", "Mul 'r' multiplies it with another branch"),
    "under a fraction": ("r = Div(k, y) z = Conv(r, v)", "Div 'r' multiplies it"),
    "Concat": ("r = Concat <axis = 1> (y, x) z = Conv(r, wide)", "Concat 'r' joins it with another branch"),
    "shortcut": ("a = Conv(y, v) r = Add(a, y) z = Conv(r, u)", "shortcut into Add 'r'"),
    "later batch norm": (
        "r = Relu(y) n = BatchNormalization(r, g, g, g, g) z = Conv(n, v)",
        "BatchNormalization 'n' normalizes or shifts it",
    ),
    "Softmax besides": ("q = Softmax(y) z = Conv(y, v)", "Softmax 'q' reads it too"),
    "float layer besides": ("q = Conv(y, x) z = Conv(y, v)", "Conv 'q' stays float"),
    "Slice of channels": (
        f"{ints('s', 0)} {ints('e', 2)} {ints('a', 1)} r = Slice(y, s, e, a) z = Conv(r, half)",
        "Slice 'r' may take a part",
    ),
    "Split of channels": (
        "r, q = Split <axis = 1> (y) z = Conv(r, half) o = Conv(q, half)",
        "Split 'r' may take a part of its channels",
    ),
    "Pad with ones": (
        f"{ints('p', 0, 0, 1, 1, 0, 0, 1, 1)} o = Constant <value_float = 1.0> () r = Pad(y, p, o) z = Conv(r, v)",
        "constant other than zero",
    ),
    "Pad by arithmetic that fails": (
        f"{ints('a', 0, 0, 0, 0)} {ints('b', 0, 0, 0)} p = Add(a, b) r = Pad(y, p) z = Conv(r, v)",
        "by an amount that is not constant",
    ),
    "Pad of channels": (
        f"{ints('p', 0, 2, 0, 0, 0, 2, 0, 0)} r = Pad(y, p) z = Conv(r, wide)",
        "may pad its channels",
    ),
    "channel shuffle": (
        f"{ints('s', 1, 2, 2, 8, 8)} a = Reshape(y, s) b = Transpose <perm = [0, 2, 1, 3, 4]> (a)"
        f" {ints('e', 1, 4, 8, 8)} r = Reshape(b, e) z = Conv(r, v)",
        "Reshape 'a' may move its channels",
    ),
    "swapped axes": (
        "r = Transpose <perm = [0, 2, 1, 3]> (y) z = Conv(r, eight)",
        "Transpose 'r' may move its channels",
    ),
    "Flatten of many pixels": (
        "f = Flatten(y) z = Gemm <transB = 1> (f, fc256)",
        "a channel is a block of its columns",
    ),
    "Reshape that mixes": (
        f"{ints('s', -1, 4)} f = Reshape(y, s) z = Gemm <transB = 1> (f, fc)",
        "Reshape 'f' may move its channels",
    ),
    "Resize of unknown size": ("n = Shape(x) r = Resize(y, , , n) z = Conv(r, v)", "may resize"),
    "pooled channels": ("r = ReduceMean <axes = [1]> (y) z = Conv(r, one)", "may reduce over its channels"),
    "Reshape of one row": (
        f"p = ReduceMean <axes = [2]> (y) {ints('s', -1, 4)} f = Reshape(p, s) z = Gemm <transB = 1> (f, fc)",
        "Reshape 'f' may move its channels",
    ),
    "Reshape by another size": (
        f"n = Shape(x) {ints('i', 0)} b = Gather(n, i) {ints('m', -1)} s = Concat <axis = 0> (b, m)"
        " p = AveragePool <kernel_shape = [8, 8]> (y) f = Reshape(p, s) z = Gemm <transB = 1> (f, fc)",
        "Reshape 'f' may move its channels",
    ),
    "Flatten into rows": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [4, 4]> (y) f = Flatten <axis = 2> (p) z = Gemm <transB = 1> (f, fc)",
        "Flatten 'f' does not keep its channels apart",
    ),
    "MatMul over the width": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (y) z = MatMul(p, square)",
        "not the input channels of 'z'",
    ),
    "Mul that adds a dimension": (
        "f = Mul(y, five) r = ReduceMean <axes = [0], keepdims = 0> (f) z = Conv(r, v)",
        "to more dimensions",
    ),
    "all axes reduced": (
        "e = Constant <value_ints: ints = []> () r = ReduceMean(y, e) z = Conv(r, one)",
        "may reduce over its channels",
    ),
    "rounded": ("i = Cast <to = 7> (y) r = Cast <to = 1> (i) z = Conv(r, v)", "Cast 'i' may round it"),
}
SHAPES = {
    "square": (4, 4),
    "five": (2, 1, 1, 1, 1),
    "wide": (4, 8, 1, 1),
    "half": (4, 2, 1, 1),
    "eight": (4, 8, 1, 1),
    "one": (4, 1, 1, 1),
}


@pytest.mark.parametrize(("body", "reason"), NOT_HOMOGENEOUS.values(), ids=NOT_HOMOGENEOUS)
def test_chain_through_which_no_factor_moves(body: str, reason: str) -> None:
    model = net(f"y = Conv(x, w) {body}", C | SHAPES)
    matched = match(model)
    check_accounts(model, matched)
    chain = matched.chains[0]
    assert chain.producer == "y"
    assert not chain.homogeneous
    assert reason in chain.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = MaxPool <kernel_shape = [1, 1]> (y)", "MaxPool 'r' pools over its channels"),
        ("r = ReduceMean <axes = [2]> (y)", "ReduceMean 'r' may reduce over its channels"),
        (f"{ints('a', 0)} r = Squeeze(y, a)", "Squeeze 'r' may remove the dimension of its channels"),
        (f"{ints('s', 0, -1)} r = Reshape(y, s)", "Reshape 'r' may move its channels"),
        ("r = Flatten(y)", "Flatten 'r' does not keep its channels apart"),
    ],
)
def test_channels_that_come_last_are_followed_no_further(body: str, reason: str) -> None:
    model = net(f"y = MatMul(x, w) {body} z = MatMul(r, v)", {"w": (8, 4), "v": (4, 3)})
    assert match(model).chains[0].reason == reason


def test_graph_output_on_the_way() -> None:
    matched = match(net("y = Conv(x, w) r = Relu(y) z = Conv(r, v)", C, z="float[] z, float[] r"))
    assert matched.chains[0].consumers == ("z",)
    assert matched.chains[0].reason == "'r' is a graph output"


def test_path_is_for_the_reader() -> None:
    body = "n = BatchNormalization(y, g, b, m, v) s = Sigmoid(n) a = Mul(s, n) p = MaxPool <kernel_shape = [2, 2]> (a) z = Conv(p, w)"
    matched = match(net(f"y = Conv(x, w) {body}", NORM))
    assert matched.chains[0].path == ("BatchNormalization", "SiLU", "MaxPool")
    assert matched.chains[0].activation == "SiLU"


def test_residual_network_pairs_within_and_between_blocks() -> None:
    block = (
        "{i}1 = Conv({x}, w) {i}2 = Relu({i}1) {i}3 = Conv({i}2, v) {i}4 = Add({i}3, {x}) {o} = Relu({i}4) "
    )
    body = (
        "s = Conv(x, u) a = Relu(s) "
        + block.format(x="a", i="p", o="b")
        + block.format(x="b", i="q", o="c")
        + "z = Conv(c, w)"
    )
    chains = {chain.producer: chain for chain in match(net(body, C)).chains}
    assert {name: chain.consumers for name, chain in chains.items()} == {
        "s": ("p1",),
        "p1": ("p3",),
        "p3": ("q1",),
        "q1": ("q3",),
        "q3": ("z",),
    }
    assert [name for name, chain in chains.items() if chain.homogeneous] == ["p1", "q1"]
    assert chains["p3"].path == ("Add", "Relu")


def test_squeeze_and_excitation_feeds_its_gate_and_the_projection() -> None:
    body = (
        "y = Conv(x, w) p = GlobalAveragePool(y) a = Conv(p, v) s = Sigmoid(a) r = Mul(y, s) z = Conv(r, u)"
    )
    chains = {chain.producer: chain for chain in match(net(body, C)).chains}
    assert chains["y"].consumers == ("a", "z")
    assert chains["a"].consumers == ("z",)
    assert not chains["y"].homogeneous
    assert not chains["a"].homogeneous


def test_long_chains_of_identity_do_not_exhaust_the_stack() -> None:
    def chain(name: str, source: str) -> str:
        names = [source, *(f"{name}{i}" for i in range(1500))]
        return " ".join(f"{b} = Identity({a})" for a, b in pairwise(names))

    body = (
        f"{chain('k', 'w')} c = Conv(x, k1499) {chain('n', 'c')} b = BatchNormalization(n1499, g, g, g, g) "
        f"{chain('a', 'b')} r = Relu(a1499) {ints('s', 1)} o = ConstantOfShape <value = int64[1] {{0}}> (s) "
        f"{ints('p', 0, 0, 0, 0, 0, 0, 0)} q = Concat <axis = 0> (o, p) {chain('f', 'q')} d = Pad(r, f1499) "
        "z = Conv(d, v)"
    )
    matched = match(net(body, C))
    assert [layer.weight for layer in matched.layers] == ["w", "v"]
    assert matched["c"].end == "b"
    assert matched["z"].end == "z"
    assert matched["c"].activation == "Relu"
    assert (matched.chains[0].consumers, matched.chains[0].homogeneous) == (("z",), True)


def test_long_sum_does_not_exhaust_the_stack() -> None:
    adds = " ".join(f"a{i + 1} = Add(a{i}, x)" for i in range(3000))
    matched = match(net(f"a0 = Conv(x, w) {adds} z = Conv(a3000, v)", C))
    assert matched.chains[0].consumers == ("z",)


# --- A factor really moved: the oracle for ``homogeneous``
# ------------------------------------------------------------------------------


def move_factors(model: ModelProto, matched: MatchReport) -> ModelProto:
    """Scale channel j of every homogeneous producer by a power of two and input channel j of its consumers by
    the inverse.
    """
    moved = ModelProto()
    moved.CopyFrom(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = {layer.name: layer for layer in matched.layers}
    rng = np.random.default_rng(0)
    for chain in matched.chains:
        if not chain.homogeneous:
            continue
        producer = layers[chain.producer]
        factor = 2.0 ** rng.integers(-2, 3, producer.channels).astype(np.float32)
        if producer.batch_norm is not None:
            norm = next(node for node in model.graph.node if producer.batch_norm.output in node.output)
            for name in norm.input[1:3]:
                arrays[name] = arrays[name] * factor
        else:
            arrays[producer.weight] = arrays[producer.weight] * per_output(producer, factor)
            if producer.bias is not None:
                arrays[producer.bias] = arrays[producer.bias] * factor
        for name in chain.consumers:
            consumer = layers[name]
            arrays[consumer.weight] = arrays[consumer.weight] / per_input(consumer, factor)
    del moved.graph.initializer[:]
    moved.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return moved


def per_output(layer: Layer, factor: np.ndarray) -> np.ndarray:
    """The factor of each weight's output channel, by a loop over the weights."""
    grid = np.ones(layer.shape, np.float32)
    for index in np.ndindex(*layer.shape[:2]):
        channel = index[layer.axis]
        if layer.op_type == "ConvTranspose":
            channel += index[0] // (layer.shape[0] // layer.group) * layer.shape[1]
        grid[index] = factor[channel]
    return grid


def per_input(layer: Layer, factor: np.ndarray) -> np.ndarray:
    """The factor of each weight's input channel, by a loop over the weights."""
    grid = np.ones(layer.shape, np.float32)
    for index in np.ndindex(*layer.shape[:2]):
        channel = index[1 - layer.axis]
        if layer.op_type == "Conv":
            channel += index[0] // (layer.shape[0] // layer.group) * layer.shape[1]
        grid[index] = factor[channel]
    return grid


def outputs_differ(one: ModelProto, two: ModelProto) -> float:
    """Largest relative difference of the outputs under ONNX Runtime, on one random input; open dimensions get
    1 or 64.
    """
    initializers = {tensor.name for tensor in one.graph.initializer}
    rng = np.random.default_rng(1)
    feeds = {}
    for value in one.graph.input:
        if value.name not in initializers:
            shape = [
                dim.dim_value or (64 if i > 1 else 1)
                for i, dim in enumerate(value.type.tensor_type.shape.dim)
            ]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    results = []
    for model in (one, two):
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, feeds))
    return max(
        float(np.max(np.abs(a - b)) / (np.max(np.abs(a)) + 1e-30)) for a, b in zip(*results, strict=True)
    )


def test_the_oracle_sees_a_factor_that_may_not_move() -> None:
    model = net("y = Conv(x, w) r = Sigmoid(y) z = Conv(r, v)", C)
    matched = match(model)
    (chain,) = matched.chains
    pretended = MatchReport(
        matched.layers, (type(chain)(chain.producer, chain.consumers, "", (), True),), (), 2
    )
    assert outputs_differ(model, move_factors(model, pretended)) > 1e-2


# --- Generated networks
# -----------------------------------------------------------------------------------------------------------------

PIECES = {
    "conv": "{o} = Conv({i}, {o}_w, {o}_b)",
    "depthwise": "{o} = Conv <group = 4> ({i}, {o}_d)",
    "norm": "{o} = BatchNormalization({i}, {o}_g, {o}_b, {o}_m, {o}_v)",
    "relu": "{o} = Relu({i})",
    "clip": "{o}_6 = Constant <value_float = 6.0> () {o} = Clip({i}, , {o}_6)",
    "silu": "{o}_s = Sigmoid({i}) {o} = Mul({i}, {o}_s)",
    "pool": "{o} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({i})",
    "identity": "{o} = Identity({i})",
    "block": "{o}_1 = Conv({i}, {o}_w) {o}_2 = Relu({o}_1) {o}_3 = Conv({o}_2, {o}_u) {o} = Add({o}_3, {i})",
    "fork": "{o}_1 = Conv({i}, {o}_w) {o}_2 = Conv({i}, {o}_u) {o} = Add({o}_1, {o}_2)",
    "tied": "{o}_1 = Conv({i}, shared) {o} = Conv({o}_1, shared)",
    "float": "{o}_c = ReduceMax <axes = [0, 2, 3], keepdims = 0> ({i}) {o} = Conv({i}, {o}_w, {o}_c)",
}
PIECE_SHAPES = {
    "w": (4, 4, 1, 1),
    "u": (4, 4, 1, 1),
    "d": (4, 1, 1, 1),
    "g": (4,),
    "b": (4,),
    "m": (4,),
    "v": (4,),
}


@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=9))
def test_generated_chains(pieces: list[str]) -> None:
    names = ["x", *(f"t{i}" for i in range(len(pieces)))]
    body = " ".join(
        PIECES[piece].format(i=i, o=o) for piece, i, o in zip(pieces, names, names[1:], strict=False)
    )
    weights = {
        f"{o}_{key}": shape for o in names[1:] for key, shape in PIECE_SHAPES.items() if f"{o}_{key}" in body
    }
    model = net(
        f"{body} z = Identity({names[-1]})", weights | {"shared": (4, 4, 1, 1)}, x="float[1, 4, 5, 5] x"
    )
    before = model.SerializeToString()
    matched = match(model)
    assert model.SerializeToString() == before
    check_accounts(model, matched)
    if "tied" not in pieces:  # one array cannot take the factors of two layers
        assert outputs_differ(model, move_factors(model, matched)) < 1e-4


# --- Real networks
# ----------------------------------------------------------------------------------------------------------------------


def test_shared_model_is_accounted_for(shared_model: Path) -> None:
    model = onnx.load(shared_model)
    before = model.SerializeToString()
    matched = match(model)
    check_accounts(model, matched)
    assert model.SerializeToString() == before
    assert matched.skipped == ()
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert sum(layer.batch_norm is not None for layer in matched.layers) == norms
    assert outputs_differ(model, move_factors(model, matched)) < 1e-4


@pytest.mark.parametrize(("name", "blocks"), [("cifar10_resnet20_bn", 9), ("cifar10_resnet56_folded", 27)])
def test_resnet_pairs_the_convolutions_of_each_block(shared_dir: Path, name: str, blocks: int) -> None:
    matched = match(onnx.load(shared_dir / "models" / f"{name}.onnx"))
    pairs = [(chain.producer, chain.consumers) for chain in matched.chains if chain.homogeneous]
    assert len(pairs) == blocks
    for producer, consumers in pairs:
        assert producer.endswith("conv1/Conv")
        assert consumers == (producer.replace("conv1", "conv2"),)
