"""The whole run: the functions a user calls, and the one order in which data passes through the rooms.

    prepare -> measure -> predict -> allocate -> solve -> rewrite -> evaluate -> finish

Each step is a function of what the steps before it returned; nothing is lazy, and nothing is changed in
place.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.allocate.budget import allocate_budget, budgets, mean_bits, sweep
from onnx_dfmpc.allocate.fixed import allocate_fixed, selected_layers
from onnx_dfmpc.comparison import Findings, compare_files, examine, range_note
from onnx_dfmpc.errors import ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.evaluate import evidence
from onnx_dfmpc.evaluate.compare import check_data
from onnx_dfmpc.evaluate.layers import layer_sqnr
from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.inputs.data import Feeding, calibration_feeding, feeding_of, samples_of
from onnx_dfmpc.inputs.model_inputs import model_inputs, real_feeds
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import fixed_batch, with_shapes
from onnx_dfmpc.inputs.synthetic_feeds import synthetic_feeds
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.checks import verify
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import LoadedModel, load, require_writable
from onnx_dfmpc.recipe import Recipe, nearest_layer
from onnx_dfmpc.result import ComparisonResult, PlanResult, QuantizeResult
from onnx_dfmpc.rewrite.apply import Rewritten, rewrite
from onnx_dfmpc.sensitivity.feeds import data_feeds, probe_feeds
from onnx_dfmpc.sensitivity.table import (
    Sizes,
    predict,
    size_table,
    with_costs,
    with_noise,
    with_sizes,
)
from onnx_dfmpc.solve import solve, weight_noise
from onnx_dfmpc.spec import (
    CostTable,
    Latency,
    LayerEffect,
    LayerReport,
    LayerStatistics,
    MatchReport,
    Progress,
    QuantizedLayer,
    QuantPlan,
    Skipped,
    StorageFormat,
    SweepPoint,
    WeightHistogram,
)
from onnx_dfmpc.statistics.closed_form import closed_form
from onnx_dfmpc.statistics.input_range import infer_range
from onnx_dfmpc.statistics.probe import Feeds, probe

__all__ = [
    "ComparisonResult",
    "PlanResult",
    "QuantizeResult",
    "apply",
    "compare_files",
    "inspect",
    "plan",
    "plan_result",
    "quantize",
]

Model = str | os.PathLike[str] | ModelProto

LAYER_SAMPLES = 8
"""Inputs on which every layer's output is compared."""

SHOWN_LAYERS = 9
"""Layers whose weights a report shows as histograms."""

FRONTIER = 16
"""Budgets that a report compares with the one that was asked for."""


@dataclass(frozen=True, eq=False)
class Job:
    """One model and what to do to it, checked, before any work is done.

    Attributes
    ----------
    sizes : Sizes or None
        Bytes of every layer at every width; None where the bits are fixed.
    needs_statistics : bool
        Whether prediction, rounding or repair ask for what the layers see.
    feeds : list of mapping, or None
        Inputs that the statistics are measured on; None where nothing needs them.
    input_range : (float, float) or None
        Of synthetic inputs: as given, else as the first layer suggests; None where nobody needs it.
    notes : tuple of str
        Remarks on the inputs.
    """

    source: LoadedModel
    matched: MatchReport
    recipe: Recipe
    progress: Progress | None
    sizes: Sizes | None
    needs_statistics: bool
    feeds: Feeds | None
    input_range: tuple[float, float] | None
    notes: tuple[str, ...]

    @property
    def planned(self) -> tuple[str, ...]:
        """Layers that the recipe wants quantized, by name."""
        return tuple(layer.name for layer in selected_layers(self.matched, self.recipe)[0])


@dataclass(frozen=True, eq=False)
class Measured:
    """Statistics of the layers in the float network, empty where nothing needs them, and remarks."""

    layers: Mapping[str, LayerStatistics]
    notes: tuple[str, ...] = ()


Seconds = dict[str, float]


# ------------------------------------------------------------------------------------------------ what a user
# calls


def inspect(model: Model) -> MatchReport:
    """Find the layers that can be quantized, the chains between them, and what stays float.

    Parameters
    ----------
    model : path or ModelProto

    Returns
    -------
    MatchReport

    Raises
    ------
    ModelError
        A model that cannot be read, or is not sound.

    Examples
    --------
    >>> matched = inspect("models/digits_resnet_bn.onnx")
    >>> len(matched.layers), len(matched.skipped), matched.layers[0].name
    (16, 0, '/conv/Conv')
    """
    return match(load(model).proto)


