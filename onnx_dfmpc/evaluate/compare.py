"""Float model against quantized model under ONNX Runtime: the proof of how far the outputs moved, and, where
a recipe asks for them, the layers that did it and inference times.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.evaluate.classes import check_classes
from onnx_dfmpc.evaluate.command import PROGRAM, repeat_command
from onnx_dfmpc.evaluate.diagnose import diagnose
from onnx_dfmpc.evaluate.gates import check_gates, gate_results, useless
from onnx_dfmpc.evaluate.latency import measure_latency
from onnx_dfmpc.evaluate.metrics import Comparison, Tally, is_finite
from onnx_dfmpc.evaluate.probabilities import says_little, sigmoid_outputs
from onnx_dfmpc.evaluate.runnable import runnable_shapes
from onnx_dfmpc.evaluate.validation import DefaultRun, ValidationReport
from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import fixed_batch, has_floats, model_inputs
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import LoadedModel, load
from onnx_dfmpc.model.files import Model as AnyModel
from onnx_dfmpc.recipe import Data, DataSource, Gates, Recipe
from onnx_dfmpc.recipe.values import from_mapping
from onnx_dfmpc.rewrite.apply import PREFIX
from onnx_dfmpc.runtime.batches import Value
from onnx_dfmpc.runtime.pieces import Pieces, is_piecewise, open_model
from onnx_dfmpc.runtime.session import Model, Session, check_same_interface, is_weight_only
from onnx_dfmpc.spec import Latency, LayerEffect, MatchReport, Progress
from onnx_dfmpc.statistics.belief import believe


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Validation, and, where they were asked for, the effects of the layers, the worst first, and latency."""

    validation: ValidationReport
    per_layer: tuple[LayerEffect, ...] = ()
    latency: Latency | None = None


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """Two files, and how far the second is from the first; the attributes of `Evaluation`."""

    source: LoadedModel
    quantized: LoadedModel
    validation: ValidationReport
    per_layer: tuple[LayerEffect, ...] = ()
    latency: Latency | None = None


