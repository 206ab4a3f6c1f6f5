"""The whole run, from a model and a recipe to a plan or to a quantized model. No arithmetic of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from onnx_dfmpc.comparison import compare_files
from onnx_dfmpc.matching.match import match as find_layers
from onnx_dfmpc.model.files import load, require_writable
from onnx_dfmpc.recipe import Recipe, Rule
from onnx_dfmpc.result import ComparisonResult, PlanResult, QuantizeResult
from onnx_dfmpc.spec import MatchReport, QuantPlan
from onnx_dfmpc.work import Model, Progress, Work

__all__ = [
    "ComparisonResult",
    "PlanResult",
    "QuantizeResult",
    "apply",
    "compare_files",
    "match",
    "plan",
    "plan_result",
    "quantize",
]


def match(model: Model) -> MatchReport:
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
    >>> found = match("models/digits_resnet_bn.onnx")
    >>> len(found.layers), len(found.skipped), found.layers[0].name
    (16, 0, '/conv/Conv')
    """
    return find_layers(load(model).proto)


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
    """`plan`, with the account of how it came about.

    Parameters
    ----------
    model : path or ModelProto
    recipe : Recipe, optional
    sweep : int or sequence of int, optional
        Number of budgets, or budgets in bytes, to compare.
    progress : callable, optional
        Called with ``(stage, done, total)``.
    """
    work = Work(model, recipe or Recipe(), progress)
    made = work.allocate()
    points = () if sweep is None else work.sweep(sweep)
    return PlanResult(
        work.source, work.report, work.predict(made), work.recipe, points, work.notes, work.clock.seconds
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
    per_layer, latency : bool
        Whether to measure what every layer alone does to the outputs, and how long an inference takes.

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
    work = Work(model, recipe or Recipe.from_dict(plan.recipe), progress)
    work.require_fit(plan)
    return work.run(plan, validated=validated, per_layer=per_layer, latency=latency)


def quantize(
    model_input: Model,
    model_output: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    *,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    validated: bool = True,
    per_layer: bool = False,
    latency: bool = False,
) -> QuantizeResult:
    """Quantize the weights of a float model, validate it against the float model, and save it.

    Parameters
    ----------
    model_input : path or ModelProto
        Never changed.
    model_output : path, optional
        Where to save it; not written if the validation fails.
    recipe : Recipe, optional
        Bits, method, output and validation; by default a mean of 4 bits, without data.
    nodes_to_quantize, nodes_to_exclude : sequence of str, optional
        The only nodes to quantize, and nodes that stay float: added to the recipe's.
    use_external_data_format : bool
        Put the weights into a file beside the model.
    overwrite : bool
        Replace an existing output.
    progress : callable, optional
        Called with ``(stage, done, total)``.
    validated : bool
        Whether to compare with the float model.
    per_layer, latency : bool
        Whether to measure what every layer alone does to the outputs, and how long an inference takes.

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
    recipe = recipe or Recipe()
    if nodes_to_quantize:  # before the other rules, so that what they exclude stays float
        only = [Rule(node=name, exclude=False) for name in nodes_to_quantize]
        recipe = replace(recipe, rules=(Rule(regex="", exclude=True), *only, *recipe.rules))
    recipe = replace(recipe, nodes_to_exclude=nodes_to_exclude or ())
    if model_output is not None:
        require_writable(model_output, external_data=use_external_data_format, overwrite=overwrite)
    work = Work(model_input, recipe, progress)
    result = work.run(work.allocate(), validated=validated, per_layer=per_layer, latency=latency)
    result = replace(result, sweep=work.frontier())
    if model_output is None or not result.passed:
        return result
    return result.save(model_output, external_data=use_external_data_format, overwrite=overwrite)
