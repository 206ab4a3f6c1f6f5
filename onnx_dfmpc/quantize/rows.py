"""Rows -> codes by one of the rounding methods: the search over scales around the rounding itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_dfmpc.matrices import Covariance, matrix
from onnx_dfmpc.quantize.covariance import Root, Target, descend, feedback
from onnx_dfmpc.quantize.grids import Codes, limits, min_max, nearest, ternary
from onnx_dfmpc.quantize.squant import squant
from onnx_dfmpc.spec import Array, Grid, Rounding

RATIOS = {2: (0.55, 0.65, 0.75, 0.85, 0.95), 3: (0.6, 0.7, 0.8, 0.9, 1.0), 4: (0.75, 0.85, 0.95, 1.0)}
"""Shares of the range of a row that its grid may cover: the fewer levels, the more it pays to clip. Above 4 bits it does not.

Both ends are clipped by the same share, and the zero point stays where the row has it. Letting each end move lowers a layer's own output
error by another 0.1 dB, and made networks worse.
"""

SWEEPS = 4
MOST_WEIGHTS = 1 << 20
"""Weights that are rounded at once, times scales: rows are independent, and memory is bounded."""

EXACT_BITS = 8
"""From here on the error of nearest rounding is far below what any search could gain."""


def quantize_rows(
    rows: Array,
    bits: int,
    *,
    grid: Grid,
    rounding: Rounding,
    per_channel: bool,
    taps: int = 1,
    covariance: Covariance | None = None,
) -> Codes:
    """Quantize the rows of a weight.

    Parameters
    ----------
    rows : float array, shape (g, r, n)
    bits : int
        2 to 8.
    grid : {"ternary", "symmetric", "asymmetric"}
        Ternary places its own thresholds and ignores ``rounding``.
    rounding : {"nearest", "squant", "covariance"}
    per_channel : bool
        One grid per row, or one for all.
    taps : int
        Kernel taps per input channel, for ``squant``.
    covariance : Covariance, optional
        Of the inputs, for ``covariance``.

    Returns
    -------
    Codes

    Raises
    ------
    ValueError
        If ``rounding`` is "covariance" and there is none.
    """
    if grid == "ternary":
        return ternary(rows, per_channel=per_channel)
    low, high = limits(bits, grid)
    if rounding == "covariance" and bits < EXACT_BITS:
        if covariance is None:
            raise ValueError("rounding by covariance needs the covariance of the inputs")
        return _search(rows, covariance, bits, grid, per_channel=per_channel)
    scale, zero_point = min_max(rows, bits, grid, per_channel=per_channel)
    if rounding == "squant":
        codes = squant(rows, scale, zero_point, low, high, taps)
    else:
        codes = nearest(rows, scale, zero_point, low, high)
    return Codes(codes, scale, zero_point, low, high)


def _search(rows: Array, covariance: Covariance, bits: int, grid: Grid, *, per_channel: bool) -> Codes:
    """Try several scales with error feedback, keep each row's best by correlation, then polish it by coordinate descent."""
    g, r, n = rows.shape
    root, unit, ratios = Root.of(covariance), matrix(covariance).unit(), RATIOS.get(bits, (1.0,))
    low, high = limits(bits, grid)
    widest, zero_point = (array.astype(np.float64) for array in min_max(rows, bits, grid, per_channel=per_channel))
    codes, scale = np.empty_like(rows), np.empty((g, r))
    most = max(1, MOST_WEIGHTS // (g * n * len(ratios))) if per_channel else r
    for start in range(0, r, most):
        some = slice(start, start + most)
        weights = rows[:, some].transpose(0, 2, 1).astype(np.float64)
        tried, scale[:, some] = _best(weights, root, ratios, widest[:, some], zero_point[:, some], low, high, per_channel=per_channel)
        found = descend(weights, unit, tried, scale[:, some], zero_point[:, some], low, high, sweeps=SWEEPS)
        codes[:, some] = found.transpose(0, 2, 1)
    return Codes(codes, scale, zero_point, low, high)


def _best(
    weights: Array, root: Root, ratios: Sequence[float], widest: Array, zero_point: Array, low: int, high: int, *, per_channel: bool
) -> tuple[Array, Array]:
    """Codes (g, n, r) and scales (g, r) of error feedback, at the scale that suits each row best, or all of them."""
    target, count = Target.of(weights, root), len(ratios)
    scales = np.multiply.outer(ratios, widest)  # (ratios, g, r)
    every = np.concatenate(scales, axis=1), np.tile(zero_point, count)  # all of them at once, side by side
    codes, errors = (np.split(array, count, axis=2) for array in feedback(np.tile(weights, count), root, *every, low, high))
    scores = np.stack([target.correlation(error) for error in errors])
    if not per_channel:
        scores = np.broadcast_to(scores.mean(axis=(1, 2), keepdims=True), scores.shape)
    best = scores.argmax(axis=0)[None]
    best_codes, best_error = (np.take_along_axis(np.stack(arrays), best[:, :, None], 0)[0] for arrays in (codes, errors))
    scale = np.take_along_axis(scales, best, 0)[0]
    return best_codes, scale * target.best_scale(best_error) if per_channel else scale
