"""Tables in 80 columns without colour, and the JSON document against its description."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper
from rich.console import Console, RenderableType

from onnx_dfmpc import document, graph, report
from onnx_dfmpc.match import match
from onnx_dfmpc.metrics import DefaultRun, Gate, OutputMetrics, ValidationReport
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.spec import LayerReport, Skipped

DOCS = Path(__file__).resolve().parents[1] / "docs" / "json.md"

VALIDATION = ValidationReport(
    samples=12,
    data="x.npz, 12 samples",
    synthetic=False,
    outputs=(OutputMetrics("scores[0]", 0.99, 20.5, 0.1, 0.01, 0.75), OutputMetrics("boxes", 1.0, math.inf, 0.0, 0.0)),
    top1_float=0.9,
    top1_quantized=0.8,
    labelled=12,
    gates=(Gate("min_cosine", 0.98, 0.99, True), Gate("max_top1_drop", 0.05, 0.1, False)),
    default_run=DefaultRun(12, 1e-3, 60.0),
    notes=("x: cast from float64 to float32",),
)


def layer(name: str, bits: int, reason: str, size: int = 100) -> LayerReport:
    return LayerReport(name, "Conv", (size, 1, 1, 1), "low", bits, "UINT2", 1234, "analytic", 0.9, 1.05, 13.0, None, reason)


@pytest.fixture
def result() -> Any:
    proto = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 25)])
    layers = [layer(f"/very/long/name/of/a/layer.{i}/inside/a/block/Conv", 2, "second of its pair") for i in range(3)]
    return SimpleNamespace(
        model=proto,
        source=SimpleNamespace(path=Path("in.onnx"), sha256="0" * 64, size=1000, opset=17),
        layers=(*layers, layer("head[bold]", 8, "last layer", 300)),
        skipped=(Skipped("gru", "GRU", "its weight is used inside a subgraph, which this tool does not follow into"),),
        chains=(),
        size=250,
        notes=("opset raised from 17 to 25, for UINT2",),
        recipe=Recipe(low_bits=2),
        seconds={"load": 0.25},
        validation=VALIDATION,
        output=None,
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


# ---------------------------------------------------------------------------------------------------------------------- tables


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
    assert "1,000 -> 250 bytes (25.0%), opset 17 -> 25" in shown
    assert "5.00 nominal bits" in shown
    assert "1 skipped" in shown
    assert ("last layer" in shown) == ("load 0.25" in shown) == verbose


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
    source = graph.load(digits_bn)
    matched = match(source.proto)
    shown = text(report.inspect_view(source, matched))
    assert max(map(len, shown.splitlines())) <= 80
    assert all(name.name in shown for name in matched.layers if len(name.name) < 30)
    assert f"{matched.weighted_nodes} weighted nodes: {len(matched.layers)} layers to quantize, {len(matched.skipped)} skipped" in shown
    assert f"{source.size:,} bytes, opset {source.opset}" in shown


def test_inspect_view_without_layers() -> None:
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    source = graph.load(proto)
    assert "0 weighted nodes: 0 layers" in text(report.inspect_view(source, match(source.proto)))


# -------------------------------------------------------------------------------------------------------------------- document


def test_quantize_document_has_the_promised_keys(result: Any) -> None:
    plain = json.loads(document.dumps(document.quantize_document(result)))
    assert plain["schema"] == 1
    assert set(plain["model"]) == {"path", "sha256", "bytes", "opset"}
    assert set(plain["output"]) == {"path", "bytes", "opset"}
    promised = "name op shape bits storage bytes provider gain_min gain_max predicted_sqnr_db measured_sqnr_db reason"
    assert set(promised.split()) <= set(plain["layers"][0])
    assert set(plain["skipped"][0]) == {"name", "op", "reason"}
    assert {"weights", "nominal_bits", "bytes_ratio"} <= set(plain["totals"])
    promised = "samples data cosine sqnr_db max_abs top1_agreement top1_float top1_quantized gates"
    assert set(promised.split()) <= set(plain["validation"])
    assert plain["totals"] == {"layers": 4, "skipped": 1, "weights": 600, "nominal_bits": 5.0, "bytes_ratio": 0.25}
    assert plain["seconds"] == {"load": 0.25}
    assert Recipe.from_dict(plain["recipe"]) == result.recipe


def test_every_key_is_documented(result: Any, digits_bn: Path) -> None:
    source = graph.load(digits_bn)
    documents = (
        document.quantize_document(result),
        document.inspect_document(source, match(source.proto)),
        document.validate_document(source, source, VALIDATION),
    )
    for plain in documents:
        assert keys(plain) <= documented(), keys(plain) - documented()


def test_the_worst_output_counts() -> None:
    plain = document.validate_document(*[SimpleNamespace(path=None, sha256="", size=0, opset=17)] * 2, VALIDATION)["validation"]
    assert (plain["cosine"], plain["sqnr_db"], plain["max_abs"], plain["top1_agreement"]) == (0.99, 20.5, 0.1, 0.75)
    assert not plain["passed"]


def test_no_nan_in_json() -> None:
    plain = json.loads(document.dumps({"a": [math.nan, {"b": -math.inf}], "c": 1.5}))
    assert plain == {"a": [None, {"b": None}], "c": 1.5}
