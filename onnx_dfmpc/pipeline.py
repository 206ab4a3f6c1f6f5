"""The whole run, room by room: load -> match -> allocate -> statistics -> solve -> rewrite -> validate. No arithmetic of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version

import numpy as np
from onnx import ModelProto

from onnx_dfmpc import graph, inputs, statistics
from onnx_dfmpc import match as matching
from onnx_dfmpc.allocate import allocate
from onnx_dfmpc.errors import RecipeError, UnsupportedError
from onnx_dfmpc.layerwise import solve_layers, weight_noise
from onnx_dfmpc.recipe import Recipe, nearest_layer
from onnx_dfmpc.result import PlanResult, QuantizeResult
from onnx_dfmpc.rewrite import Rewritten, rewrite
from onnx_dfmpc.spec import LayerReport, MatchReport, QuantizedLayer, QuantPlan, Skipped
from onnx_dfmpc.validate import ValidationReport, check_data, layer_sqnr, validate

__all__ = ["PlanResult", "QuantizeResult", "apply", "match", "plan", "plan_result", "quantize"]

Model = str | os.PathLike[str] | ModelProto
LAYER_SAMPLES = 8

Progress = Callable[[str, int, int], None]


def match(model: Model) -> MatchReport:
    """Find the layers that can be quantized, the chains between them, and what stays float.

    Parameters
    ----------
    model : path or ModelProto

    Returns
    -------
    MatchReport
    """
    return matching.match(graph.load(model).proto)


def plan(model: Model, recipe: Recipe | None = None) -> QuantPlan:
    """Bits of every layer, without touching a weight.

    Parameters
    ----------
    model : path or ModelProto
    recipe : Recipe, optional

    Returns
    -------
    QuantPlan

    Raises
    ------
    RecipeError, ModelError, UnsupportedError
        Bad settings, or a budget that cannot be met; a bad model; nothing to quantize.
    """
    return plan_result(model, recipe).plan


def plan_result(
    model: Model, recipe: Recipe | None = None, *, sweep: int | Sequence[int] | None = None, progress: Progress | None = None
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
    work = _Work(model, recipe or Recipe(), progress)
    return PlanResult(work.source, work.report, work.allocate(), work.recipe, (), work.notes, work.clock.seconds)


def apply(
    model: Model, plan: QuantPlan, recipe: Recipe | None = None, *, progress: Progress | None = None, validated: bool = True
) -> QuantizeResult:
    """Quantize a model by a plan.

    Parameters
    ----------
    model : path or ModelProto
        The model that the plan was made for.
    plan : QuantPlan
    recipe : Recipe, optional
        Method, statistics and validation, by default those that the plan was made with; its bits and its storage are not asked.
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
    """
    work = _Work(model, recipe or Recipe.from_dict(plan.recipe), progress)
    work.require_fit(plan)
    return work.run(plan, validated=validated)


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
) -> QuantizeResult:
    """Quantize the weights of a float model, validate it against the float model, and save it.

    Parameters
    ----------
    model_input : path or ModelProto
        Never changed.
    model_output : path, optional
        Where to save it; not written if a gate of the validation fails.
    recipe : Recipe, optional
        What to do; see `Recipe`.
    nodes_to_quantize, nodes_to_exclude : sequence of str, optional
        Added to the recipe's.
    use_external_data_format : bool
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

    Raises
    ------
    RecipeError, ModelError, UnsupportedError
        Bad settings; a bad model; nothing to quantize. Nothing is written then.
    """
    recipe = recipe or Recipe()
    recipe = replace(
        recipe,
        nodes_to_quantize=(*recipe.nodes_to_quantize, *(nodes_to_quantize or ())),
        nodes_to_exclude=(*recipe.nodes_to_exclude, *(nodes_to_exclude or ())),
    )
    if model_output is not None:
        graph.require_writable(model_output, external_data=use_external_data_format, overwrite=overwrite)
    work = _Work(model_input, recipe, progress)
    result = work.run(work.allocate(), validated=validated)
    if model_output is None or not result.passed:
        return result
    return result.save(model_output, external_data=use_external_data_format, overwrite=overwrite)


class _Work:
    """One model on its way through the rooms: what it is, what to do to it, and what several rooms share."""

    def __init__(self, model: Model, recipe: Recipe, progress: Progress | None) -> None:
        self.recipe, self.progress, self.clock = recipe, progress, _Clock()
        with self.clock("load"):
            self.source = graph.load(model)
        with self.clock("match"):
            self.report = matching.match(self.source.proto)
        _require_layers(self.source, self.report.layers, self.report.skipped)
        if recipe.data or recipe.labels or recipe.gates:
            check_data(self.source.proto, recipe.data, recipe.labels, gates=recipe.gates)

    @cached_property
    def inferred_range(self) -> tuple[float, float] | None:
        """What the first layer suggests; looked at only by those who need synthetic inputs."""
        specs = statistics.model_inputs(self.source.proto)
        return statistics.infer_range(self.source.proto, self.report.layers, specs, seed=self.recipe.seed)

    def input_range(self) -> tuple[float, float] | None:
        """Range of synthetic inputs."""
        return self.recipe.input_range or self.inferred_range

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the inputs."""
        inferred = vars(self).get("inferred_range")
        if inferred is None:
            return ()
        low, high = inferred
        return (f"synthetic images in {low:g} to {high:g}, as the first layer suggests: --input-range says better",)

    def allocate(self) -> QuantPlan:
        """Bits of every layer."""
        with self.clock("allocate"):
            made = allocate(self.report, self.recipe, self.source.sha256, weight_noise(self.source))
        name = "" if self.source.path is None else self.source.path.name
        return replace(made, model_name=name, form=self.recipe.form, recipe=self.recipe.to_dict())

    def require_fit(self, plan: QuantPlan) -> None:
        """Refuse a plan that is for another model, or that does not have every layer once."""
        if plan.model_sha256 != self.source.sha256:
            raise RecipeError(f"the plan is for another model than {self.source.label}", hint="make it again with: onnx-dfmpc plan")
        matched = [layer.name for layer in self.report.layers]
        planned = Counter([layer.name for layer in plan.layers] + [skipped.name for skipped in plan.skipped])
        reasons = {skipped.name: skipped.reason for skipped in self.report.skipped}
        for layer in plan.layers:
            if layer.name in reasons:
                raise RecipeError(f"plan: {layer.name!r} cannot be quantized: {reasons[layer.name]}", hint="leave it under skipped")
        for name, times in planned.items():
            if name not in matched and name not in reasons:
                raise RecipeError(f"plan: no layer is named {name!r}", hint=nearest_layer(name, self.report))
            if times > 1:
                raise RecipeError(f"plan: {name!r} is there {times} times", hint="keep it once")
        for name in matched:
            if name not in planned:
                hint = "list it under layers with its bits, or under skipped to keep it float"
                raise RecipeError(f"plan: layer {name!r} is missing", hint=hint)

    def run(self, plan: QuantPlan, *, validated: bool) -> QuantizeResult:
        """Everything behind allocation."""
        source, report, recipe = self.source, self.report, self.recipe
        _require_layers(source, plan.layers, plan.skipped)
        with self.clock("quantize"):
            solved = solve_layers(source, report, plan, recipe, input_range=self.input_range, progress=self.progress)
        with self.clock("rewrite"):
            rewritten = rewrite(source.proto, report, solved, metadata=_metadata(source, recipe, plan))
        with self.clock("check"):
            graph.verify(rewritten.proto, "the quantized model")
        with self.clock("validate"):
            measured, validation = self._validate(rewritten.proto, solved) if validated else ({}, None)
        return QuantizeResult(
            model=rewritten.proto,
            source=source,
            plan=plan,
            recipe=recipe,
            layers=tuple(_rows(report, plan, solved, rewritten, measured)),
            chains=report.chains,
            skipped=plan.skipped,
            size=rewritten.proto.ByteSize(),
            notes=(*rewritten.notes, *self.notes),
            seconds=self.clock.seconds,
            validation=validation,
        )

    def _validate(self, quantized: ModelProto, solved: Sequence[QuantizedLayer]) -> tuple[Mapping[str, float | None], ValidationReport]:
        """Every layer on a few inputs, and the outputs on all."""
        source, recipe = self.source.proto, self.recipe
        input_range = None if recipe.data else self.input_range()
        measured = layer_sqnr(source, quantized, _tensors(self.report, solved), _few_samples(source, recipe, input_range))
        validation = validate(
            source,
            quantized,
            recipe.data,
            recipe.labels,
            gates=recipe.gates,
            samples=recipe.samples,
            seed=recipe.seed,
            input_range=input_range,
            progress=self.progress,
        )
        return measured, validation


