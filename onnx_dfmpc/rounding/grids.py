"""Grids: where the levels of a row lie, and rounding to the nearest one.

    Wq = scale (codes - zero_point)        low <= codes <= high

Rows have shape (g, r, n) (see `spec.ops`); scale and zero_point have shape (g, r), equal everywhere when the
grid is per tensor.

    asymmetric   codes 0 .. L - 1, integer zero point inside; L = 2^b, and 3 or 6 for 1.58 and 2.58 bits
    symmetric    codes -h .. h, zero point 0, h = (L - 1) // 2
    vector       levels of the rows of a table (`spec.vectors`), zero point 0, scale by the root mean square
    ternary      codes -1, 0, 1; |W| <= 0.7 mean|W| becomes 0, scale = mean |W| of the others (Li et al.,
                 arXiv 1605.04711)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.linalg.products import slabs
from onnx_dfmpc.spec import Array, Grid
from onnx_dfmpc.spec.vectors import VECTORS
from onnx_dfmpc.spec.widths import LEVELS, code_limits

Limits = tuple[int, int]

TERNARY_THRESHOLD = 0.7
"""Of the paper: near the optimum for normal and for uniform weights."""


@dataclass(frozen=True)
class GridSpec:
    """What is decided about a grid before its scale: kind, bits, and whether every row has its own.

    Examples
    --------
    >>> GridSpec("asymmetric", 2).limits, GridSpec("symmetric", 4).limits, GridSpec("ternary", 2).limits
    ((0, 3), (-7, 7), (-1, 1))
    """

    kind: Grid
    bits: float
    per_channel: bool = True

    @property
    def limits(self) -> Limits:
        """Lowest and highest code."""
        if self.kind == "asymmetric":
            return code_limits(self.bits, signed=False)
        if self.kind == "vector":
            high = int(VECTORS[self.bits].rows.max())
        else:
            high = 1 if self.kind == "ternary" else (LEVELS[self.bits] - 1) // 2
        return -high, high


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes (g, r, n) with their grid: scale and zero_point (g, r), and the lowest and highest code."""

    codes: NDArray[np.floating] | NDArray[np.integer]
    scale: Array
    zero_point: Array
    limits: Limits


def empty_codes(rows: Array, limits: Limits) -> NDArray[np.integer]:
    """Room for codes of rows, a byte each: those of a large layer wait for its repair."""
    return np.empty(rows.shape, np.int8 if limits[0] < 0 else np.uint8)


def first_grid(rows: Array, grid: GridSpec, variances: Array | None = None) -> tuple[Array, Array]:
    """Scale and zero point (g, r) of rows (g, r, n) before any search: `min_max`, or by the root mean square
    for the rows of a table, inputs weighed by their ``variances`` (g, n).
    """
    if grid.kind != "vector":
        return min_max(rows, grid)
    # Weights of inputs that never change may be of any size: nothing ever trained them.
    weights = np.ones_like(rows[:, 0]) if variances is None else variances
    mean = np.empty(rows.shape[:2])
    for part in slabs(rows):
        squares = np.square(rows[:, part], dtype=np.float64)
        mean[:, part] = np.einsum("grn,gn->gr", squares, weights) / weights.sum(axis=1)[:, None]
    scale = np.sqrt(mean) / VECTORS[grid.bits].deviation
    return np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(rows.dtype), np.zeros_like(scale)


def min_max(rows: Array, grid: GridSpec) -> tuple[Array, Array]:
    """Scale and zero point (g, r) of the grid that covers the range of rows (g, r, n), zero included.

    Scales are positive, also where a row is zero everywhere. Not for ternary grids, nor for tables.
    """
    axes = 2 if grid.per_channel else (0, 1, 2)
    least = np.minimum(rows.min(axis=axes, keepdims=True), 0)[..., 0]
    most = np.maximum(rows.max(axis=axes, keepdims=True), 0)[..., 0]
    low, high = grid.limits
    if grid.kind == "asymmetric":
        span = most - least
        zero_point = np.rint(-least * high / np.where(span > 0, span, 1))
    else:
        span = 2 * np.maximum(most, -least)
        zero_point = np.zeros_like(span)
    scale = span / (high - low)
    # A scale below the normal float32 numbers would be lost, or would divide by zero, in a runtime.
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    return _for_rows(scale, rows), _for_rows(zero_point, rows)


def nearest(rows: Array, scale: Array, zero_point: Array, limits: Limits) -> Array:
    """Code of the nearest level, shape of ``rows``."""
    codes: Array = np.clip(np.rint(rows / scale[..., None] + zero_point[..., None]), *limits)
    return codes


def ternary(rows: Array, *, per_channel: bool) -> Codes:
    """Ternary codes by the threshold 0.7 mean|W|."""
    axes = 2 if per_channel else (0, 1, 2)
    size = np.abs(rows)
    kept = size > TERNARY_THRESHOLD * size.mean(axis=axes, keepdims=True)
    count = np.maximum(kept.sum(axis=axes, keepdims=True), 1)
    scale = np.where(kept, size, 0).sum(axis=axes, keepdims=True) / count
    scale = _for_rows(np.where(scale > 0, scale, 1.0)[..., 0], rows)
    return Codes((np.sign(rows) * kept).astype(rows.dtype), scale, np.zeros_like(scale), (-1, 1))


def _for_rows(values: Array, rows: Array) -> Array:
    """Values of each row, or of all, in shape (g, r)."""
    return np.broadcast_to(values, rows.shape[:2]).astype(rows.dtype)


def some_rows(codes: Codes, part: slice) -> Codes:
    """Codes of some rows."""
    return Codes(codes.codes[:, part], codes.scale[:, part], codes.zero_point[:, part], codes.limits)


def dequantize(codes: Codes) -> Array:
    """Float rows that the codes stand for, shape (g, r, n)."""
    rows: Array = (codes.codes - codes.zero_point[..., None]) * codes.scale[..., None]
    return rows
