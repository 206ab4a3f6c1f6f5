"""Numbers as a reader wants them; what does not exist is an empty text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from onnx_dfmpc.report.outline import Cell, Tone

Number = int | float | None


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


def plural(count: int, what: str) -> str:
    """Count of things.

    Examples
    --------
    >>> plural(1, "layer"), plural(1017, "layer")
    ('1 layer', '1,017 layers')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def digits(value: Number, count: int) -> str:
    """So many digits behind the point."""
    return "" if value is None else f"{value:.{count}f}"


def signed(value: Number, count: int) -> str:
    """The same with a sign, a proper minus, and no negative zero.

    Examples
    --------
    >>> signed(-1.25, 1), signed(0.5, 1), signed(-0.01, 1)
    ('−1.2', '+0.5', '0.0')
    """
    if value is None:
        return ""
    text = f"{value:+.{count}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def signed_whole(value: Number) -> str:
    """Whole number with its thousands apart and a sign."""
    return "" if value is None else f"{value:+,.0f}".replace("-", "−")


def short(value: Number) -> str:
    """Three significant digits."""
    return "" if value is None else f"{value:.3g}"


def percent(share: Number, count: int = 1) -> str:
    """A fraction in percent.

    Examples
    --------
    >>> percent(0.9163)
    '91.6 %'
    """
    return "" if share is None else f"{100 * share:.{count}f} %"


def decibels(value: Number) -> str:
    """Decibels with their unit."""
    return "" if value is None else f"{value:.1f} dB"


def times(before: Number, after: Number) -> str:
    """How many times smaller (or larger) the second is.

    Examples
    --------
    >>> times(1000, 250), times(100, 200)
    ('4.0 times smaller', '2.0 times larger')
    """
    if not before or not after:
        return ""
    return f"{before / after:.1f} times smaller" if before >= after else f"{after / before:.1f} times larger"


def seconds(value: Number) -> str:
    """A time in the unit that fits it.

    Examples
    --------
    >>> seconds(0.00213), seconds(12.34)
    ('2.13 ms', '12.3 s')
    """
    if value is None:
        return ""
    return (
        f"{value:.3g} s"
        if value >= 1
        else f"{1e3 * value:.3g} ms"
        if value >= 1e-3
        else f"{1e6 * value:.3g} µs"
    )


def plain(value: Any) -> str:
    """Value of a recipe, as text or as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shape(numbers: Sequence[int] | None) -> str:
    """Shape of a tensor."""
    return "×".join(map(str, numbers or ()))


def cell(text: str, value: Number = None, tone: Tone = "") -> Cell:
    """A cell that sorts by a number."""
    return Cell(text, None if value is None else float(value), tone)