def plan(model: Model, recipe: Recipe | None = None) -> QuantPlan:
    """Bits of every layer, with reasons and what they are predicted to cost, without touching a weight.

    Parameters
    ----------
    model : path or ModelProto
    recipe : Recipe, optional
        Bits, rules, statistics; by default a mean of 4 bits.

    Returns
    -------
    QuantPlan
        For `apply`; `save_plan` and `load_plan` make it a file and read it back.

    Raises
    ------
    RecipeError, ModelError, UnsupportedError
        Bad settings; a bad model; nothing to quantize, or a budget that cannot be met.

    Examples
    --------
    >>> made = plan("models/digits_resnet_bn.onnx", Recipe(bits=4, set={"conv2": 6}, rounding="nearest"))
    >>> made["/conv/Conv"].bits, made["/blocks/blocks.0/conv1/Conv"].bits, made["/blocks/blocks.0/conv2/Conv"].bits
    (8, 4, 6)
    """
    return plan_result(model, recipe).plan


def plan_result(
    model: Model,
    recipe: Recipe | None = None,
    *,
    sweep: int | Sequence[int] | None = None,
    progress: Progress | None = None,
) -> PlanResult:
    """`plan`, with the account of how it came about; ``sweep`` is a number of budgets, or budgets in bytes."""
    seconds: Seconds = {}
    job = prepare(model, recipe or Recipe(), progress, seconds, statistics=True, validated=False)
    statistics = measure(job, job.planned, seconds)
    costs, notes = cost_table(job, statistics, seconds)
    made = allocate(job, costs, seconds)
    points: tuple[SweepPoint, ...] = ()
    if sweep is not None:
        table = costs or cost_table(job, statistics, seconds, everything=True)[0]
        assert table is not None
        points = _swept(job, table, sweep, statistics, seconds)
    if made.predicted_sqnr_db is None:
        table, more = cost_table(job, statistics, seconds, made)
        notes += more
        assert table is not None
        made = with_costs(made, table)
    return PlanResult(
        job.source, job.matched, made, job.recipe, points, (*job.notes, *statistics.notes, *notes), seconds
    )


def apply(
    model: Model,
    plan: QuantPlan,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
    validated: bool = True,
) -> QuantizeResult:
    """Quantize a model by a plan.

    Parameters
    ----------
    model : path or ModelProto
        The model that the plan was made for.
    plan : QuantPlan
    recipe : Recipe, optional
        Method, statistics and validation, by default those that the plan was made with; its bits and its
        storage are not asked.
    progress : callable, optional
        Called with ``(stage, done, total)``.
    validated : bool
        Whether to compare with the float model.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    RecipeError
        If the plan is for another model, or does not have every layer once.

    Examples
    --------
    >>> recipe = Recipe(bits=4, rounding="nearest", compensate=False, bias_correction=False)
    >>> made = plan("models/digits_resnet_bn.onnx", recipe)
    >>> apply("models/digits_resnet_bn.onnx", made, validated=False).plan["/fc/Gemm"].bits
    8
    """
    seconds: Seconds = {}
    recipe = recipe or Recipe.from_dict(plan.recipe)
    needed = _needs_statistics(recipe, plan)
    job = prepare(model, recipe, progress, seconds, plan=plan, statistics=needed, validated=validated)
    names = tuple(layer.name for layer in plan.layers)
    statistics = measure(job, names, seconds)
    return _carry_out(job, plan, statistics, None, seconds, validated=validated)


def quantize(
    model: Model,
    output: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    *,
    external_data: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    validated: bool = True,
) -> QuantizeResult:
    """Quantize the weights of a float model, validate it against the float model, and save it.

    Parameters
    ----------
    model : path or ModelProto
        Never changed.
    output : path, optional
        Where to save it; not written if the validation fails.
    recipe : Recipe, optional
        Bits, method, output and validation; by default a mean of 4 bits, without data.
    external_data : bool
        Put the weights into a file beside the model.
    overwrite : bool
        Replace an existing output.
    progress : callable, optional
        Called with ``(stage, done, total)``.
    validated : bool
        Whether to compare with the float model.

    Returns
    -------
    QuantizeResult
        A gate that does not hold is no exception: `QuantizeResult.passed` is false then, and nothing was
        written.

    Raises
    ------
    RecipeError, ModelError, UnsupportedError
        Bad settings, or an output that exists; a bad model; nothing to quantize, or a budget that cannot be
        met. Nothing is written then.
    """
    seconds: Seconds = {}
    if output is not None:
        require_writable(output, external_data=external_data, overwrite=overwrite)
    recipe = recipe or Recipe()
    needed = _needs_statistics(recipe)
    job = prepare(model, recipe, progress, seconds, statistics=needed, validated=validated)
    statistics = measure(job, job.planned, seconds)
    costs, notes = cost_table(job, statistics, seconds)
    made = allocate(job, costs, seconds)
    result = _carry_out(job, made, statistics, costs, seconds, validated=validated)
    result = replace(result, notes=(*result.notes, *notes))
    if output is None or not result.passed:
        return result
    return result.save(output, external_data=external_data, overwrite=overwrite)


