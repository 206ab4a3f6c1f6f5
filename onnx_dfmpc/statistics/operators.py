"""What single operators make of random fields: fields in, field out (NumPy)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.spec import Array
from onnx_dfmpc.statistics import rectified
from onnx_dfmpc.statistics.field import (
    TINY,
    Field,
    Kernel,
    Lags,
    Sizes,
    averaged,
    coverage,
    filtered,
    offsets_of,
    patches,
    patches_transposed,
    places,
    resample,
    torus_of,
    transposed,
)
from onnx_dfmpc.statistics.kinship import Activated, Filtered, Joined, Scaled, Summed, cross_covariance
from onnx_dfmpc.statistics.rectified import Activation
from onnx_dfmpc.statistics.windows import Window


def convolve(
    source: Field,
    weight: Array,
    bias: Array | float,
    at: Window,
    group: int,
    patch: tuple[Array, Lags],
    birth: int,
) -> Field:
    """Output of a convolution; ``patch`` is what `patches` gives, or a correction of it."""
    o = len(weight)
    rows = weight.reshape(group, o // group, -1)
    mean = (rows @ patch[0][..., None]).reshape(o) + bias
    narrow = rows.astype(np.float32)
    variance = np.einsum("grn,grn->gr", narrow @ patch[1], narrow).reshape(o).astype(np.float64)
    kernel = Kernel(weight.reshape(o, weight.shape[1], -1), offsets_of(at), at.strides, group)
    size = places(at, source.size)
    step = tuple(s * d for s, d in zip(source.step, at.strides, strict=True))
    lags = filtered(source.lags, kernel, source.size, size)
    gain = _gain(np.diagonal(lags[(0,) * len(size)]), np.maximum(variance, 0))
    lags *= np.outer(gain, gain).astype(np.float32)
    return Field(
        mean,
        lags,
        size,
        step,
        birth,
        Filtered(source, replace(kernel, weight=kernel.weight * gain[:, None, None])),
    )


def convolve_transposed(
    source: Field, weight: Array, bias: Array | float, at: Window, group: int, size: Sizes, birth: int
) -> Field:
    """Output of a transposed convolution of a certain size; weight of shape (i, o / group, *kernel).

    Channels are related as at an average place, places as in the enlarged input. Every place meets one tap in
    every stride, so that what the output shares with other tensors comes through a kernel of that share.
    """
    i, r = weight.shape[:2]
    rows = weight.reshape(group, i // group, r, -1).swapaxes(1, 2)
    mean, seen = patches_transposed(source, at, group)
    flat = rows.reshape(group, r, -1)
    channels = np.zeros((group * r, group * r), np.float32)
    for g, block in enumerate(flat @ seen @ flat.swapaxes(1, 2)):
        channels[g * r : (g + 1) * r, g * r : (g + 1) * r] = block
    wide = enlarge(source, tuple(n * s for n, s in zip(source.size, at.strides, strict=True)), birth)
    spatial = np.einsum("...ii->...", resample(wide.lags, torus_of(group * r, size))) / max(
        float(source.variance.sum()), TINY
    )
    offsets = np.array(at.before) - np.array(list(np.ndindex(*at.kernel))) * np.array(at.dilations)
    kernel = Kernel(
        rows.reshape(group * r, i // group, -1) / np.prod(at.strides), offsets, (1,) * len(size), group
    )
    lags = spatial[..., None, None].astype(np.float32) * channels
    return Field(
        (flat @ mean[..., None]).reshape(-1) + bias, lags, size, wide.step, birth, Filtered(wide, kernel)
    )


def linear(source: Field, weight: Array, offset: Array | float, birth: int) -> Field:
    """A matrix of shape (o, i) times the channels at every place."""
    axes = len(source.size)
    kernel = Kernel(weight[..., None], np.zeros((1, axes), np.int64), (1,) * axes)
    lags = filtered(source.lags, kernel, source.size, source.size)
    return Field(
        weight @ source.mean + offset, lags, source.size, source.step, birth, Filtered(source, kernel)
    )


def scale(source: Field, factor: Array | float, offset: Array | float, birth: int) -> Field:
    """``factor x + offset``, per channel."""
    gain = np.broadcast_to(factor, source.mean.shape)
    lags = source.lags * np.outer(gain, gain).astype(np.float32)
    return replace(
        source, mean=gain * source.mean + offset, lags=lags, birth=birth, origin=Scaled(source, gain)
    )


def normalize(
    source: Field, known_mean: Array, known_variance: Array, factor: Array, offset: Array, birth: int
) -> Field:
    """``factor x + offset`` of a field with the same correlations, whose mean and variance are known."""
    gain = factor * _gain(source.variance, known_variance)
    lags = source.lags * np.outer(gain, gain).astype(np.float32)
    return replace(
        source, mean=factor * known_mean + offset, lags=lags, birth=birth, origin=Scaled(source, gain)
    )


def _gain(variance: NDArray[np.floating], wanted: Array) -> Array:
    """Factors that turn variances into others; a channel that has next to none stays as it is."""
    gain: Array = np.sqrt(wanted / np.maximum(variance, TINY * max(float(variance.max()), TINY)))
    return gain


def activate(source: Field, activation: Activation, birth: int) -> Field:
    """Output of an elementwise function."""
    variance = source.variance
    expansion = rectified.expand(activation, source.mean, variance)
    deviation = np.sqrt(np.maximum(variance, TINY)).astype(np.float32)
    correlation = np.clip(source.lags / np.outer(deviation, deviation), -1, 1)
    lags = rectified.covariance(expansion, expansion, correlation)
    return replace(
        source, mean=expansion.mean, lags=lags, birth=birth, origin=Activated(source, expansion, activation)
    )


def gate(source: Field, activation: Activation, birth: int) -> Field:
    """A field times a function of itself, as SiLU is."""
    return activate(source, lambda x: x * activation(x), birth)


def add(a: Field, b: Field, sign: float, birth: int) -> Field:
    """``a + sign b``, with the covariance of the two."""
    torus = torus_of(a.channels, a.size)
    lags = resample(a.lags, torus) + resample(b.lags, torus)
    cross = cross_covariance(a, b)
    if cross is not None:
        cross = np.float32(sign) * resample(cross, torus)
        lags = lags + cross + transposed(cross)
    return Field(a.mean + sign * b.mean, lags, a.size, a.step, birth, Summed((a, b), (1.0, sign)))


def join(parts: list[Field], birth: int) -> Field:
    """Channels of several fields, one after the other, with the covariances between them."""
    first = parts[0]
    ends = np.cumsum([part.channels for part in parts])
    torus = torus_of(int(ends[-1]), first.size)
    lags = np.zeros((*torus, ends[-1], ends[-1]), np.float32)
    blocks = [slice(end - part.channels, end) for end, part in zip(ends, parts, strict=True)]
    for i, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        lags[..., block, block] = resample(part.lags, torus)
        for other, before in zip(blocks[:i], parts[:i], strict=True):
            cross = cross_covariance(before, part)
            if cross is not None:
                cross = resample(cross, torus)
                lags[..., other, block] = cross
                lags[..., block, other] = transposed(cross)
    mean = np.concatenate([part.mean for part in parts])
    return Field(mean, lags, first.size, first.step, birth, Joined(tuple(parts)))


def multiply(a: Field, b: Field, birth: int) -> Field:
    """Product of a field and a gate, which may be constant in space; as for normal variables (Isserlis'
    theorem).
    """
    if b.size != a.size:
        other = np.broadcast_to(b.lags[(0,) * len(b.size)], a.lags.shape)
        cross = None
    else:
        other = resample(b.lags, a.torus)
        cross = cross_covariance(a, b)
    mean_a, mean_b = (x.mean.astype(np.float32) for x in (a, b))
    lags = a.lags * np.outer(mean_b, mean_b) + other * np.outer(mean_a, mean_a) + a.lags * other
    mean = a.mean * b.mean
    if cross is not None:
        cross = resample(cross, a.torus)
        mirrored = transposed(cross)
        lags = (
            lags + cross * np.outer(mean_b, mean_a) + mirrored * np.outer(mean_a, mean_b) + cross * mirrored
        )
        mean = mean + np.diagonal(cross[(0,) * len(a.size)])
    return replace(a, mean=mean, lags=lags, birth=birth, origin=Scaled(a, b.mean))


def average_pool(source: Field, at: Window, birth: int, *, count_pads: bool) -> Field:
    """Output of AveragePool."""
    c, k = source.channels, int(np.prod(at.kernel))
    share = float(np.diagonal(coverage(at, source.size)).mean())
    weight = np.full((c, 1, *at.kernel), 1 / k if count_pads else 1 / (k * share))
    return convolve(source, weight, 0.0, at, c, patches(source, at, c), birth)


def max_pool(source: Field, at: Window, birth: int) -> Field:
    """Output of MaxPool: the largest of equally correlated normals.

    With the average correlation r in a window, max x = mu + sigma (sqrt(r) z + sqrt(1 - r) max z_a). An
    activation that grows commutes with the maximum, so that it is the normal variable before it that is
    pooled.
    """
    origin = source.origin
    if isinstance(origin, Activated) and isinstance(origin.activation, rectified.PiecewiseLinear):
        return activate(max_pool(origin.parent, at, birth), origin.activation, birth)
    k = int(np.prod(at.kernel))
    pooled = average_pool(source, at, birth, count_pads=False)
    variance = source.variance
    unpadded = replace(
        at, before=(0,) * len(at.kernel), after=(0,) * len(at.kernel), strides=(1,) * len(at.kernel)
    )
    _, inside = patches(source, unpadded, source.channels)
    total = inside.sum(axis=(1, 2)).astype(np.float64)
    r = np.clip((total / np.maximum(variance, TINY) / k - 1) / max(k - 1, 1), 0, 1)
    top, spread = rectified.largest_of(k)
    mean = source.mean + np.sqrt(variance * (1 - r)) * top
    one = np.ones(len(mean))
    return normalize(pooled, mean, variance * (r + (1 - r) * spread), one, 0 * one, birth)


def global_average(source: Field, birth: int, *, keep: bool) -> Field:
    """Mean over all places, with the spatial axes kept at size 1 or dropped."""
    matrix = averaged(source.lags, source.size)
    ones = (1,) * len(source.size) if keep else ()
    return Field(source.mean, matrix.reshape(*ones, *matrix.shape), ones, source.step if keep else (), birth)


def enlarge(source: Field, size: tuple[int, ...], birth: int) -> Field:
    """Nearest-neighbour Resize."""
    factor = [new / old for new, old in zip(size, source.size, strict=True)]
    lags = source.lags
    torus = torus_of(source.channels, size)
    for axis, (f, new, old) in enumerate(zip(factor, torus, source.torus, strict=True)):
        lag = np.rint(np.fft.fftfreq(new, 1 / new) / f).astype(np.int64)
        lags = np.take(lags, np.clip(lag, -(old // 2), old // 2) % old, axis=axis)
    step = tuple(s / f for s, f in zip(source.step, factor, strict=True))
    return Field(source.mean, lags, size, step, birth, Scaled(source, np.ones(source.channels)))
