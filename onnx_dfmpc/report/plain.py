"""An outline as tables for a terminal: readable in 80 columns, and without colour."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from onnx_dfmpc.report.outline import Block, Chart, Code, Column, Line, Outline, Table

FIRST = 12
"""Rows of a long table that are seen without `wide`."""

STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "muted": "dim", "": ""}
LEFT_OUT = (
    "why",
    "statistics",
    "weight",
    "op",
    "role",
    "stored",
    "gain from",
    "to",
    "same top-1 alone",
    "cosine here",
    "try",
    "why in B",
)
"""Columns of a long table for which a terminal has no room."""


def terminal(outline: Outline, *, wide: bool = False) -> Group:
    """Render an outline; charts are left out, and so are some columns of long tables unless there is room for
    `wide` ones.

    Parameters
    ----------
    outline : Outline
    wide : bool

    Returns
    -------
    Group
        For a rich console.
    """
    verdict = outline.verdict
    figures = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for figure in outline.figures:
        figures.add_row(figure.label, Text(figure.value, "bold"), figure.note)
    parts: list[RenderableType] = [
        Text(outline.title, "bold"),
        Text(outline.subtitle, "dim"),
        Padding(Text(f"{verdict.word.upper()}: {verdict.text}", STYLES[verdict.tone]), (1, 0, 0, 0)),
    ]
    if outline.figures:
        parts.append(Padding(figures, (1, 0, 0, 0)))
    for section in outline.sections:
        blocks = [
            _block(block, wide=wide, whole=wide or section.folded)
            for block in section.blocks
            if not isinstance(block, Chart)
        ]
        if blocks:
            parts.append(Padding(Group(Text(section.title, "bold"), *blocks), (1, 0, 0, 0)))
    return Group(*parts)


def _block(block: Block, *, wide: bool, whole: bool) -> RenderableType:
    if isinstance(block, Line):
        return Text(block.text, STYLES[block.tone])
    if isinstance(block, Code):
        return Group(Text(f"{block.title}:"), Padding(Text(block.text), (0, 0, 0, 4)))
    assert isinstance(block, Table)
    hidden = 0 if whole or not block.long else max(0, len(block.rows) - FIRST)
    shown = _table(block, len(block.rows) - hidden, wide=wide)
    return Group(shown, Text(f"and {hidden} more: -v", "dim")) if hidden else shown


def _table(table: Table, count: int, *, wide: bool) -> Grid:
    """Grid whose names and prose give way where the terminal is narrow: numbers never break."""
    style = {
        "title_justify": "left",
        "title_style": "italic",
        "padding": (0, 1, 0, 0),
        "pad_edge": False,
        "show_edge": False,
    }
    grid = Grid(title=table.title or None, box=box.SIMPLE_HEAD, **style)  # type: ignore[arg-type]
    shown = [
        position
        for position, column in enumerate(table.columns)
        if wide or column.title not in LEFT_OUT or not (table.long or column.title == "sha256")
    ]
    for position in shown:
        column = table.columns[position]
        grid.add_column(
            _head(column),
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column.numeric,
        )
    for row in table.rows[:count]:
        grid.add_row(*(Text(row[position].text, STYLES[row[position].tone]) for position in shown))
    return grid


def _head(column: Column) -> str:
    """Title in as little width as its words allow."""
    return column.title.replace(" ", "\n") if column.numeric else column.title
