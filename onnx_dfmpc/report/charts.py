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
from onnx_dfmpc.spec import KindNoise, LayerEffect, Timing, WeightHistogram
from onnx_dfmpc.spec.widths import WIDTHS

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
SOLID, DASHED = [1, 0], [4, 3]
LOOKS: Mapping[str, tuple[str, list[int], str]] = {
    "measured": (NOW, SOLID, "circle"),
    "on synthetic inputs": (NOW, SOLID, "circle"),
    "predicted": (OTHER, DASHED, "diamond"),
    "this run": (MARK, SOLID, "triangle-up"),
    "A": (OTHER, DASHED, "diamond"),
    "B": (NOW, SOLID, "circle"),
}
"""Colour, dash and mark of a series that is a line."""

FREE = {"zero": False}
LAYER, BITS = ("name", "layer"), ("bits", "bits", "~g")


def _chart(title: str, text: str, values: Sequence[Row], height: int, note: str = "", **rest: Any) -> Chart:
    """A chart of some rows that is as wide as the page lets it."""
    fit = {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    return Chart(title, text, {"data": {"values": list(values)}, **fit, **rest}, note)


def _number(field: str, title: str, **rest: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **rest}


def _names(label: str) -> Spec:
    """Axis of names, in the order of the rows."""
    axis = {"labelExpr": label, "labelLimit": 180, "ticks": False, "domain": False}
    return {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": axis}


def _tips(*fields: tuple[str, ...]) -> list[Spec]:
    """Fields of a tooltip: name, title, and the format of a number; without a format it is text."""
    return [
        _number(name, title, format=rest[0]) if rest else {"field": name, "title": title, "type": "nominal"}
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
    return _number(field, "layer, from input to output", scale=scale, axis=axis)


def _bars(title: str, text: str, values: Sequence[Row], count: int, y: Spec, color: Spec, tips: Any) -> Chart:
    """A bar for each row, at its ``depth`` along a network of `count` layers."""
    values = [{**row, "left": row["depth"] - 0.42, "right": row["depth"] + 0.42} for row in values]
    x = {"x": _along(count, "left"), "x2": {"field": "right"}}
    encoding = {**x, "y": y, "y2": {"datum": 0}, "color": color, "tooltip": tips}
    return _chart(title, text, values, 180, mark="rect", encoding=encoding)


def _lines(values: Sequence[Row], encoding: Spec, interpolate: str = "linear") -> Spec:
    """A line with marks for each series, as it looks in `LOOKS`."""
    titles = [title for title in LOOKS if any(row["series"] == title for row in values)]
    colours, dashes, marks = (_series(titles, [LOOKS[title][part] for title in titles]) for part in range(3))
    line = {"type": "line", "strokeWidth": 1.5, "interpolate": interpolate}
    point = {"type": "point", "size": 28, "filled": True}
    layer = [
        {"mark": line, "encoding": {"strokeDash": dashes}},
        {"mark": point, "encoding": {"shape": marks}},
    ]
    return {"encoding": {**encoding, "color": colours}, "layer": layer}


def sizes(layers: Sequence[LayerRow]) -> Chart | None:
    """Bytes of every layer, as 32-bit floats and now."""
    values: list[Row] = []
    for depth, layer in enumerate(layers, 1):
        if layer.bytes is None:
            continue
        before = FLOAT_BYTES * math.prod(layer.shape) if layer.shape else None
        row = {"depth": depth, "name": layer.name, "bits": layer.bits, "now": size(layer.bytes)}
        row["before"] = size(before)
        both = (("float", before), ("quantized", layer.bytes))
        values += [{**row, "series": series, "bytes": count} for series, count in both if count is not None]
    if not values:
        return None
    looks = {"float": BEFORE, "quantized": NOW}
    names = [name for name in looks if any(row["series"] == name for row in values)]
    y = _number("bytes", "weights", axis={"labelExpr": BYTES, "tickCount": 5})
    text = (
        f"Bytes of the weights of every layer{', as 32-bit floats and' if len(names) > 1 else ''} as stored"
    )
    tips = _tips(LAYER, BITS, *([("before", "float")] if len(names) > 1 else []), ("now", "quantized"))
    colour = _series(names, [looks[name] for name in names])
    return _bars("Size of every layer", text, values, len(layers), y, colour, tips)


def bits(layers: Sequence[LayerRow]) -> Chart | None:
    """Bits of every layer."""
    texts = {"name": "layer", "op": "op", "storage": "stored as", "role": "role", "reason": "why"}
    values = [
        {"depth": depth, "bits": layer.bits, **{key: getattr(layer, key) for key in texts}}
        for depth, layer in enumerate(layers, 1)
        if layer.bits is not None
    ]
    if not values:
        return None
    # Half a bit has the colour of the next whole one.
    scale = {"domain": list(WIDTHS), "range": [f"var(--bits-{math.ceil(width)})" for width in WIDTHS]}
    y = _number("bits", "bits per weight", scale={"domain": [0, 8]}, axis={"values": [0, 2, 4, 6, 8]})
    colour = {"field": "bits", "type": "ordinal", "legend": None, "scale": scale}
    text, tips = "Bits per weight along the depth of the network", _tips(BITS, *texts.items())
    return _bars("Bits of every layer", text, values, len(layers), y, colour, tips)


def noise(layers: Sequence[LayerRow], synthetic: bool = False) -> Iterator[Chart]:
    """SQNR of every layer's output, predicted and measured, or tried on synthetic inputs: along the network,
    and one against the other.
    """
    ran = "on synthetic inputs" if synthetic else "measured"
    keys = {ran: "measured_sqnr_db", "predicted": "predicted_sqnr_db"}
    rows: list[Spec] = [
        {"depth": depth, "name": layer.name, "bits": layer.bits}
        | {title: getattr(layer, key) for title, key in keys.items()}
        for depth, layer in enumerate(layers, 1)
    ]
    values = [
        {**row, "series": title, "sqnr": row[title]}
        for title in keys
        for row in rows
        if row[title] is not None
    ]
    tips = _tips(LAYER, BITS, *((title, f"{title}, dB", ".1f") for title in keys))
    if values:
        y = _number("sqnr", "SQNR, dB", scale=FREE)
        drawn = _lines(values, {"x": _along(len(rows)), "y": y, "tooltip": tips})
        text = "SQNR of every layer's output along the depth of the network"
        note = f"{ran.capitalize()}, in the quantized network, so with the noise of the layers before."
        shown = any(row["series"] == ran for row in values)
        yield _chart("SQNR of every layer's output", text, values, 220, note if shown else "", **drawn)
    pairs = [row for row in rows if None not in (row[ran], row["predicted"])]
    if pairs:
        ends = [row[title] for title in keys for row in pairs]
        low, high = math.floor(min(ends) - 1), math.ceil(max(ends) + 1)
        even: Spec = {"scale": {"domain": [low, high], "nice": False}, "axis": {"tickCount": 6}}
        axes = {"x": "predicted", "y": ran}
        titles = {"predicted": "predicted SQNR, dB", ran: f"SQNR, dB, {ran}"}
        diagonal = {"values": [dict.fromkeys(keys, end) for end in (low, high)]}
        dashed = {"type": "line", "color": "var(--ink-soft)", "strokeDash": [4, 4], "strokeWidth": 1}
        point = {"type": "point", "filled": True, "size": 45, "opacity": 0.8, "color": NOW}
        yield _chart(
            f"Predicted against {'synthetic inputs' if synthetic else ran}",
            f"SQNR of every layer's output, {ran}, over the predicted one",
            pairs,
            220,
            "One point for each layer; on the dashed line both are the same.",
            encoding={axis: _number(title, titles[title], **even) for axis, title in axes.items()},
            layer=[{"data": diagonal, "mark": dashed}, {"mark": point, "encoding": {"tooltip": tips}}],
        )


def compared(before: Mapping[str, LayerRow], after: Mapping[str, LayerRow]) -> Iterator[Chart]:
    """Bits and measured SQNR of the layers of two runs, in the order of the first."""
    names = [name for name in before if name in after]
    for key, unit, title in (
        ("bits", "bits per weight", "Bits"),
        ("measured_sqnr_db", "SQNR, dB", "SQNR of every layer's output"),
    ):
        rows = [
            {"depth": depth, "name": name, "A": getattr(before[name], key), "B": getattr(after[name], key)}
            for depth, name in enumerate(names, 1)
        ]
        values = [
            {**row, "series": run, "value": row[run]} for run in "AB" for row in rows if row[run] is not None
        ]
        if values:
            tips = _tips(LAYER, ("A", "A", ".3~g"), ("B", "B", ".3~g"))
            y = _number("value", unit, scale={"zero": key == "bits"})
            encoding = {"x": _along(len(names)), "y": y, "tooltip": tips}
            drawn = _lines(values, encoding, "step" if key == "bits" else "linear")
            yield _chart(title, f"{unit} of every layer in both runs", values, 200, **drawn)


def frontier(document: Document) -> Chart | None:
    """What other budgets buy, and where this run stands."""
    validation, predicted, written = document.validation, document.predicted, document.written_bytes
    measured = None if validation is None or document.synthetic else validation.sqnr_db
    top1 = None if validation is None else validation.top1_quantized
    here = predicted.sqnr_db if measured is None else measured
    if here is None and validation is not None:
        here = validation.sqnr_db
    rows = [("this run", written, here, document.totals.nominal_bits, top1)]
    for point in document.sweep:
        common = (point.nominal_bits, point.top1)
        rows.append(("predicted", point.bytes, point.predicted_sqnr_db, *common))
        rows.append(("measured", point.bytes, point.measured_sqnr_db, *common))
    values = [
        {
            "series": series,
            "bytes": count,
            "size": size(count),
            "sqnr": sqnr,
            "nominal_bits": mean,
            "top1": share,
        }
        for series, count, sqnr, mean, share in rows
        if count is not None and sqnr is not None
    ]
    if len(document.sweep) < 2 or not values:
        return None
    tips = [("size", "file"), ("sqnr", "SQNR, dB", ".1f"), ("nominal_bits", "bits per weight", ".2f")]
    tips += [("top1", "top-1", ".2%")] if any(row["top1"] is not None for row in values) else []
    encoding = {
        "x": _number("bytes", "file", scale=FREE, axis={"labelExpr": BYTES, "tickCount": 6}),
        "y": _number("sqnr", "output SQNR, dB", scale=FREE),
        "tooltip": _tips(("series", "point"), *tips),
    }
    text = "Output SQNR over file size for other budgets, and this run"
    drawn = _lines(values, encoding)
    note = ""
    if None not in (written, predicted.low_db, predicted.high_db):
        ends = {"low": predicted.low_db, "high": predicted.high_db}
        drawn["layer"].append(_upright({"bytes": written, **ends}))
        note = "Upright line: the interval of the prediction of this run."
    return _chart("File size against output quality", text, values, 240, note, **drawn)


def _upright(ends: Row) -> Spec:
    """A line from the lower to the upper end of an interval."""
    tips = _tips(("low", "lower end, dB", ".1f"), ("high", "upper end, dB", ".1f"))
    encoding = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "tooltip": tips}
    mark = {"type": "rule", "strokeWidth": 1.5}
    return {"data": {"values": [ends]}, "mark": mark, "encoding": {**encoding, "color": {"value": MARK}}}


def kinds(found: Sequence[KindNoise]) -> Chart | None:
    """Predicted SQNR on every kind of inputs; the likelier one is, the larger."""
    if len(found) < 2:
        return None
    ordered = sorted(found, key=lambda kind: -kind.weight)
    values = [{"name": kind.name, "weight": kind.weight, "sqnr": kind.sqnr_db} for kind in ordered]
    encoding = {
        "y": _names("datum.label"),
        "x": _number("sqnr", "SQNR, dB", scale={**FREE, "padding": 12}, axis={"tickCount": 5}),
        "size": _number("weight", "weight", legend=None, scale={"domain": [0, 1], "range": [30, 400]}),
        "tooltip": _tips(("name", "inputs"), ("weight", "weight", ".0%"), ("sqnr", "SQNR, dB", ".1f")),
    }
    mark = {"type": "point", "filled": True, "opacity": 0.8, "color": OTHER}
    text = "Predicted output SQNR on every kind of inputs that is plausible"
    title, note = "Predicted SQNR by inputs", "The larger, the likelier."
    return _chart(title, text, values, 26 * len(values), note, mark=mark, encoding=encoding)


def histogram(counted: WeightHistogram) -> Chart | None:
    """Weights of a layer before and after."""
    both = {"float": counted.float_counts, "quantized": counted.quantized_counts}
    bins = len(counted.float_counts)
    if len(counted.quantized_counts) != bins or not all(map(sum, both.values())):
        return None
    edges = [counted.low + (counted.high - counted.low) * place / bins for place in range(bins + 1)]
    values = [
        {"low": low, "high": high, "series": series, "share": count / sum(counts)}
        for series, counts in both.items()
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    axis, scale = {"grid": False, "tickCount": 5}, {"nice": False, "zero": False}
    share = {"scale": {"type": "sqrt"}, "axis": {"format": ".0%", "tickCount": 4}}
    encoding = {
        "x": _number("low", "weight / largest of its channel", axis=axis, scale=scale),
        "x2": {"field": "high"},
        "y": _number("share", "share of weights", **share),
        "y2": {"datum": 0},
        "color": _series(("float", "quantized"), (BEFORE, NOW)),
        "tooltip": _tips(("series", "weights"), *((key, key, ".2f") for key in ("low", "high", "share"))),
    }
    text, mark = f"Weights of {counted.name} before and after", {"type": "rect", "opacity": 0.8}
    return _chart(counted.name, text, values, 130, mark=mark, encoding=encoding)


def ranking(effects: Sequence[LayerEffect]) -> Chart:
    """Share of the output noise that single layers cause."""
    values = [
        {"name": effect.name, "bits": effect.bits, "share": effect.own_share, "alone": effect.own_sqnr_db}
        for effect in effects[:RANKED]
    ]
    encoding = {
        "y": _names(END),
        "x": _number("share", "share of the noise", axis={"format": "%", "tickCount": 5}),
        "tooltip": _tips(LAYER, BITS, ("share", "share", ".1%"), ("alone", "alone, dB", ".1f")),
    }
    mark = {"type": "bar", "color": NOW, "height": {"band": 0.7}}
    text = "Share of the output noise that each of the worst layers causes"
    return _chart("Share of the noise", text, values, 22 * len(values), mark=mark, encoding=encoding)


def latency(timings: Sequence[Timing]) -> Chart:
    """Median and middle half of the time of a run, in milliseconds."""
    keys = {"median": "median", "first_quartile": "first quartile", "third_quartile": "third quartile"}
    values = [{"name": timing.name} | {key: 1e3 * getattr(timing, key) for key in keys} for timing in timings]
    tips = _tips(("name", "session"), *((key, f"{title}, ms", ".3g") for key, title in keys.items()))
    bar = {"type": "bar", "color": NOW, "height": {"band": 0.6}}
    rule = {"type": "rule", "color": "var(--ink)", "strokeWidth": 2}
    ends = {"x": _number("first_quartile", "milliseconds"), "x2": {"field": "third_quartile"}}
    middle = {"x": _number("median", "milliseconds", axis={"tickCount": 5})}
    return _chart(
        "Time of a run",
        "Time of an inference",
        values,
        34 * len(values),
        "Bar: the median. Line: the middle half.",
        encoding={"y": _names("datum.label"), "tooltip": tips},
        layer=[{"mark": bar, "encoding": middle}, {"mark": rule, "encoding": ends}],
    )
