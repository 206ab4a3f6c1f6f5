"""Mean and covariance of the patches that a layer sees, from samples of its input tensor (NumPy).

Where the inputs are a `Mixture`, each kind k of them has its own mean m_k, covariance C_k and power p_k, the
mean square of the patches. Kinds differ by factors of hundreds in their power, and noise counts relative to
the signal, so each is divided by its own:

    m = sum_k u_k m_k / sum_k u_k                          u_k = weight_k / p_k
    H = sum_k v_k C_k + t_k (m_k - m)(m_k - m)'            v_k = share_k / p_k    t_k = share_k / max(p_k, p)

both in units of the power p = 1 / sum_k u_k. The second term is what is not known of the mean: bias
correction takes off e'm for the mean m that it knows, and where the inputs are of kind k the output still
moves by e'(m_k - m). For a kind of far less power than p nothing can make that good, so it counts as one of
power p. Rounding makes e'He small.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_dfmpc.errors import ModelError, UnsupportedError
from onnx_dfmpc.linalg.low_rank import LowRank
from onnx_dfmpc.linalg.matrices import Covariance, Diagonal, Kronecker, matrix
from onnx_dfmpc.linalg.products import gram
from onnx_dfmpc.linalg.products import product as matrix_product
from onnx_dfmpc.spec import Array, InputStatistics, Layer, Mixture
from onnx_dfmpc.spec.ops import OPS, input_channels, taps
from onnx_dfmpc.statistics.windows import attributes, window_of

PATCHES_PER_INPUT = 8
MIN_PATCHES = 1 << 9
MAX_PATCHES = 1 << 11
MAX_VECTORS = 1 << 12
MAX_ELEMENTS = 1 << 24
"""Bounds of the sample: so many patches for each input of an output channel, at least and at most so many, or
vectors where a kernel has a single tap, and so many numbers in it. Half as many patches, or twice, are the
same to 0.1 dB on ResNet-20, ResNet-8 and MobileNet.
"""

JOINED = 1 << 20
"""Numbers that are put together before products are taken of them. Speed and memory alone."""

PARTS = 8
"""Parts of a sample that are compared with each other, about."""

MOST_DENSE = MAX_VECTORS
"""Inputs without taps up to which a covariance is held element by element: beyond, a sample has fewer vectors
than there are inputs, and is itself the smaller way to hold it.
"""

MANY_INPUTS = 1024
"""From here on, only the channels and one pattern of the taps are measured: that is nearly all that rounding
would use (see ``quantize``), for a fraction of time and memory.
"""


def measure(
    layer: Layer,
    node: NodeProto,
    batches: Sequence[NDArray[Any]],
    mixture: Mixture,
    *,
    seed: int,
    source: str,
    anchored: bool,
) -> InputStatistics:
    """Statistics of a layer's input, from a random sample of its patches.

    Parameters
    ----------
    layer : Layer
    node : NodeProto
        The layer's node.
    batches : sequence of arrays
        Values of the layer's input: (N, c, *spatial) for convolutions, (..., i) for Gemm and MatMul.
    mixture : Mixture
        The inputs of the network that the batches come from.
    seed : int
        Of the choice of patches.
    source : str
    anchored : bool
        Whether some layer before this one has a batch norm. If none has, correlations of channels deep in the
        network are far from real ones, however many patches there are. So synthetic pictures count as one
        sample each for kernels of a single tap, which have no pattern to fall back on
        (docs/accuracy.md has what that is worth).

    Returns
    -------
    InputStatistics
        With a Kronecker product for a covariance where a kernel has many inputs.
    """
    axis, expected = 1 if OPS[layer.op_type].spatial else -1, input_channels(layer)
    if wrong := [batch.shape for batch in batches if batch.shape[axis] != expected]:
        message = f"layer {layer.name!r}: its input is {wrong[0]}, its weight takes {expected} channels"
        raise ModelError(message, hint="no runtime can run it: export it again")
    rng = np.random.default_rng(seed)
    if layer.op_type == "ConvTranspose":
        return _transposed(layer, node, batches, mixture, rng, source)
    if not OPS[layer.op_type].spatial:
        samples = _vectors(batches, -1, 1, rng)
    else:
        images = sum(map(len, batches))
        samples = (_gather(layer, node, batch, images, rng) for batch in batches)
    seen = _summary(_grouped(samples, layer.group), mixture, source)
    if anchored or not OPS[layer.op_type].spatial or taps(layer) > 1:
        return seen
    return replace(seen, samples=min(seen.samples, _pictures(batches, mixture)))


def _pictures(batches: Sequence[NDArray[Any]], mixture: Mixture) -> int:
    """Samples that the synthetic pictures are worth: all kinds have the same ones, so those of the kind with
    the most; more where real inputs have a share of the covariance.
    """
    counts = np.bincount(mixture.kinds, [len(batch) for batch in batches], len(mixture.real))
    share = mixture.shares[~mixture.real].sum() / mixture.shares.sum()
    return round(counts[~mixture.real].max() / share**2) if share else sys.maxsize


def white(layer: Layer) -> InputStatistics:
    """Inputs of mean 0 and variance 1 without correlation, for rounding that does not ask."""
    g, n = layer.group, layer.size // layer.channels
    return InputStatistics(np.zeros((g, n)), Diagonal(np.ones((g, n))), 0, "none")


def is_finite(seen: InputStatistics) -> bool:
    """Whether statistics can be computed with: a mask of -infinity, or a weight of 1e30, spoils them."""
    parts = [seen.mean]
    if isinstance(seen.covariance, np.ndarray):
        parts.append(seen.covariance)
    elif isinstance(seen.covariance, Kronecker):
        parts += [seen.covariance.channels, seen.covariance.spatial]
    elif isinstance(seen.covariance, LowRank):
        parts.append(seen.covariance.directions)
    # A sum is finite where all of its parts are, and small ones do not overflow.
    return all(np.isfinite(part.sum(dtype=np.float64)) for part in parts)


def _grouped(samples: Iterable[Array], groups: int) -> Iterator[Array]:
    """Patches (c, t, P) of all channels as (g, i, t, P)."""
    return (sample.reshape(groups, -1, *sample.shape[1:]) for sample in samples)


@dataclass(frozen=True, eq=False)
class _Kind:
    """Statistics of one kind of inputs: mean (g, n), covariance, mean square of a patch, patches."""

    mean: Array
    covariance: Array | Kronecker | LowRank
    power: float
    count: int
    chance: float = 0.0


def _summary(samples: Iterable[Array], mixture: Mixture, source: str) -> InputStatistics:
    """Statistics of patches of shape (g, i, t, P), one array for each batch of the mixture."""
    found: dict[int, _Kind] = {}
    batches = Counter(mixture.kinds)
    for kind, pairs in groupby(zip(mixture.kinds, samples, strict=True), key=lambda pair: pair[0]):
        found[kind] = _one_kind(_joined((sample for _, sample in pairs), -(-batches[kind] // PARTS)))
    if len(found) == 1:
        (only,) = found.values()
        return InputStatistics(only.mean, only.covariance, only.count, source, only.chance)
    kinds = list(found.values())
    tiny = np.finfo(np.float32).tiny
    power = np.array([max(kind.power, tiny) for kind in kinds])
    weights, shares = (
        values[list(found)] / values[list(found)].sum() for values in (mixture.weights, mixture.shares)
    )
    unit = 1 / (weights / power).sum()
    u, v, t = unit * weights / power, unit * shares / power, unit * shares / np.maximum(power, unit)
    mean = sum(one * kind.mean for one, kind in zip(u, kinds, strict=True))
    apart = [kind.mean - mean for kind in kinds]
    count = round(1 / sum(share**2 / kind.count for share, kind in zip(shares, kinds, strict=True)))
    covariance = _blended([kind.covariance for kind in kinds], apart, v, t, shares)
    chance = sum(float(share) ** 2 * kind.chance for share, kind in zip(shares, kinds, strict=True))
    return InputStatistics(mean, covariance, count, source, chance)


def pooled(several: Sequence[InputStatistics]) -> InputStatistics:
    """What layers with one weight see: the mean of their covariances, each over its power, in units of the
    first one. All else is the first one's; the covariance too, where their forms differ.
    """
    first, count = several[0], len(several)
    covariances = [one.covariance for one in several if not isinstance(one.covariance, Diagonal)]
    if len({type(one.covariance) for one in several}) > 1 or not covariances:
        return first
    power = np.array([float(matrix(one).diagonal().sum()) for one in covariances])
    power = np.maximum(power, np.finfo(np.float32).tiny)
    # Means do not matter: every layer repairs its own.
    apart, nothing = [np.zeros_like(one.mean) for one in several], np.zeros(count)
    covariance = _blended(covariances, apart, power[0] / power / count, nothing, np.full(count, 1 / count))
    return replace(first, covariance=covariance)


def _blended(
    covariances: Sequence[Array | Kronecker | LowRank],
    apart: Sequence[Array],
    v: Array,
    t: Array,
    shares: Array,
) -> Covariance:
    """``sum_k v_k C_k + t_k d_k d_k'``; of Kronecker products, factor by factor."""
    first = covariances[0]
    if isinstance(first, Kronecker):
        g, i, _ = first.channels.shape
        channels, spatial = np.zeros(first.channels.shape), np.zeros(first.spatial.shape)
        for one, other, share, covariance, d in zip(v, t, shares, covariances, apart, strict=True):
            assert isinstance(covariance, Kronecker)
            taps = d.reshape(g, i, -1)
            spread = matrix_product(taps, taps.swapaxes(1, 2)) / taps.shape[2]
            channels += one * covariance.channels + other * spread
            spatial += share * covariance.spatial
        return Kronecker(channels.astype(np.float32), spatial.astype(np.float32))
    if isinstance(first, LowRank):
        parts = [
            np.sqrt(one) * covariance.directions
            for one, covariance in zip(v, covariances, strict=True)
            if isinstance(covariance, LowRank)
        ]
        parts += [np.sqrt(one) * d[..., None] for one, d in zip(t, apart, strict=True)]
        return LowRank(first.variances, np.concatenate(parts, axis=2).astype(np.float32))
    d = np.stack(apart, axis=1)
    total = matrix_product(d.swapaxes(1, 2) * t, d)
    for one, covariance in zip(v, covariances, strict=True):
        assert isinstance(covariance, np.ndarray)
        total += one * covariance
    return total.astype(np.float32)


