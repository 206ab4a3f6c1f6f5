"""Tables in 80 columns without colour, and the JSON document against its description."""

from __future__ import annotations

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
from rich.console import Console, RenderableType

from onnx_dfmpc import report
from onnx_dfmpc.evaluate.validation import DefaultRun, Gate, OutputMetrics, ValidationReport
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report import document, plans
from onnx_dfmpc.report.outline import Chart
from onnx_dfmpc.report.run import run_outline
from onnx_dfmpc.pipeline.results import ComparisonResult, PlanResult
from onnx_dfmpc.spec import (
    Latency,
    LayerEffect,
    LayerPlan,
    LayerReport,
    QuantPlan,
    Skipped,
    Suggestion,
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


EFFECT = LayerEffect(
    "head[bold]",
    "Conv",
    2,
    1234,
    9.5,
    0.94,
    12.25,
    0.75,
    0.8,
    Suggestion(r"^head\[bold\]$=6", 6, 4321, 38.5, 6.75),
)


def layer(name: str, bits: int, reason: str, size: int = 100) -> LayerReport:
    return LayerReport(
        name, "Conv", (size, 1, 1, 1), "low", bits, "UINT2", 1234, "analytic", 0.9, 1.05, 13.0, None, reason
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
        provider="probe",
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
    )


def text(view: RenderableType, width: int = 80) -> str:
    console = Console(width=width, markup=False, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def documented() -> set[str]:
    """Words in backticks of the description."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", DOCS.read_text(encoding="utf-8")))))


def keys(value: Any, *, skip: tuple[str, ...] = ("recipe", "seconds")) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys(item) for name, item in value.items() if name not in skip))
    if isinstance(value, list):
        return set().union(*map(keys, value))
    return set()


# ----------------------------------------------------------------------------------------------------------------------
# tables


@pytest.mark.parametrize("verbose", [False, True])
def test_quantize_view_fits_and_loses_nothing(result: Any, verbose: bool) -> None:
    shown = text(report.quantize_view(result, verbose=verbose))
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    packed = re.sub(r"\s", "", shown)
    for words in (
        "in.onnx -> not written",
        "1,234",
        "13.0",
        "0.90-1.05",
        "head[bold]",
        "its weight is used inside",
        "opset raised",
    ):
        assert words.replace(" ", "") in packed, words
    assert "1,000 -> 250 bytes (25.0%), predicted 248, opset 17 -> 25" in shown
    assert "output SQNR: predicted 20.8 dB (probe), measured 20.5 dB" in shown
    assert "5.00 nominal bits" in shown
    assert "1 skipped" in shown
    assert ("last layer" in shown) == ("load 0.25" in shown) == ("recipe: low_bits = 2" in shown) == verbose


def test_a_remark_on_many_layers_is_one_line(result: Any) -> None:
    notes = {"a": ("old", "odd"), "b": ("old",), "c": ("old",)}
    result.layers = [replace(result.layers[0], name=name, notes=remarks) for name, remarks in notes.items()]
    lines = [line.rstrip() for line in text(report.quantize_view(result)).splitlines()]
    assert [line for line in lines if line.endswith((": old", ": odd"))] == [
        "note: a and 2 others: old",
        "note: a: odd",
    ]


def test_gates_are_words_not_colours(result: Any) -> None:
    shown = text(report.quantize_view(result))
    assert "PASSED min_cosine: 0.99, limit 0.98" in shown
    assert "FAILED max_top1_drop: 0.1, limit 0.05" in shown
    assert "float 90.00 %, quantized 80.00 % (-10.00 points)" in shown
    assert "session.disable_quant_qdq=1" in shown
    assert "at most 0.001" in shown
    assert "sanity check" not in shown
    assert "WARNING" not in shown
    assert "WARNING" in text(report.validate_view(replace(VALIDATION, default_run=DefaultRun(12, 5.0, -2.0))))


def test_layers_that_do_harm_come_with_what_helps(result: Any) -> None:
    shown = text(report.quantize_view(result))
    assert re.search(r"head\[bold\] +2 +1,234 +9\.5 +12\.2 +80\.0 % +75\.0 %", shown)
    assert r"--set '^head\[bold\]$=6'" in shown.splitlines()
    assert "+4,321 bytes; alone 38.5 dB then, all layers together 6.8 dB better" in shown
    many = tuple(replace(EFFECT, name=f"layer {number}", suggestion=None) for number in range(12))
    result.per_layer = many
    short, full = (text(report.quantize_view(result, verbose=verbose)) for verbose in (False, True))
    assert "layer 9 " in short
    assert "layer 10" not in short
    assert "and 2 layers more" in short
    assert "layer 11" in full


def test_latency_is_told_in_words(result: Any) -> None:
    shown = " ".join(text(report.quantize_view(result)).split())
    assert "quantized, default 3.00 2.90-3.10 1.50x" in shown
    assert "30 runs of each in turn, 1 thread, batch 1" in shown
    assert "Activations are quantized too" in shown
    timings = (*LATENCY.timings, Timing("quantized, recommended", 2.1e-3, 2e-3, 2.2e-3, 1.9e-3))
    result.latency = replace(LATENCY, timings=timings)
    shown = " ".join(text(report.quantize_view(result)).split())
    assert "buys size, not speed" in shown
    assert "(1.50x of the float model's time here)" in shown
    assert "when it loads the model (1.05x)" in shown


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
    shown = text(report.validate_view(broken))
    assert "a sanity check, not accuracy" in shown
    assert "FAILED quantized model: NaN in output 'y' (sample 0)" in shown
    assert "FAILED min_cosine: not measured" in shown
    assert "default session options, because activations are quantized" in shown


def test_inspect_view_of_the_shipped_network(digits_bn: Path) -> None:
    source = load(digits_bn)
    matched = match(source.proto)
    shown = text(report.inspect_view(source, matched))
    assert max(map(len, shown.splitlines())) <= 80
    assert all(name.name in shown for name in matched.layers if len(name.name) < 30)
    assert (
        f"{matched.weighted_nodes} weighted nodes: {len(matched.layers)} layers to quantize, {len(matched.skipped)} skipped"
        in shown
    )
    assert f"{source.size:,} bytes, opset {source.opset}" in shown


def test_inspect_view_without_layers() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    source = load(proto)
    assert "0 weighted nodes: 0 layers" in text(report.inspect_view(source, match(source.proto)))


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


@pytest.mark.parametrize("verbose", [False, True])
def test_plan_view(planned: PlanResult, verbose: bool) -> None:
    shown = text(report.plan_view(planned, "plan.json", verbose=verbose))
    assert max(map(len, shown.splitlines())) <= 80
    for words in (
        "-> plan.json",
        "25.0",
        "1,200",
        "cheap here",
        "note: a note",
        "2.00 nominal bits",
        "1 skipped",
        "248 bytes predicted",
        "20.8 dB",
    ):
        assert words in shown, words
    assert ("recipe: target_size = 250" in shown) == ("load 1.00" in shown) == verbose


def test_what_is_not_predicted_is_not_shown(planned: PlanResult) -> None:
    bare = replace(
        planned.plan, layers=tuple(replace(layer, noise=None, bytes=None) for layer in planned.plan.layers)
    )
    shown = text(
        report.plan_view(
            replace(planned, plan=replace(bare, predicted_bytes=None, predicted_sqnr_db=None), sweep=())
        )
    )
    assert "not written" in shown
    assert "predicted" not in shown
    assert "budget" not in shown


def bars(points: Sequence[SweepPoint], planned: PlanResult) -> list[int]:
    shown = text(report.plan_view(replace(planned, sweep=tuple(points))))
    return [
        line.count("\u2588") for line in shown[shown.index("Size against quality") :].splitlines()[3:] if line
    ]


def test_sweep(planned: PlanResult) -> None:
    shown = text(report.plan_view(planned))
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"2,000 +1,980 +4\.00 +10\.0 +\u2588+ *\n", shown)
    assert "measured" not in shown
    none, half, full = bars(planned.sweep, planned)
    assert (none, 2 * half) == (0, full)
    measured = text(
        report.plan_view(
            replace(planned, sweep=(replace(planned.sweep[1], measured_sqnr_db=9.5, top1=0.875),))
        )
    )
    assert re.search(r"10\.0 +9\.5 +87\.50 %", measured)


@given(st.lists(st.none() | st.floats(-50, 50) | st.just(math.inf), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_longer_bars_are_better(planned: PlanResult, heights: list[float | None]) -> None:
    drawn = bars([SweepPoint(1000, 1000, 4.0, height) for height in heights], planned)
    assert len(drawn) == len(heights)
    known = sorted((height, bar) for height, bar in zip(heights, drawn, strict=True) if height is not None)
    assert [bar for _, bar in known] == sorted(bar for _, bar in known)


# --------------------------------------------------------------------------------------------------------------------
# document


def test_quantize_document_has_the_promised_keys(result: Any) -> None:
    plain = json.loads(document.dumps(document.quantize_document(result)))
    assert plain["schema"] == 1
    assert set(plain["model"]) == {"path", "sha256", "bytes", "opset"}
    assert set(plain["output"]) == {"path", "bytes", "opset"}
    assert plain["predicted"] == {"bytes": 248, "sqnr_db": 20.75, "provider": "probe"}
    assert plain["form"] == {
        "storage": "native",
        "unpack": "none",
        "fold_batch_norm": "no",
    }
    assert plain["layers"][0]["predicted_bytes"] == 1200
    promised = "name op shape bits storage bytes provider gain_min gain_max predicted_sqnr_db measured_sqnr_db reason"
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
    source = load(digits_bn)
    documents = (
        document.quantize_document(result),
        plans.plan_result_document(planned),
        document.inspect_document(source, match(source.proto)),
        document.validate_document(ComparisonResult(source, source, VALIDATION, (EFFECT,), LATENCY)),
    )
    for plain in documents:
        assert keys(plain) <= documented(), keys(plain) - documented()


def test_plan_document(planned: PlanResult) -> None:
    plain = json.loads(document.dumps(plans.plan_result_document(planned)))
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
    plain = plans.plan_result_document(planned)
    shapes = {layer.name: layer.shape for layer in planned.report.layers}
    (chart,) = [
        block
        for part in run_outline(plain).sections
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
    plain = json.loads(document.dumps({"a": [math.nan, {"b": -math.inf}], "c": 1.5}))
    assert plain == {"a": [None, {"b": None}], "c": 1.5}
