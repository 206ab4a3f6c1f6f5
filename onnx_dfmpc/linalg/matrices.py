"""Symmetric and triangular matrices over the inputs of a layer, whole or as a Kronecker product (pure NumPy).

A covariance of n = 4608 inputs has 21 million elements and is known from a few thousand samples. C (x) R, the
covariance of the channels times one pattern of the kernel taps, is what such a sample can tell, and
everything that rounding does with a matrix can be done factor by factor: (C (x) R) x = C X R', the factor of
a product is the product of the roots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnx_dfmpc.linalg.products import Array, cholesky, product


class Matrix(Protocol):
    """Matrices M of shape (g, n, n), in whatever form, that act on columns (g, n, m)."""

    @property
    def grain(self) -> int:
        """Inputs are taken in multiples of so many."""

    @property
    def inputs(self) -> int:
        """The n of it."""

    def block(self, start: int, stop: int) -> Array:
        """M[start:stop, start:stop], shape (g, b, b)."""

    def part(self, target: slice, source: slice, columns: Array) -> Array:
        """M[target, source] times columns (g, inputs of the source, m), float64."""

    def diagonal(self) -> Array:
        """Diagonal, shape (g, n)."""

    def damped(self, share: float) -> Matrix:
        """M with a share of its mean diagonal, and a trifle, added to the diagonal."""

    def cholesky(self) -> Matrix:
        """Lower triangular L, L'L = M; LinAlgError if M is not positive definite."""

    def unit_diagonal(self) -> Matrix:
        """M with each row divided by the element on the diagonal."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix with all its elements, ``values`` of shape (g, n, n)."""

    values: Array

    grain = 1

    @property
    def inputs(self) -> int:
        """The n of it."""
        return len(self.values[0])

    def block(self, start: int, stop: int) -> Array:
        """Square on the diagonal."""
        return self.values[:, start:stop, start:stop]

    def part(self, target: slice, source: slice, columns: Array) -> Array:
        """Part of the matrix times columns."""
        return product(self.values[:, target, source], columns)

    def dense(self) -> Array:
        """All elements, shape (g, n, n)."""
        return self.values

    def diagonal(self) -> Array:
        """Diagonal, shape (g, n)."""
        return np.diagonal(self.values, axis1=1, axis2=2)

    def damped(self, share: float) -> Dense:
        """More on the diagonal."""
        n, diagonal = self.inputs, self.diagonal()
        values = self.values.astype(np.float64)
        values[:, np.arange(n), np.arange(n)] += (
            share * diagonal.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
        )
        return Dense(values)

    def cholesky(self) -> Dense:
        """Lower triangular factor: with K the lower Cholesky factor of M reversed in both axes, L is K'
        reversed.
        """
        return Dense(
            np.ascontiguousarray(cholesky(self.values[:, ::-1, ::-1])[:, ::-1, ::-1].transpose(0, 2, 1))
        )

    def unit_diagonal(self) -> Dense:
        """Ones on the diagonal."""
        return Dense(self.values / self.diagonal()[:, :, None])


