"""Every knob of a quantization run in one frozen dataclass, to and from dict and TOML.

A recipe is checked when it is made: an unknown key or a bad value is a `RecipeError` that names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from onnx_dfmpc.errors import RecipeError

__all__ = ["Recipe", "nearest"]

LOW_BITS, HIGH_BITS = 3, 6
PATH_KEYS = ("calibration_data", "data", "labels")
GATE_KEYS = ("min_cosine", "min_sqnr_db", "max_top1_drop", "min_top1_agreement")

Check = Callable[[Any], Any]


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint with the known name closest to a mistyped one, or "" where none comes near.

    Examples
    --------
    >>> nearest("low_bit", ["low_bits", "high_bits"])
    'did you mean low_bits?'
    >>> nearest("xyz", ["low_bits"])
    ''
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"did you mean {matches[0]}?" if matches else ""


def _knob(default: Any, allowed: str, check: Check) -> Any:
    """Dataclass field with its check: it returns the normalised value, or raises TypeError or ValueError."""
    return field(default=default, metadata={"allowed": allowed, "check": check})


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _integer(low: int, high: float = math.inf) -> Check:
    def check(value: Any) -> int:
        number = operator.index(value)
        _require(not isinstance(value, bool) and low <= number <= high)
        return number

    return check


def _number(low: float = -math.inf, high: float = math.inf, *, below: float = math.inf) -> Check:
    def check(value: Any) -> float:
        _require(isinstance(value, Real) and not isinstance(value, bool))
        number = float(value)
        _require(math.isfinite(number) and low <= number <= high and number < below)
        return number

    return check


def _flag(value: Any) -> bool:
    _require(isinstance(value, bool))
    return bool(value)


def _path(value: Any) -> str:
    path = os.fspath(value)
    _require(isinstance(path, str) and path != "")
    return str(path)


def _names(value: Any) -> tuple[str, ...]:
    _require(not isinstance(value, str))
    names = tuple(value)
    _require(all(isinstance(name, str) and name for name in names))
    return names


def _rules(value: Any) -> tuple[tuple[str, int], ...]:
    _require(not isinstance(value, str))
    rules = []
    for pattern, bits in value.items() if isinstance(value, Mapping) else value:
        _require(isinstance(pattern, str))
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(f"set: {pattern!r} is not a regular expression: {error}") from None
        rules.append((pattern, _integer(2, 8)(bits)))
    return tuple(rules)


def _interval(value: Any) -> tuple[float, float]:
    low, high = value
    interval = (_number()(low), _number()(high))
    _require(interval[0] < interval[1])
    return interval


def _bits_knob(default: int | None) -> Any:
    return _knob(default, "an integer from 2 to 8", _integer(2, 8))


def _choice_knob(default: str | None, *names: str) -> Any:
    def check(value: Any) -> str:
        _require(value in names)
        return str(value)

    return _knob(default, "one of " + ", ".join(names), check)


def _flag_knob(default: bool) -> Any:
    return _knob(default, "true or false", _flag)


def _path_knob() -> Any:
    return _knob(None, "the path of a file", _path)


def _names_knob() -> Any:
    return _knob((), "a list of node names", _names)


@dataclass(frozen=True)
class Recipe:
    """What to do to a model. Every default is the recommended value.

    Attributes
    ----------
    low_bits, high_bits : int
        Bits of the two layers of a pair, 2 to 8. Where one is not given it is 3 or 6. Both are None when `bits` is given.
    bits : int or None
        The same bits for every inner layer; excludes `low_bits` and `high_bits`.
    low_position : {"auto", "first", "second"}
        Which layer of a pair takes the low bits.
    first_last_bits : int
        Bits of the first and the last layer of the network.
    set : tuple of (str, int)
        Regular expressions on layer names and the bits they give; the last match wins. A mapping is accepted too.
    nodes_to_exclude, nodes_to_quantize : tuple of str
        Node names that stay float; the only nodes to quantize (empty: all).
    method : {"dfmpc", "paper"}
        The default method, or the paper's as written: per tensor, ternary or symmetric.
    lambda1, lambda2 : float
        Weights of the bias term and of the size of c in L(c); at least 0.
    absorb : {"producer", "consumer"}
        Which side of the chain takes the coefficients.
    rounding : {"nearest", "squant", "covariance"} or None
        How weights are rounded; None is the method's own.
    compensate, bias_correction : bool
        Switches for the coefficients c and for the re-estimated batch-norm mean.
    statistics : {"auto", "analytic", "probe", "calibration"}
        Where the mean and covariance of a layer's input come from.
    calibration_data : str or None
        Path of an .npz with real inputs for ``statistics="calibration"``.
    data, labels : str or None
        Paths of validation inputs and labels; None validates on synthetic inputs.
    input_range : (float, float) or None
        Range of synthetic inputs, such as (0, 255).
    samples : int or None
        Number of validation samples; None takes all of `data`, or a default number of synthetic ones.
    seed : int
        Seed of everything random.
    min_cosine, min_sqnr_db, max_top1_drop, min_top1_agreement : float or None
        Gates on the validation; shares are fractions (0.01 is one percentage point).

    Raises
    ------
    RecipeError
        A value that is not allowed, or values that exclude each other.

    Examples
    --------
    >>> recipe = Recipe(low_bits=2)
    >>> recipe.low_bits, recipe.high_bits
    (2, 6)
    """

    low_bits: int | None = _bits_knob(None)
    high_bits: int | None = _bits_knob(None)
    bits: int | None = _bits_knob(None)
    low_position: Literal["auto", "first", "second"] = _choice_knob("auto", "auto", "first", "second")
    first_last_bits: int = _bits_knob(8)
    set: tuple[tuple[str, int], ...] = _knob((), "regular expressions with bits from 2 to 8", _rules)
    nodes_to_exclude: tuple[str, ...] = _names_knob()
    nodes_to_quantize: tuple[str, ...] = _names_knob()
    method: Literal["dfmpc", "paper"] = _choice_knob("dfmpc", "dfmpc", "paper")
    lambda1: float = _knob(0.5, "a number, 0 or more", _number(0))
    lambda2: float = _knob(0.0, "a number, 0 or more", _number(0))
    absorb: Literal["producer", "consumer"] = _choice_knob("producer", "producer", "consumer")
    rounding: Literal["nearest", "squant", "covariance"] | None = _choice_knob(None, "nearest", "squant", "covariance")
    compensate: bool = _flag_knob(True)
    bias_correction: bool = _flag_knob(True)
    statistics: Literal["auto", "analytic", "probe", "calibration"] = _choice_knob("auto", "auto", "analytic", "probe", "calibration")
    calibration_data: str | None = _path_knob()
    data: str | None = _path_knob()
    labels: str | None = _path_knob()
    input_range: tuple[float, float] | None = _knob(None, "two numbers, the smaller one first", _interval)
    samples: int | None = _knob(None, "an integer, 1 or more", _integer(1))
    seed: int = _knob(0, "an integer, 0 or more", _integer(0))
    min_cosine: float | None = _knob(None, "a number from -1 to 1", _number(-1, 1))
    min_sqnr_db: float | None = _knob(None, "a number of decibels", _number())
    max_top1_drop: float | None = _knob(None, "a fraction from 0 to below 1 (0.01 is one percentage point)", _number(0, below=1))
    min_top1_agreement: float | None = _knob(None, "a fraction from 0 to 1 (0.98 is 98 %)", _number(0, 1))

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = getattr(self, knob.name)
            if value is None and knob.default is None:
                continue
            try:
                object.__setattr__(self, knob.name, knob.metadata["check"](value))
            except (TypeError, ValueError):
                raise RecipeError(f"{knob.name} = {value!r}: expected {knob.metadata['allowed']}") from None
        self._settle_bits()
        self._settle_statistics()

    def _settle_bits(self) -> None:
        paired = {key: value for key, value in (("low_bits", self.low_bits), ("high_bits", self.high_bits)) if value is not None}
        if self.bits is not None:
            if paired:
                raise RecipeError(
                    f"bits = {self.bits} and {' and '.join(f'{key} = {value}' for key, value in paired.items())} exclude each other",
                    hint="give bits for the same bits everywhere, or low_bits and high_bits for pairs",
                )
            return
        low, high = paired.get("low_bits", LOW_BITS), paired.get("high_bits", HIGH_BITS)
        if low > high:
            raise RecipeError(
                f"low_bits = {low} is more than high_bits = {high}" + ("" if len(paired) == 2 else " (one of them by default)"),
                hint="give both low_bits and high_bits, or bits for the same bits everywhere",
            )
        object.__setattr__(self, "low_bits", low)
        object.__setattr__(self, "high_bits", high)

    def _settle_statistics(self) -> None:
        if self.statistics == "calibration" and self.calibration_data is None:
            raise RecipeError("statistics = 'calibration' needs calibration_data", hint="name an .npz with real inputs")
        if self.calibration_data is not None and self.statistics not in ("auto", "calibration"):
            raise RecipeError(
                f"calibration_data is not used with statistics = {self.statistics!r}",
                hint="leave one of them out, or choose statistics = 'calibration'",
            )

    @property
    def gates(self) -> dict[str, float]:
        """The validation gates that are set, by name."""
        return {key: getattr(self, key) for key in GATE_KEYS if getattr(self, key) is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Recipe from plain data.

        Parameters
        ----------
        values : mapping
            Attribute names and values; what is missing takes its default.

        Returns
        -------
        Recipe

        Raises
        ------
        RecipeError
            An unknown key (with the nearest known one as a hint) or a bad value.

        Examples
        --------
        >>> Recipe.from_dict({"bits": 4}).bits
        4
        >>> Recipe.from_dict({"bit": 4})
        Traceback (most recent call last):
        ...
        onnx_dfmpc.errors.RecipeError: unknown key 'bit'
        """
        known = [knob.name for knob in fields(cls)]
        for key in values:
            if key not in known:
                raise RecipeError(f"unknown key {key!r}", hint=nearest(key, known) or "known keys: " + ", ".join(known))
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Recipe from a TOML file of ``key = value`` lines.

        Parameters
        ----------
        path : path
            The file. Paths inside it are relative to it.
        overrides : mapping, optional
            Values that win over the file's. Bits of one kind (uniform or paired) replace those of the other, and ``set`` is added behind
            the file's, so that it wins.

        Returns
        -------
        Recipe

        Raises
        ------
        RecipeError
            A file that cannot be read, is not TOML, or holds an unknown key or a bad value.
        """
        overrides = dict(overrides or {})
        values = _read_toml(Path(path))
        if "bits" in overrides:
            values = {key: value for key, value in values.items() if key not in ("low_bits", "high_bits")}
        if "low_bits" in overrides or "high_bits" in overrides:
            values.pop("bits", None)
        try:
            base = cls.from_dict(values).to_dict() if values else {}
            overrides["set"] = [*base.get("set", ()), *overrides.get("set", ())]
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}", hint=error.hint) from None
        return cls.from_dict(values | overrides)

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON and TOML types only) that `from_dict` turns back into an equal recipe; keys without a value are left out."""
        plain: dict[str, Any] = {}
        for knob in fields(self):
            value = getattr(self, knob.name)
            if isinstance(value, tuple):
                value = [list(item) if isinstance(item, tuple) else item for item in value]
            if value is not None:
                plain[knob.name] = value
        return plain


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from None
    for key in PATH_KEYS:
        if isinstance(values.get(key), str) and values[key]:
            values[key] = str(path.parent / values[key])
    return values
