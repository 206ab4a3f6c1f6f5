"""Layers that share their codes, as one: a budget chooses one width for all of them (NumPy alone)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.recipe import BitBounds
from onnx_dfmpc.spec import CostTable, LayerPlan, MatchReport


def sharing_within(matched: MatchReport, bounds: Mapping[str, BitBounds]) -> dict[str, str]:
    """Layers that will share the codes of an earlier one, and that one, by name: both read the same weight,
    and the recipe leaves them the same widths.
    """
    widths = {
        name: (bound.low, bound.high, bound.bits) for name, bound in bounds.items() if not bound.excluded
    }
    return matched.sharing(widths)


@dataclass(frozen=True, eq=False)
class Together:
    """The choices of a budget: ``names`` are those of their first layers, ``rows`` (layers,) has the choice
    of each layer.

    Examples
    --------
    >>> together = Together.of(["a", "b", "c"], {"c": "a"})
    >>> together.names, together.rows.tolist(), together.summed(np.array([1, 2, 3])).tolist()
    (('a', 'b'), [0, 1, 0], [4, 2])
    """

    names: tuple[str, ...]
    rows: NDArray[np.intp]

    @classmethod
    def of(cls, layers: Sequence[str], sharing: Mapping[str, str]) -> Together:
        """Choices for layers of which some have the width of an earlier one."""
        names = tuple(name for name in layers if name not in sharing)
        position = {name: index for index, name in enumerate(names)}
        return cls(names, np.array([position[sharing.get(name, name)] for name in layers], np.intp))

    def summed(self, values: NDArray[Any]) -> NDArray[Any]:
        """Bytes or noise of layers, shape (layers, ...), of those of a choice together."""
        total = np.zeros((len(self.names), *values.shape[1:]), values.dtype)
        np.add.at(total, self.rows, values)
        return total

    def table(self, table: CostTable) -> CostTable:
        """Cost table of layers to one of choices."""
        if len(self.names) == len(table.layers):
            return table
        noise, sizes = self.summed(table.noise), self.summed(table.sizes)
        return replace(table, layers=self.names, noise=noise, sizes=sizes)


def with_reasons(layers: Sequence[LayerPlan], matched: MatchReport) -> tuple[LayerPlan, ...]:
    """Plans of layers that say where one shares the codes of another."""
    sharing = matched.sharing({one.name: one.bits for one in layers})
    return tuple(
        replace(one, reason=f"shares the codes of '{sharing[one.name]}'") if one.name in sharing else one
        for one in layers
    )
