"""Kinds of single values: their checks, and the dataclass fields that carry them.

A check returns the normalised value, or raises TypeError or ValueError.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.spec.widths import LEVELS, WIDTHS_IN_WORDS

Check = Callable[[Any], Any]

UNITS = {"": 1, "B": 1}
UNITS |= {prefix + "B": 1000**power for power, prefix in enumerate("KMG", 1)}
UNITS |= {prefix + suffix: 1024**power for power, prefix in enumerate("KMG", 1) for suffix in ("", "IB")}
"""Bytes of each unit, in upper case: kB is 1000, K and KiB are 1024."""


@dataclass(frozen=True)
class Value:
    """A kind of value: its check, what that allows in words, and how the command line takes it (`parse` turns
    one word into a value for `check`, the rest is argparse's, but for the action "flag", which takes no word
    and has an opposite, "--no-..."). `choices` may grow later.
    """

    check: Check
    allowed: str
    metavar: str | None = None
    parse: Callable[[str], Any] = str
    action: str = "store"
    choices: Collection[str] | None = None

    @property
    def expected(self) -> str:
        """What is allowed, in words."""
        return self.allowed or "one of " + ", ".join(self.choices or ())


def setting(value: Value, default: Any, flag: str = "", about: str = "") -> Any:
    """Dataclass field of a kind of value, with its flag and that flag's help; a callable default is a
    factory.
    """
    metadata = {"value": value, "flag": flag, "help": about}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def settings(group: type) -> dict[str, Field[Any]]:
    """Fields of a dataclass that `setting` made, by name; those for its constructor alone (InitVar) too."""
    owners = (*group.__bases__, group)  # dataclasses have the fields of the last base first
    by_owner = [vars(owner).get("__dataclass_fields__", {}) for owner in owners]
    return {name: key for keys in by_owner for name, key in keys.items() if "value" in key.metadata}


def checked(key: Field[Any], given: Any) -> Any:
    """Normalised value of a field, or a RecipeError; None is allowed only where it is the default."""
    if given is None and key.default is None:
        return None
    value: Value = key.metadata["value"]
    try:
        return value.check(given)
    except RecipeError as error:
        raise RecipeError(f"{key.name}: {error}", hint=error.hint) from None
    except (TypeError, ValueError, OverflowError):
        raise RecipeError(f"{key.name} = {given!r}: expected {value.expected}") from None


class Settings:
    """Base of frozen dataclasses whose fields are settings: checks and normalises them when one is made."""

    def __post_init__(self) -> None:
        for name, key in settings(type(self)).items():
            if name in vars(self):  # an InitVar is not
                object.__setattr__(self, name, checked(key, getattr(self, name)))

    def to_dict(self, *, changed_only: bool = False) -> dict[str, Any]:
        """Plain data: JSON and TOML types. What is None or empty is left out, as are arrays and functions,
        and, if asked for, what has its default.
        """
        return plain(self, type(self), changed_only=changed_only)


def from_mapping(kind: type, given: Any, where: str = "") -> Any:
    """Instance of a dataclass from a mapping with the names of its fields, or the instance itself."""
    if isinstance(given, kind):
        return given
    require(isinstance(given, Mapping))
    require_known(given, list(settings(kind)), where)
    return kind(**given)


def plain(instance: Settings, group: type, *, changed_only: bool = False) -> dict[str, Any]:
    """`Settings.to_dict`, for the fields of one group alone."""
    kept = {}
    for name, key in settings(group).items():
        item = _plain(vars(instance).get(name))  # an InitVar is no attribute
        default = key.default if key.default_factory is MISSING else key.default_factory()
        if item not in (None, [], {}) and not (changed_only and item == _plain(default)):
            kept[name] = item
    return kept


def _plain(value: Any) -> Any:
    """Value as JSON types, or None: arrays and functions have no such form."""
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        return None if None in items.values() else items
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Settings):
        return value.to_dict(changed_only=True)
    return value if isinstance(value, str | int | float) else None


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.7) -> str:
    """Hint with the known name closest to a mistyped one, or "" where none comes near.

    >>> nearest("low_bit", ["low_bits", "high_bits"])
    'did you mean low_bits?'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {matches[0]}?" if matches else ""


def require_known(keys: Iterable[object], known: Sequence[str], where: str = "") -> None:
    """Raise RecipeError for the first key that is not a known one."""
    for key in keys:
        if key not in known:
            hint = nearest(str(key), known) or "known keys: " + ", ".join(known)
            raise RecipeError(f"unknown key {key!r}{where}", hint=hint)


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


