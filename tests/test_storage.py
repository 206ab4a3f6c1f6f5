"""Every storage form on every kind of layer, against onnx.reference and ONNX Runtime."""

import dataclasses
import itertools
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, checker, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import DfmpcError, RecipeError, UnsupportedError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.rewrite.apply import Rewritten, rewrite
from onnx_dfmpc.rewrite.sizes import predicted_size, stored_sizes
from onnx_dfmpc.spec import QuantizedLayer, QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.widths import LEVELS, WIDTHS, WIDTHS_IN_WORDS, code_limits
from onnx_dfmpc.storage.layouts import STORAGES, StoredCodes, lay_out, unpack_codes
from onnx_dfmpc.storage.types import (
    LayoutBuilder,
    WeightLayout,
    WeightNames,
    WeightSpec,
    storage_type,
    to_type,
)

BITS = WIDTHS

FORMS = [StorageFormat(*words) for words in itertools.product(("table", "native"), ("none", "int8", "float"))]

# name -> (node, weight shape, output-channel axis, input shape)
LAYERS = {
    "Conv2d": ("{y} = Conv<pads = [1, 1, 1, 1]>(x, {w})", (8, 6, 3, 3), 0, (2, 6, 5, 5)),
    "depthwise": ("{y} = Conv<group = 16>(x, {w})", (16, 1, 3, 3), 0, (2, 16, 5, 5)),
    "grouped": ("{y} = Conv<group = 2>(x, {w})", (6, 2, 3, 3), 0, (2, 4, 5, 5)),
    "Conv1d, odd": ("{y} = Conv(x, {w})", (5, 9, 3), 0, (2, 9, 7)),
    "ConvTranspose": ("{y} = ConvTranspose(x, {w})", (4, 6, 2, 2), 1, (2, 4, 5, 5)),
    "grouped ConvTranspose": ("{y} = ConvTranspose<group = 2>(x, {w})", (4, 4, 2, 2), 1, (2, 4, 5, 5)),
    "Gemm transB=0": ("{y} = Gemm(x, {w})", (9, 16), 1, (2, 9)),
    "Gemm transB=0, 10 outputs": ("{y} = Gemm(x, {w})", (12, 10), 1, (2, 12)),
    "Gemm transB=1": ("{y} = Gemm<transB = 1>(x, {w})", (10, 12), 0, (2, 12)),
    "MatMul": ("{y} = MatMul(x, {w})", (9, 16), 1, (2, 9)),
    "MatMul, 10 outputs": ("{y} = MatMul(x, {w})", (12, 10), 1, (2, 3, 12)),
}

# signed, zero point, one grid per channel
GRIDS = {
    "asymmetric": (False, True, True),
    "symmetric": (True, False, True),
    "asymmetric, per tensor": (False, True, False),
    "ternary": (True, False, False),
    "signed with zero points": (True, True, True),
    "unsigned without": (False, False, True),
}

# Small layers do not gain from a table: this makes it worth its nodes.
LARGE = (32, 32, 3, 3)

PACKED = {
    1.58: "3 levels, 5 in a byte",
    2: "4 levels, 4 in a byte",
    2.58: "6 levels, 3 in a byte",
    3: "8 levels, 8 in 3 bytes",
    4: "16 levels, 2 in a byte",
    5: "32 levels, 8 in 5 bytes",
    6: "64 levels, 4 in 3 bytes",
}


def label(form: object) -> str:
    return f"{form.storage}-{form.unpack}-{form.fold_batch_norm}" if isinstance(form, StorageFormat) else ""


def session(model: ModelProto, *, disable_quant_qdq: bool, **options: str) -> onnxruntime.InferenceSession:
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 4
    chosen.intra_op_num_threads = 1
    chosen.add_session_config_entry("session.disable_quant_qdq", str(int(disable_quant_qdq)))
    for key, value in options.items():
        setattr(chosen, key, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])


def run(model: ModelProto, x: np.ndarray, *, disable_quant_qdq: bool) -> dict[str, np.ndarray]:
    found = session(model, disable_quant_qdq=disable_quant_qdq)
    return dict(zip([output.name for output in found.get_outputs()], found.run(None, {"x": x}), strict=True))


