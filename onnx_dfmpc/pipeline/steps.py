"""The steps between a job and its result; the order in which they run is in `run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto, NodeProto

from onnx_dfmpc.activations.activate import TAU_ANCHORED, TAU_OTHERS, TAU_PICTURES, TAU_REAL, activate
from onnx_dfmpc.activations.cost import float_layers, other_floats
from onnx_dfmpc.allocate.budget import allocate_budget, budgets, mean_bits, sweep
from onnx_dfmpc.allocate.fixed import allocate_fixed
from onnx_dfmpc.allocate.shared import shared_bytes
from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.evaluate import evidence
from onnx_dfmpc.evaluate.compare import Evaluation, examine
from onnx_dfmpc.evaluate.diagnose import layer_sqnr
from onnx_dfmpc.evaluate.expectation import expect
from onnx_dfmpc.inputs.data import samples_of
from onnx_dfmpc.inputs.specs import fixed_batch, model_inputs, with_shapes
from onnx_dfmpc.matching.floats import describe, float_bytes
from onnx_dfmpc.methods import METHODS
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.external import fits_one_file, full_size, inlined, mapped_tensors
from onnx_dfmpc.model.files import LoadedModel, verify
from onnx_dfmpc.model.scratch import release
from onnx_dfmpc.pipeline.doubts import doubts
from onnx_dfmpc.pipeline.job import (
    Job,
    Seconds,
    calibration_of,
    metadata_of,
    runs_network,
    timed,
    with_large_biases,
)
from onnx_dfmpc.pipeline.results import QuantizeResult
from onnx_dfmpc.pipeline.sources import SOURCES
from onnx_dfmpc.recipe import Data, Recipe
from onnx_dfmpc.rewrite.apply import Rewritten, StoredLayer, fold_obstacles, rewrite
from onnx_dfmpc.rewrite.sizes import stored_sizes
from onnx_dfmpc.rewrite.slim import slim
from onnx_dfmpc.rounding.rounding import ROUNDINGS
from onnx_dfmpc.runtime.machine import saturates
from onnx_dfmpc.runtime.pieces import is_piecewise
from onnx_dfmpc.runtime.session import optimized_nodes
from onnx_dfmpc.sensitivity.feeds import mixed_synthetic_feeds, user_feeds
from onnx_dfmpc.sensitivity.table import predict, size_table, with_noise, with_sizes
from onnx_dfmpc.solve import NEGLIGIBLE, solve, solve_plain, weight_noise
from onnx_dfmpc.spec import (
    ActivationRange,
    CostTable,
    Expectation,
    Feeds,
    IntegerActivations,
    Layer,
    LayerPlan,
    LayerReport,
    LayerStatistics,
    MatchReport,
    QuantizedLayer,
    QuantPlan,
    Skipped,
    StorageFormat,
    SweepPoint,
    WeightHistogram,
    sqnr_db,
)
from onnx_dfmpc.spec.reported import INTEGER_LAYERS
from onnx_dfmpc.spec.widths import WIDTHS, Width

LAYER_SAMPLES = 4
"""Inputs on which every layer's output is compared."""

DOUBT_DB = {(True, True): 0.0, (True, False): 4.0, (False, True): 4.0, (False, False): 8.0}
"""For pictures or anything else, with batch norm or without: about the least with which 90 % of the
predictions of benchmarks.predictions hold in each group. Without MobileNetV1 among the networks, pictures
without batch norm would have 3, without SqueezeNet 5.
"""

SLIM = "shape arithmetic folded, names inside of the graph shortened (--no-slim leaves them)"

SHOWN_LAYERS = 9
"""Layers whose weights a report shows as histograms."""

HISTOGRAM_WEIGHTS = 1 << 22
"""Weights of a layer that are counted, about, at most: enough for every bar."""

FRONTIER = 16
"""Budgets that a report compares with the one that was asked for."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Statistics of the layers in the float network, empty where nothing needs them, and remarks."""

    layers: Mapping[str, LayerStatistics]
    notes: tuple[str, ...] = ()


