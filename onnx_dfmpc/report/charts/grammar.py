"""What the charts have in common, in the terms of Vega-Lite.

Colours are custom properties of the page's style sheet, so that a chart follows it into the dark and onto
paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Spec = dict[str, Any]

BYTES = "format(datum.value, '~s') + 'B'"
"""Label of an axis of bytes."""

END = "length(datum.label) > 24 ? '…' + slice(datum.label, -23) : datum.label"
"""Label of a layer whose name is long: its end tells it from the others."""

NOW, BEFORE, OTHER, INK = "var(--now)", "var(--before)", "var(--other)", "var(--ink-soft)"


def spec(values: Sequence[Row], height: int = 180, **rest: Any) -> Spec:
    """A chart of some rows that is as wide as the page lets it."""
    sized = {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"data": {"values": list(values)}, **sized, **rest}


def quantity(field: str, title: str, **rest: Any) -> Spec:
    """A field of numbers."""
    return {"field": field, "type": "quantitative", "title": title, **rest}


def tips(*fields: tuple[str, ...]) -> list[Spec]:
    """Fields of a tooltip: name, title, and the format of a number; without a format it is text."""
    return [
        {"field": name, "title": title, "type": "quantitative", "format": rest[0]}
        if rest
        else {"field": name, "title": title, "type": "nominal"}
        for name, title, *rest in fields
    ]


def series(names: Sequence[str], values: Sequence[Any]) -> Spec:
    """The field ``series`` as colours, shapes or dashes, in this order; legends of the same field become one."""
    return {
        "field": "series",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(names), "range": list(values)},
        "sort": list(names),
    }


def along(count: int, **rest: Any) -> Spec:
    """Axis of the depth of the network."""
    scale = {"domain": [0.4, count + 0.6], "nice": False, "zero": False}
    axis = {"tickMinStep": 1, "format": "d", "grid": False}
    return {
        "field": "depth",
        "type": "quantitative",
        "title": "layer, from input to output",
        "scale": scale,
        "axis": axis,
        **rest,
    }


def bar(depth: int) -> Spec:
    """Where the bar of a layer begins and ends, on the axis of `along`."""
    return {"depth": depth, "left": depth - 0.42, "right": depth + 0.42}


def known(layers: Sequence[Row], *keys: str) -> list[tuple[int, Row]]:
    """Layers that have a value for every key, and their depth."""
    return [
        (depth, layer)
        for depth, layer in enumerate(layers, 1)
        if all(layer.get(key) is not None for key in keys)
    ]
