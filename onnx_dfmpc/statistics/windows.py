"""Where the taps of a convolution or of a pooling lie, and on what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnx_dfmpc.spec import Array


@dataclass(frozen=True)
class Window:
    """Where the taps of a convolution lie: one entry per spatial axis, pads before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def window_of(attributes: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Window on an input of a given spatial shape, ``auto_pad`` and ``ceil_mode`` resolved."""
    rank = len(kernel)
    strides = tuple(attributes.get("strides", (1,) * rank))
    dilations = tuple(attributes.get("dilations", (1,) * rank))
    pads = tuple(attributes.get("pads", (0,) * 2 * rank))
    before, after = pads[:rank], pads[rank:]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if auto == b"SAME_UPPER" else (large, small)
    if attributes.get("ceil_mode", 0):
        missing = [
            -(n + b + a - r) % s for n, b, a, r, s in zip(size, before, after, reach, strides, strict=True)
        ]
        after = tuple(a + m for a, m in zip(after, missing, strict=True))
    return Window(tuple(kernel), strides, dilations, before, after)


@lru_cache(maxsize=4)
def numbered(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Places of a tensor in their order; layers in a row have tensors of the same shape, and share them."""
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


def grid(size: Sequence[int]) -> Array:
    """All places of a box, shape (places, axes), the last axis innermost."""
    return np.indices(tuple(size)).reshape(len(size), math.prod(size)).T.astype(np.float64)


def distances(places: Array) -> Array:
    """Between all pairs of places (t, axes), shape (t, t)."""
    return np.asarray(np.sqrt(np.square(places[:, None] - places).sum(axis=2)))


def mean_decay(size: Sequence[int], reach: float) -> float:
    """Mean of exp(-distance / reach) over all pairs of places in a box, without a matrix of them."""
    lags, n = grid(size), np.array(size)
    share = np.prod((n - lags) * np.where(lags > 0, 2, 1) / n**2, axis=1)
    return float(share @ np.exp(-np.sqrt(np.square(lags).sum(axis=1)) / reach))


def coverage(at: Window, size: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """Share of the output's places at which two taps both lie on the input, shape (taps, taps), single taps
    on the diagonal; and the number of places along each axis.
    """
    share, counts = np.ones((1, 1)), []
    for n, k, stride, dilation, before, after in zip(
        size, at.kernel, at.strides, at.dilations, at.before, at.after, strict=True
    ):
        taps = np.arange(k) * dilation - before
        counts.append(max((n + after - int(taps[-1]) - 1) // stride + 1, 1))
        where = np.arange(counts[-1])[:, None] * stride + taps
        inside = ((where >= 0) & (where < n)).astype(np.float64)
        share = np.kron(share, inside.T @ inside / counts[-1])
    return share, tuple(counts)


def transposed_coverage(at: Window, size: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """The same of a transposed convolution: a place meets one tap in every stride, and zeros elsewhere."""
    phase = grid(at.kernel) * at.dilations % at.strides
    share = (phase[:, None] == phase).all(axis=2) / math.prod(at.strides)
    return share, tuple(n * stride for n, stride in zip(size, at.strides, strict=True))
