"""What activations are on inputs: the network with quantized weights is run, with more outputs and changes on
the way.

Where batch norm anchors a layer, what flows on from it is moved to the mean and variance that batch norm
expects, as for the statistics of the weights (`statistics.probe`): the output r of batch norm becomes

    a r + d        a = scale of the anchor        d = (1 - a) beta + gamma / sigma (offset - (1 - a) mu)

since r = gamma (y - mu) / sigma + beta, and y becomes a y + offset.

The network with quantized activations is run beside it, each layer's mean moved on the way to what it was: so
the shift that is measured is the layer's own, and not that of the layers before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnx_dfmpc.activations.placement import Placement
from onnx_dfmpc.activations.ranges import BINS, histogram
from onnx_dfmpc.model.opset import opset_of
from onnx_dfmpc.runtime.pieces import is_piecewise
from onnx_dfmpc.runtime.session import Session
from onnx_dfmpc.spec import Array, Layer, LayerStatistics, Mixture
from onnx_dfmpc.spec.ops import output_axis, spatial_rank

RAW, SCALE, OFFSET = "::raw", "::scale", "::offset"
MEAN, REFERENCE, SHIFT, AXES = "::mean", "::reference", "::shift", "::axes"

AXES_ARE_INPUTS = 18
"""The opset from which ReduceMean takes them so."""

CORRECTED = ("Conv", "Gemm")
"""Operators whose bias takes up a shift."""

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen of the network before its activations are quantized.

    ``counts`` are histograms (kinds, bins) of activations by name. ``means`` and ``powers`` are mean
    (channels,) and mean square of the layers' outputs, batch by batch, by name of the tensor.
    """

    counts: Mapping[str, NDArray[np.int64]]
    means: Mapping[str, Sequence[Array]]
    powers: Mapping[str, Sequence[float]]


