"""Parts of a document as Vega-Lite specifications: plain data, which only a page draws.

Colours are custom properties of the page's style sheet, so that a chart follows it into the dark and onto
paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx_dfmpc.report.document import Document, LayerRow
from onnx_dfmpc.report.outline import Chart, size
from onnx_dfmpc.spec import LayerEffect, Timing, WeightHistogram

Row = Mapping[str, Any]
Spec = dict[str, Any]

FLOAT_BYTES = 4
RANKED = 12
"""Bars of a ranking: the table has the rest. A convention: as high as the other charts."""

BYTES = "format(datum.value, '~s') + 'B'"
"""Label of an axis of bytes."""

END = "length(datum.label) > 24 ? '…' + slice(datum.label, -23) : datum.label"
"""Label of a layer whose name is long: its end tells it from the others."""

NOW, BEFORE, OTHER, MARK = "var(--now)", "var(--before)", "var(--other)", "var(--mark)"
INK = "var(--ink-soft)"
LOOKS: dict[str, tuple[str, list[int], str]] = {
    "measured": (NOW, [1, 0], "circle"),
    "predicted": (OTHER, [4, 3], "diamond"),
    "A": (OTHER, [4, 3], "diamond"),
    "B": (NOW, [1, 0], "circle"),
}
"""Colour, dash and mark of a series that is a line."""


# ----------------------------------------------------------------------------
# what the charts have in common, in the terms of Vega-Lite


def _spec(values: Sequence[Row], height: int = 180, **rest: Any) -> Spec:
    """A chart of some rows that is as wide as the page lets it."""
    sized = {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"data": {"values": list(values)}, **sized, **rest}


def _quantity(field: str, title: str, **rest: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **rest}


def _names(field: str, label: str | None = None) -> Spec:
    """Axis of names, in the order of the rows."""
    axis = {"labelLimit": 180, "ticks": False, "domain": False} | ({"labelExpr": label} if label else {})
    return {"field": field, "type": "nominal", "title": None, "sort": None, "axis": axis}


def _tips(*fields: tuple[str, ...]) -> list[Spec]:
    """Fields of a tooltip: name, title, and the format of a number; without a format it is text."""
    return [
        {"field": name, "title": title, "type": "quantitative", "format": rest[0]}
        if rest
        else {"field": name, "title": title, "type": "nominal"}
        for name, title, *rest in fields
    ]


def _series(names: Sequence[str], values: Sequence[Any]) -> Spec:
    """The field ``series`` as colours, shapes or dashes; legends of the same field become one."""
    scale = {"domain": list(names), "range": list(values)}
    return {"field": "series", "type": "nominal", "title": None, "scale": scale, "sort": list(names)}


def _along(count: int, field: str = "depth") -> Spec:
    """Axis of the depth of the network."""
    scale = {"domain": [0.4, count + 0.6], "nice": False, "zero": False}
    axis = {"tickMinStep": 1, "format": "d", "grid": False}
    return _quantity(field, "layer, from input to output", scale=scale, axis=axis)


def _bar(depth: int) -> Spec:
    """Where the bar of a layer begins and ends, on the axis of `_along`."""
    return {"depth": depth, "left": depth - 0.42, "right": depth + 0.42}


def _lines(
    values: Sequence[Row], titles: Sequence[str], encoding: Spec, height: int, step: bool = False
) -> Spec:
    """One line with marks for each series."""
    colours, dashes, marks = ([LOOKS[title][part] for title in titles] for part in range(3))
    line = {"type": "line", "strokeWidth": 1.5, "interpolate": "step" if step else "linear"}
    return _spec(
        values,
        height,
        encoding={**encoding, "color": _series(titles, colours)},
        layer=[
            {"mark": line, "encoding": {"strokeDash": _series(titles, dashes)}},
            {
                "mark": {"type": "point", "size": 28, "filled": True},
                "encoding": {"shape": _series(titles, marks)},
            },
        ],
    )


# ----------------------------------------------------------------------------
# layers from the first to the last


def sizes(layers: Sequence[LayerRow]) -> Chart | None:
    """Bytes of every layer, as 32-bit floats and now."""
    values = []
    for depth, layer in enumerate(layers, 1):
        if layer.bytes is None:
            continue
        now, before = layer.bytes, FLOAT_BYTES * math.prod(layer.shape)
        row = {**_bar(depth), "name": layer.name, "bits": layer.bits, "now_text": size(now)}
        if layer.shape:
            row["before_text"] = size(before)
            values.append({**row, "series": "float", "bytes": before})
        values.append({**row, "series": "quantized", "bytes": now})
    if not values:
        return None
    both = any(row["series"] == "float" for row in values)
    names, colours = (("float", "quantized"), (BEFORE, NOW)) if both else (("quantized",), (NOW,))
    encoding = {
        "x": _along(len(layers), "left"),
        "x2": {"field": "right"},
        "y": _quantity("bytes", "weights", axis={"labelExpr": BYTES, "tickCount": 5}),
        "y2": {"datum": 0},
        "color": _series(names, colours),
        "tooltip": _tips(
            ("name", "layer"),
            ("bits", "bits", "d"),
            *([("before_text", "float")] if both else []),
            ("now_text", "quantized"),
        ),
    }
    text = f"Bytes of the weights of every layer{', as 32-bit floats and' if both else ''} as stored now"
    return Chart("Size of every layer", text, _spec(values, mark="rect", encoding=encoding))


def bits(layers: Sequence[LayerRow]) -> Chart | None:
    """Bits of every layer."""
    texts = {"name": "layer", "op": "op", "storage": "stored as", "role": "role", "reason": "why"}
    values = [
        {**_bar(depth), "bits": layer.bits, **{key: getattr(layer, key) for key in texts}}
        for depth, layer in enumerate(layers, 1)
        if layer.bits is not None
    ]
    if not values:
        return None
    steps = list(range(2, 9))
    scale = {"domain": steps, "range": [f"var(--bits-{n})" for n in steps]}
    axis = {"values": [0, 2, 4, 6, 8]}
    encoding = {
        "x": _along(len(layers), "left"),
        "x2": {"field": "right"},
        "y": _quantity("bits", "bits per weight", scale={"domain": [0, 8]}, axis=axis),
        "y2": {"datum": 0},
        "color": {"field": "bits", "type": "ordinal", "legend": None, "scale": scale},
        "tooltip": _tips(("bits", "bits", "d"), *texts.items()),
    }
    text = "Bits per weight along the depth of the network"
    return Chart("Bits of every layer", text, _spec(values, mark="rect", encoding=encoding))


def noise(layers: Sequence[LayerRow]) -> Iterator[Chart]:
    """SQNR of every layer's output, predicted and measured: along the network, and one against the other."""
    rows = [
        {
            "depth": depth,
            "name": layer.name,
            "bits": layer.bits,
            "measured": layer.measured_sqnr_db,
            "predicted": layer.predicted_sqnr_db,
        }
        for depth, layer in enumerate(layers, 1)
    ]
    titles = [title for title in ("measured", "predicted") if any(row[title] is not None for row in rows)]
    tips = _tips(
        ("name", "layer"),
        ("bits", "bits", "d"),
        ("predicted", "predicted, dB", ".1f"),
        ("measured", "measured, dB", ".1f"),
    )
    if titles:
        values = [
            {**row, "series": title, "sqnr": row[title]}
            for title in titles
            for row in rows
            if row[title] is not None
        ]
        y = _quantity("sqnr", "SQNR, dB", scale={"zero": False})
        drawn = _lines(values, titles, {"x": _along(len(rows)), "y": y, "tooltip": tips}, 220)
        text = f"SQNR of every layer's output along the depth of the network, {' and '.join(titles)}"
        note = "Measured in the quantized network, so with the noise of the layers before."
        yield Chart("SQNR of every layer's output", text, drawn, note if "measured" in titles else "")
    pairs = [row for row in rows if None not in (row["measured"], row["predicted"])]
    if pairs:
        yield _measured_against_predicted(pairs, tips)


