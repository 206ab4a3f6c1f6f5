"""Two runs as one outline: what differs between them, and what that did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx_dfmpc.report import charts, headline, words
from onnx_dfmpc.report.document import Json
from onnx_dfmpc.report.outline import Block, Cell, Column, Line, Outline, Table, Tone, Verdict, section, table

__all__ = ["diff_outline"]

Rows = Mapping[str, Mapping[str, Any]]


def diff_outline(first: Json, second: Json, names: tuple[str, str] = ("A", "B")) -> Outline:
    """Report of the differences between two runs.

    Parameters
    ----------
    first, second : dict
        Documents of ``quantize``, ``validate`` or ``plan`` (docs/json.md), as `read_document` accepts them;
        the second is measured against the first.
    names : (str, str)
        What to call them, such as the names of their files.

    Returns
    -------
    Outline
    """
    before, after = (_by_name(document, "layers") for document in (first, second))
    labels = ("A", "B")
    return Outline(
        title=headline.model_name(first)
        if _same_model(first, second)
        else f"{headline.model_name(first)} / {headline.model_name(second)}",
        subtitle=" · ".join(
            f"{label}: {name} ({document['command']})"
            for label, name, document in zip(labels, names, (first, second), strict=True)
        ),
        verdict=_verdict(first, second),
        figures=(),
        sections=(
            *section("At a glance", _totals(first, second), *_caveats(first, second)),
            *section("Recipe", _unlike("knob", *map(_knobs, (first, second)))),
            *section("Environment", _unlike("made with", *map(_environment, (first, second)))),
            *section("Along the network", *charts.compared(before, after)),
            *section("Bits that changed", _changed(before, after)),
            *section("In one run only", _alone(first, second)),
            *section("Latency", _latency(first, second)),
        ),
        footer=" / ".join(dict.fromkeys((headline.footer(first), headline.footer(second)))),
    )


def _by_name(document: Json, key: str) -> Rows:
    return {row["name"]: row for row in document.get(key) or []}


def _same_model(first: Json, second: Json) -> bool:
    return bool((first.get("model") or {}).get("sha256") == (second.get("model") or {}).get("sha256"))


def _verdict(first: Json, second: Json) -> Verdict:
    if not _same_model(first, second):
        return Verdict(
            "Different models",
            "The float models differ: layers are compared by name, and sizes and quality only roughly.",
            "warn",
        )
    was, now = headline.verdict(first), headline.verdict(second)
    tone: Tone = now.tone if was.word != now.word and now.tone in ("good", "bad") else "muted"
    changes = [_size_change(first, second), _quality_change(first, second)]
    text = "B against A: " + (
        ", ".join(change for change in changes if change) or "neither size nor quality is in both"
    )
    return Verdict(now.word if was.word == now.word else f"{was.word} → {now.word.lower()}", text + ".", tone)


def _size_change(first: Json, second: Json) -> str:
    before, after = headline.written_bytes(first), headline.written_bytes(second)
    if before is None or after is None:
        return ""
    if before == after:
        return "the same size"
    share = f" ({words.signed(100 * (after / before - 1), 1)} %)" if before else ""
    return f"{words.size(abs(after - before))} {'larger' if after > before else 'smaller'}{share}"


def _quality_change(first: Json, second: Json) -> str:
    before, after = headline.measured_sqnr(first), headline.measured_sqnr(second)
    return "" if before is None or after is None else f"{words.signed(after - before, 1)} dB of output SQNR"


# -------------------------------------------------------------------------------------------------------------------------
# totals


def _get(*keys: str) -> Callable[[Json], Any]:
    """Reader of a value inside nested objects, any of which may be missing."""

    def read(document: Json) -> Any:
        value: Any = document
        for key in keys:
            value = (value or {}).get(key)
        return value

    return read


def _totals(first: Json, second: Json) -> Table | None:
    """Size and quality of both; in the last column, what is better is so in words and colour."""
    rows = [_text_row("verdict", headline.verdict(first).word, headline.verdict(second).word)]
    for title, read, show, change, better in (
        ("file, bytes", headline.written_bytes, words.whole, words.signed_whole, -1),
        ("of the float model", _get("totals", "bytes_ratio"), words.percent, _points, 0),
        ("bits per weight", _get("totals", "nominal_bits"), _fixed(2), _signed(2), 0),
        ("layers", _get("totals", "layers"), words.whole, words.signed_whole, 0),
        ("stay float", _get("totals", "skipped"), words.whole, words.signed_whole, 0),
        ("output SQNR, dB", headline.measured_sqnr, _fixed(2), _signed(2), 1),
        ("predicted SQNR, dB", _get("predicted", "sqnr_db"), _fixed(2), _signed(2), 1),
        ("cosine", _get("validation", "cosine"), _fixed(6), _signed(6), 1),
        ("same top-1", _get("validation", "top1_agreement"), words.percent, _points, 1),
        ("top-1", _get("validation", "top1_quantized"), words.percent, _points, 1),
        ("top-5", _get("validation", "top5_quantized"), words.percent, _points, 1),
        (
            "seconds",
            lambda document: sum(filter(None, (document.get("seconds") or {}).values())) or None,
            _fixed(1),
            _signed(1),
            0,
        ),
    ):
        rows += _number_row(title, read(first), read(second), show, change, better)
    return table(
        (Column("what"), Column("A", "number"), Column("B", "number"), Column("change", "number")),
        tuple(rows),
    )


def _text_row(title: str, before: str, after: str) -> tuple[Cell, ...]:
    return Cell(title), Cell(before), Cell(after), Cell("the same" if before == after else "differs")


def _number_row(
    title: str,
    before: Any,
    after: Any,
    show: Callable[[Any], str],
    change: Callable[[float], str],
    better: int,
) -> list[tuple[Cell, ...]]:
    if before is None and after is None:
        return []
    if before is None or after is None:
        return [(Cell(title), Cell(show(before)), Cell(show(after)), Cell(""))]
    difference = after - before
    tone: Tone = "" if not better or not difference else "good" if difference * better > 0 else "bad"
    word = {"good": "better: ", "bad": "worse: "}.get(tone, "")
    return [
        (
            Cell(title),
            Cell(show(before)),
            Cell(show(after)),
            words.cell("the same" if not difference else word + change(difference), difference, tone),
        )
    ]


def _fixed(count: int) -> Callable[[Any], str]:
    return lambda value: words.digits(value, count)


def _signed(count: int) -> Callable[[Any], str]:
    return lambda value: words.signed(value, count)


def _points(share: float) -> str:
    return words.signed(100 * share, 2) + " points"


def _caveats(first: Json, second: Json) -> list[Block]:
    """What keeps the numbers from being compared."""
    before, after = first.get("validation"), second.get("validation")
    if not before or not after:
        return []
    what = ("data", "samples")
    if all(before.get(key) == after.get(key) for key in what):
        return []
    text = f"Validated on different data: {before.get('data')} against {after.get('data')}. The quality of the two does not compare."
    return [Line(text, "warn")]


# ------------------------------------------------------------------------------------------------------------------
# what differs


def _knobs(document: Json) -> Mapping[str, Any]:
    return (document.get("recipe") or {}) | (document.get("form") or {})


def _environment(document: Json) -> Mapping[str, Any]:
    return document.get("environment") or {}


def _unlike(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Table | None:
    """Keys whose values differ."""
    rows = tuple(
        (Cell(key), Cell(_shown(before.get(key))), Cell(_shown(after.get(key))))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    )
    return table((Column(what, "code"), Column("A", "code"), Column("B", "code")), rows)


def _shown(value: Any) -> str:
    return "not set" if value is None else words.plain(value)


def _changed(before: Rows, after: Rows) -> Table | None:
    """Layers of both with other bits, those that gained or lost most first."""
    names = [name for name in before if name in after and before[name].get("bits") != after[name].get("bits")]
    rows = tuple(_changed_row(name, before[name], after[name]) for name in names)
    numbers = ("bytes", "SQNR A, dB", "SQNR B, dB", "change, dB")
    columns = (
        Column("layer", "code"),
        Column("bits A", "bits"),
        Column("bits B", "bits"),
        *(Column(title, "number") for title in numbers),
    )
    return table(
        (*columns, Column("why in B", "prose")),
        rows,
        f"{len(rows)} of {words.plural(len(set(before) & set(after)), 'layer')}",
        long=True,
    )


def _changed_row(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Cell, ...]:
    bytes_change, sqnr_change = (
        _difference(before, after, "bytes"),
        _difference(before, after, "measured_sqnr_db"),
    )
    tone: Tone = "" if not sqnr_change else "good" if sqnr_change > 0 else "bad"
    return (
        Cell(name),
        words.cell(words.whole(before.get("bits")), before.get("bits")),
        words.cell(words.whole(after.get("bits")), after.get("bits")),
        words.cell(words.signed_whole(bytes_change), bytes_change),
        words.cell(words.digits(before.get("measured_sqnr_db"), 1), before.get("measured_sqnr_db")),
        words.cell(words.digits(after.get("measured_sqnr_db"), 1), after.get("measured_sqnr_db")),
        words.cell(words.signed(sqnr_change, 1), sqnr_change, tone),
        Cell(after.get("reason") or ""),
    )


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> float | None:
    return None if before.get(key) is None or after.get(key) is None else after[key] - before[key]


def _alone(first: Json, second: Json) -> Table | None:
    """Layers that only one of the runs quantized, and what the other says about them."""
    documents = (first, second)
    layers, skipped = ([_by_name(document, key) for document in documents] for key in ("layers", "skipped"))
    if not all(layers):
        return None
    rows = tuple(
        (
            Cell(name),
            Cell("A" if here == 0 else "B"),
            Cell(str(skipped[1 - here].get(name, {}).get("reason") or "not there")),
        )
        for here in (0, 1)
        for name in layers[here]
        if name not in layers[1 - here]
    )
    return table((Column("layer", "code"), Column("quantized in"), Column("in the other", "prose")), rows)


def _latency(first: Json, second: Json) -> Table | None:
    before, after = (_timings(document) for document in (first, second))
    rows = tuple(
        (
            Cell(name),
            Cell(words.seconds(before[name])),
            Cell(words.seconds(after[name])),
            Cell(f"{after[name] / before[name]:.2f} ×" if before[name] else ""),
        )
        for name in before
        if name in after
    )
    return table(
        (
            Column("session"),
            Column("A", "number"),
            Column("B", "number"),
            Column("B\u00a0/\u00a0A", "number"),
        ),
        rows,
    )


def _timings(document: Json) -> dict[str, float]:
    timings = (document.get("latency") or {}).get("timings") or []
    return {str(row.get("name")): row["median"] for row in timings if row.get("median") is not None}
