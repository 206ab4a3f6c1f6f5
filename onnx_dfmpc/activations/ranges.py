"""Range of an activation for 256 levels, from a histogram: clipping against step by expected error (NumPy).

A tensor x is observed on synthetic inputs of some kinds k. Real values are taken to be x_f = m + f (x - m),
where m is the mean and the factor f is not known: log f is normal with deviation tau, which is small where
batch norm anchors the tensor. A range [l, h] has the step s = (h - l) / 255, and clips what is outside. Its
expected error relative to the signal is

    J(l, h) = sum_k w_k / p_k  E_f [ s^2 / 12 + C E_x (x_f - clip(x_f, l, h))^2 ] / f^2        p_k = E_x x^2

`quantization_range` minimises it. C is the cost of clipping: the error of the step is spread evenly and
averages out in the sums of the next layer, that of clipping comes together, at the strongest responses.

Histograms have bins of equal width in log |x|, which float32 gives for free: sign, exponent and the first
bits of the fraction, taken as an integer, are the bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array

FRACTION_BITS = 4
"""Bits of the fraction in a bin: 16 bins for a factor of 2, each 4 % wide."""

BINS = 1 << (9 + FRACTION_BITS)
SHIFT = 23 - FRACTION_BITS

LEVELS = 255
"""Steps of an 8-bit range."""

CLIPPING = 64.0
"""C: what an error by clipping costs over one by rounding."""

DEVIATIONS = np.linspace(-2, 2, 9)
"""Of log f, in units of tau, at which the expectation over f is taken."""

SHARES = 2.0 ** np.linspace(-5, 0, 61)
"""Ends of the range that are tried, as shares of the largest value that is expected."""


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
    factors = np.exp(tau * DEVIATIONS)
    chances = np.exp(-np.square(DEVIATIONS) / 2)
    chances /= chances.sum()
    kinds = []
    for count, likely in zip(counts, weights, strict=True):
        used = (count > 0) & np.isfinite(middle)
        x, share = middle[used], count[used] / max(count[used].sum(), 1)
        power = float(share @ np.square(x))
        if likely > 0 and power > 0:
            mean = float(share @ x)
            spread = mean + np.multiply.outer(factors, x - mean)  # (factors, bins): x as it may really be
            kinds.append(
                (np.clip(spread, *bounds), likely / power * np.multiply.outer(chances / factors**2, share))
            )
    if not kinds:
        return max(bounds[0], -1.0), min(bounds[1], 1.0)
    (lows, below), (highs, above) = (_ends(kinds, sign) for sign in (-1, 1))
    scale = sum(float(share.sum()) for _, share in kinds)
    rounding = scale * np.square(np.add.outer(lows, highs) / LEVELS) / 12
    error = rounding + CLIPPING * np.add.outer(below, above)
    low, high = np.unravel_index(int(error.argmin()), error.shape)
    return 0.0 - float(lows[low]), float(highs[high])


def _ends(kinds: Sequence[tuple[Array, Array]], sign: int) -> tuple[Array, Array]:
    """Candidates for one end of the range, as distances from 0, and the expected error of clipping at each.

    A kind is its values and their shares, both (factors, bins).
    """
    largest = max(0.0, *(float((sign * values).max()) for values, _ in kinds))
    if largest == 0:
        return np.zeros(1), np.zeros(1)
    candidates = largest * SHARES
    error = np.zeros(len(candidates))
    for values, share in kinds:
        over = sign * values > candidates[0]
        x, chance = sign * values[over], share[over]
        error += np.square(np.maximum(x - candidates[:, None], 0)) @ chance
    return candidates, error


def scale_and_zero_point(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of UINT8 for a range with l <= 0 <= h.

    Examples
    --------
    >>> scale_and_zero_point(0.0, 6.0)[1], scale_and_zero_point(-1.0, 3.0)[1]
    (0, 64)
    """
    scale = np.float32(max(high - low, float(np.finfo(np.float32).tiny) * LEVELS) / LEVELS)
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
