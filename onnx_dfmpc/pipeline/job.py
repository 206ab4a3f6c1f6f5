"""One model and what to do to it, checked before any work is done."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from onnx import ModelProto

from onnx_dfmpc.allocate.fixed import selected_layers
from onnx_dfmpc.errors import LayerError, ModelError, RecipeError, UnsupportedError
from onnx_dfmpc.evaluate.compare import check_data
from onnx_dfmpc.evaluate.expectation import Trial
from onnx_dfmpc.evaluate.runnable import runnable_shapes
from onnx_dfmpc.inputs.data import real_inputs
from onnx_dfmpc.inputs.specs import has_floats, model_inputs
from onnx_dfmpc.matching.match import match
from onnx_dfmpc.methods import METHODS
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import LoadedModel, Model, load
from onnx_dfmpc.model.opset import raise_opset
from onnx_dfmpc.model.protobuf import graphs, skeleton, subgraphs
from onnx_dfmpc.recipe import Recipe, bit_bounds, nearest_layer
from onnx_dfmpc.rewrite.apply import PREFIX
from onnx_dfmpc.rounding.rounding import ROUNDINGS
from onnx_dfmpc.rounding.suitable import suitable_widths
from onnx_dfmpc.runtime.pieces import is_piecewise, open_model
from onnx_dfmpc.sensitivity.table import Sizes, size_table
from onnx_dfmpc.spec import Layer, MatchReport, Mixture, Progress, QuantPlan, Skipped, StorageFormat
from onnx_dfmpc.spec.moments import STATISTICS
from onnx_dfmpc.spec.ops import shares_grid, to_rows
from onnx_dfmpc.statistics.belief import Belief, believe
from onnx_dfmpc.statistics.mixing import believed, blended, plausible

Seconds = dict[str, float]
"""Wall time by stage."""


@dataclass(frozen=True, eq=False)
class Job:
    """One model and what to do to it, checked, before any work is done.

    Attributes
    ----------
    sizes : Sizes or None
        Bytes of every layer at every width; None where the bits are fixed.
    needs_statistics : bool
        Whether prediction, rounding or repair ask for what the layers see.
    mixture : Mixture or None
        Inputs that the statistics are measured on; None where nothing needs them.
    belief : Belief or None
        What the inputs are taken for; None where nobody asks.
    trials : tuple of Trial
        Inputs of every plausible kind, to predict on; empty where nothing is to be predicted.
    notes : tuple of str
        Remarks on the inputs.
    """

    source: LoadedModel
    matched: MatchReport
    recipe: Recipe
    progress: Progress | None
    sizes: Sizes | None
    needs_statistics: bool
    mixture: Mixture | None
    belief: Belief | None
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Of synthetic inputs: as given, else the likeliest."""
        if self.belief is None or not has_floats(model_inputs(self.source.proto)):
            return self.recipe.input_range
        return self.belief.likeliest.low, self.belief.likeliest.high

    @property
    def planned(self) -> tuple[str, ...]:
        """Layers that the recipe wants quantized, by name."""
        return tuple(layer.name for layer in selected_layers(self.matched, self.recipe)[0])

    @property
    def names(self) -> tuple[str, ...]:
        """Layers and other weights that the recipe wants quantized, by name."""
        return _names(self.matched, self.recipe)


def prepare(
    model: Model,
    recipe: Recipe,
    progress: Progress | None,
    seconds: Seconds,
    *,
    plan: QuantPlan | None = None,
    statistics: bool,
    predicted: bool,
) -> Job:
    """Load, match, and check data, gates and budget; infer the range of synthetic inputs where any are
    needed.
    """
    with timed(seconds, "load"):
        source = load(model)
        recipe = recipe.for_model(source.size)
    with timed(seconds, "match"):
        matched = match(source.proto)
        if (recipe if plan is None else plan).form.storage == "vector":
            matched = with_vectors(source.proto, matched)
    recipe, alone = with_runnable_shapes(source.proto, recipe)
    if plan is None:
        _require_weights(source, matched.weights, matched.skipped)
        layers, skipped = selected_layers(matched, recipe)
        _require_weights(source, _names(matched, recipe), skipped)
    else:
        _require_fit(plan, source, matched)
        layers = tuple(matched[layer.name] for layer in plan.layers)
        _require_weights(source, tuple(plan.bits), plan.skipped)
    statistics = statistics and bool(layers)
    if recipe.activations is not None:
        _require_layers(source, layers)
    # Refused before anything is computed.
    raise_opset(skeleton(source.proto), 0, (recipe.form if plan is None else plan.form).runtime)
    if recipe.data is not None or recipe.labels is not None or recipe.limits or recipe.shapes:
        check_data(source.proto, recipe)
    sizes = None
    if plan is None and layers and not is_fixed(recipe):
        with timed(seconds, "predict"):
            metadata = metadata_of(source, recipe, recipe.form, _names(matched, recipe))
            sizes = size_table(source.proto, matched, recipe, metadata)
    with timed(seconds, "measure"):
        job = Job(source, matched, recipe, progress, sizes, statistics, None, None, (), alone)
        return _with_inputs(job, predicted=predicted or recipe.target_sqnr_db is not None)


