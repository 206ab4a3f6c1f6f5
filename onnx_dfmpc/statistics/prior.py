"""What a network's input looks like before anyone has seen one (NumPy).

Neighbouring places and channels of photographs and signals are alike: Cov(x_i(p), x_j(p + l)) = s^2 (q + (1 -
q) [i = j]) exp(-|l| / reach). Where a batch norm follows the first convolution, its variances say which
reach, which q and which s, and its means say what the mean is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics.field import Field, Sizes, patches, torus_of
from onnx_dfmpc.statistics.windows import Window

PIXELS = 16.0
"""Reach in images when nothing is known; the colours then have `COLOURS` in common."""
COLOURS = 0.9
REACHES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SHARES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98)


class Reading(NamedTuple):
    """A convolution of the input whose output a batch norm knows: weight, where its taps lie, and mean and
    variance without bias.
    """

    weight: Array
    at: Window
    group: int
    mean: Array
    variance: Array


def prior(
    channels: int, size: Sizes, readings: Sequence[Reading], guess: tuple[float, float], birth: int
) -> Field:
    """Field of an input.

    Parameters
    ----------
    channels : int
    size : tuple of int
    readings : sequence of Reading
        May be empty: then the guess is taken.
    guess : (float, float)
        Mean and standard deviation.
    birth : int

    Returns
    -------
    Field
    """
    if not readings or not size:
        mean, deviation = guess
        return replace(
            _field(channels, size, PIXELS, COLOURS if channels == 3 else 0.0, deviation, birth),
            mean=np.full(channels, mean),
        )
    pairs = product(REACHES, SHARES if channels > 1 else (0.0,))
    candidates = [(*pair, *_misfit(_field(channels, size, *pair, 1.0, birth), readings)) for pair in pairs]
    reach, share, _, scale = min(candidates, key=lambda candidate: candidate[2])
    return _with_mean(_field(channels, size, reach, share, math.exp(scale / 2), birth), readings)


def _field(channels: int, size: Sizes, reach: float, share: float, deviation: float, birth: int) -> Field:
    torus = torus_of(channels, size)
    square = np.zeros(torus)
    for axis, n in enumerate(torus):
        square = square + (np.fft.fftfreq(n, 1 / n) ** 2).reshape(
            [-1 if a == axis else 1 for a in range(len(torus))]
        )
    colour = deviation**2 * (share + (1 - share) * np.eye(channels))
    lags = np.exp(-np.sqrt(square) / reach)[..., None, None] * colour
    return Field(np.zeros(channels), lags.astype(np.float32), size, (1.0,) * len(size), birth)


def _misfit(field: Field, readings: Sequence[Reading]) -> tuple[float, float]:
    """Spread and mean of log(observed variance / expected variance)."""
    ratios = []
    for reading in readings:
        rows = reading.weight.reshape(reading.group, -1, int(np.prod(reading.weight.shape[1:])))
        covariance = patches(field, reading.at, reading.group)[1]
        expected = np.einsum("grn,gnm,grm->gr", rows, covariance, rows, optimize=True).ravel()
        alive = (reading.variance > 1e-6 * reading.variance.max()) & (expected > 1e-9 * expected.max())
        ratios.append(np.log(reading.variance[alive] / expected[alive]))
    ratio = np.concatenate(ratios)
    return float(np.mean(np.abs(ratio - np.median(ratio)))), float(np.median(ratio))


def _with_mean(field: Field, readings: Sequence[Reading]) -> Field:
    """The mean that explains the batch norms' means, by least squares with the input's own deviation as the
    scale of what is likely.
    """
    rows, targets = [], []
    for reading in readings:
        if reading.group == 1:
            deviation = np.sqrt(np.maximum(reading.variance, 1e-6 * reading.variance.max()))
            rows.append(reading.weight.sum(axis=tuple(range(2, reading.weight.ndim))) / deviation[:, None])
            targets.append(reading.mean / deviation)
    if not rows:
        return field
    a, b = np.concatenate(rows), np.concatenate(targets)
    ridge = 0.1 / field.variance.mean()
    mean = np.linalg.solve(a.T @ a + ridge * np.eye(field.channels), a.T @ b)
    return replace(field, mean=mean)
