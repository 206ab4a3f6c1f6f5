"""Batch norm in scales and biases: the same function, in every form, in exactly the bytes that were
predicted.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.fold import fold
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.methods import METHODS
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load
from onnx_dfmpc.rewrite.apply import Rewritten, fold_obstacles, rewrite
from onnx_dfmpc.rewrite.sizes import predicted_size
from onnx_dfmpc.spec import BatchNorm, Layer, QuantizedLayer, QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.ops import shares_grid
from tests.arrays import FORMS as LAYER_FORMS
from tests.arrays import layer as make_layer

EPSILON = float(np.finfo(np.float32).eps)
YES = StorageFormat(fold_batch_norm="yes")
FORMS = [
    StorageFormat(*words, "yes")
    for words in itertools.product(("table", "native"), ("none", "int8", "float"))
]

seeds = st.integers(0, 2**32 - 1)
gammas = st.sampled_from(["positive", "negative", "zero", "mixed"])


def gamma(kind: str, channels: int, rng: np.random.Generator) -> np.ndarray:
    size = rng.uniform(0.3, 1.5, channels)
    sign = {"positive": 1, "negative": -1, "zero": 0, "mixed": rng.integers(-1, 2, channels)}[kind]
    return size * sign


def norm(kind: str, channels: int, rng: np.random.Generator) -> BatchNorm:
    beta, mean = rng.standard_normal((2, channels))
    return BatchNorm("bn", "b", gamma(kind, channels, rng), beta, mean, rng.uniform(0.1, 2, channels), 1e-5)


def random_weight(
    layer: Layer, bits: int, rng: np.random.Generator, *, signed: bool, per_channel: bool
) -> QuantizedWeight:
    """Every code and every zero point that there is; signed ones symmetric around zero, as the quantizers
    make them.
    """
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    axis = layer.axis if per_channel and not shares_grid(layer) else None
    shape = () if axis is None else (layer.shape[axis],)
    zero_point = None if signed else np.asarray(rng.integers(low, high + 1, shape), np.uint8)
    codes = rng.integers(low, high + 1, layer.shape).astype(np.int8 if signed else np.uint8)
    return QuantizedWeight(
        codes, np.asarray(rng.uniform(0.01, 0.1, shape), np.float32), zero_point, bits, signed, axis
    )


@given(
    st.sampled_from([form for form in LAYER_FORMS if form[0] != "ConvTranspose" or form[2] == 1]),
    st.integers(2, 8),
    gammas,
    st.data(),
)
def test_weight_and_bias_take_the_factor_and_the_shift(form, bits, kind, data):
    rng = np.random.default_rng(data.draw(seeds))
    layer = dataclasses.replace(made := make_layer(*form), batch_norm=norm(kind, made.channels, rng))
    weight = random_weight(
        layer, bits, rng, signed=data.draw(st.booleans()), per_channel=data.draw(st.booleans())
    )
    old = rng.standard_normal(layer.channels) if data.draw(st.booleans()) else None
    new = norm(kind, layer.channels, rng) if data.draw(st.booleans()) else None
    folded = fold(QuantizedLayer(layer.name, weight, batch_norm=new), layer, old)
    used = new or layer.batch_norm
    assert used is not None
    along = [-1 if d == layer.axis else 1 for d in range(len(layer.shape))]
    factor = used.gamma / np.sqrt(used.var + used.epsilon)
    expected = weight.dequantize().astype(np.float64) * factor.reshape(along)
    np.testing.assert_allclose(folded.weight.dequantize(), expected, rtol=2 * EPSILON, atol=0)
    shift = used.beta + factor * ((0 if old is None else old) - used.mean)
    assert folded.bias is not None
    np.testing.assert_allclose(folded.bias, shift, rtol=EPSILON, atol=0)
    assert folded.batch_norm is None
    assert (folded.weight.bits, folded.weight.signed, folded.weight.axis) == (bits, weight.signed, layer.axis)
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if weight.signed else (0, 2**bits - 1)
    zeros = folded.weight.zero_point if folded.weight.zero_point is not None else np.zeros(1, int)
    assert min(folded.weight.codes.min(), zeros.min()) >= low
    assert max(folded.weight.codes.max(), zeros.max()) <= high


# -------------------------------------------------------------------------------------------------------------------
# whole graphs

NODES = {
    "Conv": ("c = Conv<pads = [1, 1, 1, 1]>(x, w)", (6, 4, 3, 3), 6),
    "Conv in groups": ("c = Conv<group = 2>(x, w)", (6, 2, 1, 1), 6),
    "Conv with a bias": ("c = Conv(x, w, bias)", (6, 4, 1, 1), 6),
    "ConvTranspose": ("c = ConvTranspose(x, w)", (4, 6, 2, 2), 6),
    "Gemm": ("c = Gemm(v, w)", (4, 6), 6),
    "Gemm, transposed": ("c = Gemm<transB = 1>(v, w, bias)", (6, 4), 6),
    "MatMul": ("c = MatMul(v, w)", (4, 6), 6),
    "MatMul with a bias": ("m = MatMul(v, w)  c = Add(bias, m)", (4, 6), 6),
}
AFTER = {
    "": "b = BatchNormalization(c, gamma, beta, mean, var)  y = Relu(b)",
    "Identity": "i = Identity(c)  j = Identity(i)  b = BatchNormalization(j, gamma, beta, mean, var)  y = Relu(b)",
    "batch norm is the output": "y = BatchNormalization(c, gamma, beta, mean, var)",
    "shape is asked": "s = Shape(c)  b = BatchNormalization(c, gamma, beta, mean, var)  r = Reshape(b, s)  y = Relu(r)",
}


def build(
    text: str, arrays: dict[str, np.ndarray], *, kind: str = "float", x: str = "2, 4, 5, 5", rank: int = 4
) -> ModelProto:
    dims = ", ".join("ABCD"[:rank])
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}[{x}] x) => ({kind}[{dims}] y) {{ {text} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
    checker.check_model(model, full_check=True)
    return model


def parameters(channels: int, rng: np.random.Generator, kind: str = "mixed") -> dict[str, np.ndarray]:
    made = norm(kind, channels, rng)
    arrays = {
        "gamma": made.gamma,
        "beta": made.beta,
        "mean": made.mean,
        "var": made.var,
        "bias": rng.standard_normal(channels),
    }
    return {name: values.astype(np.float32) for name, values in arrays.items()}


def randomly(model: ModelProto, bits: int, rng: np.random.Generator, **choice: Any) -> list[QuantizedLayer]:
    """Random codes, and a batch norm that was corrected."""
    layers = []
    for layer in match(model).layers:
        made = layer.batch_norm
        new = (
            None
            if made is None
            else dataclasses.replace(made, mean=made.mean + rng.standard_normal(layer.channels))
        )
        weight = random_weight(layer, bits, rng, **({"signed": False, "per_channel": True} | choice))
        layers.append(QuantizedLayer(layer.name, weight, batch_norm=new))
    return layers


def both(
    model: ModelProto, layers: list[QuantizedLayer], form: StorageFormat = YES
) -> tuple[Rewritten, Rewritten]:
    report = match(model)
    kept = rewrite(model, report, layers, form=dataclasses.replace(form, fold_batch_norm="no"))
    folded = rewrite(model, report, layers, form=form)
    checker.check_model(folded.proto, full_check=True)
    return kept, folded


def run(model: ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, feeds)


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * max(1, np.abs(expected).max()))


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@settings(max_examples=80)
@given(
    st.sampled_from(sorted(NODES)),
    st.sampled_from(sorted(AFTER)),
    st.integers(2, 8),
    gammas,
    st.sampled_from(FORMS),
    st.data(),
)
def test_the_function_stays_the_same(node, after, bits, kind, form, data):
    rng = np.random.default_rng(data.draw(seeds))
    text, shape, channels = NODES[node]
    matrix = "v" in text.split("(")[1]
    arrays = parameters(channels, rng, kind) | {"w": rng.standard_normal(shape).astype(np.float32)}
    text = (text + "  " + AFTER[after]).replace("(v,", "(x,")
    arrays = {
        name: values
        for name, values in arrays.items()
        if name in text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    model = build(text, arrays, x="3, 4" if matrix else "2, 4, 5, 5", rank=2 if matrix else 4)
    choice = {"signed": data.draw(st.booleans()), "per_channel": data.draw(st.booleans())}
    kept, folded = both(model, randomly(model, bits, rng, **choice), form)
    assert operators(kept.proto).count("BatchNormalization") == 1
    assert "BatchNormalization" not in operators(folded.proto)
    x = rng.standard_normal((3, 4) if matrix else (2, 4, 5, 5)).astype(np.float32)
    (expected,) = ReferenceEvaluator(kept.proto).run(None, {"x": x})
    assert_close(ReferenceEvaluator(folded.proto).run(None, {"x": x})[0], expected)
    assert_close(run(folded.proto, x=x)[0], expected)


def test_nothing_is_left_over():
    rng = np.random.default_rng(0)
    text = "[conv] c = Conv(x, w)  [id] i = Identity(c)  [bn] b = BatchNormalization(i, gamma, beta, mean, var)  y = Relu(b)"
    arrays = parameters(6, rng) | {"w": rng.standard_normal((6, 4, 1, 1)).astype(np.float32)}
    del arrays["bias"]
    model = build(text, arrays)
    model.graph.value_info.extend(
        parser.parse_graph(
            "g (float[1] x) => (float[1] y) <float[2, 6, 5, 5] c, float[2, 6, 5, 5] b> {}"
        ).value_info
    )
    _, folded = both(model, randomly(model, 4, rng))
    assert operators(folded.proto) == ["DequantizeLinear", "Conv", "Relu"]
    conv = folded.proto.graph.node[1]
    assert (conv.name, list(conv.output)) == ("conv", ["b"])
    assert {tensor.name for tensor in folded.proto.graph.initializer} == {"q0", "q0s", "q0b"}
    assert [value.name for value in folded.proto.graph.value_info] == ["b"]
    assert "batch norm of 1 layer folded into scales and biases" in folded.notes
    assert folded.layers["conv"].notes == ()


def test_parameters_that_batch_norms_share():
    """Among folded ones, and with one that stays: that of a layer that is not quantized."""
    rng = np.random.default_rng(1)
    arrays = parameters(4, rng) | {
        name: rng.standard_normal((4, 4, 1, 1)).astype(np.float32) for name in ("w1", "w2", "w3")
    }
    del arrays["bias"]
    text = """[one] a = Conv(x, w1)    b = BatchNormalization(a, gamma, beta, mean, var)
              [two] c = Conv(b, w2)    d = BatchNormalization(c, gamma, beta, mean, var)
              [three] e = Conv(d, w3)  y = BatchNormalization(e, gamma, beta, mean, var)"""
    model = build(text, arrays)
    x = rng.standard_normal((2, 4, 5, 5)).astype(np.float32)
    for count, left in ((3, set()), (2, {"gamma", "beta", "mean", "var", "w3"})):
        layers = randomly(model, 4, rng)[:count]
        kept, folded = both(model, layers)
        assert_close(run(folded.proto, x=x)[0], run(kept.proto, x=x)[0])
        assert arrays.keys() & {tensor.name for tensor in folded.proto.graph.initializer} == left
        sizes = {layer.name: 4 for layer in layers}
        assert folded.proto.ByteSize() == predicted_size(model, match(model), sizes, YES)


@pytest.mark.parametrize(
    ("text", "shape", "x", "why"),
    [
        (
            "[one] c = ConvTranspose<group = 2>(x, w)",
            (4, 2, 2, 2),
            "2, 4, 5, 5",
            "the groups of a ConvTranspose share one scale",
        ),
        ("s = Squeeze(x)  [one] c = MatMul(s, w)", (4, 4), "N, 4", "its input is not known to be a matrix"),
    ],
)
def test_a_batch_norm_that_stays_says_why(text, shape, x, why):
    rng = np.random.default_rng(2)
    arrays = parameters(4, rng) | {"w": rng.standard_normal(shape).astype(np.float32)}
    del arrays["bias"]
    model = build(
        f"{text} y = BatchNormalization(c, gamma, beta, mean, var)", arrays, x=x, rank=x.count(",") + 1
    )
    kept, folded = both(model, randomly(model, 4, rng))
    assert folded.proto == kept.proto
    assert any(note.startswith(f"its batch norm is not folded: {why}") for note in folded.layers["one"].notes)
    assert not any("folded" in note for note in (*kept.notes, *folded.notes, *kept.layers["one"].notes))


@pytest.mark.parametrize(
    ("channels", "size", "folds"),
    [([], 1, True), ([2], 0, True), ([2, 3], 1e-4, True), (range(6), 1e-2, False), (range(6), 0, True)],
)
def test_float16_folds_where_the_numbers_fit(channels, size, folds):
    """Scales of 1e-6 have three bits left: too few for a layer, enough for channels that are small among
    others.
    """
    rng = np.random.default_rng(3)
    arrays = {name: values.astype(np.float16) for name, values in parameters(6, rng, "positive").items()}
    arrays["gamma"][list(channels)] *= np.float16(size)
    arrays["w"] = (rng.standard_normal((6, 4, 1, 1)) / 4).astype(np.float16)
    del arrays["bias"]
    model = build(
        "[conv] c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)", arrays, kind="float16"
    )
    (layer,) = match(model).layers
    weight = nearest(ConstantTable(model)[layer.weight], 8)
    kept, folded = both(model, [QuantizedLayer("conv", weight, batch_norm=layer.batch_norm)])
    assert ("BatchNormalization" not in operators(folded.proto)) == folds
    assert any("leave the range of float16" in note for note in folded.layers["conv"].notes) != folds
    x = rng.standard_normal((2, 4, 5, 5)).astype(np.float16)
    assert_close(run(folded.proto, x=x)[0], run(kept.proto, x=x)[0], 4e-3)


def nearest(weight: np.ndarray, bits: int) -> QuantizedWeight:
    """Rounded to a grid that covers each row."""
    low, high = (
        extreme(weight.reshape(len(weight), -1).astype(np.float32), axis=1) for extreme in (np.min, np.max)
    )
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = (high - low) / (2**bits - 1)
    zero_point = np.rint(-low / scale)
    along = (-1, *[1] * (weight.ndim - 1))
    codes = np.clip(np.rint(weight / scale.reshape(along)) + zero_point.reshape(along), 0, 2**bits - 1)
    return QuantizedWeight(codes.astype(np.uint8), scale, zero_point.astype(np.uint8), bits, False, 0)


# -----------------------------------------------------------------------------------------------------------------------
# networks


def float_weights(model: ModelProto) -> dict[str, np.ndarray]:
    """What every Conv and Gemm gets for a weight, by the output of its node."""
    weights = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    reader = ModelProto()
    reader.CopyFrom(model)
    del reader.graph.output[:]
    reader.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in weights.values()
    )
    images = np.zeros(
        [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim], np.float32
    )
    return dict(zip(weights, run(reader, input=images), strict=True))


def test_every_form_has_the_same_weights(digits_bn: Path):
    model = load(digits_bn).proto
    layers = randomly(model, 3, np.random.default_rng(4))
    first, *others = (float_weights(both(model, layers, form)[1].proto) for form in FORMS)
    assert len(first) == len(layers)
    for found in others:
        assert found.keys() == first.keys()
        assert all(np.array_equal(found[name].view(np.int32), first[name].view(np.int32)) for name in first)


@pytest.mark.parametrize("method", ["dfmpc", "paper"])
@pytest.mark.parametrize("form", [YES, StorageFormat("native", "int8", "yes")])
def test_bytes_are_predicted_exactly(digits_bn: Path, form: StorageFormat, method: str):
    """For the paper's method too, whose one grid per tensor becomes one per channel."""
    knobs = {"method": method, "rounding": "nearest", "statistics": "closed_form", **dataclasses.asdict(form)}
    result = quantize(digits_bn, recipe=Recipe(low_bits=3, high_bits=6, **knobs), validated=False)
    assert result.size == result.plan.predicted_bytes
    assert [layer.bytes for layer in result.layers] == [layer.bytes for layer in result.plan.layers]


