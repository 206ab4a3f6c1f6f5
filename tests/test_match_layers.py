"""Matching one layer: where its parts are, its activation and its batch norm."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnx_dfmpc.matching.match import match
from tests.nets import NORM, check_accounts, net, set_initializer

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