def random_weight(rng, shape, axis, *, bits, signed, zero_point) -> QuantizedWeight:
    low, high = code_limits(bits, signed=signed)
    channels = () if axis is None else (shape[axis],)
    return QuantizedWeight(
        codes=rng.integers(low, high + 1, shape).astype(np.int16),
        scale=np.asarray(rng.uniform(0.01, 0.1, channels), np.float32),
        zero_point=np.asarray(rng.integers(low, high + 1, channels), np.int16) if zero_point else None,
        bits=bits,
        signed=signed,
        axis=axis,
    )


def random_weights(shape, axis, grids=GRIDS) -> dict[str, QuantizedWeight]:
    """One weight for all bits on all grids, by names that a tensor can have."""
    rng = np.random.default_rng(0)
    weights = {}
    for number, (signed, zero_point, per_channel) in enumerate(grids.values()):
        for bits in BITS:
            along = axis if per_channel else None
            weights[f"w{number}_{LEVELS[bits]}"] = random_weight(
                rng, shape, along, bits=bits, signed=signed, zero_point=zero_point
            )
    return weights


def float_model(text: str, weights: dict[str, np.ndarray], x_shape, kind: str = "float") -> ModelProto:
    """The same layer side by side, once for every weight; its name is the weight's, with an n in front."""
    dims = ", ".join(map(str, x_shape))
    rank = ", ".join(f"D{i}" for i in range(len(x_shape)))
    outputs = ", ".join(f"{kind}[{rank}] y{name}" for name in weights)
    nodes = "\n".join(f"[n{name}] " + text.format(y=f"y{name}", w=name) for name in weights)
    model = parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : 13]> g ({kind}[{dims}] x) => ({outputs}) {{ {nodes} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return model


def rewritten_as(form: StorageFormat, model: ModelProto, weights: dict[str, QuantizedWeight]) -> Rewritten:
    rewritten = rewrite(
        model,
        match(model),
        [QuantizedLayer(f"n{name}", weight) for name, weight in weights.items()],
        form=form,
    )
    checker.check_model(rewritten.proto, full_check=True)
    return rewritten


def weights_only(model: ModelProto) -> ModelProto:
    """The nodes that make float weights, and the weights as outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    readers = [node for node in copy.graph.node if node.name]
    for node in readers:
        copy.graph.node.remove(node)
    set_outputs(copy, [node.input[1] for node in readers], model.graph.input[0].type.tensor_type.elem_type)
    return copy


def set_outputs(model: ModelProto, names: list[str], data_type: int) -> None:
    """Outputs of whatever shape; a model of opset 13 gets one that onnx.reference knows, and of which nothing
    used here differs.
    """
    del model.graph.output[:]
    for name in names:
        model.graph.output.add(name=name).type.tensor_type.elem_type = data_type
    model.opset_import[0].version = max(opset_of(model), 19)
    model.ir_version = max(model.ir_version, 9)


def reference(model: ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    evaluator = ReferenceEvaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, {"x": x}), strict=True))


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("form", FORMS, ids=label)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_form_on_every_layer(layer, form):
    text, shape, axis, x_shape = LAYERS[layer]
    weights = random_weights(shape, axis)
    floats = {name: weight.dequantize() for name, weight in weights.items()}
    model = float_model(text, floats, x_shape)
    assert {found.axis for found in match(model).layers} == {axis}
    rewritten = rewritten_as(form, model, weights).proto
    x = np.random.default_rng(1).standard_normal(x_shape).astype(np.float32)

    assert_same_bits(run(weights_only(rewritten), x, disable_quant_qdq=False), floats)
    assert_same_bits(reference(weights_only(rewritten), x), floats)

    expected = run(model, x, disable_quant_qdq=True)
    assert_same_bits(run(rewritten, x, disable_quant_qdq=True), expected)
    fused = form.unpack != "float" and ("MatMul" in text or "Gemm(" in text)
    error = (
        0.03 if fused else 1e-5
    )  # ONNX Runtime quantizes the activations of some to 8 bits, per block, by default
    for name, values in run(rewritten, x, disable_quant_qdq=False).items():
        np.testing.assert_allclose(
            values, expected[name], rtol=1e-5, atol=error * np.abs(expected[name]).max(), err_msg=name
        )


@pytest.mark.parametrize("form", FORMS, ids=label)
@pytest.mark.parametrize("layer", ["Conv2d", "Gemm transB=1", "MatMul, 10 outputs"])
def test_float16(layer, form):
    text, shape, axis, x_shape = LAYERS[layer]
    weights = random_weights(shape, axis)
    model = float_model(
        text,
        {name: weight.dequantize().astype(np.float16) for name, weight in weights.items()},
        x_shape,
        "float16",
    )
    rewritten = rewritten_as(form, model, weights).proto
    x = np.random.default_rng(1).standard_normal(x_shape).astype(np.float16)
    assert {tensor.data_type for tensor in rewritten.graph.initializer if tensor.name.endswith("s")} == {
        TensorProto.FLOAT16
    }
    native = run(
        weights_only(rewritten_as(StorageFormat(), model, weights).proto), x, disable_quant_qdq=False
    )
    found = run(weights_only(rewritten), x, disable_quant_qdq=False)
    assert_same_bits(found, native)
    for name, weight in weights.items():
        assert found[name].dtype == np.float16
        np.testing.assert_allclose(found[name], weight.dequantize(), rtol=2e-3)
    assert_same_bits(reference(weights_only(rewritten), x), native)
    expected = run(rewritten, x, disable_quant_qdq=True)
    fused = form.unpack != "float" and "MatMul" in text
    for name, values in run(rewritten, x, disable_quant_qdq=False).items():
        np.testing.assert_allclose(
            values, expected[name], rtol=0.01, atol=(0.03 if fused else 0.01) * np.abs(expected[name]).max()
        )


def large(
    bits: int, *, signed: bool = False, zero_point: bool = True, shape=LARGE
) -> tuple[ModelProto, QuantizedWeight]:
    """A layer that is large enough for a table."""
    weight = random_weight(
        np.random.default_rng(LEVELS[bits]), shape, 0, bits=bits, signed=signed, zero_point=zero_point
    )
    return float_model("{y} = Conv(x, {w})", {"w": weight.dequantize()}, (1, shape[1], 8, 8)), weight


@pytest.mark.parametrize("form", FORMS, ids=label)
@pytest.mark.parametrize(("signed", "zero_point"), list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("bits", BITS)
def test_every_form_on_a_large_layer(bits, signed, zero_point, form):
    model, weight = large(bits, signed=signed, zero_point=zero_point)
    x = np.random.default_rng(1).standard_normal((1, 32, 8, 8)).astype(np.float32)
    rewritten = rewritten_as(form, model, {"w": weight})
    floats = {"w": weight.dequantize()}
    assert_same_bits(run(weights_only(rewritten.proto), x, disable_quant_qdq=False), floats)
    assert_same_bits(reference(weights_only(rewritten.proto), x), floats)
    assert_same_bits(run(rewritten.proto, x, disable_quant_qdq=True), run(model, x, disable_quant_qdq=True))
    if form.storage == "table" and bits in PACKED:
        assert rewritten.layers["nw"].storage == PACKED[bits]


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [((4, 4, 1, 1), ["INT8"] * 7), ((31, 37, 7, 1), [*PACKED.values()])],
    ids=["nodes cost more than they save", "a rest is sliced off"],
)
def test_packed_only_where_that_is_smaller(shape, kinds):
    found = []
    for bits in PACKED:
        model, weight = large(bits, shape=shape)
        found.append(rewritten_as(StorageFormat(), model, {"w": weight}).layers["nw"].storage)
    assert found == kinds


@pytest.mark.parametrize("bits", PACKED)
def test_no_slice_where_codes_fill_their_bytes(bits):
    for shape, sliced in (((30, 32, 3, 3), False), ((31, 37, 7, 1), True)):
        model, weight = large(bits, shape=shape)
        proto = rewritten_as(StorageFormat(), model, {"w": weight}).proto
        assert any(node.op_type == "Slice" for node in proto.graph.node) == sliced


@pytest.mark.parametrize("bits", BITS)
def test_a_new_bias_beside_packed_codes(bits):
    """All new tensors of a layer have names of their own."""
    model, weight = large(bits)
    report = match(model)
    bias = np.arange(LARGE[0], dtype=np.float32)
    layer = QuantizedLayer(report.layers[0].name, weight, bias)
    proto = rewrite(model, report, [layer], form=StorageFormat("table")).proto
    checker.check_model(proto, full_check=True)
    names = [tensor.name for tensor in proto.graph.initializer] + [
        name for node in proto.graph.node for name in node.output
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", FORMS, ids=label)
def test_onnx_runtime_unpacks_when_it_loads(form, bits, tmp_path):
    model, weight = large(bits)
    path = tmp_path / "optimized.onnx"
    session(
        rewritten_as(form, model, {"w": weight}).proto,
        disable_quant_qdq=False,
        optimized_model_filepath=str(path),
    )
    left = {node.op_type for node in onnx.load(path).graph.node} - {"ReorderInput", "ReorderOutput"}
    assert left == ({"Conv"} if form.unpack == "float" else {"DequantizeLinear", "Conv"})


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("storage", ["table", "native"])
def test_int8_needs_no_zero_point(storage, bits):
    """Fused integer convolutions want INT8 weights with zero point 0; 8 bits with a zero point do not fit."""
    model, weight = large(bits)
    proto = rewritten_as(StorageFormat(storage, "int8"), model, {"w": weight}).proto
    (node,) = (node for node in proto.graph.node if node.op_type == "DequantizeLinear")
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert len(node.input) == (3 if bits == 8 else 2)
    assert types[node.input[0]] == (TensorProto.UINT8 if bits == 8 else TensorProto.INT8)


@pytest.mark.parametrize(
    ("form", "opsets"),
    [
        (StorageFormat("native"), (13, 25, 13, 13, 21, 13, 13, 13, 13)),
        (StorageFormat("native", "float"), (11, 25, 11, 11, 21, 11, 11, 11, 11)),
        (StorageFormat("table"), (13,) * 9),
        (StorageFormat("table", "int8"), (13,) * 9),
        (StorageFormat("table", "float"), (11,) * 9),
    ],
    ids=label,
)
def test_opset_is_the_lowest_that_will_do(form, opsets):
    found = []
    for bits in BITS:
        model, weight = large(bits)
        model.opset_import[0].version = 11
        found.append(opset_of(rewritten_as(form, model, {"w": weight}).proto))
    assert tuple(found) == opsets


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"unpack": "int4"}, ["unpack = 'int4'", "none, int8, float"]),
        ({"fold_batch_norm": "auto"}, ["fold_batch_norm = 'auto'", "no, yes"]),
        ({"storage": None}, ["storage = None", "name of a storage format"]),
    ],
)
def test_forms_that_make_no_sense(words, expected):
    with pytest.raises(RecipeError) as caught:
        StorageFormat(**words)
    assert all(word in str(caught.value) for word in expected)


def flat_int8(spec, unpack):
    """A storage format from outside: always INT8, in one dimension, and brought into shape last of all."""
    builder, kind = LayoutBuilder(spec), storage_type(8, signed=True)

    def codes(weight):
        zeros = weight.zero_point.reshape(-1, *[1] * (weight.codes.ndim - 1)) if spec.zero_point else 0
        return to_type(weight.codes - zeros, kind, spec.layer)

    packed = builder.integers("", kind, (math.prod(spec.shape),), codes)
    shaped = builder.node("Reshape", packed, builder.constant("r", TensorProto.INT64, spec.shape))
    unpack_codes(builder, StoredCodes(shaped, kind, zero_point=False), unpack)
    yield builder.finish("INT8, flat")


@pytest.mark.parametrize("unpack", ["none", "int8", "float"])
def test_a_format_from_outside(unpack, monkeypatch):
    form = StorageFormat("flat", unpack)
    model, quantized = large(5)
    with pytest.raises(RecipeError, match="'flat': expected one of vector, table, native"):
        rewritten_as(form, model, {"w": quantized})
    monkeypatch.setitem(STORAGES, "flat", flat_int8)
    rewritten = rewritten_as(form, model, {"w": quantized})
    assert rewritten.layers["nw"].storage == "INT8, flat"
    report = match(model)
    assert stored_sizes(model, report, [5], form) == rewritten.layers["nw"].bytes
    assert predicted_size(model, report, {"nw": 5}, form, corrected=()) == rewritten.proto.ByteSize()
    x = np.random.default_rng(1).standard_normal((1, 32, 8, 8)).astype(np.float32)
    floats = {"w": quantized.dequantize()}
    assert_same_bits(run(weights_only(rewritten.proto), x, disable_quant_qdq=False), floats)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("features", [3, 6, 8, 10])
def test_known_onnxruntime_bug(op, signed, features):
    """2-bit MatMul is stored in 4 bits because of this; the day it fails, the detour can go."""
    rng = np.random.default_rng(0)
    weight = random_weight(rng, (16, features), None, bits=2, signed=signed, zero_point=False)
    model = parser.parse_model(
        f"""<ir_version: 13, opset_import: ["" : 25]>
        g (float[2, 16] x) => (float[2, {features}] y) {{ w = DequantizeLinear(c, s)  y = {op}(x, w) }}"""
    )
    codes = to_type(weight.codes, storage_type(2, signed), "c")
    model.graph.initializer.append(numpy_helper.from_array(codes, "c"))
    model.graph.initializer.append(numpy_helper.from_array(weight.scale, "s"))
    x = rng.standard_normal((2, 16)).astype(np.float32)
    expected = x @ weight.dequantize()
    error = {
        flag: np.abs(run(model, x, disable_quant_qdq=flag)["y"] - expected).max() / np.abs(expected).max()
        for flag in (False, True)
    }
    assert error[True] < 1e-5
    assert (error[False] > 0.2) == (features % 4 != 0)


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_detour_around_2_bit_matmul(form):
    """Only where DequantizeLinear reads 2-bit codes; the report says so."""
    text, shape, axis, x_shape = LAYERS["MatMul, 10 outputs"]
    quantized = random_weight(np.random.default_rng(0), shape, axis, bits=2, signed=False, zero_point=True)
    stored = rewritten_as(
        form, float_model(text, {"w": quantized.dequantize()}, x_shape), {"w": quantized}
    ).layers["nw"]
    detour = form.storage == "native" and form.unpack == "none"
    assert bool(stored.notes) == detour
    assert stored.storage == (
        "INT4" if detour else "UINT2" if form == StorageFormat("native", "float") else "INT8"
    )


@given(st.integers(2, 8), st.booleans(), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_packed_round_trip_and_size(bits, signed, values):
    kind = storage_type(bits, signed)
    codes = np.array(values, np.int64) % (kind.high - kind.low + 1) + kind.low
    tensor = numpy_helper.from_array(to_type(codes, kind, "layer"), "w")
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int64), codes)
    assert len(tensor.raw_data) == -(-len(values) * kind.width // 8)
    assert TensorProto.DataType.Name(tensor.data_type) == kind.name
    assert kind.data_type == tensor.data_type


@given(st.integers(2, 8), st.booleans(), st.integers(-1000, 1000))
def test_codes_never_wrap(bits, signed, code):
    kind = storage_type(bits, signed)
    if kind.low <= code <= kind.high:
        assert to_type(np.array([code]), kind, "layer").astype(int) == code
    else:
        with pytest.raises(DfmpcError, match="do not fit"):
            to_type(np.array([code]), kind, "layer")


def test_codes_are_integers():
    with pytest.raises(DfmpcError, match="must be integers"):
        to_type(np.array([np.nan, 1.0]), storage_type(4, True), "layer")


@pytest.mark.parametrize("bits", [0, 1, 1.6, 2.5, 9, 16])
def test_storage_type_knows_its_limits(bits):
    with pytest.raises(DfmpcError, match=WIDTHS_IN_WORDS.replace(".", r"\.")):
        storage_type(bits, True)


def weight(codes, scale=1.0, zero_point=None, bits=3, signed=True) -> QuantizedWeight:
    zero_point = None if zero_point is None else np.asarray(zero_point)
    return QuantizedWeight(np.asarray(codes), np.asarray(scale, np.float32), zero_point, bits, signed, None)


def design(
    quantized: QuantizedWeight, data_type: int = TensorProto.FLOAT, form: StorageFormat = FORMS[0]
) -> WeightLayout:
    zero_point = quantized.zero_point is not None and bool(np.any(quantized.zero_point))
    spec = WeightSpec(
        layer="layer",
        shape=quantized.codes.shape,
        data_type=data_type,
        names=WeightNames("q0", "w", "q"),
        two_bits_fail="",
        bits=quantized.bits,
        signed=quantized.signed,
        axis=quantized.axis,
        zero_point=zero_point,
    )
    return lay_out(spec, form)


def store(quantized: QuantizedWeight, data_type: int = TensorProto.FLOAT, form: StorageFormat = FORMS[0]):
    return design(quantized, data_type, form).fill(quantized)


def test_codes_beyond_the_nominal_bits_are_refused():
    with pytest.raises(DfmpcError, match="outside of 3 signed bits"):
        store(weight([4]))  # would fit INT4
    with pytest.raises(DfmpcError, match="zero point"):
        store(weight([1], zero_point=8, signed=False))


NATIVE = StorageFormat("native")


def dequantize(quantized: QuantizedWeight) -> NodeProto:
    return store(quantized, form=NATIVE).nodes[-1]


def test_zero_points_that_need_no_bytes_are_left_out():
    codes = [1, 2] * 64
    assert len(dequantize(weight(codes, zero_point=0, bits=4)).input) == 2
    assert len(dequantize(weight(codes, zero_point=1, bits=4)).input) == 3
    # Subtracted before they are stored in 4 bits.
    assert len(dequantize(weight(codes, zero_point=1, bits=3)).input) == 2
    stored = store(weight(codes, zero_point=2, bits=3), form=NATIVE).initializers[0]
    assert numpy_helper.to_array(stored).tolist() == [-1, 0] * 64


def test_scales_that_do_not_fit_float16():
    for form in FORMS:
        for scale in (1e-9, 1e6):
            with pytest.raises(UnsupportedError, match="does not fit float16") as caught:
                store(weight([1], scale), TensorProto.FLOAT16, form)
            assert "float32" in caught.value.hint
        with pytest.raises(UnsupportedError, match="INT32"):
            store(weight([1]), TensorProto.INT32, form)


def test_bfloat16_scale():
    scale = store(weight([1], 0.5), TensorProto.BFLOAT16).initializers[1]
    assert numpy_helper.to_array(scale) == ml_dtypes.bfloat16(0.5)


@given(
    st.sampled_from(FORMS),
    st.sampled_from(WIDTHS),
    st.sampled_from(list(GRIDS)),
    st.lists(st.integers(1, 20), min_size=2, max_size=4),
    st.sampled_from([TensorProto.FLOAT, TensorProto.FLOAT16]),
)
def test_size_is_known_before_the_numbers(form, bits, grid, shape, data_type):
    signed, zero_point, per_channel = GRIDS[grid]
    rng = np.random.default_rng(LEVELS[bits])
    axis = len(shape) % 2 if per_channel else None
    quantized = random_weight(rng, shape, axis, bits=bits, signed=signed, zero_point=zero_point)
    layout = design(quantized, data_type, form)
    assert layout.size == layout.fill(quantized).size


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_size_is_what_the_file_grows_by(form):
    stored = store(weight(np.ones((16, 16, 3, 3), np.int8), zero_point=1), form=form)
    with_it, without = ModelProto(), ModelProto()
    for model in (with_it, without):
        model.graph.name = "x" * 500  # so that the length of the graph takes as many bytes in both
        model.graph.doc_string = "x" * 20000
    with_it.graph.initializer.extend(stored.initializers)
    with_it.graph.node.extend(stored.nodes)
    assert stored.size == with_it.ByteSize() - without.ByteSize()


@pytest.fixture(scope="module")
def default_digits(digits_bn, digits_data) -> dict[str, np.ndarray]:
    """Scores of the shipped network, stored as by default."""
    return digits_scores(StorageFormat(), digits_bn, digits_data)


def digits_scores(form: StorageFormat, path: Path, data: Path) -> dict[str, np.ndarray]:
    recipe = Recipe(
        low_bits=2,
        high_bits=5,
        first_last_bits=7,
        set={".*1": 3, ".*2": 1.58, "fc": 2.58},
        rounding="nearest",
        **dataclasses.asdict(form),
    )
    model = quantize(path, None, recipe, validated=False).model
    with np.load(data) as arrays:
        found = session(model, disable_quant_qdq=True).run(
            None, {model.graph.input[0].name: arrays["input"][:64]}
        )
    return dict(zip([output.name for output in model.graph.output], found, strict=True))


@pytest.mark.parametrize(
    "form",
    [StorageFormat("native"), StorageFormat("table", "int8"), StorageFormat("table", "float")],
    ids=label,
)
def test_digits_are_the_same_in_every_form(form, default_digits, digits_bn, digits_data):
    assert_same_bits(digits_scores(form, digits_bn, digits_data), default_digits)