def measure(job: Job, names: Sequence[str], seconds: Seconds) -> Measured:
    """Statistics of what every layer sees in the float network: once, for prediction and rounding alike."""
    if not job.needs_statistics:
        return Measured({})
    recipe = job.recipe
    asked = recipe.statistics
    with timed(seconds, "measure"):
        try:
            return Measured(SOURCES["probe" if asked == "auto" else asked](job, names))
        except ModelError as error:
            if recipe.calibration_data is not None or asked != "auto":
                raise
            note = f"statistics in closed form, since the model cannot be run: {error}"
            return Measured(SOURCES["closed_form"](job, names), (note,))


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
    if (sizes is None and plan is None and not everything) or not job.planned:
        return None, ()
    with timed(seconds, "predict"):
        if sizes is None or plan is not None:
            metadata = metadata_of(job.source, recipe, recipe.form, job.names)
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


def allocate(
    job: Job, costs: CostTable | None, seconds: Seconds, *, target_sqnr_db: float | None = None
) -> QuantPlan:
    """Bits of every layer: as the recipe gives them, or as the costs make them worth their bytes; for another
    SQNR than the recipe's, if one is given.
    """
    source, matched = job.source, job.matched
    recipe = job.recipe if target_sqnr_db is None else replace(job.recipe, target_sqnr_db=target_sqnr_db)
    with timed(seconds, "allocate"):
        if costs is None:
            made = allocate_fixed(matched, recipe, source.sha256, weight_noise(source.proto))
            made = replace(made, form=recipe.form)
            if recipe.target_size is not None:  # there is no layer to take bits from
                made = _affordable(recipe.target_size, with_predicted_bytes(job, made))
        else:
            made = _allocated(job, recipe, costs)
            if recipe.target_size is not None:
                made = _spent(job, recipe, costs, made)
    name = "" if source.path is None else source.path.name
    return replace(made, model_name=name, recipe=job.recipe.to_dict())


def _allocated(job: Job, recipe: Recipe, costs: CostTable) -> QuantPlan:
    """Bits for a target, with the bytes that they take."""
    made = allocate_budget(job.matched, recipe, job.source.sha256, costs)
    return with_predicted_bytes(job, replace(made, source=costs.source, form=recipe.form))


def _affordable(target: int, made: QuantPlan) -> QuantPlan:
    least = made.predicted_bytes or 0
    if least <= target:
        return made
    raise UnsupportedError(
        f"target_size = {target:,} bytes cannot be met: with weights rounded to nearest, and no layer to "
        f"take bits from, the file has {least:,} bytes",
        hint="give weights fewer bits with --set 'REGEX=BITS', or ask for more bytes",
    )


SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of what a plan leaves of its budget that are tried, the first that fits is taken."""


def _spent(job: Job, recipe: Recipe, costs: CostTable, made: QuantPlan) -> QuantPlan:
    """Plan that spends what another leaves: widths share some of what they bring, and the costs count it for
    each.
    """
    assert recipe.target_size is not None
    rows = {name: row for row, name in enumerate(costs.layers)}
    widths = [costs.widths.index(layer.bits) for layer in made.layers]
    sizes = costs.sizes[[rows[layer.name] for layer in made.layers], widths].sum()
    counted = costs.base + int(sizes) + shared_bytes(costs, np.unique(widths))
    unused = counted - (made.predicted_bytes or 0)
    for share in SHARES:
        # A plan with other widths may need other tables.
        cheaper = replace(costs, base=costs.base - int(share * unused), spare=0)
        more = _allocated(job, recipe, cheaper)
        if (more.predicted_bytes or 0) <= recipe.target_size:
            return more
    return made


@dataclass(frozen=True, eq=False)
class Made:
    """A plan carried out: with what is expected of it, the numbers of its layers, the model, and remarks.

    ``rewritten`` has the names of the float model; ``final`` is what is written, and ``names`` what its short
    names were; ``kernels`` are what ONNX Runtime computes layers with, where activations are quantized.
    """

    plan: QuantPlan
    solved: tuple[QuantizedLayer, ...]
    plain: tuple[QuantizedLayer, ...]
    rewritten: Rewritten
    final: ModelProto
    names: Mapping[str, str]
    expectation: Expectation | None = None
    notes: tuple[str, ...] = ()
    activations: IntegerActivations | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)


def carry_out(job: Job, plan: QuantPlan, statistics: Measured, seconds: Seconds) -> Made:
    """Codes and repair of every layer, the rewritten model, and what is expected of it."""
    proto, matched = job.source.proto, job.matched
    # A plan may have been made for another form, or edited.
    if any(ROUNDINGS[layer.rounding].vectors is None for layer in plan.layers):
        storage = "table" if plan.form.storage == "vector" else plan.form.storage
        plan = replace(plan, form=replace(plan.form, storage=storage))
    layers = tuple(_in_form(layer, plan.form, job.matched[layer.name]) for layer in plan.layers)
    fewer = any(new.bits < old.bits for new, old in zip(layers, plan.layers, strict=True))
    plan = replace(plan, layers=layers)
    if plan.predicted_bytes is None or fewer:
        plan = with_predicted_bytes(job, plan)
    with timed(seconds, "quantize"):
        plain = solve_plain(proto, matched, plan)
        solved = solve(proto, matched, plan, job.recipe, statistics.layers, job.mixture, job.progress)
    if plan.predicted_sqnr_db is None and statistics.layers:
        plan = with_noise(plan, proto, matched, solved, statistics.layers)
    with timed(seconds, "rewrite"):
        metadata = metadata_of(job.source, job.recipe, plan.form, list(plan.bits), plan.bits)
        rewritten = rewrite(
            proto, matched, solved, plain, form=plan.form, metadata=metadata, half=job.recipe.half
        )
    if rewritten.large_biases and plan.form.slim:
        plan = with_predicted_bytes(with_large_biases(job, rewritten.large_biases), plan)
    integer: IntegerActivations | None = None
    kernels: Mapping[str, str] = {}
    if plan.form.activations is not None:
        with timed(seconds, "activations"):
            rewritten, integer, kernels = _activated(job, rewritten, statistics)
    if integer is not None and not integer.layers:
        reasons = "; ".join(dict.fromkeys(integer.floats.values()))
        rewritten = replace(rewritten, notes=(*rewritten.notes, f"activations stay float: {reasons}"))
    final = rewritten.proto
    short: dict[str, str] = {}
    if plan.form.slim:
        with timed(seconds, "slim"):
            final = ModelProto()
            final.CopyFrom(rewritten.proto)
            short = {**rewritten.renamed, **slim(final, rewritten.weights)}
    with timed(seconds, "check"):
        verify(final, "the quantized model")
    made = Made(plan, solved, plain, rewritten, final, short, activations=integer, kernels=kernels)
    if not job.trials:
        return made
    with timed(seconds, "predict"):
        try:
            expectation = expect(proto, final, job.trials, _doubt_db(job))
        except ModelError as error:
            return replace(made, notes=(f"predicted in closed form, since the model cannot be run: {error}",))
    if expectation is None:
        return made
    plan = replace(
        plan,
        predicted_sqnr_db=expectation.sqnr_db,
        predicted_low_db=expectation.low_db,
        predicted_high_db=expectation.high_db,
    )
    return replace(made, plan=plan, expectation=expectation)


def _in_form(plan: LayerPlan, form: StorageFormat, layer: Layer) -> LayerPlan:
    bits = min(plan.bits, form.most_bits)
    return replace(plan, bits=bits, grid=form.grid(plan.grid, bits, layer))


def _activated(
    job: Job, rewritten: Rewritten, statistics: Measured
) -> tuple[Rewritten, IntegerActivations, Mapping[str, str]]:
    """Model with quantized activations, an account of them, and the kernel of every layer."""
    assert job.mixture is not None
    others = other_floats(job.source.proto, job.matched)
    layers = [layer for layer in job.matched.layers if layer.name not in others]
    done = activate(rewritten.proto, layers, statistics.layers, job.mixture.only(NEGLIGIBLE), deviation(job))
    found = tuple(
        ActivationRange(one.name, *done.ranges[one.like], like="" if one.like == one.name else one.like)
        for one in done.placement.activations
    )
    alone = expect(rewritten.proto, done.proto, job.trials) if job.trials else None
    nodes = optimized_nodes(done.proto)
    account = IntegerActivations(
        ranges=found,
        layers=len(done.placement.layers),
        floats={**float_layers(job.source.proto, job.matched), **done.placement.floats},
        kernels=Counter(node.op_type for node in nodes),
        saturates=saturates(),
        sqnr_db=None if alone is None else alone.sqnr_db,
    )
    kernels = {name: _kernel(stored, nodes) for name, stored in rewritten.layers.items()}
    return replace(rewritten, proto=done.proto), account, kernels


def _kernel(stored: StoredLayer, nodes: Sequence[NodeProto]) -> str:
    """Integer kernel that reads what a layer's weight is made of; "float" where none does."""
    reads = (node.op_type for node in nodes if not stored.tensors.isdisjoint(node.input))
    return next((kernel for kernel in reads if kernel in INTEGER_LAYERS), "float")


