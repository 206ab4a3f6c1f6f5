"""SQuant: rounding that keeps the sums over kernels and channels (Guo et al., ICLR 2022, arXiv 2202.07471).

With the rounding error d = codes - (W / scale + zero_point), nearest rounding leaves |d| <= 1/2 for every
weight. Two further passes flip as few weights as needed to the other neighbouring level, the ones nearest to
a tie first, so that also

    |sum of d over a kernel| <= 1/2        and then        |sum of d over an output channel| <= 1/2.

That is the minimiser, to within the flips, of d'Hd for an H that is the identity plus a constant per kernel
plus a constant per channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.rounding.grids import Limits, nearest
from onnx_dfmpc.spec import Array


def squant(rows: Array, scale: Array, zero_point: Array, limits: Limits, taps: int) -> Array:
    """Codes (g, r, n) whose errors cancel over each kernel of ``taps`` weights and over each output channel.

    A weight that would leave the limits is not flipped, so the sums are kept only as far as these allow.
    """
    codes = nearest(rows, scale, zero_point, limits)
    # A clipped weight is far from its level on purpose; its excess must not be made up for by its neighbours.
    error: Array = np.clip(codes - (rows / scale[..., None] + zero_point[..., None]), -0.5, 0.5)
    shape = rows.shape
    codes, error = _balance_kernels(codes.reshape(-1, taps), error.reshape(-1, taps), limits)

    # Each kernel offers its weight nearest to a tie, in the direction that the channel needs.
    kernels = (*shape[:2], shape[2] // taps, taps)
    codes, error = codes.reshape(kernels), error.reshape(kernels)
    surplus = np.sign(error.sum(axis=(2, 3)))[..., None, None]
    # Never against its own error: a kernel at its limits would move a weight by more than a level.
    eligible = _flippable(codes, surplus, limits) & (error * surplus > 0)
    gain = np.where(eligible, error * surplus, -np.inf)
    offer = gain.argmax(axis=3)[..., None]
    # Kernels whose own sum is furthest to the same side go first: they are left the smallest sum by the flip.
    priority = np.where(eligible.any(axis=3), error.sum(axis=3) * surplus[..., 0], -np.inf)
    count = np.rint(np.abs(error.sum(axis=(2, 3))))
    selected = (_rank(priority) < count[..., None]) & np.isfinite(priority)
    flip = np.zeros(kernels, codes.dtype)
    np.put_along_axis(flip, offer, selected[..., None].astype(codes.dtype), 3)
    balanced: Array = (codes - flip * surplus).reshape(shape)
    return balanced


def _balance_kernels(codes: Array, error: Array, limits: Limits) -> tuple[Array, Array]:
    """Flip weights until the error of each kernel, a row of a 2-D array, sums to at most one half."""
    surplus = np.sign(error.sum(axis=1))[:, None]
    count = np.rint(np.abs(error.sum(axis=1)))[:, None]
    priority = np.where(_flippable(codes, surplus, limits), error * surplus, -np.inf)
    flip = ((_rank(priority) < count) & (priority > 0)) * surplus
    return codes - flip, error - flip


def _flippable(codes: Array, surplus: Array, limits: Limits) -> NDArray[np.bool_]:
    flipped = codes - surplus
    return (flipped >= limits[0]) & (flipped <= limits[1])


def _rank(values: Array) -> NDArray[np.intp]:
    """Position of each value along the last axis when sorted from the largest; ties in order."""
    order = np.argsort(-values, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(values.shape[-1]), order.shape), -1)
    return rank
