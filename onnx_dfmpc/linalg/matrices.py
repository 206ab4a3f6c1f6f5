"""Symmetric and triangular matrices over the n inputs of a layer, whole or as a Kronecker product.

A covariance of n = 4608 inputs has 21 million elements and is known from a few thousand samples. C (x) R, the
covariance of the channels times one pattern of the kernel taps, is what such a sample can tell, and
everything that rounding does with a matrix can be done factor by factor: (C (x) R) x = C X R', and the
Cholesky factor of a product is the product of the Cholesky factors.

`Dense` and `Kronecker` have the same methods; they stand for matrices M of shape (g, n, n), one for each
group. `low_rank.LowRank` is a third form, for more inputs than samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.linalg.low_rank import LowRank
from onnx_dfmpc.linalg.products import Array, cholesky, product


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix with all its elements, ``values`` of shape (g, n, n)."""

    values: Array

    grain = 1
    """Ranges of inputs start and stop at multiples of it."""

    @property
    def inputs(self) -> int:
        """The number n of inputs."""
        return len(self.values[0])

    def block(self, start: int, stop: int) -> Array:
        """M[start:stop, start:stop], shape (g, stop - start, stop - start)."""
        return self.values[:, start:stop, start:stop]

    def part(self, target: slice, source: slice, columns: Array) -> Array:
        """M[target, source] times columns (g, inputs of the source, m), in the dtype of these."""
        return product(self.values[:, target, source], columns, columns.dtype)

    def dense(self) -> Array:
        """All elements, shape (g, n, n)."""
        return self.values

    def diagonal(self) -> Array:
        """Diagonal, shape (g, n)."""
        return np.diagonal(self.values, axis1=1, axis2=2)

    def damped(self, share: float) -> Dense:
        """M with a share of its mean diagonal added to the diagonal, and a little more where that is 0."""
        values, every = self.values.astype(np.float64), np.arange(self.inputs)
        added = share * self.diagonal().mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
        values[:, every, every] += added
        return Dense(values)

    def cholesky(self) -> Dense:
        """Lower triangular L with L'L = M; LinAlgError if M is not positive definite."""
        # The usual factor has KK' = M, so that L = K' would be upper triangular. That of M with both axes
        # reversed is lower triangular when reversed back. GPTQ gets the same L by way of the inverse of M.
        factor = cholesky(self.values[:, ::-1, ::-1])
        return Dense(np.ascontiguousarray(factor[:, ::-1, ::-1].transpose(0, 2, 1)))

    def astype(self, dtype: type[np.floating]) -> Dense:
        """The same matrix in a dtype."""
        return Dense(self.values.astype(dtype, copy=False))

    def unit_diagonal(self) -> Dense:
        """M with each row divided by its element on the diagonal."""
        return Dense(self.values / self.diagonal()[:, :, None])