def _measured_against_predicted(pairs: Sequence[Row], tips: list[Spec]) -> Chart:
    ends = [row[title] for title in ("measured", "predicted") for row in pairs]
    low, high = math.floor(min(ends) - 1), math.ceil(max(ends) + 1)
    even: Spec = {"scale": {"domain": [low, high], "nice": False}, "axis": {"tickCount": 6}}
    diagonal = [{"predicted": end, "measured": end} for end in (low, high)]
    dashed = {"type": "line", "color": INK, "strokeDash": [4, 4], "strokeWidth": 1}
    point = {"type": "point", "filled": True, "size": 45, "opacity": 0.8, "color": NOW}
    drawn = _spec(
        pairs,
        220,
        encoding={
            "x": _quantity("predicted", "predicted SQNR, dB", **even),
            "y": _quantity("measured", "measured SQNR, dB", **even),
        },
        layer=[
            {"data": {"values": diagonal}, "mark": dashed},
            {"mark": point, "encoding": {"tooltip": tips}},
        ],
    )
    text, note = (
        "Measured over predicted SQNR of every layer's output",
        "One point for each layer; on the dashed line",
    )
    return Chart("Predicted against measured", text, drawn, f"{note} both are the same.")


def compared(before: Mapping[str, LayerRow], after: Mapping[str, LayerRow]) -> Iterator[Chart]:
    """Bits and measured SQNR of the layers of two runs, in the order of the first."""
    names = [name for name in before if name in after]
    for key, unit, title in (
        ("bits", "bits per weight", "Bits"),
        ("measured_sqnr_db", "SQNR, dB", "SQNR of every layer's output"),
    ):
        pairs = [(getattr(before[name], key), getattr(after[name], key)) for name in names]
        values = [
            {
                "depth": depth,
                "name": name,
                "series": "AB"[run],
                "value": pair[run],
                "a": pair[0],
                "b": pair[1],
            }
            for run in (0, 1)
            for depth, (name, pair) in enumerate(zip(names, pairs, strict=True), 1)
            if pair[run] is not None
        ]
        if values:
            encoding = {
                "x": _along(len(names)),
                "y": _quantity("value", unit, scale={"zero": key == "bits"}),
                "tooltip": _tips(("name", "layer"), ("a", "A", ".3~g"), ("b", "B", ".3~g")),
            }
            drawn = _lines(values, ("A", "B"), encoding, 200, step=key == "bits")
            yield Chart(title, f"{unit} of every layer in both runs", drawn)