# ----------------------------------------------------------------------------------------------------------
# the steps


def prepare(
    model: Model,
    recipe: Recipe,
    progress: Progress | None,
    seconds: Seconds,
    *,
    plan: QuantPlan | None = None,
    statistics: bool,
    validated: bool,
) -> Job:
    """Load, match, and check data, gates and budget; infer the range of synthetic inputs where any are
    needed.
    """
    with _timed(seconds, "load"):
        source = load(model)
    with _timed(seconds, "match"):
        matched = match(source.proto)
    if plan is None:
        _require_layers(source, matched.layers, matched.skipped)
        _require_layers(source, *selected_layers(matched, recipe))
    else:
        _require_fit(plan, source, matched)
        _require_layers(source, plan.layers, plan.skipped)
    if recipe.data or recipe.labels or recipe.gates or recipe.shapes or recipe.providers:
        check_data(source.proto, feeding_of(recipe), gates=recipe.gates, providers=recipe.providers)
    sizes = None
    if plan is None and not _is_fixed(recipe):
        with _timed(seconds, "predict"):
            layers = [layer.name for layer in selected_layers(matched, recipe)[0]]
            sizes = size_table(source.proto, matched, recipe, _metadata(source, recipe, recipe.form, layers))
    with _timed(seconds, "measure"):
        job = Job(source, matched, recipe, progress, sizes, statistics, None, recipe.input_range, ())
        return _with_inputs(job, validation=validated and recipe.data is None)


def measure(job: Job, names: Sequence[str], seconds: Seconds) -> Measured:
    """Statistics of what every layer sees in the float network: once, for prediction and rounding alike."""
    if not job.needs_statistics:
        return Measured({})
    recipe, proto, layers = job.recipe, job.source.proto, job.matched.layers
    with _timed(seconds, "measure"):
        if recipe.statistics == "analytic":
            return Measured(_closed_form(job))
        assert job.feeds is not None
        repairs = recipe.method == "dfmpc" and (recipe.compensate or recipe.bias_correction)
        try:
            found = probe(
                proto,
                layers,
                names,
                job.feeds,
                source="probe" if recipe.calibration_data is None else "calibration",
                seed=recipe.seed,
                with_outputs=repairs,
                progress=job.progress,
            )
        except ModelError as error:
            if recipe.calibration_data is not None or recipe.statistics == "probe":
                raise
            return Measured(
                _closed_form(job), (f"statistics in closed form, since the model cannot be run: {error}",)
            )
        return Measured(found)


def allocate(job: Job, costs: CostTable | None, seconds: Seconds) -> QuantPlan:
    """Bits of every layer: as the recipe gives them, or as the costs make them worth their bytes."""
    source, matched, recipe = job.source, job.matched, job.recipe
    with _timed(seconds, "allocate"):
        if costs is None:
            made = allocate_fixed(matched, recipe, source.sha256, weight_noise(source.proto))
        else:
            made = allocate_budget(matched, recipe, source.sha256, costs)
            made = replace(made, source=costs.source)
        made = replace(made, form=recipe.form)
        made = made if costs is None else _sized(job, made)
    name = "" if source.path is None else source.path.name
    return replace(made, model_name=name, recipe=recipe.to_dict())


