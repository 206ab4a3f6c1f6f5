"""The whole run: the functions a user calls, and the one order in which data passes through the rooms.

    prepare -> measure -> predict -> allocate -> solve -> rewrite -> evaluate -> finish

Each step is a function of what the steps before it returned; nothing is lazy, and nothing is changed in
place. Advice (`advice`) is what other recipes give in the steps from allocate to evaluate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from onnx_dfmpc.allocate.budget import budgets, sweep
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.evaluate.compare import validate
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.model.files import Model, load, require_writable, verify
from onnx_dfmpc.pipeline.advice import Trial, advise, changes, remarks
from onnx_dfmpc.pipeline.job import Job, Seconds, metadata_of, needs_statistics, prepare, timed
from onnx_dfmpc.pipeline.results import PlanResult, QuantizeResult
from onnx_dfmpc.pipeline.steps import (
    Measured,
    allocate,
    cost_table,
    evaluate,
    finish,
    frontier_of,
    measure,
    sweep_point,
    validation_data,
    weight_bytes,
    with_predicted_bytes,
)
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rewrite.apply import Rewritten, rewrite
from onnx_dfmpc.sensitivity.table import with_costs, with_noise
from onnx_dfmpc.solve import solve
from onnx_dfmpc.spec import CostTable, MatchReport, Progress, QuantizedLayer, QuantPlan, SweepPoint

PLANNED = "nothing was tried to improve on a plan: give the worst layers more bits in it, or plan for more"
"""A remark: there is no flag to add, since a plan has decided."""


def inspect(model: Model) -> MatchReport:
    """Find the layers that can be quantized, the chains between them, and what stays float.

    Parameters
    ----------
    model : path, bytes, ModelProto or graphsurgeon.Graph

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
    model : path, bytes, ModelProto or graphsurgeon.Graph
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
    per_layer: bool = False,
    latency: bool = False,
) -> QuantizeResult:
    """Quantize a model by a plan.

    Parameters
    ----------
    model : path, bytes, ModelProto or graphsurgeon.Graph
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
    job = prepare(model, recipe, progress, seconds, plan=plan, statistics=needed, validated=validated)
    names = tuple(layer.name for layer in plan.layers)
    statistics = measure(job, names, seconds)
    result = _carry_out(
        job, plan, statistics, None, seconds, validated=validated, per_layer=per_layer, latency=latency
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
    model : path, bytes, ModelProto or graphsurgeon.Graph
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
    job = prepare(model, recipe, progress, seconds, statistics=needed, validated=validated)
    if output is not None:
        require_writable(output, external_data=external_data, overwrite=overwrite, protected=job.source.files)
    statistics = measure(job, job.planned, seconds)
    costs, notes = cost_table(job, statistics, seconds)
    made = allocate(job, costs, seconds)
    result = _carry_out(
        job, made, statistics, costs, seconds, validated=validated, per_layer=per_layer, latency=latency
    )
    result = replace(result, notes=(*result.notes, *notes))
    if per_layer:
        result = _with_advice(job, statistics, costs, result, seconds)
    if output is None or not result.passed:
        return result
    return result.save(output, external_data=external_data, overwrite=overwrite)


def _carry_out(
    job: Job,
    plan: QuantPlan,
    statistics: Measured,
    costs: CostTable | None,
    seconds: Seconds,
    *,
    validated: bool,
    per_layer: bool = False,
    latency: bool = False,
) -> QuantizeResult:
    """Everything after allocation."""
    proto, matched = job.source.proto, job.matched
    if plan.predicted_bytes is None:
        plan = with_predicted_bytes(job, plan)
    solved, rewritten = _rewritten(job, plan, statistics, seconds)
    if plan.predicted_sqnr_db is None and statistics.layers:
        plan = with_noise(plan, proto, matched, solved, statistics.layers)
    with timed(seconds, "check"):
        verify(rewritten.proto, "the quantized model")
    layer_noise: Mapping[str, float | None] = {}
    evaluation = None
    if validated:
        with timed(seconds, "validate"):
            layer_noise, evaluation = evaluate(
                job, rewritten.proto, solved, per_layer=per_layer, latency=latency
            )
    frontier: tuple[SweepPoint, ...] = ()
    if costs is not None:
        with timed(seconds, "allocate"):
            frontier = frontier_of(job, costs)
    return finish(job, plan, solved, rewritten, layer_noise, evaluation, frontier, statistics, seconds)


def _rewritten(
    job: Job, plan: QuantPlan, statistics: Measured, seconds: Seconds
) -> tuple[Sequence[QuantizedLayer], Rewritten]:
    """The layers of a plan, quantized, and the graph that has them."""
    proto, matched = job.source.proto, job.matched
    with timed(seconds, "quantize"):
        solved = solve(proto, matched, plan, job.recipe, statistics.layers, job.feeds, job.progress)
    with timed(seconds, "rewrite"):
        names = [layer.name for layer in plan.layers]
        bits = {layer.name: layer.bits for layer in plan.layers}
        metadata = metadata_of(job.source, job.recipe, plan.form, names, bits)
        return solved, rewrite(proto, matched, solved, form=plan.form, metadata=metadata)


def _with_advice(
    job: Job, statistics: Measured, costs: CostTable | None, result: QuantizeResult, seconds: Seconds
) -> QuantizeResult:
    """Result with the changes to its recipe that help: each is tried with the statistics and the costs of the
    run.
    """
    with timed(seconds, "advice"):
        wanted = changes(job.recipe, result.per_layer, weight_bytes(job))
        sqnr_db = None if result.validation is None else result.validation.sqnr_db
        before = Trial(result.model.ByteSize(), sqnr_db)
        attempt = partial(_attempt, job, statistics, costs)
        advice = tuple(advise(wanted, attempt, before, job.progress))
    return replace(result, advice=advice, notes=(*result.notes, *remarks(wanted, advice)))


def _attempt(job: Job, statistics: Measured, costs: CostTable | None, recipe: Recipe) -> Trial | None:
    """What another recipe with the same kind of bits gives; None where it cannot be met."""
    job, seconds = replace(job, recipe=recipe, progress=None), Seconds()
    try:
        made = allocate(job, costs, seconds)
    except UnsupportedError:
        return None
    proto = _rewritten(job, made, statistics, seconds)[1].proto
    return Trial(proto.ByteSize(), validate(job.source.proto, proto, validation_data(job)).sqnr_db)


def _swept(
    job: Job, costs: CostTable, wanted: int | Sequence[int], statistics: Measured, seconds: Seconds
) -> tuple[SweepPoint, ...]:
    """Size against quality, for a number of budgets or for given ones; measured where there is data."""
    allowed = budgets(job.matched, job.recipe, costs, wanted) if isinstance(wanted, int) else wanted
    with timed(seconds, "allocate"):
        plans = sweep(job.matched, job.recipe, job.source.sha256, costs, allowed)
    points = []
    for budget, made in zip(allowed, plans, strict=True):
        point = sweep_point(job, budget, made)
        if made is not None and job.recipe.data is not None:
            placed = replace(made, form=job.recipe.form)
            found = _carry_out(job, placed, statistics, None, seconds, validated=True).validation
            if found is not None:
                point = replace(point, measured_sqnr_db=found.sqnr_db, top1=found.top1_quantized)
        points.append(point)
    return tuple(points)