# ----------------------------------------------------------------------------
# weights of one layer, the worst layers, other budgets, time


def histogram(counted: WeightHistogram) -> Chart | None:
    """Weights of a layer before and after."""
    both = {"float": counted.float_counts, "quantized": counted.quantized_counts}
    bins = len(counted.float_counts)
    if len(counted.quantized_counts) != bins or not all(map(sum, both.values())):
        return None
    width = (counted.high - counted.low) / bins
    values = [
        {
            "low": counted.low + width * place,
            "high": counted.low + width * (place + 1),
            "series": series,
            "share": count / sum(counts),
        }
        for series, counts in both.items()
        for place, count in enumerate(counts)
    ]
    scale, axis = {"nice": False, "zero": False}, {"grid": False, "tickCount": 5}
    share = {"scale": {"type": "sqrt"}, "axis": {"format": ".0%", "tickCount": 4}}
    encoding = {
        "x": _quantity("low", "weight / largest of its channel", axis=axis, scale=scale),
        "x2": {"field": "high"},
        "y": _quantity("share", "share of weights", **share),
        "y2": {"datum": 0},
        "color": _series(("float", "quantized"), (BEFORE, NOW)),
        "tooltip": _tips(
            ("series", "weights"), ("low", "from", ".2f"), ("high", "to", ".2f"), ("share", "share", ".1%")
        ),
    }
    drawn = _spec(values, 130, mark={"type": "rect", "opacity": 0.8}, encoding=encoding)
    return Chart(counted.name, f"Weights of {counted.name} before and after", drawn)


