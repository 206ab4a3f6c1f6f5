"""Which layer broke it: against models in which one layer alone is quantized, on layers broken at random, and
for files of others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.evaluate.diagnose import diagnose, find_segments, layer_sqnr, wider
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.pipeline import run as pipeline
from onnx_dfmpc.recipe import Data, Recipe, Rule
from onnx_dfmpc.spec import Layer, LayerEffect

PLAIN = {"rounding": "nearest", "repair": "none"}
"""Codes of a layer that do not depend on the other layers."""

SIZES = {2: 200, 3: 400, 4: 400, 5: 800, 6: 800, 7: 790, 8: 900}
"""Bytes by width, as element types of 2, 4 and 8 bits have them; 8 bits take some more than 7."""


def quantized(path: Path, recipe: Recipe, nodes: Iterable[str] = ()) -> onnx.ModelProto:
    """The model with only these nodes quantized, or with all where none are named."""
    wanted = set(nodes)
    others = [layer.name for layer in match(load(path).proto).layers if wanted and layer.name not in wanted]
    only = replace(recipe, rules=(*recipe.rules, *(Rule(node=name, exclude=True) for name in others)))
    return pipeline.quantize(path, recipe=only, validated=False).model


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "models" / "digits_test.npz") as arrays:
        return {"input": arrays["input"][:16], "labels": arrays["labels"][:16]}


# ------------------------------------------------------------------------------------------------------
# the numbers


@pytest.mark.parametrize("folded", [False, True])
def test_own_noise_is_that_of_a_model_with_one_quantized_layer(
    digits_bn: Path, digits_folded: Path, images: dict[str, np.ndarray], folded: bool
) -> None:
    path, recipe = digits_folded if folded else digits_bn, Recipe(low_bits=2, high_bits=5, **PLAIN)  # type: ignore[arg-type]
    result = pipeline.quantize(path, recipe=recipe, validated=False)
    proto = result.source.proto
    effects, notes = diagnose(proto, result.model, match(proto), Data(data=images))
    assert notes == ("per layer: measured on 16 samples",)
    assert {effect.name: effect.bits for effect in effects} == {row.name: row.bits for row in result.layers}
    noises = [10 ** (-(effect.own_sqnr_db or 0) / 10) for effect in effects]
    assert noises == sorted(noises, reverse=True)
    for effect, noise in list(zip(effects, noises, strict=True))[::3]:
        bits = Recipe(bits=effect.bits, first_last_bits=effect.bits, **PLAIN)  # type: ignore[arg-type]
        alone = validate(proto, quantized(path, bits, [effect.name]), images)
        assert effect.own_sqnr_db == pytest.approx(alone.sqnr_db, abs=0.02)
        assert effect.own_top1_agreement == alone.top1_agreement
        assert effect.own_share == pytest.approx(noise / sum(noises))


def whole(model: onnx.ModelProto, layers: Iterable[Layer], x: np.ndarray) -> list[np.ndarray]:
    """Outputs of the layers from one session of the whole model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=layer.end) for layer in layers)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return [output.astype(np.float64) for output in session.run(None, {"input": x})]


def test_sqnr_of_the_outputs_of_layers(digits_bn: Path, images: dict[str, np.ndarray]) -> None:
    """Layer by layer in batches, against the whole model at once."""
    proto, x = load(digits_bn).proto, images["input"]
    model = quantized(digits_bn, Recipe(bits=3, storage="native", unpack="float", **PLAIN))  # type: ignore[arg-type]
    layers = match(proto).layers
    rows = layer_sqnr(proto, model, layers, [{"input": x[:10]}, {"input": x[10:]}])
    effects = {effect.name: effect for effect in diagnose(proto, model, match(proto), Data(data=images))[0]}
    pairs = zip(layers, whole(proto, layers, x), whole(model, layers, x), strict=True)
    for layer, a, b in pairs:
        expected = 10 * math.log10((a**2).sum() / ((a - b) ** 2).sum())
        assert rows[layer.name] == pytest.approx(expected, abs=1e-3)
        assert effects[layer.name].sqnr_db == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("form", [{"storage": "native"}, {"unpack": "float"}, {}], ids=str)
def test_bytes_of_layers_are_those_of_the_report(
    digits_bn: Path, images: dict[str, np.ndarray], form: dict[str, str]
) -> None:
    result = pipeline.quantize(digits_bn, recipe=Recipe(bits=3, **PLAIN, **form), validated=False)  # type: ignore[arg-type]
    proto = result.source.proto
    segments, missing = find_segments(proto, result.model, match(proto).layers, {})
    assert missing == []
    bytes_of = {row.name: row.bytes for row in result.layers}
    for segment in segments:
        # A table that one layer alone reads looks like its own.
        assert 0 <= segment.bytes - bytes_of[segment.layer.name] <= 700
    assert sum(segment.bytes != bytes_of[segment.layer.name] for segment in segments) <= 1


def test_batch_norm_may_be_folded_by_the_way(digits_bn: Path, images: dict[str, np.ndarray]) -> None:
    own, proto = {}, load(digits_bn).proto
    for fold in ("no", "yes"):
        model = quantized(digits_bn, Recipe(bits=4, fold_batch_norm=fold, **PLAIN))  # type: ignore[arg-type]
        effects, _ = diagnose(proto, model, match(proto), Data(data=images))
        own[fold] = {effect.name: effect.own_sqnr_db for effect in effects}
    assert own["yes"].keys() == own["no"].keys()
    assert own["yes"] == pytest.approx(own["no"], abs=0.5)


