"""Range of an activation for 256 levels, from a histogram: clipping against step by expected error (NumPy).

A tensor x is observed on synthetic inputs of some kinds k. Real values are taken to be f x, where the factor
f is not known: log f is normal with deviation tau, which is small where batch norm anchors the tensor. A
range [l, h] has the step s = (h - l) / 255, and clips what is outside. Its expected error relative to the
signal is

    J(l, h) = sum_k w_k / p_k  E_f [ s^2 / 12 + C E_x (f x - clip(f x, l, h))^2 ] / f^2        p_k = E_x x^2

`quantization_range` minimises it. C is the cost of clipping: the error of the step is spread evenly and
averages out in the sums of the next layer, that of clipping comes together, at the strongest responses.

Histograms have bins of equal width in log |x|, which float32 gives for free: sign, exponent and the first
bits of the fraction, taken as an integer, are the bin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array

FRACTION_BITS = 4
"""Bits of the fraction in a bin: 16 bins for a factor of 2, each 4 % wide."""

BINS = 1 << (9 + FRACTION_BITS)
SHIFT = 23 - FRACTION_BITS

LEVELS = 255
"""Steps of an 8-bit range."""

CLIPPING = 16.0
"""C: what an error by clipping costs over one by rounding."""

FACTORS = np.linspace(-2, 2, 9)
"""Deviations of log f at which the expectation over f is taken."""

SHARES = 2.0 ** np.linspace(-3, 2, 41)
"""Ends of the range that are tried, as multiples of the largest value seen."""


def histogram(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Counts of values by bin, shape (bins,).

    Examples
    --------
    >>> counts = histogram(np.array([1.0, 1.01, -3.0], np.float32))
    >>> int(counts.sum()), centres()[counts > 0].round(2).tolist()
    (3, [1.03, -3.06])
    """
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    counts: NDArray[np.int64] = np.bincount(bits >> SHIFT, minlength=BINS)
    return counts


def centres() -> Array:
    """Middle of every bin, shape (bins,); infinite and NaN beyond the largest numbers."""
    edges = (np.arange(BINS, dtype=np.uint32) << SHIFT) | np.uint32(1 << (SHIFT - 1))
    with np.errstate(invalid="ignore"):  # some are NaN
        middle = edges.view(np.float32).astype(np.float64)
    smallest = np.abs(middle) < np.finfo(np.float32).tiny  # the bins of 0 and of subnormal numbers
    return np.where(smallest, 0.0, middle)


def quantization_range(
    counts: NDArray[np.int64], weights: Array, tau: float, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Range [l, h] with l <= 0 <= h that minimises the expected error.

    Parameters
    ----------
    counts : (kinds, bins) integers
        Histograms of the tensor for every kind of inputs.
    weights : (kinds,) floats
        How likely the kinds are.
    tau : float
        Deviation of the logarithm of the unknown factor.
    bounds : (float, float)
        Of the values, as the graph gives them: the range never reaches beyond.
    """
    middle = centres()
    used = counts.sum(axis=0) > 0
    used &= np.isfinite(middle)
    x, n = middle[used], counts[:, used].astype(np.float64)
    if not x.size or not np.any(x):
        return max(bounds[0], 0.0), min(bounds[1], 1.0)
    total = np.maximum(n.sum(axis=1), 1)
    power = n @ np.square(x) / total
    likely = np.where(power > 0, weights / np.where(power > 0, power, 1), 0)
    density = likely @ (n / total[:, None])  # of all kinds together, each relative to its power
    scale = float(likely.sum())
    if scale <= 0:
        return max(bounds[0], 0.0), min(bounds[1], 1.0)
    factors = np.exp(tau * FACTORS)
    chances = np.exp(-np.square(FACTORS) / 2)
    chances /= chances.sum()
    ends = []
    for sign in (-1, 1):
        side = sign * x > 0
        limit = sign * bounds[(sign + 1) // 2]
        ends.append(_side(sign * x[side], density[side], factors, chances, limit))
    (lows, below), (highs, above) = ends
    step = np.add.outer(lows, highs) / LEVELS
    rounding = scale * np.square(step) / 12 * float(chances @ factors**-2.0)
    error = rounding + CLIPPING * np.add.outer(below, above)
    low, high = np.unravel_index(int(error.argmin()), error.shape)
    return 0.0 - float(lows[low]), float(highs[high])


def _side(x: Array, density: Array, factors: Array, chances: Array, limit: float) -> tuple[Array, Array]:
    """Candidates for the end of the range on one side, and the expected error of clipping at each; ``x`` are
    the distances of the bins from 0.
    """
    limit = max(limit, 0.0)
    if not x.size or limit == 0:
        return np.zeros(1), np.zeros(1)
    candidates = np.unique(np.minimum(x.max() * SHARES, limit))
    # Clipping f x at t, relative to f: the same as clipping x at t / f.
    reached = np.minimum(np.multiply.outer(factors, x), limit) / factors[:, None]
    over = np.maximum(reached[None] - (candidates[:, None] / factors)[:, :, None], 0)
    return candidates, np.einsum("tfx,x,f->t", np.square(over), density, chances)


def scale_and_zero_point(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of UINT8 for a range with l <= 0 <= h.

    Examples
    --------
    >>> scale_and_zero_point(0.0, 6.0)[1], scale_and_zero_point(-1.0, 1.0)[1]
    (0, 128)
    """
    scale = np.float32(max(high - low, float(np.finfo(np.float32).tiny) * LEVELS) / LEVELS)
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
