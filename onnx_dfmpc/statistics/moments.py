"""Mean and covariance of the patches that a layer sees, from samples of its input tensor (NumPy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnx_dfmpc.errors import UnsupportedError
from onnx_dfmpc.layout import taps
from onnx_dfmpc.products import gram
from onnx_dfmpc.spec import Array, InputStatistics, Layer
from onnx_dfmpc.statistics.windows import attributes, window_of

MAX_PATCHES = 1 << 13
MAX_ELEMENTS = 1 << 24
"""Bounds of the sample of patches: so many, and so many numbers in it."""


def measure(layer: Layer, node: NodeProto, batches: Sequence[NDArray[Any]], *, seed: int, provider: str) -> InputStatistics:
    """Statistics of a layer's input, from a random sample of its patches.

    Parameters
    ----------
    layer : Layer
    node : NodeProto
        The layer's node.
    batches : sequence of arrays
        Values of the layer's input: (N, c, *spatial) for convolutions, (..., i) for Gemm and MatMul.
    seed : int
        Of the choice of patches.
    provider : str

    Returns
    -------
    InputStatistics
    """
    rng = np.random.default_rng(seed)
    if layer.op_type == "ConvTranspose":
        return _transposed(layer, node, batches, rng, provider)
    patches = _patches(layer, node, batches, rng)
    return _summary(patches.reshape(layer.group, -1, patches.shape[2]), provider)


def _summary(patches: Array, provider: str) -> InputStatistics:
    """Statistics of patches of shape (g, n, P)."""
    count = patches.shape[2]
    mean = patches.mean(axis=2, dtype=np.float64)
    centred = patches - mean[..., None].astype(np.float32)
    covariance = np.stack([(gram(group) / count).astype(np.float32) for group in centred])
    return InputStatistics(mean, covariance, count, provider)


def _patches(layer: Layer, node: NodeProto, batches: Sequence[NDArray[Any]], rng: np.random.Generator) -> Array:
    """Sample of patches, shape (input channels, taps, P), float32."""
    if layer.op_type in ("Gemm", "MatMul"):
        return _vectors([batch.reshape(-1, batch.shape[-1]) for batch in batches], rng)[:, None]
    images = sum(map(len, batches))
    return np.concatenate([_gather(layer, node, batch, images, rng) for batch in batches], axis=2)


def _vectors(batches: Sequence[NDArray[Any]], rng: np.random.Generator) -> Array:
    """Sample of vectors out of batches of shape (N, i), shape (i, P), float32."""
    share = _share(sum(map(len, batches)), batches[0].shape[1])
    chosen = [batch[np.sort(rng.permutation(len(batch))[: max(1, round(share * len(batch)))])] for batch in batches]
    return np.ascontiguousarray(np.concatenate(chosen).T, dtype=np.float32)


def _gather(layer: Layer, node: NodeProto, batch: NDArray[Any], images: int, rng: np.random.Generator) -> Array:
    """Patches of one batch out of so many images in all, at the same random places in each image."""
    at = window_of(attributes(node), layer.shape[2:], batch.shape[2:])
    pads = [(0, 0), (0, 0), *zip(at.before, at.after, strict=True)]
    padded = np.pad(batch, pads) if any(map(sum, pads)) else batch
    reach = [d * (k - 1) + 1 for d, k in zip(at.dilations, at.kernel, strict=True)]
    places = [(size - r) // s + 1 for size, r, s in zip(padded.shape[2:], reach, at.strides, strict=True)]
    total = math.prod(places)
    if min(places) <= 0:
        raise UnsupportedError(f"node {layer.name!r}: its kernel is larger than its input of shape {batch.shape}")
    keep = max(1, round(_share(images * total, batch.shape[1] * taps(layer)) * total))
    chosen = np.sort(rng.permutation(total)[:keep])
    corners = [index * s for index, s in zip(np.unravel_index(chosen, places), at.strides, strict=True)]
    count, channels = batch.shape[:2]
    flat = padded.reshape(count, channels, -1)
    gathered = np.empty((channels, taps(layer), count, keep), np.float32)
    for tap, offset in enumerate(product(*map(range, at.kernel))):
        where = [c + o * d for c, o, d in zip(corners, offset, at.dilations, strict=True)]
        gathered[:, tap] = flat.take(np.ravel_multi_index(where, padded.shape[2:]), axis=2).transpose(1, 0, 2)
    return gathered.reshape(channels, taps(layer), -1)


def _share(available: int, elements: int) -> float:
    """Share of the available patches to keep."""
    return min(1.0, min(MAX_PATCHES, MAX_ELEMENTS / elements) / available)


def _transposed(layer: Layer, node: NodeProto, batches: Sequence[NDArray[Any]], rng: np.random.Generator, provider: str) -> InputStatistics:
    """Statistics for ConvTranspose: an output place meets one tap in every ``stride`` along each axis.

    Taps of the same phase see inputs that are whole steps apart; they are taken as equal, which is exact for constant inputs. The phases
    take turns, so mean and covariance are those of an average phase.
    """
    kernel = layer.shape[2:]
    strides = attributes(node).get("strides", (1,) * len(kernel))
    vectors = _vectors([np.moveaxis(batch, 1, -1).reshape(-1, batch.shape[1]) for batch in batches], rng)
    channels = _summary(vectors.reshape(layer.group, -1, vectors.shape[1]), provider)
    phases = np.array(list(product(*map(range, kernel)))) % np.array(strides)
    same = (phases[:, None] == phases[None]).all(axis=-1) / math.prod(strides)
    covariance = np.stack([np.kron(c, same) for c in channels.covariance]).astype(np.float32)
    return InputStatistics(np.repeat(channels.mean, len(phases), axis=1) / math.prod(strides), covariance, channels.samples, provider)
