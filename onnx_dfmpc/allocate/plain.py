"""Bits of the weights that are rounded to nearest: no budget asks what they cost, since nobody knows."""

from __future__ import annotations

from onnx_dfmpc.recipe import Recipe, bit_bounds
from onnx_dfmpc.spec import LayerPlan, MatchReport


def plain_plans(matched: MatchReport, recipe: Recipe) -> tuple[LayerPlan, ...]:
    """Plans of these weights, 8 bits unless a rule says otherwise; the excluded ones have none."""
    bounds = bit_bounds(matched, recipe)
    return tuple(
        LayerPlan(one.name, bound.low, "plain", "symmetric", "nearest", per_channel=True, reason=bound.reason)
        for one in matched.plain
        if not (bound := bounds[one.name]).excluded
    )