def _joined(samples: Iterable[Array], most: int) -> Iterator[Array]:
    """The same patches in fewer arrays, of at most so many samples: products of small ones are slow."""
    waiting: list[Array] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) == most or sum(one.size for one in waiting) >= JOINED:
            yield np.concatenate(waiting, axis=3)
            waiting = []
    if waiting:
        yield np.concatenate(waiting, axis=3)


def _one_kind(samples: Iterator[Array]) -> _Kind:
    """Statistics of patches of shape (g, i, t, P), added up one sample after the other."""
    parts, count, centre, sums = 0, 0, np.zeros(0), list[Array]()
    for sample in samples:
        if sample.shape[2] == 1 and sample.shape[1] > MOST_DENSE:
            return _few_vectors([sample, *samples])
        if count == 0:  # about a mean, so that nothing cancels below
            centre = sample.mean(axis=3, dtype=np.float64).astype(np.float32)
        centred = sample - centre[..., None]
        new = [centred.sum(axis=3, dtype=np.float64), *_products(centred)]
        new.append(np.square(_of_channels(new[1], sample.shape), dtype=np.float64) / sample.shape[3])
        sums = [np.add(old, more, out=old) for old, more in zip(sums, new, strict=True)] if sums else new
        parts, count = parts + 1, count + sample.shape[3]
    rest, *products, squares = (total / count for total in sums)
    flat = rest.reshape(len(rest), -1)
    mean = (centre + rest).reshape(flat.shape).astype(np.float64)
    covariance: Array | Kronecker
    if len(products) == 1:
        covariance = (products[0] - flat[:, :, None] * flat[:, None]).astype(np.float32)
        variance = float(np.einsum("gnn->", covariance, dtype=np.float64))
    else:
        covariance = _pattern(products[0], products[1], rest)
        variance = float(np.einsum("gii->", covariance.channels, dtype=np.float64)) * rest.shape[2]
    power = (variance + float(np.square(mean).sum())) / mean.size
    channels = _of_channels(products[0], (*rest.shape, count))
    return _Kind(mean, covariance, power, count, chance_of(channels, squares, parts))