def evaluate(
    job: Job, quantized: ModelProto, solved: Sequence[QuantizedLayer], form: StorageFormat
) -> tuple[Mapping[str, float | None], Findings]:
    """Every layer's output on a few inputs, and the network's outputs on all."""
    proto, recipe = job.source.proto, job.recipe
    feeding = feeding_of(recipe) if recipe.data else replace(feeding_of(recipe), input_range=job.input_range)
    ends = {layer.name: (layer.end, layer.end) for layer in job.matched.layers}
    tensors = {done.name: ends[done.name] for done in solved}
    measured = layer_sqnr(proto, quantized, tensors, _few_samples(proto, feeding))
    return measured, examine(proto, quantized, job.matched, feeding, recipe, form=form, progress=job.progress)


def _carry_out(
    job: Job,
    plan: QuantPlan,
    statistics: Measured,
    costs: CostTable | None,
    seconds: Seconds,
    *,
    validated: bool,
) -> QuantizeResult:
    """Everything after allocation."""
    proto, matched = job.source.proto, job.matched
    if plan.predicted_bytes is None:
        plan = _sized(job, plan)
    with _timed(seconds, "quantize"):
        solved = solve(proto, matched, plan, job.recipe, statistics.layers, job.feeds, job.progress)
    if plan.predicted_sqnr_db is None and statistics.layers:
        plan = with_noise(plan, proto, matched, solved, statistics.layers)
    with _timed(seconds, "rewrite"):
        names = [layer.name for layer in plan.layers]
        bits = {layer.name: layer.bits for layer in plan.layers}
        metadata = _metadata(job.source, job.recipe, plan.form, names, bits)
        rewritten = rewrite(proto, matched, solved, form=plan.form, metadata=metadata)
    with _timed(seconds, "check"):
        verify(rewritten.proto, "the quantized model")
    layer_noise: Mapping[str, float | None] = {}
    findings: tuple[ValidationReport | None, tuple[LayerEffect, ...], Latency | None] = (None, (), None)
    if validated:
        with _timed(seconds, "validate"):
            layer_noise, findings = evaluate(job, rewritten.proto, solved, plan.form)
    frontier: tuple[SweepPoint, ...] = ()
    if costs is not None:
        with _timed(seconds, "allocate"):
            frontier = _frontier(job, costs)
    return finish(job, plan, solved, rewritten, layer_noise, findings, frontier, statistics, seconds)


def finish(
    job: Job,
    plan: QuantPlan,
    solved: Sequence[QuantizedLayer],
    rewritten: Rewritten,
    layer_noise: Mapping[str, float | None],
    findings: tuple[ValidationReport | None, tuple[LayerEffect, ...], Latency | None],
    frontier: tuple[SweepPoint, ...],
    statistics: Measured,
    seconds: Seconds,
) -> QuantizeResult:
    """The account of a run."""
    table = ConstantTable(job.source.proto)
    rows = tuple(_rows(job.matched, plan, solved, rewritten, layer_noise, table))
    validation, per_layer, latency = findings
    return QuantizeResult(
        model=rewritten.proto,
        source=job.source,
        plan=plan,
        recipe=job.recipe,
        layers=rows,
        chains=job.matched.chains,
        skipped=plan.skipped,
        size=rewritten.proto.ByteSize(),
        notes=(*rewritten.notes, *job.notes, *statistics.notes),
        seconds=seconds,
        validation=validation,
        per_layer=per_layer,
        latency=latency,
        sweep=frontier,
        histograms=tuple(_histograms(job.matched, solved, rows, table)),
    )


# ------------------------------------------------------------------------------------------------- parts of
# the steps


def _is_fixed(recipe: Recipe) -> bool:
    """Whether the recipe gives the bits itself, so that nothing has to be predicted."""
    return recipe.kind in ("pairs", "bits")


def _needs_statistics(recipe: Recipe, plan: QuantPlan | None = None) -> bool:
    """Whether prediction, rounding or repair ask for what the layers see."""
    if recipe.compensate or recipe.bias_correction:
        return True
    if plan is None:
        rounding = recipe.rounding or ("nearest" if recipe.method == "paper" else "covariance")
        return rounding == "covariance" or not _is_fixed(recipe)
    return any(layer.rounding == "covariance" for layer in plan.layers)


def _with_inputs(job: Job, *, validation: bool) -> Job:
    """Job with the inputs that its statistics are measured on, and the range of synthetic ones."""
    recipe, proto = job.recipe, job.source.proto
    wanted = job.needs_statistics
    if wanted and recipe.calibration_data is not None:
        real = real_feeds(proto, calibration_feeding(recipe))
        job = replace(job, feeds=real)
        wanted = False
    if not (wanted or validation):
        return job
    specs = model_inputs(proto, dict(recipe.shapes))
    inferred = (
        infer_range(proto, job.matched.layers, specs, seed=recipe.seed)
        if recipe.input_range is None
        else None
    )
    span = recipe.input_range or inferred
    feeds = job.feeds
    if wanted and recipe.statistics != "analytic":
        feeds = synthetic_feeds(specs, seed=recipe.seed, input_range=span)
    return replace(job, feeds=feeds, input_range=span, notes=range_note(inferred))


