"""Models whose weights should not all be in memory: mapped from their file, and run piece by piece."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from benchmarks import odd_models
from onnx_dfmpc import Recipe, inspect, quantize
from onnx_dfmpc.errors import ModelError
from onnx_dfmpc.linalg import products
from onnx_dfmpc.linalg.low_rank import LowRank, multiply
from onnx_dfmpc.linalg.matrices import Covariance, Dense, Diagonal, Kronecker, through
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.methods import respond_codes
from onnx_dfmpc.model import external, files
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import load, save
from onnx_dfmpc.model.opset import raise_opset
from onnx_dfmpc.rounding.gptq import gptq
from onnx_dfmpc.rounding.grids import GridSpec, dequantize, first_grid
from onnx_dfmpc.rounding.regularize import regularize, with_mean_uncertainty
from onnx_dfmpc.rounding.rounding import quantize_rows
from onnx_dfmpc.runtime import pieces
from onnx_dfmpc.runtime.session import Session, optimized_nodes
from tests.graphs import noise, parse

NETWORK = """g (float[N, 16, 6, 6] x) => (float[N, 16, 6, 6] y, float[N, 16] early) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu(a)
    pooled = GlobalAveragePool(b)
    early = Flatten(pooled)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    d = Relu(c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w3)
    y = Add(e, b)
}"""


def network() -> ModelProto:
    return parse(NETWORK, **{f"w{i}": noise(16, 16, 3, 3, seed=i) / 12 for i in (1, 2, 3)})


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that a network of three small layers is a large model, one layer a piece."""
    for module in (external, files, pieces):
        monkeypatch.setattr(module, "MAPPED", 1 << 10)
    monkeypatch.setattr(external, "LEAST", 1 << 10)
    monkeypatch.setattr(pieces, "PIECE", 1 << 10)


def written(folder: Path, *, as_external: bool) -> Path:
    path = folder / "float.onnx"
    onnx.save(network(), path, save_as_external_data=as_external, location="float.bin", size_threshold=0)
    return path


@pytest.mark.parametrize("as_external", [True, False])
def test_weights_stay_in_their_file(tmp_path, small_is_large, as_external):
    loaded = load(written(tmp_path, as_external=as_external))
    assert loaded.proto.ByteSize() < 2000
    assert external.full_size(loaded.proto) == pytest.approx(network().ByteSize(), abs=8)
    table, whole = ConstantTable(loaded.proto), ConstantTable(network())
    for name in ("w1", "w2", "w3"):
        assert table.is_mapped(name)
        np.testing.assert_array_equal(table[name], whole[name])


@pytest.mark.parametrize("as_external", [True, False])
def test_the_same_bytes_come_out(tmp_path, small_is_large, as_external, monkeypatch):
    recipe = Recipe(bits=4, rounding="squant", repair="none", nodes_to_exclude=["e"])
    path = written(tmp_path, as_external=as_external)
    quantize(path, tmp_path / "mapped.onnx", recipe)
    monkeypatch.undo()
    quantize(path, tmp_path / "whole.onnx", recipe)
    # "e" stays float: its weight goes from one file into the other.
    assert (tmp_path / "mapped.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_inspect_reads_no_weights(tmp_path, small_is_large, monkeypatch):
    path = written(tmp_path, as_external=True)
    monkeypatch.setattr(np, "memmap", lambda *_, **__: pytest.fail("a weight was read"))
    assert len(inspect(path).layers) == 3


def test_a_short_file_of_weights_is_refused(tmp_path, small_is_large):
    path = written(tmp_path, as_external=True)
    data = tmp_path / "float.bin"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ModelError, match="bytes"):
        load(path)


def test_weights_outside_of_the_folder_are_refused(tmp_path, small_is_large):
    (tmp_path / "inner").mkdir()
    path = written(tmp_path / "inner", as_external=True)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../float.bin"
    (tmp_path / "inner" / "float.bin").rename(tmp_path / "float.bin")
    onnx.save(model, path)
    with pytest.raises(ModelError, match="external data"):
        load(path)


