"""The whole run: the functions a user calls, and the one order in which data passes through the rooms.

    prepare -> measure -> predict -> allocate -> solve -> rewrite -> evaluate -> finish

Each step is a function of what the steps before it returned; nothing is lazy, and nothing is changed in
place. Advice (`advice`) is what other recipes give in the steps from allocate to evaluate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from onnx_dfmpc.allocate.budget import budgets, sweep
from onnx_dfmpc.errors import LayerError, UnsupportedError
from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.inputs.specs import model_inputs
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.external import full_size
from onnx_dfmpc.model.files import Model, load
from onnx_dfmpc.model.writing import require_writable
from onnx_dfmpc.pipeline.advice import Trial, advise, changes, remarks
from onnx_dfmpc.pipeline.doubts import doubts
from onnx_dfmpc.pipeline.job import (
    Job,
    Seconds,
    needs_statistics,
    prepare,
    timed,
    with_large_biases,
    without_layer,
)
from onnx_dfmpc.pipeline.results import InspectResult, PlanResult, QuantizeResult
from onnx_dfmpc.pipeline.steps import (
    Adjustment,
    Made,
    Measured,
    adjustment_of,
    allocate,
    carry_out,
    cost_table,
    evaluate,
    finish,
    float_note,
    frontier_of,
    measure,
    sweep_point,
    validation_data,
    weight_bytes,
)
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.runtime.pieces import is_piecewise
from onnx_dfmpc.spec import CostTable, MatchReport, Progress, QuantPlan, SweepPoint
from onnx_dfmpc.statistics.belief import Belief, believe

ATTEMPTS = 3
"""Times that bits are allocated anew when a promised SQNR is missed."""

MARGIN_DB = 0.3
"""What a target is raised by beyond what it missed: bits come in steps."""

PLANNED = "nothing was tried to improve on a plan: give the worst layers more bits in it, or plan for more"
"""A remark: there is no flag to add, since a plan has decided."""


def inspect(model: Model) -> MatchReport:
    """Find the layers that can be quantized, the chains between them, and what stays float.

    Parameters
    ----------
    model : path, bytes, ModelProto, graphsurgeon.Graph or onnx_ir.Model

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
    return match(load(model).proto, read_mapped=False)


def inspect_result(model: Model) -> InspectResult:
    """`inspect`, with what the inputs are taken for."""
    source = load(model)
    matched = match(source.proto, read_mapped=False)
    belief: Belief | None = None
    if matched.layers and not is_piecewise(source.proto):  # its weights would have to be read
        with suppress(UnsupportedError):  # an input that nobody can feed
            belief = believe(source.proto, matched.layers, model_inputs(source.proto))
    names = [one.name for one in matched.weights]
    left = float_note(source, matched, names, ())
    return InspectResult(source, matched, belief, (left, *doubts(belief, None)))


def plan(model: Model, recipe: Recipe | None = None) -> QuantPlan:
    """Bits of every layer, with reasons and what they are predicted to cost, without touching a weight.

    Parameters
    ----------
    model : path, bytes, ModelProto, graphsurgeon.Graph or onnx_ir.Model
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
    >>> [layer.bits for layer in made.layers[:3]]
    [8, 4, 6]
    """
    return plan_result(model, recipe).plan


def plan_result(
    model: Model,
    recipe: Recipe | None = None,
    *,
    sweep: int | Sequence[int] | None = None,
    progress: Progress | None = None,
) -> PlanResult:
    """`plan`, with the account of how it came about; ``sweep`` is a number of budgets, or some in bytes."""
    seconds: Seconds = {}
    recipe = recipe or Recipe()
    needed = needs_statistics(recipe) or sweep is not None
    job = prepare(model, recipe, progress, seconds, statistics=needed, predicted=True)
    statistics = measure(job, job.planned, seconds)
    job, made, costs, notes = _possible(job, statistics, seconds)
    points: tuple[SweepPoint, ...] = ()
    if sweep is not None:
        table = costs or cost_table(job, statistics, seconds, everything=True)[0]
        assert table is not None
        points = _swept(
            job, table, sweep, statistics, seconds, adjustment_of(made.plan, table, made.activations)
        )
    doubt = doubts(job.belief, made.expectation)
    all_notes = (*job.notes, *statistics.notes, *notes, *made.notes, *doubt)
    return PlanResult(
        job.source, job.matched, made.plan, job.recipe, points, all_notes, seconds, made.expectation
    )


