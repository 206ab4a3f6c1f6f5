"""Codes of several weights at once: the tables, the rounding against loops, and what lies in the file."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_dfmpc import Recipe, apply, plan, quantize
from onnx_dfmpc.errors import DfmpcError
from onnx_dfmpc.linalg.matrices import matrix
from onnx_dfmpc.rounding import gptq
from onnx_dfmpc.rounding.gptq import CholeskyFactor, sketch
from onnx_dfmpc.rounding.grids import GridSpec, dequantize
from onnx_dfmpc.rounding.levels import VectorLevels, levels_of
from onnx_dfmpc.rounding.rounding import quantize_alike, quantize_rows
from onnx_dfmpc.spec import QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.vectors import MOST_INTEGER_BITS, SHAPES, VECTORS
from onnx_dfmpc.storage.layouts import lay_out
from onnx_dfmpc.storage.tables import row_indices, shared_parts
from onnx_dfmpc.storage.types import WeightNames, WeightSpec
from tests.arrays import covariance, seeds

widths = st.sampled_from(list(VECTORS))
SHAPES_OF_ROWS = [(1, 8), (1, 7), (3, 4), (5, 1), (1, 1), (2, 3)]


def rows_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=shape) * np.exp(rng.standard_normal((*shape[:2], 1)))).astype(np.float32)


# Tables


@pytest.mark.parametrize("bits", list(VECTORS))
def test_a_table_has_different_rows_in_pairs_within_its_bits(bits):
    table = VECTORS[bits]
    assert (table.count, table.length) == SHAPES[bits]
    assert len(np.unique(table.rows, axis=0)) == table.count
    np.testing.assert_array_equal(table.rows[table.count // 2 :], -table.half)
    assert np.abs(table.rows).max() == (63 if bits <= MOST_INTEGER_BITS else 127)


@pytest.mark.parametrize("bits", list(VECTORS))
def test_rows_make_less_noise_than_any_scalar_grid_of_the_bits(bits):
    table, rng = VECTORS[bits], np.random.default_rng(0)
    weights = np.concatenate([rng.standard_normal(30_000), rng.laplace(size=30_000) / np.sqrt(2)])
    rng.shuffle(weights)
    values = weights.reshape(-1, 60).astype(np.float32)
    values *= table.deviation
    VectorLevels.of(table.rows.astype(np.float32)).round(values)
    noise = np.square(values / table.deviation - weights.reshape(-1, 60)).mean()
    levels = {1.58: 3, 2: 4, 2.58: 6}.get(bits, 2**bits)
    scalar = []
    for step in np.linspace(0.1, 2, 60):
        codes = np.clip(np.rint(weights / step - levels % 2 / 2), -(levels // 2), (levels - 1) // 2)
        scalar.append(np.square((codes + levels % 2 / 2 - (levels % 2) / 2) * step - weights).mean())
    assert noise < 0.85 * min(scalar)


# Rounding


def loop(values: np.ndarray, rows: np.ndarray, layers: int, trials: int) -> np.ndarray:
    """`VectorLevels.round`, one block after the other."""
    (g, m), (count, k), done = values.shape, rows.shape, values.copy()
    groups, channels = g // layers, m // trials
    each = -(-groups * channels // k)
    for layer in range(layers):
        for trial in range(trials):
            places = [
                (layer * groups + o // channels, trial * channels + o % channels)
                for o in range(groups * channels)
            ]
            for b in range(each):
                own = places[b::each]
                target = np.zeros(k)
                target[: len(own)] = [values[place] for place in own]
                best = min(range(count), key=lambda row: np.square(target - rows[row]).sum())
                for place, level in zip(own, rows[best], strict=False):
                    done[place] = level
    return done


@pytest.mark.parametrize("shape", SHAPES_OF_ROWS)
@pytest.mark.parametrize(("layers", "trials"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_rounding_equals_the_loop_over_blocks(shape, layers, trials):
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.array(np.meshgrid(*[np.arange(-1.0, 2)] * 3)).reshape(3, -1).T)[:9]
    values = rng.standard_normal((shape[0] * layers, shape[1] * trials))
    expected = loop(values, rows, layers, trials)
    VectorLevels.of(rows, layers, trials).round(values)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("shape", SHAPES_OF_ROWS)
def test_channels_of_a_row_of_the_table_share_their_score(shape):
    rows, rng = np.zeros((2, 3)), np.random.default_rng(0)
    score = rng.random((2, *shape))
    shared = VectorLevels.of(rows).shared(score)
    flat, found = score.reshape(2, -1), shared.reshape(2, -1)
    each = -(-flat.shape[1] // 3)
    for b in range(each):
        own = np.arange(b, flat.shape[1], each)
        np.testing.assert_allclose(found[:, own], np.repeat(flat[:, own].mean(axis=1)[:, None], len(own), 1))


@settings(max_examples=15)
@given(st.sampled_from(SHAPES_OF_ROWS), st.integers(1, 12), seeds, widths)
def test_feedback_equals_the_loop_that_solves_each_step(shape, n, seed, bits):
    """Each input in turn: the nearest rows, and the error of each channel moved to the inputs after it."""
    rows, rng = rows_of((*shape, n), seed).astype(np.float64), np.random.default_rng(seed)
    second, table = covariance(shape[0], n, rng), VECTORS[bits].rows.astype(np.float64)
    scale = rng.uniform(0.02, 0.06, shape)
    grid = GridSpec("vector", bits)
    columns = rows.transpose(0, 2, 1)
    found, _ = gptq.feedback(columns, CholeskyFactor.of(second), scale, np.zeros(shape), levels_of(grid))
    damped = matrix(second).damped(gptq.DAMPING).dense()
    w = rows.copy()
    for j in range(n):
        levels = w[:, :, j] / scale
        near = np.sort(np.square(_blocks(levels, table.shape[1])[:, None] - table).sum(axis=2), axis=1)
        if (near[:, 1] - near[:, 0] < 1e-3).any():
            return  # float32 may decide otherwise between two that are as near
        VectorLevels.of(table).round(levels)
        np.testing.assert_array_equal(found[:, j], levels)
        for a in range(shape[0]):
            after = np.linalg.inv(damped[a, j:, j:])
            error = w[a, :, j] - levels[a] * scale[a]
            w[a, :, j:] -= np.outer(error / after[0, 0], after[0])


def _blocks(values: np.ndarray, k: int) -> np.ndarray:
    flat = values.ravel()
    each = -(-flat.size // k)
    return np.pad(flat, (0, k * each - flat.size)).reshape(k, each).T


@given(st.sampled_from(SHAPES_OF_ROWS), seeds, widths)
@settings(max_examples=15)
def test_codes_are_rows_of_the_table_with_the_scale_that_fits_them(shape, seed, bits):
    rows, rng = rows_of((*shape, 10), seed), np.random.default_rng(seed)
    second = covariance(shape[0], 10, rng)
    codes = quantize_rows(rows, GridSpec("vector", bits), "gptq", covariance=second)
    assert (codes.zero_point == 0).all()
    weight = stored(codes.codes.reshape(-1, 10), bits)
    row_indices(weight, VECTORS[bits], "layer")  # every one is there


def test_vectors_make_less_noise_at_the_outputs_than_scalars():
    rng = np.random.default_rng(0)
    rows, second = rows_of((1, 60, 72), 0), covariance(1, 72, rng)
    for bits in VECTORS:
        noise = {}
        for kind in ("vector", "asymmetric"):
            codes = quantize_rows(rows, GridSpec(kind, bits), "gptq", covariance=second)
            e = dequantize(codes).astype(np.float64) - rows
            noise[kind] = np.einsum("grn,gnm,grm->", e, second, e)
        assert noise["vector"] < noise["asymmetric"], bits


@pytest.mark.parametrize("bits", list(VECTORS))
def test_a_sketch_is_nearly_as_good_as_the_search_and_no_better(bits):
    rows, second = rows_of((2, 32, 45), 0), covariance(2, 45, np.random.default_rng(0))
    grid = GridSpec("vector", bits)
    quick, full = sketch(rows, [grid], second)[0], quantize_rows(rows, grid, "gptq", covariance=second)
    own = np.einsum("grn,gnm,grm->gr", rows, second, rows)
    rough, error = (
        (np.einsum("grn,gnm,grm->gr", e, second, e) / own).mean()
        for e in (dequantize(one).astype(np.float64) - rows for one in (quick, full))
    )
    assert error < rough < 3 * error


def test_layers_together_get_what_each_gets_alone():
    rng, grid = np.random.default_rng(0), GridSpec("vector", 3)
    weights = [rows_of((2, 5, 9), seed) for seed in range(3)]
    covariances = [covariance(2, 9, rng) for _ in weights]
    together = quantize_alike(weights, grid, "gptq", taps=1, covariances=covariances)
    for rows, second, codes in zip(weights, covariances, together, strict=True):
        alone = quantize_rows(rows, grid, "gptq", covariance=second)
        np.testing.assert_array_equal(codes.codes, alone.codes)
        np.testing.assert_allclose(codes.scale, alone.scale, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3])
def test_how_many_channels_are_rounded_at_once_does_not_matter(monkeypatch, bits):
    rows, second = rows_of((1, 23, 12), 0), covariance(1, 12, np.random.default_rng(0))
    whole = quantize_rows(rows, GridSpec("vector", bits), "gptq", covariance=second)
    monkeypatch.setattr(gptq, "MOST_WEIGHTS", 12 * 5 * 6)
    parts = quantize_rows(rows, GridSpec("vector", bits), "gptq", covariance=second)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_allclose(whole.scale, parts.scale, rtol=1e-5)


# Storage


def stored(codes: np.ndarray, bits: float, axis: int = 0) -> QuantizedWeight:
    scale = np.linspace(0.01, 0.1, codes.shape[axis]).astype(np.float32)
    return QuantizedWeight(codes.astype(np.int8), scale, None, bits, True, axis, vector=True)


def random_weight(shape: tuple[int, ...], axis: int, bits: float) -> QuantizedWeight:
    table, rng = VECTORS[bits], np.random.default_rng(0)
    rest = shape[:axis] + shape[axis + 1 :]
    chosen = table.rows[rng.integers(0, table.count, (-(-shape[axis] // table.length), *rest))]
    codes = np.moveaxis(chosen, -1, 0).reshape(-1, *rest)[: shape[axis]]
    return stored(np.ascontiguousarray(np.moveaxis(codes, 0, axis)), bits, axis)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((16, 8, 3, 3), 0), ((10, 7), 0), ((7, 10), 1), ((5, 6, 2, 2), 1), ((3, 1, 9), 0), ((1, 1), 0)],
)
@pytest.mark.parametrize("bits", list(VECTORS))
@pytest.mark.parametrize(
    ("unpack", "data_type"),
    [("none", TensorProto.FLOAT), ("float", TensorProto.FLOAT), ("int8", TensorProto.FLOAT16)],
)
def test_a_stored_weight_is_exact(shape, axis, bits, unpack, data_type):
    weight = random_weight(shape, axis, bits)
    names = WeightNames("q0", "w", "q")
    spec = WeightSpec("layer", shape, data_type, names, "", bits, True, axis, False, vector=True)
    layout = lay_out(spec, StorageFormat("vector", unpack))
    done = layout.fill(weight)
    assert done.size == layout.size
    extra, nodes = shared_parts(layout.shared)
    graph = helper.make_graph(
        [*nodes, *done.nodes],
        "g",
        [],
        [helper.make_tensor_value_info("w", data_type, shape)],
        [*extra, *done.initializers],
    )
    opset = max(layout.opset, 13)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    checker.check_model(model, full_check=True)
    expected = weight.dequantize().astype(helper.tensor_dtype_to_np_dtype(data_type))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tolerance = 0 if data_type == TensorProto.FLOAT else 1e-3  # scales are stored in float16
    np.testing.assert_allclose(session.run(None, {})[0], expected, rtol=tolerance)
    del model.opset_import[:]  # the reference implementation has DequantizeLinear from opset 19 on
    model.opset_import.extend([helper.make_opsetid("", max(opset, 19))])
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {})[0], expected, rtol=tolerance)


def test_codes_that_are_no_rows_are_refused():
    weight = random_weight((8, 4), 0, 2)
    weight.codes[0] = 100
    with pytest.raises(DfmpcError, match="not rows of the table of 256 rows"):
        row_indices(weight, VECTORS[2], "layer")


@pytest.mark.parametrize("activations", [None, 8])
def test_a_network_with_folded_batch_norms_whose_factors_are_negative(digits_bn, activations):
    """A folded batch norm turns channels around, and rows of the table stay rows."""
    model = onnx.load(digits_bn)
    gammas = {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}
    assert gammas
    for tensor in model.graph.initializer:
        if tensor.name in gammas:
            values = numpy_helper.to_array(tensor).copy()
            values[::2] *= -1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    recipe = Recipe(bits=3, fold_batch_norm="yes", activations=activations, samples=2)
    made = quantize(model, None, recipe)
    scales = {node.input[1] for node in made.model.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in made.model.graph.initializer:
        if tensor.name in scales:
            assert (numpy_helper.to_array(tensor) > 0).all()
    assert made.plan.layers[2].grid == "vector"
    assert made.validation.sqnr_db > 8


def test_a_plan_edited_to_another_rounding_has_scalar_codes(digits_bn):
    made = plan(digits_bn, Recipe(bits=4, repair="none", samples=2))
    assert "vector" in {layer.grid for layer in made.layers}
    nearest = replace(made, layers=tuple(replace(layer, rounding="nearest") for layer in made.layers))
    done = apply(digits_bn, nearest, validated=False)
    assert {layer.grid for layer in done.plan.layers} == {"asymmetric"}


def test_other_roundings_and_storages_keep_scalar_codes(digits_bn):
    for how in ({"rounding": "nearest"}, {"storage": "table"}, {"storage": "native"}):
        made = quantize(digits_bn, None, Recipe(bits=3, repair="none", samples=2, **how), validated=False)
        assert {layer.grid for layer in made.plan.layers} == {"asymmetric"}
