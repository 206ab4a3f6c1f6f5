"""Dataclasses to JSON and back: their type hints are the schema.

Hints may be dataclasses, ``tuple``, ``Mapping``, ``Literal``, ``X | None``, ``Annotated[X, Expected(...)]``,
``Any``, and the types of JSON. The hints are the same in both directions, but JSON has neither NaN nor
infinity: where a number may be one of them, its hint is ``float | None``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import nearest
from onnx_dfmpc.spec.widths import LEVELS, WIDTHS_IN_WORDS, Width

T = TypeVar("T")

LARGEST = 1e18
"""Convention: no size, count or noise comes near it, and what is larger overflows in formats and charts."""

SHOWN_CHARACTERS = 60
"""Of a wrong value, in a message of one line."""


@dataclass(frozen=True)
class Expected:
    """What is allowed beyond the type, in words and as a test; for ``Annotated``."""

    words: str
    holds: Callable[[Any], bool]


@overload
def to_json(value: Mapping[str, Any]) -> dict[str, Any]: ...
@overload
def to_json(value: Any) -> Any: ...
def to_json(value: Any) -> Any:
    """Plain data for JSON: objects, lists, text, numbers; a number that JSON does not have becomes null.

    Examples
    --------
    >>> to_json({"sqnr_db": float("inf"), "shape": (8, 3)})
    {'sqnr_db': None, 'shape': [8, 3]}
    """
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(kind: type[T], data: Any, where: str) -> T:
    """An instance of a dataclass from plain data; `where` begins every message, such as the name of a file.

    Keys that the class does not have are passed over, since another version may write them; a class with an
    attribute ``other_keys`` passes over those alone.

    Raises
    ------
    RecipeError
        A wrong value, a missing key, or an unknown one, with its place and what is expected there.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected an object")
    hints = _hints(kind)  # type: ignore[arg-type]
    other_keys = getattr(kind, "other_keys", data)
    for key in data:
        if key not in hints and key not in other_keys:
            hint = nearest(str(key), hints) or "known keys: " + ", ".join(hints)
            raise RecipeError(f"{where}: unknown key {key!r}", hint=hint)
    values = {key: _value(hint, data[key], where, key) for key, hint in hints.items() if key in data}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"{where}: there is no {field.name}")
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _value(hint: Any, data: Any, where: str, key: str) -> Any:
    """Data as its hint says."""
    inner = [part for part in get_args(hint) if part is not NoneType]
    optional = get_origin(hint) in (Union, UnionType) and len(inner) == 1
    if optional:
        if data is None:
            return None
        (hint,) = inner

    def require(fits: bool, expected: str) -> None:
        if not fits:
            _refuse(where, key, data, expected + (", or null" if optional else ""))

    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        require(isinstance(data, Mapping), "an object")
        return from_json(hint, data, f"{where}: {key}")  # type: ignore[arg-type]
    if origin is tuple:
        require(isinstance(data, list | tuple), "a list")
        return tuple(_items(args, data, where, key))
    if origin is Mapping:
        require(isinstance(data, Mapping), "an object")
        return {name: _value(args[1], item, where, f"{key}.{name}") for name, item in data.items()}
    if origin is Literal:
        require(data in args, "one of " + ", ".join(map(str, args)))
        return data
    if hint is Any:
        return data
    kind, expected = args if origin is Annotated else (hint, None)
    words, fits = SCALARS[kind]
    require(
        fits(data) and (expected is None or expected.holds(data)),
        words if expected is None else expected.words,
    )
    return float(data) if kind is float else data


def _items(args: tuple[Any, ...], data: Sequence[Any], where: str, key: str) -> Iterator[Any]:
    """Items of a list, each named by its position and, where it has one, its name."""
    hints = (args[0],) * len(data) if args[-1] is ... else args
    if len(hints) != len(data):
        _refuse(where, key, data, f"a list of {len(hints)}")
    for position, (hint, item) in enumerate(zip(hints, data, strict=True), 1):
        if is_dataclass(hint):
            name = item.get("name") if isinstance(item, Mapping) else None
            row = f"{where}: {key}, row {position}" + (f" ({name})" if isinstance(name, str) and name else "")
            yield from_json(hint, item, row)  # type: ignore[arg-type]
        else:
            yield _value(hint, item, where, f"{key}[{position}]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


SCALARS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("an integer", lambda value: isinstance(value, int) and _is_number(value)),
    float: ("a number", _is_number),
    str: ("text", lambda value: isinstance(value, str)),
    Width: (
        WIDTHS_IN_WORDS,
        lambda value: _is_number(value) and value in LEVELS and (isinstance(value, int) or value % 1 > 0),
    ),
}


def _refuse(where: str, key: str, value: Any, expected: str) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."
    raise RecipeError(" ".join(f"{where}: {key} = {shown}: expected {expected}".split()))


def read_json(path: str | os.PathLike[str], hint: str, what: str = "file") -> Any:
    """Content of a JSON file; `hint` says how to make one.

    Raises
    ------
    RecipeError
        A file that cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {what}", hint=hint) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = "" if isinstance(error, UnicodeDecodeError) else f": {error}"
        raise RecipeError(f"{path}: not a JSON file{reason}", hint=hint) from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
