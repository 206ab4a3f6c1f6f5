"""What a report says: of one run, and of the difference between two."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from onnx_dfmpc.evaluate.validation import Gate, OutputMetrics, ValidationReport, measured, next_steps, typed
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.report import charts
from onnx_dfmpc.report.document import Document, File, LayerRow
from onnx_dfmpc.report.outline import (
    Block,
    Cell,
    Code,
    Column,
    Figure,
    Line,
    Number,
    Outline,
    Rows,
    Section,
    Table,
    Tone,
    Verdict,
    cell,
    decibels,
    fixed,
    percent,
    plain,
    plural,
    seconds,
    section,
    shape,
    short,
    signed,
    size,
    whole,
    width,
)
from onnx_dfmpc.report.quality import accuracy, kinds_of_inputs, quality, reach, samples
from onnx_dfmpc.spec import Chain, IntegerActivations, Latency, LayerEffect, SweepPoint, Timing

NAMED = 3
"""Layers that a note names; a convention, as is the next."""

BAR = 20
"""Characters of the longest bar."""

SESSION = "session.disable_quant_qdq=1"


def run_outline(document: Document) -> Outline:
    """Report of one run."""
    layers = document.layers
    inspected = document.command == "inspect"
    return Outline(
        title=_model_name(document),
        subtitle=_subtitle(document),
        verdict=_verdict(document),
        figures=tuple(_figures(document)),
        sections=(
            *section("What now", *_next_steps(document)),
            *_validation(document.validation),
            *_worst_layers(document),
            *section("Size and bits", charts.sizes(layers), charts.bits(layers)),
            *section("Noise", *charts.noise(layers, document.synthetic)),
            *section("Trade-off", charts.frontier(document), _sweep(document.sweep), reach(document)),
            *kinds_of_inputs(document),
            *section("Weights", *map(charts.histogram, document.histograms)),
            *_activations(document),
            *_latency(document.latency),
            *section("Layers", _matched(document) if inspected else _layers(document), folded=True),
            *section("Chains", *map(_chain, document.chains if inspected else ()), folded=True),
            *section("Stays float", _skipped(document)),
            *section("Notes", *map(Line, _notes(document))),
            *_reproduce(document),
        ),
        footer=_footer(document),
    )


# ----------------------------------------------------------------------------
# first things


def _model_name(document: Document) -> str:
    return PurePath(document.model.path or document.model.name or "model").stem


def _path(document: Document, file: File) -> str:
    absent = "not written" if file is document.output and document.command == "quantize" else "in memory"
    return file.path or file.name or absent


def _subtitle(document: Document) -> str:
    """Command, files, operator sets, and the hash of the float model."""
    model, output = document.model, document.output
    files = _path(document, model)
    if output is not None:
        files += f" {'against' if document.command == 'validate' else '→'} {_path(document, output)}"
    before, after = model.opset, None if output is None else output.opset
    opset = f"opset {before}" + ("" if after in (None, before) else f" → {after}")
    sha256 = f"sha256 {model.sha256[:12]}" if model.sha256 else ""
    parts = (f"{document.command} {files}", "" if before is None else opset, sha256)
    return " · ".join(filter(None, parts))


def _made_with(document: Document) -> str:
    return f"{document.tool.get('name', 'onnx-dfmpc')} {document.tool.get('version', '')}".strip()


def _footer(document: Document) -> str:
    date = (document.date or "").replace("T", " ")
    return " · ".join(filter(None, (_made_with(document), date)))


def _next_steps(document: Document) -> Iterator[Line]:
    """What now, where the validation has failed."""
    if document.validation is not None:
        for step in next_steps(document.validation, bool(document.per_layer)):
            yield Line(f"{step[0].upper() if not step.startswith('-') else step[0]}{step[1:]}.")


def _measured_sqnr(document: Document) -> float | None:
    """SQNR of the worst output on real inputs, in dB; None where it was not measured, or nothing differs."""
    return None if document.validation is None or document.synthetic else document.validation.sqnr_db


def _tried_sqnr(document: Document) -> float | None:
    """The same on synthetic inputs."""
    return None if document.validation is None or not document.synthetic else document.validation.sqnr_db


def _verdict(document: Document) -> Verdict:
    """The answer to "can I ship it?"."""
    validation = document.validation
    if document.command == "inspect":
        return _inspected(document)
    if validation is None:
        if document.command == "plan":
            return Verdict("Planned", "Sizes and quality are predictions: no weight was touched.", "muted")
        return Verdict("Not validated", "Nothing was compared with the float model.", "warn")
    gates = validation.gates
    where = f" on {samples(validation)}" if validation.synthetic else ""
    caveat = ": a sanity check, not accuracy." if validation.synthetic else "."
    if not validation:
        missed = [f"{gate.name} = {typed(gate.limit)} missed" for gate in gates if not gate.passed]
        return Verdict("Failed", "; ".join([*validation.failures, *missed]) + where + caveat, "bad")
    if not gates:
        word = "Tried" if validation.synthetic else "Measured"
        return Verdict(word, f"Nothing failed{where}, and no gate was set{caveat}", "muted")
    held = {1: "The gate holds", 2: "Both gates hold"}.get(len(gates), f"All {len(gates)} gates hold")
    return Verdict("Passed", held + where + caveat, "good")


def _inspected(document: Document) -> Verdict:
    totals, kept = document.totals, sum(layer.batch_norm is not None for layer in document.layers)
    plain = sum(layer.role == "plain" for layer in document.layers)
    more = f" and {plural(plain, 'other weight')}" if plain else ""
    text = (
        f"{plural(totals.weighted_nodes or 0, 'weighted node')}: "
        f"{plural((totals.layers or 0) - plain, 'layer')}{more} to quantize, {totals.skipped or 0} skipped. "
        f"{plural(totals.chains or 0, 'chain')}, {plural(totals.weights or 0, 'weight')}, batch norm kept "
        f"after {plural(kept, 'layer')}."
    )
    return Verdict("Inspected", text, "muted" if document.layers else "warn")


def _figures(document: Document) -> Iterator[Figure]:
    """Size, bits, accuracy and noise; what is not known is left out."""
    validation, totals = document.validation, document.totals
    before, after = document.model.bytes, document.written_bytes
    if after is not None:
        yield Figure("File size" if document.output else "Predicted size", size(after), _shrunk(document))
    elif document.command == "inspect":
        yield Figure("File size", size(before), f"{whole(before)} bytes")
    if totals.nominal_bits is not None:
        note = f"mean of {plural(totals.weights or 0, 'weight')} in {plural(totals.layers or 0, 'layer')}"
        skipped = totals.skipped or 0
        note += f", {skipped} {'stays' if skipped == 1 else 'stay'} float" if skipped else ""
        yield Figure("Bits per weight", fixed(2)(totals.nominal_bits), note)
    if validation is not None:
        yield from accuracy(validation)
    yield from quality(document)


def _shrunk(document: Document) -> str:
    """How much smaller the file became, to the byte."""
    before, after, predicted = document.model.bytes, document.written_bytes, document.predicted.bytes
    note = f"{whole(after)} bytes"
    if before and after:
        times = (
            f"{before / after:.1f} times smaller" if before >= after else f"{after / before:.1f} times larger"
        )
        note = f"{times}: {whole(before)} → {note} ({percent()(after / before)})"
    return note + (f", {whole(predicted)} predicted" if document.output and predicted is not None else "")


# ----------------------------------------------------------------------------
# quality and speed


def _validation(validation: ValidationReport | None) -> tuple[Section, ...]:
    """Gates, accuracy, outputs, and the command that repeats it."""
    if validation is None:
        return ()
    caveat = ": a sanity check, not accuracy" if validation.synthetic else ""
    return section(
        "Validation on synthetic inputs" if validation.synthetic else "Validation",
        *(Line(f"FAILED {failure}", "bad") for failure in validation.failures),
        *map(_gate, validation.gates),
        _labelled(validation),
        _outputs(validation.outputs),
        Line(f"Data: {validation.data}{caveat}."),
        *(Line(f"Note: {note}.") for note in validation.notes),
        _sessions(validation),
        Code(validation.command, "The command that repeats it") if validation.command else None,
    )


def _gate(gate: Gate) -> Line:
    # JSON has no infinity: an SQNR that is not there, and yet passes, is infinite.
    value = "∞" if gate.passed and gate.value is None else measured(gate.value, gate.limit)
    text = f"{'PASSED' if gate.passed else 'FAILED'} {gate.name}: {value}, limit {typed(gate.limit)}"
    return Line(text, "good" if gate.passed else "bad")


def _labelled(validation: ValidationReport) -> Table | None:
    top1 = ("top-1", validation.top1_float, validation.top1_quantized, validation.top1_interval or ())
    top5 = ("top-5", validation.top5_float, validation.top5_quantized, ())
    rows = [
        (name, before, after, interval)
        for name, before, after, interval in (top1, top5)
        if before is not None and after is not None
    ]
    points: Callable[[float], str] = lambda share: signed(2)(100 * share)  # noqa: E731
    return Rows(rows).table(
        (Column("accuracy"), lambda row: Cell(row[0])),
        (Column("float", "number"), lambda row: cell(percent(2), row[1])),
        (Column("quantized", "number"), lambda row: cell(percent(2), row[2])),
        (Column("difference, points", "number"), lambda row: Cell(points(row[2] - row[1]))),
        (Column("95\u00a0% interval, points", "number"), lambda row: Cell(" to ".join(map(points, row[3])))),
        title=f"On {plural(validation.labelled, 'labelled input')}",
    )


def _outputs(outputs: Sequence[OutputMetrics]) -> Table | None:
    def sqnr(output: OutputMetrics) -> Cell:
        return Cell("same") if output.max_abs == 0 else cell(fixed(2), output.sqnr_db)

    return Rows(outputs).table(
        (Column("output", "code"), lambda output: Cell(output.name)),
        (Column("cosine", "number"), lambda output: cell(fixed(6), output.cosine)),
        (Column("SQNR, dB", "number"), sqnr),
        (Column("max abs", "number"), lambda output: cell(short, output.max_abs)),
        (Column("mean abs", "number"), lambda output: cell(short, output.mean_abs)),
        (Column("same top-1", "number"), lambda output: cell(percent(2), output.top1_agreement)),
        (Column("same top-5", "number"), lambda output: cell(percent(2), output.top5_agreement)),
        (Column("KL", "number"), lambda output: cell(short, output.kl)),
    )


def _sessions(validation: ValidationReport) -> Line:
    """How the quantized model ran, and what default session options would change."""
    run = validation.default_run
    if not validation.weight_only:
        return Line("Run with default session options, because activations are quantized too.")
    text = f"Run with {SESSION} (onnx_dfmpc.session_options())."
    if run is None:
        return Line(text)
    if run.max_abs == 0:
        return Line(text + " Default session options give the same outputs.")
    text += (
        f" Default session options move the outputs by at most {short(run.max_abs)} "
        f"({decibels(run.sqnr_db)}, {plural(run.samples, 'sample')})."
    )
    if run.sqnr_db is not None and validation.sqnr_db is not None and run.sqnr_db < validation.sqnr_db:
        return Line(f"{text} WARNING: that is more than quantization did; set {SESSION}.", "warn")
    return Line(text)


def _worst_layers(document: Document) -> tuple[Section, ...]:
    """Layers by what each of them alone does to the outputs, and the flags that help."""
    effects = document.per_layer
    if not effects:
        return ()

    def alone(effect: LayerEffect) -> Cell:
        text = "same" if effect.own_share == 0 else "not finite"
        return Cell(text) if effect.own_sqnr_db is None else cell(fixed(1), effect.own_sqnr_db)

    ranking = Rows(effects).table(
        (Column("layer", "code"), lambda effect: Cell(effect.name)),
        (Column("bits", "bits"), lambda effect: cell(width, effect.bits)),
        (Column("bytes", "number"), lambda effect: cell(whole, effect.bytes)),
        (Column("SQNR here, dB", "number"), lambda effect: cell(fixed(1), effect.sqnr_db)),
        (Column("cosine here", "number", "page"), lambda effect: cell(fixed(5), effect.cosine)),
        (Column("alone, dB", "number"), alone),
        (Column("share of noise", "number"), lambda effect: cell(percent(), effect.own_share)),
        (Column("same top-1 alone", "number"), lambda effect: cell(percent(), effect.own_top1_agreement)),
        long=True,
        ranked=True,
    )
    text = (
        "Worst first. “here” is at the output of the layer, “alone” at the output of the network when only "
        "this layer is quantized." + (" On synthetic inputs." if document.synthetic else "")
    )
    return section("Worst layers", Line(text), charts.ranking(effects), ranking, *_helps(document))


def _helps(document: Document) -> Iterator[Block]:
    """Flags that help, with their price and what they bring; how to get them where nothing was tried."""
    if document.command == "validate":
        yield Line(
            "What helps depends on the settings that made the file: onnx-dfmpc quantize tries it, with the "
            "same settings and --per-layer."
        )
    added = [advice.flag == "--set" for advice in document.advice]
    if added:
        how = "to add to the command" if all(added) else "in place of the present target"
        yield Line(f"What helps, {how}; tried one at a time:")
    for advice in document.advice:
        price, gain = signed(0, " bytes")(advice.extra_bytes), signed(1, " dB")(advice.gain_db)
        where = " on synthetic inputs" if document.synthetic else ""
        yield Code(f"{advice.flag} {shlex.quote(advice.value)}", f"{price}, output SQNR {gain}{where}")


def _sweep(points: Sequence[SweepPoint]) -> Table | None:
    """What other budgets buy, with bars of the predicted SQNR."""
    known = [point.predicted_sqnr_db for point in points if point.predicted_sqnr_db is not None]
    low, high = min(0.0, *known, 0.0), max(known, default=1.0)

    def bar(point: SweepPoint) -> Cell:
        height = point.predicted_sqnr_db
        share = 0.0 if height is None else (height - low) / (high - low) if high > low else 1.0
        return Cell("█" * round(BAR * share))

    return Rows(points).table(
        (Column("budget, bytes", "number"), lambda point: cell(whole, point.budget)),
        (
            Column("bytes", "number"),
            lambda point: Cell("too small") if point.bytes is None else cell(whole, point.bytes),
        ),
        (Column("bits per weight", "number"), lambda point: cell(fixed(2), point.nominal_bits)),
        (Column("predicted SQNR, dB", "number"), lambda point: cell(fixed(1), point.predicted_sqnr_db)),
        (Column("measured SQNR, dB", "number"), lambda point: cell(fixed(1), point.measured_sqnr_db)),
        (Column("top-1", "number"), lambda point: cell(percent(2), point.top1)),
        (Column("longer is better"), bar),
        title="Size against quality",
    )


def _activations(document: Document) -> tuple[Section, ...]:
    activations = document.activations
    if activations is None:
        return ()
    others = {op: count for op, count in activations.kernels.items() if op.startswith("QLinear")}
    table = Rows(activations.ranges).table(
        (Column("activation", "code"), lambda one: Cell(one.name)),
        (Column("from", "number"), lambda one: cell(fixed(3), one.low)),
        (Column("to", "number"), lambda one: cell(fixed(3), one.high)),
        (Column("range of", "code"), lambda one: Cell(one.like)),
        long=True,
    )
    reasons = (Line(f"{name} stays float: {reason}") for name, reason in activations.floats.items())
    return section(
        "Activations",
        Line(
            f"{plural(len(activations.ranges), 'tensor')} in 8 bits. ONNX Runtime computes "
            f"{activations.fused} of {plural(activations.layers, 'layer')} in integers on this machine: "
            + ", ".join(f"{count} {op}" for op, count in sorted(others.items()))
        ),
        Line(_saturation(activations, document)),
        None
        if activations.sqnr_db is None
        else Line(f"They alone are expected to leave an output SQNR of {activations.sqnr_db:.1f} dB."),
        *reasons,
    ) + section("Ranges of activations", table, appendix=True)


def _saturation(activations: IntegerActivations, document: Document) -> str:
    """What integer kernels make of large weights on this machine."""
    if not activations.saturates:
        return "Integer kernels are exact on this machine."
    if document.form.get("reduce_range"):
        return "Integer kernels saturate on this machine (no VNNI), but not with weights within 7 bits."
    return "Integer kernels saturate on this machine (no VNNI) where weights use 8 bits: try --reduce-range."


def _latency(latency: Latency | None) -> tuple[Section, ...]:
    if latency is None or not latency.timings:
        return ()
    first = latency.timings[0].median

    def middle(timing: Timing) -> Cell:
        return Cell(f"{seconds(timing.first_quartile)} to {seconds(timing.third_quartile)}")

    table = Rows(latency.timings).table(
        (Column("session"), lambda timing: Cell(timing.name)),
        (Column("median", "number"), lambda timing: cell(seconds, timing.median)),
        (Column("middle half", "number"), middle),
        (Column("least", "number", "wide"), lambda timing: cell(seconds, timing.least)),
        (Column("of float", "number"), lambda timing: Cell(_ratio(timing.median, first))),
    )
    how = f"{plural(latency.runs, 'run')} of each in turn, {plural(latency.threads, 'thread')}"
    return section(
        "Latency",
        Line(_meaning(latency)),
        charts.latency(latency.timings),
        table,
        Line(f"{how}, batch {latency.batch}.", "muted"),
    )


def _meaning(latency: Latency) -> str:
    """What the times mean for the choice of session options."""
    if len(latency.timings) < 3:
        first, *others = (timing.median for timing in latency.timings)
        took = "".join(
            f"An inference takes {_ratio(ours, first)} of the float model's time. " for ours in others
        )
        return f"{took}Activations are quantized too: the default session options are the ones to use."
    first, default, recommended = (timing.median for timing in latency.timings[:3])
    return (
        "Weight-only quantization buys size, not speed. With default session options ONNX Runtime "
        f"dequantizes the weights at every run ({_ratio(default, first)} of the float model's time here); "
        f"with {SESSION} once, when it loads the model ({_ratio(recommended, first)})."
    )


def _ratio(time: float, reference: float) -> str:
    return f"{time / reference:.2f}×" if reference > 0 else ""


# ----------------------------------------------------------------------------
# layers, and how to do it again


def _layers(document: Document) -> Table | None:
    """Every layer with its bits; the reasons are what a plan is for."""
    planned = document.command == "plan"
    sqnr = "synthetic SQNR, dB" if document.synthetic else "SQNR, dB"
    ranks = list(enumerate(document.layers, 1))
    return Rows(ranks).table(
        (Column("#", "number", "page"), lambda row: cell(whole, row[0])),
        (Column("layer", "code"), lambda row: Cell(row[1].name)),
        (Column("op", shown="page"), lambda row: Cell(row[1].op)),
        (Column("weight", shown="page"), lambda row: Cell(shape(row[1].shape), math.prod(row[1].shape))),
        (Column("role"), lambda row: Cell(row[1].role)),
        (Column("bits", "bits"), lambda row: cell(width, row[1].bits)),
        (Column("stored", shown="wide"), lambda row: Cell(row[1].storage)),
        (Column("bytes", "number"), lambda row: cell(whole, row[1].bytes)),
        (Column("computed by", shown="wide"), lambda row: Cell(row[1].kernel)),
        (Column(sqnr, "number"), lambda row: cell(fixed(1), row[1].sqnr_db)),
        (Column("predicted, dB", "number", "page"), lambda row: cell(fixed(1), row[1].predicted_sqnr_db)),
        (
            Column("alone, dB", "number", "always" if planned else "page"),
            lambda row: cell(fixed(1), row[1].alone_db),
        ),
        (Column("gain", "number"), lambda row: _gain(row[1])),
        (Column("statistics", shown="page"), lambda row: Cell(row[1].source or "")),
        (Column("why", "prose", "always" if planned else "wide"), lambda row: Cell(row[1].reason)),
        long=True,
    )


def _gain(layer: LayerRow) -> Cell:
    """Range of the coefficients of the output channels."""
    low, high = fixed(2)(layer.gain_min), fixed(2)(layer.gain_max)
    return Cell(high if low == high else f"{low}-{high}", layer.gain_max)


def _matched(document: Document) -> Table | None:
    """Layers as matching finds them."""
    producers = {chain.producer for chain in document.chains}
    consumers = {name for chain in document.chains for name in chain.consumers}

    def place(layer: LayerRow) -> str:
        sides = (layer.name in producers, layer.name in consumers)
        return {(True, True): "both", (True, False): "producer", (False, True): "consumer"}.get(sides, "")

    def batch_norm(layer: LayerRow) -> str:
        # The bias of a convolution without batch norm may come from one that was folded.
        folded = layer.bias and layer.op.startswith("Conv")
        return "kept" if layer.batch_norm is not None else "folded?" if folded else "none"

    return Rows(document.layers).table(
        (Column("layer", "code"), lambda layer: Cell(layer.name)),
        (Column("op"), lambda layer: Cell(layer.op + (f" /{layer.group}" if layer.group != 1 else ""))),
        (Column("weight"), lambda layer: Cell(shape(layer.shape), math.prod(layer.shape))),
        (Column("batch norm"), lambda layer: Cell(batch_norm(layer))),
        (Column("activation"), lambda layer: Cell(layer.activation or "")),
        (Column("chain"), lambda layer: Cell(place(layer))),
        long=True,
    )


def _chain(chain: Chain) -> Line:
    """Which layers follow which, through what, and where the coefficients may go."""
    reason = f" ({chain.reason})" if chain.reason else ""
    side = "either side" if chain.homogeneous else f"producer side{reason}"
    through = ", ".join(chain.path) or "directly"
    return Line(f"{chain.producer} → {', '.join(chain.consumers)}: {through}; coefficients: {side}")


def _skipped(document: Document) -> Table | None:
    return Rows(document.skipped).table(
        (Column("node", "code"), lambda node: Cell(node.name)),
        (Column("op"), lambda node: Cell(node.op)),
        (Column("why", "prose"), lambda node: Cell(node.reason)),
    )


def _notes(document: Document) -> list[str]:
    """Remarks on the model, then those on layers: what holds for many is said once."""
    layers: dict[str, list[str]] = {}
    for layer in document.layers:
        for note in layer.notes:
            layers.setdefault(note, []).append(layer.name)
    return [*dict.fromkeys(document.notes), *(f"{_some(names)}: {note}" for note, names in layers.items())]


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {plural(more, 'more layer')}" if more > 0 else "")


def _reproduce(document: Document) -> tuple[Section, ...]:
    """Command, files, recipe, time and versions."""
    files = [
        (title, file) for title, file in (("float", document.model), ("quantized", document.output)) if file
    ]
    usual = Recipe().to_dict()
    changed = [
        (key, plain(value))
        for key, value in {**document.recipe, **document.form}.items()
        if value not in ([], None, usual.get(key))
    ]
    stages = ", ".join(f"{stage} {seconds(value)}" for stage, value in document.seconds.items())
    made_with = ", ".join(
        [_made_with(document), *(f"{key} {value}" for key, value in document.environment.items())]
    )
    return section(
        "Reproduce",
        Code(document.command_line, "Command") if document.command_line else None,
        Rows(files).table(
            (Column("model"), lambda row: Cell(row[0])),
            (Column("file", "code"), lambda row: Cell(_path(document, row[1]))),
            (Column("bytes", "number"), lambda row: cell(whole, row[1].bytes)),
            (Column("sha256", "code", "page"), lambda row: Cell(row[1].sha256 or "")),
        ),
        Rows(changed).table(
            (Column("changed in the recipe", "code"), lambda row: Cell(row[0])),
            (Column("value", "code"), lambda row: Cell(row[1])),
        ),
        Line(f"Time: {stages}.") if stages else None,
        Line(f"Made with {made_with}."),
        appendix=True,
    )


# ----------------------------------------------------------------------------
# two runs


def diff_outline(first: Document, second: Document, names: Sequence[str] = ("A", "B")) -> Outline:
    """Report of what differs between two runs; the second is measured against the first."""
    before, after = ({layer.name: layer for layer in document.layers} for document in (first, second))
    titles = dict.fromkeys((_model_name(first), _model_name(second)))
    labelled = zip("AB", names, (first, second), strict=True)
    return Outline(
        title=" / ".join(titles if not _same_model(first, second) else [_model_name(first)]),
        subtitle=" · ".join(f"{label}: {name} ({document.command})" for label, name, document in labelled),
        verdict=_change_verdict(first, second),
        figures=(),
        sections=(
            *section("At a glance", _glance(first, second), _other_data(first, second)),
            *section("Recipe", _unlike("knob", *({**d.recipe, **d.form} for d in (first, second)))),
            *section("Environment", _unlike("made with", first.environment, second.environment)),
            *section("Along the network", *charts.compared(before, after)),
            *section("Bits that changed", _changed(before, after)),
            *section("In one run only", _alone(first, second)),
            *section("Latency", _times(first.latency, second.latency)),
        ),
        footer=" / ".join(dict.fromkeys((_footer(first), _footer(second)))),
    )


def _same_model(first: Document, second: Document) -> bool:
    return first.model.sha256 == second.model.sha256


def _change_verdict(first: Document, second: Document) -> Verdict:
    if not _same_model(first, second):
        text = "The float models differ: layers are compared by name, and sizes and quality only roughly."
        return Verdict("Different models", text, "warn")
    was, now = _verdict(first), _verdict(second)
    tone: Tone = now.tone if was.word != now.word and now.tone in ("good", "bad") else "muted"
    changes = ", ".join(filter(None, (_size_change(first, second), _quality_change(first, second))))
    word = now.word if was.word == now.word else f"{was.word} → {now.word.lower()}"
    return Verdict(word, f"B against A: {changes or 'neither size nor quality is in both'}.", tone)


def _size_change(first: Document, second: Document) -> str:
    before, after = first.written_bytes, second.written_bytes
    if before is None or after is None:
        return ""
    if before == after:
        return "the same size"
    share = f" ({signed(1, ' %')(100 * (after / before - 1))})" if before else ""
    return f"{size(abs(after - before))} {'larger' if after > before else 'smaller'}{share}"


def _quality_change(first: Document, second: Document) -> str:
    measured = signed(1, " dB of output SQNR")(_minus(_measured_sqnr(second), _measured_sqnr(first)))
    tried = signed(1, " dB of output SQNR on synthetic inputs")(
        _minus(_tried_sqnr(second), _tried_sqnr(first))
    )
    return measured or tried


def _minus(after: Number, before: Number) -> Number:
    return None if after is None or before is None else after - before


Quantity = tuple[str, Callable[[Document], Number], Callable[[Number], str], Callable[[Number], str], int]


def _of_validation(name: str) -> Callable[[Document], Number]:
    return lambda document: getattr(document.validation, name, None)


def _points(share: Number) -> str:
    return "" if share is None else signed(2, " points")(100 * share)


QUANTITIES: Sequence[Quantity] = (
    ("file, bytes", lambda document: document.written_bytes, whole, signed(0), -1),
    ("of the float model", lambda document: document.totals.bytes_ratio, percent(), _points, 0),
    ("bits per weight", lambda document: document.totals.nominal_bits, fixed(2), signed(2), 0),
    ("layers", lambda document: document.totals.layers, whole, signed(0), 0),
    ("stay float", lambda document: document.totals.skipped, whole, signed(0), 0),
    ("output SQNR, dB", _measured_sqnr, fixed(2), signed(2), 1),
    ("output SQNR on synthetic inputs, dB", _tried_sqnr, fixed(2), signed(2), 1),
    ("predicted SQNR, dB", lambda document: document.predicted.sqnr_db, fixed(2), signed(2), 1),
    ("its lower end, dB", lambda document: document.predicted.low_db, fixed(2), signed(2), 1),
    ("its upper end, dB", lambda document: document.predicted.high_db, fixed(2), signed(2), 1),
    ("cosine", _of_validation("cosine"), fixed(6), signed(6), 1),
    ("same top-1", _of_validation("top1_agreement"), percent(), _points, 1),
    ("top-1", _of_validation("top1_quantized"), percent(), _points, 1),
    ("top-5", _of_validation("top5_quantized"), percent(), _points, 1),
    ("seconds", lambda document: sum(document.seconds.values()) or None, fixed(1), signed(1), 0),
)
"""Title, value, format, format of a change, and whether more (1) or less (-1) is better."""


def _glance(first: Document, second: Document) -> Table | None:
    """Size and quality of both; in the last column, what is better is so in words and colour."""
    was, now = _verdict(first).word, _verdict(second).word
    same = "the same" if was == now else "differs"
    rows: list[tuple[str, Cell, Cell, Cell]] = [("verdict", Cell(was), Cell(now), Cell(same))]
    for title, read, show, show_change, better in QUANTITIES:
        before, after = read(first), read(second)
        if before is not None or after is not None:
            change = _minus(after, before)
            rows.append((title, Cell(show(before)), Cell(show(after)), _change(change, show_change, better)))
    return Rows(rows).table(
        (Column("what"), lambda row: Cell(row[0])),
        (Column("A", "number"), lambda row: row[1]),
        (Column("B", "number"), lambda row: row[2]),
        (Column("change", "number"), lambda row: row[3]),
    )


def _change(change: Number, show: Callable[[Number], str], better: int) -> Cell:
    if not change:
        return Cell("" if change is None else "the same", change)
    if not better:
        return cell(show, change)
    if change * better > 0:
        return Cell(f"better: {show(change)}", change, "good")
    return Cell(f"worse: {show(change)}", change, "bad")


def _other_data(first: Document, second: Document) -> Block | None:
    before, after = first.validation, second.validation
    if before is None or after is None or (before.data, before.samples) == (after.data, after.samples):
        return None
    text = f"Validated on different data: {before.data} against {after.data}."
    return Line(f"{text} The quality of the two does not compare.", "warn")


def _unlike(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Table | None:
    """Keys whose values differ."""

    def shown(values: Mapping[str, Any], key: str) -> Cell:
        return Cell("not set" if values.get(key) is None else plain(values[key]))

    return Rows([key for key in {**before, **after} if before.get(key) != after.get(key)]).table(
        (Column(what, "code"), Cell),
        (Column("A", "code"), lambda key: shown(before, key)),
        (Column("B", "code"), lambda key: shown(after, key)),
    )


def _changed(before: Mapping[str, LayerRow], after: Mapping[str, LayerRow]) -> Table | None:
    """Layers of both with other bits."""
    both = [(before[name], after[name]) for name in before if name in after]
    pairs = [(a, b) for a, b in both if a.bits != b.bits]

    def sqnr(a: LayerRow, b: LayerRow) -> Cell:
        change = _minus(b.measured_sqnr_db, a.measured_sqnr_db)
        return cell(signed(1), change, "" if not change else "good" if change > 0 else "bad")

    return Rows(pairs).table(
        (Column("layer", "code"), lambda pair: Cell(pair[0].name)),
        (Column("bits A", "bits"), lambda pair: cell(width, pair[0].bits)),
        (Column("bits B", "bits"), lambda pair: cell(width, pair[1].bits)),
        (Column("bytes", "number"), lambda pair: cell(signed(0), _minus(pair[1].bytes, pair[0].bytes))),
        (Column("SQNR A, dB", "number"), lambda pair: cell(fixed(1), pair[0].measured_sqnr_db)),
        (Column("SQNR B, dB", "number"), lambda pair: cell(fixed(1), pair[1].measured_sqnr_db)),
        (Column("change, dB", "number"), lambda pair: sqnr(*pair)),
        (Column("why in B", "prose", "wide"), lambda pair: Cell(pair[1].reason)),
        title=f"{len(pairs)} of {plural(len(both), 'layer')}",
        long=True,
    )


def _alone(first: Document, second: Document) -> Table | None:
    """Layers that only one of the runs quantized, and what the other says about them."""
    if not (first.layers and second.layers):
        return None
    rows = []
    for label, here, other in (("A", first, second), ("B", second, first)):
        there = {layer.name for layer in other.layers}
        reasons = {node.name: node.reason for node in other.skipped}
        rows += [
            (layer.name, label, reasons.get(layer.name) or "not there")
            for layer in here.layers
            if layer.name not in there
        ]
    return Rows(rows).table(
        (Column("layer", "code"), lambda row: Cell(row[0])),
        (Column("quantized in"), lambda row: Cell(row[1])),
        (Column("in the other", "prose"), lambda row: Cell(row[2])),
    )


def _times(first: Latency | None, second: Latency | None) -> Table | None:
    before, after = (
        {} if latency is None else {timing.name: timing.median for timing in latency.timings}
        for latency in (first, second)
    )
    return Rows([(name, before[name], after[name]) for name in before if name in after]).table(
        (Column("session"), lambda row: Cell(row[0])),
        (Column("A", "number"), lambda row: cell(seconds, row[1])),
        (Column("B", "number"), lambda row: cell(seconds, row[2])),
        (Column("B\u00a0/\u00a0A", "number"), lambda row: Cell(_ratio(row[2], row[1]))),
    )