@dataclass(frozen=True, eq=False)
class Kronecker:
    """C (x) R: input ``i * t + a`` is kernel tap ``a`` of channel ``i``.

    Attributes
    ----------
    channels : float array, shape (g, i, i)
    spatial : float array, shape (g, t, t)

    Examples
    --------
    >>> matrix = Kronecker(np.array([[[2.0, 1.0], [1.0, 2.0]]]), np.array([[[1.0, 0.5], [0.5, 1.0]]]))
    >>> matrix.dense()[0]
    array([[2. , 1. , 1. , 0.5],
           [1. , 2. , 0.5, 1. ],
           [1. , 0.5, 2. , 1. ],
           [0.5, 1. , 1. , 2. ]])
    """

    channels: Array
    spatial: Array

    @property
    def grain(self) -> int:
        """Kernel taps."""
        return len(self.spatial[0])

    @property
    def inputs(self) -> int:
        """The n of it."""
        return len(self.channels[0]) * self.grain

    def dense(self) -> Array:
        """All elements, shape (g, n, n)."""
        return _kronecker(self.channels, self.spatial)

    def block(self, start: int, stop: int) -> Array:
        """Square on the diagonal, from one channel to another."""
        of = slice(start // self.grain, stop // self.grain)
        return _kronecker(self.channels[:, of, of], self.spatial)

    def part(self, target: slice, source: slice, columns: Array) -> Array:
        """Part of the matrix, from one channel to another, times columns."""
        t = self.grain
        g, _, m = columns.shape
        rows, of = (slice(s.start // t, s.stop // t) for s in (target, source))
        across = product(self.channels[:, rows, of], columns.reshape(g, -1, t * m))
        return product(self.spatial[:, None], across.reshape(g, -1, t, m)).reshape(g, -1, m)

    def diagonal(self) -> Array:
        """Diagonal, shape (g, n)."""
        channels, spatial = (
            np.diagonal(factor, axis1=1, axis2=2) for factor in (self.channels, self.spatial)
        )
        return (channels[:, :, None] * spatial[:, None]).reshape(len(channels), -1)

    def damped(self, share: float) -> Kronecker:
        """More on the diagonal of both factors, half of it each."""
        return self._each("damped", share / 2)

    def cholesky(self) -> Kronecker:
        """Lower triangular factor, of both factors."""
        return self._each("cholesky")

    def unit_diagonal(self) -> Kronecker:
        """Ones on the diagonal."""
        return self._each("unit_diagonal")

    def _each(self, method: str, *arguments: float) -> Kronecker:
        factors = (
            getattr(Dense(factor), method)(*arguments).values for factor in (self.channels, self.spatial)
        )
        return Kronecker(*factors)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Inputs without correlation, ``variances`` of shape (g, n)."""

    variances: Array


Covariance = Array | Kronecker | Diagonal
"""As statistics hold it: all elements, shape (g, n, n), or what is known of them."""


def matrix(covariance: Covariance) -> Dense | Kronecker:
    """A covariance as a `Matrix`."""
    if isinstance(covariance, Diagonal):
        return Dense(covariance.variances[:, :, None] * np.eye(covariance.variances.shape[1]))
    return covariance if isinstance(covariance, Kronecker) else Dense(covariance)


def through(rows: Array, covariance: Covariance) -> Array:
    """``rows @ covariance`` for rows (g, r, n), float64."""
    if isinstance(covariance, Diagonal):
        return rows * covariance.variances[:, None].astype(np.float64)
    if isinstance(covariance, Kronecker):
        everything = slice(0, covariance.inputs)
        return covariance.part(everything, everything, rows.transpose(0, 2, 1)).transpose(0, 2, 1)
    return product(rows, covariance)


def rescaled(covariance: Covariance, factor: Array) -> Covariance:
    """Covariance of inputs whose channels are multiplied by a factor (g, i)."""
    if isinstance(covariance, Kronecker):
        return Kronecker(_between(covariance.channels, factor), covariance.spatial)
    n = covariance.variances.shape[1] if isinstance(covariance, Diagonal) else covariance.shape[1]
    each = np.repeat(factor, n // factor.shape[1], axis=1)
    return (
        Diagonal(covariance.variances * each**2)
        if isinstance(covariance, Diagonal)
        else _between(covariance, each)
    )


def _between(covariance: Array, factor: Array) -> Array:
    return covariance * (factor[:, :, None] * factor[:, None]).astype(covariance.dtype)


def _kronecker(channels: Array, spatial: Array) -> Array:
    g, n = len(channels), channels.shape[1] * spatial.shape[1]
    elements: Array = (channels[:, :, None, :, None] * spatial[:, None, :, None, :]).reshape(g, n, n)
    return elements