def chance_of(mean: Array, squares: Array, parts: int) -> float:
    """Share of the squared correlations of channels that chance made, out of the covariances C_k of so many
    parts of a sample: their ``mean`` and the mean of their ``squares``, both (g, i, i). 0 of a single part.

    Neighbours in a picture are alike: thousands of patches of a few pictures may be worth a hundred. How far
    the m parts are apart tells. With r_k = C_k in units of the deviations of all parts together,

        chance = sum_ij Var(r_ij) / sum_ij r_ij^2        Var(r_ij) = sum_k (r_k,ij - r_ij)^2 / (m (m - 1))

    over all pairs i != j. Correlations shrunk by this share have the least mean squared error (Ledoit
    & Wolf 2004; Schaefer & Strimmer 2005).
    """
    if parts < 2:
        return 0.0
    power = np.maximum(np.einsum("gii->gi", mean), np.finfo(np.float32).tiny)
    weights = 1 / (power[:, :, None] * power[:, None])
    every = np.arange(mean.shape[1])
    weights[:, every, every] = 0
    made = float((weights * (squares - mean**2)).sum()) / (parts - 1)
    correlated = float((weights * mean**2).sum())
    return min(max(made / correlated, 0.0), 1.0) if correlated > 0 else 0.0


def _of_channels(products: Array, shape: tuple[int, ...]) -> Array:
    """Sums of products of channels (g, i, i) over all taps, of a sample of a shape."""
    g, i, t, _ = shape
    return products if products.shape[1] == i else np.einsum("giaja->gij", products.reshape(g, i, t, i, t))