class Network:
    """A network with quantized weights, its layers, and the inputs that it is run on."""

    def __init__(
        self,
        proto: ModelProto,
        layers: Sequence[Layer],
        statistics: Mapping[str, LayerStatistics],
        mixture: Mixture,
    ) -> None:
        self.proto = proto
        self.mixture = mixture
        made = {name: node for node in proto.graph.node for name in node.output}
        # Layers that write their output themselves: bias and batch norm are theirs.
        self.ends = {
            layer.end: layer for layer in layers if layer.end in made and made[layer.end].op_type in CORRECTED
        }
        self.anchors = {
            name: pair
            for name, layer in self.ends.items()
            if (pair := anchored_end(layer, statistics.get(layer.name, LayerStatistics()))) is not None
        }

    def observe(self, placement: Placement) -> Observed:
        """Histograms of the activations, and the layers' outputs."""
        inputs = {value.name for value in self.proto.graph.input}
        roots = [one.name for one in placement.activations if one.like == one.name]
        raw = {name: name + RAW for name in self.ends}
        wanted = list(dict.fromkeys([*(name for name in roots if name not in inputs), *raw.values()]))
        session = self._session(self.proto, wanted, shifted=False) if wanted else None
        kinds = len(self.mixture.weights)
        counts = {name: np.zeros((kinds, BINS), np.int64) for name in roots}
        means: dict[str, list[Array]] = {name: [] for name in self.ends}
        powers: dict[str, list[float]] = {name: [] for name in self.ends}
        for kind, feed in zip(self.mixture.kinds, self.mixture.feeds, strict=True):
            values = session.run({**feed, **self._anchor_feeds(kind, self.ends)}, wanted) if session else []
            seen = {**feed, **dict(zip(wanted, values, strict=True))}
            for name in roots:
                counts[name][kind] += histogram(seen[name])
            for name, layer in self.ends.items():
                means[name].append(_channel_means(seen[raw[name]], layer))
                powers[name].append(float(np.square(seen[raw[name]], dtype=np.float64).mean()))
        return Observed(counts, means, powers)

    def shifts(self, quantized: ModelProto, before: Observed) -> dict[str, Array]:
        """How far the means of the layers' outputs move when activations are quantized, (channels,), by name
        of the tensor: each kind of inputs as likely as it is, relative to its power.
        """
        wanted = [name + SHIFT for name in self.ends]
        if not wanted:  # matrices whose biases are nodes of their own
            return {}
        session = self._session(quantized, wanted, shifted=True)
        total = {name: np.zeros(layer.channels) for name, layer in self.ends.items()}
        weight = dict.fromkeys(self.ends, 0.0)
        batches = np.bincount(self.mixture.kinds, minlength=len(self.mixture.weights))
        for batch, (kind, feed) in enumerate(zip(self.mixture.kinds, self.mixture.feeds, strict=True)):
            references = {
                name + REFERENCE: _column(before.means[name][batch], layer)
                for name, layer in self.ends.items()
            }
            found = session.run({**feed, **references, **self._anchor_feeds(kind, self.ends)}, wanted)
            for (name, layer), shift in zip(self.ends.items(), found, strict=True):
                share = self.mixture.weights[kind] / batches[kind] / max(before.powers[name][batch], TINY)
                total[name] += share * np.asarray(shift, np.float64).reshape(layer.channels)
                weight[name] += share
        return {name: total[name] / weight[name] for name in self.ends if weight[name] > 0}

    def _anchor_feeds(self, kind: int, names: Iterable[str]) -> dict[str, Any]:
        return {
            name + suffix: _column(values[kind], self.ends[name])
            for name in names
            if name in self.anchors
            for suffix, values in zip((SCALE, OFFSET), self.anchors[name], strict=True)
        }

    def _session(self, proto: ModelProto, outputs: Sequence[str], *, shifted: bool) -> Session:
        """The network with changes to the layers' outputs, and other outputs."""
        model = ModelProto()
        model.CopyFrom(proto)
        graph = model.graph
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            for name in [name for name in node.output if name in self.ends]:
                layer = self.ends[name]
                position = list(node.output).index(name)
                node.output[position] = name + RAW
                steps = [("Identity", name + RAW)]
                if shifted:
                    nodes += _mean(name, layer, opset_of(proto))
                    nodes.append(helper.make_node("Sub", [name + MEAN, name + REFERENCE], [name + SHIFT]))
                    steps.append(("Sub", name + SHIFT))
                    graph.input.append(_float(name + REFERENCE))
                if name in self.anchors:
                    steps += [("Mul", name + SCALE), ("Add", name + OFFSET)]
                    graph.input.extend([_float(name + SCALE), _float(name + OFFSET)])
                value = name + RAW
                for index, (op, operand) in enumerate(steps):
                    result = name if index == len(steps) - 1 else f"{name}::{index}"
                    inputs = [value] if op == "Identity" else [value, operand]
                    nodes.append(helper.make_node(op, inputs, [result]))
                    value = result
        ours = [NodeProto() for _ in nodes]
        for copy, node in zip(ours, nodes, strict=True):
            copy.CopyFrom(node)
        del graph.node[:], graph.output[:]
        graph.node.extend(ours)
        graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
        # Each tensor has to be there as it is: no kernel may run over it.
        # All weights are floats at once; those of a large one are not copied into another layout as well.
        blocks = not is_piecewise(proto)
        return Session(model, "the network with quantized weights", disable_qdq=not shifted, blocks=blocks)


def anchored_end(layer: Layer, statistics: LayerStatistics) -> tuple[Array, Array] | None:
    """Factor a and offset d of a layer's output, each (kinds, channels); None where nothing anchors it."""
    norm, anchor = layer.batch_norm, statistics.anchor
    if norm is None or anchor is None:
        return None
    a = anchor.scale
    d = (1 - a) * norm.beta + norm.gamma / norm.sigma * (anchor.offset - (1 - a) * norm.mean)
    return a, d


def _mean(name: str, layer: Layer, opset: int) -> list[NodeProto]:
    """Nodes for the mean of a layer's raw output per channel, with all axes kept."""
    rank = spatial_rank(layer) + 2
    axes = [axis for axis in range(rank) if axis != output_axis(layer, rank)]
    if opset < AXES_ARE_INPUTS:
        return [helper.make_node("ReduceMean", [name + RAW], [name + MEAN], axes=axes)]
    return [
        helper.make_node("Constant", [], [name + AXES], value_ints=axes),
        helper.make_node("ReduceMean", [name + RAW, name + AXES], [name + MEAN]),
    ]


def _column(values: Array, layer: Layer) -> NDArray[np.float32]:
    """Numbers per channel in a shape that broadcasts against the layer's output."""
    return values.astype(np.float32).reshape(1, -1, *[1] * spatial_rank(layer))


def _channel_means(values: NDArray[Any], layer: Layer) -> Array:
    axis = output_axis(layer, values.ndim)
    means: Array = values.mean(axis=tuple(a for a in range(values.ndim) if a != axis), dtype=np.float64)
    return means


def _float(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
