"""Inputs of which nobody knows for sure what they look like: several kinds, each with a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    names : tuple of str
        What each kind is, for the reader.
    """

    feeds: Feeds
    kinds: tuple[int, ...]
    weights: Array
    shares: Array
    names: tuple[str, ...]

    @classmethod
    def single(cls, feeds: Feeds, name: str) -> Mixture:
        """Inputs of one kind."""
        return cls(feeds, (0,) * len(feeds), np.ones(1), np.ones(1), (name,))

    def only(self, least: float) -> Mixture:
        """The kinds whose weight is at least that; the others have no batch left."""
        kept = [index for index, kind in enumerate(self.kinds) if self.weights[kind] >= least]
        weights = np.where(self.weights >= least, self.weights, 0)
        return Mixture(
            [self.feeds[index] for index in kept],
            tuple(self.kinds[index] for index in kept),
            weights / weights.sum(),
            self.shares,
            self.names,
        )
