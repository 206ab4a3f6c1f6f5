"""What a reader sees live, in 80 columns without colour, and the JSON document against its description."""

from __future__ import annotations

import io
import json
import math
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_dfmpc.evaluate.validation import DefaultRun, Gate, OutputMetrics, ValidationReport
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.pipeline.results import ComparisonResult, PlanResult
from onnx_dfmpc.pipeline.run import inspect_result
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report import document, plans
from onnx_dfmpc.report.outline import Chart
from onnx_dfmpc.report.renderers import outline, render
from onnx_dfmpc.report.schema import from_json, to_json
from onnx_dfmpc.spec import (
    ActivationRange,
    Advice,
    Expectation,
    IntegerActivations,
    KindNoise,
    Latency,
    LayerEffect,
    LayerPlan,
    LayerReport,
    QuantPlan,
    Skipped,
    SweepPoint,
    Timing,
    WeightHistogram,
)

DOCS = Path(__file__).resolve().parents[1] / "docs" / "json.md"

VALIDATION = ValidationReport(
    samples=12,
    data="x.npz, 12 samples",
    synthetic=False,
    outputs=(
        OutputMetrics("scores[0]", 0.99, 20.5, 0.1, 0.01, 0.75),
        OutputMetrics("boxes", 1.0, math.inf, 0.0, 0.0),
    ),
    top1_float=0.9,
    top1_quantized=0.8,
    labelled=12,
    gates=(Gate("min_cosine", 0.98, 0.99, True), Gate("max_top1_drop", 0.05, 0.1, False)),
    default_run=DefaultRun(12, 1e-3, 60.0),
    notes=("x: cast from float64 to float32",),
)


LATENCY = Latency(
    (
        Timing("float", 2e-3, 1.9e-3, 2.1e-3, 1.8e-3),
        Timing("quantized, default", 3e-3, 2.9e-3, 3.1e-3, 2.8e-3),
    ),
    30,
    1,
    1,
)


EFFECT = LayerEffect("head[bold]", "Conv", 2, 1234, 9.5, 0.94, 12.25, 0.75, 0.8)


EXPECTATION = Expectation(
    20.75,
    17.5,
    24.25,
    (KindNoise("pictures in 0 to 1", 0.75, 24.25), KindNoise("1/f images in 0 to 1", 0.25, 17.5)),
)


def layer(name: str, bits: int, reason: str, size: int = 100) -> LayerReport:
    return LayerReport(
        name,
        "Conv",
        (size, 1, 1, 1),
        "low",
        bits,
        "UINT2",
        1234,
        "closed form",
        0.9,
        1.05,
        13.0,
        None,
        reason,
    )


def plan(names: Sequence[str]) -> QuantPlan:
    planned = (
        LayerPlan(name, 2, "low", "asymmetric", "gptq", True, "cheap here", 10**-2.5, 1200) for name in names
    )
    return QuantPlan(
        "0" * 64,
        tuple(planned),
        (Skipped("gru", "GRU", "computed"),),
        "in.onnx",
        predicted_bytes=248,
        predicted_sqnr_db=20.75,
        predicted_low_db=17.5,
        predicted_high_db=24.25,
        source="probe",
    )


@pytest.fixture
def result() -> Any:
    proto = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 25)])
    layers = [
        layer(f"/very/long/name/of/a/layer.{i}/inside/a/block/Conv", 2, "second of its pair")
        for i in range(3)
    ]
    return SimpleNamespace(
        model=proto,
        source=SimpleNamespace(path=Path("in.onnx"), sha256="0" * 64, size=1000, opset=17),
        layers=(*layers, layer("head[bold]", 8, "last layer", 300)),
        skipped=(
            Skipped(
                "gru", "GRU", "its weight is used inside a subgraph, which this tool does not follow into"
            ),
        ),
        chains=(),
        expectation=EXPECTATION,
        activations=IntegerActivations(
            (ActivationRange("relu", 0.0, 6.0),), 2, {"up": "no kernel"}, {"QLinearConv": 2}, False, 30.0
        ),
        names={"a": "a long name"},
        size=250,
        notes=("opset raised from 17 to 25, for UINT2",),
        recipe=Recipe(low_bits=2),
        seconds={"load": 0.25},
        plan=plan([layer.name for layer in layers] + ["head[bold]"]),
        validation=VALIDATION,
        output=None,
        sweep=(SweepPoint(500, 480, 4.0, 21.0),),
        histograms=(WeightHistogram("head[bold]", -1.0, 1.0, (1, 2, 1), (2, 0, 2)),),
        latency=LATENCY,
        per_layer=(EFFECT,),
        advice=(Advice("--set", r"^head\[bold\]$=6", 4321, 6.75),),
    )


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def text(plain: document.Json, *, wide: bool = False) -> str:
    return render([plain], "terminal", wide=wide)