def test_what_protobuf_cannot_write_gets_external_data_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "ONE_FILE", 1 << 12)
    model = parse("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", w=noise(64, 64))
    save(model, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx").stat().st_size < 1 << 12
    again = onnx.load(tmp_path / "large.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(again.graph.initializer[0]), noise(64, 64))


def test_pieces_give_what_the_whole_gives(small_is_large):
    model = network()
    feeds = [{"x": noise(2, 16, 6, 6, seed=seed)} for seed in range(3)]
    assert len(pieces.cuts(model)) == 4
    piecewise = pieces.open_model(model, "model")
    assert isinstance(piecewise, pieces.Pieces)
    session = Session(model, "model")
    for mine, whole in zip(piecewise.run_each(feeds), session.run_each(feeds), strict=True):
        for a, b in zip(mine, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_default_method_runs_piece_by_piece(tmp_path, small_is_large):
    result = quantize(written(tmp_path, as_external=True), tmp_path / "out.onnx")
    assert result.validation
    assert result.validation.sqnr_db > 10


def test_activations_of_a_large_model(tmp_path, small_is_large):
    result = quantize(written(tmp_path, as_external=True), None, Recipe(bits=6, activations=8))
    assert result.validation.sqnr_db > 20
    assert result.activations.kernels["QLinearConv"] == 3


def test_packed_weights_count_as_what_they_are_unpacked_to(digits_bn):
    found = load(digits_bn).proto
    packed = quantize(found, None, Recipe(bits=2, rounding="nearest", repair="none"), validated=False).model
    least = sum(prod(layer.shape) for layer in match(found).layers)
    assert least <= sum(pieces.weight_sizes(packed).values()) < 1.2 * sum(pieces.weight_sizes(found).values())


def test_a_small_model_with_weights_in_a_file_is_run(tmp_path, small_is_large, monkeypatch):
    """What is left of a large model may be small, and some of it still in the file of that."""
    path = tmp_path / "in.onnx"
    onnx.save(network(), path)
    proto = load(path).proto
    assert any(external.mapped_tensors(proto))
    monkeypatch.setattr(pieces, "MAPPED", 1 << 30)
    (x,) = Session(proto, "mapped").specs()
    feeds = {x.name: np.ones([n if isinstance(n, int) else 1 for n in x.shape], np.float32)}
    expected = Session(path, "file").run(feeds)
    for mine, other in zip(pieces.open_model(proto, "mapped").run(feeds), expected, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert optimized_nodes(proto)


def test_a_result_has_all_its_numbers(tmp_path, small_is_large):
    """Mapped weights that stay float: nobody else reads files outside of the working directory."""
    (first, *_) = inspect(network()).names[0]
    recipe = Recipe(bits=4, nodes_to_exclude=[first], rounding="nearest", repair="none")
    result = quantize(written(tmp_path, as_external=True), None, recipe, validated=False)
    assert len(result.layers) == 2
    onnx.checker.check_model(onnx.load_from_string(result.model.SerializeToString()))
    assert not any(external.mapped_tensors(result.model))
    assert result.size == result.plan.predicted_bytes == result.model.ByteSize()


# Covariances of more inputs than samples


def low_rank(n: int = 300, p: int = 7, groups: int = 2) -> LowRank:
    rng = np.random.default_rng(0)
    return LowRank(rng.uniform(0.1, 1, (groups, n)), rng.normal(size=(groups, n, p)))


def test_the_structured_factor_is_the_factor():
    covariance = low_rank()
    dense, factor = Dense(covariance.dense()).cholesky(), covariance.cholesky()
    np.testing.assert_allclose(factor.block(0, 300), dense.values, atol=1e-10)
    np.testing.assert_allclose(factor.unit_diagonal().block(0, 300), dense.unit_diagonal().values, atol=1e-10)


def test_products_need_no_elements():
    covariance, columns = low_rank(), np.random.default_rng(1).normal(size=(2, 300, 5))
    dense = covariance.dense()
    np.testing.assert_allclose(covariance.times(columns), dense @ columns, atol=1e-9)
    np.testing.assert_allclose(
        multiply(covariance.cholesky(), columns), Dense(dense).cholesky().values @ columns, atol=1e-9
    )
    rows = columns.transpose(0, 2, 1)
    np.testing.assert_allclose(through(rows, covariance), through(rows, dense), atol=1e-9)


def test_what_is_trusted_of_it_is_what_is_trusted_of_all_elements():
    covariance, mean = low_rank(60, 5), np.random.default_rng(2).normal(size=(2, 60))
    dense = with_mean_uncertainty(regularize(covariance.dense(), 1, 5), mean, 1)
    mine = with_mean_uncertainty(regularize(covariance, 1, 5), mean, 1)
    np.testing.assert_allclose(mine.dense(), dense, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_are_as_good_as_with_all_elements(bits):
    covariance = low_rank(400, 9, groups=1)
    rows = np.random.default_rng(3).normal(size=(1, 16, 400)).astype(np.float32)
    errors = []
    for form in (covariance, covariance.dense()):
        error = dequantize(gptq(rows, GridSpec("asymmetric", bits), form)) - rows
        errors.append(float(np.einsum("grn,gnm,grm->", error, covariance.dense(), error)))
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_a_wide_layer_is_held_by_its_samples():
    n = 5000
    graph = f"g (float[N, {n}] x) => (float[N, 4] y) {{ y = Gemm <transB = 1> (x, w) }}"
    result = quantize(parse(graph, w=noise(4, n) / 70), None, Recipe(bits=4))
    assert result.validation
    assert result.validation.sqnr_db > 15


@pytest.mark.parametrize("form", ["dense", "low rank", "kronecker", "diagonal"])
def test_a_few_rows_at_a_time_are_as_all_at_once(form, monkeypatch):
    n, rng = 24, np.random.default_rng(4)
    covariance: Covariance = low_rank(n, 5)
    if form == "dense":
        covariance = low_rank(n, 5).dense()
    elif form == "kronecker":
        covariance = Kronecker(low_rank(8, 5).dense(), low_rank(3, 2).dense())
    elif form == "diagonal":
        covariance = Diagonal(rng.uniform(0.5, 2, (2, n)))
    rows, mean = rng.normal(size=(2, 10, n)).astype(np.float32), rng.normal(size=(2, n))
    codes = quantize_rows(rows, GridSpec("asymmetric", 4), "nearest")
    variances = rng.uniform(0.5, 2, (2, n))

    def all_of_it() -> list[np.ndarray]:
        response = respond_codes(rows, codes, mean, covariance)
        return [*vars(response).values(), *first_grid(rows, GridSpec("vector", 4), variances)]

    whole = all_of_it()
    monkeypatch.setattr(products, "SLAB", 3 * 2 * n)
    assert len(products.slabs(rows)) == 4
    for mine, other in zip(all_of_it(), whole, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_codes_take_a_byte():
    rows = np.random.default_rng(5).normal(size=(1, 4, 40)).astype(np.float32)
    for grid in (GridSpec("asymmetric", 8), GridSpec("symmetric", 8), GridSpec("asymmetric", 3)):
        codes = quantize_rows(rows, grid, "nearest")
        assert codes.codes.itemsize == 1
        np.testing.assert_allclose(dequantize(codes), rows, atol=0.51 * codes.scale.max())


def test_types_that_numpy_lacks_are_not_mapped():
    tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[1 << 20])
    assert not external.can_map(tensor, 2 << 20)
    assert external.can_map(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 18]), 1 << 20)


def odd(name: str) -> ModelProto:
    model = odd_models.network(11)
    odd_models.EDITS[name](model, 11)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "unsorted",
        "a sparse weight",
        "an output without a shape",
        "a Conv on a constant",
        "a layer without a channel",
        "a weight of 1e30",
    ],
)
def test_odd_graphs_quantize(name):
    case = odd_models.Case("", name, odd(name))
    done = odd_models.outcome(case, Recipe(bits=8, samples=3, input_range=(-2, 2)))
    assert (done.wrong, done.refused) == ("", "")


def test_float_bytes_are_told_by_reason():
    text = """g (int64[N] ids) => (float[N, 4] y) { e = Gather(table, ids) y = MatMul(e, w) }"""
    model = parse(text, table=noise(200, 4), w=noise(4, 4))
    notes = quantize(model, None, Recipe(bits=8)).notes
    assert any("3,200 tables of Gather (4 numbers to a scale" in note for note in notes)


def test_a_resize_by_sizes_loses_its_empty_scales():
    text = """<ir_version: 6, opset_import: ["" : 11]> g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) {
        none = Constant <value = float[0] {}> ()
        sizes = Constant <value = int64[4] {1, 1, 4, 4}> ()
        y = Resize <mode = "nearest"> (x, none, none, sizes) }"""
    raised = raise_opset(onnx.parser.parse_model(text), 21)
    assert next(node for node in raised.graph.node if node.op_type == "Resize").input[2] == ""
