"""What a report says, without saying how it looks: the same outline becomes a terminal's tables, Markdown or
a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["", "good", "bad", "warn", "muted"]


@dataclass(frozen=True)
class Cell:
    """Content of a table: the text, the number to sort by, and how to take it."""

    text: str
    value: float | None = None
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """Head of a column; `kind` says what stands below it: a few words, numbers to compare, bits, prose that
    wraps, something to copy.
    """

    title: str
    kind: Literal["text", "number", "bits", "prose", "code"] = "text"

    @property
    def numeric(self) -> bool:
        """Whether numbers stand below it."""
        return self.kind in ("number", "bits")


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; a `long` one is worth sorting and filtering."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    long: bool = False


@dataclass(frozen=True)
class Line:
    """A sentence."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Code:
    """Text to copy, such as a command."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, what it shows in words, and what helps to read it. Only a page draws it."""

    title: str
    description: str
    spec: dict[str, Any]
    note: str = ""


Block = Table | Line | Code | Chart


@dataclass(frozen=True)
class Figure:
    """A number that the reader should see first."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Verdict:
    """The answer in a word and a sentence."""

    word: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Section:
    """A chapter; a `folded` one is for those who look for it."""

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False


@dataclass(frozen=True)
class Outline:
    """A whole report."""

    title: str
    subtitle: str
    verdict: Verdict
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]
    footer: str


def section(title: str, *blocks: Block | None, folded: bool = False) -> tuple[Section, ...]:
    """A section of the blocks that there are; none where there are none.

    Examples
    --------
    >>> section("Notes", None)
    ()
    """
    kept = tuple(block for block in blocks if block is not None)
    return (Section(title, kept, folded),) if kept else ()


def table(
    columns: tuple[Column, ...], rows: tuple[tuple[Cell, ...], ...], title: str = "", *, long: bool = False
) -> Table | None:
    """A table without the columns that no row has anything in; None without rows.

    Examples
    --------
    >>> found = table((Column("name"), Column("KL")), ((Cell("y"), Cell("")),))
    >>> [column.title for column in found.columns]
    ['name']
    """
    if not rows:
        return None
    filled = zip(columns, zip(*rows, strict=True), strict=True)
    kept = [position for position, (_, cells) in enumerate(filled) if any(cell.text for cell in cells)]
    return Table(
        tuple(columns[position] for position in kept),
        tuple(tuple(row[position] for position in kept) for row in rows),
        title,
        long,
    )
