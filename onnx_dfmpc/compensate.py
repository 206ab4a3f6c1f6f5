"""The closed forms: what repairs a layer whose weights W became Wq (pure NumPy, arrays in and arrays out).

The layer computes y_j = a_j (W_j . x - mu_j) + beta_j with a_j = gamma_j / sigma_j, its input x has mean m
and covariance S, and <u, v> = u' S v is the covariance of two responses to it. All arrays are per output
channel j; rows W_j have shape (g, r, n).

Statistics of the quantized layer, re-estimated without data:

    muq_j    = mu_j + (Wq_j - W_j) . m
    sigmaq_j = sigma_j sqrt( <Wq_j, Wq_j> / <W_j, W_j> )

The paper's coefficient (DF-MPC, arXiv 2307.00498), c_j >= 0, minimises

    L(c) = sum_j || a_j W_j - c_j aq_j Wq_j ||^2 + lambda1 (b_j - c_j bq_j)^2 + lambda2 c_j^2
    a_j  = gamma_j / sigma_j     b_j  = beta_j - a_j mu_j
    aq_j = gamma_j / sigmaq_j    bq_j = beta_j - aq_j muq_j
    c_j  = ( a_j aq_j (W_j . Wq_j) + lambda1 b_j bq_j ) / ( aq_j^2 ||Wq_j||^2 + lambda1 bq_j^2 + lambda2 )

with the plain inner product of the weights. L is separable and convex, so the clipped minimiser is the
minimiser over c >= 0.

The gain of the default method keeps the signal: c_j = <W_j, W_j> / <W_j, Wq_j> makes the regression of the
quantized response on the float one 1. The least-squares gain <W_j, Wq_j> / <Wq_j, Wq_j> is smaller by
rho_j^2, and a deep network that shrinks a little at every layer fades away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_dfmpc.linalg.matrices import Covariance, through
from onnx_dfmpc.spec import Array, BatchNorm

MAX_GAIN = 4.0
"""Bound of a gain and of its inverse: beyond it the channel is mostly noise, which it would amplify. No
gain of ResNet-20 in 2 bits comes near: bounds of 2 and of 100 give the same output SQNR.
"""


@dataclass(frozen=True, eq=False)
class Response:
    """Second moments of the float and the quantized response, per output channel, shape (o,).

    ``own`` is <W, W>, ``across`` <W, Wq>, ``quantized`` <Wq, Wq>; ``shift`` is (Wq - W) . m.
    """

    own: Array
    across: Array
    quantized: Array
    shift: Array

    @property
    def noise(self) -> Array:
        """Variance of the difference of the responses."""
        return np.maximum(self.own - 2 * self.across + self.quantized, 0)

    def scaled(self, c: Array) -> Response:
        """Responses when Wq becomes c Wq; ``shift`` stays that of Wq."""
        return Response(self.own, c * self.across, c * c * self.quantized, self.shift)


def respond(rows: Array, quantized: Array, mean: Array, covariance: Covariance) -> Response:
    """Moments (g * r,) of the responses of rows W and Wq, each (g, r, n), to an input of a mean (g, n) and a
    covariance.
    """
    passed, passed_q = through(rows, covariance), through(quantized, covariance)
    own = np.einsum("grn,grn->gr", passed, rows, dtype=np.float64)
    across = np.einsum("grn,grn->gr", passed, quantized, dtype=np.float64)
    norm = np.einsum("grn,grn->gr", passed_q, quantized, dtype=np.float64)
    return Response(own.ravel(), across.ravel(), norm.ravel(), mean_shift(rows, quantized, mean))


def mean_shift(rows: Array, quantized: Array, mean: Array) -> Array:
    """(Wq - W) . m, shape (g * r,): how far the mean of each output moves."""
    shift: Array = np.einsum("grn,gn->gr", quantized.astype(np.float64) - rows, mean).ravel()
    return shift


def signal_gain(response: Response) -> Array:
    """Gain c = <W, W> / <W, Wq> that keeps the signal, shape (o,); 1 where there is no response to keep.

    Examples
    --------
    >>> signal_gain(Response(np.array([4.0]), np.array([2.0]), np.array([1.0]), np.zeros(1)))
    array([2.])
    """
    alive = (response.own > 0) & (response.across > 0)
    gain = np.where(alive, response.own / np.where(alive, response.across, 1), 1)
    return np.clip(gain, 1 / MAX_GAIN, MAX_GAIN)


def balanced_gain(signal: Array, variance: Array, quantized_variance: Array) -> Array:
    """Gain between keeping the signal and keeping the variance: their geometric mean, shape (o,).

    ``variance`` and ``quantized_variance`` are those of the layer's output in the float and in the quantized
    network, before any gain. The signal gain makes up for this layer's noise only; the variance gain sigma /
    sigmaq, with the quantized network's own sigmaq, counts the noise of all layers before it too. With the
    first alone noise inflates a deep network, with the second alone it displaces the signal.
    """
    alive = (variance > 0) & (quantized_variance > 0)
    ratio = np.where(alive, variance / np.where(alive, quantized_variance, 1), signal**2)
    return np.clip(np.sqrt(signal * np.sqrt(ratio)), 1 / MAX_GAIN, MAX_GAIN)


def reestimate(norm: BatchNorm, response: Response) -> BatchNorm:
    """Batch norm with the statistics (muq, sigmaq) of the quantized layer, from the response of W and Wq."""
    alive = (response.own > 0) & (response.quantized > 0)
    ratio = np.where(alive, response.quantized / np.where(alive, response.own, 1), 1)
    # epsilon is part of sigma: sigmaq^2 = sigma^2 ratio, so that the var to store is that minus epsilon.
    var = norm.sigma**2 * ratio - norm.epsilon
    return replace(norm, mean=norm.mean + response.shift, var=np.maximum(var, 0))


def coefficients(
    rows: Array, quantized: Array, norm: BatchNorm, norm_q: BatchNorm, lambda1: float, lambda2: float
) -> Array:
    """The paper's c_j, clipped at 0, shape (g * r,); 1 where L does not depend on c_j.

    ``rows`` and ``quantized`` have shape (g, r, n); ``norm_q`` is the batch norm of the quantized layer (see
    `reestimate`); the lambdas weigh the bias term and the size of c.
    """
    a, b, aq, bq = *affine(norm), *affine(norm_q)
    inner = np.einsum("grn,grn->gr", rows, quantized, dtype=np.float64).ravel()
    norm2 = np.einsum("grn,grn->gr", quantized, quantized, dtype=np.float64).ravel()
    numerator = a * aq * inner + lambda1 * b * bq
    denominator = aq**2 * norm2 + lambda1 * bq**2 + lambda2
    solvable = denominator > 0
    return np.where(solvable, np.maximum(numerator / np.where(solvable, denominator, 1), 0), 1)


def affine(norm: BatchNorm) -> tuple[Array, Array]:
    """Batch norm as y = a x + b: a = gamma / sigma, b = beta - a mu."""
    a: Array = norm.gamma / norm.sigma
    b: Array = norm.beta - a * norm.mean
    return a, b
