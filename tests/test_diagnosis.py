"""Which layer broke it: against models in which one layer alone is quantized, on layers broken at random, and
for files of others.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc import pipeline
from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.evaluate.diagnose import diagnose
from onnx_dfmpc.evaluate.segments import find_segments
from onnx_dfmpc.inputs.data import Feeding
from onnx_dfmpc.layerwise import solve_layers
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rewrite.apply import rewrite
from onnx_dfmpc.spec import MatchReport, QuantizedLayer, StorageFormat
from onnx_dfmpc.work import Work

PLAIN = {"rounding": "nearest", "compensate": False, "bias_correction": False}


def solved(path: Path, recipe: Recipe) -> tuple[onnx.ModelProto, MatchReport, dict[str, QuantizedLayer]]:
    """A network, its layers, and what a recipe makes of them."""
    work = Work(path, recipe)
    layers = solve_layers(
        work.source, work.report, work.allocate(), recipe, input_range=work.input_range, progress=None
    )
    return work.source.proto, work.report, {layer.name: layer for layer in layers}


def written(
    proto: onnx.ModelProto,
    report: MatchReport,
    layers: dict[str, QuantizedLayer],
    form: StorageFormat = StorageFormat(),
) -> onnx.ModelProto:
    bits = json.dumps({name: layer.weight.bits for name, layer in layers.items()})
    return rewrite(proto, report, list(layers.values()), form=form, metadata={"bits": bits}).proto


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "models" / "digits_test.npz") as arrays:
        return {"input": arrays["input"][:32], "labels": arrays["labels"][:32]}


# -------------------------------------------------------------------------------------------------------------------
# the numbers


@pytest.mark.parametrize("folded", [False, True])
def test_own_noise_is_that_of_a_model_with_one_quantized_layer(
    digits_bn: Path, digits_folded: Path, images: dict[str, np.ndarray], folded: bool
) -> None:
    proto, report, layers = solved(digits_folded if folded else digits_bn, Recipe(low_bits=2, high_bits=5))
    whole = written(proto, report, layers)
    effects, notes = diagnose(proto, whole, report, Feeding(images))
    assert notes == ("per layer: measured on 32 samples",)
    assert {effect.name for effect in effects} == set(layers)
    noises = [10 ** (-(effect.own_sqnr_db or 0) / 10) for effect in effects]
    assert noises == sorted(noises, reverse=True)
    for effect, noise in zip(effects, noises, strict=True):
        alone = validate(proto, written(proto, report, {effect.name: layers[effect.name]}), images)
        assert effect.own_sqnr_db == pytest.approx(alone.sqnr_db, abs=0.02)
        assert effect.own_top1_agreement == alone.top1_agreement
        assert effect.own_share == pytest.approx(noise / sum(noises))
        assert effect.bits == layers[effect.name].weight.bits


def test_outputs_of_layers_and_bytes_are_those_of_the_report(digits_bn: Path, digits_data: Path) -> None:
    """Two walks over both networks, sample by sample and layer by layer, and two counts of the bytes."""
    base = Recipe(bits=3, data=str(digits_data), samples=8, per_layer=True, **PLAIN)  # type: ignore[arg-type]
    for form in ({"storage": "native"}, {"storage": "compact", "unpack": "float"}, {"storage": "portable"}):
        recipe = replace(base, **form)  # type: ignore[arg-type]
        result = pipeline.quantize(digits_bn, recipe=recipe)
        rows = {row.name: row for row in result.layers}
        assert len(result.per_layer) == len(rows)
        for effect in result.per_layer:
            assert effect.sqnr_db == pytest.approx(rows[effect.name].measured_sqnr_db, abs=0.02)
            assert (effect.bytes, effect.bits) == (rows[effect.name].bytes, rows[effect.name].bits)


def test_batch_norm_may_be_folded_by_the_way(digits_bn: Path, images: dict[str, np.ndarray]) -> None:
    found = {}
    for fold in ("no", "yes"):
        result = pipeline.quantize(
            digits_bn, recipe=Recipe(bits=4, fold_batch_norm=fold, **PLAIN), validated=False
        )  # type: ignore[arg-type]
        effects, _ = diagnose(result.source.proto, result.model, match(result.source.proto), Feeding(images))
        found[fold] = {effect.name: effect.own_sqnr_db for effect in effects}
    assert found["yes"].keys() == found["no"].keys()
    assert found["yes"] == pytest.approx(found["no"], abs=0.5)


# ---------------------------------------------------------------------------------------------------------------------
# the worst


def test_a_broken_layer_comes_first_and_the_line_repairs_it(digits_bn: Path, digits_data: Path) -> None:
    """As a user does it: one layer forced to 2 bits by plain rounding, --per-layer, its line pasted."""
    base = Recipe(bits=6, data=str(digits_data), samples=32, per_layer=True, **PLAIN)  # type: ignore[arg-type]
    names = [layer.name for layer in match(load(digits_bn).proto).layers]
    for name in np.random.default_rng(5).choice(names, 2, replace=False):
        broken = pipeline.quantize(digits_bn, recipe=replace(base, set=((f"^{re.escape(name)}$", 2),)))
        worst, second, *_ = broken.per_layer
        assert worst.name == name
        assert worst.suggestion is not None
        pattern, _, bits = worst.suggestion.set.rpartition("=")
        assert [other for other in names if re.search(pattern, other)] == [name]
        repaired = pipeline.quantize(
            digits_bn, recipe=replace(base, set=((f"^{re.escape(name)}$", 2), (pattern, int(bits))))
        )
        (again,) = (effect for effect in repaired.per_layer if effect.name == name)
        assert again.own_sqnr_db is not None
        assert second.own_sqnr_db is not None
        assert again.own_sqnr_db > second.own_sqnr_db
        assert again.own_sqnr_db == pytest.approx(worst.suggestion.own_sqnr_db, abs=6)
        assert again.bytes - worst.bytes == pytest.approx(worst.suggestion.extra_bytes, abs=60)
        assert repaired.validation is not None
        assert broken.validation is not None
        assert repaired.validation.sqnr_db > broken.validation.sqnr_db + 3  # type: ignore[operator]


@pytest.mark.parametrize(("network", "choices"), [("cifar10_resnet20_bn", 5), ("cifar10_resnet56_bn", 1)])
def test_broken_layers_of_deep_networks_come_first(shared_dir: Path, network: str, choices: int) -> None:
    path = shared_dir / "models" / f"{network}.onnx"
    proto, report, sound = solved(path, Recipe(bits=6, **PLAIN))  # type: ignore[arg-type]
    _, _, broken = solved(path, Recipe(bits=2, first_last_bits=2, **PLAIN))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for name in rng.choice(list(sound), choices, replace=False):
        effects, _ = diagnose(
            proto,
            written(proto, report, sound | {name: broken[name]}),
            report,
            Feeding(samples=8, input_range=(-2, 2)),
        )
        assert effects[0].name == name
        assert effects[0].suggestion is not None
        assert effects[0].suggestion.bits > 2


def test_a_price_without_knowing_the_form(digits_bn: Path, images: dict[str, np.ndarray]) -> None:
    """The sizes in the file tell how codes are stored."""
    proto, report, layers = solved(digits_bn, Recipe(bits=3, **PLAIN))  # type: ignore[arg-type]
    for form in (
        StorageFormat(),
        StorageFormat("compact"),
        StorageFormat("portable"),
        StorageFormat("compact", "int8"),
    ):
        quantized = written(proto, report, layers, form)
        known, found = (
            diagnose(proto, quantized, report, Feeding(images, samples=8), form=given)[0]
            for given in (form, None)
        )
        assert [effect.suggestion for effect in found] == [effect.suggestion for effect in known]


# ------------------------------------------------------------------------------------------------------------------
# other files


MATMUL = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[N, 4] x) => (float[N, 3] y) <float[4, 6] w = {%s}, float[6, 3] v = {%s}, float[6] b = {1, 2, 3,
    4, 5, 6}> {
        [first] m = MatMul(x, w)
        [bias] h = Add(m, b)
        r = Relu(h)
        [second] y = MatMul(r, v)
    }"""


