"""Whether rows of a table suit a weight better than a scalar grid of the same bits, from some of its numbers.

A grid per channel with a zero point fits a few weights better than any table: at the same bits a depthwise
kernel of nine loses 1 to 3 dB with rows of a table, and a matrix of more than 64 inputs gains 1 to 2. Weights
without a tail gain less. So both are tried by plain rounding, without statistics, over a few scales each, and
the noise

    1 - <w, wq>^2 / (<w, w> <wq, wq>)

that the best factor per channel leaves decides. On 66 shapes of layers of five networks at 2, 3, 4 and 5 bits
it agrees with what error feedback makes of both, but where these are within 0.7 dB of each other, and where
inputs are nearly constant, of which plain rounding knows nothing.
"""

from __future__ import annotations

import numpy as np

from onnx_dfmpc.rounding.grids import GridSpec, first_grid
from onnx_dfmpc.rounding.levels import WORKING, levels_of
from onnx_dfmpc.spec import Array
from onnx_dfmpc.spec.vectors import VECTORS

MOST_WEIGHTS, MOST_INPUTS = 1 << 12, 256
"""Numbers that are looked at, and inputs."""

VECTOR_SCALES, SCALAR_SCALES = (0.9, 1.05, 1.25), (0.6, 0.75, 0.9, 1.0)
"""Factors of the first scale: less of the range is covered the fewer levels there are."""


def suitable_widths(rows: Array) -> tuple[float, ...]:
    """Widths at which rows (g, r, n) lose less as vectors, ascending."""
    weights = _some(rows)
    return tuple(
        bits
        for bits in VECTORS
        if _noise(weights, GridSpec("vector", bits)) < _noise(weights, GridSpec("asymmetric", bits))
    )


def _some(rows: Array) -> Array:
    """Some weights of some channels, evenly spread, shape (1, channels, inputs)."""
    channels, inputs = rows.shape[0] * rows.shape[1], rows.shape[2]
    across = -(-inputs // MOST_INPUTS)
    along = -(-channels * min(inputs, MOST_INPUTS) // MOST_WEIGHTS)
    chosen = np.arange(0, channels, along)
    some = rows[chosen // rows.shape[1], chosen % rows.shape[1], ::across]
    return some.astype(WORKING)[None]


def _noise(weights: Array, grid: GridSpec) -> float:
    """Mean noise of channels, the scale of each chosen, or of each row of the table."""
    first, zero_point = first_grid(weights, grid)
    each, together = levels_of(grid, weights.shape[2]), levels_of(grid)
    own = np.square(weights).sum(axis=2)
    noises = []
    for factor in VECTOR_SCALES if grid.kind == "vector" else SCALAR_SCALES:
        scale = WORKING(factor) * first
        # Nothing couples inputs here: all of them are rounded at once, as if each were a layer.
        columns = (weights / scale[..., None] + zero_point[..., None])[0].T.astype(WORKING, order="C")
        each.round(columns)
        rounded = (columns.T[None] - zero_point[..., None]) * scale[..., None]
        across, norm = (rounded * weights).sum(axis=2), np.square(rounded).sum(axis=2)
        kept = across**2 / np.maximum(own * norm, np.finfo(WORKING).tiny)
        noises.append(1 - np.where(across > 0, kept, 0))
    score = np.stack(noises)
    choice = together.shared(score).argmin(axis=0)[None]
    return float(np.take_along_axis(score, choice, 0).mean())
