"""A float model and a quantized one: how far the outputs moved, which layer did it, how long an inference
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.evaluate.compare import compare
from onnx_dfmpc.evaluate.diagnose import diagnose
from onnx_dfmpc.evaluate.latency import measure_latency
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.inputs.model_inputs import model_inputs
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import load
from onnx_dfmpc.recipe import Data, Recipe
from onnx_dfmpc.result import ComparisonResult
from onnx_dfmpc.spec import Latency, LayerEffect, MatchReport, StorageFormat
from onnx_dfmpc.statistics.input_range import infer_range

Model = str | Path | ModelProto
Progress = Callable[[str, int, int], None]
Findings = tuple[ValidationReport, tuple[LayerEffect, ...], Latency | None]


def compare_files(
    float_path: str,
    quantized_path: str,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    per_layer: bool = False,
    latency: bool = False,
) -> ComparisonResult:
    """Compare two files as a recipe says.

    Parameters
    ----------
    float_path, quantized_path : path
    recipe : Recipe
        Its data, gates and switches.
    progress : callable, optional
        Called with ``(stage, done, total)``.

    Raises
    ------
    RecipeError, ModelError
        As `onnx_dfmpc.validate`.
    """
    source, quantized = load(float_path), load(quantized_path)
    report, feeding = match(source.proto), recipe
    notes: tuple[str, ...] = ()
    if feeding.data is None and feeding.input_range is None:
        specs = model_inputs(source.proto, feeding.shapes)
        feeding = replace(
            feeding, input_range=infer_range(source.proto, report.layers, specs, seed=recipe.seed)
        )
        notes = range_note(feeding.input_range)
    found = examine(
        source.proto,
        quantized.proto,
        report,
        feeding,
        recipe,
        files=(float_path, quantized_path),
        progress=progress,
        per_layer=per_layer,
        latency=latency,
    )
    validation, effects, timings = found
    validation = replace(validation, notes=(*validation.notes, *notes))
    return ComparisonResult(source, quantized, validation, effects, timings)


def examine(
    float_model: ModelProto,
    quantized_model: ModelProto,
    report: MatchReport,
    feeding: Data,
    recipe: Recipe,
    *,
    files: tuple[Model, Model] | None = None,
    form: StorageFormat | None = None,
    progress: Progress | None = None,
    per_layer: bool = False,
    latency: bool = False,
) -> Findings:
    """Validation, and, where the recipe asks for them, the effects of the layers and inference times.

    Parameters
    ----------
    float_model, quantized_model : ModelProto
    report : MatchReport
        Of the float model.
    feeding : Data
    recipe : Recipe
        Its gates and switches.
    files : (path, path), optional
        Where the models lie.
    form : StorageFormat, optional
        How codes are put into the file, where it is known.
    progress : callable, optional
    """
    run = files or (float_model, quantized_model)
    validation = compare(*run, feeding, gates=recipe, progress=progress)
    effects: tuple[LayerEffect, ...] = ()
    notes: tuple[str, ...] = ()
    if per_layer:
        try:
            effects, notes = diagnose(
                float_model, quantized_model, report, feeding, form=form, progress=progress
            )
        except (ModelError, UnsupportedError) as error:  # what validation found is worth showing all the same
            notes = (f"per layer: {error}",)
    timings = measure_latency(*run, feeding, progress=progress) if latency else None
    return replace(validation, notes=(*validation.notes, *notes)), effects, timings


def range_note(inferred: tuple[float, float] | None) -> tuple[str, ...]:
    """Remark on a range of synthetic inputs that nobody gave."""
    if inferred is None:
        return ()
    low, high = inferred
    return (
        f"synthetic images in {low:g} to {high:g}, as the first layer suggests: --input-range says better",
    )
