"""Run the float model on inputs and measure what every layer sees; run the quantized one beside it.

Synthetic inputs do not have the statistics of real ones, but a batch norm tells what those are: it was
trained to expect mean mu and variance sigma^2 of each channel. So after every layer with a batch norm the
measured output y is re-anchored,

    y <- sigma (y - mean(y)) / std(y) + mu,

and what flows on has the right mean and variance per channel; only correlations are left to the synthetic
inputs. Real inputs are measured as they are. Inputs of several kinds (`Mixture`) are re-anchored each by
their own moments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_dfmpc.model.constants import ConstantTable
from onnx_dfmpc.runtime.partial import PartialRun
from onnx_dfmpc.spec import (
    Anchor,
    Array,
    BatchNorm,
    Layer,
    LayerStatistics,
    Mixture,
    Moments,
    Progress,
    Value,
)
from onnx_dfmpc.spec.ops import output_axis, per_channel
from onnx_dfmpc.statistics.moments import is_finite, measure, white

FLOOR = 1e-3
"""Share of sigma^2 that is added to the measured variance, so that a channel which is dead on the synthetic
inputs is not blown up. Not studied: any small share does.
"""


def probe(
    proto: ModelProto,
    layers: Sequence[Layer],
    wanted: Collection[str],
    mixture: Mixture,
    *,
    source: str,
    seed: int,
    with_outputs: bool,
    progress: Progress | None = None,
) -> dict[str, LayerStatistics]:
    """Statistics of the layers of a float model, by name.

    Only the ``wanted`` layers get statistics of
    their input; ``source`` is what these are called.
    Without ``with_outputs`` the moments of outputs are measured only where re-anchoring needs them. ``seed``
    is that of the choice of patches.
    """
    table = ConstantTable(proto)
    run = PartialRun(proto, table, mixture.feeds)
    nodes = {node.output[0]: node for node in proto.graph.node if node.output}
    found: dict[str, LayerStatistics] = {}
    anchored = False
    for layer in layers:
        needed = layer.name in wanted
        seen = None
        norm = None if mixture.real.all() else layer.batch_norm
        output = anchor = None
        with_output = norm is not None or (needed and with_outputs)
        asked = [layer.input] * needed + [layer.output] * with_output
        at = dict(zip(asked, run.values(asked), strict=True))
        if needed:
            node = nodes[layer.output]
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                seen = measure(
                    layer, node, at[layer.input], mixture, seed=seed, source=source, anchored=anchored
                )
            seen = seen if is_finite(seen) else white(layer)
        if with_output:
            values = at[layer.output]
            with np.errstate(over="ignore", invalid="ignore"):
                mean, variance = moments(values, mixture, layer)
            finite = bool(np.isfinite(variance).all())
            if finite:
                output = Moments(mean - own_bias(layer, table), variance)
            if finite and norm is not None:
                anchor, anchored = anchor_of(norm, mean, variance, mixture), True
                run.put(layer.output, affine(values, mixture, anchor.scale, anchor.offset, layer))
        found[layer.name] = LayerStatistics(seen, output, anchor)
        if progress is not None:
            progress("measure", len(found), len(layers))
    return found


class QuantizedRun:
    """The network with the layers quantized so far, on the inputs that the float network was measured on.

    Ask for the layers in topological order: `respond` with a quantized weight, then `commit` how its output
    is corrected; or `keep` a layer that stays float.
    """

    def __init__(self, proto: ModelProto, mixture: Mixture) -> None:
        self._table = ConstantTable(proto)
        self._mixture = mixture
        self._run = PartialRun(proto, self._table, mixture.feeds)

    def respond(self, layer: Layer, weight: NDArray[np.float32]) -> Moments:
        """Moments of the layer's output with a quantized weight of its shape, without its bias."""
        self._run.replace(layer.output, 1, weight.astype(self._table[layer.weight].dtype, copy=False))
        mean, variance = moments(self._run.value(layer.output), self._mixture, layer)
        return Moments(mean - own_bias(layer, self._table), variance)

    def commit(self, layer: Layer, gain: Array, shift: Array, anchor: Anchor | None) -> None:
        """Go on from an output y that became ``gain (y - bias) + bias - shift``, arrays of shape (o,).

        Where the float output was re-anchored, the quantized one moves by the same scale and offset: its own
        moments would hide what quantization did to them.
        """
        bias = own_bias(layer, self._table)
        kinds = len(self._mixture.weights)
        scale, offset = (np.tile(values, (kinds, 1)) for values in (gain, bias - gain * bias - shift))
        if anchor is not None:
            scale, offset = anchor.scale * scale, anchor.scale * offset + anchor.offset
        self._run.put(
            layer.output, affine(self._run.value(layer.output), self._mixture, scale, offset, layer)
        )

    def keep(self, layer: Layer, anchor: Anchor | None) -> None:
        """Go on from a layer that stays float."""
        self.commit(layer, np.ones(layer.channels), np.zeros(layer.channels), anchor)


