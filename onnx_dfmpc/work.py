"""One model on its way through the rooms: load -> match -> allocate -> statistics -> solve -> rewrite ->
validate.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.allocate import allocate, allocate_budget, budgets, mean_bits, selected_layers, sweep
from onnx_dfmpc.comparison import Findings, examine, range_note
from onnx_dfmpc.costs import cost_table, with_costs, with_noise, with_sizes
from onnx_dfmpc.errors import RecipeError, UnsupportedError
from onnx_dfmpc.evaluate import evidence
from onnx_dfmpc.evaluate.compare import check_data
from onnx_dfmpc.evaluate.layers import layer_sqnr
from onnx_dfmpc.inputs.data import Feeding, feeding_of, samples_of
from onnx_dfmpc.inputs.model_inputs import model_inputs
from onnx_dfmpc.inputs.samples import Samples
from onnx_dfmpc.inputs.specs import fixed_batch, with_shapes
from onnx_dfmpc.layerwise import solve_layers, weight_noise
from onnx_dfmpc.matching.match import match as find_layers
from onnx_dfmpc.model.checks import verify
from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.model.files import LoadedModel, load
from onnx_dfmpc.recipe import Recipe, nearest_layer
from onnx_dfmpc.result import QuantizeResult
from onnx_dfmpc.rewrite.apply import Rewritten, rewrite
from onnx_dfmpc.sensitivity.propagation import NoisePropagation
from onnx_dfmpc.spec import (
    CostTable,
    LayerReport,
    MatchReport,
    QuantizedLayer,
    QuantPlan,
    Skipped,
    StorageFormat,
    SweepPoint,
    WeightHistogram,
)
from onnx_dfmpc.statistics.input_range import infer_range

Model = str | os.PathLike[str] | ModelProto
Progress = Callable[[str, int, int], None]

LAYER_SAMPLES = 8
SHOWN_LAYERS = 9
FRONTIER = 16


class Work:
    """One model on its way through the rooms: what it is, what to do to it, and what several rooms share."""

    def __init__(self, model: Model, recipe: Recipe, progress: Progress | None = None) -> None:
        self.recipe, self.progress, self.clock = recipe, progress, _Clock()
        self._remarks: tuple[str, ...] = ()
        with self.clock("load"):
            self.source = load(model)
        with self.clock("match"):
            self.report = find_layers(self.source.proto)
        _require_layers(self.source, self.report.layers, self.report.skipped)
        self.feeding = feeding_of(recipe)
        if recipe.data or recipe.labels or recipe.gates or recipe.shapes or recipe.providers:
            check_data(self.source.proto, self.feeding, gates=recipe.gates, providers=recipe.providers)

    @cached_property
    def inferred_range(self) -> tuple[float, float] | None:
        """What the first layer suggests; looked at only by those who need synthetic inputs."""
        specs = model_inputs(self.source.proto, dict(self.recipe.shapes))
        return infer_range(self.source.proto, self.report.layers, specs, seed=self.recipe.seed)

    def input_range(self) -> tuple[float, float] | None:
        """Range of synthetic inputs."""
        return self.recipe.input_range or self.inferred_range

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the inputs, and on the predictions."""
        return (*range_note(vars(self).get("inferred_range")), *self._remarks)

    def table(self, plan: QuantPlan | None = None) -> CostTable:
        """What the layers cost at every width that is open, or at the bits of a plan."""
        with self.clock("predict"):
            planned = selected_layers(self.report, self.recipe)[0] if plan is None else plan.layers
            metadata = _metadata(
                self.source, self.recipe, self.recipe.form, {layer.name: 8 for layer in planned}
            )
            found, remarks = cost_table(
                self.source,
                self.report,
                self.recipe,
                plan=plan,
                metadata=metadata,
                input_range=self.input_range,
                progress=self.progress,
            )
        self._remarks += remarks
        return found

    @cached_property
    def open_table(self) -> CostTable:
        """What the layers cost at every width that is open."""
        return self.table()

    def allocate(self) -> QuantPlan:
        """Bits of every layer."""
        source, report, recipe = self.source, self.report, self.recipe
        _require_layers(source, *selected_layers(report, recipe))
        if recipe.kind in ("pairs", "bits"):
            with self.clock("allocate"):
                made = allocate(report, recipe, source.sha256, weight_noise(source))
        else:
            table = self.open_table
            with self.clock("allocate"):
                made = replace(
                    allocate_budget(report, recipe, source.sha256, table),
                    provider=table.provider,
                    form=recipe.form,
                )
                made = self._sized(made)
        name = "" if source.path is None else source.path.name
        return replace(made, model_name=name, form=recipe.form, recipe=recipe.to_dict())

    def predict(self, plan: QuantPlan) -> QuantPlan:
        """The plan with what its bits will cost, where it does not know yet."""
        if plan.predicted_sqnr_db is not None:
            return plan
        return with_costs(plan, vars(self).get("open_table") or self.table(plan))

    def sweep(self, wanted: int | Sequence[int]) -> tuple[SweepPoint, ...]:
        """Size against quality, for so many budgets or for given ones."""
        table = self.open_table
        allowed = budgets(self.report, self.recipe, table, wanted) if isinstance(wanted, int) else wanted
        with self.clock("allocate"):
            plans = sweep(self.report, self.recipe, self.source.sha256, table, allowed)
        return tuple(self._point(budget, plan) for budget, plan in zip(allowed, plans, strict=True))

    def frontier(self) -> tuple[SweepPoint, ...]:
        """What other budgets would buy, as predicted; nothing where bits were not chosen for a target."""
        if self.recipe.kind in ("pairs", "bits") or "open_table" not in vars(self):
            return ()
        with self.clock("allocate"):
            allowed = budgets(self.report, self.recipe, self.open_table, FRONTIER)
            plans = sweep(self.report, self.recipe, self.source.sha256, self.open_table, allowed)
        return tuple(self._predicted(budget, plan) for budget, plan in zip(allowed, plans, strict=True))

    def _predicted(self, budget: int, plan: QuantPlan | None) -> SweepPoint:
        if plan is None:
            return SweepPoint(budget)
        return SweepPoint(budget, plan.predicted_bytes, mean_bits(plan, self.report), plan.predicted_sqnr_db)

    def _point(self, budget: int, plan: QuantPlan | None) -> SweepPoint:
        point = self._predicted(budget, plan)
        if plan is None or self.recipe.data is None:
            return point
        measured = self.run(replace(plan, form=self.recipe.form)).validation
        return (
            point
            if measured is None
            else replace(point, measured_sqnr_db=measured.sqnr_db, top1=measured.top1_quantized)
        )

    def require_fit(self, plan: QuantPlan) -> None:
        """Refuse a plan that is for another model, or that does not have every layer once."""
        if plan.model_sha256 != self.source.sha256:
            raise RecipeError(
                f"the plan is for another model than {self.source.label}",
                hint="make it again with: onnx-dfmpc plan",
            )
        matched = [layer.name for layer in self.report.layers]
        planned = Counter([layer.name for layer in plan.layers] + [skipped.name for skipped in plan.skipped])
        reasons = {skipped.name: skipped.reason for skipped in self.report.skipped}
        for layer in plan.layers:
            if layer.name in reasons:
                raise RecipeError(
                    f"plan: {layer.name!r} cannot be quantized: {reasons[layer.name]}",
                    hint="leave it under skipped",
                )
        for name, times in planned.items():
            if name not in matched and name not in reasons:
                raise RecipeError(f"plan: no layer is named {name!r}", hint=nearest_layer(name, self.report))
            if times > 1:
                raise RecipeError(f"plan: {name!r} is there {times} times", hint="keep it once")
        for name in matched:
            if name not in planned:
                hint = "list it under layers with its bits, or under skipped to keep it float"
                raise RecipeError(f"plan: layer {name!r} is missing", hint=hint)

    def run(self, plan: QuantPlan, *, validated: bool = True) -> QuantizeResult:
        """Everything behind allocation."""
        source, report, recipe, flow = (
            self.source,
            self.report,
            self.recipe,
            NoisePropagation(self.source.proto),
        )
        _require_layers(source, plan.layers, plan.skipped)
        if plan.predicted_bytes is None:
            plan = self._sized(plan)
        with self.clock("quantize"):
            solved = solve_layers(
                source,
                report,
                plan,
                recipe,
                input_range=self.input_range,
                progress=self.progress,
                watch=flow.see,
            )
        if plan.predicted_sqnr_db is None:
            plan = with_noise(plan, report, solved, flow)
        with self.clock("rewrite"):
            rewritten = rewrite(source.proto, report, solved, form=plan.form, metadata=self._metadata(plan))
        with self.clock("check"):
            verify(rewritten.proto, "the quantized model")
        with self.clock("validate"):
            measured, found = (
                self._validate(rewritten.proto, solved, plan.form) if validated else ({}, (None, (), None))
            )
        validation, per_layer, latency = found
        table = ConstantTable(source.proto)
        rows = tuple(_rows(report, plan, solved, rewritten, measured, table))
        return QuantizeResult(
            model=rewritten.proto,
            source=source,
            plan=plan,
            recipe=recipe,
            layers=rows,
            chains=report.chains,
            skipped=plan.skipped,
            size=rewritten.proto.ByteSize(),
            notes=(*rewritten.notes, *self.notes),
            seconds=self.clock.seconds,
            validation=validation,
            per_layer=per_layer,
            latency=latency,
            histograms=tuple(_histograms(report, solved, rows, table)),
        )

    def _sized(self, plan: QuantPlan) -> QuantPlan:
        return with_sizes(
            plan, self.source, self.report, self._metadata(plan), corrected=self.recipe.corrects
        )

    def _metadata(self, plan: QuantPlan) -> dict[str, str]:
        return _metadata(
            self.source, self.recipe, plan.form, {layer.name: layer.bits for layer in plan.layers}
        )

    def _validate(
        self, quantized: ModelProto, solved: Sequence[QuantizedLayer], form: StorageFormat
    ) -> tuple[Mapping[str, float | None], Findings]:
        """Every layer on a few inputs, and the outputs on all."""
        source, report = self.source.proto, self.report
        feeding = self.feeding if self.recipe.data else replace(self.feeding, input_range=self.input_range())
        measured = layer_sqnr(source, quantized, _tensors(report, solved), _few_samples(source, feeding))
        return measured, examine(
            source, quantized, report, feeding, self.recipe, form=form, progress=self.progress
        )


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