def _closed_form(job: Job) -> dict[str, LayerStatistics]:
    found = closed_form(job.source.proto, job.matched.layers, input_range=job.input_range)
    return {name: LayerStatistics(seen) for name, seen in found.items()}


def cost_table(
    job: Job,
    statistics: Measured,
    seconds: Seconds,
    plan: QuantPlan | None = None,
    *,
    everything: bool = False,
) -> tuple[CostTable | None, tuple[str, ...]]:
    """Cost table of what the recipe leaves open, or of a plan's bits; None where the bits are fixed."""
    recipe, proto = job.recipe, job.source.proto
    sizes = job.sizes
    if sizes is None and plan is None and not everything:
        return None, ()
    with _timed(seconds, "predict"):
        if sizes is None or plan is not None:
            metadata = _metadata(job.source, recipe, recipe.form, job.planned)
            sizes = size_table(proto, job.matched, recipe, metadata, plan)
        source, feeds = _noise_inputs(job)
        return predict(
            proto,
            job.matched,
            sizes,
            recipe,
            statistics.layers,
            feeds=feeds,
            source=source,
            progress=job.progress,
        )


def _noise_inputs(job: Job) -> tuple[str, Feeds | None]:
    """What to call the prediction, and the inputs to measure it on."""
    recipe, proto = job.recipe, job.source.proto
    kind = recipe.cost
    if kind == "auto":
        kind = "probe" if recipe.calibration_data is None else "measured"
    if kind == "bn":
        return kind, None
    if kind == "probe":
        shapes = dict(recipe.shapes)
        return kind, probe_feeds(proto, seed=recipe.seed, input_range=job.input_range, shapes=shapes)
    return kind, data_feeds(
        proto, calibration_feeding(recipe) if recipe.calibration_data else feeding_of(recipe)
    )


def _sized(job: Job, plan: QuantPlan) -> QuantPlan:
    names = [layer.name for layer in plan.layers]
    bits = {layer.name: layer.bits for layer in plan.layers}
    metadata = _metadata(job.source, job.recipe, plan.form, names, bits)
    return with_sizes(plan, job.source.proto, job.matched, job.recipe, metadata)


def _frontier(job: Job, costs: CostTable) -> tuple[SweepPoint, ...]:
    """What other budgets would buy, as predicted."""
    allowed = budgets(job.matched, job.recipe, costs, FRONTIER)
    plans = sweep(job.matched, job.recipe, job.source.sha256, costs, allowed)
    return tuple(_point(job, budget, made) for budget, made in zip(allowed, plans, strict=True))


def _swept(
    job: Job, costs: CostTable, wanted: int | Sequence[int], statistics: Measured, seconds: Seconds
) -> tuple[SweepPoint, ...]:
    """Size against quality, for a number of budgets or for given ones; measured where there is data."""
    allowed = budgets(job.matched, job.recipe, costs, wanted) if isinstance(wanted, int) else wanted
    with _timed(seconds, "allocate"):
        plans = sweep(job.matched, job.recipe, job.source.sha256, costs, allowed)
    points = []
    for budget, made in zip(allowed, plans, strict=True):
        point = _point(job, budget, made)
        if made is not None and job.recipe.data is not None:
            placed = replace(made, form=job.recipe.form)
            found = _carry_out(job, placed, statistics, None, seconds, validated=True).validation
            if found is not None:
                point = replace(point, measured_sqnr_db=found.sqnr_db, top1=found.top1_quantized)
        points.append(point)
    return tuple(points)


def _point(job: Job, budget: int, plan: QuantPlan | None) -> SweepPoint:
    if plan is None:
        return SweepPoint(budget)
    return SweepPoint(budget, plan.predicted_bytes, mean_bits(plan, job.matched), plan.predicted_sqnr_db)


