"""What the weights of one input become: the nearest codes of a scalar grid, or the nearest rows of a table.

Scalar codes are rounded one by one. A row of a table is for k output channels at once, the same input of
each. To an input of variance s they add s e'e of noise: what ties weights of one channel together, the
covariance of its inputs, does not tie channels. So the nearest row is that of the smallest plain distance in
units of the scales, which makes the noise of each channel count relative to its signal,

    argmin |t - v|^2 = argmax (t.v - |v|^2 / 2)

and `gptq` goes through the inputs as ever. The o channels of a layer are cut into k parts of B = ceil(o / k)
channels, and a row is for channels b, B + b, 2 B + b ...: then the file needs no transposition to put the
rows of a table, looked up along an axis of their own, in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.rounding.grids import GridSpec, Limits
from onnx_dfmpc.spec import Array
from onnx_dfmpc.spec.vectors import VECTORS

WORKING = np.float32
"""Dtype of the sweeps of `gptq`."""

MOST_SCORES = 1 << 19
"""Distances that are held at once. Speed alone."""


@dataclass(frozen=True)
class ScalarLevels:
    """Integers from the lowest to the highest code, each weight by itself."""

    limits: Limits
    per_channel: bool = True

    def round(self, values: Array) -> None:
        """Replace values by the nearest codes, in place."""
        low, high = self.limits
        np.rint(values, out=values)
        np.minimum(np.maximum(values, low, out=values), high, out=values)

    def shared(self, score: Array) -> Array:
        """Scores (t, g, r) averaged over the channels that have to take the same grid."""
        if self.per_channel:
            return score
        return np.broadcast_to(score.mean(axis=(1, 2), keepdims=True), score.shape)


@dataclass(frozen=True, eq=False)
class VectorLevels:
    """Rows (R, k) of a table, and half their squared norms (R,).

    Values have shape (g, t r): the groups of ``layers`` one after the other, and ``trials`` t grids for the r
    channels of each.
    """

    rows: Array
    penalty: Array
    layers: int = 1
    trials: int = 1

    @classmethod
    def of(cls, rows: Array, layers: int = 1, trials: int = 1) -> VectorLevels:
        """Levels of a table."""
        return cls(rows, np.square(rows).sum(axis=1) / 2, layers, trials)

    def round(self, values: Array) -> None:
        """Replace values by levels of the nearest rows, in place."""
        blocks = self._blocks(values)
        size = max(1, MOST_SCORES // len(self.rows))
        for start in range(0, len(blocks), size):
            part = slice(start, start + size)
            scores = blocks[part] @ self.rows.T
            scores -= self.penalty
            blocks[part] = self.rows[scores.argmax(axis=1)]
        values[...] = self._channels(blocks, values.shape)

    def shared(self, score: Array) -> Array:
        """Scores (t, g, r) averaged over the channels of a row of the table."""
        one = VectorLevels(self.rows, self.penalty, self.layers)
        pooled = np.empty_like(score)
        for own, into in zip(score, pooled, strict=True):
            blocks = one._blocks(own, fill=np.nan)
            means = np.broadcast_to(np.nanmean(blocks, axis=1, keepdims=True), blocks.shape)
            into[...] = one._channels(means, own.shape)
        return pooled

    def _blocks(self, values: Array, fill: float = 0.0) -> Array:
        """Values of the channels of each row of the table, shape (layers t B, k)."""
        every = self._by_layer(values)
        k = self.rows.shape[1]
        each = -(-every.shape[1] // k)
        padded = every
        if every.shape[1] < k * each:
            padded = np.full((len(every), k * each), fill, values.dtype)
            padded[:, : every.shape[1]] = every
        return np.ascontiguousarray(padded.reshape(-1, k, each).transpose(0, 2, 1)).reshape(-1, k)

    def _channels(self, blocks: Array, shape: tuple[int, ...]) -> Array:
        """The opposite of `_blocks`."""
        groups, channels = shape[0] // self.layers, shape[1] // self.trials
        count, k = self.layers * self.trials, self.rows.shape[1]
        flat = blocks.reshape(count, -1, k).transpose(0, 2, 1).reshape(count, -1)[:, : groups * channels]
        apart = flat.reshape(self.layers, self.trials, groups, channels)
        return apart.transpose(0, 2, 1, 3).reshape(shape)

    def _by_layer(self, values: Array) -> Array:
        """Channels of every layer and trial, shape (layers t, o)."""
        g, m = values.shape
        apart = values.reshape(self.layers, g // self.layers, self.trials, m // self.trials)
        return apart.transpose(0, 2, 1, 3).reshape(self.layers * self.trials, -1)


Levels = ScalarLevels | VectorLevels


def levels_of(grid: GridSpec, layers: int = 1, trials: int = 1) -> Levels:
    """Levels of a grid, for the channels of some layers and for some trials at once."""
    if grid.kind == "vector":
        # Once: a layer rounds as often as it has inputs.
        return VectorLevels.of(VECTORS[grid.bits].rows.astype(WORKING), layers, trials)
    return ScalarLevels(grid.limits, grid.per_channel)
