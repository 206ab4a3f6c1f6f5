"""What the comparison with the float model found, as a section of an outline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_dfmpc.evaluate.validation import measured, typed
from onnx_dfmpc.report import headline, words
from onnx_dfmpc.report.document import Json
from onnx_dfmpc.report.outline import Block, Cell, Code, Column, Line, Section, Table, Tone, section, table

__all__ = ["validation_section"]


def validation_section(document: Json) -> tuple[Section, ...]:
    """Gates, accuracy, outputs, and the command that repeats it; nothing where nothing was validated."""
    validation = document.get("validation")
    if validation is None:
        return ()
    lines = [f"Data: {validation.get('data') or 'unknown'}."]
    lines += [f"Note: {note}." for note in validation.get("notes") or []]
    failures = [Line(failure, "bad") for failure in validation.get("failures") or []]
    command = validation.get("command")
    return section(
        "Validation",
        *failures,
        _gates(validation),
        _labelled(validation),
        _outputs(validation),
        *map(Line, lines),
        *_sessions(validation),
        None if not command else Code(command, "The command that repeats it"),
    )


def _gates(validation: Mapping[str, Any]) -> Table | None:
    rows = []
    for gate in validation.get("gates") or []:
        passed, value, limit = gate.get("passed"), gate.get("value"), gate.get("limit")
        tone: Tone = "good" if passed else "bad"
        rows.append(
            (
                Cell("✓ passed" if passed else "✗ failed", tone=tone),
                Cell(headline.gate_label(gate)),
                words.cell(
                    "∞" if passed and value is None else measured(value, limit), value
                ),  # JSON has no infinity
                words.cell(typed(limit), limit),
            )
        )
    return table(
        (Column("gate"), Column("what", "code"), Column("measured", "number"), Column("limit", "number")),
        tuple(rows),
    )


def _labelled(validation: Mapping[str, Any]) -> Table | None:
    rows = []
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        before, after = validation.get(f"{key}_float"), validation.get(f"{key}_quantized")
        if before is None or after is None:
            continue
        interval = validation.get("top1_interval") if key == "top1" else None
        between = "" if not interval else " to ".join(words.signed(100 * end, 2) for end in interval)
        difference = words.cell(words.signed(100 * (after - before), 2), after - before)
        rows.append(
            (
                Cell(name),
                Cell(words.percent(before, 2)),
                Cell(words.percent(after, 2)),
                difference,
                Cell(between),
            )
        )
    titles = ("float", "quantized", "difference, points", "95\u00a0% interval, points")
    count = words.plural(validation.get("labelled") or 0, "labelled input")
    return table(
        (Column("accuracy"), *(Column(title, "number") for title in titles)), tuple(rows), f"On {count}"
    )


def _outputs(validation: Mapping[str, Any]) -> Table | None:
    titles = ("cosine", "SQNR, dB", "max abs", "mean abs", "KL", "same top-1", "same top-5")
    rows = tuple(
        (
            Cell(str(output.get("name"))),
            Cell(words.digits(output.get("cosine"), 6), output.get("cosine")),
            Cell(
                "same" if output.get("max_abs") == 0 else words.digits(output.get("sqnr_db"), 1),
                output.get("sqnr_db"),
            ),
            Cell(words.short(output.get("max_abs")), output.get("max_abs")),
            Cell(words.short(output.get("mean_abs")), output.get("mean_abs")),
            Cell(words.short(output.get("kl")), output.get("kl")),
            Cell(words.percent(output.get("top1_agreement"), 2), output.get("top1_agreement")),
            Cell(words.percent(output.get("top5_agreement"), 2), output.get("top5_agreement")),
        )
        for output in validation.get("outputs") or []
    )
    return table((Column("output", "code"), *(Column(title, "number") for title in titles)), rows)


def _sessions(validation: Mapping[str, Any]) -> list[Block]:
    if validation.get("weight_only") is False:
        return [Line("Run with default session options, because activations are quantized too.")]
    run = validation.get("default_run")
    if run is None:
        return []
    moved = run.get("max_abs")
    if moved == 0:
        return [Line("Default session options give the same outputs as session.disable_quant_qdq=1.")]
    noise, quantized = run.get("sqnr_db"), validation.get("sqnr_db")
    warn: Tone = "warn" if noise is not None and quantized is not None and noise < quantized else ""
    more = " They cost more than quantization did: set session.disable_quant_qdq=1." if warn else ""
    text = (
        f"Default session options move the outputs by at most {words.short(moved)} ({words.decibels(noise)})."
    )
    return [Line(text + more, warn)]
