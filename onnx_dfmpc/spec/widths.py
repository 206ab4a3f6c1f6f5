"""Widths of codes in nominal bits: whole ones from 2 to 8, and log2 of 3 and of 6 levels."""

from __future__ import annotations

from typing import NewType

Width = NewType("Width", float)
"""One of `WIDTHS`: an integer where it is whole."""

LEVELS: dict[float, int] = {1.58: 3, 2: 4, 2.58: 6} | {bits: 1 << bits for bits in range(3, 9)}
"""Levels of a code, by its nominal bits."""

WIDTHS = tuple(LEVELS)
"""All widths, ascending."""

WIDTHS_IN_WORDS = "1.58, 2.58, or an integer from 2 to 8"


def code_limits(bits: float, *, signed: bool) -> tuple[int, int]:
    """Lowest and highest code of a width.

    >>> code_limits(2, signed=True), code_limits(1.58, signed=True), code_limits(2.58, signed=False)
    ((-2, 1), (-1, 1), (0, 5))
    """
    low = -(LEVELS[bits] // 2) if signed else 0
    return low, low + LEVELS[bits] - 1
