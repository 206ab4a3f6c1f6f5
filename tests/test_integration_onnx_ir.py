"""onnx-ir: our pass among the stock ones, and models of onnx-ir in and out of `quantize`."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from onnx_dfmpc import Recipe, quantize
from onnx_dfmpc.errors import ModelError, ValidationFailed

ir = pytest.importorskip("onnx_ir", reason="onnx-ir is not installed: make check-onnx-ir")

from onnx_ir.passes import common  # noqa: E402

from onnx_dfmpc.integrations.onnx_ir import QuantizeWeightsPass  # noqa: E402

FAST = Recipe(bits=4, rounding="nearest", repair="none")
RELU = "agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"


def outputs(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture
def images(digits_data: Path) -> np.ndarray:
    return np.load(digits_data)["input"][:32]


def test_among_the_stock_passes_it_gives_what_quantize_gives(
    digits_bn: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = ir.load(digits_bn)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    passes = ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True),
        common.DeduplicateInitializersPass(),
        QuantizeWeightsPass(FAST),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
        common.CheckerPass(full_check=True),
    )
    result = passes(model.clone())
    assert result.modified
    ir.save(result.model, tmp_path / "small.onnx")
    alone = quantize(digits_bn, recipe=FAST, validated=False)
    np.testing.assert_array_equal(outputs(tmp_path / "small.onnx", images), outputs(alone.model, images))
    assert (tmp_path / "small.onnx").stat().st_size < digits_bn.stat().st_size / 3
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_it_is_functional_and_accounts_for_what_it_did(digits_bn: Path) -> None:
    model = ir.load(digits_bn)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = QuantizeWeightsPass(FAST)(model)
    assert result.model is not model
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert {layer.bits for layer in result.quantized.layers} == {4, 8}
    assert [value.name for value in result.model.graph.inputs] == ["input"]
    with pytest.raises(TypeError, match="type PassResult"):  # what the host does to one that is not
        type("Wrong", (QuantizeWeightsPass,), {"call": lambda self, model: model})(FAST)(model)


def test_external_tensors_are_read_and_stay_external_in_the_input(
    digits_bn: Path, images: np.ndarray, tmp_path: Path
) -> None:
    ir.save(ir.load(digits_bn), tmp_path / "float.onnx", external_data="float.data", size_threshold_bytes=0)
    model = ir.load(tmp_path / "float.onnx")
    external = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    assert external
    result = QuantizeWeightsPass(FAST)(model)
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in external)
    alone = quantize(digits_bn, recipe=FAST, validated=False).model
    np.testing.assert_array_equal(outputs(ir.to_proto(result.model), images), outputs(alone, images))


def test_a_model_goes_into_quantize_and_comes_out(digits_bn: Path, images: np.ndarray) -> None:
    result = quantize(ir.load(digits_bn), recipe=FAST)
    assert result.passed
    model = result.to_ir()
    assert isinstance(model, ir.Model)
    np.testing.assert_array_equal(outputs(ir.to_proto(model), images), outputs(result.model, images))


def test_missing_data_is_a_model_error(digits_bn: Path, tmp_path: Path) -> None:
    ir.save(ir.load(digits_bn), tmp_path / "float.onnx", external_data="float.data", size_threshold_bytes=0)
    model = ir.load(tmp_path / "float.onnx")
    (tmp_path / "float.data").unlink()
    with pytest.raises(ModelError, match="onnx-ir cannot serialize it") as caught:
        quantize(model, recipe=FAST)
    assert "data file" in caught.value.hint
    with pytest.raises(ir.passes.PreconditionError, match="onnx-ir cannot serialize it"):
        QuantizeWeightsPass(FAST)(model)


def test_nothing_to_quantize_is_a_precondition() -> None:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {RELU}')
    with pytest.raises(ir.passes.PreconditionError, match="nothing to quantize"):
        QuantizeWeightsPass(FAST)(model)


def test_a_gate_that_does_not_hold_stops_the_passes(digits_bn: Path) -> None:
    strict = QuantizeWeightsPass(Recipe(bits=4, rounding="nearest", repair="none", min_sqnr_db=90))
    with pytest.raises(ValidationFailed, match="min_sqnr_db"):
        strict(ir.load(digits_bn))
    with pytest.raises(ir.passes.PassError) as caught:
        ir.passes.Sequential(strict)(ir.load(digits_bn))
    assert isinstance(caught.value.__cause__, ValidationFailed)
