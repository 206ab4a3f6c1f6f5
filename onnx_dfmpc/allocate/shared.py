"""Which widths a file should have at all: each brings a table that its layers share.

A table of vectors takes 128 to 1,024 bytes, whether one layer needs it or fifty. With some widths left out, a
small network has more bytes for its codes. Every set of widths is tried, by the lower hull of what it can do:
for a price per byte, each layer takes the width that minimises

    noise + price bytes

and as the price falls, bytes and noise of all layers together go along the hull. That is close enough to tell
the sets apart; the bits are then chosen exactly, by the knapsack, for the set that wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.allocate.knapsack import Mask
from onnx_dfmpc.spec import Array, CostTable

PRICES = 64
"""Points of a hull."""

TRIED = 3
"""Sets of widths for which the knapsack is solved."""

NEGLIGIBLE = 0.003
"""Share of a file below which all widths may bring what they need."""

Hull = tuple[NDArray[np.int64], Array]
"""Bytes, ascending, and noise."""


def widths_within(table: CostTable, allowed: Mask, budgets: Sequence[int]) -> list[list[Mask]]:
    """What may be left of ``allowed`` for the least noise in each of some budgets in bytes of the file: a few
    sets of widths, the most promising first.
    """
    hulls = _hulls(table, allowed, min(budgets, default=0))

    def noise(budget: int, hull: Hull) -> float:
        size, noises = hull
        return float(np.interp(budget, size, np.log(noises))) if budget >= size[0] else np.inf

    return [_best(allowed, hulls, partial(noise, budget))[:TRIED] for budget in budgets]


def widths_below(table: CostTable, allowed: Mask, noise: float) -> Mask:
    """What is left of ``allowed`` for the fewest bytes with at most that noise."""

    def size(hull: Hull) -> float:
        sizes, noises = hull
        return float(np.interp(-np.log(noise), -np.log(noises), sizes)) if noise >= noises[-1] else np.inf

    return _best(allowed, _hulls(table, allowed, table.base), size)[0]


def shared_bytes(table: CostTable, columns: NDArray[np.integer]) -> int:
    """Bytes of what some widths bring with them."""
    return int(table.brought[columns].sum())


def _best(allowed: Mask, hulls: Sequence[tuple[Mask, Hull]], cost: Callable[[Hull], float]) -> list[Mask]:
    if not hulls:
        return [allowed]
    # A set that does as well with fewer widths keeps no bytes free for those that nobody takes.
    ranked = sorted(hulls, key=lambda one: (cost(one[1]), int(one[0].sum())))
    return [allowed & columns for columns, _ in ranked]


def _hulls(table: CostTable, allowed: Mask, size: int) -> list[tuple[Mask, Hull]]:
    """Hull of every set of widths, all of them first; nothing where it does not matter."""
    matters = np.flatnonzero((table.brought > 0) & allowed.any(axis=0))
    if shared_bytes(table, matters) <= NEGLIGIBLE * size:
        return []
    noise, sizes = table.noise[allowed], table.sizes[allowed].astype(float)
    highest = float(noise.max(initial=0)) / max(float(sizes.min(initial=1)), 1)
    if highest == 0:
        return []
    prices = highest * np.geomspace(10, 1e-9, PRICES)
    cost = np.where(allowed, table.noise + prices[:, None, None] * table.sizes, np.inf)
    found = []
    for count in range(len(matters) + 1):
        for left_out in itertools.combinations(matters, count):
            columns = np.ones(len(table.widths), bool)
            columns[list(left_out)] = False
            if (allowed & columns).any(axis=1).all():
                found.append((columns, _hull(table, np.flatnonzero(columns), cost)))
    return found


def _hull(table: CostTable, columns: NDArray[np.intp], cost: Array) -> Hull:
    choice = columns[cost[:, :, columns].argmin(axis=2)]  # (prices, layers)
    rows = np.arange(choice.shape[1])
    used = (choice[:, :, None] == np.arange(len(table.widths))).any(axis=1)
    size = table.base + table.sizes[rows, choice].sum(axis=1) + used @ table.brought
    noise = np.maximum(table.noise[rows, choice].sum(axis=1), np.finfo(np.float64).tiny)
    order = np.lexsort((noise, size))
    return size[order], np.minimum.accumulate(noise[order])
