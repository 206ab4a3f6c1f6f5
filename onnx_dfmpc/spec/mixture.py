"""Inputs of which nobody knows for sure what they look like: several kinds, each with a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec.arrays import Array, Feeds


@dataclass(frozen=True, eq=False)
class Mixture:
    """Batches of inputs, each of one kind.

    Attributes
    ----------
    feeds : list of mapping
        Inputs by name, of every batch.
    kinds : tuple of int
        Kind of every batch.
    weights : float64 array, shape (kinds,)
        How likely each kind is; they add up to 1. Means and gains follow them.
    shares : float64 array, shape (kinds,)
        What part each kind has in a covariance; they add up to 1. Rounding has to be good for what is less
        likely, too, so they are more even than the weights.
    real : bool array, shape (kinds,)
        Which kinds are collected inputs: these are not re-anchored to batch norms.
    """

    feeds: Feeds
    kinds: tuple[int, ...]
    weights: Array
    shares: Array
    real: NDArray[np.bool_]

    def only(self, least: float) -> Mixture:
        """The kinds whose weight is at least that; the others have no batch left."""
        kept = [index for index, kind in enumerate(self.kinds) if self.weights[kind] >= least]
        weights = np.where(self.weights >= least, self.weights, 0)
        feeds, kinds = [self.feeds[index] for index in kept], tuple(self.kinds[index] for index in kept)
        return replace(self, feeds=feeds, kinds=kinds, weights=weights / weights.sum())
