"""Rules: bits, bounds or exclusion for the layers that a selector finds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import checks
from onnx_dfmpc.recipe.checks import bits_knob, knob

SELECTORS = ("node", "regex", "op_type")
EFFECTS = ("bits", "min_bits", "max_bits", "exclude")


@dataclass(frozen=True)
class Rule:
    """Bits, bounds or exclusion for the layers that exactly one selector finds.

    Attributes
    ----------
    node : str or None
        The name of one layer.
    regex : str or None
        Found anywhere in a layer's name.
    op_type : str or None
        Such as "Gemm".
    bits : int or None
        Exactly these bits; excludes `min_bits` and `max_bits`.
    min_bits, max_bits : int or None
        Bounds on what a target gives; bits that were fixed before (by an earlier rule, or for the first and
        last layer) move to the bound.
    exclude : bool or None
        Whether the layers stay float.

    Raises
    ------
    RecipeError
        No selector or several, nothing to do, or a value that is not allowed.

    Examples
    --------
    >>> Rule(op_type="Gemm", min_bits=4).selects("fc", "Gemm")
    True
    """

    node: str | None = knob(None, "the name of a layer", checks.name)
    regex: str | None = knob(None, "a regular expression", checks.regex)
    op_type: str | None = knob(None, "the name of an operator", checks.name)
    bits: int | None = bits_knob(None)
    min_bits: int | None = bits_knob(None)
    max_bits: int | None = bits_knob(None)
    exclude: bool | None = knob(None, "true or false", checks.flag)

    def __post_init__(self) -> None:
        checks.check_knobs(self)
        if len(self._given(SELECTORS)) != 1:
            raise RecipeError(
                "a rule needs exactly one of node, regex, op_type", hint="write one rule for each"
            )
        given = self._given(EFFECTS)
        if not given:
            raise RecipeError(
                f"the rule for {self.selector} says nothing", hint="give bits, min_bits, max_bits or exclude"
            )
        if (self.bits is not None or self.exclude) and len(given) > 1:
            one = "exclude" if self.exclude else "bits"
            raise RecipeError(
                f"the rule for {self.selector}: {one} and {' and '.join(key for key in given if key != one)} exclude each other"
            )
        if self.min_bits is not None and self.max_bits is not None and self.min_bits > self.max_bits:
            raise RecipeError(
                f"the rule for {self.selector}: min_bits = {self.min_bits} is more than max_bits = {self.max_bits}"
            )

    def _given(self, keys: tuple[str, ...]) -> list[str]:
        return [key for key in keys if getattr(self, key) is not None]

    @property
    def selector(self) -> str:
        """The selector, for a message."""
        key = self._given(SELECTORS)[0]
        return repr(self.regex) if key == "regex" else f"{key} {getattr(self, key)!r}"

    def selects(self, name: str, op_type: str) -> bool:
        """Whether the rule is for a layer of this name and operator."""
        if self.regex is not None:
            return re.search(self.regex, name) is not None
        return name == self.node if self.node is not None else op_type == self.op_type

    def to_dict(self) -> dict[str, Any]:
        """Plain data; keys without a value are left out."""
        return {key: getattr(self, key) for key in self._given(SELECTORS + EFFECTS)}


def rule_from(value: Rule | Mapping[str, Any]) -> Rule:
    """Rule from plain data.

    Raises
    ------
    RecipeError
        An unknown key, or a bad value.
    """
    if isinstance(value, Rule):
        return value
    checks.require(isinstance(value, Mapping))
    checks.require_known(value, SELECTORS + EFFECTS, " in a rule")
    return Rule(**value)


def rule_list(value: Any) -> tuple[Rule, ...]:
    """Check of a list of rules; an error says which one it is."""
    checks.require(not isinstance(value, str | Mapping))
    found = []
    for position, item in enumerate(value, 1):
        try:
            found.append(rule_from(item))
        except RecipeError as error:
            raise RecipeError(f"rule {position}: {error}", hint=error.hint) from None
    return tuple(found)


def shorthand(value: Any) -> tuple[tuple[str, int], ...]:
    """Check of pairs of a regular expression and the bits it gives."""
    checks.require(not isinstance(value, str))
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((checks.regex(pattern), checks.integer(2, 8)(bits)) for pattern, bits in pairs)
