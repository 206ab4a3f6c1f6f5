"""Rounding that minimises the output error instead of the weight error.

The output of a row w moves by e'x when the row moves by e = wq - w. With H the covariance of the inputs x,

    Var(e'x) = e' H e

is what rounding should make small. Two passes, per output channel independently and vectorised over them:

 * error feedback (Frantar et al., GPTQ, arXiv 2210.17323): weights are rounded one after the other, and each one's error is moved to those
   that are still float, in the least-squares sense: with U the upper Cholesky factor of inv(H), w[j:] -= (w_j - q_j) / U_jj * U[j, j:].
 * coordinate descent: weight j moves to the best level given all others, codes_j <- round(codes_j - (He)_j / (H_jj scale)). Each move
   lowers e' H e or leaves it, so a sweep never loses.

Both work on blocks of inputs, so that all but the moves inside a block are matrix products. Rows are (g, r, n), H is (g, n, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_dfmpc.products import cholesky, inverse_lower, product
from onnx_dfmpc.spec import Array

BLOCK = 64
DAMPING = 0.01
SHRINKAGE = 0.1
SAMPLES_PER_INPUT = 28
"""Patches of one image are neighbours: about so many count as one independent sample."""


def regularize(covariance: Array, taps: int, samples: int) -> Array:
    """Covariance that rounding can trust: blended with its Kronecker approximation, correlations shrunk.

    A covariance measured on a sample knows less about each single pair of inputs than about the pattern behind them: C (x) R, the channel
    covariance times one spatial correlation. The fewer samples per input, the more weight the pattern gets. It has at least half, since
    even exact statistics of a synthetic input are not those of a real one. Where there are no taps there is no pattern, and correlations
    measured on fewer samples than inputs are shrunk by as much as these say too little.

    Parameters
    ----------
    covariance : float array, shape (g, n, n)
    taps : int
        Kernel taps per input channel; ``n`` is a multiple of it.
    samples : int
        That it was measured on; 0 if it is exact.

    Returns
    -------
    float array, shape (g, n, n)
        With a positive diagonal.
    """
    g, n, _ = covariance.shape
    i = n // taps
    diagonal = np.einsum("gnn->gn", covariance)
    blended = covariance.copy()
    if i > 1 and taps > 1:
        blocks = covariance.reshape(g, i, taps, i, taps)
        channels = np.einsum("giaja->gij", blocks) / taps
        tiny = np.finfo(np.float32).tiny
        power = np.maximum(np.einsum("gii->gi", channels), tiny)
        live = np.maximum((power > tiny).sum(axis=1), 1)
        spatial = np.einsum("giaib,gi->gab", blocks, 1 / power) / live[:, None, None]
        trust = 0.5 if samples == 0 else max(0.5, n / (n + samples / SAMPLES_PER_INPUT))
        blended *= 1 - trust
        into = blended.reshape(g, i, taps, i, taps)
        into += (trust * channels)[:, :, None, :, None] * spatial[:, None, :, None, :]
        diagonal = np.einsum("gnn->gn", blended).copy()
    blended *= 1 - max(SHRINKAGE, n / (n + samples) if samples and taps == 1 else 0)
    floor = 1e-6 * diagonal.mean(axis=1, keepdims=True)
    blended[:, np.arange(n), np.arange(n)] = diagonal + np.where(floor > 0, floor, 1)
    return blended


def feedback(rows: Array, factor: Array, scale: Array, zero_point: Array, low: int, high: int) -> Array:
    """Round with error feedback.

    Parameters
    ----------
    rows : float array, shape (g, r, n)
    factor : float array, shape (g, n, n)
        Upper triangular U of `inverse_factor`.
    scale, zero_point : float arrays, shape (g, r)
    low, high : int
        Limits of a code.

    Returns
    -------
    float array, shape (g, r, n)
        Codes.
    """
    n = rows.shape[2]
    left = np.moveaxis(rows, 2, 0).copy()  # (n, g, r): an input at a time is contiguous
    codes = np.empty_like(left)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        within = np.ascontiguousarray(np.moveaxis(factor[:, start:stop, start:stop], 0, 2))  # (b, b, g)
        errors = np.empty_like(left[start:stop])
        for j in range(stop - start):
            w = left[start + j]
            q = np.clip(np.rint(w / scale + zero_point), low, high)
            codes[start + j] = q
            error = (w - (q - zero_point) * scale) / within[j, j][:, None]
            errors[j] = error
            left[start + j + 1 : stop] -= within[j, j + 1 :, :, None] * error
        if stop < n:
            # (g, m, b) @ (g, b, r): what the block's errors ask of the inputs behind it
            moved = product(factor[:, start:stop, stop:].transpose(0, 2, 1), np.moveaxis(errors, 0, 1))
            left[stop:] -= np.moveaxis(moved, 1, 0)
    return np.moveaxis(codes, 0, 2)


def inverse_factor(covariance: Array) -> Array:
    """Upper Cholesky factor U of the inverse of a damped covariance, U'U = inv(H + damping), shape (g, n, n).

    Computed from the Cholesky factor of the reversed matrix, so that the inverse itself is never formed.
    """
    n = covariance.shape[1]
    damped = covariance.astype(np.float64)
    diagonal = damped[:, np.arange(n), np.arange(n)]
    damped[:, np.arange(n), np.arange(n)] += DAMPING * diagonal.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
    # H reversed = L L', so H = K K' with K = L reversed, upper triangular; inv(H) = inv(K)' inv(K), and inv(K) = inv(L) reversed.
    return inverse_lower(cholesky(damped[:, ::-1, ::-1]))[:, ::-1, ::-1]


def descend(rows: Array, covariance: Array, codes: Array, scale: Array, zero_point: Array, low: int, high: int, *, sweeps: int) -> Array:
    """Coordinate descent of e' H e over the codes.

    Parameters
    ----------
    rows : float array, shape (g, r, n)
    covariance : float array, shape (g, n, n)
        H, with a positive diagonal.
    codes : float array, shape (g, r, n)
        Where to start; not changed.
    scale, zero_point : float arrays, shape (g, r)
    low, high : int
        Limits of a code.
    sweeps : int
        At most so many sweeps; it stops when one moves nothing.

    Returns
    -------
    float array, shape (g, r, n)
        Codes.
    """
    n = rows.shape[2]
    step = np.diagonal(covariance, axis1=1, axis2=2).T[..., None] * scale  # (n, g, r)
    error = (codes - zero_point[..., None]) * scale[..., None] - rows
    gradient = np.moveaxis(product(error, covariance), 2, 0).copy()
    codes = np.moveaxis(codes, 2, 0).copy()
    for _ in range(sweeps):
        moved = False
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            within = np.ascontiguousarray(np.moveaxis(covariance[:, start:stop, start:stop], 0, 2))
            slope = gradient[start:stop].copy()
            before = codes[start:stop].copy()
            for j in range(stop - start):
                best = np.clip(np.rint(before[j] - slope[j] / step[start + j]), low, high)
                change = (best - before[j]) * scale
                codes[start + j] = best
                slope[j + 1 :] += within[j, j + 1 :, :, None] * change
            change = np.moveaxis((codes[start:stop] - before) * scale, 0, 2)  # (g, r, b)
            if change.any():
                moved = True
                gradient += np.moveaxis(product(change, covariance[:, start:stop]), 2, 0)
        if not moved:
            break
    return np.moveaxis(codes, 0, 2)


@dataclass(frozen=True, eq=False)
class Target:
    """The responses of float rows W, which quantized rows should reproduce.

    Attributes
    ----------
    covariance : float array, shape (g, n, n)
        H; <u, v> = u' H v.
    through : float array, shape (g, r, n)
        W H.
    norm : float array, shape (g, r)
        <W, W>.
    """

    covariance: Array
    through: Array
    norm: Array

    @classmethod
    def of(cls, rows: Array, covariance: Array) -> Target:
        """Target for rows (g, r, n)."""
        through = product(rows, covariance)
        return cls(covariance, through, np.einsum("grn,grn->gr", through, rows))

    def products(self, quantized: Array) -> tuple[Array, Array]:
        """<W, Wq> and <Wq, Wq>, each of shape (g, r)."""
        across = np.einsum("grn,grn->gr", self.through, quantized)
        return across, np.einsum("grn,grn->gr", product(quantized, self.covariance), quantized)

    def correlation(self, quantized: Array) -> Array:
        """Squared correlation of the responses, shape (g, r); 0 where they oppose each other."""
        across, own = self.products(quantized)
        squared: Array = np.where(across > 0, across, 0) ** 2 / np.maximum(own * self.norm, np.finfo(np.float32).tiny)
        return squared

    def best_scale(self, quantized: Array) -> Array:
        """Factor per row that minimises the error of the response, shape (g, r); 1 where no factor helps."""
        across, own = self.products(quantized)
        return np.where((across > 0) & (own > 0), across / np.where(own > 0, own, 1), 1)
