"""Rows of a sweep as a report: what each setting gives, and the front of size and quality of each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from statistics import median
from typing import Any

from onnx_dfmpc.report.document import tool_version
from onnx_dfmpc.report.outline import (
    Cell,
    Chart,
    Column,
    Figure,
    Outline,
    Rows,
    Table,
    Verdict,
    cell,
    decibels,
    fixed,
    percent,
    plural,
    seconds,
    section,
    signed,
    size,
)
from onnx_dfmpc.sweep.job import Row

DRAWN = 16
"""Models with a chart of their own: a page has room for these, the table has all."""

LISTED = 50
"""Jobs that a terminal lists; a convention."""

COLOURS = (*(f"var(--bits-{width})" for width in range(2, 9)), "var(--mark)", "var(--other)", "var(--before)")
"""Of the settings, in order; they begin again after the last."""

POINTS = signed(1, " points")
SUMMED = (
    "Times smaller and SQNR are medians over the models. The front counts the models of which no other "
    "setting gives a file that is no larger with outputs that are no noisier. SQNR is that of each job's "
    "data, or of synthetic inputs where it has none."
)


def front(rows: Sequence[Row]) -> set[str]:
    """Keys of the rows of one model that no other row beats: no larger, no noisier, and better in one."""
    points = [(row.bytes or math.inf, -_quality(row), row.key) for row in rows if row.status == "done"]
    return {
        key
        for count, noise, key in points
        if not any(
            other <= count and louder <= noise and (other, louder) != (count, noise)
            for other, louder, _ in points
        )
    }


def _quality(row: Row) -> float:
    """Measured SQNR; without one nothing differs."""
    return math.inf if row.sqnr_db is None else row.sqnr_db


def summary(rows: Sequence[Row]) -> Outline:
    """Report of a sweep."""
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    best = set().union(*(front(group) for group in by_model.values()))
    failed = [row for row in rows if row.status != "done"]
    settings = list(dict.fromkeys(row.setting for row in rows))
    done = [row for row in rows if row.status == "done"]
    word, tone = ("complete", "good") if not failed else ("incomplete", "warn")
    text = f"{plural(len(done), 'file')} of {plural(len(rows), 'job')}"
    text += f"; {plural(len(failed), 'job')} without one" if failed else ""
    spent = sum(row.seconds for row in rows)
    return Outline(
        title="Sweep",
        subtitle=f"{plural(len(by_model), 'model')} × {plural(len(settings), 'setting')}",
        verdict=Verdict(word, text, tone),  # type: ignore[arg-type]
        figures=(
            Figure("jobs", f"{len(rows):,}"),
            Figure("on a front", f"{len(best):,}", "no other setting is both smaller and nearer to float"),
            Figure("work", _long(spent), f"{spent / max(1, len(rows)):.2f} s a job, one worker"),
        ),
        sections=(
            *section("Settings", _settings_table(rows, settings, best), _overview(done, settings)),
            *section("Size against quality", *_charts(by_model, settings)),
            *section("Without a file", _failed_table(failed)),
            *section("Jobs", _job_table(rows, best), folded=True, appendix=len(rows) > LISTED),
        ),
        footer=f"onnx-dfmpc {tool_version()}. {SUMMED}",
    )


def _long(time: float) -> str:
    """A time that may be hours."""
    return seconds(time) if time < 120 else f"{time / 60:.0f} min" if time < 7200 else f"{time / 3600:.1f} h"


def _name(row: Row) -> Cell:
    return Cell(PurePath(row.model).name)


def _median(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return median(numbers) if numbers else None


def _lost_points(row: Row) -> float | None:
    return None if row.top1 is None or row.top1_float is None else 100 * (row.top1 - row.top1_float)


def _settings_table(rows: Sequence[Row], settings: Sequence[str], best: set[str]) -> Table | None:
    groups = [[row for row in rows if row.setting == setting] for setting in settings]
    done = {group[0].setting: [row for row in group if row.status == "done"] for group in groups}

    def over(group: list[Row], what: Any) -> float | None:
        return _median([what(row) for row in done[group[0].setting]])

    return Rows(groups).table(
        (Column("setting"), lambda group: Cell(group[0].setting)),
        (Column("jobs", "number"), lambda group: cell(lambda n: f"{n:,}", len(group))),
        (Column("files", "number"), lambda group: cell(lambda n: f"{n:,}", len(done[group[0].setting]))),
        (Column("times smaller", "number"), lambda group: cell(fixed(1), over(group, lambda row: row.ratio))),
        (Column("SQNR", "number"), lambda group: cell(decibels, over(group, lambda row: row.sqnr_db))),
        (
            Column("top-1 − float", "number"),
            lambda group: cell(signed(1, " points"), over(group, _lost_points)),
        ),
        (
            Column("on the front", "number"),
            lambda group: cell(lambda n: f"{n:,}", sum(row.key in best for row in group)),
        ),
        (Column("time", "number"), lambda group: cell(seconds, over(group, lambda row: row.seconds))),
    )


def _job_table(rows: Sequence[Row], best: set[str]) -> Table | None:
    return Rows(rows).table(
        (Column("model"), _name),
        (Column("setting"), lambda row: Cell(row.setting)),
        (Column("front"), lambda row: Cell("★" if row.key in best else "")),
        (Column("bytes", "number"), lambda row: cell(size, row.bytes)),
        (Column("times smaller", "number"), lambda row: cell(fixed(1), row.ratio)),
        (Column("bits", "number", "wide"), lambda row: cell(fixed(2), row.mean_bits)),
        (Column("SQNR", "number"), lambda row: cell(decibels, row.sqnr_db)),
        (Column("top-1", "number"), lambda row: cell(percent(), row.top1)),
        (Column("float", "number", "wide"), lambda row: cell(percent(), row.top1_float)),
        (Column("time", "number", "wide"), lambda row: cell(seconds, row.seconds)),
        (Column("file", "code", "page"), lambda row: Cell(row.output or "")),
        long=True,
    )


def _failed_table(rows: Sequence[Row]) -> Table | None:
    return Rows(rows).table(
        (Column("model"), _name),
        (Column("setting"), lambda row: Cell(row.setting)),
        (Column("status"), lambda row: Cell(row.status, tone="bad")),
        (Column("why", "prose"), lambda row: Cell(row.error)),
        (Column("what to do", "prose", "wide"), lambda row: Cell(row.hint)),
    )


def _overview(done: Sequence[Row], settings: Sequence[str]) -> Chart | None:
    return _chart("All models", done, settings, "ratio", "times smaller", set())


def _charts(by_model: dict[str, list[Row]], settings: Sequence[str]) -> list[Chart | None]:
    shown = list(by_model.items())[:DRAWN]
    return [
        _chart(PurePath(model).name, rows, settings, "bytes", "file, bytes", front(rows))
        for model, rows in shown
    ]


def _chart(
    title: str, rows: Sequence[Row], settings: Sequence[str], x: str, label: str, best: set[str]
) -> Chart | None:
    """Points of settings, with a line through those of the front."""
    values = [
        {
            "model": PurePath(row.model).name,
            "setting": row.setting,
            "bytes": row.bytes,
            "ratio": row.ratio,
            "sqnr": row.sqnr_db,
            "front": row.key in best,
        }
        for row in rows
        if row.status == "done" and row.sqnr_db is not None
    ]
    if not values:
        return None
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(settings))]
    tips = [{"field": name, "type": "nominal"} for name in ("model", "setting")]
    tips += [
        {"field": name, "type": "quantitative", "format": form}
        for name, form in (("bytes", ","), ("ratio", ".1f"), ("sqnr", ".1f"))
    ]
    axes = {
        "x": {
            "field": x,
            "type": "quantitative",
            "title": label,
            "scale": {"zero": False},
            "axis": {"tickCount": 4, "format": "~s"},
        },
        "y": {"field": "sqnr", "type": "quantitative", "title": "output SQNR, dB", "scale": {"zero": False}},
    }
    colour = {
        "field": "setting",
        "type": "nominal",
        "title": None,
        "sort": list(settings),
        "scale": {"domain": list(settings), "range": colours},
        "legend": {"columns": 4},
    }
    line = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "color": "var(--ink-soft)", "strokeWidth": 1},
        "encoding": axes,
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
        "encoding": {**axes, "color": colour, "tooltip": tips},
    }
    spec = {
        "data": {"values": values},
        "width": "container",
        "height": 240,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [*([line] if best else []), points],
    }
    about = f"Output SQNR over {label} of {title}, a point for each setting"
    return Chart(title, about, spec, "Line: the front." if best else "")
