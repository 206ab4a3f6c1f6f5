"""The least noise for every number of bytes (pure NumPy).

Each layer takes one of its widths; bytes and noise add up: a multiple-choice knapsack. The frontier is built
layer by layer: all sums of a point so far and an option of the next layer, of which only those stay that no
cheaper one beats in noise. So one pass answers every budget. It is exact as long as the points fit; beyond
`MOST_POINTS` the best of each interval of bytes is kept, and what that loses is won back at the end by
upgrades into the bytes that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array, CostTable

Mask = NDArray[np.bool_]
Choice = NDArray[np.intp]

MOST_POINTS = 1 << 13
"""Points that the frontier may have: more cost time and memory, and the tests find less than 2 % of noise to
gain.
"""


@dataclass(frozen=True, eq=False)
class Frontier:
    """The choices that no other beats in both bytes and noise.

    ``bytes`` (of all layers together, ascending) and ``noise`` (descending) have shape (points,). ``steps``
    holds for every layer the parent of each point and the option that was added to it.
    """

    table: CostTable
    allowed: Mask
    bytes: NDArray[np.int64]
    noise: Array
    steps: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]

    def within(self, budget: int) -> Choice | None:
        """Index of the width of each layer, for the least noise in a budget in bytes of layers; None if none
        fits.

        Of widths that cost the same bytes and make the same noise, the widest.
        """
        point = int(np.searchsorted(self.bytes, budget, side="right")) - 1
        return None if point < 0 else self._filled(self._choice(point), budget)

    def below(self, noise: float) -> Choice | None:
        """Index of the width of each layer, for the fewest bytes with at most that noise; None where it
        cannot be had.
        """
        reached = np.flatnonzero(self.noise <= noise)
        return None if not reached.size else self._choice(int(reached[0]))

    def _choice(self, point: int) -> Choice:
        """Options that led to a point, from the last layer back to the first."""
        choice = np.empty(len(self.steps), np.intp)
        for layer in reversed(range(len(self.steps))):
            parents, options = self.steps[layer]
            choice[layer], point = options[point], parents[point]
        return choice

    def _filled(self, choice: Choice, budget: int) -> Choice:
        """Spend what is left on upgrades, those that remove most noise first."""
        noise, sizes, layers = self.table.noise, self.table.sizes, np.arange(len(choice))
        wider = np.arange(noise.shape[1]) > choice[:, None]
        while True:
            left = budget - sizes[layers, choice].sum()
            gain = noise[layers, choice][:, None] - noise
            possible = self.allowed & wider & (gain >= 0) & (sizes - sizes[layers, choice][:, None] <= left)
            if not possible.any():
                return choice
            layer, width = np.unravel_index(np.where(possible, gain, -1).argmax(), gain.shape)
            choice[layer] = width
            wider[layer] = np.arange(noise.shape[1]) > width


def frontier(table: CostTable, allowed: Mask, most: int | None = None) -> Frontier:
    """Frontier of a cost table.

    ``allowed``, shape (layers, widths), has at least one width for each layer. What needs more than ``most``
    bytes of all layers together is left out.
    """
    least = np.where(allowed, table.sizes, np.iinfo(np.int64).max).min(axis=1)
    still_needed = np.cumsum(least[::-1])[::-1] - least  # bytes of the layers after each, at the least
    total, noise = np.zeros(1, np.int64), np.zeros(1)
    steps = []
    for layer, rest in enumerate(still_needed):
        options = np.flatnonzero(allowed[layer])
        candidates = (table.sizes[layer, options, None] + total).ravel()
        noises = (table.noise[layer, options, None] + noise).ravel()
        order = np.lexsort((noises, candidates))
        if most is not None:
            order = order[candidates[order] <= most - rest]
        kept = order[_descending(noises[order])]
        kept = kept[_thinned(candidates[kept])]
        steps.append((kept % len(total), options[kept // len(total)]))
        total, noise = candidates[kept], noises[kept]
    return Frontier(table, allowed, total, noise, tuple(steps))


def _descending(noise: Array) -> Mask:
    """Which of the points, by ascending bytes, have less noise than all before them."""
    least = np.minimum.accumulate(noise)
    return np.append(True, noise[1:] < least[:-1]) if noise.size else np.zeros(0, bool)


def _thinned(total: NDArray[np.int64]) -> NDArray[np.intp]:
    """At most `MOST_POINTS` points: the first, and the last of each interval of bytes."""
    if len(total) <= MOST_POINTS:
        return np.arange(len(total))
    interval = (total - total[0]) * (MOST_POINTS - 2) // (total[-1] - total[0])
    last = np.append(interval[1:] != interval[:-1], True)
    last[0] = True
    return np.flatnonzero(last)
