"""A target to a plan: the widths that a cost table makes worth their bytes, and why, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.allocate.fixed import layer_plan, left_out
from onnx_dfmpc.allocate.knapsack import Choice, Frontier, Mask, frontier
from onnx_dfmpc.allocate.plain import plain_plans
from onnx_dfmpc.allocate.shared import shared_bytes, widths_below, widths_within
from onnx_dfmpc.allocate.together import Together, sharing_within, with_reasons
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.recipe import BitBounds, Recipe, bit_bounds
from onnx_dfmpc.recipe.rules import PLAIN_BITS
from onnx_dfmpc.spec import CostTable, LayerPlan, MatchReport, QuantPlan, sqnr_db
from onnx_dfmpc.spec.widths import WIDTHS

SAME_SHARE, SAME_BYTES = 1.05, 32
"""Sizes within 5 % and 32 bytes are the same: the codes take as much room, only zero points or names differ.
"""


def allocate_budget(matched: MatchReport, recipe: Recipe, model_sha256: str, table: CostTable) -> QuantPlan:
    """Plan with the least noise that meets the recipe's target: bytes, mean bits, or predicted output SQNR.

    ``table`` has every layer that the recipe does not exclude.

    Raises
    ------
    UnsupportedError
        If the target cannot be met; the message says what can.
    """
    require_affordable(matched, recipe, table)
    bounds = bit_bounds(matched, recipe)
    layers, table = table, _choices(matched, bounds, table)
    nominal = recipe.target_bits is not None
    allowed = candidate_widths(table.layers, table.widths, table.sizes, bounds, nominal=nominal)
    if recipe.target_size is not None:
        (choice,) = _within(table, allowed, [recipe.target_size])
    elif recipe.target_bits is not None:
        choice = _within_mean_bits(matched, recipe.target_bits, table, allowed)
    else:
        assert recipe.target_sqnr_db is not None
        noise = 10 ** (-recipe.target_sqnr_db / 10)
        choice = frontier(table, widths_below(table, allowed, noise)).below(noise)
    if choice is None:
        best = sqnr_db(float(np.where(allowed, table.noise, np.inf).min(axis=1).sum()))
        raise UnsupportedError(
            f"target_sqnr_db = {recipe.target_sqnr_db:g} cannot be met: with the most bits that are allowed "
            f"the predicted output SQNR is {math.floor(10 * best) / 10:.1f} dB",
            hint="ask for less, allow more bits, or leave layers float with nodes_to_exclude",
        )
    return _plan(matched, recipe, model_sha256, layers, bounds, allowed, choice)


def require_affordable(matched: MatchReport, recipe: Recipe, table: CostTable) -> None:
    """Refuse a target in bytes or bits that even the fewest bits exceed. The noise is not needed for that.

    Raises
    ------
    UnsupportedError
        The message says what the least is.
    """
    nominal = recipe.target_bits is not None
    bounds = bit_bounds(matched, recipe)
    table = _choices(matched, bounds, table)
    allowed = candidate_widths(table.layers, table.widths, table.sizes, bounds, nominal=nominal)
    least = _least(table, allowed)
    if recipe.target_size is not None and least > recipe.target_size:
        raise UnsupportedError(
            f"target_size = {recipe.target_size:,} bytes cannot be met: with the fewest bits that are "
            f"allowed the file has {least:,} bytes",
            hint=f"ask for {least} bytes or more" + _what_keeps_bits(matched, recipe),
        )
    weights, fewest = _weights(matched, table), _hundredths(table.widths)[allowed.argmax(axis=1)]
    if recipe.target_bits is not None and int(weights @ fewest) > _all_bits(recipe.target_bits, weights):
        mean = math.ceil(10 * float(weights @ fewest) / float(weights.sum())) / 1000
        raise UnsupportedError(
            f"target_bits = {recipe.target_bits:g} cannot be met: the fewest bits that are allowed are "
            f"{mean:g} on average",
            hint="ask for more bits" + _what_keeps_bits(matched, recipe),
        )


def sweep(
    matched: MatchReport, recipe: Recipe, model_sha256: str, table: CostTable, budgets: Sequence[int]
) -> list[QuantPlan | None]:
    """Plans for several budgets in bytes of the whole file; None for a budget that cannot be met.

    One frontier answers all of them. The recipe's target is not asked, only what it leaves open for the
    layers.
    """
    bounds = bit_bounds(matched, recipe)
    layers, table = table, _choices(matched, bounds, table)
    allowed = candidate_widths(table.layers, table.widths, table.sizes, bounds)
    choices = _within(table, allowed, budgets)
    return [
        None if choice is None else _plan(matched, recipe, model_sha256, layers, bounds, allowed, choice)
        for choice in choices
    ]


def budgets(matched: MatchReport, recipe: Recipe, table: CostTable, count: int) -> list[int]:
    """At most ``count`` budgets in bytes, from the smallest file that can be had to the largest, in equal
    ratios.
    """
    bounds = bit_bounds(matched, recipe)
    table = _choices(matched, bounds, table)
    allowed = candidate_widths(table.layers, table.widths, table.sizes, bounds)
    least = _least(table, allowed)
    most = _file_size(table, allowed, np.where(allowed, table.sizes, 0).argmax(axis=1))
    return sorted({math.ceil(budget) for budget in np.geomspace(least, most, count)})


def candidate_widths(
    names: Sequence[str],
    widths: Sequence[float],
    sizes: NDArray[np.int64],
    bounds: Mapping[str, BitBounds],
    *,
    nominal: bool = False,
) -> Mask:
    """Widths that are worth a thought for each layer, shape (layers, widths).

    They are within the layer's bounds, and no wider code takes about the same bytes. The fewest bytes are
    always among them, so that no budget is refused without need. With ``nominal``, bits count and not the
    bytes that they take.

    Examples
    --------
    >>> sizes = np.array([[500, 990, 999, 2000]])
    >>> candidate_widths(["a"], (2, 3, 4, 8), sizes, {"a": BitBounds(2, 4)}).tolist()
    [[True, False, True, False]]
    """
    bits = np.array(widths)
    within = np.stack([(bits >= bounds[name].low) & (bits <= bounds[name].high) for name in names])
    if nominal:
        return within
    cost = np.where(within, sizes, np.iinfo(np.int64).max)
    cheapest_wider = np.minimum.accumulate(cost[:, ::-1], axis=1)[:, ::-1]
    replaced = np.zeros_like(within)
    replaced[:, :-1] = cheapest_wider[:, 1:] <= SAME_SHARE * sizes[:, :-1] + SAME_BYTES
    open_widths: Mask = within & (~replaced | (cost == cost.min(axis=1, keepdims=True)))
    return open_widths


def cheapest(sizes: NDArray[np.int64], allowed: Mask) -> Choice:
    """Width of every layer that takes the fewest bytes, the widest of equals, as column numbers of shape
    (layers,).
    """
    cost = np.where(allowed, sizes, np.iinfo(np.int64).max)
    choice: Choice = sizes.shape[1] - 1 - cost[:, ::-1].argmin(axis=1)
    return choice


def mean_bits(plan: QuantPlan, matched: MatchReport) -> float:
    """Mean nominal bits over all quantized weights, those that layers share counted once."""
    sharing = matched.sharing(plan.bits)
    sizes = {one.name: one.size for one in matched.weights if one.name not in sharing}
    stored = {name: bits for name, bits in plan.bits.items() if name in sizes}
    return sum(bits * sizes[name] for name, bits in stored.items()) / sum(sizes[name] for name in stored)


def _choices(matched: MatchReport, bounds: Mapping[str, BitBounds], table: CostTable) -> CostTable:
    """Cost table with one row for layers that share their codes."""
    return Together.of(table.layers, sharing_within(matched, bounds)).table(table)


def _within(table: CostTable, allowed: Mask, budgets: Sequence[int]) -> list[Choice | None]:
    """The least noise for each of some budgets in bytes of the file."""
    least, fewest = _least(table, allowed), cheapest(table.sizes, allowed)
    frontiers: dict[bytes, Frontier] = {}
    most = max(budgets, default=0) - table.base

    def solved(mask: Mask, budget: int) -> Choice | None:
        """The best choice, without bytes kept free for widths that nobody takes."""
        key = mask.tobytes()
        points = frontiers[key] = frontiers.get(key) or frontier(table, mask, most)
        open_widths = np.flatnonzero(mask.any(axis=0))
        choice = points.within(budget - table.base - shared_bytes(table, open_widths))
        unused = np.setdiff1d(open_widths, [] if choice is None else choice)
        if choice is None or not shared_bytes(table, unused):
            return choice
        fewer = mask.copy()
        fewer[:, unused] = False
        return solved(fewer, budget)

    def best(masks: Sequence[Mask], budget: int) -> Choice | None:
        choices = [choice for mask in masks if (choice := solved(mask, budget)) is not None]
        if not choices:
            return fewest if budget >= least else None
        return min(choices, key=lambda choice: float(table.noise[np.arange(len(choice)), choice].sum()))

    tried = widths_within(table, allowed, budgets)
    return [best(masks, budget) for masks, budget in zip(tried, budgets, strict=True)]


def _least(table: CostTable, allowed: Mask) -> int:
    """Bytes of the smallest file."""
    return _file_size(table, allowed, cheapest(table.sizes, allowed))


def _file_size(table: CostTable, allowed: Mask, choice: Choice) -> int:
    rows = np.arange(len(choice))
    spare = table.spare if np.array_equal(choice, cheapest(table.sizes, allowed)) else 0
    brought = shared_bytes(table, np.unique(choice))
    return table.base - spare + brought + int(table.sizes[rows, choice].sum())


def _within_mean_bits(matched: MatchReport, target: float, table: CostTable, allowed: Mask) -> Choice | None:
    weights = _weights(matched, table)
    nominal = replace(table, sizes=weights[:, None] * _hundredths(table.widths), base=0)
    budget = _all_bits(target, weights)
    return frontier(nominal, allowed, budget).within(budget)


def _all_bits(mean: float, weights: NDArray[np.int64]) -> int:
    """Bits of all weights, in hundredths."""
    return math.floor(round(100 * mean, 6) * int(weights.sum()))


def _hundredths(widths: Sequence[float]) -> NDArray[np.int64]:
    """Widths in hundredths of a bit, which are whole numbers."""
    return np.array([round(100 * width) for width in widths], np.int64)


def _weights(matched: MatchReport, table: CostTable) -> NDArray[np.int64]:
    """Number of weights of each row, shape (layers,)."""
    sizes = {layer.name: layer.size for layer in matched.layers}
    return np.array([sizes[name] for name in table.layers], np.int64)


def _what_keeps_bits(matched: MatchReport, recipe: Recipe) -> str:
    """What the recipe does to keep the bits up, as the end of a hint."""
    bounds = [f"min_bits = {recipe.min_bits}"] if recipe.min_bits > WIDTHS[0] else []
    bounds += [f"first_last_bits = {recipe.first_last_bits}"] if recipe.first_last_bits else []
    bounds += ["the rules"] if recipe.rules else []
    bounds += [f"the {PLAIN_BITS} bits of weights such as {matched.plain[0].name!r}"] if matched.plain else []
    return f", or relax {' and '.join(bounds)}" if bounds else ""


def _plan(
    matched: MatchReport,
    recipe: Recipe,
    model_sha256: str,
    table: CostTable,
    bounds: Mapping[str, BitBounds],
    allowed: Mask,
    choice: Choice,
) -> QuantPlan:
    """Plan of every layer of ``table``; ``allowed`` and ``choice`` have a row for those that share codes."""
    together = Together.of(table.layers, sharing_within(matched, bounds))
    choices = together.table(table)
    total = float(choices.noise[np.arange(len(choice)), choice].sum())
    rows, widths = np.arange(len(table.layers)), choice[together.rows]
    noise, sizes = table.noise[rows, widths], table.sizes[rows, widths]
    layers = {layer.name: layer for layer in matched.layers}
    plans: list[LayerPlan] = []
    for row, name in enumerate(table.layers):
        layer, width, one = layers[name], int(widths[row]), int(together.rows[row])
        reason = _reason(choices, allowed[one], one, width, total, bounds[name])
        planned = layer_plan(layer, "edge" if layer.edge else "inner", table.widths[width], reason, recipe)
        plans.append(replace(planned, noise=float(noise[row]), bytes=int(sizes[row])))
    return QuantPlan(
        model_sha256,
        with_reasons(plans, matched),
        matched.skipped + left_out(matched, bounds),
        predicted_bytes=_file_size(choices, allowed, choice),
        predicted_sqnr_db=sqnr_db(float(noise.sum())) if noise.any() else None,
        source=table.source,
        plain=plain_plans(matched, recipe),
    )


def _reason(table: CostTable, allowed: Mask, row: int, width: int, total: float, bound: BitBounds) -> str:
    """Why a layer got its bits, in words: what the next wider code would have cost and brought."""
    if bound.bits is not None:
        return bound.reason
    wider = np.flatnonzero(allowed[width + 1 :]) + width + 1
    if not wider.size:
        return "the most that is allowed" + (f": {bound.reason}" if bound.reason else "")
    following = int(wider[0])
    cost = int(table.sizes[row, following] - table.sizes[row, width])
    left = total - float(table.noise[row, width] - table.noise[row, following])
    gain = 10 * math.log10(total / left) if 0 < left < total else 0.0
    price = f"{cost} bytes" if cost < 1000 else f"{cost / 1000:.1f} kB"
    return f"{table.widths[following]} bits would cost {price} more and gain {gain:.2g} dB"