def _few_samples(source: ModelProto, feeding: Feeding) -> Samples:
    """Inputs for comparing every layer, one at a time, since all the activations of a run are in memory at
    once.
    """
    specs = with_shapes(model_inputs(source), feeding.shapes)
    found = samples_of(specs, replace(feeding, samples=LAYER_SAMPLES))
    return found if fixed_batch(specs) else replace(found, batch=1)


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
    report: MatchReport,
    plan: QuantPlan,
    solved: Sequence[QuantizedLayer],
    rewritten: Rewritten,
    measured: Mapping[str, float | None],
    table: ConstantTable,
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


def _histograms(
    report: MatchReport, solved: Sequence[QuantizedLayer], rows: Sequence[LayerReport], table: ConstantTable
) -> Iterator[WeightHistogram]:
    layers = {layer.name: layer for layer in report.layers}
    sqnr = [row.predicted_sqnr_db if row.measured_sqnr_db is None else row.measured_sqnr_db for row in rows]
    for position in evidence.most_changed(sqnr, SHOWN_LAYERS):
        done = solved[position]
        layer = layers[done.name]
        yield evidence.histogram(
            layer.name, table[layer.weight].astype(np.float32), done.weight.dequantize(), layer.axis
        )


def _metadata(
    source: LoadedModel, recipe: Recipe, form: StorageFormat, bits: Mapping[str, int]
) -> dict[str, str]:
    settings = json.dumps(recipe.to_dict() | asdict(form), sort_keys=True)
    return {
        "version": version("onnx-dfmpc"),
        "recipe_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "input_sha256": source.sha256,
        "bits": json.dumps(bits, separators=(",", ":")),
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