@pytest.mark.parametrize("method", ["dfmpc", "paper"])
def test_both_methods_fold_what_they_would_have_kept(digits_bn: Path, digits_data: Path, method: str):
    kept, folded = (
        quantize(digits_bn, recipe=Recipe(low_bits=2, high_bits=6, method=method, fold_batch_norm=fold))
        for fold in ("no", "yes")
    )
    assert folded.size < kept.size
    assert "BatchNormalization" not in operators(folded.model)
    images = np.load(digits_data)["input"][:64]
    # Scales are rounded to 11 bits after batch norm or before it, and so to others.
    share = 2**-9 if METHODS[method].half else 1e-4
    assert_close(run(folded.model, input=images)[0], run(kept.model, input=images)[0], share)
    for one, other in zip(folded.layers, kept.layers, strict=True):
        assert one.measured_sqnr_db == pytest.approx(
            other.measured_sqnr_db, abs=0.01
        )  # after batch norm: the same tensor in both
    assert folded.histograms == kept.histograms


def test_shared_networks(shared_model: Path):
    model = load(shared_model).proto
    norms = sum(layer.batch_norm is not None for layer in match(model).layers)
    if norms == 0:
        assert fold_obstacles(model, match(model), YES) == {}
        return
    knobs = {"bits": 4, "rounding": "squant", "repair": "none"}
    kept, folded = (
        quantize(shared_model, recipe=Recipe(**knobs, fold_batch_norm=fold), validated=False)
        for fold in ("no", "yes")
    )
    assert (
        operators(kept.model).count("BatchNormalization")
        - operators(folded.model).count("BatchNormalization")
        == norms
    )
    assert folded.size == folded.plan.predicted_bytes < kept.size
    value = kept.model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for found, expected in zip(
        run(folded.model, **{value.name: x}), run(kept.model, **{value.name: x}), strict=True
    ):
        assert_close(found, expected, 1e-4)
