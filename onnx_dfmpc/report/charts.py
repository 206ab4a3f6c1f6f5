"""Rows of a document as Vega-Lite specifications: plain data, which only a page draws.

Colours are custom properties of the page's style sheet, so that a chart follows it into the dark and onto paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_dfmpc.document import Json
from onnx_dfmpc.report import headline, words
from onnx_dfmpc.report.outline import Chart

Row = Mapping[str, Any]
Spec = dict[str, Any]

FLOAT_BYTES = 4
RANKED = 12
"""Bars of a ranking: the table has the rest."""

NOW, BEFORE, OTHER, INK = "var(--now)", "var(--before)", "var(--other)", "var(--ink-soft)"


def _spec(values: Sequence[Row], height: int = 180, **rest: Any) -> Spec:
    sized = {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"data": {"values": list(values)}, **sized, **rest}


def _quantity(field: str, title: str, **rest: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **rest}


def _tips(*fields: tuple[str, str] | tuple[str, str, str]) -> list[Spec]:
    """Fields of a tooltip: name, title, and the format of a number; without a format it is text."""
    return [
        {"field": name, "title": title, "type": "quantitative", "format": rest[0]} if rest else {"field": name, "title": title, "type": "nominal"}
        for name, title, *rest in fields
    ]


def _series(names: Sequence[str], colours: Sequence[str]) -> Spec:
    """Colour by the field ``series``, with a legend above the chart."""
    return {"field": "series", "type": "nominal", "title": None, "scale": {"domain": list(names), "range": list(colours)}, "sort": list(names)}


def _along(count: int, **rest: Any) -> Spec:
    """Axis of the depth of the network."""
    scale = {"domain": [0.4, count + 0.6], "nice": False, "zero": False}
    axis = {"tickMinStep": 1, "format": "d", "grid": False}
    return {"field": "depth", "type": "quantitative", "title": "layer, from input to output", "scale": scale, "axis": axis, **rest}


def _bar(depth: int) -> Spec:
    return {"depth": depth, "left": depth - 0.42, "right": depth + 0.42}


def _known(layers: Sequence[Row], *keys: str) -> list[tuple[int, Row]]:
    """Layers that have a value for every key, and their depth."""
    return [(depth, layer) for depth, layer in enumerate(layers, 1) if all(layer.get(key) is not None for key in keys)]


# -------------------------------------------------------------------------------------------------------------- along the network


def sizes(layers: Sequence[Row]) -> Chart | None:
    """Bytes of every layer, as 32-bit floats and now."""
    values = []
    for depth, layer in _known(layers, "bytes"):
        common = {**_bar(depth), "name": layer["name"], "bits": layer.get("bits"), "now": layer["bytes"], "now_text": words.size(layer["bytes"])}
        if layer.get("shape"):
            before = FLOAT_BYTES * math.prod(layer["shape"])
            common |= {"before": before, "before_text": words.size(before)}
            values.append({**common, "series": "float", "bytes": before})
        values.append({**common, "series": "quantized", "bytes": layer["bytes"]})
    if not values:
        return None
    before = any(row["series"] == "float" for row in values)
    names = ("float", "quantized") if before else ("quantized",)
    encoding = {
        "x": _along(len(layers), field="left"),
        "x2": {"field": "right"},
        "y": _quantity("bytes", "bytes", stack=None, axis={"format": "~s", "tickCount": 5}),
        "color": _series(names, (BEFORE, NOW) if before else (NOW,)),
        "tooltip": _tips(("name", "layer"), ("bits", "bits", "d"), *([("before_text", "float")] if before else []), ("now_text", "quantized")),
    }
    text = "Bytes of the weights of every layer, as 32-bit floats and as stored now" if before else "Bytes of the weights of every layer as stored"
    return Chart("Size of every layer", text, _spec(values, mark="bar", encoding=encoding))


def bits(layers: Sequence[Row]) -> Chart | None:
    """Bits of every layer."""
    values = [
        {**_bar(depth), "bits": layer["bits"], **{key: layer.get(key) or "" for key in ("name", "op", "role", "storage", "reason")}}
        for depth, layer in _known(layers, "bits")
    ]
    if not values:
        return None
    steps = list(range(2, 9))
    encoding = {
        "x": _along(len(layers), field="left"),
        "x2": {"field": "right"},
        "y": _quantity("bits", "bits per weight", scale={"domain": [0, 8]}, axis={"values": [0, 2, 4, 6, 8]}),
        "color": {"field": "bits", "type": "ordinal", "legend": None, "scale": {"domain": steps, "range": [f"var(--bits-{n})" for n in steps]}},
        "tooltip": _tips(("name", "layer"), ("op", "op"), ("bits", "bits", "d"), ("storage", "stored as"), ("role", "role"), ("reason", "why")),
    }
    return Chart("Bits of every layer", "Bits per weight along the depth of the network", _spec(values, mark="bar", encoding=encoding))


def noise(layers: Sequence[Row]) -> tuple[Chart, ...]:
    """SQNR of every layer's output, predicted and measured: along the network, and one against the other."""
    both = ("predicted_sqnr_db", "measured_sqnr_db")
    names, colours = ("measured", "predicted"), (NOW, OTHER)
    found = _known(layers, *both)
    if not found:
        return ()
    rows = [
        {"depth": depth, "name": layer["name"], "bits": layer.get("bits"), "predicted": layer[both[0]], "measured": layer[both[1]]}
        for depth, layer in found
    ]
    tips = _tips(("name", "layer"), ("bits", "bits", "d"), ("predicted", "predicted, dB", ".1f"), ("measured", "measured, dB", ".1f"))
    folded = [{**row, "series": series, "sqnr": row[series]} for series in names for row in rows]
    along = _spec(
        folded,
        height=220,
        encoding={
            "x": _along(len(layers)),
            "y": _quantity("sqnr", "SQNR, dB", scale={"zero": False}),
            "color": _series(names, colours),
            "tooltip": tips,
        },
        layer=[
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": {"strokeDash": {**_series(names, ([1, 0], [4, 3])), "legend": None}}},
            {"mark": {"type": "point", "size": 28, "filled": True}, "encoding": {"shape": _series(names, ("circle", "diamond"))}},
        ],
    )
    ends = [row[series] for series in names for row in rows]
    low, high = math.floor(min(ends) - 1), math.ceil(max(ends) + 1)
    scale = {"domain": [low, high], "nice": False}
    against = _spec(
        rows,
        height=220,
        layer=[
            {
                "data": {"values": [{"predicted": low, "measured": low}, {"predicted": high, "measured": high}]},
                "mark": {"type": "line", "color": INK, "strokeDash": [4, 4], "strokeWidth": 1},
                "encoding": {"x": _quantity("predicted", "predicted SQNR, dB"), "y": _quantity("measured", "measured SQNR, dB")},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.8, "color": NOW},
                "encoding": {
                    "x": _quantity("predicted", "predicted SQNR, dB", scale=scale),
                    "y": _quantity("measured", "measured SQNR, dB", scale=scale),
                    "tooltip": tips,
                },
            },
        ],
    )
    return (
        Chart("Along the network", "SQNR of every layer's output along the depth of the network, measured and predicted", along),
        Chart("One against the other", "Measured over predicted SQNR, one point for each layer; on the dashed line they are equal", against, small=True),
    )


