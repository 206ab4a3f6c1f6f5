"""Layers from the first to the last: size, bits, noise, gains, bias shifts; of one run, or of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnx_dfmpc.report import words
from onnx_dfmpc.report.charts import grammar
from onnx_dfmpc.report.charts.grammar import Row, Spec
from onnx_dfmpc.report.outline import Chart

FLOAT_BYTES = 4
RUNS = ("A", "B")
NOISE = {"measured_sqnr_db": "measured", "predicted_sqnr_db": "predicted"}
MARKS = {"measured": "circle", "predicted": "diamond"}


def sizes(layers: Sequence[Row]) -> Chart | None:
    """Bytes of every layer, as 32-bit floats and now."""
    values = []
    for depth, layer in grammar.known(layers, "bytes"):
        common = {
            **grammar.bar(depth),
            "name": layer["name"],
            "bits": layer.get("bits"),
            "now": layer["bytes"],
            "now_text": words.size(layer["bytes"]),
        }
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
        "x": grammar.along(len(layers), field="left"),
        "x2": {"field": "right"},
        "y": grammar.quantity("bytes", "weights", axis={"labelExpr": grammar.BYTES, "tickCount": 5}),
        "y2": {"datum": 0},
        "color": grammar.series(names, (grammar.BEFORE, grammar.NOW) if before else (grammar.NOW,)),
        "tooltip": grammar.tips(
            ("name", "layer"),
            ("bits", "bits", "d"),
            *([("before_text", "float")] if before else []),
            ("now_text", "quantized"),
        ),
    }
    text = (
        "Bytes of the weights of every layer, as 32-bit floats and as stored now"
        if before
        else "Bytes of the weights of every layer as stored"
    )
    return Chart("Size of every layer", text, grammar.spec(values, mark="rect", encoding=encoding))


def bits(layers: Sequence[Row]) -> Chart | None:
    """Bits of every layer."""
    values = [
        {
            **grammar.bar(depth),
            "bits": layer["bits"],
            **{key: layer.get(key) or "" for key in ("name", "op", "role", "storage", "reason")},
        }
        for depth, layer in grammar.known(layers, "bits")
    ]
    if not values:
        return None
    steps = list(range(2, 9))
    encoding = {
        "x": grammar.along(len(layers), field="left"),
        "x2": {"field": "right"},
        "y": grammar.quantity(
            "bits", "bits per weight", scale={"domain": [0, 8]}, axis={"values": [0, 2, 4, 6, 8]}
        ),
        "y2": {"datum": 0},
        "color": {
            "field": "bits",
            "type": "ordinal",
            "legend": None,
            "scale": {"domain": steps, "range": [f"var(--bits-{n})" for n in steps]},
        },
        "tooltip": grammar.tips(
            ("name", "layer"),
            ("op", "op"),
            ("bits", "bits", "d"),
            ("storage", "stored as"),
            ("role", "role"),
            ("reason", "why"),
        ),
    }
    return Chart(
        "Bits of every layer",
        "Bits per weight along the depth of the network",
        grammar.spec(values, mark="rect", encoding=encoding),
    )


def noise(layers: Sequence[Row]) -> tuple[Chart, ...]:
    """SQNR of every layer's output, predicted and measured: along the network, and one against the other."""
    rows = [
        {
            "depth": depth,
            "name": layer["name"],
            "bits": layer.get("bits"),
            **{title: layer.get(key) for key, title in NOISE.items()},
        }
        for depth, layer in enumerate(layers, 1)
    ]
    found = (
        _noise_along(rows),
        _noise_against([row for row in rows if None not in (row["predicted"], row["measured"])]),
    )
    return tuple(chart for chart in found if chart is not None)


def _noise_tips() -> list[Spec]:
    return grammar.tips(
        ("name", "layer"),
        ("bits", "bits", "d"),
        ("predicted", "predicted, dB", ".1f"),
        ("measured", "measured, dB", ".1f"),
    )


def _noise_along(rows: Sequence[Row]) -> Chart | None:
    values = [
        {**row, "series": title, "sqnr": row[title]}
        for title in NOISE.values()
        for row in rows
        if row[title] is not None
    ]
    if not values:
        return None
    titles = [title for title in NOISE.values() if any(row["series"] == title for row in values)]
    colours, dashes = (
        {"measured": grammar.NOW, "predicted": grammar.OTHER},
        {"measured": [1, 0], "predicted": [4, 3]},
    )
    drawn = grammar.spec(
        values,
        height=220,
        encoding={
            "x": grammar.along(len(rows)),
            "y": grammar.quantity("sqnr", "SQNR, dB", scale={"zero": False}),
            "color": grammar.series(titles, [colours[title] for title in titles]),
            "tooltip": _noise_tips(),
        },
        layer=[
            {
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {"strokeDash": grammar.series(titles, [dashes[title] for title in titles])},
            },
            {
                "mark": {"type": "point", "size": 28, "filled": True},
                "encoding": {"shape": grammar.series(titles, [MARKS[title] for title in titles])},
            },
        ],
    )
    text = f"SQNR of every layer's output along the depth of the network, {' and '.join(titles)}"
    note = (
        "Measured in the quantized network, so with the noise of the layers before."
        if "measured" in titles
        else ""
    )
    return Chart("SQNR of every layer's output", text, drawn, note)


