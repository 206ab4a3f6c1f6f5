"""Checks of single values: each returns the normalised value, or raises TypeError or ValueError."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields
from decimal import Decimal
from numbers import Real
from typing import Any

from onnx_dfmpc.errors import RecipeError

Check = Callable[[Any], Any]

UNITS = {"": 1, "B": 1}
UNITS |= {prefix + "B": 1000**power for power, prefix in enumerate("KMG", 1)}
UNITS |= {prefix + suffix: 1024**power for power, prefix in enumerate("KMG", 1) for suffix in ("", "IB")}


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.7) -> str:
    """Hint with the known name closest to a mistyped one, or "" where none comes near.

    Examples
    --------
    >>> nearest("low_bit", ["low_bits", "high_bits"])
    'did you mean low_bits?'
    >>> nearest("xyz", ["low_bits"])
    ''
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {matches[0]}?" if matches else ""


def require_known(keys: Iterable[object], known: Sequence[str], where: str = "") -> None:
    """Raise RecipeError for the first key that is not a known one."""
    for key in keys:
        if key not in known:
            raise RecipeError(
                f"unknown key {key!r}{where}",
                hint=nearest(str(key), known) or "known keys: " + ", ".join(known),
            )


def parse_size(size: str) -> int:
    """Bytes that text such as ``300KiB`` stands for; fractions of a byte are dropped.

    KiB, MiB, GiB and the bare letters K, M, G are powers of 1024; kB, MB, GB are powers of 1000. Case does
    not matter, nor does a space before the unit. A number without a unit is bytes.

    Raises
    ------
    RecipeError
        A text that is not a size.

    Examples
    --------
    >>> parse_size("300KiB"), parse_size("300kB"), parse_size("1.5 MB"), parse_size("2M")
    (307200, 300000, 1500000, 2097152)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", size, re.ASCII | re.IGNORECASE)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise RecipeError(
            f"{size!r} is not a size", hint="such as 300KiB (1024 bytes each), 300kB (1000), 1.5MB, or 307200"
        )
    return int(Decimal(found[1]) * unit)


def require(condition: bool) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError


def integer(low: int, high: float = math.inf) -> Check:
    """Integers from `low` to `high`."""

    def check(value: Any) -> int:
        number = operator.index(value)
        require(not isinstance(value, bool) and low <= number <= high)
        return number

    return check


def number(low: float = -math.inf, high: float = math.inf, *, below: float = math.inf) -> Check:
    """Finite numbers from `low` to `high`, less than `below`."""

    def check(value: Any) -> float:
        require(isinstance(value, Real) and not isinstance(value, bool))
        number = float(value)
        require(math.isfinite(number) and low <= number <= high and number < below)
        return number

    return check


def size(value: Any) -> int:
    """Bytes, as an integer or as text."""
    found: int = integer(1)(parse_size(value) if isinstance(value, str) else value)
    return found


def flag(value: Any) -> bool:
    """True or False and nothing like them."""
    require(isinstance(value, bool))
    return bool(value)


def path(value: Any) -> str:
    """Path of a file, as text."""
    found = os.fspath(value)
    require(isinstance(found, str) and found != "")
    return str(found)


def text(value: Any) -> str:
    """Text, empty or not."""
    require(isinstance(value, str))
    return str(value)


def name(value: Any) -> str:
    """A name that is not empty."""
    require(isinstance(value, str) and value != "")
    return str(value)


def names(value: Any) -> tuple[str, ...]:
    """Names, but not the letters of a single one."""
    require(not isinstance(value, str))
    return tuple(name(item) for item in value)


def regex(value: Any) -> str:
    """A regular expression, as text."""
    try:
        re.compile(text(value))
    except re.error as error:
        raise RecipeError(f"{value!r} is not a regular expression: {error}") from None
    return str(value)


def interval(value: Any) -> tuple[float, float]:
    """Two finite numbers, the smaller one first."""
    low, high = value
    found = (number()(low), number()(high))
    require(found[0] < found[1])
    return found


def shapes(value: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Shapes by name: a mapping, or a list of pairs."""
    require(not isinstance(value, str))
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((name(key), tuple(integer(1)(size) for size in shape)) for key, shape in pairs)


def choice(*allowed: str) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        require(value in allowed)
        return str(value)

    return check


def knob(default: Any, allowed: str, check: Check) -> Any:
    """Dataclass field that knows its check, and says in words what is allowed."""
    return field(default=default, metadata={"allowed": allowed, "check": check})


def bits_knob(default: int | None) -> Any:
    """Bits of a layer."""
    return knob(default, "an integer from 2 to 8", integer(2, 8))


def choice_knob(default: str | None, *allowed: str) -> Any:
    """One of some words."""
    return knob(default, "one of " + ", ".join(allowed), choice(*allowed))


def check_knobs(recipe: Any) -> None:
    """Check and normalise every knob of a frozen dataclass, in place: for its ``__post_init__``.

    Raises
    ------
    RecipeError
        A value that is not allowed; None only where it is the default.
    """
    for key in fields(recipe):
        value = getattr(recipe, key.name)
        if value is None and key.default is None:
            continue
        try:
            object.__setattr__(recipe, key.name, key.metadata["check"](value))
        except RecipeError as error:
            raise RecipeError(f"{key.name}: {error}", hint=error.hint) from None
        except (TypeError, ValueError):
            raise RecipeError(f"{key.name} = {value!r}: expected {key.metadata['allowed']}") from None