# ------------------------------------------------------------------------------------------------------
# the worst


def test_a_broken_layer_comes_first_and_the_line_repairs_it(
    digits_bn: Path, images: dict[str, np.ndarray]
) -> None:
    """As a user does it: one layer forced to 2 bits by plain rounding, its effects, the line pasted."""
    base, proto = Recipe(bits=6, **PLAIN), load(digits_bn).proto  # type: ignore[arg-type]
    matched, data = match(proto), Data(data=images)
    names = [layer.name for layer in matched.layers]
    for name in np.random.default_rng(5).choice(names, 2, replace=False):
        forced = (f"^{re.escape(name)}$", 2)
        broken = pipeline.quantize(digits_bn, recipe=replace(base, set=(forced,)), per_layer=True)
        worst, second, *_ = diagnose(proto, broken.model, matched, data)[0]
        assert worst.name == broken.per_layer[0].name == name
        assert broken.advice[0].flag == "--set"
        pattern, _, bits = broken.advice[0].value.rpartition("=")
        assert [other for other in names if re.search(pattern, other)] == [name]
        repaired = quantized(digits_bn, replace(base, set=(forced, (pattern, int(bits)))))
        (again,) = (effect for effect in diagnose(proto, repaired, matched, data)[0] if effect.name == name)
        assert again.own_sqnr_db is not None
        assert second.own_sqnr_db is not None
        assert again.own_sqnr_db > second.own_sqnr_db
        assert again.bytes - worst.bytes == pytest.approx(broken.advice[0].extra_bytes, abs=60)
        before, after = (validate(proto, model, images).sqnr_db for model in (broken.model, repaired))
        assert before is not None
        assert after is not None
        assert after > before + 3


@pytest.mark.parametrize(
    ("network", "choices"),
    [("cifar10_resnet20_bn", 3), pytest.param("cifar10_resnet56_bn", 1, marks=pytest.mark.slow)],
)
def test_broken_layers_of_deep_networks_come_first(shared_dir: Path, network: str, choices: int) -> None:
    path = shared_dir / "models" / f"{network}.onnx"
    proto = load(path).proto
    matched, sound = match(proto), Recipe(bits=6, **PLAIN)  # type: ignore[arg-type]
    names = [layer.name for layer in matched.layers]
    for name in np.random.default_rng(1).choice(names, choices, replace=False):
        broken = quantized(path, replace(sound, set=((f"^{re.escape(name)}$", 2),)))
        data = Data(samples=8, input_range=(-2, 2))
        effects, _ = diagnose(proto, broken, matched, data)
        assert effects[0].name == name
        found, bits = wider(effects, dict.fromkeys(names, SIZES))[0]
        assert (found, bits > 2) == (name, True)


def test_layers_that_stand_out_get_the_bits_that_they_need() -> None:
    """Noise falls by a factor of 4 to 5.4 with every bit; wider codes of as many bytes are free."""

    def effect(name: str, noise: float, share: float, bits: int | None = 2) -> LayerEffect:
        return LayerEffect(name, "Conv", bits, 200, 9.0, 0.9, -10 * math.log10(noise), None, share)

    effects = [effect("a", 0.10, 0.7), effect("b", 0.02, 0.3), *(effect(name, 1e-9, 0.0) for name in "cdefg")]
    sizes = dict.fromkeys("abcdefg", SIZES)
    # Of the others, b makes 0.02 and the rest nothing, 0.0033 on average: a needs 0.1 * (3 / 31) ** 2, 5 bits.
    # b makes less than the others already, and gets the next width, 3; 4 bits are free.
    assert wider(effects, sizes) == [("a", 7), ("b", 4)]
    assert wider([effect("a", 0.1, 1.0, None)], sizes) == []
    assert wider([effect("a", 0.1, 1.0, 8)], sizes) == []
    assert wider([replace(effect("a", 0.1, 0.0), own_sqnr_db=math.inf)], sizes) == []


# ------------------------------------------------------------------------------------------------------
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
    steps: list[tuple[str, int, int]] = []
    effects, _ = diagnose(
        model, quantized, match(model), Data(data=x), progress=lambda *step: steps.append(step)
    )
    assert steps == [("per layer", 1, 2), ("per layer", 2, 2)]
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
    effects, notes = diagnose(model, quantized, match(model), Data())
    assert [effect.name for effect in effects] == ["first"]
    assert notes[0] == "per layer: not in the quantized model by the names of their tensors: second"


@pytest.mark.parametrize(
    ("text", "bits"), [('{"first": 3, "second": "4"}', (3, 8)), ("[3]", (8, 8)), ("{", (8, 8))]
)
def test_nominal_bits_come_from_the_file_where_they_can_be_read(text: str, bits: tuple[int, int]) -> None:
    model, quantized = two_layers()
    quantized.metadata_props.add(key="onnx_dfmpc.bits", value=text)
    effects, _ = diagnose(model, quantized, match(model), Data())
    by_name = {effect.name: effect.bits for effect in effects}
    assert (by_name["first"], by_name["second"]) == bits


def test_a_float_model_has_no_quantized_layers() -> None:
    model, _ = two_layers()
    effects, notes = diagnose(model, model, match(model), Data())
    assert effects == ()
    assert "no layer of the quantized model is quantized" in notes[0]


def test_what_is_not_finite_comes_first() -> None:
    model, quantized = two_layers()
    quantized.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(3e38, np.float32), "s"))
    effects, _ = diagnose(model, quantized, match(model), Data())
    assert effects[0].own_sqnr_db is None
    assert wider(effects[:1], {"first": SIZES}) == []
