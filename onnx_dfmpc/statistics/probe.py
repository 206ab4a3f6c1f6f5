"""Run the float model on inputs and measure what every layer sees; run the quantized one beside it.

Synthetic inputs do not have the statistics of real ones, but a batch norm tells what those are: it was
trained to expect mean mu and variance sigma^2 of each channel. So after every layer with a batch norm the
measured output y is re-anchored,

    y <- sigma (y - mean(y)) / std(y) + mu,

and what flows on has the right mean and variance per channel; only correlations are left to the synthetic
inputs. Real inputs are measured as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import Anchor, Array, BatchNorm, Feeds, Layer, LayerStatistics, Moments, Progress, Value
from onnx_dfmpc.spec.ops import output_axis, per_channel
from onnx_dfmpc.statistics.moments import measure

FLOOR = 1e-3
"""Share of sigma^2 that is added to the measured variance, so that a channel which is dead on the synthetic
inputs is not blown up. Not studied: any small share does.
"""


def probe(
    proto: ModelProto,
    layers: Sequence[Layer],
    wanted: Collection[str],
    feeds: Feeds,
    *,
    source: str,
    seed: int,
    with_outputs: bool,
    reanchored: bool = True,
    progress: Progress | None = None,
) -> dict[str, LayerStatistics]:
    """Statistics of the layers of a float model, by name.

    ``feeds`` holds input arrays by name, one mapping per batch. Only the ``wanted`` layers get statistics of
    their input; ``source`` is what these are called. Synthetic inputs are ``reanchored``, real ones not.
    Without ``with_outputs`` the moments of outputs are measured only where re-anchoring needs them. ``seed``
    is that of the choice of patches.
    """
    table = ConstantTable(proto)
    run = PartialRun(proto, table, feeds)
    nodes = {node.output[0]: node for node in proto.graph.node if node.output}
    found: dict[str, LayerStatistics] = {}
    for layer in layers:
        needed = layer.name in wanted
        seen = None
        if needed:
            seen = measure(layer, nodes[layer.output], run.value(layer.input), seed=seed, source=source)
        norm = layer.batch_norm if reanchored else None
        output = anchor = None
        if norm is not None or (needed and with_outputs):
            values = run.value(layer.output)
            mean, variance = _moments(values, layer)
            output = Moments(mean - own_bias(layer, table), variance)
            if norm is not None:
                anchor = _anchor(norm, mean, variance)
                run.put(layer.output, _affine(values, anchor.scale, anchor.offset, layer))
        found[layer.name] = LayerStatistics(seen, output, anchor)
        if progress is not None:
            progress("measure", len(found), len(layers))
    return found


class QuantizedRun:
    """The network with the layers quantized so far, on the inputs that the float network was measured on.

    Ask for the layers in topological order: `respond` with a quantized weight, then `commit` how its output
    is corrected; or `keep` a layer that stays float.
    """

    def __init__(self, proto: ModelProto, feeds: Feeds) -> None:
        self._table = ConstantTable(proto)
        self._run = PartialRun(proto, self._table, feeds)

    def respond(self, layer: Layer, weight: NDArray[np.float32]) -> Moments:
        """Moments of the layer's output with a quantized weight of its shape, without its bias."""
        self._run.replace(layer.output, 1, weight.astype(self._table[layer.weight].dtype))
        mean, variance = _moments(self._run.value(layer.output), layer)
        return Moments(mean - own_bias(layer, self._table), variance)

    def commit(self, layer: Layer, gain: Array, shift: Array, anchor: Anchor | None) -> None:
        """Go on from an output y that became ``gain (y - bias) + bias - shift``, arrays of shape (o,).

        Where the float output was re-anchored, the quantized one moves by the same scale and offset: its own
        moments would hide what quantization did to them.
        """
        bias = own_bias(layer, self._table)
        scale, offset = gain, bias - gain * bias - shift
        if anchor is not None:
            scale, offset = anchor.scale * scale, anchor.scale * offset + anchor.offset
        self._run.put(layer.output, _affine(self._run.value(layer.output), scale, offset, layer))

    def keep(self, layer: Layer, anchor: Anchor | None) -> None:
        """Go on from a layer that stays float."""
        self.commit(layer, np.ones(layer.channels), np.zeros(layer.channels), anchor)


def own_bias(layer: Layer, table: ConstantTable) -> Array:
    """What the layer's own node adds to its output, float64, shape (o,)."""
    if layer.bias is None or layer.bias_node != layer.name:
        return np.zeros(layer.channels)
    return table[layer.bias].astype(np.float64).ravel()


def _anchor(norm: BatchNorm, mean: Array, variance: Array) -> Anchor:
    """Scale and offset that give an output the moments which its batch norm expects."""
    scale = norm.sigma / np.sqrt(variance + FLOOR * norm.sigma**2)
    return Anchor(scale, norm.mean - scale * mean)


def _moments(batches: Sequence[Value], layer: Layer) -> tuple[Array, Array]:
    """Mean and variance per channel, float64, added up one batch after the other (Chan, Golub & LeVeque
    1979).
    """
    count, mean, squares = 0, np.zeros(layer.channels), np.zeros(layer.channels)
    for batch in batches:
        axis = output_axis(layer, batch.ndim)
        axes = tuple(a for a in range(batch.ndim) if a != axis)
        more = batch.size // batch.shape[axis]
        own = batch.sum(axis=axes, dtype=np.float64) / more
        step = own - mean
        centred = batch - per_channel(own.astype(batch.dtype), layer, batch.ndim)
        squares += np.square(centred).sum(axis=axes, dtype=np.float64)
        squares += step**2 * (count * more / (count + more))
        mean += step * (more / (count + more))
        count += more
    return mean, squares / count


def _affine(batches: Sequence[Value], scale: Array, offset: Array, layer: Layer) -> Iterator[Value]:
    """``scale y + offset`` of every batch."""
    for batch in batches:
        slope, shift = (
            per_channel(values.astype(batch.dtype), layer, batch.ndim) for values in (scale, offset)
        )
        yield batch * slope + shift