@dataclass(frozen=True, eq=False)
class Kronecker:
    """C (x) R: input ``i * t + a`` is kernel tap ``a`` of channel ``i``.

    Examples
    --------
    >>> matrix = Kronecker(np.array([[[2.0, 1.0], [1.0, 2.0]]]), np.array([[[1.0, 0.5], [0.5, 1.0]]]))
    >>> matrix.dense()[0]
    array([[2. , 1. , 1. , 0.5],
           [1. , 2. , 0.5, 1. ],
           [1. , 0.5, 2. , 1. ],
           [0.5, 1. , 1. , 2. ]])
    """

    channels: Array  # C, shape (g, i, i)
    spatial: Array  # R, shape (g, t, t)

    @property
    def grain(self) -> int:
        """The number t of taps: only whole channels are a part of a product in factors."""
        return len(self.spatial[0])

    @property
    def inputs(self) -> int:
        """The number n of inputs."""
        return len(self.channels[0]) * self.grain

    def dense(self) -> Array:
        """All elements, shape (g, n, n)."""
        return _kronecker(self.channels, self.spatial)

    def block(self, start: int, stop: int) -> Array:
        """M[start:stop, start:stop]."""
        chosen = slice(start // self.grain, stop // self.grain)
        return _kronecker(self.channels[:, chosen, chosen], self.spatial)

    def part(self, target: slice, source: slice, columns: Array) -> Array:
        """M[target, source] times columns (g, inputs of the source, m), in their dtype: C X R' for each."""
        t = self.grain
        g, _, m = columns.shape
        to, of = (slice(inputs.start // t, inputs.stop // t) for inputs in (target, source))
        mixed_channels = product(self.channels[:, to, of], columns.reshape(g, -1, t * m), columns.dtype)
        mixed = product(self.spatial[:, None], mixed_channels.reshape(g, -1, t, m), columns.dtype)
        return mixed.reshape(g, -1, m)

    def diagonal(self) -> Array:
        """Diagonal, shape (g, n)."""
        channels, spatial = Dense(self.channels).diagonal(), Dense(self.spatial).diagonal()
        return (channels[:, :, None] * spatial[:, None]).reshape(len(channels), -1)

    def damped(self, share: float) -> Kronecker:
        """M with about that share of its mean diagonal added: half of it on each factor."""
        channels, spatial = (Dense(factor).damped(share / 2) for factor in (self.channels, self.spatial))
        return Kronecker(channels.values, spatial.values)

    def cholesky(self) -> Kronecker:
        """Lower triangular L with L'L = M; LinAlgError if M is not positive definite."""
        channels, spatial = (Dense(factor).cholesky() for factor in (self.channels, self.spatial))
        return Kronecker(channels.values, spatial.values)

    def astype(self, dtype: type[np.floating]) -> Kronecker:
        """The same matrix in a dtype."""
        return Kronecker(self.channels.astype(dtype, copy=False), self.spatial.astype(dtype, copy=False))

    def unit_diagonal(self) -> Kronecker:
        """M with each row divided by its element on the diagonal."""
        channels, spatial = (Dense(factor).unit_diagonal() for factor in (self.channels, self.spatial))
        return Kronecker(channels.values, spatial.values)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Inputs without correlation, ``variances`` of shape (g, n)."""

    variances: Array


Matrix = Dense | Kronecker | LowRank

Covariance = Array | Kronecker | LowRank | Diagonal
"""As statistics hold it: all elements, shape (g, n, n), or their structure."""


def matrix(covariance: Covariance) -> Matrix:
    """A covariance as a `Matrix`."""
    if isinstance(covariance, Diagonal):
        return Dense(covariance.variances[:, :, None] * np.eye(covariance.variances.shape[1]))
    return covariance if isinstance(covariance, Kronecker | LowRank) else Dense(covariance)


def through(rows: Array, covariance: Covariance) -> Array:
    """``rows @ covariance`` for rows (g, r, n), float64."""
    if isinstance(covariance, Diagonal):
        return rows * covariance.variances[:, None].astype(np.float64)
    if isinstance(covariance, Kronecker):
        every = slice(0, covariance.inputs)
        return covariance.part(every, every, rows.transpose(0, 2, 1).astype(np.float64)).transpose(0, 2, 1)
    if isinstance(covariance, LowRank):
        return covariance.times(rows.transpose(0, 2, 1).astype(np.float64)).transpose(0, 2, 1)
    return product(rows, covariance)


def rescaled(covariance: Covariance, factor: Array) -> Covariance:
    """Covariance of inputs whose channels are multiplied by a factor (g, i)."""
    if isinstance(covariance, Kronecker):
        return Kronecker(_rescaled(covariance.channels, factor), covariance.spatial)
    n = covariance.shape[1] if isinstance(covariance, np.ndarray) else covariance.variances.shape[1]
    per_input = np.repeat(factor, n // factor.shape[1], axis=1)
    if isinstance(covariance, LowRank):
        return covariance.rescaled(per_input)
    if isinstance(covariance, Diagonal):
        return Diagonal(covariance.variances * per_input**2)
    return _rescaled(covariance, per_input)


def _rescaled(covariance: Array, factor: Array) -> Array:
    return covariance * (factor[:, :, None] * factor[:, None]).astype(covariance.dtype)


def _kronecker(channels: Array, spatial: Array) -> Array:
    g, n = len(channels), channels.shape[1] * spatial.shape[1]
    elements: Array = (channels[:, :, None, :, None] * spatial[:, None, :, None, :]).reshape(g, n, n)
    return elements
