"""What is not about every layer: weights of one, other budgets, time, and the worst layers."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_dfmpc.report import headline, words
from onnx_dfmpc.report.charts import grammar
from onnx_dfmpc.report.charts.grammar import Row
from onnx_dfmpc.report.document import Json
from onnx_dfmpc.report.outline import Chart

RANKED = 12
"""Bars of a ranking: the table has the rest."""


def histogram(shown: Row) -> Chart | None:
    """Weights of a layer before and after."""
    before, after = shown.get("float_counts") or [], shown.get("quantized_counts") or []
    low, high = shown.get("low"), shown.get("high")
    if (
        not before
        or len(before) != len(after)
        or low is None
        or high is None
        or not sum(before)
        or not sum(after)
    ):
        return None
    width = (high - low) / len(before)
    values = [
        {
            "low": low + width * i,
            "high": low + width * (i + 1),
            "series": series,
            "share": count / sum(counts),
        }
        for series, counts in (("float", before), ("quantized", after))
        for i, count in enumerate(counts)
    ]
    encoding = {
        "x": grammar.quantity(
            "low",
            "weight / largest of its channel",
            axis={"grid": False, "tickCount": 5},
            scale={"nice": False, "zero": False},
        ),
        "x2": {"field": "high"},
        "y": grammar.quantity(
            "share", "share of weights", scale={"type": "sqrt"}, axis={"format": ".0%", "tickCount": 4}
        ),
        "y2": {"datum": 0},
        "color": grammar.series(("float", "quantized"), (grammar.BEFORE, grammar.NOW)),
        "tooltip": grammar.tips(
            ("series", "weights"), ("low", "from", ".2f"), ("high", "to", ".2f"), ("share", "share", ".1%")
        ),
    }
    return Chart(
        shown["name"],
        f"Weights of {shown['name']} before and after",
        grammar.spec(values, 130, mark={"type": "rect", "opacity": 0.8}, encoding=encoding),
    )


def frontier(document: Json) -> Chart | None:
    """What other budgets buy, and where this run stands."""
    names = {"predicted_sqnr_db": "predicted", "measured_sqnr_db": "measured"}
    common = ("bytes", "nominal_bits", "top1")
    values = [
        {
            "series": title,
            "sqnr": point[key],
            "size": words.size(point["bytes"]),
            **{other: point.get(other) for other in common},
        }
        for key, title in names.items()
        for point in document.get("sweep") or []
        if point.get("bytes") is not None and point.get(key) is not None
    ]
    if len(values) < 2:
        return None
    measured, predicted = headline.measured_sqnr(document), (document.get("predicted") or {}).get("sqnr_db")
    this = {
        "series": "this run, predicted" if measured is None else "this run, measured",
        "bytes": headline.written_bytes(document),
        "sqnr": predicted if measured is None else measured,
    }
    if None not in this.values():
        nominal = (document.get("totals") or {}).get("nominal_bits")
        values.append(
            {
                **this,
                "size": words.size(this["bytes"]),
                "nominal_bits": nominal,
                "top1": (document.get("validation") or {}).get("top1_quantized"),
            }
        )
    order = [
        title
        for title in ("predicted", "measured", this["series"])
        if any(row["series"] == title for row in values)
    ]
    colours = {"predicted": grammar.OTHER, "measured": grammar.NOW, this["series"]: "var(--mark)"}
    marks = {"predicted": "diamond", "measured": "circle", this["series"]: "triangle-up"}
    tips = [("size", "file"), ("sqnr", "SQNR, dB", ".1f"), ("nominal_bits", "bits per weight", ".2f")]
    tips += [("top1", "top-1", ".2%")] if any(row["top1"] is not None for row in values) else []
    drawn = grammar.spec(
        values,
        height=240,
        encoding={
            "x": grammar.quantity(
                "bytes", "file", scale={"zero": False}, axis={"labelExpr": grammar.BYTES, "tickCount": 6}
            ),
            "y": grammar.quantity("sqnr", "output SQNR, dB", scale={"zero": False}),
            "color": grammar.series(order, [colours[title] for title in order]),
            "tooltip": grammar.tips(("series", "point"), *tips),
        },
        layer=[
            {
                "transform": [{"filter": {"field": "series", "oneOf": list(names.values())}}],
                "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.7},
            },
            {
                "mark": {"type": "point", "filled": True},
                "encoding": {
                    "shape": grammar.series(order, [marks[title] for title in order]),
                    "size": {
                        "condition": {"test": {"field": "series", "equal": this["series"]}, "value": 160},
                        "value": 36,
                    },
                },
            },
        ],
    )
    return Chart(
        "File size against output quality",
        "Output SQNR over file size for other budgets, and this run",
        drawn,
    )


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
    y = {
        "field": "name",
        "type": "nominal",
        "title": None,
        "sort": None,
        "axis": {"labelLimit": 170, "ticks": False, "domain": False},
    }
    tips = grammar.tips(("name", "session"), *((key, key.replace("_", " ") + ", ms", ".3g") for key in keys))
    drawn = grammar.spec(
        values,
        height=34 * len(values),
        encoding={"y": y, "tooltip": tips},
        layer=[
            {
                "mark": {"type": "bar", "color": grammar.NOW, "height": {"band": 0.6}},
                "encoding": {"x": grammar.quantity("median", "milliseconds", axis={"tickCount": 5})},
            },
            {
                "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 2},
                "encoding": {
                    "x": grammar.quantity("first_quartile", "milliseconds"),
                    "x2": {"field": "third_quartile"},
                },
            },
        ],
    )
    return Chart("Time of a run", "Time of an inference", drawn, "Bar: the median. Line: the middle half.")


def ranking(ranked: Sequence[Row]) -> Chart | None:
    """Share of the output noise that single layers cause."""
    values = [
        {
            "name": row["name"],
            "bits": row.get("bits"),
            "share": row["own_share"],
            "alone": row.get("own_sqnr_db"),
        }
        for row in ranked[:RANKED]
        if row.get("own_share") is not None
    ]
    if not values:
        return None
    axis = {"labelExpr": grammar.END, "labelLimit": 180, "ticks": False, "domain": False}
    encoding = {
        "y": {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": axis},
        "x": grammar.quantity("share", "share of the noise", axis={"format": "%", "tickCount": 5}),
        "tooltip": grammar.tips(
            ("name", "layer"), ("bits", "bits", "d"), ("share", "share", ".1%"), ("alone", "alone, dB", ".1f")
        ),
    }
    mark = {"type": "bar", "color": grammar.NOW, "height": {"band": 0.7}}
    return Chart(
        "Share of the noise",
        "Share of the output noise that each of the worst layers causes",
        grammar.spec(values, 22 * len(values), mark=mark, encoding=encoding),
    )
