"""A target or a preset to a plan: the widths that a cost table makes worth their bytes, and why, layer by
layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.allocate.fixed import layer_plan, left_out
from onnx_dfmpc.allocate.knapsack import Choice, Mask, frontier
from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.recipe import BitBounds, Recipe, bit_bounds
from onnx_dfmpc.spec import CostTable, LayerPlan, MatchReport, QuantPlan

SAME_SHARE, SAME_BYTES = 1.05, 32
"""Up to so many times the bytes and so many more are the same: the codes take as much room, only zero points
or names differ.
"""


def allocate_budget(report: MatchReport, recipe: Recipe, model_sha256: str, table: CostTable) -> QuantPlan:
    """Plan with the least noise that meets the recipe's target: bytes, mean bits, or predicted output SQNR.

    Parameters
    ----------
    report : MatchReport
    recipe : Recipe
        With a target or a preset.
    model_sha256 : str
        Of the model that the plan is for.
    table : CostTable
        Of every layer that the recipe does not exclude.

    Returns
    -------
    QuantPlan

    Raises
    ------
    UnsupportedError
        If the target cannot be met; the message says what can.
    """
    require_affordable(report, recipe, table)
    found = bit_bounds(report, recipe)
    allowed = candidate_widths(
        table.layers, table.widths, table.sizes, found, nominal=recipe.target_bits is not None
    )
    if recipe.target_size is not None:
        (chosen,) = _within(table, allowed, [recipe.target_size])
    elif recipe.target_bits is not None:
        chosen = _within_mean_bits(report, recipe.target_bits, table, allowed)
    else:
        assert recipe.target_sqnr_db is not None
        chosen = frontier(table, allowed).below(_noise_of(recipe.target_sqnr_db))
    if chosen is None:
        raise _too_noisy(recipe, table, allowed)
    return _plan(report, recipe, model_sha256, table, found, allowed, chosen)


def require_affordable(report: MatchReport, recipe: Recipe, table: CostTable) -> None:
    """Refuse a target in bytes or bits that even the fewest bits exceed. The noise is not asked, so that
    nobody has to predict it before.

    Parameters
    ----------
    report : MatchReport
    recipe : Recipe
    table : CostTable
        Of every layer that the recipe does not exclude.

    Raises
    ------
    UnsupportedError
        The message says what the least is.
    """
    allowed = candidate_widths(
        table.layers,
        table.widths,
        table.sizes,
        bit_bounds(report, recipe),
        nominal=recipe.target_bits is not None,
    )
    least = _least(table, allowed)
    if recipe.target_size is not None and least > recipe.target_size:
        raise UnsupportedError(
            f"target_size = {recipe.target_size:,} bytes cannot be met: with the fewest bits that are allowed the file has {least:,} bytes",
            hint=f"ask for {least} bytes or more" + _what_holds(recipe),
        )
    weights, fewest = _weights(report, table), np.array(table.widths)[allowed.argmax(axis=1)]
    if recipe.target_bits is not None and int(weights @ fewest) > _all_bits(recipe.target_bits, weights):
        mean = math.ceil(1000 * float(weights @ fewest) / float(weights.sum())) / 1000
        raise UnsupportedError(
            f"target_bits = {recipe.target_bits:g} cannot be met: the fewest bits that are allowed are {mean:g} on average",
            hint="ask for more bits" + _what_holds(recipe),
        )


def sweep(
    report: MatchReport, recipe: Recipe, model_sha256: str, table: CostTable, budgets: Sequence[int]
) -> list[QuantPlan | None]:
    """Plans for several budgets in bytes, for little more than the price of one; None for a budget that
    cannot be met.

    Parameters
    ----------
    report : MatchReport
    recipe : Recipe
        Its target is not asked, only what it leaves open for the layers.
    model_sha256 : str
    table : CostTable
    budgets : sequence of int
        Bytes of the whole file.
    """
    found = bit_bounds(report, recipe)
    allowed = candidate_widths(table.layers, table.widths, table.sizes, found)
    choices = _within(table, allowed, budgets)
    return [
        None if chosen is None else _plan(report, recipe, model_sha256, table, found, allowed, chosen)
        for chosen in choices
    ]


def budgets(report: MatchReport, recipe: Recipe, table: CostTable, count: int) -> list[int]:
    """Budgets from the smallest file that can be had to the largest, each larger than the one before by the
    same factor.

    Parameters
    ----------
    report : MatchReport
    recipe : Recipe
        Its target is not asked, only what it leaves open for the layers.
    table : CostTable
    count : int
        At most so many; fewer where the files hardly differ.
    """
    allowed = candidate_widths(table.layers, table.widths, table.sizes, bit_bounds(report, recipe))
    least = _least(table, allowed)
    most = table.base + int(np.where(allowed, table.sizes, 0).max(axis=1).sum())
    return sorted({math.ceil(budget) for budget in np.geomspace(least, most, count)})


def candidate_widths(
    names: Sequence[str],
    widths: Sequence[int],
    sizes: NDArray[np.int64],
    found: Mapping[str, BitBounds],
    *,
    nominal: bool = False,
) -> Mask:
    """Widths that are worth a thought for each layer: within its limits, and not replaced by a wider one at
    about the same bytes.

    The fewest bytes are always among them, so that no budget is refused without need.

    Parameters
    ----------
    names : sequence of str
        Layers.
    widths : sequence of int
        Bits, ascending.
    sizes : int64 array, shape (layers, widths)
        Bytes.
    found : mapping of str to BitBounds
    nominal : bool
        Whether bits count, and not the bytes that they take.

    Returns
    -------
    bool array, shape (layers, widths)

    Examples
    --------
    >>> candidate_widths(["a"], (2, 3, 4, 8), np.array([[500, 990, 999, 2000]]), {"a": BitBounds(2, 4)}).tolist()
    [[True, False, True, False]]
    """
    bits = np.array(widths)
    within = np.stack([(bits >= found[name].low) & (bits <= found[name].high) for name in names])
    if nominal:
        return within
    cost = np.where(within, sizes, np.iinfo(np.int64).max)
    cheapest_wider = np.minimum.accumulate(cost[:, ::-1], axis=1)[:, ::-1]
    replaced = np.zeros_like(within)
    replaced[:, :-1] = cheapest_wider[:, 1:] <= SAME_SHARE * sizes[:, :-1] + SAME_BYTES
    opened: Mask = within & (~replaced | (cost == cost.min(axis=1, keepdims=True)))
    return opened


def cheapest(sizes: NDArray[np.int64], allowed: Mask) -> Choice:
    """Width of every layer that takes the fewest bytes, the widest of equals, as column numbers of shape
    (layers,).
    """
    cost = np.where(allowed, sizes, np.iinfo(np.int64).max)
    choice: Choice = sizes.shape[1] - 1 - cost[:, ::-1].argmin(axis=1)
    return choice


def mean_bits(plan: QuantPlan, report: MatchReport) -> float:
    """Mean nominal bits over all quantized weights."""
    sizes = {layer.name: layer.size for layer in report.layers}
    return sum(layer.bits * sizes[layer.name] for layer in plan.layers) / sum(
        sizes[layer.name] for layer in plan.layers
    )


def _within(table: CostTable, allowed: Mask, budgets: Sequence[int]) -> list[Choice | None]:
    """The least noise for each of some budgets in bytes."""
    shared, least = frontier(table, allowed, max(budgets, default=0) - table.base), _least(table, allowed)
    found = [shared.within(budget - table.base) for budget in budgets]
    fewest = cheapest(table.sizes, allowed)
    return [
        fewest if one is None and budget >= least else one for one, budget in zip(found, budgets, strict=True)
    ]


def _least(table: CostTable, allowed: Mask) -> int:
    """Bytes of the smallest file."""
    return _file_size(table, allowed, cheapest(table.sizes, allowed))


def _file_size(table: CostTable, allowed: Mask, chosen: Choice) -> int:
    rows = np.arange(len(chosen))
    spare = table.spare if np.array_equal(chosen, cheapest(table.sizes, allowed)) else 0
    return table.base - spare + int(table.sizes[rows, chosen].sum())


def _within_mean_bits(report: MatchReport, target: float, table: CostTable, allowed: Mask) -> Choice | None:
    weights = _weights(report, table)
    nominal = replace(table, sizes=weights[:, None] * np.array(table.widths), base=0)
    budget = _all_bits(target, weights)
    return frontier(nominal, allowed, budget).within(budget)


def _all_bits(mean: float, weights: NDArray[np.int64]) -> int:
    return math.floor(mean * int(weights.sum()))


def _weights(report: MatchReport, table: CostTable) -> NDArray[np.int64]:
    """Number of weights of each layer, shape (layers,)."""
    sizes = {layer.name: layer.size for layer in report.layers}
    return np.array([sizes[name] for name in table.layers], np.int64)


def _noise_of(sqnr_db: float) -> float:
    return float(10 ** (-sqnr_db / 10))


def _sqnr_db(noise: float) -> float | None:
    return -10 * math.log10(noise) if noise > 0 else None


def _too_noisy(recipe: Recipe, table: CostTable, allowed: Mask) -> UnsupportedError:
    """What to say when even the most bits are too few."""
    best = _sqnr_db(float(np.where(allowed, table.noise, np.inf).min(axis=1).sum()))
    return UnsupportedError(
        f"target_sqnr_db = {recipe.target_sqnr_db:g} cannot be met: with the most bits that are allowed the predicted output SQNR is {best or math.inf:.1f} dB",
        hint="ask for less, allow more bits, or leave layers float with nodes_to_exclude",
    )


def _what_holds(recipe: Recipe) -> str:
    """What the recipe does to keep the bits up."""
    bounds = [f"min_bits = {recipe.min_bits}"] if recipe.min_bits > 2 else []
    bounds += [f"first_last_bits = {recipe.first_last_bits}"] if recipe.first_last_bits else []
    bounds += ["the rules"] if recipe.rules else []
    return f", or relax {' and '.join(bounds)}" if bounds else ""


def _plan(
    report: MatchReport,
    recipe: Recipe,
    model_sha256: str,
    table: CostTable,
    found: Mapping[str, BitBounds],
    allowed: Mask,
    chosen: Choice,
) -> QuantPlan:
    rows = np.arange(len(chosen))
    noise, sizes = table.noise[rows, chosen], table.sizes[rows, chosen]
    layers = {layer.name: layer for layer in report.layers}
    plans: list[LayerPlan] = []
    for row, name in enumerate(table.layers):
        layer, width = layers[name], int(chosen[row])
        reason = _reason(table, allowed[row], row, width, float(noise.sum()), found[name])
        planned = layer_plan(layer, "edge" if layer.edge else "inner", table.widths[width], reason, recipe)
        plans.append(replace(planned, noise=float(noise[row]), bytes=int(sizes[row])))
    return QuantPlan(
        model_sha256,
        tuple(plans),
        report.skipped + left_out(report, found),
        predicted_bytes=_file_size(table, allowed, chosen),
        predicted_sqnr_db=_sqnr_db(float(noise.sum())),
    )


def _reason(table: CostTable, allowed: Mask, row: int, width: int, total: float, limit: BitBounds) -> str:
    """Why a layer got its bits, in words: what the next wider code would have cost and brought."""
    if limit.bits is not None:
        return limit.reason
    wider = np.flatnonzero(allowed[width + 1 :]) + width + 1
    if not wider.size:
        return "the most that is allowed" + (f": {limit.reason}" if limit.reason else "")
    following = int(wider[0])
    cost = int(table.sizes[row, following] - table.sizes[row, width])
    left = total - float(table.noise[row, width] - table.noise[row, following])
    gain = 10 * math.log10(total / left) if 0 < left < total else 0.0
    return f"{table.widths[following]} bits would cost {_bytes(cost)} more and gain {gain:.2g} dB"


def _bytes(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{count / 1000:.1f} kB"
