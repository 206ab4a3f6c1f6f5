"""Random fields: mean and covariance of a tensor's channels at every displacement, and how linear operators
act on them (NumPy).

A tensor of shape (N, c, *size) is taken as stationary: ``mean[i]`` is the mean of channel i and ``lags[l, i,
j]`` the covariance of channel i at a place p with channel j at p + l. Displacements live on a torus, at most
as large as the tensor and as large as `ELEMENTS` allows; what lies beyond decays geometrically. On a torus
convolution is multiplication: with S(f) the Fourier transform of the lags, S -> W(f) S(f) W(f)^H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics.windows import Window

ELEMENTS = 1 << 20
"""Bound on the number of covariances of a field; up to 512 channels have four displacements per axis all the
same.
"""

Sizes = tuple[int, ...]
Lags = NDArray[np.float32]
Spectrum = NDArray[np.complex64]
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Field:
    """Statistics of one tensor.

    Attributes
    ----------
    mean : float64 array, shape (c,)
    lags : float32 array, shape (*torus, c, c)
    size : tuple of int
        Number of places along each spatial axis.
    step : tuple of float
        Distance of two neighbours along each spatial axis, in places of the network's input.
    birth : int
        Place in the order in which fields came about.
    origin : Origin or None
        How it came about, as far as that is still needed; None where it began.
    """

    mean: Array
    lags: Lags
    size: Sizes
    step: tuple[float, ...]
    birth: int
    origin: Origin | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    @property
    def torus(self) -> Sizes:
        """Number of displacements along each axis."""
        return self.lags.shape[:-2]

    @property
    def covariance(self) -> Lags:
        """Channel covariance at one place, shape (c, c)."""
        covariance: Lags = self.lags[(0,) * len(self.size)]
        return covariance

    @property
    def variance(self) -> Array:
        """Variance of each channel, shape (c,)."""
        variance: Array = np.maximum(np.diagonal(self.covariance).astype(np.float64), 0)
        return variance

    def at(self, displacement: Sequence[int]) -> Lags:
        """Covariance at a displacement, shape (c, c), extrapolated beyond the torus."""
        index, factor = [], 1.0
        for axis, (lag, torus) in enumerate(zip(displacement, self.torus, strict=True)):
            where, beyond = _clip(np.array([lag]), torus)
            index.append(int(where[0]) % torus)
            factor *= decay(self.lags, axis) ** int(beyond[0])
        found: Lags = self.lags[tuple(index)]
        return found if factor == 1.0 else found * np.float32(factor)


class Origin:
    """How a field came about: see `kinship`."""


def torus_of(channels: int, size: Sizes) -> Sizes:
    """Number of displacements to keep for so many channels.

    Examples
    --------
    >>> torus_of(64, (8, 8)), torus_of(512, (14, 14))
    ((8, 8), (4, 4))
    """
    if not size:
        return ()
    side = max(4 if channels <= 512 else 2, int((ELEMENTS / channels**2) ** (1 / len(size)) + 1e-9))
    return tuple(min(side, n) for n in size)


def signed(torus: int) -> NDArray[np.int64]:
    """Displacement of each entry of a torus: 0, 1, ..., -1."""
    return (np.arange(torus) + torus // 2) % torus - torus // 2


def _clip(lags: NDArray[np.int64], torus: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Displacements moved into the torus, and by how much."""
    reach = torus // 2
    inside = np.clip(lags, -reach, reach)
    return inside, np.abs(lags - inside)


def decay(lags: Lags, axis: int) -> float:
    """Ratio by which the variance-weighted correlation falls from one displacement to the next, at the far
    end of the torus.
    """
    torus = lags.shape[axis]
    reach = torus // 2
    if reach == 0:
        return 1.0
    zero = [0] * (lags.ndim - 2)
    far, near = list(zero), list(zero)
    far[axis], near[axis] = reach, reach - 1
    return float(np.clip(np.trace(lags[tuple(far)]) / max(float(np.trace(lags[tuple(near)])), TINY), 0, 1))


def resample(lags: Lags, torus: Sizes, stride: Sequence[int] | None = None) -> Lags:
    """Covariances on another torus, at every ``stride``-th displacement."""
    for axis, (new, step) in enumerate(zip(torus, stride or (1,) * len(torus), strict=True)):
        old = lags.shape[axis]
        if new == old and step == 1:
            continue
        inside, beyond = _clip(signed(new) * step, old)
        factors = (decay(lags, axis) ** beyond).astype(lags.dtype)
        lags = np.take(lags, inside % old, axis=axis)
        if beyond.any():
            lags = lags * factors.reshape([-1 if a == axis else 1 for a in range(lags.ndim)])
    return lags