def own_bias(layer: Layer, table: ConstantTable) -> Array:
    """What the layer's own node adds to its output, float64, shape (o,)."""
    if layer.bias is None or layer.bias_node != layer.name:
        return np.zeros(layer.channels)
    return table[layer.bias].astype(np.float64).ravel()


def anchor_of(norm: BatchNorm, mean: Array, variance: Array, mixture: Mixture) -> Anchor:
    """Scale and offset that give outputs of such moments, (kinds, o), those that their batch norm expects;
    real inputs stay as they are.
    """
    scale = norm.sigma / np.sqrt(variance + FLOOR * norm.sigma**2)
    offset, real = norm.mean - scale * mean, mixture.real[:, None]
    return Anchor(np.where(real, 1, scale), np.where(real, 0, offset))


def moments(batches: Sequence[Value], mixture: Mixture, layer: Layer) -> tuple[Array, Array]:
    """Mean and variance per kind of inputs and channel, float64, (kinds, o), added up one batch after the
    other (Chan, Golub & LeVeque 1979). A kind without inputs has mean 0 and variance 1.
    """
    shape = len(mixture.weights), layer.channels
    count, mean, squares = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
    for kind, batch in zip(mixture.kinds, batches, strict=True):
        batch = batch.astype(np.promote_types(batch.dtype, np.float32), copy=False)  # squares leave float16
        axis = output_axis(layer, batch.ndim)
        more = batch.size // batch.shape[axis]
        own = _channel_sums(batch, axis) / more
        centred = batch - per_channel(own.astype(batch.dtype), layer, batch.ndim)
        np.square(centred, out=centred)
        step, before = own - mean[kind], count[kind]
        squares[kind] += _channel_sums(centred, axis) + step**2 * (before * more / (before + more))
        mean[kind] += step * (more / (before + more))
        count[kind] += more
    seen = count > 0
    return mean, np.where(seen[:, None], squares / np.where(seen, count, 1)[:, None], 1)


def _channel_sums(values: Value, axis: int) -> Array:
    """Sums over all axes but one, float64. Rows are summed in their own dtype, pairwise, which is exact
    enough, and many times faster.
    """
    if axis == 1 and values.ndim > 2:
        values, axis = values.reshape(*values.shape[:2], -1).sum(axis=2), 1
    total: Array = values.sum(axis=tuple(a for a in range(values.ndim) if a != axis), dtype=np.float64)
    return total


def affine(
    batches: Sequence[Value], mixture: Mixture, scale: Array, offset: Array, layer: Layer
) -> Iterator[Value]:
    """``scale y + offset`` of every batch, scale and offset by kind, (kinds, o)."""
    for kind, batch in zip(mixture.kinds, batches, strict=True):
        slope, shift = (
            per_channel(values[kind].astype(batch.dtype), layer, batch.ndim) for values in (scale, offset)
        )
        moved = batch * slope
        moved += shift
        yield moved
