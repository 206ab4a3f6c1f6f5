"""Rows -> codes by one of the rounding methods: the search over scales around the rounding itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.linalg.matrices import Covariance, matrix
from onnx_dfmpc.rounding.gptq import CholeskyFactor, Target, descend, feedback
from onnx_dfmpc.rounding.grids import Codes, limits, min_max, nearest, ternary
from onnx_dfmpc.rounding.squant import squant
from onnx_dfmpc.spec import Array, Grid, Rounding

RATIOS = {2: (0.55, 0.65, 0.75, 0.85, 0.95), 3: (0.6, 0.7, 0.8, 0.9, 1.0), 4: (0.75, 0.85, 0.95, 1.0)}
"""Shares of the range of a row that its grid may cover: the fewer levels, the more it pays to clip. Above 4
bits it does not.
"""

MOVES = {2: (-1, 1), 3: (-1, 1)}
"""Steps by which the zero point may move from where the range of the row puts it, at the best of these
shares: with few levels, one more on the side of the many small weights may be worth more than the end of the
other side.
"""

SWEEPS = 4
MOST_WEIGHTS = 1 << 20
"""Weights that are rounded at forward_only, times scales: rows are independent, and memory is bounded."""

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
    rounding : {"nearest", "squant", "gptq"}
    per_channel : bool
        One grid per row, or one for all.
    taps : int
        Kernel taps per input channel, for ``squant``.
    covariance : Covariance, optional
        Of the inputs, for ``gptq``.

    Returns
    -------
    Codes

    Raises
    ------
    ValueError
        If ``rounding`` is "gptq" and there is none.
    """
    if grid == "ternary":
        return ternary(rows, per_channel=per_channel)
    low, high = limits(bits, grid)
    if rounding == "gptq" and bits < EXACT_BITS:
        if covariance is None:
            raise ValueError("rounding by gptq needs the covariance of the inputs")
        return _search(rows, covariance, bits, grid, per_channel=per_channel)
    scale, zero_point = min_max(rows, bits, grid, per_channel=per_channel)
    if rounding == "squant":
        codes = squant(rows, scale, zero_point, low, high, taps)
    else:
        codes = nearest(rows, scale, zero_point, low, high)
    return Codes(codes, scale, zero_point, low, high)


def _search(rows: Array, covariance: Covariance, bits: int, grid: Grid, *, per_channel: bool) -> Codes:
    """Try several grids with error feedback, keep each row's best by correlation, then polish it by
    coordinate descent.
    """
    g, r, n = rows.shape
    factor, unit, ratios = (
        CholeskyFactor.of(covariance),
        matrix(covariance).unit_diagonal(),
        RATIOS.get(bits, (1.0,)),
    )
    moves = MOVES.get(bits, ()) if grid == "asymmetric" and per_channel else ()
    limit = limits(bits, grid)
    widest, middle = (
        array.astype(np.float64) for array in min_max(rows, bits, grid, per_channel=per_channel)
    )
    codes, scale, zero_point = np.empty_like(rows), np.empty((g, r)), np.empty((g, r))
    most = max(1, MOST_WEIGHTS // (g * n * len(ratios))) if per_channel else r
    for start in range(0, r, most):
        some = slice(start, start + most)
        weights = rows[:, some].transpose(0, 2, 1).astype(np.float64)
        target = Target.of(weights, factor)
        best = _tried(
            weights, factor, target, np.multiply.outer(ratios, widest[:, some]), middle[None, :, some], limit
        ).best(per_channel)
        if moves:
            moved = np.clip(np.add.outer(moves, best.zero_point[0]), *limit)
            best = best.beside(_tried(weights, factor, target, best.scale, moved, limit)).best(per_channel)
        scale[:, some] = best.scale[0] * (target.best_scale(best.error[0]) if per_channel else 1)
        zero_point[:, some] = best.zero_point[0]
        found = descend(
            weights, unit, best.codes[0], scale[:, some], zero_point[:, some], *limit, sweeps=SWEEPS
        )
        codes[:, some] = found.transpose(0, 2, 1)
    return Codes(codes, scale, zero_point, *limit)


@dataclass(frozen=True, eq=False)
class _Tried:
    """Candidates side by side: codes and error of the response (t, g, n, r), scale, zero point and score (t,
    g, r).
    """

    codes: Array
    error: Array
    scale: Array
    zero_point: Array
    score: Array

    def best(self, per_channel: bool) -> _Tried:
        """The one that suits each row best, or all of them."""
        score = (
            self.score
            if per_channel
            else np.broadcast_to(self.score.mean(axis=(1, 2), keepdims=True), self.score.shape)
        )
        choice = score.argmax(axis=0)[None]
        return _Tried(
            *(
                np.take_along_axis(a, choice[:, :, None] if a.ndim == 4 else choice, 0)
                for a in vars(self).values()
            )
        )

    def beside(self, others: _Tried) -> _Tried:
        """These and others."""
        return _Tried(
            *(np.concatenate(pair) for pair in zip(vars(self).values(), vars(others).values(), strict=True))
        )


def _tried(
    weights: Array,
    factor: CholeskyFactor,
    target: Target,
    scale: Array,
    zero_point: Array,
    limit: tuple[int, int],
) -> _Tried:
    """Error feedback on grids of scales and zero points (t, g, r), all of them at once."""
    scale, zero_point = np.broadcast_arrays(scale, zero_point)
    count = len(scale)
    found = feedback(
        np.tile(weights, count),
        factor,
        np.concatenate(scale, axis=1),
        np.concatenate(zero_point, axis=1),
        *limit,
    )
    codes, error = (np.stack(np.split(array, count, axis=2)) for array in found)
    return _Tried(codes, error, scale, zero_point, np.stack([target.correlation(one) for one in error]))
