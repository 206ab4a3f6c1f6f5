"""What a report shows of a layer's weights: where they went, and of which layers (pure NumPy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import WeightHistogram

BINS = 41
"""Odd, so that zero has a bin of its own; as many as a small chart has room for."""


def histogram(
    name: str, weight: NDArray[np.floating], quantized: NDArray[np.floating], axis: int
) -> WeightHistogram:
    """Weights of a layer before and after, each divided by the largest float weight of its output channel
    (along `axis`): without the division, the grids of the channels would hide each other.

    Examples
    --------
    >>> counted = histogram("conv", np.array([[-2.0, 1.0]]), np.array([[-2.0, 2.0]]), 0)
    >>> counted.low, counted.high, sum(counted.float_counts), counted.quantized_counts[-1]
    (-1.0, 1.0, 2, 1)
    """
    others = tuple(d for d in range(weight.ndim) if d != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    unit = np.where(largest > 0, largest, 1)
    before, after = weight / unit, quantized / unit
    reach = max(1.0, float(np.abs(after).max(initial=0.0)))
    counts = [
        np.histogram(values, bins=BINS, range=(-reach, reach))[0].tolist() for values in (before, after)
    ]
    return WeightHistogram(name, -reach, reach, *map(tuple, counts))


def most_changed(sqnr_db: Sequence[float | None], count: int) -> tuple[int, ...]:
    """Positions of the layers to show, in their order: the first, the last, and those with the lowest SQNR
    between them.

    Examples
    --------
    >>> most_changed([30.0, 9.0, None, 20.0, 8.0, 31.0], 4)
    (0, 1, 4, 5)
    """
    if not sqnr_db:
        return ()
    ends = {0, len(sqnr_db) - 1}
    inner = sorted(
        (value, position)
        for position, value in enumerate(sqnr_db)
        if value is not None and position not in ends
    )
    return tuple(sorted(ends | {position for _, position in inner[: max(count - len(ends), 0)]}))