def _noise_against(rows: Sequence[Row]) -> Chart | None:
    if not rows:
        return None
    ends = [row[title] for title in NOISE.values() for row in rows]
    low, high = math.floor(min(ends) - 1), math.ceil(max(ends) + 1)
    even: Spec = {"scale": {"domain": [low, high], "nice": False}, "axis": {"tickCount": 6}}
    places = {
        "x": grammar.quantity("predicted", "predicted SQNR, dB", **even),
        "y": grammar.quantity("measured", "measured SQNR, dB", **even),
    }
    drawn = grammar.spec(
        rows,
        height=220,
        encoding=places,
        layer=[
            {
                "data": {"values": [dict.fromkeys(NOISE.values(), end) for end in (low, high)]},
                "mark": {"type": "line", "color": grammar.INK, "strokeDash": [4, 4], "strokeWidth": 1},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.8, "color": grammar.NOW},
                "encoding": {"tooltip": _noise_tips()},
            },
        ],
    )
    text = "Measured over predicted SQNR of every layer's output"
    return Chart(
        "Predicted against measured",
        text,
        drawn,
        "One point for each layer; on the dashed line both are the same.",
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
        for depth, layer in grammar.known(layers, "gain_min", "gain_max", "gain_quartiles")
        if len(layer["gain_quartiles"]) == 3
    ]
    if not values:
        return None
    numbers = {
        "least": "least",
        "first": "first quartile",
        "median": "median",
        "third": "third quartile",
        "most": "most",
    }
    y: Spec = {"scale": {"zero": False}, "title": "gain"}
    drawn = grammar.spec(
        values,
        encoding={
            "x": grammar.along(len(layers)),
            "tooltip": grammar.tips(
                ("name", "layer"), *((key, title, ".3f") for key, title in numbers.items())
            ),
        },
        layer=[
            {
                "mark": {"type": "rule", "color": grammar.NOW, "opacity": 0.45, "strokeWidth": 1},
                "encoding": {"y": grammar.quantity("least", **y), "y2": {"field": "most"}},
            },
            {
                "mark": {"type": "rule", "color": grammar.NOW, "strokeWidth": 4},
                "encoding": {"y": grammar.quantity("first", **y), "y2": {"field": "third"}},
            },
            {
                "mark": {"type": "point", "filled": True, "color": grammar.OTHER, "size": 30},
                "encoding": {"y": grammar.quantity("median", **y)},
            },
        ],
    )
    note = "Thin: all output channels of a layer. Thick: the middle half. Dot: the median."
    return Chart("Gains", "Coefficients of the output channels of every layer", drawn, note)


def shifts(layers: Sequence[Row]) -> Chart | None:
    """What the bias correction added to every layer's output."""
    names = {"bias_shift_max": "largest", "bias_shift_rms": "root mean square"}
    values = [
        {
            "depth": depth,
            "name": layer["name"],
            "series": title,
            "shift": layer[key],
            **{other: layer[other] for other in names},
        }
        for depth, layer in grammar.known(layers, *names)
        for key, title in names.items()
    ]
    if not any(row["shift"] for row in values):
        return None
    titles = list(names.values())
    encoding = {
        "x": grammar.along(len(layers)),
        "y": grammar.quantity("shift", "shift of the output"),
        "color": grammar.series(titles, (grammar.OTHER, grammar.NOW)),
        "shape": grammar.series(titles, ("diamond", "circle")),
        "tooltip": grammar.tips(
            ("name", "layer"),
            ("bias_shift_rms", "root mean square", ".3g"),
            ("bias_shift_max", "largest", ".3g"),
        ),
    }
    drawn = grammar.spec(
        values, mark={"type": "point", "filled": True, "size": 32, "opacity": 0.85}, encoding=encoding
    )
    note = "In units of the layer's output, over its channels."
    return Chart("Bias shifts", "What was added to every layer's output", drawn, note)


def compared(before: Mapping[str, Row], after: Mapping[str, Row]) -> tuple[Chart, ...]:
    """Bits and measured SQNR of the layers of two runs, in the order of the first."""
    found = (
        _pair(before, after, "bits", "bits per weight", "Bits"),
        _pair(before, after, "measured_sqnr_db", "SQNR, dB", "SQNR of every layer's output"),
    )
    return tuple(chart for chart in found if chart is not None)


def _pair(
    before: Mapping[str, Row], after: Mapping[str, Row], key: str, title: str, name: str
) -> Chart | None:
    names = [layer for layer in before if layer in after]
    values = [
        {
            "depth": depth,
            "name": layer,
            "series": run,
            "value": rows[layer][key],
            "a": before[layer].get(key),
            "b": after[layer].get(key),
        }
        for run, rows in zip(RUNS, (before, after), strict=True)
        for depth, layer in enumerate(names, 1)
        if rows[layer].get(key) is not None
    ]
    if not values:
        return None
    drawn = grammar.spec(
        values,
        height=200,
        encoding={
            "x": grammar.along(len(names)),
            "y": grammar.quantity("value", title, scale={"zero": key == "bits"}),
            "color": grammar.series(RUNS, (grammar.OTHER, grammar.NOW)),
            "tooltip": grammar.tips(("name", "layer"), ("a", "A", ".3~g"), ("b", "B", ".3~g")),
        },
        layer=[
            {
                "mark": {
                    "type": "line",
                    "strokeWidth": 1.5,
                    "interpolate": "step" if key == "bits" else "linear",
                },
                "encoding": {"strokeDash": grammar.series(RUNS, ([4, 3], [1, 0]))},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 26},
                "encoding": {"shape": grammar.series(RUNS, ("diamond", "circle"))},
            },
        ],
    )
    return Chart(name, f"{title} of every layer in both runs", drawn)
