"""Matrix products and triangular factors whose result does not depend on the number of threads (float64).

A BLAS with more threads cuts a product into other pieces, and sums in another order. With an inner dimension
that no BLAS would cut, every element is one sum in one order; longer inner dimensions are cut here, always at
the same places. Factorisations work in panels, and those by halves down to blocks that LAPACK does on one
thread.

In float64, because errors of products of thousands of terms add up over a network: in float32 the last digits
would decide which of two nearly equal codes a weight gets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

INNER = 256
"""Longest inner dimension that is left to the BLAS: `tests/test_pipeline.py` compares one and two threads."""

PANEL = TILE = 128
"""Columns that `cholesky` factors at a time, and rows of a tile of `gram`. Speed alone; not studied."""

SLAB = 1 << 21
"""Numbers of which a few temporary copies are made at once. Memory alone."""

BASE = 32
"""Matrices of at most this size are LAPACK's, which uses one thread for them."""


def product(a: Array, b: Array, dtype: type[np.floating] | np.dtype[np.floating] = np.float64) -> Array:
    """``a @ b`` of arrays (..., m, k) and (..., k, n), in a dtype.

    Examples
    --------
    >>> product(np.ones((2, 300)), np.ones((300, 1)))
    array([[300.],
           [300.]])
    """
    total: Array | None = None
    for start in range(0, a.shape[-1], INNER):
        left = a[..., start : start + INNER].astype(dtype, copy=False)
        right = b[..., start : start + INNER, :].astype(dtype, copy=False)
        total = left @ right if total is None else np.add(total, left @ right, out=total)
    return np.zeros((*a.shape[:-1], b.shape[-1]), dtype) if total is None else total


def slabs(rows: Array) -> list[slice]:
    """Ranges of the rows of (g, r, n) that fit into memory several times over; all at once where they do."""
    g, r, n = rows.shape
    each = r if rows.size <= SLAB else max(1, SLAB // (g * n))
    return [slice(start, start + each) for start in range(0, r, each)]


def gram(a: Array) -> Array:
    """``a @ a.T`` of matrices (g, n, k), float64, shape (g, n, n).

    In the dtype of ``a``: float32 has digits enough for what is measured on a sample.
    """
    total = np.zeros((len(a), a.shape[1], a.shape[1]), a.dtype)
    for group, into in zip(a, total, strict=True):
        for start in range(0, a.shape[2], INNER):
            part = group[:, start : start + INNER]
            for top in range(0, len(part), TILE):  # what is below the diagonal is copied afterwards
                into[top : top + TILE, top:] += part[top : top + TILE] @ part[top:].T
        for top in range(0, len(into), TILE):
            into[top + TILE :, top : top + TILE] = into[top : top + TILE, top + TILE :].T
    return total.astype(np.float64)


def cholesky(a: Array) -> Array:
    """Lower Cholesky factors of matrices (g, n, n), float64; LinAlgError if one is not positive definite."""
    n = a.shape[1]
    lower = np.zeros(a.shape)
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        factored = lower[:, start:stop, :start].transpose(0, 2, 1)
        panel = a[:, start:, start:stop] - product(lower[:, start:, :start], factored)
        corner = _cholesky_by_halves(panel[:, : stop - start])
        lower[:, start:stop, start:stop] = corner
        lower[:, stop:, start:stop] = product(
            panel[:, stop - start :], inverse_lower(corner).transpose(0, 2, 1)
        )
    return lower


def _cholesky_by_halves(a: Array) -> Array:
    n = a.shape[1]
    if n <= BASE:
        return np.linalg.cholesky(a)
    h = n // 2
    lower = np.zeros_like(a)
    lower[:, :h, :h] = _cholesky_by_halves(a[:, :h, :h])
    below = product(a[:, h:, :h], inverse_lower(lower[:, :h, :h]).transpose(0, 2, 1))
    lower[:, h:, :h] = below
    lower[:, h:, h:] = _cholesky_by_halves(a[:, h:, h:] - product(below, below.transpose(0, 2, 1)))
    return lower


def inverse_lower(lower: Array) -> Array:
    """Inverses of lower triangular matrices (g, n, n)."""
    n = lower.shape[1]
    if n <= BASE:
        return np.tril(np.linalg.inv(lower))
    h = n // 2
    inverse = np.zeros_like(lower)
    inverse[:, :h, :h] = inverse_lower(lower[:, :h, :h])
    inverse[:, h:, h:] = inverse_lower(lower[:, h:, h:])
    inverse[:, h:, :h] = -product(product(inverse[:, h:, h:], lower[:, h:, :h]), inverse[:, :h, :h])
    return inverse
