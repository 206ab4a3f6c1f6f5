"""Sizes that are known before anything is quantized, against the files that come of it."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper, parser

from onnx_dfmpc.errors import DfmpcError, RecipeError
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.model.protobuf import framed_size
from onnx_dfmpc.rewrite.apply import Rewritten, rewrite
from onnx_dfmpc.rewrite.sizes import base_size, predicted_size, shared_sizes, stored_sizes
from onnx_dfmpc.spec import Grid, Layer, MatchReport, QuantizedLayer, QuantizedWeight, StorageFormat
from onnx_dfmpc.spec.ops import shares_grid
from onnx_dfmpc.spec.planned import stored_bits
from onnx_dfmpc.spec.vectors import VECTORS
from onnx_dfmpc.spec.widths import WIDTHS, code_limits

FORMS = [
    StorageFormat(*words)
    for words in itertools.product(("vector", "table", "native"), ("none", "int8", "float"))
]
GRIDS: tuple[Grid, ...] = ("asymmetric", "symmetric", "ternary")
METADATA = {"version": "1", "recipe_sha256": "0" * 64, "bits": "{}"}


def quantized(
    layer: Layer, bits: float, grid: Grid, form: StorageFormat, rng: np.random.Generator, *, corrected: bool
) -> QuantizedLayer:
    """Random numbers, a zero point that is not zero, and new parameters, as the solver makes them."""
    if form.grid(grid, bits, layer) == "vector":
        return vectors(layer, bits, rng, corrected=corrected)
    asymmetric = grid == "asymmetric"
    bits = stored_bits(bits, grid)
    low, high = code_limits(bits, signed=not asymmetric)
    axis = None if shares_grid(layer) else layer.axis
    channels = () if axis is None else (layer.shape[axis],)
    zero_point = np.asarray(rng.integers(1, high + 1, channels), np.int16) if asymmetric else None
    codes = rng.integers(low, high + 1, layer.shape).astype(np.int16)
    weight = QuantizedWeight(
        codes,
        np.asarray(rng.uniform(0.01, 0.1, channels), np.float32),
        zero_point,
        bits,
        not asymmetric,
        axis,
    )
    return with_parameters(layer, weight, rng, corrected=corrected)


def vectors(layer: Layer, bits: float, rng: np.random.Generator, *, corrected: bool) -> QuantizedLayer:
    """Random rows of the table."""
    table, channels = VECTORS[bits], layer.shape[layer.axis]
    rest = layer.shape[: layer.axis] + layer.shape[layer.axis + 1 :]
    chosen = table.rows[rng.integers(0, table.count, (-(-channels // table.length), *rest))]
    codes = np.moveaxis(chosen, -1, 0).reshape(-1, *rest)[:channels]
    scale = rng.uniform(0.01, 0.1, channels).astype(np.float32)
    codes = np.moveaxis(codes, 0, layer.axis)
    weight = QuantizedWeight(codes, scale, None, bits, True, layer.axis, vector=True)
    return with_parameters(layer, weight, rng, corrected=corrected)


def with_parameters(
    layer: Layer, weight: QuantizedWeight, rng: np.random.Generator, *, corrected: bool
) -> QuantizedLayer:
    """With a new bias or batch norm."""
    norm = layer.batch_norm
    if not corrected:
        return QuantizedLayer(layer.name, weight)
    if norm is None:
        return QuantizedLayer(layer.name, weight, rng.standard_normal(layer.channels).astype(np.float32))
    return QuantizedLayer(layer.name, weight, batch_norm=dataclasses.replace(norm, mean=norm.mean + 0.5))


def all_vectors(report: MatchReport) -> MatchReport:
    """Layers that take rows of a table at every width that has one."""
    layers = tuple(
        layer if shares_grid(layer) else dataclasses.replace(layer, vectors=tuple(VECTORS))
        for layer in report.layers
    )
    return dataclasses.replace(report, layers=layers)


def rewritten(
    model: ModelProto,
    report: MatchReport,
    bits: dict[str, float],
    form: StorageFormat,
    grid: Grid,
    *,
    corrected: bool = True,
) -> Rewritten:
    rng = np.random.default_rng(0)
    layers = [
        quantized(layer, bits[layer.name], grid, form, rng, corrected=corrected)
        for layer in report.layers
        if layer.name in bits
    ]
    by_name = {one.name: one for one in layers}
    for name, first in report.sharing(bits).items():
        codes = {key: getattr(by_name[first].weight, key) for key in ("codes", "zero_point")}
        by_name[name] = dataclasses.replace(
            by_name[name], weight=dataclasses.replace(by_name[name].weight, **codes)
        )
    return rewrite(model, report, list(by_name.values()), form=form, metadata=METADATA)


def assert_predicted(
    model: ModelProto, bits: dict[str, float], form: StorageFormat, grid: Grid, *, corrected: bool = True
) -> None:
    """Every promise of the sizes, for one choice of bits."""
    report, moved = all_vectors(match(model)), ("mean",) if corrected else ()
    done = rewritten(model, report, bits, form, grid, corrected=corrected)
    size = done.proto.ByteSize()
    assert size == len(done.proto.SerializeToString())
    predicted = predicted_size(model, report, bits, form, grid=grid, corrected=moved, metadata=METADATA)
    assert size <= predicted <= 1.005 * size
    table = stored_sizes(model, report, WIDTHS, form, grid=grid)
    weights = 0
    for layer, row in zip(report.layers, table, strict=True):
        if layer.name in bits:
            assert done.layers[layer.name].bytes == row[WIDTHS.index(bits[layer.name])]
            weights += int(row[WIDTHS.index(bits[layer.name])])
    base = base_size(model, report, list(bits), WIDTHS, form, grid=grid, corrected=moved, metadata=METADATA)
    brought = shared_sizes(model, report, list(bits), WIDTHS, form, grid=grid)
    each = [int(brought[WIDTHS.index(width)]) for width in set(bits.values())]
    # What several widths use is counted for each, and is there once.
    names = done.weights.difference(*(layer.tensors for layer in done.layers.values()))
    there = sum(framed_size(tensor) for tensor in done.proto.graph.initializer if tensor.name in names)
    there += sum(framed_size(node) for node in done.proto.graph.node if names.intersection(node.output))
    assert size <= base + weights + sum(each) <= 1.02 * size + sum(each) - there


@pytest.fixture(scope="module")
def networks(digits_bn, digits_folded) -> list[ModelProto]:
    return [load(digits_bn).proto, load(digits_folded).proto]


@settings(max_examples=40)
@given(st.data())
def test_sizes_on_the_digits_network(networks, data):
    model = data.draw(st.sampled_from(networks))
    names = [layer.name for layer in match(model).layers]
    bits = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(WIDTHS), min_size=1))
    assert_predicted(
        model,
        bits,
        data.draw(st.sampled_from(FORMS)),
        data.draw(st.sampled_from(GRIDS)),
        corrected=data.draw(st.booleans()),
    )


AWKWARD = {
    "shared weight": "[one] a = Conv(x, w)  [two] c = Conv(a, w)  y = Relu(c)",
    "shared, and read elsewhere": "[one] a = Conv(x, w)  [two] c = Conv(a, w)  n = Neg(w)  s = ReduceSum(n)  y = Add(c, s)",
    "Identity": "i = Identity(w)  [one] a = Conv(x, i)  y = Relu(a)",
    "Constant": "k = Constant<value = float[4, 4, 1, 1] {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}>()  [one] y = Conv(x, k)",
    "asked for its shape": "[one] a = Conv(x, w)  s = Shape(w)  c = Cast<to = 1>(s)  d = ReduceSum(c)  y = Add(a, d)",
    "shared bias": "[one] a = Conv(x, w, b)  [two] c = Conv(a, v, b)  y = Relu(c)",
    "grouped ConvTranspose": "[one] a = ConvTranspose<group = 2>(x, t)  y = Relu(a)",
    "Softmax changes from opset 11 to 13": "[one] a = Conv(x, w)  y = Softmax(a)",
}


@pytest.mark.parametrize(
    "form",
    [StorageFormat(), StorageFormat("native", "int8"), StorageFormat("table", "float")],
    ids=lambda form: f"{form.storage}-{form.unpack}",
)
@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_sizes_of_awkward_models(text, form):
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 11]> g (float[1, 4, 5, 5] x) => (float[A, B, C, D] y) {{ {text} }}'
    )
    rng = np.random.default_rng(1)
    shapes = {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "b": (4,), "t": (4, 2, 2, 2)}
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
        if f" {name}" in text
    }
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
    report = match(model)
    for bits in (1.58, 3, 6):
        chosen = {layer.name: bits for layer in report.layers}
        size = rewritten(model, report, chosen, form, "asymmetric").proto.ByteSize()
        predicted = predicted_size(model, report, chosen, form, metadata=METADATA)
        assert size <= predicted <= size + 5 * len(report.layers)


def test_real_networks(shared_model):
    """Opsets from 9 up, PReLU, batch norms folded and not, shared constants."""
    model = load(shared_model).proto
    names = [layer.name for layer in match(model).layers]
    bits = dict(zip(names, itertools.cycle(WIDTHS), strict=False))
    assert_predicted(model, bits, StorageFormat("table", "int8"), "asymmetric")


def test_packed_codes_are_close_to_the_nominal_bits(shared_dir):
    """Within 11 % of the bits and of what stays float, for a network of more than a million weights."""
    model = load(shared_dir / "models" / "imagenet_squeezenet1_1.onnx").proto
    report = match(model)
    weights = sum(layer.size for layer in report.layers)
    assert weights > 1e6
    for bits in WIDTHS:
        ideal = model.ByteSize() - 4 * weights + weights * {1.58: 1.6, 2.58: 8 / 3, 7: 8}.get(bits, bits) / 8
        assert (
            predicted_size(
                model, report, {layer.name: bits for layer in report.layers}, StorageFormat("table")
            )
            < 1.11 * ideal
        )


def test_layers_that_are_left_out_stay_float(networks):
    model = networks[0]
    report = match(model)
    assert predicted_size(model, report, {}) == model.ByteSize()
    first = report.layers[0]
    saved = model.ByteSize() - predicted_size(model, report, {first.name: 8})
    assert 0 < saved < 4 * first.size


def test_wide_layers():
    """More channels than other tools are expected to look into."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3] x) => (float[A, B] y) { [one] y = Gemm(x, w, b) }'
    )
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((3, 1500)), "b": rng.standard_normal(1500)}
    model.graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.float32), name) for name, values in arrays.items()
    )
    assert_predicted(model, {"one": 5}, StorageFormat("table"), "asymmetric")


def test_opset_conversion_is_counted():
    model = parser.parse_model(
        '<ir_version: 7, opset_import: ["" : 11]> g (float[1, 4] x) => (float[A, B] y) { [one] a = MatMul(x, w)  y = Softmax(a) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 8), np.float32), "w"))
    report = match(model)
    done = rewritten(model, report, {"one": 2}, StorageFormat("native"), "asymmetric").proto
    assert opset_of(done) == 25
    assert len(done.graph.node) > len(model.graph.node) + 1  # Softmax became several nodes


def test_what_cannot_be_sized(networks):
    model = networks[0]
    report = match(model)
    with pytest.raises(RecipeError, match="'dense': expected one of vector, table, native"):
        stored_sizes(model, report, WIDTHS, StorageFormat("dense"))
    with pytest.raises(DfmpcError, match="'nobody' is not in the match report"):
        predicted_size(model, report, {"nobody": 4})
