"""Rounding that minimises the output error instead of the weight error.

The output of a row w moves by e'x when the row moves by e = wq - w. With H the covariance of the inputs x,

    Var(e'x) = e' H e = |L e|^2,        L'L = H

is what rounding should make small. Two passes, per output channel independently and vectorised over them:

 * error feedback (Frantar et al., GPTQ, arXiv 2210.17323): weights are rounded one after the other, and each
   one's error is moved to those that are still float, in the least-squares sense. With L lower triangular
   that is to make one element of L e after the other small, codes_j <- round((w_j - sum_k<j L_jk e_k / L_jj)
   / scale).
 * coordinate descent: weight j moves to the best level given all others, codes_j <- round(codes_j - (He)_j /
   (H_jj scale)). Each move lowers e' H e or leaves it, so a pass never loses.

Both are the same ``sweep``: of the float weights under L with its rows divided by L_jj, of codes under H with
its rows divided by H_jj. Here weights stand upright, (g, n, r), so that one input of all rows is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.linalg.matrices import Covariance, Matrix, matrix
from onnx_dfmpc.rounding.sweep import sweep
from onnx_dfmpc.spec import Array

DAMPING = 0.01


@dataclass(frozen=True, eq=False)
class CholeskyFactor:
    """Lower triangular L with L'L = H, damped: the rows of L divided by its diagonal, and that diagonal,
    shape (g, n).
    """

    matrix: Matrix
    diagonal: Array

    @classmethod
    def of(cls, covariance: Covariance) -> CholeskyFactor:
        """CholeskyFactor of a covariance."""
        factor = matrix(covariance).damped(DAMPING).cholesky()
        return cls(factor.unit_diagonal(), factor.diagonal())

    def times(self, columns: Array) -> Array:
        """L times columns (g, n, r)."""
        everything = slice(0, self.matrix.inputs)
        return self.matrix.part(everything, everything, columns) * self.diagonal[..., None]


def feedback(
    weights: Array, factor: CholeskyFactor, scale: Array, zero_point: Array, low: int, high: int
) -> tuple[Array, Array]:
    """Round with error feedback.

    Parameters
    ----------
    weights : float array, shape (g, n, r)
    factor : CholeskyFactor
    scale, zero_point : float arrays, shape (g, r)
    low, high : int
        BitBounds of a code.

    Returns
    -------
    codes : float64 array, shape (g, n, r)
    error : float64 array, shape (g, n, r)
        L e, the error of the response.
    """
    codes = (weights / scale[:, None] + zero_point[:, None]).astype(np.float64)
    effect = np.zeros_like(codes)
    sweep(factor.matrix, codes, effect, low, high, forward_only=True)
    effect *= factor.diagonal[..., None] * scale[:, None]
    return codes, effect


def descend(
    weights: Array,
    unit: Matrix,
    codes: Array,
    scale: Array,
    zero_point: Array,
    low: int,
    high: int,
    *,
    sweeps: int,
) -> Array:
    """Coordinate descent of e' H e over the codes.

    Parameters
    ----------
    weights : float array, shape (g, n, r)
    unit : Matrix
        H with each row divided by the element on the diagonal.
    codes : float array, shape (g, n, r)
        Where to start; not changed.
    scale, zero_point : float arrays, shape (g, r)
    low, high : int
        BitBounds of a code.
    sweeps : int
        At most so many passes; it stops when one moves nothing.

    Returns
    -------
    float64 array, shape (g, n, r)
        Codes.
    """
    everything = slice(0, unit.inputs)
    codes = codes.astype(np.float64)
    effect = unit.part(everything, everything, codes - (weights / scale[:, None] + zero_point[:, None]))
    for left in reversed(range(sweeps)):
        if not sweep(unit, codes, effect, low, high, forward_only=left == 0):
            break
    return codes


@dataclass(frozen=True, eq=False)
class Target:
    """The responses y = L w of float weights, which quantized ones should reproduce; <u, v> = u' H v.

    Attributes
    ----------
    response : float64 array, shape (g, n, r)
    norm : float64 array, shape (g, r)
        <w, w>.
    """

    response: Array
    norm: Array

    @classmethod
    def of(cls, weights: Array, factor: CholeskyFactor) -> Target:
        """Target for weights (g, n, r)."""
        response = factor.times(weights)
        return cls(response, _inner(response, response))

    def products(self, error: Array) -> tuple[Array, Array]:
        """<w, wq> and <wq, wq>, each of shape (g, r), for an error L (wq - w) of shape (g, n, r)."""
        mixed = _inner(self.response, error)
        return self.norm + mixed, self.norm + 2 * mixed + _inner(error, error)

    def correlation(self, error: Array) -> Array:
        """Squared correlation of the responses, shape (g, r); 0 where they oppose each other."""
        across, own = self.products(error)
        squared: Array = np.where(across > 0, across, 0) ** 2 / np.maximum(
            own * self.norm, np.finfo(np.float32).tiny
        )
        return squared

    def best_scale(self, error: Array) -> Array:
        """Factor per row that minimises the error of the response, shape (g, r); 1 where no factor helps."""
        across, own = self.products(error)
        return np.where((across > 0) & (own > 0), across / np.where(own > 0, own, 1), 1)


def _inner(a: Array, b: Array) -> Array:
    product: Array = np.einsum("gnr,gnr->gr", a, b)
    return product