def _few_vectors(samples: Sequence[Array]) -> _Kind:
    """Statistics of vectors (g, i, 1, P) that are fewer than their elements."""
    vectors = np.concatenate(samples, axis=3)[:, :, 0]
    mean = vectors.mean(axis=2, dtype=np.float64)
    count = vectors.shape[2]
    directions = (vectors - mean[..., None].astype(np.float32)) / np.float32(math.sqrt(count))
    power = float(np.square(directions, dtype=np.float64).sum() + np.square(mean).sum()) / mean.size
    return _Kind(mean, LowRank(np.zeros_like(mean), directions), power, count)


def _products(centred: Array) -> list[Array]:
    """Sums of products over patches (g, i, t, P): of all inputs, or, of many, of channels over all taps and
    of the taps of each channel.
    """
    g, i, t, p = centred.shape
    if i > 1 and t > 1 and i * t >= MANY_INPUTS:
        return [gram(centred.reshape(g, i, t * p)), matrix_product(centred, centred.swapaxes(2, 3))]
    return [gram(centred.reshape(g, i * t, p))]


def _pattern(channels: Array, taps_of_each: Array, rest: Array) -> Kronecker:
    """Means of products, less those of the remaining means (g, i, t), as covariance of the channels and mean
    correlation of the taps.
    """
    t = rest.shape[2]
    channels = (channels - matrix_product(rest, rest.swapaxes(1, 2))) / t
    power = np.einsum("gii->gi", channels)
    live = power > np.finfo(np.float32).tiny
    each = (taps_of_each - rest[..., None] * rest[:, :, None]) / np.where(live, power, 1)[..., None, None]
    spatial = (each * live[..., None, None]).sum(axis=1) / np.maximum(live.sum(axis=1), 1)[:, None, None]
    return Kronecker(channels.astype(np.float32), spatial.astype(np.float32))