def validate(
    float_model: AnyModel,
    quantized_model: AnyModel,
    data: Data | DataSource | None = None,
    *,
    gates: Gates | Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Compare a quantized model with the float model it comes from, under ONNX Runtime.

    Parameters
    ----------
    float_model, quantized_model : path, bytes, ModelProto or graphsurgeon.Graph
        Inputs and outputs have the same names.
    data : path, mapping of arrays, array, callable, or Recipe, optional
        Real inputs, with their labels under ``labels`` where there are any. A `Recipe` says more: how many
        samples, how pictures become inputs, shapes of inputs with open dimensions, the range of synthetic
        inputs. None takes seeded synthetic inputs: a sanity check, not accuracy, so that classes are not
        compared.
    gates : Recipe or mapping, optional
        Limits by name: ``min_cosine``, ``min_sqnr_db`` (dB), ``max_top1_drop``, ``min_top1_agreement``
        (fractions). They hold for the worst output. Without ``min_sqnr_db``, an output below 6 dB on
        synthetic inputs is a failure, unless ``no_gate`` is true.
    progress : callable, optional
        Called with ``("validate", samples finished, samples)``.

    Returns
    -------
    ValidationReport
        Truthy when nothing failed and every gate holds.

    Raises
    ------
    RecipeError
        Data that does not fit the model, a setting that makes no sense, or a gate that cannot be evaluated.
    ModelError
        A model that cannot be loaded or run, or models whose inputs or outputs do not correspond.

    Examples
    --------
    >>> from onnx_dfmpc import Recipe, quantize, validate
    >>> small = quantize("models/digits_resnet_bn.onnx", None, Recipe(bits=6, rounding="nearest")).model
    >>> report = validate("models/digits_resnet_bn.onnx", small, "models/digits_test.npz",
    ...     gates={"min_cosine": 0.98, "max_top1_drop": 0.02})
    >>> bool(report), [gate.name for gate in report.gates], report.labelled
    (True, ['min_cosine', 'max_top1_drop'], 597)
    """
    # Weight-only models run with session.disable_quant_qdq=1, which folds the dequantized weights at load:
    # float speed, and exact arithmetic. One batch runs with default session options too, because that is what
    # a user who sets nothing gets.
    data = data if isinstance(data, Data) else Data(data=data)
    gates = gates if isinstance(gates, Gates) else from_mapping(Gates, gates or {})
    float_model, quantized_model = _runnable_model(float_model), _runnable_model(quantized_model)
    weight_only = is_weight_only(quantized_model)
    float_session = open_model(float_model, "float model")
    quantized_session = open_model(quantized_model, "quantized model", disable_qdq=weight_only)
    check_same_interface(float_session, quantized_session)
    outputs = float_session.outputs
    if data.data is None and isinstance(float_session, Session):  # in pieces a run takes minutes
        shapes, _ = runnable_shapes(float_session, float_session.specs(), data)
        data = replace(data, shapes=shapes)
    samples = samples_of(float_session.specs(), data)
    check_gates(gates, labelled=samples.labels is not None, synthetic=samples.synthetic)
    samples = _runnable(float_session, samples)

    tally = Tally(outputs, samples.labels, classes=not samples.synthetic)
    default_run = None
    for start, stop, batch in samples.batches():
        actual = quantized_session.run(batch, outputs)
        tally.add(start, stop, float_session.run(batch), actual)
        if start == 0 and weight_only:
            default_run = _run_default(quantized_model, batch, actual, outputs, stop)
        if progress is not None:
            progress("validate", stop, samples.count)
    if isinstance(default_run, str):
        tally.failures["default options"] = default_run
        default_run = None
    report = tally.report(
        samples=samples.count,
        data=samples.description,
        synthetic=samples.synthetic,
        weight_only=weight_only,
        default_run=default_run,
        notes=samples.notes,
        command=repeat_command(float_model, quantized_model, data, gates),
        lenient=bool(gates.no_gate),
    )
    nothing = [] if not samples.synthetic else _nothing_found(float_model, tally)
    if nothing:
        remark = "on synthetic inputs both models answer next to 0 here, which tells little: give --data"
        report = replace(report, notes=(*report.notes, f"{', '.join(nothing)}: {remark}"))
    if why := useless(gates, report, nothing):
        report = replace(report, failures=(*report.failures, why))
    return replace(report, gates=tuple(gate_results(gates, report)))


def _nothing_found(float_model: Model, tally: Tally) -> list[str]:
    """Outputs that are 0 everywhere, and probabilities that are next to it."""
    sigmoids = sigmoid_outputs(float_model)
    return [
        name
        for name, pair in tally.pairs().items()
        if pair.elements and (pair.rms == pair.rms_noise == 0 or (name in sigmoids and says_little(pair)))
    ]


TOO_LARGE = "no latency: the models have too many weights to be in memory at the same time"


def _runnable_model(model: AnyModel) -> Model:
    """A path, since the model may be larger than memory, or a protobuf."""
    return model if isinstance(model, str | os.PathLike | ModelProto) else load(model).proto


def _runnable(session: Session | Pieces, samples: Samples) -> Samples:
    """Samples in batches that the model takes: one by one where it calls its batch dynamic and it is not.
    Raises RecipeError where there are labels and no classes.
    """
    _, count, batch = next(samples.batches())
    try:
        outputs = session.run(batch)
    except ModelError:
        if count == 1:
            raise
        notes = (*samples.notes, "run one by one: the model does not take batches")
        count, samples = 1, replace(samples, batch=1, notes=notes)
        outputs = session.run(next(samples.batches())[2])
    if samples.labels is not None:
        check_classes(samples.labels, zip(session.outputs, outputs, strict=True), count)
    return samples


def _run_default(
    model: Model, batch: Mapping[str, Value], expected: Sequence[Any], names: Sequence[str], samples: int
) -> DefaultRun | str:
    """Run one batch with default session options; a reason in words where that is not possible."""
    try:
        actual = open_model(model, "quantized model").run(batch, names)
    except ModelError as error:
        return f"with default session options: {error}"
    pair = Comparison()
    for name, a, b in zip(names, expected, actual, strict=True):
        if not isinstance(b, np.ndarray) or b.dtype.kind not in "biuf":
            continue
        if not is_finite(b) and is_finite(a):
            return f"with default session options: quantized model: NaN or infinity in output {name!r}"
        if is_finite(a) and is_finite(b):
            pair.add(a, b)
    return (
        DefaultRun(samples, pair.max_abs, pair.sqnr_db) if pair.elements else DefaultRun(samples, None, None)
    )


def check_data(float_model: Model, recipe: Recipe) -> None:
    """Raise now, before a model is quantized, what `validate` would say to data and gates afterwards."""
    session = open_model(float_model, "float model")
    samples = samples_of(session.specs(), recipe)
    check_gates(recipe, labelled=samples.labels is not None, synthetic=samples.synthetic)
    if not samples.synthetic:
        _runnable(session, samples if fixed_batch(session.specs()) else replace(samples, batch=1))


def examine(
    float_model: ModelProto,
    quantized_model: ModelProto,
    matched: MatchReport,
    data: Data,
    *,
    gates: Gates | None = None,
    per_layer: bool = False,
    latency: bool = False,
    files: tuple[Model, Model] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Validation, and, where they are asked for, the effects of the layers and inference times.

    ``matched`` is that of the float model, ``files`` where the models lie.
    """
    models = files or (float_model, quantized_model)
    validation = validate(*models, data, gates=gates, progress=progress)
    effects: tuple[LayerEffect, ...] = ()
    notes: tuple[str, ...] = ()
    if per_layer:
        try:
            effects, notes = diagnose(float_model, quantized_model, matched, data, progress=progress)
        except (ModelError, UnsupportedError) as error:  # the validation is worth showing all the same
            notes = (f"per layer: {error}",)
    if validation.synthetic:
        effects = tuple(replace(effect, own_top1_agreement=None) for effect in effects)
    if latency and is_piecewise(float_model):
        notes += (TOO_LARGE,)
    times = measure_latency(*models, data, progress=progress) if latency and TOO_LARGE not in notes else None
    return Evaluation(replace(validation, notes=(*validation.notes, *notes)), effects, times)


def compare_files(
    float_path: str,
    quantized_path: str,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    per_layer: bool = False,
    latency: bool = False,
) -> ComparisonResult:
    """Compare two files with the data and gates of a recipe."""
    source, quantized = load(float_path), load(quantized_path)
    if _made_from(source) == quantized.sha256:
        raise ModelError(
            f"{float_path} was made from {quantized_path}: the two are swapped",
            hint=f"the float model first: {shlex.join([PROGRAM, 'validate', quantized_path, float_path])}",
        )
    matched = match(source.proto)
    if recipe.data is None and recipe.input_range is None:
        specs = model_inputs(source.proto, recipe.shapes)
        if has_floats(specs):
            likeliest = believe(source.proto, matched.layers, specs, seed=recipe.seed).likeliest
            recipe = replace(recipe, input_range=(likeliest.low, likeliest.high))
    evaluation = examine(
        source.proto,
        quantized.proto,
        matched,
        recipe,
        gates=recipe,
        per_layer=per_layer,
        latency=latency,
        files=(float_path, quantized_path),
        progress=progress,
    )
    return ComparisonResult(
        source, quantized, evaluation.validation, evaluation.per_layer, evaluation.latency
    )


def _made_from(model: LoadedModel) -> str:
    """SHA-256 of the float model of one of our files; "" for any other."""
    return next((one.value for one in model.proto.metadata_props if one.key == PREFIX + "input_sha256"), "")
