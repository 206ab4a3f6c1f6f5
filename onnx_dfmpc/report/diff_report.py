"""Report of what differs between two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx_dfmpc.report import charts
from onnx_dfmpc.report.document import Document, LayerRow
from onnx_dfmpc.report.outline import (
    Block,
    Cell,
    Column,
    Line,
    Number,
    Outline,
    Rows,
    Table,
    Tone,
    Verdict,
    cell,
    fixed,
    percent,
    plain,
    plural,
    seconds,
    section,
    signed,
    size,
    whole,
    width,
)
from onnx_dfmpc.report.summary import footer_of, measured_sqnr, model_name, tried_sqnr, verdict_of
from onnx_dfmpc.report.times import times
from onnx_dfmpc.spec import Latency


def diff_outline(first: Document, second: Document, names: Sequence[str] = ("A", "B")) -> Outline:
    """Report of what differs between two runs; the second is measured against the first."""
    before, after = ({layer.name: layer for layer in document.layers} for document in (first, second))
    titles = dict.fromkeys((model_name(first), model_name(second)))
    labelled = zip("AB", names, (first, second), strict=True)
    return Outline(
        title=" / ".join(titles if not _same_model(first, second) else [model_name(first)]),
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
        footer=" / ".join(dict.fromkeys((footer_of(first), footer_of(second)))),
    )


def _same_model(first: Document, second: Document) -> bool:
    return first.model.sha256 == second.model.sha256


def _change_verdict(first: Document, second: Document) -> Verdict:
    if not _same_model(first, second):
        text = "The float models differ: layers are compared by name, and sizes and quality only roughly."
        return Verdict("Different models", text, "warn")
    was, now = verdict_of(first), verdict_of(second)
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
    measured = signed(1, " dB of output SQNR")(_minus(measured_sqnr(second), measured_sqnr(first)))
    tried = signed(1, " dB of output SQNR on synthetic inputs")(_minus(tried_sqnr(second), tried_sqnr(first)))
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
    ("output SQNR, dB", measured_sqnr, fixed(2), signed(2), 1),
    ("output SQNR on synthetic inputs, dB", tried_sqnr, fixed(2), signed(2), 1),
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
    was, now = verdict_of(first).word, verdict_of(second).word
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
        (Column("B\u00a0/\u00a0A", "number"), lambda row: Cell(times(row[2], row[1]))),
    )