def transposed(lags: Lags) -> Lags:
    """Cov(B(p), A(p + l)) from Cov(A(p), B(p + l))."""
    for axis in range(lags.ndim - 2):
        lags = np.roll(np.flip(lags, axis), 1, axis)
    return lags.swapaxes(-1, -2)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution: ``y(p) = sum_a weight[:, :, a] x(p stride + offsets[a])``.

    Attributes
    ----------
    weight : float array, shape (o, c / group, taps)
    offsets : int array, shape (taps, spatial axes)
    strides : tuple of int
    group : int
    """

    weight: Array
    offsets: NDArray[np.int64]
    strides: Sizes
    group: int = 1

    def spectrum(self, torus: Sizes, dilation: Sequence[int] | None = None) -> Spectrum:
        """Fourier transform on a torus: shape (*frequencies, o, c), or (*frequencies, o) where every output
        sees one channel.
        """
        offsets = self.offsets * np.array(dilation or (1,) * len(torus))
        frequencies = [np.fft.fftfreq(n) for n in torus[:-1]] + (
            [np.fft.rfftfreq(torus[-1])] if torus else []
        )
        angle = np.zeros((*map(len, frequencies), len(offsets)))
        for axis, frequency in enumerate(frequencies):
            angle = (
                angle
                + frequency.reshape([-1 if a == axis else 1 for a in range(len(torus) + 1)])
                * offsets[:, axis]
            )
        phases = np.exp(-2j * np.pi * angle).astype(np.complex64)
        o, i, k = self.weight.shape
        result: Spectrum = (phases @ self.weight.reshape(-1, k).T.astype(np.complex64)).reshape(
            *phases.shape[:-1], o, i
        )
        if i == 1:
            return result.reshape(*phases.shape[:-1], o)
        if self.group == 1:
            return result
        dense = np.zeros((*phases.shape[:-1], o, i * self.group), np.complex64)
        rows = o // self.group
        for g in range(self.group):
            dense[..., g * rows : (g + 1) * rows, g * i : (g + 1) * i] = result[
                ..., g * rows : (g + 1) * rows, :
            ]
        return dense

    @property
    def pointwise(self) -> bool:
        """Whether it is one matrix at every place."""
        return self.group == 1 and len(self.offsets) == 1 and not self.offsets.any()

    @property
    def matrix(self) -> Lags:
        """The matrix of a pointwise kernel, shape (o, c)."""
        return self.weight[..., 0].astype(np.float32)

    @property
    def sources(self) -> NDArray[np.int64]:
        """Input channel of every output, where it sees only one."""
        o = len(self.weight)
        return np.arange(o) // (o // self.group)


def transform(lags: Lags) -> Spectrum:
    """Fourier transform over the displacements, the last axis of them halved.

    Products with small matrices beat an FFT along strided axes.
    """
    torus = lags.shape[:-2]
    spectrum = lags.astype(np.complex64)
    for axis, n in enumerate(torus):
        frequencies = np.fft.rfftfreq(n) if axis == len(torus) - 1 else np.fft.fftfreq(n)
        spectrum = _along(axis, np.exp(-2j * np.pi * np.outer(frequencies, np.arange(n))), spectrum)
    return spectrum


def back(spectrum: Spectrum, torus: Sizes) -> Lags:
    """The inverse of `transform`."""
    for axis, n in enumerate(torus):
        half = axis == len(torus) - 1
        frequencies = np.fft.rfftfreq(n) if half else np.fft.fftfreq(n)
        twice = 1.0 + (half & (frequencies > 0) & (frequencies < 0.5))  # their mirror images are left out
        spectrum = _along(
            axis, np.exp(2j * np.pi * np.outer(np.arange(n), frequencies)) * twice / n, spectrum
        )
    return np.ascontiguousarray(spectrum.real)


def _along(axis: int, matrix: NDArray[np.complex128], array: Spectrum) -> Spectrum:
    """A matrix times an array, along one axis."""
    shape = array.shape
    folded = array.reshape(*shape[:axis], shape[axis], -1)
    result: Spectrum = matrix.astype(np.complex64) @ folded
    return result.reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])


def apply_left(kernel: Kernel, spectrum: Spectrum, response: Spectrum) -> Spectrum:
    """Spectrum of (K x, z) from that of (x, z)."""
    if kernel.weight.shape[1] == 1:
        return response[..., :, None] * spectrum[..., kernel.sources, :]
    left: Spectrum = response @ spectrum
    return left


def apply_right(kernel: Kernel, spectrum: Spectrum, response: Spectrum) -> Spectrum:
    """Spectrum of (z, K x) from that of (z, x)."""
    if kernel.weight.shape[1] == 1:
        return spectrum[..., kernel.sources] * response.conj()[..., None, :]
    right: Spectrum = spectrum @ response.conj().swapaxes(-1, -2)
    return right


def filtered(lags: Lags, kernel: Kernel, size: Sizes, size_out: Sizes) -> Lags:
    """Covariances of the output of a convolution."""
    o = len(kernel.weight)
    torus, torus_out = torus_of(max(lags.shape[-1], o), size), torus_of(o, size_out)
    if kernel.pointwise:
        mapped = (
            kernel.matrix
            @ resample(lags, torus_of(lags.shape[-1], size_out), kernel.strides)
            @ kernel.matrix.T
        )
        return resample(np.asarray(mapped, np.float32), torus_out)
    response = kernel.spectrum(torus)
    spectrum = apply_right(kernel, apply_left(kernel, transform(resample(lags, torus)), response), response)
    return resample(back(spectrum, torus), torus_out, kernel.strides)


def offsets_of(at: Window) -> NDArray[np.int64]:
    """Where the taps of a window lie, seen from ``p stride``; shape (taps, axes)."""
    grid = np.array(list(product(*map(range, at.kernel))), np.int64).reshape(
        math.prod(at.kernel), len(at.kernel)
    )
    return grid * np.array(at.dilations, np.int64) - np.array(at.before, np.int64)


def places(at: Window, size: Sizes) -> Sizes:
    """Spatial shape of a convolution's output."""
    return tuple(
        (n + b + a - d * (k - 1) - 1) // s + 1
        for n, b, a, d, k, s in zip(
            size, at.before, at.after, at.dilations, at.kernel, at.strides, strict=True
        )
    )


