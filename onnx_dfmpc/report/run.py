"""One run as an outline: every section from the JSON document alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_dfmpc.report import charts, headline, words
from onnx_dfmpc.report.document import Json
from onnx_dfmpc.report.outline import Cell, Code, Column, Line, Outline, Section, Table, section, table
from onnx_dfmpc.report.validation import validation_section

__all__ = ["run_outline"]

SESSIONS = "Weight-only quantization buys size, not speed: with the recommended session options it is at best as fast as float."
PASTED = 5
"""Lines that are offered to be pasted together."""

NAMED = 3
"""Layers that a note names."""


def run_outline(document: Json) -> Outline:
    """Report of one run.

    Parameters
    ----------
    document : dict
        Document of ``quantize``, ``validate`` or ``plan`` (docs/json.md), as `read_document` accepts it.

    Returns
    -------
    Outline
    """
    layers = document.get("layers") or []
    return Outline(
        title=headline.model_name(document),
        subtitle=headline.subtitle(document),
        verdict=headline.verdict(document),
        figures=headline.figures(document),
        sections=(
            *validation_section(document),
            *_ranking(document),
            *section("Size and bits", charts.sizes(layers), charts.bits(layers)),
            *section("Noise", *charts.noise(layers)),
            *section("Trade-off", charts.frontier(document), _sweep(document)),
            *section("Weights", *map(charts.histogram, document.get("histograms") or [])),
            *section("Gains and shifts", charts.gains(layers), charts.shifts(layers)),
            *_latency(document),
            *section("Layers", _layers(layers), folded=True),
            *section("Stays float", _skipped(document)),
            *section("Notes", *_notes(document)),
            *_reproduce(document),
        ),
        footer=headline.footer(document),
    )


# -------------------------------------------------------------------------------------------------------------------------
# layers


def _ranking(document: Json) -> tuple[Section, ...]:
    """Which layers hurt most, and the lines that would change it."""
    ranked = document.get("per_layer") or []
    titles = ("bytes", "SQNR here, dB", "cosine here", "alone, dB", "share of noise", "same top-1 alone")
    columns = (
        Column("#", "number"),
        Column("layer", "code"),
        Column("bits", "bits"),
        *(Column(title, "number") for title in titles),
        Column("try", "code"),
        Column("for"),
    )
    rows = tuple(
        (
            words.cell(str(rank), rank),
            Cell(row["name"]),
            words.cell(words.whole(row.get("bits")), row.get("bits")),
            words.cell(words.whole(row.get("bytes")), row.get("bytes")),
            words.cell(words.digits(row.get("sqnr_db"), 1), row.get("sqnr_db")),
            words.cell(words.digits(row.get("cosine"), 5), row.get("cosine")),
            words.cell(words.digits(row.get("own_sqnr_db"), 1), row.get("own_sqnr_db")),
            words.cell(words.percent(row.get("own_share")), row.get("own_share")),
            words.cell(words.percent(row.get("own_top1_agreement")), row.get("own_top1_agreement")),
            *_suggested(row.get("suggestion") or {}),
        )
        for rank, row in enumerate(ranked, 1)
    )
    lines = [_flag(row["suggestion"]) for row in ranked if (row.get("suggestion") or {}).get("set")]
    paste = (
        Code(" \\\n  ".join(lines[:PASTED]), "Add to the command, one line at a time, worst layer first")
        if lines
        else None
    )
    lead = (
        Line(
            "Worst first. “here” is at the output of the layer, “alone” at the output of the network when only this layer is quantized."
        )
        if rows
        else None
    )
    return section("Worst layers", lead, paste, charts.ranking(ranked), table(columns, rows, long=True))


def _flag(suggestion: Mapping[str, Any]) -> str:
    given = str(suggestion["set"])
    return given if given.startswith("--") else f"--set {shlex.quote(given)}"


def _suggested(suggestion: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """Line to paste, and its price."""
    return (
        (Cell(_flag(suggestion)), Cell(_price(suggestion))) if suggestion.get("set") else (Cell(""), Cell(""))
    )


def _price(suggestion: Mapping[str, Any]) -> str:
    """What a line costs, and what it is expected to bring."""
    extra, gain = suggestion.get("extra_bytes"), suggestion.get("gain_db")
    effects = (
        "" if extra is None else f"{words.signed_whole(extra)} bytes",
        "" if gain is None else f"{words.signed(gain, 1)} dB",
    )
    return ", ".join(filter(None, effects))


def _layers(layers: Sequence[Mapping[str, Any]]) -> Table | None:
    numbers = ("bytes", "SQNR, dB", "predicted, dB", "alone, dB", "gain from", "to", "bias shift")
    columns = (
        Column("#", "number"),
        Column("layer", "code"),
        Column("op"),
        Column("weight"),
        Column("role"),
        Column("bits", "bits"),
        *(Column(title, "number") for title in numbers),
        Column("stored"),
        Column("statistics"),
        Column("why", "prose"),
    )
    return table(
        columns, tuple(_layer(position, layer) for position, layer in enumerate(layers, 1)), long=True
    )


def _layer(position: int, layer: Mapping[str, Any]) -> tuple[Cell, ...]:
    noise = layer.get("predicted_noise", layer.get("noise"))
    alone = None if not noise else -10 * math.log10(noise) if noise > 0 else None
    return (
        words.cell(str(position), position),
        Cell(layer["name"]),
        Cell(layer.get("op") or ""),
        words.cell(
            words.shape(layer.get("shape")), math.prod(layer["shape"]) if layer.get("shape") else None
        ),
        Cell(layer.get("role") or ""),
        words.cell(words.whole(layer.get("bits")), layer.get("bits")),
        words.cell(words.whole(layer.get("bytes")), layer.get("bytes")),
        words.cell(words.digits(layer.get("measured_sqnr_db"), 1), layer.get("measured_sqnr_db")),
        words.cell(words.digits(layer.get("predicted_sqnr_db"), 1), layer.get("predicted_sqnr_db")),
        words.cell(words.digits(alone, 1), alone),
        words.cell(words.digits(layer.get("gain_min"), 3), layer.get("gain_min")),
        words.cell(words.digits(layer.get("gain_max"), 3), layer.get("gain_max")),
        words.cell(words.short(layer.get("bias_shift_rms")), layer.get("bias_shift_rms")),
        Cell(layer.get("storage") or ""),
        Cell(layer.get("source") or ""),
        Cell(layer.get("reason") or ""),
    )


def _skipped(document: Json) -> Table | None:
    rows = tuple(
        (Cell(node["name"]), Cell(node.get("op") or ""), Cell(node.get("reason") or ""))
        for node in document.get("skipped") or []
    )
    return table((Column("node", "code"), Column("op"), Column("why", "prose")), rows)


# ---------------------------------------------------------------------------------------------------------------
# trade-offs, speed


def _sweep(document: Json) -> Table | None:
    rows = tuple(
        (
            words.cell(words.whole(point.get("budget")), point.get("budget")),
            words.cell(
                "too small" if point.get("bytes") is None else words.whole(point["bytes"]), point.get("bytes")
            ),
            words.cell(words.digits(point.get("nominal_bits"), 2), point.get("nominal_bits")),
            words.cell(words.digits(point.get("predicted_sqnr_db"), 1), point.get("predicted_sqnr_db")),
            words.cell(words.digits(point.get("measured_sqnr_db"), 1), point.get("measured_sqnr_db")),
            words.cell(words.percent(point.get("top1"), 2), point.get("top1")),
        )
        for point in document.get("sweep") or []
    )
    titles = ("budget, bytes", "bytes", "bits per weight", "predicted SQNR, dB", "measured SQNR, dB", "top-1")
    return table(tuple(Column(title, "number") for title in titles), rows, "What other budgets buy")


def _latency(document: Json) -> tuple[Section, ...]:
    latency = document.get("latency")
    if not latency or not latency.get("timings"):
        return ()
    timings = latency["timings"]
    first = timings[0].get("median")
    rows = tuple(
        (
            Cell(str(timing.get("name"))),
            words.cell(words.seconds(timing.get("median")), timing.get("median")),
            Cell(
                f"{words.seconds(timing.get('first_quartile'))} to {words.seconds(timing.get('third_quartile'))}"
            ),
            words.cell(words.seconds(timing.get("least")), timing.get("least")),
            Cell("" if not first or timing.get("median") is None else f"{timing['median'] / first:.2f} ×"),
        )
        for timing in timings
    )
    titles = ("median", "middle half", "least", "of float")
    text = (
        f"{words.plural(latency.get('runs') or 0, 'run')} of each, interleaved; "
        f"{words.plural(latency.get('threads') or 0, 'thread')}, batch of {latency.get('batch') or 1}."
    )
    columns = (Column("session"), *(Column(title, "number") for title in titles))
    return section(
        "Latency", Line(SESSIONS), charts.latency(timings), table(columns, rows), Line(text, "muted")
    )


# ------------------------------------------------------------------------------------------------------------------------
# the rest


def _notes(document: Json) -> list[Line]:
    """Remarks on the model, then those on layers: what holds for many is said once."""
    layers: dict[str, list[str]] = {}
    for layer in document.get("layers") or []:
        for note in layer.get("notes") or []:
            layers.setdefault(note, []).append(layer["name"])
    lines = [
        *dict.fromkeys(document.get("notes") or []),
        *(f"{_some(names)}: {note}" for note, names in layers.items()),
    ]
    return list(map(Line, lines))


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {words.plural(more, 'more layer')}" if more > 0 else "")


def _reproduce(document: Json) -> tuple[Section, ...]:
    command = document.get("command_line")
    recipe = document.get("recipe") or {}
    rows = tuple(
        (Cell(key), Cell(words.plain(value)))
        for key, value in (recipe | (document.get("form") or {})).items()
        if value not in ([], None)
    )
    files = [
        (
            Cell(title),
            Cell(str(row.get("path") or row.get("name") or "in memory")),
            words.cell(words.whole(row.get("bytes")), row.get("bytes")),
            Cell(str(row.get("sha256") or "")),
        )
        for title, row in (
            ("float", document.get("model") or {}),
            ("quantized", document.get("output") or {}),
        )
        if row
    ]
    stages = tuple(
        (Cell(stage), words.cell(words.seconds(value), value))
        for stage, value in (document.get("seconds") or {}).items()
    )
    columns = (Column("model"), Column("file", "code"), Column("bytes", "number"), Column("sha256", "code"))
    return section(
        "Reproduce",
        None if not command else Code(command, "Command"),
        table(columns, tuple(files)),
        table((Column("recipe", "code"), Column("value", "code")), rows, "Recipe"),
        table((Column("stage"), Column("time", "number")), stages, "Time"),
        table((Column("made with"), Column("version", "code")), _made_with(document)),
        folded=True,
    )


def _made_with(document: Json) -> tuple[tuple[Cell, Cell], ...]:
    tool = document.get("tool") or {}
    versions = {str(tool.get("name") or "onnx-dfmpc"): tool.get("version")} | (
        document.get("environment") or {}
    )
    return tuple((Cell(name), Cell(version or "unknown")) for name, version in versions.items())
