"""Tables of vectors: each row is the levels of k weights, and one index, a byte and perhaps a few bits more,
chooses it.

A scalar grid of L levels tiles the space of k weights by cubes, most of them far out where no weights are.
With R = L^k rows, wherever the weights are dense, the same bits make 1 to 2 dB less noise.

The tables are those of k-means on what weights of all kinds of layers look like after a division by their
root mean square: generalized normal numbers, between Laplace's and the normal distribution. Tables that are
fitted to a network's own weights gain 0.1 dB (0 to 0.4 over five networks and four widths) and would take as
many bytes, a second of time, and a way through every room. Rows come in pairs t and -t, so that a file holds
half of them. `python -m benchmarks.vectors` makes them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

BYTE = 256


@dataclass(frozen=True, eq=False)
class VectorTable:
    """Levels of ``length`` weights in every row.

    Attributes
    ----------
    half : int8 array, shape (rows / 2, length)
        The first half of the rows; the others are the same with the other sign.
    deviation : float
        What weights of root mean square 1 are in levels.
    """

    half: NDArray[np.int8]
    deviation: float

    @property
    def length(self) -> int:
        """Weights of a row."""
        return int(self.half.shape[1])

    @property
    def count(self) -> int:
        """The number of rows."""
        return 2 * len(self.half)

    @property
    def high(self) -> int:
        """What an index may be beyond a byte."""
        return self.count // BYTE

    @property
    def rows(self) -> NDArray[np.int8]:
        """Levels, shape (count, length)."""
        return np.concatenate([self.half, -self.half])

    @property
    def key(self) -> str:
        """Short name: how many bytes' worth of rows, and their length."""
        return f"{self.high}v{self.length}"


SHAPES: Mapping[float, tuple[int, int]] = {
    1.58: (256, 5),
    2: (256, 4),
    2.58: (256, 3),
    3: (512, 3),
    4: (256, 2),
    5: (1024, 2),
}
"""Rows and their length by nominal bits: as many bytes as the same width takes on a scalar grid."""


def _load() -> dict[float, VectorTable]:
    with (files("onnx_dfmpc.spec") / "vectors.npz").open("rb") as file, np.load(file) as stored:
        return {
            bits: VectorTable(stored[f"half_{bits:g}"], float(stored[f"deviation_{bits:g}"]))
            for bits in SHAPES
        }


VECTORS: Mapping[float, VectorTable] = _load()
"""Tables by nominal bits."""

MOST_INTEGER_BITS = 4
"""Tables of so many bits stay within 7 bits of INT8, and never make integer kernels saturate."""
