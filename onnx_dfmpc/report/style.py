"""How tables in a terminal look: plain, narrow, and numbers that never break."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NONE = "-"
PROSE = ("reason", "why")


def new_table(title: str, *columns: str, right: Iterable[str] = ()) -> Table:
    """Table whose first column and prose give way where the terminal is narrow: numbers never break."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        wraps = column == columns[0] or column in PROSE
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=not wraps
        )
    return table


def section(*parts: RenderableType) -> Padding:
    """Parts with an empty line in front."""
    return Padding(Group(*parts), (1, 0, 0, 0))


def number(value: float | None, digits: int) -> str:
    """Number with so many digits; infinite decibels in words."""
    if value is None:
        return NONE
    return f"{value:.{digits}f}" if math.isfinite(value) else ("same" if value > 0 else "no signal")


def small(value: float | None) -> str:
    """Three significant digits."""
    return NONE if value is None else f"{value:.3g}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def line_to_paste(text: str) -> Text:
    """Text that stays on one line, however narrow the terminal."""
    return Text(text, no_wrap=True, overflow="ignore")
