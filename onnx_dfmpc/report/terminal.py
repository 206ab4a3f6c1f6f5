"""An outline as text for a terminal: tables from 80 columns on, lists in fewer, readable without colour. The
figures and the verdict come last, where the reader is when the command ends.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from onnx_dfmpc.report.outline import Block, Chart, Code, Column, Line, Outline, Table

NARROW, WIDE = 80, 120
"""Columns that every table fits into, and from which reasons have room beside the numbers: the usual width,
and half as much again.
"""

INDENT = (0, 0, 0, 2)
"""Of what belongs to the line above."""

FIRST = 10
"""Rows of a ranked table that are seen without `wide`; a convention."""

STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "muted": "dim", "": ""}
ASCII = str.maketrans(
    {"→": "->", "−": "-", "×": "x", "∞": "infinite", "·": "|", "█": "#", "µ": "u", "“": '"', "”": '"'}
)


def is_wide() -> bool:
    """Whether the terminal has room for `wide` reports."""
    return Console().width >= WIDE


def terminal(outline: Outline, wide: bool = False) -> str:
    """An outline as text, in colour where standard output shows it; charts are left out."""
    columns = Console().width
    shown = io.StringIO()  # rich, while it captures, still writes to standard output, which may take no more
    console = Console(
        file=shown,
        force_terminal=sys.stdout.isatty() or None,
        width=columns,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for part in _parts(outline, wide, columns < NARROW):
        console.print(part, crop=False)
    text = "\n".join(line.rstrip() for line in shown.getvalue().splitlines()) + "\n"
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _parts(outline: Outline, wide: bool, narrow: bool) -> Iterator[RenderableType]:
    yield Text(outline.title, "bold")
    yield Text(outline.subtitle, "dim")
    for section in outline.sections:
        blocks = [block for block in section.blocks if not isinstance(block, Chart)]
        if not blocks or (section.appendix and not wide):
            continue
        yield Text(f"\n{section.title}", "bold")
        for place, block in enumerate(blocks):
            if place and isinstance(block, Table) and isinstance(blocks[place - 1], Table):
                yield ""
            yield from _block(block, wide, narrow)
    figures = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for figure in outline.figures:
        figures.add_row(Text(figure.label), Text(figure.value, "bold"), Text(figure.note))
    if outline.figures:
        yield ""
    if outline.figures and not narrow:
        yield figures
    for figure in outline.figures if narrow else ():
        yield Text.assemble(f"{figure.label}: ", (figure.value, "bold"))
        yield Padding(Text(figure.note), INDENT)
    verdict = outline.verdict
    yield Text(f"\n{verdict.word.upper()}: {verdict.text}", STYLES[verdict.tone])


def _block(block: Block, wide: bool, narrow: bool) -> Iterator[RenderableType]:
    if isinstance(block, Line):
        yield Text(block.text, STYLES[block.tone])
    elif isinstance(block, Code):
        if block.title:
            yield Text(f"{block.title}:")
        # On one line, however narrow the terminal, so that it can be copied; rich wraps a bare Text.
        yield Group(Text(block.text, no_wrap=True, overflow="ignore"))
    elif isinstance(block, Table):
        hidden = max(0, len(block.rows) - FIRST) if block.ranked and not wide else 0
        count = len(block.rows) - hidden
        yield from _list(block, count, wide) if narrow else [_grid(block, count, wide)]
        if hidden:
            yield Text(f"and {hidden} more: -v", "dim")


def _list(table: Table, count: int, wide: bool) -> Iterator[RenderableType]:
    """The first `count` rows where a table has no room: its name, and below it what each column says."""
    if table.title:
        yield Text(table.title, "italic")
    (first, _), *others = _shown(table, wide)
    for row in table.rows[:count]:
        yield Text(row[first].text, STYLES[row[first].tone])
        said = [f"{column.title}: {row[place].text}" for place, column in others if row[place].text]
        yield Padding(Text("; ".join(said)), INDENT)


def _shown(table: Table, wide: bool) -> list[tuple[int, Column]]:
    """Columns with their places, those that need room only where there is some."""
    return [
        (place, column)
        for place, column in enumerate(table.columns)
        if column.shown == "always" or (wide and column.shown == "wide")
    ]


def _grid(table: Table, count: int, wide: bool) -> Grid:
    """The first `count` rows; names and prose give way where the terminal is narrow: numbers never break."""
    grid = Grid(
        title=Text(table.title, "italic") if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    columns = _shown(table, wide)
    for _, column in columns:
        grid.add_column(
            column.title.replace(" ", "\n") if column.numeric else column.title,
            justify="right" if column.numeric else "left",
            overflow="fold",
            min_width=max(map(len, column.title.split()), default=1) if column.numeric else None,
            no_wrap=column.kind not in ("code", "prose"),
        )
    for row in table.rows[:count]:
        grid.add_row(*(Text(row[place].text, STYLES[row[place].tone]) for place, _ in columns))
    return grid
