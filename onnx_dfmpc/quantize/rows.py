"""Rows -> codes by one of the rounding methods: the search over scales around the rounding itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.quantize.covariance import correlation, descend, feedback, inverse_factor, products
from onnx_dfmpc.quantize.grids import Codes, dequantize, limits, min_max, nearest, place, span, ternary
from onnx_dfmpc.quantize.squant import squant
from onnx_dfmpc.spec import Array, Grid, Rounding

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the smallest and of the largest weight that a grid may cover: every pair of them places a scale and a zero point."""

SHORTLIST = 4
"""Grids per row that are tried with error feedback, the best by plain rounding."""

SWEEPS = 4
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
    covariance: Array | None = None,
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
    covariance : float array, shape (g, n, n), optional
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


def _search(rows: Array, covariance: Array, bits: int, grid: Grid, *, per_channel: bool) -> Codes:
    """Try the most promising grids with error feedback, keep each row's best by correlation, then polish it by coordinate descent."""
    rows, covariance = rows.astype(np.float64), covariance.astype(np.float64)
    factor = inverse_factor(covariance)
    low, high = limits(bits, grid)
    best: Codes | None = None
    best_score = np.full(rows.shape[:2], -1.0)
    for scale, zero_point in _shortlist(rows, np.einsum("gnn->gn", covariance), bits, grid, per_channel=per_channel):
        tried = Codes(feedback(rows, factor, scale, zero_point, low, high), scale, zero_point, low, high)
        score = _shared(correlation(rows, covariance, dequantize(tried)), per_channel)
        better = score > best_score
        best_score = np.where(better, score, best_score)
        best = tried if best is None else _merge(better, tried, best)
    assert best is not None
    refit = _refit(rows, covariance, best) if per_channel else best
    codes = descend(rows, covariance, refit.codes, refit.scale, refit.zero_point, low, high, sweeps=SWEEPS)
    return Codes(codes, refit.scale, refit.zero_point, low, high)


def _shortlist(rows: Array, power: Array, bits: int, grid: Grid, *, per_channel: bool) -> Iterator[tuple[Array, Array]]:
    """Scale and zero point of the grids that plain rounding likes best, the best first, each of shape (g, r).

    Liking is the correlation of the responses when inputs are uncorrelated, with their variances ``power`` (g, n). The fewer levels, the
    more it pays to clip, and the zero point moves with the two ends.
    """
    low, high = limits(bits, grid)
    least, most = span(rows, per_channel=per_channel)
    candidates = [(a, b) for a in SHARES for b in SHARES] if grid == "asymmetric" else [(a, a) for a in SHARES]
    placed = [place(a * least, b * most, bits, grid) for a, b in candidates]
    likings = []
    for scale, zero_point in placed:
        quantized = dequantize(Codes(nearest(rows, scale, zero_point, low, high), scale, zero_point, low, high))
        weighted = quantized * power[:, None]
        across, own = np.einsum("grn,grn->gr", weighted, rows), np.einsum("grn,grn->gr", weighted, quantized)
        likings.append(_shared(np.where(across > 0, across, 0) ** 2 / np.maximum(own, np.finfo(np.float32).tiny), per_channel))
    order = np.argsort(-np.stack(likings), axis=0, kind="stable")
    scales, zero_points = (np.stack(arrays) for arrays in zip(*placed, strict=True))
    for rank in order[:SHORTLIST]:
        yield tuple(np.take_along_axis(arrays, rank[None], axis=0)[0] for arrays in (scales, zero_points))


def _shared(score: Array, per_channel: bool) -> Array:
    """Scores of rows, or their sum for each where all rows share one grid."""
    return score if per_channel else np.broadcast_to(score.sum(), score.shape)


def _merge(choose: NDArray[np.bool_], new: Codes, old: Codes) -> Codes:
    return Codes(
        np.where(choose[..., None], new.codes, old.codes),
        np.where(choose, new.scale, old.scale),
        np.where(choose, new.zero_point, old.zero_point),
        new.low,
        new.high,
    )


def _refit(rows: Array, covariance: Array, codes: Codes) -> Codes:
    """The same codes with the scale per row that minimises e' H e."""
    across, own, _ = products(rows, covariance, dequantize(codes))
    factor = np.where((across > 0) & (own > 0), across / np.where(own > 0, own, 1), 1)
    return Codes(codes.codes, codes.scale * factor, codes.zero_point, codes.low, codes.high)
