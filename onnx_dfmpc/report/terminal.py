"""Results as tables for a terminal: readable in 80 columns, and without colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.model.files import LoadedModel
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.pipeline.results import ComparisonResult, PlanResult, QuantizeResult
from onnx_dfmpc.report.document import mean_bits, nominal_bits
from onnx_dfmpc.report.findings import effects_view, latency_view
from onnx_dfmpc.report.style import NONE, line_to_paste, new_table, number, percent, section, small
from onnx_dfmpc.report.words import plural
from onnx_dfmpc.spec import Chain, Layer, LayerReport, MatchReport, QuantPlan, Skipped, SweepPoint

__all__ = ["comparison_view", "inspect_view", "plan_view", "quantize_view", "validate_view"]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _name(source: LoadedModel) -> str:
    return "model" if source.path is None else str(source.path)


def _skipped_table(skipped: Sequence[Skipped]) -> list[RenderableType]:
    if not skipped:
        return []
    table = new_table("Skipped (stays float)", "node", "op", "reason")
    for node in skipped:
        table.add_row(node.name, node.op_type, node.reason)
    return [section(table)]


def _notes(notes: Iterable[str]) -> list[RenderableType]:
    lines = [Text(f"note: {note}") for note in dict.fromkeys(notes)]
    return [section(*lines)] if lines else []


def _layer_notes(layers: Sequence[Layer] | Sequence[LayerReport]) -> list[str]:
    """Remarks on layers, each once."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        for note in layer.notes:
            found.setdefault(note, []).append(layer.name)
    return [f"{names[0]}{_others(len(names) - 1)}: {note}" for note, names in found.items()]


def _others(number: int) -> str:
    return f" and {plural(number, 'other')}" if number else ""


# ----------------------------------------------------------------------------------------------------------------------
# inspect


def inspect_view(source: LoadedModel, report: MatchReport) -> Group:
    """Layers, chains and skipped nodes of a model."""
    columns = ("layer", "op", "weight", "batch\nnorm", "activation", "chain")
    layers = new_table("Layers", *columns)
    for layer in report.layers:
        layers.add_row(
            layer.name,
            layer.op_type if layer.group == 1 else f"{layer.op_type} /{layer.group}",
            _shape(layer.shape),
            _batch_norm(layer),
            layer.activation or NONE,
            _position(layer.name, report.chains),
        )
    weights = sum(layer.size for layer in report.layers)
    kept = sum(layer.batch_norm is not None for layer in report.layers)
    totals = (
        f"{plural(report.weighted_nodes, 'weighted node')}: {plural(len(report.layers), 'layer')} to quantize, "
        f"{len(report.skipped)} skipped. {plural(len(report.chains), 'chain')}, "
        f"{plural(weights, 'weight')}, batch norm kept behind {plural(kept, 'layer')}."
    )
    parts: list[RenderableType] = [
        Text(f"{_name(source)}: {source.size:,} bytes, opset {source.opset}, sha256 {source.sha256[:12]}")
    ]
    if report.layers:
        parts.append(section(layers))
    if report.chains:
        parts.append(section(Text("Chains", style="bold italic"), *map(_chain, report.chains)))
    parts += _skipped_table(report.skipped)
    parts += _notes(_layer_notes(report.layers))
    return Group(*parts, section(Text(totals)))


def _batch_norm(layer: Layer) -> str:
    """Whether there is one; a bias of a convolution without may come from a folded one."""
    if layer.batch_norm is not None:
        return "kept"
    return "folded?" if layer.bias is not None and layer.op_type.startswith("Conv") else "none"


def _position(name: str, chains: Sequence[Chain]) -> str:
    produces = any(chain.producer == name for chain in chains)
    consumes = any(name in chain.consumers for chain in chains)
    return "both" if produces and consumes else "producer" if produces else "consumer" if consumes else NONE


def _chain(chain: Chain) -> RenderableType:
    side = (
        "either side"
        if chain.homogeneous
        else "producer side" + (f" ({chain.reason})" if chain.reason else "")
    )
    through = ", ".join(chain.path) or "directly"
    first = Text(f"{chain.producer} -> {', '.join(chain.consumers)}")
    return Group(first, Padding(Text(f"{through}; coefficients: {side}"), (0, 0, 0, 4)))


# ---------------------------------------------------------------------------------------------------------------------
# quantize


