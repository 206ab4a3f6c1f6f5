"""How good the outputs are: measured, tried on synthetic inputs, and predicted with an interval."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_dfmpc.evaluate.validation import ValidationReport
from onnx_dfmpc.report import charts
from onnx_dfmpc.report.document import Document, Predicted
from onnx_dfmpc.report.outline import (
    Cell,
    Column,
    Figure,
    Line,
    Rows,
    Section,
    cell,
    decibels,
    fixed,
    interval,
    percent,
    plural,
    section,
    signed,
)
from onnx_dfmpc.statistics.mixing import PLAUSIBLE

SOURCES = {"bn": "in closed form", "probe": "on synthetic inputs", "measured": "on real inputs"}
"""How a prediction was made, by its name in documents (docs/json.md)."""


def samples(validation: ValidationReport) -> str:
    """What it was run on, in words."""
    return plural(validation.samples, "synthetic input" if validation.synthetic else "input")


def accuracy(validation: ValidationReport) -> Iterator[Figure]:
    """The best there is: labelled top-1, else agreement with the float model, else the worst cosine."""
    before, after = validation.top1_float, validation.top1_quantized
    if before is not None and after is not None:
        points = signed(1, " points")(100 * (after - before))
        note = f"float {percent()(before)}: {points} on {plural(validation.labelled, 'labelled input')}"
        yield Figure("Top-1", percent()(after), note)
    elif validation.top1_agreement is not None:
        yield Figure("Same top-1 as float", percent()(validation.top1_agreement), f"on {samples(validation)}")
    elif validation.cosine is not None:
        label = "Cosine on synthetic inputs" if validation.synthetic else "Cosine with float"
        yield Figure(label, fixed(5)(validation.cosine), f"worst output, on {samples(validation)}")


def quality(document: Document) -> Iterator[Figure]:
    """SQNR of the worst output: measured, beside what was predicted; else predicted, before what synthetic
    inputs gave.
    """
    validation, predicted = document.validation, document.predicted
    measured = validation is not None and not validation.synthetic
    if predicted.sqnr_db is not None and not measured:
        yield Figure("Predicted SQNR", decibels(predicted.sqnr_db), _grounds(predicted))
    if validation is None:
        return
    label = "Output SQNR" if measured else "SQNR on synthetic inputs"
    if validation.sqnr_db is not None:
        beside = _predicted(predicted) if measured else f"on {samples(validation)}"
        yield Figure(label, decibels(validation.sqnr_db), ", ".join(filter(None, ("worst output", beside))))
    elif validation.max_abs == 0:
        yield Figure(label, "∞", "the outputs are the same")


def _predicted(predicted: Predicted) -> str:
    """Point and interval."""
    if predicted.sqnr_db is None:
        return ""
    ends = interval(predicted.low_db, predicted.high_db)
    grounds = f", {ends}" if ends else _source(predicted)
    return f"{decibels(predicted.sqnr_db)} predicted{grounds}"


def _grounds(predicted: Predicted) -> str:
    """Interval of a prediction, and what it is made from."""
    ends = interval(predicted.low_db, predicted.high_db)
    if not ends:
        return f"worst output{_source(predicted)}"
    kinds = f", on {plural(len(predicted.kinds), 'kind')} of inputs" if predicted.kinds else ""
    return f"{ends}: worst output{kinds}"


def _source(predicted: Predicted) -> str:
    return f" ({SOURCES.get(predicted.source, predicted.source)})" if predicted.source else ""


def reach(document: Document) -> Line | None:
    """How far from the point the ends of the interval are; of other budgets only the point is known."""
    point, low, high = (getattr(document.predicted, key) for key in ("sqnr_db", "low_db", "high_db"))
    if not document.sweep or None in (point, low, high):
        return None
    text = f"{point - low:.1f} dB below to {high - point:.1f} dB above"
    return Line(f"The interval of the prediction of this run reaches from {text}.")


def kinds_of_inputs(document: Document) -> tuple[Section, ...]:
    """Kinds of inputs with their weights: those that a prediction was made on, or all that are plausible."""
    kinds = sorted(document.predicted.kinds, key=lambda kind: -kind.weight)
    likely = [row for row in document.inputs if row.weight >= PLAUSIBLE]
    tried = Rows(kinds).table(
        (Column("inputs"), lambda kind: Cell(kind.name)),
        (Column("weight", "number"), lambda kind: cell(percent(0), kind.weight)),
        (Column("predicted SQNR, dB", "number"), lambda kind: cell(fixed(1), kind.sqnr_db)),
    )
    found = Rows(likely).table(
        (Column("inputs"), lambda row: Cell(row.name)),
        (Column("weight", "number"), lambda row: cell(percent(0), row.weight)),
    )
    lead = Line(
        "The quantized model was tried on inputs of every plausible kind, none of which the statistics were "
        "taken on."
    )
    return section(
        "What the inputs may be", lead if kinds else None, charts.kinds(kinds), tried or found, appendix=True
    )
