"""What functions of normal variables do to their mean (c,) and covariance (c, c) (NumPy).

By Stein's lemma Cov(f(x), y) = E f' Cov(x, y) for jointly normal x and y, and Cov(f(x), f(y)) is a power
series in the correlation rho that begins with E f'(x) E f'(y) Cov(x, y).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from onnx_dfmpc.spec import Array

Moments = Callable[[Array, Array], tuple[Array, Array, Array]]
"""Mean and deviation of x -> E f, Var f and E f', channel by channel."""

NODES = np.linspace(-8, 8, 641)[:, None]
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
"""Of the trapezoidal rule, which a kink hurts less than it hurts Gauss-Hermite quadrature."""


def rectified(slope: float | Array, mean: Array, deviation: Array) -> tuple[Array, Array, Array]:
    """Moments of max(x, 0) + slope min(x, 0), in closed form."""
    a, square = mean / deviation, mean**2 + deviation**2
    positive = np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2)), otypes=[float])(a)
    density = deviation * np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    first, second = (
        mean * positive + density,
        square * positive + mean * density,
    )  # E max(x, 0), E max(x, 0)^2
    center = first + slope * (mean - first)
    variance = second + slope**2 * (square - second) - center**2
    return center, np.maximum(variance, 0), positive + slope * (1 - positive)


def quadrature(f: Callable[[Array], Array], mean: Array, deviation: Array) -> tuple[Array, Array, Array]:
    """Moments of any f that takes arrays."""
    values = f(mean + deviation * NODES)
    center = (WEIGHTS * values).sum(axis=0)
    centred = values - center
    return center, (WEIGHTS * centred**2).sum(axis=0), (WEIGHTS * NODES * centred).sum(axis=0) / deviation


def gated(f: Callable[[Array], Array], x: Array) -> Array:
    """What SiLU is in two nodes: x f(x)."""
    return x * f(x)


def activated(mean: Array, covariance: Array, moments: Moments) -> tuple[Array, Array]:
    """Of f(x); rho^2 stands for all terms of the series but the first, so that the variances are right."""
    variance = np.maximum(np.diagonal(covariance), 1e-12)
    center, total, slope = moments(mean, np.sqrt(variance))
    rest = np.sqrt(np.maximum(total - slope**2 * variance, 0)) / variance
    result = np.outer(slope, slope) * covariance + np.outer(rest, rest) * covariance**2
    return center, np.where(np.eye(len(center)), total, result)


def product(
    mean: Array, covariance: Array, other_mean: Array, other_covariance: Array
) -> tuple[Array, Array]:
    """Of x y, x and y independent of each other."""
    result = covariance * np.outer(other_mean, other_mean) + other_covariance * np.outer(mean, mean)
    return mean * other_mean, result + covariance * other_covariance


def largest(mean: Array, covariance: Array, common: float, count: int) -> tuple[Array, Array]:
    """Of the largest of several x with the same mean and variance, and a common correlation."""
    mass = np.diff(np.cumsum(WEIGHTS) ** count, prepend=0)  # of the largest of independent standard normals
    top = float(mass @ NODES[:, 0])
    left = float(mass @ NODES[:, 0] ** 2) - top**2
    deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0))
    return mean + deviation * math.sqrt(1 - common) * top, covariance * (common + (1 - common) * left)
