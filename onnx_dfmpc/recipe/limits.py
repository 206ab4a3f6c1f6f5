"""What a recipe leaves open for every layer of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe.checks import nearest
from onnx_dfmpc.recipe.knobs import Recipe
from onnx_dfmpc.recipe.rules import Rule
from onnx_dfmpc.spec import Layer, MatchReport


@dataclass(frozen=True)
class BitBounds:
    """What a recipe leaves open for one layer.

    Attributes
    ----------
    low, high : int
        Bounds on the bits that a target may give it; equal to `bits` where those are fixed.
    bits : int or None
        Fixed bits: of the first and the last layer, or by a rule.
    excluded : bool
        It stays float.
    reason : str
        What fixed, bounded or excluded it, in words; "" where everything is open.
    """

    low: int
    high: int
    bits: int | None = None
    excluded: bool = False
    reason: str = ""


def limits(report: MatchReport, recipe: Recipe) -> dict[str, BitBounds]:
    """What the recipe leaves open for every matched layer.

    The rules apply in order, those of ``set`` last; what a later one says wins. ``bits`` fixes a layer;
    bounds move what was fixed before.

    Parameters
    ----------
    report : MatchReport
    recipe : Recipe

    Returns
    -------
    dict of BitBounds by layer name

    Raises
    ------
    RecipeError
        A rule or a name that is for no layer, or rules that leave nothing open.
    """
    _require_known((*recipe.nodes_to_exclude, *recipe.nodes_to_quantize), report)
    chosen = set(recipe.nodes_to_quantize) or {layer.name for layer in report.layers}
    found = {layer.name: _start(layer, recipe) for layer in report.layers}
    for rule in recipe.ordered_rules:
        selected = [layer.name for layer in report.layers if rule.selects(layer.name, layer.op_type)]
        if not selected:
            _refuse(rule, report)
        found |= {name: _ruled(name, found[name], rule) for name in selected}
    for name in found:
        if name not in chosen or name in recipe.nodes_to_exclude:
            found[name] = replace(found[name], excluded=True, reason="left out by the recipe")
    return found


def _start(layer: Layer, recipe: Recipe) -> BitBounds:
    bits = recipe.edge_bits
    if layer.edge and bits is not None:
        return BitBounds(bits, bits, bits, reason=f"the {layer.edge} layer")
    return BitBounds(recipe.min_bits, recipe.max_bits)


def _ruled(name: str, before: BitBounds, rule: Rule) -> BitBounds:
    """BitBounds of a layer after one more rule."""
    reason = f"set by {rule.selector}"
    if rule.exclude is not None:
        return replace(
            before, excluded=rule.exclude, reason=f"left out by {rule.selector}" if rule.exclude else reason
        )
    if rule.bits is not None:
        return replace(before, low=rule.bits, high=rule.bits, bits=rule.bits, reason=reason)
    if before.bits is not None:
        bits = min(max(before.bits, rule.min_bits or before.bits), rule.max_bits or before.bits)
        return (
            before if bits == before.bits else replace(before, low=bits, high=bits, bits=bits, reason=reason)
        )
    low, high = rule.min_bits or before.low, rule.max_bits or before.high
    if low > high:
        raise RecipeError(
            f"layer {name!r}: {rule.selector} leaves nothing between min_bits = {low} and max_bits = {high}",
            hint="give both min_bits and max_bits in the last rule for it",
        )
    return replace(before, low=low, high=high, reason=reason)


def _require_known(names: Sequence[str], report: MatchReport) -> None:
    known = [layer.name for layer in report.layers] + [skipped.name for skipped in report.skipped]
    for name in names:
        if name not in known:
            raise RecipeError(f"no layer is named {name!r}", hint=nearest_layer(name, report))


def _refuse(rule: Rule, report: MatchReport) -> None:
    """Raise for a rule that is for no layer, unless it excludes what stays float anyway."""
    skipped = [node for node in report.skipped if rule.selects(node.name, node.op_type)]
    if skipped and rule.exclude:
        return
    if skipped:
        raise RecipeError(
            f"rule for {rule.selector}: {skipped[0].name!r} stays float: {skipped[0].reason}",
            hint="leave the rule out, or exclude the node",
        )
    if rule.op_type is not None:
        present = ", ".join(sorted({layer.op_type for layer in report.layers}))
        raise RecipeError(
            f"rule for {rule.selector}: no layer has this operator",
            hint=f"there are {present}" if present else "",
        )
    raise RecipeError(
        f"rule for {rule.selector} matches no layer",
        hint=nearest_layer(rule.regex or rule.node or "", report),
    )


def nearest_layer(name: str, report: MatchReport) -> str:
    """Hint with the layer whose name comes closest."""
    return nearest(name, [layer.name for layer in report.layers], cutoff=0.3) or "inspect lists the layers"