def quantized(result: Any, *, wide: bool = False) -> str:
    return text(document.quantize_document(result), wide=wide)


def validated(report: ValidationReport) -> str:
    file: Any = SimpleNamespace(path=None, sha256="", size=0, opset=17)
    return text(document.validate_document(ComparisonResult(file, file, report)))


def lines_of(shown: str) -> str:
    """Text without line breaks."""
    return " ".join(shown.split())


def require_narrow(shown: str) -> None:
    """In 80 columns, but for what is to be copied."""
    assert (
        max(len(line) for line in shown.splitlines() if not line.startswith(("--set ", "onnx-dfmpc "))) <= 80
    )
    assert "\x1b" not in shown


def documented() -> set[str]:
    """Words in backticks of the description."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", DOCS.read_text(encoding="utf-8")))))


def keys(
    value: Any, *, skip: tuple[str, ...] = ("recipe", "seconds", "kernels", "floats", "names")
) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys(item) for name, item in value.items() if name not in skip))
    if isinstance(value, list):
        return set().union(*map(keys, value))
    return set()


# ----------------------------------------------------------------------------------------------------------------------
# tables


@pytest.mark.parametrize("wide", [False, True])
def test_a_run_fits_and_loses_nothing(result: Any, wide: bool) -> None:
    shown = quantized(result, wide=wide)
    require_narrow(shown)
    packed = re.sub(r"\s", "", shown)
    for words in (
        "quantize in.onnx → not written",
        "opset 17 → 25",
        "1,234",
        "13.0",
        "0.90-1.05",
        "head[bold]",
        "its weight is used inside",
        "opset raised",
        "1,000 → 250 bytes (25.0 %), 248 predicted",
        "worst output, 20.8 dB predicted, 17.5 to 24.2",
        "600 weights in 4 layers, 1 stays float",
    ):
        assert words.replace(" ", "") in packed, words
    assert re.search(r"^Bits per weight +5\.00 ", shown, re.MULTILINE)
    assert re.search(r"^Output SQNR +20\.5 dB ", shown, re.MULTILINE)
    assert ("last layer" in lines_of(shown)) == ("load 250 ms" in shown) == wide
    assert bool(re.search(r"low_bits +2\n", shown)) == wide


def test_numbers_never_break(result: Any) -> None:
    """However long the names are that stand beside them."""
    shown = quantized(result, wide=True)
    numbers = ("1,234", "0.90-1.05", "0.990000", "20.50", "500", "480")
    assert all(number in shown for number in numbers)


def test_a_terminal_that_knows_only_ascii(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    shown = quantized(result)
    assert shown.isascii()
    assert "in.onnx -> not written" in shown
    assert "####" in shown


def test_a_remark_on_many_layers_is_one_line(result: Any) -> None:
    notes = {"a": ("old", "odd"), "b": ("old",), "c": ("old",), "d": ("old",)}
    rows = [replace(result.layers[0], name=name, notes=remarks) for name, remarks in notes.items()]
    plain = document.quantize_document(result) | {"layers": [to_json(row) for row in rows]}
    lines = [line.rstrip() for line in text(plain).splitlines()]
    assert [line for line in lines if line.endswith((": old", ": odd"))] == [
        "a, b, c and 1 more layer: old",
        "a: odd",
    ]


def test_gates_are_words_not_colours(result: Any) -> None:
    shown = quantized(result)
    assert "PASSED min_cosine: 0.99, limit 0.98" in shown
    assert "FAILED max_top1_drop: 0.1, limit 0.05" in shown
    assert shown.endswith("\n\nFAILED: max_top1_drop = 0.05 missed.\n")
    assert re.search(r"top-1 +90\.00 % +80\.00 % +−10\.00\n", shown)
    assert "session.disable_quant_qdq=1" in shown
    assert "at most 0.001 (60.0 dB, 12 samples)" in lines_of(shown)
    assert "sanity check" not in shown
    assert "WARNING" not in shown
    assert "WARNING" in validated(replace(VALIDATION, default_run=DefaultRun(12, 5.0, -2.0)))
    assert "give the same outputs" in lines_of(
        validated(replace(VALIDATION, default_run=DefaultRun(12, 0.0, None)))
    )


def test_layers_that_do_harm_come_with_what_helps(result: Any) -> None:
    shown = quantized(result)
    assert re.search(r"head\[bold\] +2 +1,234 +9\.5 +12\.2 +80\.0 % +75\.0 %", shown)
    assert r"--set '^head\[bold\]$=6'" in shown.splitlines()
    assert "What helps, to add to the command; tried one at a time:" in shown
    assert "+4,321 bytes, output SQNR +6.8 dB:" in shown
    result.advice = (Advice("--target-bits", "4.5", 4321, 6.75),)
    shown = quantized(result)
    assert "What helps, in place of the present target; tried one at a time:" in shown
    assert "--target-bits 4.5" in shown.splitlines()
    result.advice = ()
    assert "What helps" not in quantized(result)
    many = tuple(replace(EFFECT, name=f"layer {number}") for number in range(12))
    result.per_layer = many
    short, full = (quantized(result, wide=wide) for wide in (False, True))
    assert "layer 9 " in short
    assert "layer 10" not in short
    assert "and 2 more: -v" in short
    assert "layer 11" in full


def test_effects_that_are_no_number(result: Any) -> None:
    result.per_layer = (
        replace(EFFECT, own_sqnr_db=None),
        replace(EFFECT, own_sqnr_db=math.inf, own_share=0.0),
    )
    shown = quantized(result)
    assert re.search(r"9\.5 +not finite +80\.0 %", shown)
    assert re.search(r"9\.5 +same +0\.0 %", shown)


def test_latency_is_told_in_words(result: Any) -> None:
    shown = lines_of(quantized(result))
    assert "quantized, default 3 ms 2.9 ms to 3.1 ms 1.50×" in shown
    assert "30 runs of each in turn, 1 thread, batch 1" in shown
    assert "Activations are quantized too" in shown
    timings = (*LATENCY.timings, Timing("quantized, recommended", 2.1e-3, 2e-3, 2.2e-3, 1.9e-3))
    result.latency = replace(LATENCY, timings=timings)
    shown = lines_of(quantized(result))
    assert "buys size, not speed" in shown
    assert "(1.50× of the float model's time here)" in shown
    assert "when it loads the model (1.05×)" in shown


def test_the_command_to_repeat_it_stays_on_one_line() -> None:
    command = "onnx-dfmpc validate " + "/a/long/path" * 9 + ".onnx small.onnx"
    assert command in validated(replace(VALIDATION, command=command)).splitlines()


def test_what_could_not_be_measured_is_said() -> None:
    broken = replace(
        VALIDATION,
        synthetic=True,
        outputs=(OutputMetrics("y", None, None, None, None),),
        failures=("quantized model: NaN in output 'y' (sample 0)",),
        gates=(Gate("min_cosine", 0.9, None, False),),
        weight_only=False,
        default_run=None,
    )
    shown = lines_of(validated(broken))
    assert "a sanity check, not accuracy" in shown
    assert "FAILED quantized model: NaN in output 'y' (sample 0)" in shown
    assert "FAILED min_cosine: not measured" in shown
    assert "default session options, because activations are quantized" in shown


def test_inspect_of_the_shipped_network(digits_bn: Path) -> None:
    found = inspect_result(digits_bn)
    source, matched = found.source, found.report
    shown = text(document.inspect_document(found))
    require_narrow(shown)
    assert all(layer.name in shown for layer in matched.layers if len(layer.name) < 27)
    assert re.search(r"/conv/Conv +Conv +12×1×3×3 +kept +Relu +producer\n", shown)
    assert "/blocks/blocks.0/conv1/Conv → /blocks/blocks.0/conv2/Conv: BatchNormalization" in lines_of(shown)
    assert "Relu; coefficients: either side" in lines_of(shown)
    count = f"{matched.weighted_nodes} weighted nodes: {len(matched.layers)} layers to quantize"
    assert f"{count}, {len(matched.skipped)} skipped" in shown
    assert f"{source.size:,} bytes" in shown
    assert f"opset {source.opset}" in shown


def test_inspect_without_layers() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    found = inspect_result(proto)
    assert "0 weighted nodes: 0 layers" in text(document.inspect_document(found))
    assert found.belief is None


def test_inspect_says_what_the_inputs_may_be(digits_folded: Path) -> None:
    found = inspect_result(digits_folded)
    plain = document.inspect_document(found)
    weights = [row["weight"] for row in plain["inputs"]]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1)
    assert plain["inputs"][0]["name"] == str(found.belief and found.belief.likeliest)
    left, note = plain["notes"]
    assert left.startswith("float bytes left:")
    assert "--input-range" in note
    assert note in lines_of(text(plain))
    wide = lines_of(render([plain], "terminal", wide=True))
    assert "What the inputs may be" in wide
    assert plain["inputs"][0]["name"] in wide


@pytest.fixture
def planned(digits_bn: Path) -> PlanResult:
    source = load(digits_bn)
    matched = match(source.proto)
    points = tuple(SweepPoint(1000 * n, 990 * n, 2.0 * n, 10.0 * n - 10) for n in (1, 2, 3))
    return PlanResult(
        source,
        matched,
        plan([layer.name for layer in matched.layers]),
        Recipe(target_size=250),
        points,
        ("a note",),
        {"load": 1.0},
    )


def plan_text(result: PlanResult, *, wide: bool = False) -> str:
    return text(plans.plan_document(replace(result.plan, recipe=result.recipe.to_dict()), result), wide=wide)


@pytest.mark.parametrize("wide", [False, True])
def test_a_plan_fits_and_loses_nothing(planned: PlanResult, wide: bool) -> None:
    shown = plan_text(planned, wide=wide)
    require_narrow(shown)
    for words in ("25.0", "1,200", "cheap here", "a note", "2.00", "1 stays float", "248 bytes", "20.8 dB"):
        assert words in shown, words
    assert bool(re.search(r"target_size +250\n", shown)) == ("Time: load 1 s." in shown) == wide


def test_what_is_not_predicted_is_not_shown(planned: PlanResult) -> None:
    bare = replace(
        planned.plan,
        layers=tuple(replace(layer, noise=None, bytes=None) for layer in planned.plan.layers),
        predicted_bytes=None,
        predicted_sqnr_db=None,
    )
    shown = plan_text(replace(planned, plan=bare, sweep=()))
    assert "Predicted" not in shown
    assert "budget" not in shown


def bars(points: Sequence[SweepPoint], planned: PlanResult) -> list[int]:
    shown = plan_text(replace(planned, sweep=tuple(points)))
    table = shown[shown.index("Size against quality") : shown.index("Layers")]
    return [line.count("\u2588") for line in table.splitlines() if re.match(r" *\d,\d{3} ", line)]


def test_sweep(planned: PlanResult) -> None:
    shown = plan_text(planned)
    require_narrow(shown)
    assert re.search(r"2,000 +1,980 +4\.00 +10\.0 +\u2588+\n", shown)
    assert "measured" not in shown
    none, half, full = bars(planned.sweep, planned)
    assert (none, 2 * half) == (0, full)
    point = replace(planned.sweep[1], measured_sqnr_db=9.5, top1=0.875)
    assert re.search(r"10\.0 +9\.5 +87\.50 %", plan_text(replace(planned, sweep=(point,))))
    assert "too small" in plan_text(replace(planned, sweep=(point, SweepPoint(10))))


@given(st.lists(st.none() | st.floats(-50, 50) | st.just(math.inf), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_longer_bars_are_better(planned: PlanResult, heights: list[float | None]) -> None:
    drawn = bars([SweepPoint(1000, 1000, 4.0, height) for height in heights], planned)
    assert len(drawn) == len(heights)
    pairs = zip(heights, drawn, strict=True)
    known = sorted((height, bar) for height, bar in pairs if height is not None and math.isfinite(height))
    assert [bar for _, bar in known] == sorted(bar for _, bar in known)


# --------------------------------------------------------------------------------------------------------------------
# document


def test_quantize_document_has_the_promised_keys(result: Any) -> None:
    plain = json.loads(document.dumps(document.quantize_document(result)))
    assert plain["schema"] == 2
    assert set(plain["model"]) == {"path", "sha256", "bytes", "opset"}
    assert set(plain["output"]) == {"path", "bytes", "opset"}
    assert plain["predicted"] == {
        "bytes": 248,
        "sqnr_db": 20.75,
        "source": "probe",
        "low_db": 17.5,
        "high_db": 24.25,
        "kinds": [
            {"name": "pictures in 0 to 1", "weight": 0.75, "sqnr_db": 24.25},
            {"name": "1/f images in 0 to 1", "weight": 0.25, "sqnr_db": 17.5},
        ],
    }
    assert plain["form"] == {
        "target": None,
        "storage": "table",
        "unpack": "none",
        "fold_batch_norm": "no",
        "activations": None,
        "slim": False,
        "reduce_range": False,
    }
    assert plain["layers"][0]["predicted_bytes"] == 1200
    promised = (
        "name op shape bits storage bytes source gain_min gain_max predicted_sqnr_db measured_sqnr_db reason"
    )
    assert set(promised.split()) <= set(plain["layers"][0])
    assert set(plain["skipped"][0]) == {"name", "op", "reason"}
    assert {"weights", "nominal_bits", "bytes_ratio"} <= set(plain["totals"])
    promised = "samples data cosine sqnr_db max_abs top1_agreement top1_float top1_quantized gates"
    assert set(promised.split()) <= set(plain["validation"])
    assert plain["totals"] == {
        "layers": 4,
        "skipped": 1,
        "weights": 600,
        "nominal_bits": 5.0,
        "bytes_ratio": 0.25,
    }
    assert plain["seconds"] == {"load": 0.25}
    assert Recipe.from_dict(plain["recipe"]) == result.recipe


def test_every_key_is_documented(result: Any, planned: PlanResult, digits_bn: Path) -> None:
    found = inspect_result(digits_bn)
    source = found.source
    documents = (
        document.quantize_document(result),
        plans.plan_document(planned.plan, planned),
        document.inspect_document(found),
        document.validate_document(ComparisonResult(source, source, VALIDATION, (EFFECT,), LATENCY)),
    )
    for plain in documents:
        assert keys(plain) <= documented(), keys(plain) - documented()


def test_plan_document(planned: PlanResult) -> None:
    plain = json.loads(document.dumps(plans.plan_document(planned.plan, planned)))
    assert plain["command"] == "plan"
    assert set(plain["model"]) == {"name", "path", "sha256", "bytes", "opset"}
    assert plain["totals"] == {"layers": 16, "skipped": 1, "weights": 97_932, "nominal_bits": 2.0}
    assert [point["bytes"] for point in plain["sweep"]] == [990, 1980, 2970]
    assert Recipe.from_dict(plain["recipe"] or planned.recipe.to_dict()) == planned.recipe


def test_the_environment_is_that_of_the_installed_packages(planned: PlanResult) -> None:
    found = plans.plan_document(planned.plan)["environment"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("onnx", "onnxruntime", "numpy"):
        assert found[name] == metadata.version(name)
    assert found["platform"].startswith(platform.system())


def test_the_report_of_a_plan_shows_what_float_weights_take(planned: PlanResult) -> None:
    plain = plans.plan_document(planned.plan, planned)
    shapes = {layer.name: layer.shape for layer in planned.report.layers}
    (chart,) = [
        block
        for part in outline([plain]).sections
        for block in part.blocks
        if isinstance(block, Chart) and block.title == "Size of every layer"
    ]
    drawn = {row["name"]: row["bytes"] for row in chart.spec["data"]["values"] if row["series"] == "float"}
    assert drawn == {layer["name"]: 4 * math.prod(shapes[layer["name"]]) for layer in plain["layers"]}


def test_the_worst_output_counts() -> None:
    file: Any = SimpleNamespace(path=None, sha256="", size=0, opset=17)
    plain = document.validate_document(ComparisonResult(file, file, VALIDATION))["validation"]
    assert (plain["cosine"], plain["sqnr_db"], plain["max_abs"], plain["top1_agreement"]) == (
        0.99,
        20.5,
        0.1,
        0.75,
    )
    assert not plain["passed"]


def test_no_nan_in_json() -> None:
    plain = json.loads(document.dumps(to_json({"a": [math.nan, {"b": -math.inf}], "c": 1.5})))
    assert plain == {"a": [None, {"b": None}], "c": 1.5}


def test_one_schema_for_both_directions(result: Any, planned: PlanResult, digits_bn: Path) -> None:
    """What is written is read back, and what a report reads of it is what was written."""
    found = inspect_result(digits_bn)
    source = found.source
    for plain in (
        document.quantize_document(result),
        plans.plan_document(planned.plan, planned),
        document.inspect_document(found),
        document.validate_document(ComparisonResult(source, source, VALIDATION, (EFFECT,), LATENCY)),
    ):
        again = to_json(from_json(document.Document, plain, "run.json"))
        for key in set(plain) & set(again):
            assert_part_of(again[key], plain[key], key)


def assert_part_of(read: Any, written: Any, place: str) -> None:
    if isinstance(read, dict):
        for key in set(read) & set(written):
            assert_part_of(read[key], written[key], f"{place}.{key}")
    elif isinstance(read, list):
        assert len(read) == len(written), place
        for one, other in zip(read, written, strict=True):
            assert_part_of(one, other, place)
    else:
        assert read == written, place
