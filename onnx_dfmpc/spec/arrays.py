"""Types of arrays, and the decibels in which noise is told."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def sqnr_db(noise: float) -> float:
    """Signal-to-quantization-noise ratio, in dB, of noise power relative to that of the signal; infinite for
    none.

    >>> sqnr_db(0.01), sqnr_db(0.0)
    (20.0, inf)
    """
    return -10 * math.log10(noise) if noise > 0 else math.inf
