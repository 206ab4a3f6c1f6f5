"""Files for a runtime: what it can read, and the same float weights whatever it is."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.model.opset import opset_of, raise_opset
from onnx_dfmpc.spec.runtimes import RUNTIMES
from onnx_dfmpc.spec.widths import WIDTHS

MIXED = {"bits": 4, "set": {"conv1": 1.58, "conv2": 2.58, "fc": 3}, "rounding": "nearest", "repair": "none"}


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    """Float weights of the layers, computed from the codes."""
    copy = ModelProto()
    copy.CopyFrom(model)
    names = [node.input[1] for node in copy.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    del copy.graph.output[:]
    for name in names:
        copy.graph.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options)
    feeds = {one.name: np.zeros((1, 1, 8, 8), np.float32) for one in session.get_inputs()}
    return dict(enumerate(session.run(names, feeds)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def native_weights(digits_bn):
    return weights(quantize(digits_bn, None, Recipe(storage="native", **MIXED), validated=False).model)


@pytest.mark.parametrize("target", RUNTIMES)
def test_every_target_has_the_same_weights_and_what_it_reads(target, digits_bn, native_weights):
    runtime = RUNTIMES[target]
    result = quantize(digits_bn, None, Recipe(target=target, **MIXED), validated=False)
    assert opset_of(result.model) <= runtime.opset
    assert result.model.ir_version <= runtime.ir
    narrow = {tensor.data_type for tensor in result.model.graph.initializer} & {21, 22, 25, 26}
    assert runtime.native or not narrow
    assert runtime.unpack == result.plan.form.unpack
    found = weights(result.model)
    assert found.keys() == native_weights.keys()
    for key, expected in native_weights.items():
        np.testing.assert_array_equal(found[key], expected)


@pytest.mark.parametrize("storage", ["table", "native"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_activations_fuse_at_every_width(bits, storage, digits_bn, tmp_path):
    """All layers become integer kernels, whatever the codes are packed as."""
    recipe = Recipe(bits=bits, first_last_bits=bits, activations=8, storage=storage, rounding="nearest")
    model = quantize(digits_bn, None, recipe, validated=False).model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in left
    assert not {"Conv", "FusedConv", "Gather", "Cast", "Sub"} & set(left)


def relu(opset: int, ir: int = 10, extra: str = "") -> ModelProto:
    model = parser.parse_model(
        f'<ir_version: {ir}, opset_import: ["" : {opset}]> '
        f"g (float[1, 3, 4, 4] x) => (float[A, B, C, D] y) {{ c = Conv(x, w)  y = {extra or 'Relu'}(c) }}"
    )
    values = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


def test_a_later_opset_is_renumbered_where_nothing_changed():
    lowered = raise_opset(relu(20), 13, RUNTIMES["ort-1.16"])
    assert (opset_of(lowered), lowered.ir_version) == (19, 9)
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    for found, expected in zip(
        ReferenceEvaluator(lowered).run(None, x), ReferenceEvaluator(relu(20)).run(None, x), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_what_a_runtime_cannot_read_is_refused_before_anything_is_computed():
    model = relu(20, extra="Gelu")  # which opset 19 does not have
    with pytest.raises(
        UnsupportedError, match=r"opset 20 is above 19.*ONNX Runtime 1.16 reads, and Gelu"
    ) as caught:
        quantize(model, None, Recipe(bits=4, target="ort-1.16"), validated=False)
    assert "opset 19" in caught.value.hint
