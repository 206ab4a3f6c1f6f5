"""What the validation found: gates, accuracy, outputs, and how the quantized model was run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_dfmpc.evaluate.validation import Gate, OutputMetrics, ValidationReport, measured, typed
from onnx_dfmpc.report.outline import (
    Cell,
    Code,
    Column,
    Line,
    Rows,
    Section,
    Table,
    cell,
    decibels,
    fixed,
    percent,
    plural,
    section,
    short,
    signed,
)

SESSION = "session.disable_quant_qdq=1"


def validation_sections(validation: ValidationReport | None) -> tuple[Section, ...]:
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