def coverage(at: Window, size: Sizes) -> Array:
    """Share of the output's places at which two taps both lie inside the input; shape (taps, taps), the
    single taps on the diagonal.
    """
    joint: Array = np.ones((1, 1))
    for axis, count in enumerate(places(at, size)):
        where = (
            np.arange(count)[:, None] * at.strides[axis]
            - at.before[axis]
            + np.arange(at.kernel[axis]) * at.dilations[axis]
        )
        inside = ((where >= 0) & (where < size[axis])).astype(np.float64)
        joint = np.kron(joint, inside.T @ inside / count)
    return joint


def patches(source: Field, at: Window, group: int) -> tuple[Array, Lags]:
    """Mean and covariance of what a convolution sees; zeros of the padding count.

    Parameters
    ----------
    source : Field
    at : Window
    group : int

    Returns
    -------
    mean : float64 array, shape (g, n)
    covariance : float32 array, shape (g, n, n)
    """
    c = source.channels
    i = c // group
    both = coverage(at, source.size)
    single = np.diagonal(both)
    offsets = offsets_of(at)
    k = len(offsets)
    mean = source.mean.reshape(group, i, 1)
    outer = (mean @ mean.transpose(0, 2, 1)).astype(np.float32)
    blocks: dict[tuple[int, ...], Lags] = {}
    result = np.empty((group, i, k, i, k), np.float32)
    for a, b in product(range(k), repeat=2):
        lag = tuple(int(d) for d in offsets[b] - offsets[a])
        if lag not in blocks:
            blocks[lag] = _diagonal_blocks(source.at(lag), group)
        excess = both[a, b] - single[a] * single[b]
        result[:, :, a, :, b] = blocks[lag] * np.float32(both[a, b]) + outer * np.float32(excess)
    return (mean * single).reshape(group, i * k), result.reshape(group, i * k, i * k)


def patches_transposed(source: Field, at: Window, group: int) -> tuple[Array, Lags]:
    """What a place of a transposed convolution's output sees; shapes as for `patches`.

    It meets one tap in every stride, the others meet zeros. Taps of one phase see inputs whole steps apart,
    which are taken as equal; the phases take turns, so that mean and covariance are those of an average
    phase.
    """
    phases = float(np.prod(at.strides))
    phase = offsets_of(replace(at, before=(0,) * len(at.kernel))) % np.array(at.strides)
    same = ((phase[:, None] == phase[None]).all(axis=-1) / phases).astype(np.float32)
    mean = np.repeat(source.mean.reshape(group, -1), len(phase), axis=1) / phases
    return mean, np.stack([np.kron(block, same) for block in _diagonal_blocks(source.covariance, group)])


def _diagonal_blocks(matrix: Lags, group: int) -> Lags:
    i = len(matrix) // group
    if i == 1:
        return np.diagonal(matrix).reshape(group, 1, 1)
    return np.stack([matrix[g * i : (g + 1) * i, g * i : (g + 1) * i] for g in range(group)])


def averaged(lags: Lags, size: Sizes) -> Lags:
    """Covariance of the mean over all places, shape (c, c)."""
    for count in size:
        lag = np.arange(1 - count, count)
        inside, beyond = _clip(lag, lags.shape[0])
        weights = (count - np.abs(lag)) / count**2 * decay(lags, 0) ** beyond
        spectrum = np.fft.fft(np.bincount(inside % lags.shape[0], weights, minlength=lags.shape[0])).real
        folded = np.fft.ifft(np.maximum(spectrum, 0)).real  # or else a variance may turn out negative
        lags = np.asarray(np.tensordot(folded.astype(np.float32), lags, axes=(0, 0)), np.float32)
    return np.asarray((lags + lags.swapaxes(-1, -2)) / 2, np.float32)