def apply(
    model: Model,
    plan: QuantPlan,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
    validated: bool = True,
    per_layer: bool = False,
    latency: bool = False,
) -> QuantizeResult:
    """Quantize a model by a plan.

    Parameters
    ----------
    model : path, bytes, ModelProto, graphsurgeon.Graph or onnx_ir.Model
        The model that the plan was made for.
    plan : QuantPlan
    recipe : Recipe, optional
        Method, statistics and validation, by default those that the plan was made with; its bits and its
        storage are not asked.
    progress : callable, optional
        Called with ``(stage, done, total)``.
    validated : bool
        Whether to compare with the float model.
    per_layer : bool
        Also measure what every layer alone does to the outputs.
    latency : bool
        Also time inferences of both models.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    RecipeError
        If the plan is for another model, or does not have every layer once.

    Examples
    --------
    >>> recipe = Recipe(bits=4, rounding="nearest", repair="none")
    >>> made = plan("models/digits_resnet_bn.onnx", recipe)
    >>> apply("models/digits_resnet_bn.onnx", made, validated=False).plan["/fc/Gemm"].bits
    8
    """
    seconds: Seconds = {}
    recipe = recipe or Recipe.from_dict(plan.recipe)
    needed = needs_statistics(recipe, plan)
    job = prepare(model, recipe, progress, seconds, plan=plan, statistics=needed, predicted=validated)
    names = tuple(layer.name for layer in plan.layers)
    statistics = measure(job, names, seconds)
    while True:
        try:
            made = carry_out(job, plan, statistics, seconds)
            break
        except LayerError as error:
            job = without_layer(job, error)
            plan = plan.without(job.matched.skipped[-1])
    statistics = replace(statistics, layers={})  # nobody needs the covariances again
    result = _account(
        job, made, statistics, None, seconds, validated=validated, per_layer=per_layer, latency=latency
    )
    return replace(result, notes=(*result.notes, *((PLANNED,) if per_layer else ())))


