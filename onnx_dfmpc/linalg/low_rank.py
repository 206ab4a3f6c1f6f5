"""Covariances of very many inputs, known from few samples: a diagonal, and as many directions as there were
samples.

A sample of p vectors of n inputs spans p directions at most, so that the n x n elements of its covariance say
nothing that D + U U' does not, U (n, p). Whatever rounding does takes n p numbers then: 25,088 inputs seen 64
times are 6 MB instead of 5 GB.

The triangular factor of such a matrix has the same structure. With inputs in reverse order (`matrices.Dense`
says why), the usual factor of D + U U' is (Foreman-Mackey et al. 2017, arXiv 1703.09710, without their
exponentials)

    K = (I + tril(U W', -1)) diag(s)      s_j^2 = d_j + u_j' T_j u_j      w_j = T_j u_j / s_j^2
    T_1 = I                               T_{j+1} = T_j - s_j^2 w_j w_j'

so that L = K' has rows s_i (w_i . u_j), j < i, and s_i on the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_dfmpc.linalg.products import Array, cholesky, inverse_lower, product

BLOCK = 128
"""Inputs that are factored, multiplied and swept at a time. Speed alone; not studied."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """D + U U': ``variances`` D (g, n), without those of ``directions`` U (g, n, p).

    Examples
    --------
    >>> matrix = LowRank(np.array([[1.0, 1.0]]), np.array([[[1.0], [2.0]]]))
    >>> matrix.dense()[0]
    array([[2., 2.],
           [2., 5.]])
    """

    variances: Array
    directions: Array

    grain = 1

    @property
    def inputs(self) -> int:
        """The number n of inputs."""
        return len(self.variances[0])

    @property
    def outer(self) -> tuple[Array, Array]:
        """A and B (g, n, p): M = A B' outside of the diagonal."""
        return self.directions, self.directions

    def dense(self) -> Array:
        """All elements, shape (g, n, n)."""
        return self.block(0, self.inputs)

    def block(self, start: int, stop: int) -> Array:
        """M[start:stop, start:stop]."""
        part = self.directions[:, start:stop]
        elements = product(part, part.transpose(0, 2, 1), part.dtype)
        every = np.arange(stop - start)
        elements[:, every, every] += self.variances[:, start:stop]
        return elements

    def diagonal(self) -> Array:
        """Diagonal, shape (g, n)."""
        total: Array = self.variances + np.square(self.directions, dtype=np.float64).sum(axis=2)
        return total

    def damped(self, share: float) -> LowRank:
        """M with a share of its mean diagonal added to the diagonal, and a little more where that is 0."""
        added = share * self.diagonal().mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
        return replace(self, variances=self.variances + added)

    def cholesky(self) -> SemiSeparable:
        """Lower triangular L with L'L = M."""
        g, n, p = self.directions.shape
        left = np.tile(np.eye(p), (g, 1, 1))  # T, what the inputs so far leave of the directions
        w, s = np.empty((g, n, p)), np.empty((g, n))
        for stop in range(n, 0, -BLOCK):
            at = slice(max(0, stop - BLOCK), stop)
            u = self.directions[:, at][:, ::-1].astype(np.float64)
            through = product(u, left)
            block = product(through, u.transpose(0, 2, 1))
            every = np.arange(u.shape[1])
            block[:, every, every] += self.variances[:, at][:, ::-1]
            lower = cholesky(block)
            diagonal = np.diagonal(lower, axis1=1, axis2=2)
            solved = product(inverse_lower(lower), through)  # rows s_j w_j
            w[:, at] = (solved / diagonal[..., None])[:, ::-1]
            s[:, at] = diagonal[:, ::-1]
            left -= product(solved.transpose(0, 2, 1), solved)
        return SemiSeparable(s, s[..., None] * w, self.directions, triangular=True)

    def times(self, columns: Array) -> Array:
        """M times columns (g, n, m), in their dtype."""
        inner = product(self.directions.transpose(0, 2, 1), columns, columns.dtype)
        return product(self.directions, inner, columns.dtype) + columns * self.variances[..., None].astype(
            columns.dtype
        )

    def astype(self, dtype: type[np.floating]) -> LowRank:
        """The same matrix in a dtype."""
        return LowRank(self.variances.astype(dtype, copy=False), self.directions.astype(dtype, copy=False))

    def unit_diagonal(self) -> SemiSeparable:
        """M with each row divided by its element on the diagonal."""
        diagonal = self.diagonal()
        left = self.directions / diagonal[..., None]
        return SemiSeparable(self.variances / diagonal, left, self.directions, triangular=False)

    def rescaled(self, factor: Array) -> LowRank:
        """Covariance of inputs that are multiplied by factors (g, n)."""
        return LowRank(self.variances * factor**2, self.directions * factor[..., None])


@dataclass(frozen=True, eq=False)
class SemiSeparable:
    """diag(d) + A B', or diag(d) + tril(A B', -1) where it is ``triangular``; ``scale`` d (g, n), ``left`` A
    and ``right`` B (g, n, p).
    """

    scale: Array
    left: Array
    right: Array
    triangular: bool

    @property
    def inputs(self) -> int:
        """The number n of inputs."""
        return len(self.scale[0])

    def diagonal(self) -> Array:
        """Diagonal of a triangular one, shape (g, n)."""
        return self.scale

    def block(self, start: int, stop: int) -> Array:
        """M[start:stop, start:stop]."""
        left, right = self.left[:, start:stop], self.right[:, start:stop]
        elements = product(left, right.transpose(0, 2, 1), left.dtype)
        if self.triangular:
            elements = np.tril(elements, -1)
        every = np.arange(stop - start)
        elements[:, every, every] += self.scale[:, start:stop]
        return elements

    def unit_diagonal(self) -> SemiSeparable:
        """A triangular M with each row divided by its element on the diagonal."""
        return replace(self, scale=np.ones_like(self.scale), left=self.left / self.scale[..., None])

    def astype(self, dtype: type[np.floating]) -> SemiSeparable:
        """The same matrix in a dtype."""
        scale, left, right = (a.astype(dtype, copy=False) for a in (self.scale, self.left, self.right))
        return SemiSeparable(scale, left, right, self.triangular)


Unit = SemiSeparable
"""What a sweep multiplies with: a covariance or its factor, by `unit_diagonal`."""


def multiply(matrix: Unit, columns: Array) -> Array:
    """M times columns (g, n, m), in their dtype, a few inputs at a time."""
    result = np.empty_like(columns)
    dtype = columns.dtype
    right = matrix.right.transpose(0, 2, 1)
    inner = np.zeros((columns.shape[0], right.shape[1], columns.shape[2]), dtype)
    if not matrix.triangular:
        for start in range(0, matrix.inputs, BLOCK):
            at = slice(start, start + BLOCK)
            inner += product(right[:, :, at], columns[:, at], dtype)
    for start in range(0, matrix.inputs, BLOCK):
        at = slice(start, min(start + BLOCK, matrix.inputs))
        result[:, at] = product(matrix.left[:, at], inner, dtype)
        if matrix.triangular:
            result[:, at] += product(matrix.block(at.start, at.stop), columns[:, at], dtype)
            inner += product(right[:, :, at], columns[:, at], dtype)
        else:
            result[:, at] += matrix.scale[:, at, None].astype(dtype) * columns[:, at]
    return result
