"""Activations of normal variables in closed form: Hermite expansions, and what they do to covariances
(NumPy).

For x = mu + sigma z with z standard normal, an activation f has the expansion

    f(x) = sum_k h_k He_k(z) / sqrt(k!),     h_k = E[f(x) He_k(z)] / sqrt(k!),

so its mean is h_0 and, for two such variables with correlation rho (Mehler's formula), Cov(f(x), g(y)) =
sum_{k>0} h_k(f) h_k(g) rho^k. For piecewise linear functions (Relu, LeakyRelu, PRelu, Clip, HardSigmoid) the
coefficients are known exactly; the series of Relu sums to the arc-cosine kernel (Cho & Saul, NeurIPS 2009).
All others take quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array

ORDER = 7
"""Terms of the series; what the variance has beyond them goes into one more."""

NODES = 641
FARTHEST = 8.0
SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Expansion:
    """Expansion of an activation, channel by channel.

    Attributes
    ----------
    mean : float array, shape (c,)
    coefficients : float array, shape (ORDER + 1, c)
        h_1 ... h_ORDER, and a last one that completes the variance.
    """

    mean: Array
    coefficients: Array

    @property
    def variance(self) -> Array:
        """Variance of the output, shape (c,)."""
        variance: Array = (self.coefficients**2).sum(axis=0)
        return variance


@dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """The function ``offset + slope x + sum_t bends[t] max(x - knots[t], 0)``, knots ascending; slopes per
    channel or scalars.

    Examples
    --------
    >>> relu6 = PiecewiseLinear(0.0, 0.0, (0.0, 6.0), (1.0, -1.0))
    >>> relu6(np.array([-1.0, 2.0, 9.0]))
    array([0., 2., 6.])
    """

    offset: float
    slope: float | Array
    knots: tuple[float, ...]
    bends: tuple[float | Array, ...]

    def __call__(self, x: Array) -> Array:
        """Value at x, shape (..., c)."""
        return (
            self.offset
            + self.slope * x
            + sum((b * np.maximum(x - t, 0) for t, b in zip(self.knots, self.bends, strict=True)), start=0.0)
        )


Activation = PiecewiseLinear | Callable[[Array], Array]


def expand(activation: Activation, mean: Array, variance: Array) -> Expansion:
    """Expand an activation of normal variables.

    Parameters
    ----------
    activation : PiecewiseLinear or callable
        A callable maps arrays of shape (nodes, c) elementwise.
    mean, variance : float array, shape (c,)

    Returns
    -------
    Expansion

    Examples
    --------
    >>> relu = PiecewiseLinear(0.0, 0.0, (0.0,), (1.0,))
    >>> e = expand(relu, np.zeros(1), np.ones(1))
    >>> np.round([e.mean[0], e.variance[0]], 4)       # 1 / sqrt(2 pi), (1 - 1 / pi) / 2
    array([0.3989, 0.3408])
    """
    sigma = np.sqrt(np.maximum(variance, SMALLEST))
    if isinstance(activation, PiecewiseLinear):
        moments, square = _exact(activation, mean, sigma)
    else:
        moments, square = _quadrature(activation, mean, sigma)
    rest = square - (moments**2).sum(axis=0)
    return Expansion(moments[0], np.concatenate([moments[1:], np.sqrt(np.maximum(rest, 0))[None]]))


def covariance(left: Expansion, right: Expansion, correlation: NDArray[Any]) -> NDArray[Any]:
    """Covariance of two sets of activated variables from the correlation of their inputs.

    Parameters
    ----------
    left, right : Expansion
        Of c and d variables.
    correlation : float array, shape (..., c, d)

    Returns
    -------
    float array, shape (..., c, d)
    """
    dtype = correlation.dtype
    total = np.zeros_like(correlation)
    for a, b in zip(left.coefficients[::-1], right.coefficients[::-1], strict=True):  # Horner's scheme
        total += np.outer(a, b).astype(dtype)
        total *= correlation
    return total


def _exact(f: PiecewiseLinear, mean: Array, sigma: Array) -> tuple[Array, Array]:
    """Coefficients h_0 ... h_ORDER, shape (ORDER + 1, c), and E[f^2]."""
    ramps = [_ramp(mean - knot, sigma) for knot in f.knots]
    moments = sum(
        (bend * ramp for bend, ramp in zip(f.bends, ramps, strict=True)),
        start=np.zeros((ORDER + 1, len(mean))),
    )
    moments[0] += f.offset + f.slope * mean
    moments[1] += f.slope * sigma
    straight = f.offset + f.slope * mean
    square = straight**2 + (f.slope * sigma) ** 2
    for t, (knot, bend, ramp) in enumerate(zip(f.knots, f.bends, ramps, strict=True)):
        centred = mean - knot
        second = centred * ramp[0] + sigma * ramp[1]  # E[max(x - t, 0)^2]
        square = square + bend**2 * second + 2 * bend * (straight * ramp[0] + f.slope * sigma * ramp[1])
        for other, before in zip(f.knots[:t], f.bends[:t], strict=True):
            square = square + 2 * bend * before * (second + (knot - other) * ramp[0])
    return moments, square


def _ramp(mean: Array, sigma: Array) -> Array:
    """Coefficients of max(x, 0).

    By Stein's lemma h_k sqrt(k!) = sigma E[1(x > 0) He_(k-1)(z)] = sigma phi(a) He_(k-2)(-a), with a = mean /
    sigma.
    """
    a = mean / sigma
    below, density = normal_cdf(a), np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    rows = [mean * below + sigma * density, sigma * below]
    previous, current = np.zeros_like(a), np.ones_like(a)
    for k in range(2, ORDER + 1):
        rows.append(sigma * density * current / math.sqrt(math.factorial(k)))
        previous, current = current, -a * current - (k - 2) * previous
    return np.stack(rows)


def _quadrature(f: Callable[[Array], Array], mean: Array, sigma: Array) -> tuple[Array, Array]:
    """As `_exact`, by the trapezoidal rule, which a kink hurts less than it hurts Gauss-Hermite quadrature."""
    nodes = np.linspace(-FARTHEST, FARTHEST, NODES)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    values = f(mean + sigma * nodes[:, None])
    basis = np.polynomial.hermite_e.hermevander(nodes, ORDER) / np.sqrt(
        [math.factorial(k) for k in range(ORDER + 1)]
    )
    return (basis * weights[:, None]).T @ values, weights @ values**2


def normal_cdf(x: Array) -> Array:
    """Distribution function of the standard normal."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.ravel(x)]).reshape(np.shape(x))


def largest_of(count: int) -> tuple[float, float]:
    """Mean and variance of the largest of independent standard normals.

    Examples
    --------
    >>> np.round(largest_of(2), 4)       # 1 / sqrt(pi), 1 - 1 / pi
    array([0.5642, 0.6817])
    """
    x = np.linspace(-9, 9, 3601)
    mass = np.diff(normal_cdf(x) ** count)
    middle = (x[1:] + x[:-1]) / 2
    mean = float(mass @ middle)
    return mean, float(mass @ middle**2) - mean**2