def bits(value: Any) -> float:
    """Nominal bits of a code."""
    width = number()(value)
    if 2 < width < 8 and width not in LEVELS:
        hint = f"--target-bits {width:g} (target_bits) makes that the mean of all"
        raise RecipeError(f"a layer has {WIDTHS_IN_WORDS} bits, not {width:g}", hint=hint)
    require(width in LEVELS and not (isinstance(value, float) and width.is_integer()))
    return int(width) if width.is_integer() else width


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Check:
    """Finite numbers from `low` to `high`, more than `above` and less than `below`."""

    def check(value: Any) -> float:
        require(isinstance(value, Real) and not isinstance(value, bool))
        number = float(value)
        require(math.isfinite(number) and low <= number <= high and above < number < below)
        return number

    return check


def choice(allowed: Collection[str]) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        require(isinstance(value, str) and value in allowed)
        return str(value)

    return check


def size(value: Any) -> int:
    """Bytes, as an integer or as text."""
    count: int = integer(1)(parse_size(value) if isinstance(value, str) else value)
    return count


def parse_size(size: str) -> int:
    """Bytes that text stands for: KiB, MiB, GiB and the letters K, M, G are powers of 1024; kB, MB, GB are
    powers of 1000. Fractions of a byte are dropped. Case and a space before the unit do not matter.

    >>> parse_size("300KiB"), parse_size("300kB"), parse_size("1.5 MB"), parse_size("2M")
    (307200, 300000, 1500000, 2097152)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", size, re.ASCII | re.IGNORECASE)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise RecipeError(
            f"{size!r} is not a size", hint="such as 300KiB (1024 bytes each), 300kB (1000), 1.5MB, or 307200"
        )
    return int(Decimal(match[1]) * unit)  # not a float: 0.29 kB are 290 bytes, 0.29 * 1000 is less


def flag(value: Any) -> bool:
    """True or False and nothing like them."""
    require(isinstance(value, bool))
    return bool(value)


def text(value: Any) -> str:
    """Text, empty or not."""
    require(isinstance(value, str))
    return str(value)


def name(value: Any) -> str:
    """Text that is not empty."""
    require(value != "")
    return text(value)


def names(value: Any) -> tuple[str, ...]:
    """Names, but not the letters of a single one."""
    require(not isinstance(value, str))
    return tuple(name(item) for item in value)


def path(value: Any) -> str:
    """Path of a file, as text."""
    return name(os.fspath(value))


def regex(value: Any) -> str:
    """A regular expression, as text."""
    try:
        re.compile(text(value))
    except re.error as error:
        raise RecipeError(f"{value!r} is not a regular expression: {error}") from None
    return str(value)


def interval(value: Any) -> tuple[float, float]:
    """Two finite numbers, the smaller one first."""
    low, high = map(number(), value)
    require(low < high)
    return low, high


def pairs(key_check: Check, value_check: Check) -> Check:
    """A mapping, or a list of pairs: as a tuple of pairs."""

    def check(value: Any) -> tuple[tuple[Any, Any], ...]:
        require(not isinstance(value, str))
        items = value.items() if isinstance(value, Mapping) else value
        return tuple((key_check(key), value_check(item)) for key, item in items)

    return check


def one_of(*choices: str, metavar: str | None = None) -> Value:
    """One of some words; with a metavar for the help where they are many."""
    return Value(choice(choices), "", metavar, choices=choices)


def named(registry: dict[str, Any], *more: str) -> Value:
    """One of some words, or a name in a registry: what is added there later counts, too."""
    names: ChainMap[str, Any] = ChainMap(registry, dict.fromkeys(more))  # a view of both; `more` come first
    return Value(choice(names), "", choices=names)


def real(allowed: str, *limits: float, metavar: str = "X", **more: float) -> Value:
    """Number within the limits of `number`, and these in words."""
    return Value(number(*limits, **more), allowed, metavar, float)


def count(low: int) -> Value:
    """Integer from `low` on."""
    return Value(integer(low), f"an integer, {low} or more", "N", int)


def key_value(parse: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Parser of KEY=VALUE; the key may hold "=" itself, as a regular expression does."""

    def parse_pair(word: str) -> tuple[str, Any]:
        key, separator, value = word.rpartition("=")
        require(bool(key and separator))
        return key, parse(value)

    return parse_pair


def whole_or_fraction(word: str) -> float:
    """A number; integers stay integers."""
    return int(word) if word.isdecimal() else float(word)


def numbers(word: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    return tuple(map(whole_or_fraction, word.split(",")))


def number_or_text(word: str) -> Any:
    """One number, several, or the word itself."""
    try:
        several = numbers(word)
    except ValueError:
        return word
    return several[0] if len(several) == 1 else several


BITS = Value(bits, WIDTHS_IN_WORDS, "N", whole_or_fraction)
PATH = Value(path, "the path of a file", "PATH")
