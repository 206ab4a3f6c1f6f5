"""What a report shows of a layer's numbers: where its weights went, how far its gains spread, how far its
bias moved (pure NumPy).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array, Layer, QuantizedLayer, WeightHistogram

__all__ = ["bias_shift", "gain_quartiles", "histogram", "most_changed"]

BINS = 41
"""Odd, so that zero has a bin of its own."""


def histogram(
    name: str, weight: NDArray[np.floating], quantized: NDArray[np.floating], axis: int
) -> WeightHistogram:
    """Weights of a layer before and after, each divided by the largest float weight of its output channel.

    Without the division, the grids of the channels would hide each other.

    Parameters
    ----------
    name : str
    weight, quantized : float array, shape of the stored weight
    axis : int
        Of the output channels.

    Examples
    --------
    >>> found = histogram("conv", np.array([[-2.0, 1.0]]), np.array([[-2.0, 2.0]]), 0)
    >>> found.low, found.high, sum(found.float_counts), found.quantized_counts[-1]
    (-1.0, 1.0, 2, 1)
    """
    others = tuple(d for d in range(weight.ndim) if d != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    unit = np.where(largest > 0, largest, 1)
    before, after = weight / unit, quantized / unit
    reach = max(1.0, float(np.abs(after).max(initial=0.0)))
    counts = [
        np.histogram(values, bins=BINS, range=(-reach, reach))[0].tolist() for values in (before, after)
    ]
    return WeightHistogram(name, -reach, reach, *map(tuple, counts))


def gain_quartiles(gain: Array | None) -> tuple[float, float, float]:
    """Quartiles of the coefficients of a layer's output channels; ones where there are none."""
    if gain is None:
        return 1.0, 1.0, 1.0
    places = np.multiply(
        (0.25, 0.5, 0.75), len(gain) - 1
    )  # np.quantile would import masked arrays, which takes longer than a small model
    first, middle, last = np.interp(places, np.arange(len(gain)), np.sort(gain)).tolist()
    return first, middle, last


def bias_shift(layer: Layer, done: QuantizedLayer, bias: NDArray[np.floating] | None) -> tuple[float, float]:
    """Root mean square, over the output channels, of what was added to the layer's output, and the largest,
    in units of that output.

    Parameters
    ----------
    layer : Layer
    done : QuantizedLayer
    bias : float array, shape (channels,), or None
        Of the float layer.
    """
    moved = np.zeros(1)
    if done.batch_norm is not None and layer.batch_norm is not None:
        moved = layer.batch_norm.mean - done.batch_norm.mean
    elif done.bias is not None:
        moved = done.bias.astype(np.float64) - (0.0 if bias is None else bias.astype(np.float64))
    return float(np.sqrt(np.mean(np.square(moved)))), float(np.abs(moved).max())


def most_changed(sqnr_db: Sequence[float | None], count: int) -> tuple[int, ...]:
    """Positions of the layers to show: the first, the last, and between them those with the lowest SQNR, in
    their order.

    Examples
    --------
    >>> most_changed([30.0, 9.0, None, 20.0, 8.0, 31.0], 4)
    (0, 1, 4, 5)
    """
    last = len(sqnr_db) - 1
    inner = sorted(
        (value, position)
        for position, value in enumerate(sqnr_db)
        if value is not None and 0 < position < last
    )
    ends = (0, last) if last > 0 else (0,) if last == 0 else ()
    chosen = [position for _, position in inner[: max(count - len(ends), 0)]]
    return tuple(sorted({*ends, *chosen}))
