"""Probe and calibration: run the float model on inputs and measure what every layer sees.

Synthetic inputs do not have the statistics of real ones, but a batch norm tells what those are: it was
trained to expect mean mu and variance sigma^2 of each channel. So behind every layer with a batch norm the
measured output y is re-anchored,

    y <- sigma (y - mean(y)) / std(y) + mu,

and what flows on has the right mean and variance per channel; only correlations are left to the synthetic
inputs. Real inputs are measured as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.batches import Value
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import Array, BatchNorm, InputStatistics, Layer, Outputs
from onnx_dfmpc.spec.ops import output_axis, per_channel
from onnx_dfmpc.statistics.moments import measure

FLOOR = 1e-3
"""Share of sigma^2 that is added to the measured variance, so that a channel which is dead on the synthetic
inputs is not blown up.
"""

Feeds = Sequence[Mapping[str, Value]]


class Probe:
    """Statistics measured while a model runs on inputs, layer by layer, and beside it the same model with its
    layers quantized so far.

    Ask for the layers in topological order: `measure` one, `respond` with its quantized weight, `commit` how
    its output is corrected, go on to the next.

    Parameters
    ----------
    proto : ModelProto
        The float model.
    feeds : sequence of mapping
        Input arrays by name, one mapping per batch.
    provider : str
        "probe" for synthetic inputs, which are re-anchored to batch norm, or "calibration" for real ones,
        which are not.
    seed : int
        Of the choice of patches.
    """

    def __init__(self, proto: ModelProto, feeds: Feeds, *, provider: str, seed: int = 0) -> None:
        table = ConstantTable(proto)
        self._float = PartialRun(proto, table, feeds)
        self._quantized = PartialRun(proto, table, feeds)
        self._nodes = {node.output[0]: node for node in proto.graph.node if node.output}
        self._table = table
        self._provider = provider
        self._seed = seed

    def measure(self, layer: Layer) -> InputStatistics:
        """Statistics of a layer's input in the float network."""
        return measure(
            layer,
            self._nodes[layer.output],
            self._float.value(layer.input),
            seed=self._seed,
            provider=self._provider,
        )

    def respond(self, layer: Layer, weight: Value) -> Outputs:
        """Run a layer in the float network, and with a quantized weight in the network quantized so far.

        Parameters
        ----------
        layer : Layer
        weight : array, shape ``layer.shape``
        """
        output = self._float.value(layer.output)
        self._quantized.replace(layer.output, 1, weight.astype(output[0].dtype))
        bias = self._bias(layer)
        mean, variance = _moments(output, layer)
        quantized_mean, quantized_variance = _moments(self._quantized.value(layer.output), layer)
        return Outputs(mean - bias, variance, quantized_mean - bias, quantized_variance)

    def skip(self, layer: Layer) -> None:
        """Go on from a layer that stays as it is in both networks."""
        self.commit(layer, np.ones(layer.channels), np.zeros(layer.channels))

    def commit(self, layer: Layer, gain: Array, shift: Array) -> None:
        """Go on from a layer that became ``gain * (quantized output - bias) + bias - shift``, all arrays of
        shape (channels,).

        Synthetic outputs are re-anchored, the quantized ones by what the float ones need.
        """
        bias = self._bias(layer)
        scale, offset = gain, bias - gain * bias - shift
        if self._provider == "probe" and layer.batch_norm is not None:
            anchor, term = self._reanchor(layer, layer.batch_norm)
            scale, offset = anchor * scale, anchor * offset + term
        self._quantized.put(layer.output, _affine(self._quantized.value(layer.output), scale, offset, layer))

    def _reanchor(self, layer: Layer, norm: BatchNorm) -> tuple[Array, Array]:
        """Give the float output the moments that its batch norm expects, and return the scale and offset that
        it took.
        """
        output = self._float.value(layer.output)
        mean, variance = _moments(output, layer)
        scale = norm.sigma / np.sqrt(variance + FLOOR * norm.sigma**2)
        offset = norm.mean - scale * mean
        self._float.put(layer.output, _affine(output, scale, offset, layer))
        return scale, offset

    def _bias(self, layer: Layer) -> Array:
        """What the layer's own node adds to its output."""
        if layer.bias is None or layer.bias_node != layer.name:
            return np.zeros(layer.channels)
        return self._table[layer.bias].astype(np.float64).ravel()


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
        moved = own - mean
        squares += np.square(batch - per_channel(own.astype(batch.dtype), layer, batch.ndim)).sum(
            axis=axes, dtype=np.float64
        )
        squares += moved**2 * (count * more / (count + more))
        mean += moved * (more / (count + more))
        count += more
    return mean, squares / count


def _affine(batches: Sequence[Value], scale: Array, offset: Array, layer: Layer) -> Iterator[Value]:
    return (
        batch * per_channel(scale.astype(batch.dtype), layer, batch.ndim)
        + per_channel(offset.astype(batch.dtype), layer, batch.ndim)
        for batch in batches
    )
