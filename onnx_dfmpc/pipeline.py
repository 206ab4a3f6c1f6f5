"""The whole run, room by room: load -> match -> allocate -> statistics -> solve -> rewrite -> validate. No arithmetic of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnx_dfmpc import graph, inputs, statistics
from onnx_dfmpc import match as matching
from onnx_dfmpc.allocate import allocate
from onnx_dfmpc.errors import RecipeError, UnsupportedError
from onnx_dfmpc.layerwise import solve_layers, weight_noise
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.rewrite import Rewritten, rewrite
from onnx_dfmpc.spec import Chain, LayerReport, MatchReport, QuantizedLayer, QuantPlan, Skipped
from onnx_dfmpc.validate import ValidationReport, layer_sqnr, validate

Model = str | os.PathLike[str] | ModelProto
LAYER_SAMPLES = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class QuantizeResult:
    """A quantized model and the account of how it came about.

    Attributes
    ----------
    model : ModelProto
    source : LoadedModel
        The float model it comes from.
    plan : QuantPlan
    recipe : Recipe
    layers : tuple of LayerReport
        One for each quantized layer, in topological order.
    chains : tuple of Chain
    skipped : tuple of Skipped
        Every weighted node that stayed float, and why.
    size : int
        Bytes on disk: of the file once it is saved, of the serialized model before.
    notes : tuple of str
        Remarks on the model as a whole, such as a raised opset.
    seconds : dict
        Wall time of each stage.
    validation : ValidationReport or None
    output : Path or None
        Where it was saved.
    """

    model: ModelProto
    source: graph.LoadedModel
    plan: QuantPlan
    recipe: Recipe
    layers: tuple[LayerReport, ...]
    chains: tuple[Chain, ...]
    skipped: tuple[Skipped, ...]
    size: int
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    validation: ValidationReport | None = None
    output: Path | None = None

    def save(self, path: str | os.PathLike[str], *, external_data: bool = False, overwrite: bool = False) -> QuantizeResult:
        """Write the model, whole or not at all.

        Parameters
        ----------
        path : path
        external_data : bool
            Put the weights into a file beside it.
        overwrite : bool
            Replace an existing file.

        Returns
        -------
        QuantizeResult
            The same result, knowing where it lies and how large it is.

        Raises
        ------
        RecipeError
            If the file exists and may not be overwritten, or cannot be written.
        """
        size = graph.save(self.model, path, external_data=external_data, overwrite=overwrite)
        return replace(self, size=size, output=Path(path))


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
    """
    source = graph.load(model)
    return allocate(matching.match(source.proto), recipe or Recipe(), source.sha256, weight_noise(source))


def apply(model: Model, plan: QuantPlan, recipe: Recipe | None = None, *, progress: Progress | None = None) -> QuantizeResult:
    """Quantize a model by a plan.

    Parameters
    ----------
    model : path or ModelProto
        The model that the plan was made for.
    plan : QuantPlan
    recipe : Recipe, optional
        Method, statistics and validation; its bits are not asked.
    progress : callable, optional
        Called with ``(stage, done, total)``.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    RecipeError
        If the plan is for another model.
    """
    clock = _Clock()
    with clock("load"):
        source = graph.load(model)
    if plan.model_sha256 != source.sha256:
        raise RecipeError(f"the plan is for another model than {source.label}", hint="make it again with: onnx-dfmpc plan")
    with clock("match"):
        report = matching.match(source.proto)
    return _run(source, report, plan, recipe or Recipe(), progress, clock)


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
    if model_output is not None and not overwrite and Path(model_output).exists():
        raise RecipeError(f"{model_output}: exists already", hint="choose another output path, or overwrite it on purpose")
    clock = _Clock()
    with clock("load"):
        source = graph.load(model_input)
    with clock("match"):
        report = matching.match(source.proto)
    result = _run(source, report, allocate(report, recipe, source.sha256, weight_noise(source)), recipe, progress, clock)
    if model_output is None or not result.validation:
        return result
    return result.save(model_output, external_data=use_external_data_format, overwrite=overwrite)


def _run(
    source: graph.LoadedModel, report: MatchReport, plan: QuantPlan, recipe: Recipe, progress: Progress | None, clock: _Clock
) -> QuantizeResult:
    if not plan.layers:
        reasons = "; ".join(sorted({skipped.reason for skipped in plan.skipped})) or "it has no Conv, ConvTranspose, Gemm or MatMul"
        raise UnsupportedError(f"{source.label}: nothing to quantize: {reasons}", hint="onnx-dfmpc inspect shows what was found")
    with clock("inputs"):
        specs = statistics.model_inputs(source.proto)
        inferred = None if recipe.input_range else statistics.infer_range(source.proto, report.layers, specs, seed=recipe.seed)
        input_range = recipe.input_range or inferred
    with clock("quantize"):
        solved = solve_layers(source, report, plan, recipe, input_range=input_range, progress=progress)
    with clock("rewrite"):
        rewritten = rewrite(source.proto, report, solved, metadata=_metadata(source, recipe, plan))
    with clock("check"):
        graph.verify(rewritten.proto, "the quantized model")
    with clock("validate"):
        measured = layer_sqnr(source.proto, rewritten.proto, _tensors(report, solved), _few_samples(source, recipe, input_range))
        validation = validate(
            source.proto,
            rewritten.proto,
            recipe.data,
            recipe.labels,
            gates=recipe.gates,
            samples=recipe.samples,
            seed=recipe.seed,
            input_range=input_range,
            progress=progress,
        )
    return QuantizeResult(
        model=rewritten.proto,
        source=source,
        plan=plan,
        recipe=recipe,
        layers=tuple(_rows(report, plan, solved, rewritten, measured)),
        chains=report.chains,
        skipped=plan.skipped,
        size=rewritten.proto.ByteSize(),
        notes=(*rewritten.notes, *_range_note(inferred)),
        seconds=clock.seconds,
        validation=validation,
    )


def _range_note(inferred: tuple[float, float] | None) -> tuple[str, ...]:
    if inferred is None:
        return ()
    low, high = inferred
    return (f"synthetic images in {low:g} to {high:g}, as the first layer suggests: --input-range says better",)


def _few_samples(source: graph.LoadedModel, recipe: Recipe, input_range: tuple[float, float] | None) -> inputs.Samples:
    """Inputs for comparing every layer, one at a time, since all the activations of a run are in memory at once."""
    specs = statistics.model_inputs(source.proto)
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