def two_layers() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Two matrix products, and the same with INT8 weights and another bias, as another tool might write them."""
    rng = np.random.default_rng(0)
    w, v = rng.integers(-100, 100, (4, 6)), rng.integers(-100, 100, (6, 3))
    model = parser.parse_model(
        MATMUL
        % (", ".join(f"{i / 100 + 0.003}" for i in w.ravel()), ", ".join(f"{i / 100}" for i in v.ravel()))
    )
    quantized = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[N, 4] x) => (float[N, 3] y) <float s = {0.01}, float[6] b = {1, 2, 3, 4, 5, 7}> {
            w = DequantizeLinear(wq, s)
            [first] m = MatMul(x, w)
            [bias] h = Add(m, b)
            r = Relu(h)
            v = DequantizeLinear(vq, s)
            [second] y = MatMul(r, v)
        }""")
    quantized.graph.initializer.extend(
        numpy_helper.from_array(codes.astype(np.int8), name) for codes, name in ((w, "wq"), (v, "vq"))
    )
    return model, quantized


def test_a_bias_behind_a_product_belongs_to_its_layer() -> None:
    model, quantized = two_layers()
    x = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
    effects, _ = diagnose(model, quantized, match(model), Feeding(x))
    by_name = {effect.name: effect for effect in effects}
    assert [effect.name for effect in effects] == ["first", "second"]
    assert (by_name["first"].bits, by_name["second"].bits) == (8, 8)
    first = (
        numpy_helper.to_array(model.graph.initializer[0]),
        numpy_helper.to_array(quantized.graph.initializer[2]) * np.float32(0.01),
    )
    a, b = (
        x @ weight + bias
        for weight, bias in zip(first, ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]), strict=True)
    )
    assert by_name["first"].sqnr_db == pytest.approx(
        10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-2
    )
    assert by_name["second"].own_sqnr_db is not None
    assert by_name["second"].own_sqnr_db > 100


def test_layers_that_are_not_there_by_name_are_said() -> None:
    model, quantized = two_layers()
    for node in quantized.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == "r":
                    names[position] = "renamed"
    found, lost = find_segments(model, quantized, match(model).layers, {})
    assert [segment.layer.name for segment in found] == ["first"]
    assert lost == ["second"]
    effects, notes = diagnose(model, quantized, match(model), Feeding())
    assert [effect.name for effect in effects] == ["first"]
    assert notes[0] == "per layer: not in the quantized model by the names of their tensors: second"


def test_a_float_model_has_no_quantized_layers() -> None:
    model, _ = two_layers()
    effects, notes = diagnose(model, model, match(model), Feeding())
    assert effects == ()
    assert "no layer of the quantized model is quantized" in notes[0]


def test_what_is_not_finite_comes_first() -> None:
    model, quantized = two_layers()
    quantized.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(3e38, np.float32), "s"))
    effects, _ = diagnose(model, quantized, match(model), Feeding())
    assert effects[0].own_sqnr_db is None
    assert effects[0].suggestion is None