def _doubt_db(job: Job) -> float:
    """What real inputs may add to the spread of a prediction over kinds of synthetic ones."""
    picture = job.belief is None or job.belief.likeliest.picture
    doubt = DOUBT_DB[picture, any(layer.batch_norm is not None for layer in job.matched.layers)]
    real = 0.0 if job.mixture is None else float(job.mixture.weights[job.mixture.real].sum())
    return (1 - real) * doubt


def deviation(job: Job) -> float:
    """How well activations are known: less so without batch norm, and less still if the inputs are no
    pictures; the better, the more real samples there are.
    """
    assert job.mixture is not None
    likely = job.belief.likeliest if job.belief is not None else None
    if any(layer.batch_norm is not None for layer in job.matched.layers):
        tau = TAU_ANCHORED
    else:
        tau = TAU_PICTURES if likely is not None and likely.picture else TAU_OTHERS
    real = float(job.mixture.weights[job.mixture.real].sum())
    return (1 - real) * tau + real * TAU_REAL


@dataclass(frozen=True)
class Adjustment:
    """From the SQNR that a table adds up to what is expected when the model is run: so many dB, and noise
    relative to the signal that is there whatever the bits, that of the activations.
    """

    offset_db: float = 0.0
    floor: float = 0.0

    def __call__(self, sqnr: float) -> float:
        """Expected SQNR in dB."""
        return sqnr_db(10 ** (-(sqnr + self.offset_db) / 10) + self.floor)


def adjustment_of(
    plan: QuantPlan, costs: CostTable, activations: IntegerActivations | None = None
) -> Adjustment:
    """What makes the table right for a plan that was carried out."""
    if plan.predicted_sqnr_db is None:
        return Adjustment()
    rows = {name: row for row, name in enumerate(costs.layers)}
    noise = sum(float(costs.noise[rows[layer.name], costs.widths.index(layer.bits)]) for layer in plan.layers)
    expected = 10 ** (-plan.predicted_sqnr_db / 10)
    alone = None if activations is None else activations.sqnr_db
    # Noise adds, and the weights are left with at least a tenth of it.
    floor = 0.0 if alone is None else min(10 ** (-alone / 10), 0.9 * expected)
    return Adjustment(sqnr_db(expected - floor) - sqnr_db(noise) if noise > 0 else 0.0, floor)


def evaluate(
    job: Job, made: Made, *, per_layer: bool, latency: bool
) -> tuple[Mapping[str, float | None], Evaluation]:
    """Every layer's output on a few inputs, and the network's outputs on all."""
    proto, data = job.source.proto, validation_data(job)
    quantized = made.rewritten.proto
    names = {done.name for done in made.solved}
    layers = [layer for layer in job.matched.layers if layer.name in names]
    measured = layer_sqnr(proto, quantized, layers, _few_feeds(proto, data))
    return measured, examine(
        proto,
        quantized,
        job.matched,
        data,
        gates=job.recipe,
        per_layer=per_layer,
        latency=latency,
        files=(proto, made.final),
        progress=job.progress,
    )


def validation_data(job: Job) -> Recipe:
    """The recipe's data; for synthetic ones, with the range that was found."""
    recipe = job.recipe
    return recipe if recipe.data is not None else replace(recipe, input_range=job.input_range)