def _require_layers(source: graph.LoadedModel, layers: Sequence[object], skipped: Sequence[Skipped]) -> None:
    if layers:
        return
    if not skipped:
        reason = "it has no Conv, ConvTranspose, Gemm or MatMul"
    else:
        (reason, count), *others = Counter(node.reason for node in skipped).most_common()
        nodes = f"{count} node{'s' if count > 1 else ''}"
        rest = sum(number for _, number in others)
        reason += f" ({nodes}; {rest} more for other reasons)" if rest else f" ({nodes})"
    raise UnsupportedError(f"{source.label}: nothing to quantize: {reason}", hint="onnx-dfmpc inspect shows what was found")


def _few_samples(source: ModelProto, recipe: Recipe, input_range: tuple[float, float] | None) -> inputs.Samples:
    """Inputs for comparing every layer, one at a time, since all the activations of a run are in memory at once."""
    specs = statistics.model_inputs(source)
    if recipe.data is not None:
        found = inputs.from_data(specs, recipe.data, recipe.labels, samples=LAYER_SAMPLES, seed=recipe.seed)
    else:
        found = inputs.synthetic(specs, samples=LAYER_SAMPLES, seed=recipe.seed, input_range=input_range)
    return found if inputs.fixed_batch(specs) else replace(found, batch=1)


def _tensors(report: MatchReport, solved: Sequence[QuantizedLayer]) -> dict[str, tuple[str, str]]:
    """Where each layer's output can be compared: behind its batch norm, if it has one."""
    layers = {layer.name: layer for layer in report.layers}
    ends = {}
    for done in solved:
        layer = layers[done.name]
        end = layer.batch_norm.output if layer.batch_norm is not None else layer.output
        ends[done.name] = (end, end)
    return ends


def _rows(
    report: MatchReport, plan: QuantPlan, solved: Sequence[QuantizedLayer], rewritten: Rewritten, measured: Mapping[str, float | None]
) -> Iterator[LayerReport]:
    layers = {layer.name: layer for layer in report.layers}
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
            provider=done.provider,
            gain_min=float(gain.min()),
            gain_max=float(gain.max()),
            predicted_sqnr_db=done.predicted_sqnr_db,
            measured_sqnr_db=measured.get(done.name),
            reason=planned.reason,
            notes=(*layer.notes, *done.notes, *stored.notes),
        )


def _metadata(source: graph.LoadedModel, recipe: Recipe, plan: QuantPlan) -> dict[str, str]:
    settings = json.dumps(recipe.to_dict(), sort_keys=True)
    return {
        "version": version("onnx-dfmpc"),
        "recipe_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "input_sha256": source.sha256,
        "bits": json.dumps({layer.name: layer.bits for layer in plan.layers}, separators=(",", ":")),
    }


class _Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