def _vectors(
    batches: Sequence[NDArray[Any]], axis: int, groups: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Sample of vectors along an axis of the batches, as arrays of shape (i, 1, P), float32."""
    channels = batches[0].shape[axis]
    share = _share(sum(batch.size // channels for batch in batches), channels, 1, groups)
    for batch in batches:
        vectors = np.moveaxis(batch, axis, -1).reshape(-1, channels)
        chosen = vectors[np.sort(rng.permutation(len(vectors))[: max(1, round(share * len(vectors)))])]
        yield np.ascontiguousarray(chosen.T, dtype=np.float32)[:, None]


def _gather(
    layer: Layer, node: NodeProto, batch: NDArray[Any], images: int, rng: np.random.Generator
) -> Array:
    """Patches of one batch out of so many images in all, at the same random places in each image, shape
    (channels, taps, P).
    """
    at = window_of(attributes(node), layer.shape[2:], batch.shape[2:])
    pads = [(0, 0), (0, 0), *zip(at.before, at.after, strict=True)]
    padded = np.pad(batch, pads) if any(map(sum, pads)) else batch
    reach = [d * (k - 1) + 1 for d, k in zip(at.dilations, at.kernel, strict=True)]
    places = [(size - r) // s + 1 for size, r, s in zip(padded.shape[2:], reach, at.strides, strict=True)]
    total = math.prod(places)
    if min(places) <= 0:
        raise UnsupportedError(
            f"node {layer.name!r}: its kernel is larger than its input of shape {batch.shape}"
        )
    keep = max(1, round(_share(images * total, batch.shape[1], taps(layer), layer.group) * total))
    chosen = np.sort(rng.permutation(total)[:keep])
    corners = [index * s for index, s in zip(np.unravel_index(chosen, places), at.strides, strict=True)]
    count, channels = batch.shape[:2]
    flat = padded.reshape(count, channels, -1)
    gathered = np.empty((channels, taps(layer), count, keep), np.float32)
    for tap, offset in enumerate(product(*map(range, at.kernel))):
        where = [c + o * d for c, o, d in zip(corners, offset, at.dilations, strict=True)]
        gathered[:, tap] = flat.take(np.ravel_multi_index(where, padded.shape[2:]), axis=2).transpose(1, 0, 2)
    return gathered.reshape(channels, taps(layer), -1)


def _share(available: int, channels: int, taps: int, groups: int) -> float:
    """Share of the available patches to keep, of so many channels in each group."""
    most = MAX_VECTORS if taps == 1 else MAX_PATCHES
    wanted = min(max(PATCHES_PER_INPUT * channels * taps // groups, MIN_PATCHES), most)
    return min(1.0, min(wanted, MAX_ELEMENTS / (channels * taps)) / available)


def _transposed(
    layer: Layer,
    node: NodeProto,
    batches: Sequence[NDArray[Any]],
    mixture: Mixture,
    rng: np.random.Generator,
    source: str,
) -> InputStatistics:
    """Statistics for ConvTranspose: an output place meets one tap in every ``stride`` along each axis.

    Taps of the same phase see inputs that are whole steps apart; they are taken as equal, which is exact for
    constant inputs. The phases take turns, so mean and covariance are those of an average phase.
    """
    kernel = layer.shape[2:]
    strides = attributes(node).get("strides", (1,) * len(kernel))
    vectors = _vectors(batches, 1, layer.group, rng)
    channels = _summary(_grouped(vectors, layer.group), mixture, source)
    phases = np.array(list(product(*map(range, kernel)))) % np.array(strides)
    same = ((phases[:, None] == phases[None]).all(axis=-1) / math.prod(strides)).astype(np.float32)
    pattern = Kronecker(matrix(channels.covariance).dense(), np.tile(same, (layer.group, 1, 1)))
    mean = np.repeat(channels.mean, len(phases), axis=1) / math.prod(strides)
    covariance = pattern if pattern.inputs >= MANY_INPUTS else pattern.dense()
    return InputStatistics(mean, covariance, channels.samples, source)
