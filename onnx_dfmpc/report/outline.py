"""What a report says, without saying how it looks: sections of tables, lines, code and charts, and numbers as
a reader wants them. Where a number does not exist, its text is empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
Tone = Literal["", "good", "bad", "warn", "muted"]
Number = int | float | None


@dataclass(frozen=True)
class Cell:
    """Content of a table: its text, the number to sort by, and how to take it."""

    text: str
    value: float | None = None
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """Head of a column. `kind` is what stands below it: a few words, numbers to compare, bits, prose that
    wraps, something to copy. A terminal shows ``"wide"`` columns where it is wide, ``"page"`` columns never.
    """

    title: str
    kind: Literal["text", "number", "bits", "prose", "code"] = "text"
    shown: Literal["always", "wide", "page"] = "always"

    @property
    def numeric(self) -> bool:
        """Whether numbers stand below it."""
        return self.kind in ("number", "bits")


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. A `long` one is worth sorting and filtering; of a `ranked` one the first
    rows say most.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    long: bool = False
    ranked: bool = False


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
    """A chapter. Markdown shows a `folded` one on demand; an `appendix` is folded too, and a terminal leaves
    it out unless it is wide.
    """

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False
    appendix: bool = False


@dataclass(frozen=True)
class Outline:
    """A whole report."""

    title: str
    subtitle: str
    verdict: Verdict
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]
    footer: str


def section(
    title: str, *blocks: Block | None, folded: bool = False, appendix: bool = False
) -> tuple[Section, ...]:
    """A section of the blocks that are not None; no section where all are.

    Examples
    --------
    >>> section("Notes", None)
    ()
    """
    kept = tuple(block for block in blocks if block is not None)
    return (Section(title, kept, folded or appendix, appendix),) if kept else ()


@dataclass(frozen=True)
class Rows(Generic[T]):
    """Things that become the rows of a table."""

    things: Sequence[T]

    def table(
        self,
        *columns: tuple[Column, Callable[[T], Cell]],
        title: str = "",
        long: bool = False,
        ranked: bool = False,
    ) -> Table | None:
        """A table of columns, each with what makes a cell of a thing; empty columns are left out. None
        without rows.

        Examples
        --------
        >>> table = Rows(["a", "b"]).table((Column("name"), Cell), (Column("KL"), lambda _: Cell("")))
        >>> [column.title for column in table.columns]
        ['name']
        """
        if not self.things:
            return None
        cells = [(column, [make(thing) for thing in self.things]) for column, make in columns]
        kept = [(column, below) for column, below in cells if any(cell.text for cell in below)]
        rows = zip(*(below for _, below in kept), strict=True)
        return Table(tuple(column for column, _ in kept), tuple(rows), title, long, ranked)


# ----------------------------------------------------------------------------
# numbers as text


def cell(show: Callable[[Number], str], value: Number, tone: Tone = "") -> Cell:
    """A number as a cell that sorts by it."""
    return Cell(show(value), None if value is None else float(value), tone)


def size(count: Number) -> str:
    """Bytes with three significant digits.

    Examples
    --------
    >>> size(409_600), size(3_492_068), size(12)
    ('410 kB', '3.49 MB', '12 bytes')
    """
    if count is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= 0.9995 * factor:
            value = count / factor
            return f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f} {unit}"
    return plural(int(count), "byte")


def whole(count: Number) -> str:
    """Number with its thousands apart."""
    return "" if count is None else f"{count:,.0f}"


def width(bits: Number) -> str:
    """Bits of a code.

    Examples
    --------
    >>> width(2), width(2.58)
    ('2', '2.58')
    """
    return "" if bits is None else f"{bits:g}"


def plural(count: int, what: str) -> str:
    """Count of things.

    Examples
    --------
    >>> plural(1, "layer"), plural(1017, "layer")
    ('1 layer', '1,017 layers')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def fixed(digits: int) -> Callable[[Number], str]:
    """Format with `digits` after the point."""
    return lambda value: "" if value is None else f"{value:.{digits}f}"


def signed(digits: int, unit: str = "") -> Callable[[Number], str]:
    """Format with `digits` after the point, a sign, thousands apart, a proper minus, and no negative zero.

    Examples
    --------
    >>> signed(1)(-1.25), signed(1)(0.5), signed(1)(-0.01), signed(0, " bytes")(1234)
    ('−1.2', '+0.5', '0.0', '+1,234 bytes')
    """

    def show(value: Number) -> str:
        if value is None:
            return ""
        text = f"{value:+,.{digits}f}"
        zero = not text.strip("+-0.")
        return (text[1:] if zero else text.replace("-", "−")) + unit

    return show


def short(value: Number) -> str:
    """Three significant digits."""
    return "" if value is None else f"{value:.3g}"


def percent(digits: int = 1) -> Callable[[Number], str]:
    """Format of a fraction.

    Examples
    --------
    >>> percent()(0.9163)
    '91.6 %'
    """
    return lambda share: "" if share is None else f"{100 * share:.{digits}f} %"


def decibels(value: Number) -> str:
    """Decibels with their unit."""
    return "" if value is None else f"{value:.1f} dB"


def interval(low: Number, high: Number) -> str:
    """Both ends, where both are known.

    Examples
    --------
    >>> interval(20.94, 30.1), interval(None, None)
    ('20.9 to 30.1', '')
    """
    return "" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def seconds(value: Number) -> str:
    """A time in the unit that fits it.

    Examples
    --------
    >>> seconds(0.00213), seconds(12.34), seconds(0.0001)
    ('2.13 ms', '12.3 s', '100 µs')
    """
    if value is None:
        return ""
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
    return f"{value * factor:.3g} {unit}"


def plain(value: Any) -> str:
    """Value of a recipe, as text or as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shape(numbers: Sequence[int]) -> str:
    """Shape of a tensor."""
    return "×".join(map(str, numbers))