def quantize_view(result: QuantizeResult, *, verbose: bool = False) -> Group:
    """What was done to every layer, what it cost, how far the outputs moved; with `verbose` also why, the
    recipe, and the seconds.
    """
    columns = ["layer", "role", "bits", "stored", "bytes", "SQNR\ndB", "gain", *(["why"] if verbose else [])]
    table = new_table("Layers", *columns, right=("bits", "bytes", "SQNR\ndB", "gain"))
    for layer in result.layers:
        sqnr = layer.measured_sqnr_db if layer.measured_sqnr_db is not None else layer.predicted_sqnr_db
        row = [
            layer.name,
            layer.role,
            str(layer.bits),
            layer.storage,
            f"{layer.bytes:,}",
            number(sqnr, 1),
            _gain(layer),
        ]
        table.add_row(*row, *([layer.reason] if verbose else []))
    target = "not written" if result.output is None else str(result.output)
    parts: list[RenderableType] = [Text(f"{_name(result.source)} -> {target}")]
    if verbose:
        parts.append(Text(f"recipe: {result.recipe.to_text()}"))
    if result.layers:
        parts.append(section(table))
    parts += _skipped_table(result.skipped)
    parts += _notes([*result.notes, *_layer_notes(result.layers)])
    parts.append(section(*_totals(result, verbose=verbose)))
    if result.validation is not None:
        parts.append(section(validate_view(result.validation)))
    return Group(
        *parts,
        *effects_view(result.per_layer, verbose=verbose),
        *latency_view(result.latency),
        *_repeat(result.validation),
    )


def _gain(layer: LayerReport) -> str:
    low, high = f"{layer.gain_min:.2f}", f"{layer.gain_max:.2f}"
    return low if low == high else f"{low}-{high}"


def _totals(result: QuantizeResult, *, verbose: bool) -> list[Text]:
    before, after, plan = result.source.size, result.size, result.plan
    opset = opset_of(result.model)
    lines = [
        _weights(
            sum(math.prod(layer.shape) for layer in result.layers),
            len(result.layers),
            nominal_bits(result.layers),
            result.skipped,
        ),
        f"{before:,} -> {after:,} bytes ({after / before:.1%}), "
        + ("" if plan.predicted_bytes is None else f"predicted {plan.predicted_bytes:,}, ")
        + (f"opset {opset}" if opset == result.source.opset else f"opset {result.source.opset} -> {opset}"),
    ]
    if plan.predicted_sqnr_db is not None:
        measured = None if result.validation is None else result.validation.sqnr_db
        lines.append(
            f"output SQNR: predicted {number(plan.predicted_sqnr_db, 1)} dB{_by(plan)}, measured {number(measured, 1)} dB"
        )
    if verbose:
        lines.append(_seconds(result.seconds))
    return [Text(line) for line in lines]


def _by(plan: QuantPlan) -> str:
    return f" ({plan.source})" if plan.source else ""


def _weights(weights: int, layers: int, bits: float | None, skipped: Sequence[Skipped]) -> str:
    return f"{plural(weights, 'weight')} in {plural(layers, 'layer')}, {number(bits, 2)} nominal bits each; {len(skipped)} skipped"


def _seconds(seconds: Mapping[str, float]) -> str:
    return "seconds: " + ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())


# -------------------------------------------------------------------------------------------------------------------------
# plan


def plan_view(result: PlanResult, target: str | None = None, *, verbose: bool = False) -> Group:
    """Bits of every layer and why, predicted size and quality; with `verbose` also the recipe, and the
    seconds.
    """
    plan, source = result.plan, result.source
    table = new_table(
        "Layers", "layer", "role", "bits", "bytes", "dB\nalone", "why", right=("bits", "bytes", "dB\nalone")
    )
    for layer in plan.layers:
        size = NONE if layer.bytes is None else f"{layer.bytes:,}"
        table.add_row(
            layer.name, layer.role, str(layer.bits), size, number(_decibels(layer.noise), 1), layer.reason
        )
    parts: list[RenderableType] = [Text(f"{_name(source)} -> {target or 'not written'}")]
    if verbose:
        parts.append(Text(f"recipe: {result.recipe.to_text()}"))
    parts += [section(table), *_skipped_table(plan.skipped), *_notes(result.notes)]
    weights = {layer.name: layer.size for layer in result.report.layers}
    planned = [(weights[layer.name], layer.bits) for layer in plan.layers]
    lines = [_weights(sum(count for count, _ in planned), len(planned), mean_bits(planned), plan.skipped)]
    if plan.predicted_bytes is not None:
        lines.append(
            f"{source.size:,} -> {plan.predicted_bytes:,} bytes predicted ({plan.predicted_bytes / source.size:.1%})"
        )
    if plan.predicted_sqnr_db is not None:
        lines.append(f"output SQNR: {number(plan.predicted_sqnr_db, 1)} dB predicted{_by(plan)}")
    if verbose:
        lines.append(_seconds(result.seconds))
    parts.append(section(*map(Text, lines)))
    if result.sweep:
        parts.append(section(_sweep_table(result.sweep)))
    return Group(*parts)


def _decibels(noise: float | None) -> float | None:
    """SQNR of a relative noise power."""
    return None if noise is None else -10 * math.log10(noise) if noise > 0 else math.inf