def finish(
    job: Job,
    made: Made,
    layer_noise: Mapping[str, float | None],
    evaluation: Evaluation | None,
    frontier: tuple[SweepPoint, ...],
    statistics: Measured,
    seconds: Seconds,
) -> QuantizeResult:
    """The account of a run."""
    plan, solved, rewritten = made.plan, made.solved, made.rewritten
    table = ConstantTable(job.source.proto)
    final = made.final
    if any(mapped_tensors(final)) and fits_one_file(final):  # others read no files from anywhere
        final = inlined(final)
    rows = tuple(_rows(job.matched, made, layer_noise))
    obstacles = fold_obstacles(job.source.proto, job.matched, plan.form)
    return QuantizeResult(
        model=final,
        names=made.names,
        source=job.source,
        plan=plan,
        recipe=job.recipe,
        layers=rows,
        chains=job.matched.chains,
        skipped=plan.skipped,
        size=full_size(made.final),
        notes=(
            float_note(
                job.source,
                job.matched,
                list(plan.bits),
                plan.skipped,
                folded=[name for name, why in obstacles.items() if not why],
            ),
            *rewritten.notes,
            *((SLIM,) if plan.form.slim else ()),
            *job.notes,
            *statistics.notes,
            *made.notes,
            *doubts(job.belief, made.expectation),
        ),
        expectation=made.expectation,
        activations=made.activations,
        seconds=seconds,
        validation=None if evaluation is None else evaluation.validation,
        per_layer=() if evaluation is None else evaluation.per_layer,
        latency=None if evaluation is None else evaluation.latency,
        sweep=frontier,
        histograms=tuple(_histograms(job.matched, solved, rows, table)),
    )


def float_note(
    source: LoadedModel,
    matched: MatchReport,
    quantized: Sequence[str],
    skipped: Sequence[Skipped],
    *,
    folded: Collection[str] = (),
) -> str:
    """What stays float, in bytes and by reason; parameters of batch norm do not where a layer has it
    ``folded``.
    """
    layers = [layer for layer in matched.layers if layer.name in quantized]
    weights = {one.weight for one in matched.weights if one.name in quantized}
    if folded:
        table = ConstantTable(source.proto)
        norms = {layer.batch_norm.output for layer in layers if layer.batch_norm and layer.name in folded}
        nodes = (node for node in source.proto.graph.node if not norms.isdisjoint(node.output))
        weights |= {table.source(name) for node in nodes for name in node.input[1:]}
    reasons = {node.name: node.reason for node in (*matched.skipped, *skipped)}
    left = {one.weight: reasons[one.name] for one in matched.plain if one.name in reasons}
    return describe(float_bytes(source.proto, weights, reasons, {**matched.left, **left}), source.size)


def _noise_inputs(job: Job) -> tuple[str, Feeds | None]:
    """What to call the prediction, and the inputs to measure it on."""
    recipe, proto = job.recipe, job.source.proto
    if recipe.calibration_data is not None:
        return "measured", user_feeds(proto, calibration_of(recipe))
    if not runs_network(recipe) or is_piecewise(proto):
        return "bn", None
    shapes = dict(recipe.shapes)
    return "probe", mixed_synthetic_feeds(proto, seed=recipe.seed, input_range=job.input_range, shapes=shapes)


def with_predicted_bytes(job: Job, plan: QuantPlan) -> QuantPlan:
    """Plan with the bytes that its bits will take."""
    metadata = metadata_of(job.source, job.recipe, plan.form, list(plan.bits), plan.bits)
    return with_sizes(plan, job.source.proto, job.matched, job.recipe, metadata)


def weight_bytes(job: Job) -> dict[str, dict[float, int]]:
    """Bytes of every layer's weight by width, by layer name."""
    grid = METHODS[job.recipe.method].grid(8)
    table = stored_sizes(
        job.source.proto, job.matched, WIDTHS, job.recipe.form, grid=grid, half=job.recipe.half
    ).tolist()
    return {
        layer.name: dict(zip(WIDTHS, row, strict=True))
        for layer, row in zip(job.matched.weights, table, strict=True)
    }