def gains(layers: Sequence[Row]) -> Chart | None:
    """Spread of the coefficients of every layer: all of them, the middle half, the median."""
    values = [
        {
            "depth": depth,
            "name": layer["name"],
            "least": layer["gain_min"],
            "first": layer["gain_quartiles"][0],
            "median": layer["gain_quartiles"][1],
            "third": layer["gain_quartiles"][2],
            "most": layer["gain_max"],
        }
        for depth, layer in _known(layers, "gain_min", "gain_max", "gain_quartiles")
        if len(layer["gain_quartiles"]) == 3
    ]
    if not values:
        return None
    tips = (("name", "layer"), *((key, title, ".3f") for key, title in (("least", "least"), ("first", "first quartile"), ("median", "median"))))
    tips = (*tips, ("third", "third quartile", ".3f"), ("most", "most", ".3f"))
    y: Spec = {"scale": {"zero": False}, "title": "gain"}
    spec = _spec(
        values,
        encoding={"x": _along(len(layers)), "tooltip": _tips(*tips)},
        layer=[
            {"mark": {"type": "rule", "color": NOW, "opacity": 0.45, "strokeWidth": 1}, "encoding": {"y": _quantity("least", **y), "y2": {"field": "most"}}},
            {"mark": {"type": "rule", "color": NOW, "strokeWidth": 4}, "encoding": {"y": _quantity("first", **y), "y2": {"field": "third"}}},
            {"mark": {"type": "point", "filled": True, "color": OTHER, "size": 30}, "encoding": {"y": _quantity("median", **y)}},
        ],
    )
    return Chart("Gains", "Coefficients of the output channels of every layer: range, middle half and median", spec)