def _require_layers(source: LoadedModel, layers: Sequence[object], skipped: Sequence[Skipped]) -> None:
    if layers:
        return
    if not skipped:
        reason = "it has no Conv, ConvTranspose, Gemm or MatMul"
    else:
        (reason, count), *others = Counter(node.reason for node in skipped).most_common()
        nodes = f"{count} node{'s' if count > 1 else ''}"
        rest = sum(number for _, number in others)
        reason += f" ({nodes}; {rest} more for other reasons)" if rest else f" ({nodes})"
    raise UnsupportedError(
        f"{source.label}: nothing to quantize: {reason}", hint="onnx-dfmpc inspect shows what was found"
    )


def _require_fit(plan: QuantPlan, source: LoadedModel, matched: MatchReport) -> None:
    """Refuse a plan that is for another model, or that does not have every layer once."""
    if plan.model_sha256 != source.sha256:
        raise RecipeError(
            f"the plan is for another model than {source.label}", hint="make it again with: onnx-dfmpc plan"
        )
    names = [layer.name for layer in matched.layers]
    planned = Counter([layer.name for layer in plan.layers] + [skipped.name for skipped in plan.skipped])
    reasons = {skipped.name: skipped.reason for skipped in matched.skipped}
    for layer in plan.layers:
        if layer.name in reasons:
            raise RecipeError(
                f"plan: {layer.name!r} cannot be quantized: {reasons[layer.name]}",
                hint="leave it under skipped",
            )
    for name, times in planned.items():
        if name not in names and name not in reasons:
            raise RecipeError(f"plan: no layer is named {name!r}", hint=nearest_layer(name, matched))
        if times > 1:
            raise RecipeError(f"plan: {name!r} is there {times} times", hint="keep it once")
    for name in names:
        if name not in planned:
            hint = "list it under layers with its bits, or under skipped to keep it float"
            raise RecipeError(f"plan: layer {name!r} is missing", hint=hint)


def _few_samples(proto: ModelProto, feeding: Feeding) -> Samples:
    """Inputs for comparing every layer, one at a time: all the activations of a run are in memory at once."""
    specs = with_shapes(model_inputs(proto), feeding.shapes)
    found = samples_of(specs, replace(feeding, samples=LAYER_SAMPLES))
    return found if fixed_batch(specs) else replace(found, batch=1)


def _rows(
    matched: MatchReport,
    plan: QuantPlan,
    solved: Sequence[QuantizedLayer],
    rewritten: Rewritten,
    layer_noise: Mapping[str, float | None],
    table: ConstantTable,
) -> Iterator[LayerReport]:
    """What a report says about each layer."""
    layers = {layer.name: layer for layer in matched.layers}
    for done in solved:
        layer, planned, stored = layers[done.name], plan[done.name], rewritten.layers[done.name]
        gain = np.ones(1) if done.gain is None else done.gain
        yield LayerReport(
            name=layer.name,
            op=layer.op_type,
            shape=layer.shape,
            role=planned.role,
            bits=planned.bits,
            storage=stored.storage,
            bytes=stored.bytes,
            source=done.source,
            gain_min=float(gain.min()),
            gain_max=float(gain.max()),
            predicted_sqnr_db=done.predicted_sqnr_db,
            measured_sqnr_db=layer_noise.get(done.name),
            reason=planned.reason,
            notes=(*layer.notes, *done.notes, *stored.notes),
        )


def _histograms(
    matched: MatchReport,
    solved: Sequence[QuantizedLayer],
    rows: Sequence[LayerReport],
    table: ConstantTable,
) -> Iterator[WeightHistogram]:
    layers = {layer.name: layer for layer in matched.layers}
    sqnr = [row.predicted_sqnr_db if row.measured_sqnr_db is None else row.measured_sqnr_db for row in rows]
    for position in evidence.most_changed(sqnr, SHOWN_LAYERS):
        done = solved[position]
        layer = layers[done.name]
        weight = table[layer.weight].astype(np.float32)
        yield evidence.histogram(layer.name, weight, done.weight.dequantize(), layer.axis)


def _metadata(
    source: LoadedModel,
    recipe: Recipe,
    form: StorageFormat,
    names: Sequence[str],
    bits: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """What goes into the file's metadata. Before the bits are known, any digit takes as many bytes."""
    settings = json.dumps(recipe.to_dict() | asdict(form), sort_keys=True)
    return {
        "version": version("onnx-dfmpc"),
        "recipe_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "input_sha256": source.sha256,
        "bits": json.dumps(bits or dict.fromkeys(names, 8), separators=(",", ":")),
    }


@contextmanager
def _timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the wall time of a block to its stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
