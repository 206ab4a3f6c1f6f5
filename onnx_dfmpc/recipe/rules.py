"""Rules for single layers, and what they and the rest of a recipe leave open for every layer of a network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import values
from onnx_dfmpc.recipe.values import BITS, Settings, Value, nearest, setting
from onnx_dfmpc.spec import MatchReport

if TYPE_CHECKING:
    from onnx_dfmpc.recipe.recipe import Bits

SELECTORS = ("node", "regex", "op_type")
EFFECTS = ("bits", "min_bits", "max_bits", "exclude")

PLAIN_BITS = 8
"""Bits of weights that are rounded to nearest, unless a rule gives others: nothing repairs what fewer do."""

PLAIN_REASON = "rounded to nearest: nothing is known of what it is multiplied by"


@dataclass(frozen=True)
class Rule(Settings):
    """Bits, bounds or exclusion for the layers that exactly one selector matches.

    `node` is the name of one layer, `regex` matches anywhere in a name, `op_type` is such as "Gemm". `bits`
    fixes the layers' bits. `min_bits` and `max_bits` bound what a target gives; bits that were fixed before
    (by an earlier rule, or for the first and last layer) move to the bound. `exclude` says whether the layers
    stay float.

    >>> Rule(op_type="Gemm", min_bits=4).selects("fc", "Gemm")
    True
    """

    node: str | None = setting(Value(values.name, "the name of a layer"), None)
    regex: str | None = setting(Value(values.regex, "a regular expression"), None)
    op_type: str | None = setting(Value(values.name, "the name of an operator"), None)
    bits: float | None = setting(BITS, None)
    min_bits: float | None = setting(BITS, None)
    max_bits: float | None = setting(BITS, None)
    exclude: bool | None = setting(Value(values.flag, "true or false"), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self._given(SELECTORS)) != 1:
            raise RecipeError(
                "a rule needs exactly one of node, regex, op_type", hint="write one rule for each"
            )
        effects = self._given(EFFECTS)
        if not effects:
            raise RecipeError(
                f"the rule for {self.selector} has no effect", hint="give bits, min_bits, max_bits or exclude"
            )
        if (self.bits is not None or self.exclude) and len(effects) > 1:
            alone = "exclude" if self.exclude else "bits"
            others = " and ".join(key for key in effects if key != alone)
            raise RecipeError(f"the rule for {self.selector}: {alone} and {others} exclude each other")
        if self.min_bits is not None and self.max_bits is not None and self.min_bits > self.max_bits:
            raise RecipeError(
                f"the rule for {self.selector}: min_bits = {self.min_bits} is more than "
                f"max_bits = {self.max_bits}"
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


def rule_list(value: Any) -> tuple[Rule, ...]:
    """Check of a list of rules, or of mappings that stand for them; an error says which one it is."""
    values.require(isinstance(value, list | tuple))
    rules = []
    for position, item in enumerate(value, 1):
        try:
            rules.append(values.from_mapping(Rule, item, " in a rule"))
        except RecipeError as error:
            raise RecipeError(f"rule {position}: {error}", hint=error.hint) from None
    return tuple(rules)


@dataclass(frozen=True)
class BitBounds:
    """What a recipe leaves open for one layer: bounds on what a target may give it, equal to `bits` where
    those are fixed; whether it stays float; and why, in words, "" where everything is open.
    """

    low: float
    high: float
    bits: float | None = None
    excluded: bool = False
    reason: str = ""


def bit_bounds(matched: MatchReport, recipe: Bits) -> dict[str, BitBounds]:
    """What the recipe leaves open for every matched layer, and for every weight that is rounded to nearest,
    by name: the last rule that matches wins. A rule for no layer, and rules that leave nothing open, are a
    RecipeError.
    """
    edge = recipe.edge_bits
    bounds = {
        layer.name: BitBounds(edge, edge, edge, reason=f"the {layer.edge} layer")
        if layer.edge and edge is not None
        else BitBounds(recipe.least_bits, recipe.max_bits)
        for layer in matched.layers
    }
    by_default = BitBounds(PLAIN_BITS, PLAIN_BITS, PLAIN_BITS, reason=PLAIN_REASON)
    bounds |= {one.name: by_default for one in matched.plain}
    everything = matched.weights
    for rule in recipe.rules:
        selected = [one.name for one in everything if rule.selects(one.name, one.op_type)]
        if not selected:
            _refuse_unless_excluded_anyway(rule, matched)
        bounds |= {name: _after_rule(name, bounds[name], rule) for name in selected}
    # Integer kernels are for layers.
    return bounds | {name: _at_most(bounds[name], recipe.most_bits) for name in matched.names}


def _at_most(bound: BitBounds, most: int) -> BitBounds:
    bits = None if bound.bits is None else min(bound.bits, most)
    return replace(bound, low=min(bound.low, most), high=min(bound.high, most), bits=bits)


def _after_rule(name: str, before: BitBounds, rule: Rule) -> BitBounds:
    """Bounds of a layer after one more rule."""
    reason = f"set by {rule.selector}"
    if rule.exclude is not None:
        return replace(
            before, excluded=rule.exclude, reason=f"left out by {rule.selector}" if rule.exclude else reason
        )
    if rule.bits is not None:
        return replace(before, low=rule.bits, high=rule.bits, bits=rule.bits, reason=reason)
    if before.bits is not None:
        bits = min(max(before.bits, rule.min_bits or before.bits), rule.max_bits or before.bits)
        if bits == before.bits:
            return before
        return replace(before, low=bits, high=bits, bits=bits, reason=reason)
    low, high = rule.min_bits or before.low, rule.max_bits or before.high
    if low > high:
        raise RecipeError(
            f"layer {name!r}: {rule.selector} leaves nothing between min_bits = {low} and max_bits = {high}",
            hint="give both min_bits and max_bits in the last rule for it",
        )
    return replace(before, low=low, high=high, reason=reason)


def _refuse_unless_excluded_anyway(rule: Rule, matched: MatchReport) -> None:
    """Raise for a rule that is for no layer, unless it excludes a node that stays float anyway."""
    skipped = [node for node in matched.skipped if rule.selects(node.name, node.op_type)]
    if skipped and rule.exclude:
        return
    if skipped:
        raise RecipeError(
            f"rule for {rule.selector}: {skipped[0].name!r} stays float: {skipped[0].reason}",
            hint="leave the rule out, or exclude the node",
        )
    if rule.op_type is not None:
        present = ", ".join(sorted({one.op_type for one in matched.weights}))
        raise RecipeError(
            f"rule for {rule.selector}: no layer has this operator",
            hint=f"there are {present}" if present else "",
        )
    raise RecipeError(
        f"rule for {rule.selector} matches no layer",
        hint=nearest_layer(rule.regex or rule.node or "", matched),
    )


def nearest_layer(name: str, matched: MatchReport) -> str:
    """Hint with the layer whose name comes closest."""
    names = [one.name for one in matched.weights]
    return nearest(name, names, cutoff=0.3) or "inspect lists the layers"
