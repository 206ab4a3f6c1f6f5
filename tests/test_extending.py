"""What CONTRIBUTING.md says of adding something, done from outside with a toy of each kind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import onnx_dfmpc
from onnx_dfmpc import Recipe, quantize, validate
from onnx_dfmpc.cli import main
from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.evaluate import metrics, validation
from onnx_dfmpc.evaluate.gates import gate_results
from onnx_dfmpc.linalg.matrices import Diagonal
from onnx_dfmpc.methods import METHODS
from onnx_dfmpc.pipeline.job import Job
from onnx_dfmpc.pipeline.sources import SOURCES
from onnx_dfmpc.recipe import Gates
from onnx_dfmpc.recipe.values import plain, real, setting
from onnx_dfmpc.report import document
from onnx_dfmpc.report.outline import Outline
from onnx_dfmpc.report.renderers import RENDERERS, Renderer, format_of, render
from onnx_dfmpc.rounding.grids import Codes, GridSpec, min_max
from onnx_dfmpc.rounding.rounding import ROUNDINGS, RoundingMethod
from onnx_dfmpc.spec import InputStatistics, LayerStatistics
from onnx_dfmpc.spec.moments import STATISTICS
from onnx_dfmpc.spec.ops import OPS, WeightedOp
from onnx_dfmpc.spec.planned import STORAGE_FORMATS
from onnx_dfmpc.storage.layouts import STORAGES, table
from onnx_dfmpc.storage.types import WeightLayout, WeightSpec
from tests.graphs import noise, parse

PLAIN: Mapping[str, Any] = {"bits": 4, "rounding": "nearest", "repair": "none"}


def test_names_in_spec_are_the_rows_of_the_registries() -> None:
    assert list(STATISTICS) == list(SOURCES)
    assert list(STORAGE_FORMATS) == list(STORAGES)


def test_a_rounding_method(monkeypatch: pytest.MonkeyPatch, digits_bn: Path) -> None:
    def down(rows: Any, grid: GridSpec, taps: int, covariance: Any) -> Codes:
        scale, zero_point = min_max(rows, grid)
        codes = np.clip(np.floor(rows / scale[..., None]) + zero_point[..., None], *grid.limits)
        return Codes(codes.astype(np.int32), scale, zero_point, grid.limits)

    with pytest.raises(RecipeError, match="down"):
        Recipe(rounding="down")
    monkeypatch.setitem(ROUNDINGS, "down", RoundingMethod(down))
    recipe = Recipe(bits=4, rounding="down", repair="none", storage="native")
    result = quantize(digits_bn, recipe=recipe, validated=False)
    assert {layer.rounding for layer in result.plan.layers} == {"down"}
    # All of its errors have one sign, except where a weight is at the end of the grid.
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(digits_bn).graph.initializer}
    matched = onnx_dfmpc.inspect(digits_bn)
    stored = stored_weights(result.model, [layer.weight for layer in matched.layers])
    errors = np.concatenate([(stored[name] - original[name]).ravel() for name in stored])
    assert (errors < 1e-6).mean() > 0.99
    assert errors.mean() < -1e-3


def stored_weights(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Float weights that a file stands for, read by the reference implementation of ONNX."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = {name for node in copy.graph.node for name in node.output}
    wanted = [name for name in names if name in made]
    kept = [node for node in copy.graph.node if node.op_type == "DequantizeLinear"]
    del copy.graph.node[:], copy.graph.output[:], copy.graph.input[:]
    copy.graph.node.extend(kept)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    return dict(zip(wanted, ReferenceEvaluator(copy).run(None, {}), strict=True))


def test_a_method(monkeypatch: pytest.MonkeyPatch, digits_bn: Path) -> None:
    toy = replace(METHODS["dfmpc"], per_channel=False, rounding="nearest", uses_outputs=False)
    monkeypatch.setitem(METHODS, "coarse", toy)
    coarse = Recipe(bits=4, method="coarse", repair="none")
    result = quantize(digits_bn, recipe=coarse, validated=False)
    assert {layer.per_channel for layer in result.plan.layers} == {False}
    assert result.size < quantize(digits_bn, recipe=Recipe(**PLAIN), validated=False).size


def test_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of another domain, whose body is a local function."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>
    g (float[N, 8] x) => (float[N, 6] y) { [dense] y = com.example.Linear(x, w) }
    <domain: "com.example", opset_import: ["" : 17]>
    Linear (a, b) => (c) { c = Einsum <equation = "ni,oi->no"> (a, b) }"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(noise(6, 8), "w"))
    assert not onnx_dfmpc.inspect(model).layers
    row = WeightedOp(lambda _: 0, spatial=False, grouped=False, batched=True, bias_input=None)
    monkeypatch.setitem(OPS, "com.example::Linear", row)
    (layer,) = onnx_dfmpc.inspect(model).layers
    assert (layer.name, layer.channels) == ("dense", 6)
    result = quantize(model, recipe=Recipe(bits=8, rounding="nearest", repair="none"))
    assert result.passed
    assert result.layers[0].op == "com.example::Linear"
    assert result.validation is not None
    assert result.validation.sqnr_db is not None
    assert 30 < result.validation.sqnr_db < 80


def test_a_source_of_statistics(monkeypatch: pytest.MonkeyPatch, digits_bn: Path) -> None:
    asked: list[str] = []

    def ones(job: Job, names: Sequence[str]) -> dict[str, LayerStatistics]:
        asked.extend(names)
        found = {}
        for layer in job.matched.layers:
            shape = layer.group, layer.size // layer.channels
            seen = InputStatistics(np.ones(shape), Diagonal(np.ones(shape)), 0, "ones")
            found[layer.name] = LayerStatistics(seen)
        return found

    with pytest.raises(RecipeError, match="ones"):
        Recipe(statistics="ones")
    monkeypatch.setitem(STATISTICS, "ones", False)
    monkeypatch.setitem(SOURCES, "ones", ones)
    recipe = Recipe(bits=3, rounding="nearest", repair="mean", statistics="ones")
    result = quantize(digits_bn, recipe=recipe, validated=False)
    assert asked == [layer.name for layer in result.layers]
    assert {layer.source for layer in result.layers} == {"ones"}
    assert all(layer.predicted_sqnr_db is not None for layer in result.layers)


def test_a_storage_format(monkeypatch: pytest.MonkeyPatch, digits_bn: Path, tmp_path: Path) -> None:
    named: list[str] = []

    def bytes_only(spec: WeightSpec, unpack: Any) -> Iterator[WeightLayout]:
        named.append(spec.layer)
        yield next(iter(table(spec, unpack)))

    with pytest.raises(RecipeError, match="bytes"):
        Recipe(storage="bytes")
    monkeypatch.setitem(STORAGE_FORMATS, "bytes", "in 8 bits")
    monkeypatch.setitem(STORAGES, "bytes", bytes_only)
    recipe = Recipe(**PLAIN, storage="bytes")
    assert recipe.form.storage == "bytes"
    result = quantize(digits_bn, recipe=recipe, validated=False)
    assert {layer.name for layer in result.layers} <= set(named)
    assert {layer.storage for layer in result.layers} <= {"INT8", "UINT8"}
    # The flag takes it too.
    plan = tmp_path / "plan.json"
    words = ["--bits", "4", "--storage", "bytes", "--statistics", "closed_form"]
    assert main(["plan", str(digits_bn), *words, "-o", str(plan), "-q"]) == 0
    assert onnx_dfmpc.load_plan(plan).form.storage == "bytes"


def test_a_report_format(monkeypatch: pytest.MonkeyPatch, digits_bn: Path, tmp_path: Path) -> None:
    def titles(outline: Outline, wide: bool) -> str:
        return "\n".join([outline.title, *(section.title for section in outline.sections)]) + "\n"

    monkeypatch.setitem(RENDERERS, "titles", Renderer(titles, (".txt",)))
    assert format_of("run.txt") == "titles"
    result = quantize(digits_bn, recipe=Recipe(**PLAIN), validated=False)
    run = document.quantize_document(result)
    lines = render([run], "titles").splitlines()
    assert len(lines) > 2
    (tmp_path / "run.json").write_text(document.dumps(run))
    assert main(["report", str(tmp_path / "run.json"), "-o", str(tmp_path / "run.txt"), "-q"]) == 0
    assert (tmp_path / "run.txt").read_text().splitlines() == lines


def test_a_metric_with_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of signs that stay: the places that CONTRIBUTING.md lists, one after the other."""

    class Comparison(metrics.Comparison):
        same = 0

        def add(self, reference: Any, other: Any) -> None:
            super().add(reference, other)
            self.same += int((np.sign(reference) == np.sign(other)).sum())

        @property
        def sign_agreement(self) -> float:
            return self.same / self.elements

    @dataclass(frozen=True)
    class OutputMetrics(validation.OutputMetrics):
        sign_agreement: float | None = None

    @dataclass(frozen=True)
    class SignGates(Gates):
        min_sign_agreement: float | None = setting(real("a fraction from 0 to 1", 0, 1), None)

        @property
        def limits(self) -> dict[str, float]:
            return plain(self, SignGates)

    class OutputTally(metrics._OutputTally):
        def __init__(self) -> None:
            super().__init__(pair=Comparison())

        def metrics(self, name: str) -> validation.OutputMetrics:
            known = super().metrics(name)
            values = {field.name: getattr(known, field.name) for field in fields(known)}
            return OutputMetrics(**values, sign_agreement=self.pair.sign_agreement)

    monkeypatch.setattr(metrics, "_OutputTally", OutputTally)
    worst = property(lambda report: report._worst("sign_agreement"))
    monkeypatch.setattr(validation.ValidationReport, "sign_agreement", worst, raising=False)
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=np.eye(4, dtype=np.float32))
    flipped = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=np.diag(np.float32([1, 1, 1, -1]))
    )
    report = validate(model, flipped, noise(16, 4))
    assert report.sign_agreement == 0.75
    for limit, passed in ((0.7, True), (0.8, False)):
        (gate,) = gate_results(SignGates(min_sign_agreement=limit), report)
        assert (gate.name, gate.value, gate.passed) == ("min_sign_agreement", 0.75, passed)
