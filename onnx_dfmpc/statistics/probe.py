"""Probe and calibration: run the float model on inputs and measure what every layer sees.

Synthetic inputs do not have the statistics of real ones, but a batch norm tells what those are: it was trained to expect mean mu and
variance sigma^2 of each channel. So behind every layer with a batch norm the measured output y is re-anchored,

    y <- sigma (y - mean(y)) / std(y) + mu,

and what flows on has the right mean and variance per channel; only correlations are left to the synthetic inputs. Real inputs are measured
as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.graph import ConstantTable
from onnx_dfmpc.spec import InputStatistics, Layer
from onnx_dfmpc.statistics.moments import measure
from onnx_dfmpc.statistics.stream import Stream, Value

FLOOR = 1e-3
"""Share of sigma^2 that is added to the measured variance, so that a channel which is dead on the synthetic inputs is not blown up."""

Feeds = Sequence[Mapping[str, Value]]


def probe(proto: ModelProto, layers: Sequence[Layer], feeds: Feeds, *, seed: int = 0) -> Iterator[tuple[Layer, InputStatistics]]:
    """Statistics from synthetic inputs, re-anchored to batch norm.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    layers : sequence of Layer
        In topological order.
    feeds : sequence of mapping
        Input arrays by name, one mapping per batch.
    seed : int
        Of the choice of patches.

    Yields
    ------
    layer : Layer
    statistics : InputStatistics
    """
    return _walk(proto, layers, feeds, seed, "probe", anchored=True)


def calibrate(proto: ModelProto, layers: Sequence[Layer], feeds: Feeds, *, seed: int = 0) -> Iterator[tuple[Layer, InputStatistics]]:
    """Statistics from real inputs; see `probe`."""
    return _walk(proto, layers, feeds, seed, "calibration", anchored=False)


def _walk(
    proto: ModelProto, layers: Sequence[Layer], feeds: Feeds, seed: int, provider: str, *, anchored: bool
) -> Iterator[tuple[Layer, InputStatistics]]:
    stream = Stream(proto, ConstantTable(proto), feeds)
    nodes = {node.output[0]: node for node in proto.graph.node if node.output}
    for index, layer in enumerate(layers):
        batches = stream.value(layer.input)
        yield layer, measure(layer, nodes[layer.output], batches, seed=seed + index, provider=provider)
        if anchored and layer.batch_norm is not None:
            stream.put(layer.output, _anchor(stream.value(layer.output), layer))


def _anchor(batches: list[Value], layer: Layer) -> list[Value]:
    norm = layer.batch_norm
    assert norm is not None
    axes = (0, *range(2, batches[0].ndim))
    count = sum(batch[:, 0].size for batch in batches)
    mean = sum(batch.sum(axis=axes, dtype=np.float64) for batch in batches) / count
    shape = (1, -1) + (1,) * (batches[0].ndim - 2)
    variance = sum(((batch - mean.reshape(shape)) ** 2).sum(axis=axes) for batch in batches) / count
    scale = norm.sigma / np.sqrt(variance + FLOOR * norm.sigma**2)
    offset = norm.mean - scale * mean
    factor, term = (array.reshape(shape).astype(batches[0].dtype) for array in (scale, offset))
    return [batch * factor + term for batch in batches]
