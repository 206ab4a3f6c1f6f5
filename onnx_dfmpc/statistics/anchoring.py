"""What a batch norm knows about its layer's input (NumPy).

Training left mean mu_j and variance sigma_j^2 of every output w_j x + b_j: that is o measurements of the input's mean m and covariance S. The
statistics nearest to given ones that agree with them are those of a Kalman step,

    m <- m + S W' (W S W' + lambda D)^-1 (mu - b - W m),                    D = diag(W S W'),
    S <- S + sum_j alpha_j (S w_j) (S w_j)',   (M + lambda diag M) alpha = sigma^2 - diag(W S W'),   M_jk = (w_j' S w_k)^2,

the second being the same step for a covariance with a Wishart prior. lambda is the share of disbelief: the given covariance is an estimate, and
the measurements were made on other images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array

DISBELIEF = 0.1
import os
DISBELIEF = float(os.environ.get("DB","0.1"))
JITTER = 1e-6
SHRINK = -0.9
SMALLEST = 1e-6
"""An output whose expected variance is below this share of the largest is dead: it tells nothing."""


def assimilate(
    weight: Array, mean: Array, covariance: NDArray[Any], observed_mean: Array, observed_variance: Array
) -> tuple[Array, NDArray[Any]]:
    """Bring the statistics of one group's input in line with its batch norm.

    Parameters
    ----------
    weight : float array, shape (r, n)
    mean : float64 array, shape (n,)
    covariance : float32 array, shape (n, n)
    observed_mean, observed_variance : float64 array, shape (r,)
        Of the outputs, without bias.

    Returns
    -------
    mean : float64 array, shape (n,)
    covariance : float32 array, shape (n, n)
    """
    projected = (covariance @ weight.T.astype(np.float32)).astype(np.float64)  # S W'
    expected = weight @ projected
    size = np.diagonal(expected)
    alive = size > SMALLEST * max(float(size.max()), np.finfo(np.float64).tiny)
    if not alive.any():
        return mean, covariance
    projected, expected, size, weight = projected[:, alive], expected[np.ix_(alive, alive)], size[alive], weight[alive]
    shift = np.linalg.solve(expected + DISBELIEF * np.diag(size), observed_mean[alive] - weight @ mean)
    alpha = np.linalg.solve(expected**2 + DISBELIEF * np.diag(size**2), observed_variance[alive] - size)
    strength, directions = np.linalg.eigh(expected)
    root = directions * np.sqrt(np.maximum(strength, JITTER * size.max()))
    values, vectors = np.linalg.eigh(root.T @ (alpha[:, None] * root))
    basis = np.linalg.solve(root.T, vectors)  # columns: the combinations of outputs that change
    narrow = (projected @ basis).astype(np.float32)
    change = np.maximum(values, SHRINK).astype(np.float32)
    return mean + projected @ shift, covariance + (narrow * change) @ narrow.T
