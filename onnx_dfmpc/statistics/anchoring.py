"""What a batch norm knows about its layer's input (NumPy).

Training left mean mu_j and variance sigma_j^2 of every output w_j x + b_j: that is o measurements of the
input's mean m and covariance S. The statistics nearest to given ones that agree with them are those of a
Kalman step,

    m <- m + S W' (G + lambda D)^-1 (mu - b - W m),                                             G = W S W',  D = diag G,
    S <- S + S W' diag(alpha) W S,    (G o G + lambda D o D) alpha = sigma^2 - diag G,

the second being the same step for a covariance with a Wishart prior (o: elementwise). What it takes away is
bounded, so that S stays positive: with G = B B', S W' diag(alpha) W S = (S W' B'^-1) [B' diag(alpha) B] (S W'
B'^-1)', and S itself is at least the same with the identity in the brackets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array

DISBELIEF = 0.3
"""lambda: the given covariance is an estimate, and the measurements were made on other images."""

LARGEST_LOSS = 0.9
"""Share of the variance that a step may take away from any combination of outputs."""

MOST = 256
"""Outputs that are taken into account, spread over all; more would cost their cube."""

DEAD = 1e-6
"""An output whose expected variance is below this share of the largest tells nothing."""


def assimilate(
    weight: Array, mean: Array, covariance: NDArray[Any], observed_mean: Array, observed_variance: Array
) -> tuple[Array, NDArray[Any]]:
    """Bring the statistics of a layer's input in line with its batch norm.

    Parameters
    ----------
    weight : float array, shape (g, r, n)
    mean : float64 array, shape (g, n)
    covariance : float32 array, shape (g, n, n)
    observed_mean, observed_variance : float64 array, shape (g, r)
        Of the outputs, without bias.

    Returns
    -------
    mean : float64 array, shape (g, n)
    covariance : float32 array, shape (g, n, n)
    """
    chosen = np.linspace(0, weight.shape[1] - 1, min(MOST, weight.shape[1])).astype(np.int64)
    weight, observed_mean, observed_variance = (
        weight[:, chosen],
        observed_mean[:, chosen],
        observed_variance[:, chosen],
    )
    rows = weight.astype(np.float64)
    projected = (covariance @ weight.astype(np.float32).swapaxes(1, 2)).astype(np.float64)  # S W'
    gram = rows @ projected
    size = np.einsum("grr->gr", gram)
    floor = np.maximum(DEAD * size.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    alive = size > floor
    size = np.maximum(size, floor)
    surprise = np.where(alive, observed_mean - (rows @ mean[..., None])[..., 0], 0)
    excess = np.where(alive, observed_variance - size, 0)
    shift = _solve(gram + DISBELIEF * _diagonal(size), surprise)
    alpha = _solve(gram**2 + DISBELIEF * _diagonal(size**2), excess)
    strength, directions = np.linalg.eigh(gram)
    scale = np.sqrt(np.maximum(strength, floor))
    root = directions * scale[:, None]  # B
    change, turned = np.linalg.eigh(root.swapaxes(1, 2) @ (alpha[..., None] * root))
    basis = (projected @ (directions / scale[:, None]) @ turned).astype(np.float32)
    bounded = np.maximum(change, -LARGEST_LOSS).astype(np.float32)
    corrected = (basis * bounded[:, None]) @ basis.swapaxes(1, 2)
    corrected += covariance
    return mean + (projected @ shift[..., None])[..., 0], corrected


def _solve(matrix: Array, right: Array) -> Array:
    solution: Array = np.linalg.solve(matrix, right[..., None])[..., 0]
    return solution


def _diagonal(values: Array) -> Array:
    diagonal: Array = values[..., None] * np.eye(values.shape[-1])
    return diagonal