def _sweep_table(points: Sequence[SweepPoint]) -> Table:
    """Size against quality; what was not measured has no column."""
    numbers = ["budget", "bytes", "bits", "SQNR dB"]
    numbers += ["measured"] if any(point.measured_sqnr_db is not None for point in points) else []
    numbers += ["top-1"] if any(point.top1 is not None for point in points) else []
    table = new_table("Size against quality", *numbers, "", right=numbers)
    heights = [point.predicted_sqnr_db for point in points]
    known = [height for height in heights if height is not None and math.isfinite(height)]
    for point, height in zip(points, heights, strict=True):
        size = "too small" if point.bytes is None else f"{point.bytes:,}"
        row = [f"{point.budget:,}", size, number(point.nominal_bits, 2), number(height, 1)]
        row += [number(point.measured_sqnr_db, 1)] if "measured" in numbers else []
        row += [percent(point.top1)] if "top-1" in numbers else []
        bar = _Bar(0 if height is None else height, min(0, *known, 0), max(known, default=1))
        table.add_row(*row, bar)
    return table


@dataclass(frozen=True)
class _Bar:
    """A bar from `low` to `value` on a scale that ends at `high`."""

    value: float
    low: float
    high: float
    width: int = 24

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        share = (self.value - self.low) / (self.high - self.low) if self.high > self.low else 1.0
        yield Text(("#" if options.ascii_only else "\u2588") * round(self.width * min(max(share, 0.0), 1.0)))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.width, self.width)


# ---------------------------------------------------------------------------------------------------------------------
# validate


def comparison_view(result: ComparisonResult, *, verbose: bool = False) -> Group:
    """How far a quantized model is from the float one; with `verbose` every layer, where layers were asked
    for.
    """
    parts = [
        *effects_view(result.per_layer, verbose=verbose),
        *latency_view(result.latency),
        *_repeat(result.validation),
    ]
    return Group(validate_view(result.validation), *parts)


def validate_view(report: ValidationReport) -> Group:
    """Metrics, labelled accuracy, gates and failures of a validation."""
    classes = any(output.kl is not None for output in report.outputs)
    few = all(output.top5_agreement is None for output in report.outputs)
    numbers = ["cosine", "SQNR\ndB", "max\nabs", "mean\nabs"]
    numbers += (
        (["same\ntop-1"] if classes else []) + ([] if few else ["same\ntop-5"]) + (["KL"] if classes else [])
    )
    table = new_table("Validation: float against quantized", "output", *numbers, right=numbers)
    for output in report.outputs:
        table.add_row(
            output.name,
            number(output.cosine, 6),
            number(output.sqnr_db, 2),
            small(output.max_abs),
            small(output.mean_abs),
            *([percent(output.top1_agreement)] if classes else []),
            *([] if few else [percent(output.top5_agreement)]),
            *([small(output.kl)] if classes else []),
        )
    lines = [Text(f"data: {report.data}" + (": a sanity check, not accuracy" if report.synthetic else ""))]
    lines += [Text(f"note: {note}") for note in report.notes]
    lines += _label_lines(report)
    lines += _session_lines(report)
    lines += [Text(f"FAILED {failure}", style="bold red") for failure in report.failures]
    for gate in report.gates:
        lines.append(Text(str(gate), style="green" if gate.passed else "bold red"))
    return Group(table, section(*lines))


def _label_lines(report: ValidationReport) -> list[Text]:
    """What both models get right."""
    found = []
    for name, before, after in (
        ("top-1", report.top1_float, report.top1_quantized),
        ("top-5", report.top5_float, report.top5_quantized),
    ):
        if before is not None and after is not None:
            points = f"{100 * (after - before):+.2f} points"
            where = f"{name} on {plural(report.labelled, 'labelled sample')}"
            found.append(Text(f"{where}: float {percent(before)}, quantized {percent(after)} ({points})"))
    if report.top1_interval is not None:
        low, high = (100 * limit for limit in report.top1_interval)
        found.insert(
            1, Text(f"the top-1 difference is {low:+.2f} to {high:+.2f} points with 95 % confidence (paired)")
        )
    return found


def _repeat(report: ValidationReport | None) -> list[RenderableType]:
    if report is None or not report.command:
        return []
    return [section(Text("to repeat it:")), line_to_paste(report.command)]


def _session_lines(report: ValidationReport) -> list[Text]:
    if not report.weight_only:
        return [Text("run with default session options, because activations are quantized too")]
    lines = [Text("run with session.disable_quant_qdq=1 (onnx_dfmpc.session_options())")]
    run = report.default_run
    if run is None:
        return lines
    moved = (
        "the same outputs"
        if run.max_abs == 0
        else f"outputs differ by at most {small(run.max_abs)} ({number(run.sqnr_db, 1)} dB)"
    )
    lines.append(Text(f"with default session options: {moved} ({plural(run.samples, 'sample')})"))
    if run.sqnr_db is not None and report.sqnr_db is not None and run.sqnr_db < report.sqnr_db:
        lines.append(
            Text(
                "WARNING: default session options cost more than quantization did; use those above",
                style="yellow",
            )
        )
    return lines
