"""How far one array is from another, added up batch by batch in float64 (pure NumPy)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Output = NDArray[Any]


@dataclass
class Comparison:
    """Running sums over pairs of arrays; the metrics are properties and may be read at any time.

    Examples
    --------
    >>> pair = Comparison()
    >>> pair.add(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    >>> pair.max_abs, round(pair.sqnr_db, 2)
    (0.5, 20.0)
    """

    elements: int = 0
    max_abs: float = 0.0
    _reference: float = 0.0
    _other: float = 0.0
    _product: float = 0.0
    _noise: float = 0.0
    _absolute: float = 0.0

    def add(self, reference: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        """Add one batch.

        Parameters
        ----------
        reference, other : numeric arrays of one shape
            All finite.
        """
        a, b = (np.ravel(array).astype(np.float64) for array in (reference, other))
        difference = a - b
        self.elements += a.size
        self._reference += float(a @ a)
        self._other += float(b @ b)
        self._product += float(a @ b)
        self._noise += float(difference @ difference)
        absolute = np.abs(difference)
        self._absolute += float(absolute.sum())
        self.max_abs = max(self.max_abs, float(absolute.max(initial=0.0)))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two, over everything added; 1 for two zeros, 0 for one."""
        if self._noise == 0.0:
            return 1.0
        if self._reference == 0.0 or self._other == 0.0:
            return 0.0
        return max(-1.0, min(1.0, self._product / (math.sqrt(self._reference) * math.sqrt(self._other))))

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, ``10 log10(sum a^2 / sum (a - b)^2)``, in dB; infinite where nothing
        differs.
        """
        if self._noise == 0.0:
            return math.inf
        if self._reference == 0.0:
            return -math.inf
        return 10.0 * (math.log10(self._reference) - math.log10(self._noise))

    @property
    def mean_abs(self) -> float:
        """Mean absolute difference."""
        return self._absolute / self.elements if self.elements else 0.0


def is_finite(array: Output) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