def ranking(effects: Sequence[LayerEffect]) -> Chart | None:
    """Share of the output noise that single layers cause."""
    values = [
        {"name": effect.name, "bits": effect.bits, "share": effect.own_share, "alone": effect.own_sqnr_db}
        for effect in effects[:RANKED]
    ]
    if not values:
        return None
    encoding = {
        "y": _names("name", END),
        "x": _quantity("share", "share of the noise", axis={"format": "%", "tickCount": 5}),
        "tooltip": _tips(
            ("name", "layer"), ("bits", "bits", "d"), ("share", "share", ".1%"), ("alone", "alone, dB", ".1f")
        ),
    }
    drawn = _spec(
        values,
        22 * len(values),
        mark={"type": "bar", "color": NOW, "height": {"band": 0.7}},
        encoding=encoding,
    )
    return Chart(
        "Share of the noise", "Share of the output noise that each of the worst layers causes", drawn
    )


def frontier(document: Document) -> Chart | None:
    """What other budgets buy, and where this run stands."""
    values: list[Row] = [
        {
            "series": title,
            "bytes": point.bytes,
            "sqnr": sqnr,
            "size": size(point.bytes),
            "nominal_bits": point.nominal_bits,
            "top1": point.top1,
        }
        for point in document.sweep
        for title, sqnr in (("predicted", point.predicted_sqnr_db), ("measured", point.measured_sqnr_db))
        if point.bytes is not None and sqnr is not None
    ]
    if len(values) < 2:
        return None
    validation, predicted = document.validation, document.predicted
    measured = None if validation is None else validation.sqnr_db
    this = "this run, predicted" if measured is None else "this run, measured"
    written = predicted.bytes if document.output is None else document.output.bytes
    sqnr = predicted.sqnr_db if measured is None else measured
    if written is not None and sqnr is not None:
        row = {"series": this, "bytes": written, "sqnr": sqnr, "size": size(written)}
        top1 = None if validation is None else validation.top1_quantized
        values.append({**row, "nominal_bits": document.totals.nominal_bits, "top1": top1})
    looks = LOOKS | {this: (MARK, [], "triangle-up")}
    order = [
        title for title in ("predicted", "measured", this) if any(row["series"] == title for row in values)
    ]
    tips = [("size", "file"), ("sqnr", "SQNR, dB", ".1f"), ("nominal_bits", "bits per weight", ".2f")]
    tips += [("top1", "top-1", ".2%")] if any(row["top1"] is not None for row in values) else []
    larger = {"condition": {"test": {"field": "series", "equal": this}, "value": 160}, "value": 36}
    lines = {"filter": {"field": "series", "oneOf": ["predicted", "measured"]}}
    drawn = _spec(
        values,
        240,
        encoding={
            "x": _quantity("bytes", "file", scale={"zero": False}, axis={"labelExpr": BYTES, "tickCount": 6}),
            "y": _quantity("sqnr", "output SQNR, dB", scale={"zero": False}),
            "color": _series(order, [looks[title][0] for title in order]),
            "tooltip": _tips(("series", "point"), *tips),
        },
        layer=[
            {"transform": [lines], "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.7}},
            {
                "mark": {"type": "point", "filled": True},
                "encoding": {"shape": _series(order, [looks[title][2] for title in order]), "size": larger},
            },
        ],
    )
    text = "Output SQNR over file size for other budgets, and this run"
    return Chart("File size against output quality", text, drawn)


def latency(timings: Sequence[Timing]) -> Chart:
    """Median and middle half of the time of a run, in milliseconds."""
    keys = ("median", "first_quartile", "third_quartile")
    values = [
        {"name": timing.name, **{key: 1e3 * getattr(timing, key) for key in keys}} for timing in timings
    ]
    ends = {"x": _quantity("first_quartile", "milliseconds"), "x2": {"field": "third_quartile"}}
    tips = _tips(("name", "session"), *((key, key.replace("_", " ") + ", ms", ".3g") for key in keys))
    drawn = _spec(
        values,
        34 * len(values),
        encoding={"y": _names("name"), "tooltip": tips},
        layer=[
            {
                "mark": {"type": "bar", "color": NOW, "height": {"band": 0.6}},
                "encoding": {"x": _quantity("median", "milliseconds", axis={"tickCount": 5})},
            },
            {"mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 2}, "encoding": ends},
        ],
    )
    return Chart("Time of a run", "Time of an inference", drawn, "Bar: the median. Line: the middle half.")
