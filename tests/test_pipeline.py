"""The whole run on small networks: what it promises about its input, its output, its gates, its plan and its
arithmetic.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, load, numpy_helper, parser

from onnx_dfmpc import Recipe, apply, inspect, plan, quantize, validate
from onnx_dfmpc.errors import DfmpcError, ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.pipeline import job, steps
from onnx_dfmpc.pipeline import run as running
from onnx_dfmpc.pipeline.results import QuantizeResult
from onnx_dfmpc.runtime.session import session_options
from onnx_dfmpc.statistics import belief
from tests.conftest import ROOT
from tests.graphs import FAST, chain


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]


def digest(model: ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


X = np.random.default_rng(9).standard_normal((16, 3, 8, 8)).astype(np.float32)


# Promises


def test_the_input_is_never_changed(tmp_path: Path):
    model = chain()
    before = model.SerializeToString()
    quantize(model, None, Recipe(low_bits=2, high_bits=4, **FAST))
    assert model.SerializeToString() == before
    path = tmp_path / "model.onnx"
    path.write_bytes(before)
    stamp = path.stat().st_mtime_ns
    quantize(path, tmp_path / "small.onnx", Recipe(low_bits=2, high_bits=4, **FAST))
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "small.onnx"]


def test_the_output_is_what_the_result_says(tmp_path: Path):
    target = tmp_path / "small.onnx"
    result = quantize(chain(), target, Recipe(low_bits=2, high_bits=6, **FAST))
    assert result.output == target
    assert result.size == target.stat().st_size
    assert result.model == load(target)
    assert [(layer.name, layer.bits, layer.storage) for layer in result.layers] == [
        ("stem", 8, "UINT8"),
        ("one", 6, "INT8"),
        ("two", 2, "256 rows of 4"),
        ("last", 8, "UINT8"),
    ]
    assert result.validation
    np.testing.assert_allclose(run(result.model, X), run(load(target), X))
    for layer in result.layers:
        assert layer.source
        assert layer.gain_min <= layer.gain_max
        assert layer.measured_sqnr_db > 0


def test_an_existing_output_is_refused_unless_asked(tmp_path: Path):
    target = tmp_path / "small.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(RecipeError, match="exists"):
        quantize(chain(), target, Recipe(**FAST))
    assert target.read_bytes() == b"precious"
    assert quantize(chain(), target, Recipe(**FAST), overwrite=True).size == target.stat().st_size


def test_a_gate_that_fails_writes_nothing(tmp_path: Path):
    target = tmp_path / "small.onnx"
    result = quantize(chain(), target, Recipe(low_bits=2, high_bits=2, min_sqnr_db=60, **FAST))
    assert not result.validation
    assert result.output is None
    assert list(tmp_path.iterdir()) == []
    kept = quantize(chain(), target, Recipe(low_bits=2, high_bits=2, min_sqnr_db=-60, **FAST))
    assert kept.validation
    assert target.is_file()


def test_metadata():
    model = chain()
    result = quantize(model, None, Recipe(low_bits=2, high_bits=6, **FAST))
    found = {entry.key: entry.value for entry in result.model.metadata_props}
    assert found["author"] == "me"
    assert found["onnx_dfmpc.input_sha256"] == result.source.sha256
    assert json.loads(found["onnx_dfmpc.bits"]) == {"stem": 8, "one": 6, "two": 2, "last": 8}
    assert len(found["onnx_dfmpc.recipe_sha256"]) == 64
    other = quantize(model, None, Recipe(low_bits=2, high_bits=5, **FAST))
    assert {entry.key: entry.value for entry in other.model.metadata_props}[
        "onnx_dfmpc.recipe_sha256"
    ] != found["onnx_dfmpc.recipe_sha256"]


def test_a_plan_is_for_one_model():
    made = plan(chain(0), Recipe(low_bits=2, high_bits=6))
    with pytest.raises(RecipeError, match="another model"):
        apply(chain(1), made)
    result = apply(chain(0), made, Recipe(**FAST))
    assert {layer.name: layer.bits for layer in result.layers} == {"stem": 8, "one": 6, "two": 2, "last": 8}


def test_an_edited_plan_is_applied():
    made = plan(chain(), Recipe(low_bits=2, high_bits=6))
    edited = replace(
        made, layers=tuple(replace(layer, bits=4) if layer.name == "one" else layer for layer in made.layers)
    )
    result = apply(chain(), edited, Recipe(**FAST))
    assert {layer.name: layer.bits for layer in result.layers}["one"] == 4


def test_a_plan_remembers_its_recipe():
    recipe = Recipe(low_bits=2, high_bits=4, method="paper", lambda1=0.1, **FAST)
    made = plan(chain(), recipe)
    assert Recipe.from_dict(made.recipe) == recipe
    assert digest(apply(chain(), made).model) == digest(quantize(chain(), None, recipe).model)
    assert digest(apply(chain(), made, Recipe(**FAST)).model) != digest(apply(chain(), made).model)


def test_rules_reach_the_layers():
    rules = ({"op_type": "Conv", "max_bits": 5}, {"node": "two", "bits": 7}, {"node": "one", "exclude": True})
    result = quantize(chain(), None, Recipe(bits=6, rules=rules, **FAST))
    assert {layer.name: layer.bits for layer in result.layers} == {"stem": 5, "two": 7, "last": 5}
    assert "node 'two'" in result.plan["two"].reason
    assert "op_type 'Conv'" in result.plan["stem"].reason


def test_nodes_to_exclude():
    without = quantize(chain(), None, Recipe(nodes_to_exclude=["one", "stem"], **FAST))
    assert [layer.name for layer in without.layers] == ["two", "last"]


def test_nothing_to_quantize():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    )
    with pytest.raises(UnsupportedError, match="nothing to quantize"):
        quantize(model)


def test_nothing_to_quantize_says_the_most_frequent_reason():
    convs = "".join(f"{y} = Conv({x}, w)\n" for x, y in (("x", "a"), ("a", "b"), ("b", "c")))
    body = f"w = Identity(v)\n {convs} y = MatMul(c, c)"
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2, 4, 4] x, float[2, 2, 1, 1] v) => (float[1, 2, 4, 4] y) {{ {body} }}'
    )
    reasons = [skipped.reason for skipped in inspect(model).skipped]
    assert sorted(map(reasons.count, set(reasons))) == [1, 3]
    with pytest.raises(UnsupportedError) as error:
        quantize(model)
    common = max(reasons, key=reasons.count)
    assert str(error.value).endswith(f"nothing to quantize: {common} (3 nodes; 1 more for other reasons)")
    assert (set(reasons) - {common}).pop() not in str(error.value)


def test_everything_excluded_is_nothing_to_quantize():
    with pytest.raises(UnsupportedError, match=r"left out by regex 'one|two|stem|last' \(4 nodes\)"):
        quantize(chain(), None, Recipe(rules=({"regex": "one|two|stem|last", "exclude": True},)))


@pytest.mark.parametrize("knobs", [{"data": "no.npz"}, {"max_top1_drop": 0.1}, {"data": __file__}])
def test_bad_data_is_found_before_the_work_is_done(monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any]):
    for room in ("measure", "allocate", "carry_out"):
        monkeypatch.setattr(running, room, lambda *_, **__: pytest.fail("too late"))
    for run_it in (quantize, plan):
        with pytest.raises(RecipeError):
            run_it(chain(), recipe=Recipe(**knobs))


def test_an_existing_file_is_found_before_the_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "carry_out", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "small.onnx").write_bytes(b"precious")
    with pytest.raises(RecipeError, match="exists already"):
        quantize(chain(), tmp_path / "small.onnx", external_data=True)
    assert (tmp_path / "small.onnx").read_bytes() == b"precious"


def test_without_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = Recipe(**FAST)
    validated = quantize(chain(), None, recipe)
    for room in ("examine", "layer_sqnr"):
        monkeypatch.setattr(steps, room, lambda *_, **__: pytest.fail("left out"))
    result = quantize(chain(), tmp_path / "small.onnx", recipe, validated=False)
    assert (result.validation, result.layers[0].measured_sqnr_db) == (None, None)
    assert result.output == tmp_path / "small.onnx"
    assert (
        digest(result.model)
        == digest(validated.model)
        == digest(apply(chain(), plan(chain(), recipe), validated=False).model)
    )


PLAIN = {"bits": 4, "rounding": "nearest", "repair": "none"}


def test_what_the_inputs_are_is_asked_only_where_it_is_needed(
    digits_folded: Path, digits_data: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []
    believe, evidence = job.believe, belief._evidence
    monkeypatch.setattr(job, "believe", lambda *a, **k: asked.append("belief") or believe(*a, **k))
    monkeypatch.setattr(belief, "_evidence", lambda *a: asked.append("evidence") or evidence(*a))
    data = str(digits_data)
    for knobs, validated, expected in (
        ({}, False, []),
        ({}, True, ["belief", "evidence"]),
        ({"input_range": (-1, 1)}, True, ["belief"]),
        ({"calibration_data": data}, True, ["belief"]),
        ({"data": data}, True, ["belief", "evidence"]),  # a prediction does not look at the data
    ):
        asked.clear()
        result = quantize(digits_folded, None, Recipe(**PLAIN, samples=4, **knobs), validated=validated)
        assert asked == expected, knobs
        doubts = [note for note in result.notes if note.startswith("the inputs are not known")]
        assert len(doubts) == expected.count("evidence")


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_what_is_no_model_writes_nothing(tmp_path: Path, content: bytes | None):
    path, target = tmp_path / "model.onnx", tmp_path / "small.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DfmpcError) as error:
        quantize(path, target)
    assert isinstance(error.value, ModelError | RecipeError)
    assert not target.exists()


def test_progress_counts_every_layer():
    calls: list[tuple[str, int, int]] = []
    quantize(chain(), None, Recipe(**FAST), progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[0] == "quantize"] == [("quantize", i, 4) for i in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "knobs", [{}, {"method": "paper"}, {"rounding": "squant"}, {"method": "paper", "absorb": "consumer"}]
)
def test_two_runs_give_the_same_bytes(knobs):
    first, second = (
        quantize(chain(), None, Recipe(low_bits=2, high_bits=4, **knobs, **FAST)) for _ in range(2)
    )
    assert digest(first.model) == digest(second.model)


def test_the_number_of_threads_does_not_matter(digits_bn: Path):
    """This process against one with another number, which NumPy reads as it is imported."""
    script = (
        "import hashlib, sys; from onnx_dfmpc import quantize, Recipe;"
        "m = quantize(sys.argv[1], None, Recipe(low_bits=2, high_bits=6, samples=2)).model;"
        "print(hashlib.sha256(m.SerializeToString(deterministic=True)).hexdigest())"
    )
    here = quantize(digits_bn, None, Recipe(low_bits=2, high_bits=6, samples=2)).model
    threads = "2" if os.environ.get("OMP_NUM_THREADS") == "1" else "1"
    other = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    done = subprocess.run(
        [sys.executable, "-c", script, str(digits_bn)],
        cwd=ROOT,
        env=os.environ | other,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(here)


# Arithmetic


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("method", ["paper", "dfmpc"])
def test_eight_bits_everywhere_are_nearly_the_float_model(bn, method):
    model = chain(bn=bn)
    result = quantize(model, None, Recipe(bits=8, method=method, **FAST))
    y, yq = run(model, X), run(result.model, X)
    assert 10 * np.log10(y.var() / (y - yq).var()) > 30


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_producer_side_and_consumer_side_agree(bn, seed):
    """The same coefficients on either side of the Relu: the models differ by the 8-bit grid of the consumers
    only.
    """
    model = chain(seed, bn=bn)
    producer, consumer = (
        quantize(model, None, Recipe(method="paper", low_bits=2, high_bits=8, absorb=absorb, **FAST))
        for absorb in ("producer", "consumer")
    )
    low, high = (next(layer for layer in producer.layers if layer.name == name) for name in ("one", "two"))
    assert low.gain_min < 0.97 or low.gain_max > 1.03  # there is something to absorb
    weights = [ConstantTable(result.model)["q1s"] for result in (producer, consumer)]
    gammas = [
        numpy_helper.to_array(t)
        for result in (producer, consumer)
        for t in result.model.graph.initializer
        if t.name == "gamma"
    ]
    assert not np.allclose(*(gammas if bn else weights))
    y, yc, yp = (run(m, X).astype(np.float64) for m in (model, consumer.model, producer.model))
    between = 10 * np.log10(yp.var() / (yp - yc).var())
    ternary = 10 * np.log10(y.var() / (y - yp).var())
    assert high.bits == 8
    assert between > 28
    assert between > ternary + 15


def digits(model: Path, **knobs: Any) -> QuantizeResult:
    return quantize(model, None, Recipe(**knobs))


@pytest.fixture(scope="module")
def top1(digits_bn: Path, digits_data: Path) -> dict[str, float]:
    """Labelled top-1 of the shipped network at 2/6 for both methods, with and without their repairs."""
    found = {}
    for method, repair in (("paper", "none"), ("paper", "both"), ("dfmpc", "both")):
        knobs = {"low_bits": 2, "high_bits": 6, "method": method, "data": str(digits_data), "repair": repair}
        validation = digits(digits_bn, **knobs).validation
        assert validation is not None
        found[f"{method} {repair}"] = float(validation.top1_quantized)
        found["float"] = float(validation.top1_float)
    return found


def test_ternary_without_repair_breaks_the_digits_and_the_paper_repairs_them(top1):
    assert top1["float"] > 0.97
    assert top1["paper none"] < top1["float"] - 0.3
    assert top1["paper both"] > top1["paper none"] + 0.2


def test_the_default_beats_the_paper_and_is_near_the_float_model(top1):
    assert top1["dfmpc both"] >= top1["paper both"]
    assert top1["dfmpc both"] > top1["float"] - 0.05


def test_folded_batch_norm_is_quantized_as_well(digits_folded: Path, digits_data: Path):
    result = digits(digits_folded, low_bits=2, high_bits=6, data=str(digits_data))
    assert result.validation is not None
    assert result.validation.top1_quantized > 0.9


def test_the_saved_model_runs_with_default_options_and_validates_alone(
    tmp_path: Path, digits_bn: Path, digits_data: Path
):
    target = tmp_path / "small.onnx"
    quantize(digits_bn, target, Recipe(low_bits=2, high_bits=6, data=str(digits_data)))
    images = np.load(digits_data)["input"][:8]
    session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {session.get_inputs()[0].name: images})[0]).all()
    assert validate(digits_bn, target, digits_data, gates={"min_top1_agreement": 0.9})
    assert {layer.name for layer in inspect(digits_bn).layers} == set(json.loads(bits_of(load(target))))


def bits_of(model: ModelProto) -> str:
    return next(entry.value for entry in model.metadata_props if entry.key == "onnx_dfmpc.bits")
