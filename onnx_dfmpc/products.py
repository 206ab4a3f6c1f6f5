"""Matrix products and triangular factors whose result does not depend on the number of threads (pure NumPy, float64).

A BLAS with more threads cuts a product into other pieces, and sums in another order. In double precision, with an inner dimension that no
BLAS would cut, every element is one sum in one order; longer inner dimensions are cut here, always at the same places. Factorisations work
by halves down to blocks that LAPACK does on one thread.
"""

from __future__ import annotations

import numpy as np

from onnx_dfmpc.spec import Array

INNER = 256
BASE = 32


def product(a: Array, b: Array) -> Array:
    """``a @ b``, float64.

    Parameters
    ----------
    a : float array, shape (..., m, k)
    b : float array, shape (..., k, n)

    Examples
    --------
    >>> product(np.ones((2, 300)), np.ones((300, 1)))
    array([[300.],
           [300.]])
    """
    total: Array | None = None
    for start in range(0, a.shape[-1], INNER):
        left = a[..., start : start + INNER].astype(np.float64, copy=False)
        right = b[..., start : start + INNER, :].astype(np.float64, copy=False)
        total = left @ right if total is None else np.add(total, left @ right, out=total)
    return np.zeros((*a.shape[:-1], b.shape[-1])) if total is None else total


def gram(a: Array) -> Array:
    """``a @ a.T`` of a matrix (n, k), float64. BLAS sees that both factors are the same array, and computes half of it."""
    total = np.zeros((len(a), len(a)))
    for start in range(0, a.shape[1], INNER):
        part = np.ascontiguousarray(a[:, start : start + INNER], dtype=np.float64)
        total += part @ part.T
    return total


def cholesky(a: Array) -> Array:
    """Lower Cholesky factors of symmetric positive definite matrices (g, n, n).

    Raises
    ------
    numpy.linalg.LinAlgError
        If a matrix is not positive definite.
    """
    n = a.shape[1]
    if n <= BASE:
        return np.linalg.cholesky(a)
    h = n // 2
    lower = np.zeros_like(a)
    lower[:, :h, :h] = cholesky(a[:, :h, :h])
    inverse = inverse_lower(lower[:, :h, :h])
    below = product(a[:, h:, :h], inverse.transpose(0, 2, 1))
    lower[:, h:, :h] = below
    lower[:, h:, h:] = cholesky(a[:, h:, h:] - product(below, below.transpose(0, 2, 1)))
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
