"""The covariance that rounding fits a layer to: measured statistics, as far as they can be trusted (NumPy).

They come from a sample, and from inputs that are not the real ones. `regularize` takes back what a sample
says too much of correlations. `with_mean_uncertainty` adds what is not known of means: bias correction takes
off e'm for the mean m that it knows, and where the true one is m + d the output still moves by e'd. Rounding
then makes e' (H + E dd') e small. Numbers at the constants are to be read as those in `gptq`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_dfmpc.linalg.low_rank import LowRank
from onnx_dfmpc.linalg.matrices import Covariance, Diagonal, Kronecker
from onnx_dfmpc.spec import Array

SHRINKAGE = 0.1
"""Share by which correlations are shrunk, however many samples there are. 0.02 has 12.02 and 18.93, 0.2 has
11.71 and 18.43, 0.4 has 11.47 and 18.14.
"""

SAMPLES_PER_INPUT = 28
"""Patches of one image are neighbours: about this many count as one independent sample. 7 has 12.13 and
18.80, 112 has 11.50 and 18.17.
"""

LEAST_PATTERN = 0.5
"""Least share of the Kronecker pattern in a covariance. 0 has 12.00 and 18.78, 0.9 has 11.71 and 18.08."""

MEAN_RELATIVE_VARIANCE = 0.05
"""Square of the relative error that the mean of a channel is expected to have: a fifth or so, from synthetic
inputs to real ones. 0 has 11.83 and 18.61, 0.2 has 12.07 and 18.72.
"""


def regularize(covariance: Covariance, taps: int, samples: int, chance: float = 0.0) -> Covariance:
    """Covariance blended with its Kronecker approximation, correlations shrunk; its diagonal is positive.

    A sample says less about each single pair of inputs than about the pattern in all of them: C (x) R, the
    channel covariance times one spatial correlation of the ``taps`` of a kernel. The fewer ``samples`` (0:
    exact) per input, the more weight the pattern gets. It has at least half, since even exact statistics of a
    synthetic input are not those of a real one. Without taps there is no pattern, and correlations of few
    samples per input are shrunk by more (what counts as a sample there: `moments.measure`). So are those that
    a few inputs have by ``chance`` (`InputStatistics.chance`): neighbours in a picture are alike, so that
    many patches may be few samples.
    """
    if isinstance(covariance, Diagonal):
        return covariance
    least = max(SHRINKAGE, chance)
    if isinstance(covariance, Kronecker):
        # Correlations of different taps in different channels are products: half of it in each factor.
        channels = _shrink(covariance.channels, max(SHRINKAGE / 2, chance))
        return Kronecker(channels, _shrink(covariance.spatial, SHRINKAGE / 2))
    if isinstance(covariance, LowRank):
        return _shrink_directions(covariance, samples)
    g, n, _ = covariance.shape
    i = n // taps
    if taps == 1:
        return _shrink(covariance, max(least, n / (n + samples) if samples else 0))
    if i == 1:
        return _shrink(covariance, SHRINKAGE)
    blocks = covariance.reshape(g, i, taps, i, taps)
    channels = np.einsum("giaja->gij", blocks) / taps
    tiny = np.finfo(np.float32).tiny
    power = np.maximum(np.einsum("gii->gi", channels), tiny)
    live = np.maximum((power > tiny).sum(axis=1), 1)
    spatial = np.einsum("giaib,gi->gab", blocks, 1 / power) / live[:, None, None]
    share = max(LEAST_PATTERN, n / (n + samples / SAMPLES_PER_INPUT) if samples else 0)
    blended: Array = (1 - share) * covariance
    # In place, block by block: a layer of 1,024 inputs has 8 MB of them.
    into = blended.reshape(g, i, taps, i, taps)
    into += (share * channels)[:, :, None, :, None] * spatial[:, None, :, None, :]
    return _shrink(blended, least)


def _shrink_directions(covariance: LowRank, samples: int) -> LowRank:
    """`_shrink` of a matrix without taps, held by its directions."""
    n = covariance.inputs
    share = max(SHRINKAGE, n / (n + samples) if samples else 0)
    diagonal = covariance.diagonal()
    floor = 1e-6 * diagonal.mean(axis=1, keepdims=True)
    kept = np.sqrt(1 - share) * covariance.directions
    variances = (1 - share) * covariance.variances + share * diagonal + np.where(floor > 0, floor, 1)
    return LowRank(variances, kept)


def _shrink(covariance: Array, share: float) -> Array:
    """Correlations minus a share of themselves, variances as they are but for a floor."""
    n = covariance.shape[1]
    diagonal = np.einsum("gnn->gn", covariance)
    floor = 1e-6 * diagonal.mean(axis=1, keepdims=True)
    shrunk: Array = (1 - share) * covariance
    # An input that never moves would leave its weight undetermined, and the Cholesky factor singular.
    shrunk[:, np.arange(n), np.arange(n)] = diagonal + np.where(floor > 0, floor, 1)
    return shrunk


def with_mean_uncertainty(covariance: Covariance, mean: Array, taps: int) -> Covariance:
    """Covariance of inputs whose mean (g, n) is not known for sure, H + E dd', in the same form.

    The error d of a mean m has a variance of `MEAN_RELATIVE_VARIANCE` m^2, is independent from channel to
    channel, and the same for all taps of one. A `Kronecker` covariance takes it for variance of the channel.
    """
    if isinstance(covariance, Diagonal):
        return covariance
    g, n = mean.shape
    if isinstance(covariance, Kronecker):  # also of a matrix that reads a flattened tensor, place by place
        taps = covariance.spatial.shape[1]
    i = n // taps
    per_tap = mean.reshape(g, i, taps)
    channels = np.arange(i)
    if isinstance(covariance, Kronecker):
        wider = covariance.channels.copy()
        wider[:, channels, channels] += MEAN_RELATIVE_VARIANCE * np.square(per_tap).mean(axis=2)
        return Kronecker(wider, covariance.spatial)
    if isinstance(covariance, LowRank):  # one tap: each channel is an input
        return replace(covariance, variances=covariance.variances + MEAN_RELATIVE_VARIANCE * mean**2)
    result = covariance.copy()
    blocks = MEAN_RELATIVE_VARIANCE * per_tap[..., :, None] * per_tap[..., None, :]
    # Two index arrays with a slice between them: NumPy puts their axis first.
    result.reshape(g, i, taps, i, taps)[:, channels, :, channels, :] += blocks.swapaxes(0, 1)
    return result