def shifts(layers: Sequence[Row]) -> Chart | None:
    """What the bias correction added to every layer's output."""
    names = {"bias_shift_max": "largest", "bias_shift_rms": "root mean square"}
    values = [
        {"depth": depth, "name": layer["name"], "series": title, "shift": layer[key], **{other: layer[other] for other in names}}
        for depth, layer in _known(layers, *names)
        for key, title in names.items()
    ]
    if not any(row["shift"] for row in values):
        return None
    titles = list(names.values())
    encoding = {
        "x": _along(len(layers)),
        "y": _quantity("shift", "shift of the output"),
        "color": _series(titles, (OTHER, NOW)),
        "shape": _series(titles, ("diamond", "circle")),
        "tooltip": _tips(("name", "layer"), ("bias_shift_rms", "root mean square", ".3g"), ("bias_shift_max", "largest", ".3g")),
    }
    text = "What was added to every layer's output, in units of that output: root mean square and largest over its channels"
    return Chart("Bias shifts", text, _spec(values, mark={"type": "point", "filled": True, "size": 32, "opacity": 0.85}, encoding=encoding))


# ------------------------------------------------------------------------------------------------------------------------- others


def histogram(shown: Row) -> Chart | None:
    """Weights of a layer before and after."""
    before, after = shown.get("float_counts") or [], shown.get("quantized_counts") or []
    low, high = shown.get("low"), shown.get("high")
    if not before or len(before) != len(after) or low is None or high is None or not sum(before) or not sum(after):
        return None
    width = (high - low) / len(before)
    values = [
        {"low": low + width * i, "high": low + width * (i + 1), "series": series, "share": count / sum(counts)}
        for series, counts in (("float", before), ("quantized", after))
        for i, count in enumerate(counts)
    ]
    encoding = {
        "x": _quantity("low", "weight / largest of its channel", axis={"grid": False, "tickCount": 5}, scale={"nice": False, "zero": False}),
        "x2": {"field": "high"},
        "y": _quantity("share", "share of weights", stack=None, scale={"type": "sqrt"}, axis={"format": ".0%", "tickCount": 4}),
        "color": _series(("float", "quantized"), (BEFORE, NOW)),
        "opacity": {"field": "series", "type": "nominal", "legend": None, "scale": {"domain": ["float", "quantized"], "range": [1, 0.75]}},
        "tooltip": _tips(("series", "weights"), ("low", "from", ".2f"), ("high", "to", ".2f"), ("share", "share", ".1%")),
    }
    return Chart(shown["name"], f"Weights of {shown['name']} before and after", _spec(values, 130, mark="bar", encoding=encoding), small=True)