def with_vectors(proto: ModelProto, matched: MatchReport) -> MatchReport:
    """Match report with the widths at which rows of a table suit the weight of each layer."""
    table = ConstantTable(proto)

    def widths(layer: Layer) -> tuple[float, ...]:
        return () if shares_grid(layer) else suitable_widths(to_rows(table[layer.weight], layer))

    layers = tuple(replace(layer, vectors=widths(layer)) for layer in matched.layers)
    return replace(matched, layers=layers)


def with_runnable_shapes(proto: ModelProto, recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Recipe with shapes of inputs, and a remark, where a model does not run on the usual ones.

    Only models that may be such are tried: with several inputs, with branches, or with inputs of open size.
    """
    specs = [] if recipe.shapes else model_inputs(proto)
    several = len(specs) > 1 or any(any(True for _ in subgraphs(node)) for node in proto.graph.node)
    open_size = any(isinstance(size, str) for spec in specs for size in spec.shape[1:])
    if not (several or open_size) or is_piecewise(proto):
        return recipe, ()
    try:
        session = open_model(proto, "float model")
    except ModelError:  # the steps to come say what is wrong
        return recipe, ()
    data = recipe if recipe.calibration_data is None else calibration_of(recipe)
    shapes, notes = runnable_shapes(session, specs, data)
    return replace(recipe, shapes=shapes), notes


def without_layer(job: Job, error: LayerError) -> Job:
    """Job in which a layer that cannot be quantized stays float; UnsupportedError where no other is left."""
    matched = job.matched.without({error.layer: error.reason})
    _, skipped = selected_layers(matched, job.recipe)
    _require_weights(job.source, _names(matched, job.recipe), skipped)
    return _rematched(job, matched)


def with_large_biases(job: Job, names: Collection[str]) -> Job:
    """Job that knows of layers whose new biases take 32 bits."""
    layers = tuple(replace(one, large_bias=one.large_bias or one.name in names) for one in job.matched.layers)
    return _rematched(job, replace(job.matched, layers=layers))


def _rematched(job: Job, matched: MatchReport) -> Job:
    sizes = None
    if job.sizes is not None and selected_layers(matched, job.recipe)[0]:
        metadata = metadata_of(job.source, job.recipe, job.recipe.form, _names(matched, job.recipe))
        sizes = size_table(job.source.proto, matched, job.recipe, metadata)
    return replace(job, matched=matched, sizes=sizes)


def _names(matched: MatchReport, recipe: Recipe) -> tuple[str, ...]:
    """Layers and other weights that a recipe wants quantized, by name."""
    bounds = bit_bounds(matched, recipe)
    return tuple(one.name for one in matched.weights if not bounds[one.name].excluded)


def is_fixed(recipe: Recipe) -> bool:
    """Whether the recipe gives the bits itself, so that nothing has to be predicted."""
    return recipe.kind in ("pairs", "bits")


def needs_statistics(recipe: Recipe, plan: QuantPlan | None = None) -> bool:
    """Whether prediction, rounding or repair ask for what the layers see."""
    if recipe.repairs_gain or recipe.repairs_mean or recipe.activations is not None:
        return True
    if plan is not None:
        return any(ROUNDINGS[layer.rounding].needs_statistics for layer in plan.layers)
    rounding = recipe.rounding or METHODS[recipe.method].rounding
    return ROUNDINGS[rounding].needs_statistics or not is_fixed(recipe)


def runs_network(recipe: Recipe) -> bool:
    """Whether the statistics are measured on inputs; "auto" tries to."""
    return STATISTICS.get(recipe.statistics, True)


def calibration_of(recipe: Recipe) -> Recipe:
    """The user's inputs for statistics; their labels do not matter."""
    return replace(recipe, data=recipe.calibration_data, labels=None)


def _with_inputs(job: Job, *, predicted: bool) -> Job:
    """Job with the inputs that its statistics are measured on, and the range of synthetic ones."""
    recipe, proto = job.recipe, job.source.proto
    if not (job.needs_statistics or predicted):
        return job
    specs = model_inputs(proto, dict(recipe.shapes))
    real = None if recipe.calibration_data is None else real_inputs(proto, calibration_of(recipe))
    given = recipe.input_range or (None if real is None else real.span)
    belief = believe(proto, job.matched.layers, specs, input_range=given, seed=recipe.seed)
    kinds = belief.hypotheses, belief.weights
    mixture: Mixture | None = None
    if job.needs_statistics and (runs_network(recipe) or recipe.activations is not None):
        mixture = believed(
            specs, *kinds, anchored=belief.anchored, seed=recipe.seed, input_range=recipe.input_range
        )
        mixture = mixture if real is None else blended(mixture, real.feeds, real.count)
    trials: list[Trial] = []
    if predicted:
        found = plausible(specs, *kinds, seed=recipe.seed, input_range=recipe.input_range)
        trials = [Trial(*one) for one in found]
        if real is not None and real.held_out:
            trials = [replace(trial, weight=trial.weight / 2) for trial in trials]
            trials.append(Trial("calibration data that were held out", 0.5, real.held_out))
    return replace(job, mixture=mixture, belief=belief, trials=tuple(trials))


def _require_weights(source: LoadedModel, weights: Sequence[object], skipped: Sequence[Skipped]) -> None:
    if weights:
        return
    if any(entry.key == f"{PREFIX}input_sha256" for entry in source.proto.metadata_props):
        raise UnsupportedError(
            f"{source.label}: onnx-dfmpc has quantized it already",
            hint="other bits, and smaller files, are made from the float model that it came from",
        )
    if integers := _integer_operators(source.proto):
        reason = f"its weights are integers already: {integers}"
    elif not skipped:
        reason = "it has no Conv, ConvTranspose, Gemm or MatMul, and no other weights"
    else:
        # Reasons that name different tensors are the same one.
        alike = [re.sub(r"'[^']*'", "", node.reason) for node in skipped]
        (most, count), *others = Counter(alike).most_common()
        reason = skipped[alike.index(most)].reason
        nodes = f"{count} node{'s' if count > 1 else ''}"
        rest = sum(number for _, number in others)
        reason += f" ({nodes}; {rest} more for other reasons)" if rest else f" ({nodes})"
    raise UnsupportedError(
        f"{source.label}: nothing to quantize: {reason}", hint="onnx-dfmpc inspect shows what was found"
    )


def _integer_operators(proto: ModelProto) -> str:
    """Nodes whose weights are integers, counted by operator, in words."""
    counted = Counter(node.op_type for graph in graphs(proto.graph) for node in graph.node)
    return ", ".join(
        f"{number} {name}"
        for name, number in counted.most_common()
        if name.startswith(("QLinear", "DynamicQuantize")) or name.endswith("Integer")
        if name not in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
    )


def _require_layers(source: LoadedModel, layers: Sequence[Layer]) -> None:
    """Integer kernels are for layers."""
    if not layers:
        raise UnsupportedError(
            f"{source.label}: activations = 8 needs layers, and there are only weights that are rounded to "
            "nearest",
            hint="leave activations out",
        )


def _require_fit(plan: QuantPlan, source: LoadedModel, matched: MatchReport) -> None:
    """Refuse a plan that is for another model, or that does not have every layer once."""
    if plan.model_sha256 != source.sha256:
        raise RecipeError(
            f"the plan is for another model than {source.label}", hint="make it again with: onnx-dfmpc plan"
        )
    names = [one.name for one in matched.weights]
    planned = Counter([one.name for one in plan.weights] + [skipped.name for skipped in plan.skipped])
    reasons = {skipped.name: skipped.reason for skipped in matched.skipped}
    for layer in plan.weights:
        if layer.name in reasons:
            raise RecipeError(
                f"plan: {layer.name!r} cannot be quantized: {reasons[layer.name]}",
                hint="leave it under skipped",
            )
    # What is quantized how is not for a plan to say.
    plain = {one.name for one in matched.plain}
    for one in plan.weights:
        if one.name in names and (one.role == "plain") != (one.name in plain):
            raise RecipeError(f"plan: {one.name!r} has the wrong role", hint="leave roles as they were")
    for name, times in planned.items():
        if name not in names and name not in reasons:
            raise RecipeError(f"plan: no layer is named {name!r}", hint=nearest_layer(name, matched))
        if times > 1:
            raise RecipeError(f"plan: {name!r} is there {times} times", hint="keep it once")
    for name in names:
        if name not in planned:
            hint = "list it under layers with its bits, or under skipped to keep it float"
            raise RecipeError(f"plan: layer {name!r} is missing", hint=hint)


def metadata_of(
    source: LoadedModel,
    recipe: Recipe,
    form: StorageFormat,
    names: Sequence[str],
    bits: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """What goes into the file's metadata. Before the bits are known, any digit takes as many bytes.

    A slim file has the bits without the layers' names, in the order of the graph.
    """
    by_name = bits or dict.fromkeys(names, 8)
    settings = json.dumps(recipe.to_dict() | asdict(form), sort_keys=True)
    return {
        "version": version("onnx-dfmpc"),
        "recipe_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "input_sha256": source.sha256,
        "bits": json.dumps(list(by_name.values()) if form.slim else by_name, separators=(",", ":")),
    }


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the wall time of a block to its stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
