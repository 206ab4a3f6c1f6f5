"""Scales and biases as float16 numbers: half the bytes, and an error far below that of any codes.

`nearest` is float16 with another exponent: numbers are multiplied by 256 before they are rounded, so that 11
significant bits hold from 2**-22 to 255. An error is at most 2**-12 of a scale, 72 dB below what it scales.
Where that does not do, numbers stay as they are. What is decided by is the float layer alone, so that the
size of a file is known before anything is quantized. `rewrite.vectors` stores such numbers in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.fold import LEVELS, MARGIN, factor_and_shift
from onnx_dfmpc.spec import Array, Layer
from onnx_dfmpc.spec.ops import to_rows

FACTOR = 256.0
"""A power of two: to multiply by it is exact. Scales of trained networks are small; without it half of a
ResNet's 8-bit scales would be denormal numbers. Biases of up to 255 are left.
"""

STEP = float(np.finfo(np.float16).smallest_subnormal) / FACTOR
MOST = float(np.finfo(np.float16).max) / FACTOR
"""The smallest and the largest number."""

TOLERANCE = 2.0**-12
"""Relative error of a number of 11 significant bits."""

LARGEST_BIAS = 8.0
"""Biases over what they are added to, root mean squares. At 8 the error is 60 dB below the output; shared
networks have 4 at most, but for layers that take the mean off pictures of 0..255 (YuNet: 71).
"""


@dataclass(frozen=True)
class Halves:
    """Whether scales and bias of a layer are to be float16 numbers."""

    scale: bool = False
    bias: bool = False


def nearest(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Nearest float16 numbers with our exponent; all values as they are where one is too large.

    >>> nearest(np.float32([0.1, 1e-9, 300.0][:2])).tolist()
    [0.0999755859375, 9.313225746154785e-10]
    """
    single = np.asarray(values, np.float32)
    if single.size and float(np.abs(single).max()) > MOST:
        return single
    return (single * np.float32(FACTOR)).astype(np.float16).astype(np.float32) / np.float32(FACTOR)


def nearest_scale(scale: Array) -> NDArray[np.float32]:
    """`nearest`, but never zero: runtimes divide by scales."""
    rounded = nearest(scale)
    return np.where((rounded == 0) & (scale > 0), np.float32(STEP), rounded)


def at_least(values: Array) -> NDArray[np.float32]:
    """Smallest of these numbers that are not less; values as they are where one is too large."""
    rounded = nearest(values)
    coded = (rounded * np.float32(FACTOR)).astype(np.float16)
    up = np.nextafter(coded, np.float16(np.inf)).astype(np.float32) / np.float32(FACTOR)
    return np.where(rounded < values, up, rounded).astype(np.float32)


def is_exact(values: NDArray[np.floating]) -> bool:
    """Whether all are such numbers, bit for bit."""
    return bool(np.abs(values).max(initial=0.0) <= MOST and np.array_equal(nearest(values), values))


def halves_of(
    layer: Layer, weight: NDArray[np.floating], bias: NDArray[np.floating] | None, *, folded: bool
) -> Halves:
    """What of a float layer will be good enough in float16, its batch norm ``folded`` or not.

    ``weight`` has the shape and type of the file, ``bias`` has shape (channels,). A channel that is as good
    as silent, as weight decay leaves many, counts by its error beside the layer's largest one.
    """
    if weight.dtype != np.float32:
        return Halves()
    rows = to_rows(weight, layer)
    largest = np.abs(rows).max(axis=2).ravel().astype(np.float64)
    if layer.batch_norm is None:
        factor, shift = np.ones(1), np.zeros(1) if bias is None else bias.astype(np.float64)
        deviation = np.sqrt(np.einsum("grn,grn->gr", rows, rows)).ravel()  # of inputs whose deviation is 1
    else:
        factor, shift = factor_and_shift(layer.batch_norm, bias)
        deviation = np.abs(layer.batch_norm.gamma)
    factor = np.abs(factor)
    stored = largest * factor if folded else largest
    after = LEVELS * STEP * (1.0 if folded else float(factor.max()))
    most = MOST / MARGIN
    loudest = float((largest * factor).max())
    scale = bool(stored.max() <= most and (after <= TOLERANCE * loudest or loudest == 0))
    small = np.square(shift).mean() <= LARGEST_BIAS**2 * np.square(deviation).mean()
    return Halves(scale, bool(small and np.abs(shift).max() <= most))
