"""The least noise for every number of bytes (pure NumPy).

Each layer takes one of its widths; bytes and noise add up: a multiple-choice knapsack. The frontier is built
layer by layer: all sums of a point so far and an option of the next layer, of which only those stay that no
cheaper one beats in noise. So one pass answers every budget. It is exact as long as the points fit; beyond
`MOST` of them the best of each interval of bytes is kept, and what that loses is won back at the end by
upgrades into the bytes that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array, CostTable

Mask = NDArray[np.bool_]
Choice = NDArray[np.intp]

MOST = 1 << 13
"""Points that the frontier may have."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """The choices that no other beats in both bytes and noise.

    Attributes
    ----------
    table : CostTable
    allowed : bool array, shape (layers, widths)
    bytes : int64 array, shape (points,)
        Of all layers together, ascending.
    noise : float64 array, shape (points,)
        Descending.
    """

    table: CostTable
    allowed: Mask
    bytes: NDArray[np.int64]
    noise: Array
    _steps: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]

    def within(self, budget: int) -> Choice | None:
        """Index of the width of each layer, for the least noise in so many bytes of layers; None where not
        even the least bytes fit.

        Of widths that cost the same bytes and make the same noise, the widest.
        """
        point = int(np.searchsorted(self.bytes, budget, side="right")) - 1
        return None if point < 0 else self._filled(self._choice(point), budget)

    def below(self, noise: float) -> Choice | None:
        """Index of the width of each layer, for the fewest bytes with no more noise than that; None where it
        cannot be had.
        """
        reached = np.flatnonzero(self.noise <= noise)
        return None if not reached.size else self._choice(int(reached[0]))

    def _choice(self, point: int) -> Choice:
        chosen = np.empty(len(self._steps), np.intp)
        for layer in reversed(range(len(self._steps))):
            parents, options = self._steps[layer]
            chosen[layer], point = options[point], parents[point]
        return chosen

    def _filled(self, chosen: Choice, budget: int) -> Choice:
        """Spend what is left on upgrades, those that take away most noise first."""
        noise, sizes, layers = self.table.noise, self.table.sizes, np.arange(len(chosen))
        wider = np.arange(noise.shape[1]) > chosen[:, None]
        while True:
            left = budget - sizes[layers, chosen].sum()
            gain = noise[layers, chosen][:, None] - noise
            possible = self.allowed & wider & (gain >= 0) & (sizes - sizes[layers, chosen][:, None] <= left)
            if not possible.any():
                return chosen
            layer, width = np.unravel_index(np.where(possible, gain, -1).argmax(), gain.shape)
            chosen[layer] = width
            wider[layer] = np.arange(noise.shape[1]) > width


def frontier(table: CostTable, allowed: Mask, most: int | None = None) -> Frontier:
    """Build the frontier of a cost table.

    Parameters
    ----------
    table : CostTable
    allowed : bool array, shape (layers, widths)
        At least one width for each layer.
    most : int, optional
        Bytes of all layers that are never exceeded; what needs more is left out.

    Returns
    -------
    Frontier
    """
    least = np.where(allowed, table.sizes, np.iinfo(np.int64).max).min(axis=1)
    behind = np.cumsum(least[::-1])[::-1] - least
    total, noise = np.zeros(1, np.int64), np.zeros(1)
    steps = []
    for layer, rest in enumerate(behind):
        options = np.flatnonzero(allowed[layer])
        candidates = (table.sizes[layer, options, None] + total).ravel()
        noises = (table.noise[layer, options, None] + noise).ravel()
        order = np.lexsort((noises, candidates))
        if most is not None:
            order = order[candidates[order] <= most - rest]
        kept = order[_descending(noises[order])]
        kept = kept[_spread(candidates[kept])]
        steps.append((kept % len(total), options[kept // len(total)]))
        total, noise = candidates[kept], noises[kept]
    return Frontier(table, allowed, total, noise, tuple(steps))


def choose(table: CostTable, budget: int, allowed: Mask) -> Choice | None:
    """Widths with the least summed noise in a budget.

    Parameters
    ----------
    table : CostTable
    budget : int
        Bytes of the whole file, `table.base` included.
    allowed : bool array, shape (layers, widths)
        At least one width for each layer.

    Returns
    -------
    int array, shape (layers,), or None
        Index of each layer's width; None where not even the least bytes fit.

    Examples
    --------
    >>> table = CostTable(("a", "b"), (2, 4), np.array([[4.0, 1.0], [8.0, 2.0]]), np.array([[10, 20], [10, 20]]), 5, "bn")
    >>> choose(table, 40, np.ones((2, 2), bool))
    array([0, 1])
    """
    return frontier(table, allowed, budget - table.base).within(budget - table.base)


def _descending(noise: Array) -> Mask:
    """Which of the points, by ascending bytes, have less noise than all before them."""
    least = np.minimum.accumulate(noise)
    return np.append(True, noise[1:] < least[:-1]) if noise.size else np.zeros(0, bool)


def _spread(total: NDArray[np.int64]) -> NDArray[np.intp]:
    """At most `MOST` points: the first, and the last of each interval of bytes."""
    if len(total) <= MOST:
        return np.arange(len(total))
    interval = (total - total[0]) * (MOST - 2) // (total[-1] - total[0])
    last = np.append(interval[1:] != interval[:-1], True)
    last[0] = True
    return np.flatnonzero(last)