def frontier_of(job: Job, costs: CostTable, adjust: Adjustment) -> tuple[SweepPoint, ...]:
    """What other budgets would buy, as predicted."""
    allowed = budgets(job.matched, job.recipe, costs, FRONTIER)
    plans = sweep(job.matched, job.recipe, job.source.sha256, costs, allowed)
    return tuple(sweep_point(job, budget, made, adjust) for budget, made in zip(allowed, plans, strict=True))


def sweep_point(job: Job, budget: int, plan: QuantPlan | None, adjust: Adjustment) -> SweepPoint:
    """What a budget buys, as predicted."""
    if plan is None:
        return SweepPoint(budget)
    predicted = None if plan.predicted_sqnr_db is None else adjust(plan.predicted_sqnr_db)
    return SweepPoint(budget, plan.predicted_bytes, mean_bits(plan, job.matched), predicted)


def _few_feeds(proto: ModelProto, data: Data) -> Feeds:
    """Inputs for comparing every layer, one at a time: all the activations of a run are in memory at once."""
    specs = with_shapes(model_inputs(proto), data.shapes)
    found = samples_of(specs, replace(data, samples=LAYER_SAMPLES))
    return [feed for _, _, feed in (found if fixed_batch(specs) else replace(found, batch=1)).batches()]


def _rows(matched: MatchReport, made: Made, layer_noise: Mapping[str, float | None]) -> Iterator[LayerReport]:
    """What a report says about each layer."""
    layers = {layer.name: layer for layer in matched.layers}
    for done in made.solved:
        layer, planned, stored = layers[done.name], made.plan[done.name], made.rewritten.layers[done.name]
        gain = np.ones(1) if done.gain is None else done.gain
        yield LayerReport(
            name=layer.name,
            op=layer.op_type,
            shape=layer.shape,
            role=planned.role,
            bits=Width(planned.bits),
            storage=stored.storage,
            bytes=stored.bytes,
            source=done.source,
            gain_min=float(gain.min()),
            gain_max=float(gain.max()),
            predicted_sqnr_db=done.predicted_sqnr_db,
            measured_sqnr_db=layer_noise.get(done.name),
            reason=planned.reason,
            kernel=made.kernels.get(done.name, ""),
            notes=(*layer.notes, *done.notes, *stored.notes),
            codes_of=stored.codes_of,
        )
    weights = {one.name: one for one in matched.plain}
    for done in made.plain:
        weight, planned, stored = weights[done.name], made.plan[done.name], made.rewritten.layers[done.name]
        yield LayerReport(
            name=weight.name,
            op=weight.op_type,
            shape=weight.shape,
            role=planned.role,
            bits=Width(planned.bits),
            storage=stored.storage,
            bytes=stored.bytes,
            source=done.source,
            gain_min=1.0,
            gain_max=1.0,
            predicted_sqnr_db=done.predicted_sqnr_db,
            measured_sqnr_db=None,
            reason=planned.reason,
            notes=weight.notes,
        )


def _histograms(
    matched: MatchReport, solved: Sequence[QuantizedLayer], rows: Sequence[LayerReport], table: ConstantTable
) -> Iterator[WeightHistogram]:
    layers = {layer.name: layer for layer in matched.layers}
    rows = rows[: len(solved)]  # those of layers
    sqnr = [row.predicted_sqnr_db if row.measured_sqnr_db is None else row.measured_sqnr_db for row in rows]
    for position in evidence.most_changed(sqnr, SHOWN_LAYERS):
        done = solved[position]
        layer = layers[done.name]
        # Of a large layer some inputs of every channel: their shares are those of all.
        step = -(-layer.size // HISTOGRAM_WEIGHTS)
        some = (slice(None, None, step), ...) if layer.axis else (slice(None), slice(None, None, step))
        weight = table[layer.weight][some].astype(np.float32)
        quantized = replace(done.weight, codes=done.weight.codes[some])
        release(done.weight.codes)
        yield evidence.histogram(layer.name, weight, quantized.dequantize(), layer.axis)