def quantize(
    model: Model,
    output: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    *,
    external_data: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    validated: bool = True,
    per_layer: bool = False,
    latency: bool = False,
) -> QuantizeResult:
    """Quantize the weights of a float model, validate it against the float model, and save it.

    Parameters
    ----------
    model : path, bytes, ModelProto, graphsurgeon.Graph or onnx_ir.Model
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
    per_layer : bool
        Also measure what every layer alone does to the outputs, and try what helps: up to three
        quantizations more.
    latency : bool
        Also time inferences of both models.

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
    needed = needs_statistics(recipe)
    job = prepare(model, recipe, progress, seconds, statistics=needed, predicted=validated)
    if output is not None:
        require_writable(output, external_data=external_data, overwrite=overwrite, protected=job.source.files)
    statistics = measure(job, job.planned, seconds)
    job, made, costs, notes = _possible(job, statistics, seconds)
    if not per_layer:  # nobody needs the covariances again: half a gigabyte of a ResNet-50
        statistics = replace(statistics, layers={})
    result = _account(
        job, made, statistics, costs, seconds, validated=validated, per_layer=per_layer, latency=latency
    )
    result = replace(result, notes=(*result.notes, *notes))
    if per_layer:
        result = _with_advice(job, statistics, costs, result, seconds)
    if output is None or not result.passed:
        return result
    return result.save(output, external_data=external_data, overwrite=overwrite)


def _possible(
    job: Job, statistics: Measured, seconds: Seconds
) -> tuple[Job, Made, CostTable | None, tuple[str, ...]]:
    """The quantized model without the layers that turn out to be impossible, the job that leaves these float,
    what bits cost in it, and remarks. Where biases turn out too large for 16 bits, and the file for its
    target, bits are chosen again.
    """
    while True:
        costs, notes = cost_table(job, statistics, seconds)
        try:
            made = _made(job, statistics, costs, seconds)
        except LayerError as error:
            job = without_layer(job, error)
            continue
        size = job.recipe.target_size
        if size is None or (made.plan.predicted_bytes or 0) <= size or not made.rewritten.large_biases:
            return job, made, costs, notes
        job = with_large_biases(job, made.rewritten.large_biases)


def _made(job: Job, statistics: Measured, costs: CostTable | None, seconds: Seconds) -> Made:
    """The quantized model, with bits for the target; where that is an SQNR, for one that is expected to hold.

    A table adds up what layers do one at a time. So the model is made and run, and where the lower end of
    what is expected misses the target, that is raised by as much, a few times.
    """
    wanted = job.recipe.target_sqnr_db
    made = carry_out(job, allocate(job, costs, seconds), statistics, seconds)
    if wanted is None:
        return made
    raised, best = wanted, made
    for _ in range(0 if costs is None else ATTEMPTS):  # without layers there is nothing to choose
        low = best.plan.predicted_low_db
        if low is None or low >= wanted:
            return best
        raised += wanted - low + MARGIN_DB
        try:
            plan = allocate(job, costs, seconds, target_sqnr_db=raised)
        except UnsupportedError:  # even the most bits promise less
            break
        if [layer.bits for layer in plan.layers] == [layer.bits for layer in best.plan.layers]:
            continue  # bits come in steps, and this was less than one
        best = carry_out(job, plan, statistics, seconds)
    low = best.plan.predicted_low_db
    if low is None or low >= wanted:
        return best
    note = f"the prediction does not promise {wanted:g} dB: its lower end is {low:.1f} dB"
    return replace(best, notes=(*best.notes, note))


def _account(
    job: Job,
    made: Made,
    statistics: Measured,
    costs: CostTable | None,
    seconds: Seconds,
    *,
    validated: bool,
    per_layer: bool = False,
    latency: bool = False,
) -> QuantizeResult:
    """Everything after rewriting."""
    layer_noise: Mapping[str, float | None] = {}
    evaluation = None
    if validated:
        with timed(seconds, "validate"):
            layer_noise, evaluation = evaluate(job, made, per_layer=per_layer, latency=latency)
    frontier: tuple[SweepPoint, ...] = ()
    if costs is not None:
        with timed(seconds, "allocate"):
            frontier = frontier_of(job, costs, adjustment_of(made.plan, costs, made.activations))
    return finish(job, made, layer_noise, evaluation, frontier, statistics, seconds)


def _with_advice(
    job: Job, statistics: Measured, costs: CostTable | None, result: QuantizeResult, seconds: Seconds
) -> QuantizeResult:
    """Result with the changes to its recipe that help: each is tried with the statistics and the costs of the
    run.
    """
    with timed(seconds, "advice"):
        wanted = changes(job.recipe, result.per_layer, weight_bytes(job))
        sqnr_db = None if result.validation is None else result.validation.sqnr_db
        before = Trial(full_size(result.model), sqnr_db)
        attempt = partial(_attempt, job, statistics, costs)
        advice = tuple(advise(wanted, attempt, before, job.progress))
    return replace(result, advice=advice, notes=(*result.notes, *remarks(wanted, advice)))


def _attempt(job: Job, statistics: Measured, costs: CostTable | None, recipe: Recipe) -> Trial | None:
    """What another recipe with the same kind of bits gives; None where it cannot be met."""
    # Only bits for a promise depend on predictions.
    trials = () if recipe.target_sqnr_db is None else job.trials
    job = replace(job, recipe=recipe, progress=None, trials=trials)
    try:
        proto = _made(job, statistics, costs, Seconds()).final
    except UnsupportedError:
        return None
    return Trial(full_size(proto), validate(job.source.proto, proto, validation_data(job)).sqnr_db)


def _swept(
    job: Job,
    costs: CostTable,
    wanted: int | Sequence[int],
    statistics: Measured,
    seconds: Seconds,
    adjust: Adjustment,
) -> tuple[SweepPoint, ...]:
    """Size against quality, for a number of budgets or for given ones; measured where there is data."""
    allowed = budgets(job.matched, job.recipe, costs, wanted) if isinstance(wanted, int) else wanted
    with timed(seconds, "allocate"):
        plans = sweep(job.matched, job.recipe, job.source.sha256, costs, allowed)
    points = []
    for budget, made in zip(allowed, plans, strict=True):
        point = sweep_point(job, budget, made, adjust)
        if made is not None and job.recipe.data is not None:
            placed = replace(made, form=job.recipe.form)
            done = carry_out(job, placed, statistics, seconds)
            found = _account(job, done, statistics, None, seconds, validated=True).validation
            if found is not None:
                point = replace(point, measured_sqnr_db=found.sqnr_db, top1=found.top1_quantized)
        points.append(point)
    return tuple(points)