def frontier(document: Json) -> Chart | None:
    """What other budgets buy, and where this run stands."""
    names = {"predicted_sqnr_db": "predicted", "measured_sqnr_db": "measured"}
    common = ("bytes", "nominal_bits", "top1")
    values = [
        {"series": title, "sqnr": point[key], "size": words.size(point["bytes"]), **{other: point.get(other) for other in common}}
        for key, title in names.items()
        for point in document.get("sweep") or []
        if point.get("bytes") is not None and point.get(key) is not None
    ]
    if len(values) < 2:
        return None
    this = {"series": "this run", "bytes": headline.written_bytes(document), "sqnr": headline.measured_sqnr(document)}
    if this["sqnr"] is None:
        this["sqnr"] = (document.get("predicted") or {}).get("sqnr_db")
    if None not in this.values():
        nominal = (document.get("totals") or {}).get("nominal_bits")
        values.append({**this, "size": words.size(this["bytes"]), "nominal_bits": nominal, "top1": (document.get("validation") or {}).get("top1_quantized")})
    order = [title for title in ("predicted", "measured", "this run") if any(row["series"] == title for row in values)]
    colours = {"predicted": OTHER, "measured": NOW, "this run": "var(--mark)"}
    marks = {"predicted": "diamond", "measured": "circle", "this run": "triangle-up"}
    tips = [("size", "file"), ("sqnr", "SQNR, dB", ".1f"), ("nominal_bits", "bits per weight", ".2f")]
    tips += [("top1", "top-1", ".2%")] if any(row["top1"] is not None for row in values) else []
    spec = _spec(
        values,
        height=240,
        encoding={
            "x": _quantity("bytes", "file, bytes", scale={"zero": False}, axis={"format": "~s", "tickCount": 6}),
            "y": _quantity("sqnr", "output SQNR, dB", scale={"zero": False}),
            "color": _series(order, [colours[title] for title in order]),
            "tooltip": _tips(("series", "point"), *tips),
        },
        layer=[
            {"transform": [{"filter": "datum.series != 'this run'"}], "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.7}},
            {
                "mark": {"type": "point", "filled": True},
                "encoding": {
                    "shape": _series(order, [marks[title] for title in order]),
                    "size": {"condition": {"test": "datum.series == 'this run'", "value": 160}, "value": 36},
                },
            },
        ],
    )
    return Chart("File size against output quality", "Output SQNR over file size for other budgets, and this run", spec)


def latency(timings: Sequence[Row]) -> Chart | None:
    """Median and middle half of the time of a run, in milliseconds."""
    keys = ("median", "first_quartile", "third_quartile")
    values = [
        {"name": row.get("name"), **{key: 1e3 * row[key] for key in keys}}
        for row in timings
        if all(row.get(key) is not None for key in keys)
    ]
    if not values:
        return None
    y = {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 170, "ticks": False, "domain": False}}
    tips = _tips(("name", "session"), *((key, key.replace("_", " ") + ", ms", ".3g") for key in keys))
    spec = _spec(
        values,
        height=34 * len(values),
        encoding={"y": y, "tooltip": tips},
        layer=[
            {"mark": {"type": "bar", "color": NOW, "height": {"band": 0.6}}, "encoding": {"x": _quantity("median", "milliseconds of a run, median and middle half")}},
            {
                "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 2},
                "encoding": {"x": _quantity("first_quartile", "milliseconds of a run, median and middle half"), "x2": {"field": "third_quartile"}},
            },
        ],
    )
    return Chart("Time of a run", "Median and middle half of the time of an inference", spec)


def ranking(ranked: Sequence[Row]) -> Chart | None:
    """Share of the output noise that single layers cause."""
    values = [
        {"name": row["name"], "bits": row.get("bits"), "share": row["own_share"], "alone": row.get("own_sqnr_db")}
        for row in ranked[:RANKED]
        if row.get("own_share") is not None
    ]
    if not values:
        return None
    axis = {"labelLimit": 150, "ticks": False, "domain": False}
    encoding = {
        "y": {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": axis},
        "x": _quantity("share", "share of the noise", axis={"format": "%", "tickCount": 5}),
        "tooltip": _tips(("name", "layer"), ("bits", "bits", "d"), ("share", "share", ".1%"), ("alone", "alone, dB", ".1f")),
    }
    mark = {"type": "bar", "color": NOW, "height": {"band": 0.7}}
    return Chart("Share of the noise", "Share of the output noise that each of the worst layers causes", _spec(values, 22 * len(values), mark=mark, encoding=encoding))
