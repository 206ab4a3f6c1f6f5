"""How long an inference takes, and what that means for the choice of session options."""

from __future__ import annotations

from onnx_dfmpc.report import charts
from onnx_dfmpc.report.outline import Cell, Column, Line, Rows, Section, cell, plural, seconds, section
from onnx_dfmpc.report.validated import SESSION
from onnx_dfmpc.spec import Latency, Timing


def latency_sections(latency: Latency | None) -> tuple[Section, ...]:
    """Medians and quartiles of every session, as a chart and a table."""
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
        (Column("of float", "number"), lambda timing: Cell(times(timing.median, first))),
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
            f"An inference takes {times(ours, first)} of the float model's time. " for ours in others
        )
        return f"{took}Activations are quantized too: the default session options are the ones to use."
    first, default, recommended = (timing.median for timing in latency.timings[:3])
    return (
        "Weight-only quantization buys size, not speed. With default session options ONNX Runtime "
        f"dequantizes the weights at every run ({times(default, first)} of the float model's time here); "
        f"with {SESSION} once, when it loads the model ({times(recommended, first)})."
    )


def times(time: float, reference: float) -> str:
    """Ratio of two times, as in 1.25×."""
    return f"{time / reference:.2f}×" if reference > 0 else ""
