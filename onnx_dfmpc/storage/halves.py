"""Numbers for scales and biases that take 16 bits: float16 with another exponent.

They are multiplied by 256 before they are rounded, so that 11 significant bits hold from 2**-22 to 255, and
an error is at most 2**-11 of the number, and 74 dB below it on average. `rewrite.halves` says where that will
do, and `rewrite.vectors` puts them into the file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array

FACTOR = 256.0
"""A power of two: to multiply by it is exact. Scales of trained networks are small; without it half of a
ResNet's 8-bit scales would be denormal numbers. Biases of up to 255 are left.
"""

STEP = float(np.finfo(np.float16).smallest_subnormal) / FACTOR
MOST = float(np.finfo(np.float16).max) / FACTOR
"""The smallest and the largest number."""


def nearest(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Nearest float16 numbers with our exponent; all values as they are where one is too large.

    >>> nearest(np.array([0.1, 1e-9])).tolist()
    [0.0999755859375, 9.313225746154785e-10]
    """
    single = np.asarray(values, np.float32)
    if single.size and float(np.abs(single).max()) > MOST:
        return single
    return (single * np.float32(FACTOR)).astype(np.float16).astype(np.float32) / np.float32(FACTOR)


def nearest_scale(scale: Array) -> NDArray[np.float32]:
    """`nearest`, but never zero: runtimes divide by scales."""
    rounded = nearest(scale)
    return np.where((rounded == 0) & (scale != 0), np.copysign(np.float32(STEP), rounded), rounded)


def at_least(values: Array) -> NDArray[np.float32]:
    """Smallest of these numbers that are not less; values as they are where one is too large."""
    rounded = nearest(values)
    coded = (rounded * np.float32(FACTOR)).astype(np.float16)
    with np.errstate(over="ignore"):  # after the largest one there is none, and none is needed
        up = np.nextafter(coded, np.float16(np.inf)).astype(np.float32) / np.float32(FACTOR)
    return np.where(rounded < values, up, rounded).astype(np.float32)


def is_exact(values: NDArray[np.floating]) -> bool:
    """Whether all are such numbers, bit for bit."""
    return bool(np.abs(values).max(initial=0.0) <= MOST and np.array_equal(nearest(values), values))
