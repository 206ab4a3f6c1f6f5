"""Activations of a network with quantized weights: ranges, nodes, and biases that make up for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, numpy_helper

from onnx_dfmpc.activations.insert import insert
from onnx_dfmpc.activations.observe import Network, Observed
from onnx_dfmpc.activations.placement import Placement, place
from onnx_dfmpc.activations.ranges import quantization_range
from onnx_dfmpc.model.constants import used_names
from onnx_dfmpc.spec import Array, Layer, LayerStatistics, Mixture
from onnx_dfmpc.storage.halves import is_exact, nearest

TAU_ANCHORED, TAU_PICTURES, TAU_OTHERS, TAU_REAL = 0.2, 0.3, 0.4, 0.1
"""Deviation of the logarithm of what activations really are over what they are on our inputs: behind batch
norm, in pictures without any, in other inputs without any, and in a part of the real inputs. Deviations per
channel differ by as much on the networks of tests/test_statistics_accuracy.py: 0.14 to 0.28 behind batch
norm, 0.25 to 0.30 in pictures, 0.5 in others.
"""


Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Activated:
    """A model whose activations are quantized, where, and in which ranges."""

    proto: ModelProto
    placement: Placement
    ranges: Ranges


def activate(
    proto: ModelProto,
    layers: Sequence[Layer],
    statistics: Mapping[str, LayerStatistics],
    mixture: Mixture,
    tau: float,
) -> Activated:
    """Quantize the activations of a model whose weights are quantized; it stays as it is.

    ``mixture`` are the inputs to find ranges on; ``tau`` says how well they are known (see `ranges`).
    """
    placement = place(proto)
    network = Network(proto, layers, statistics, mixture)
    seen = network.observe(placement)
    own = [one for one in placement.activations if one.like == one.name]
    ranges = {
        one.name: quantization_range(seen.counts[one.name], mixture.weights, tau, one.bounds) for one in own
    }
    return with_ranges(network, placement, seen, ranges)


def with_ranges(network: Network, placement: Placement, seen: Observed, ranges: Ranges) -> Activated:
    """A network with its activations quantized in these ranges, and biases that make up for the shifts."""
    shifts = network.shifts(_inserted(network.proto, placement, ranges), seen)
    corrected = _corrected(network.proto, shifts)
    return Activated(_inserted(corrected, placement, ranges), placement, ranges)


def _inserted(proto: ModelProto, placement: Placement, ranges: Ranges) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    insert(copy, placement, ranges)
    return copy


def _corrected(proto: ModelProto, shifts: Mapping[str, Array]) -> ModelProto:
    """Model with the shifts taken off the biases of the layers that write these tensors.

    A bias that layers share becomes one for each.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    readers = used_names(copy.graph)
    for node in copy.graph.node:
        for name in node.output:
            if name in shifts and len(node.input) > 2 and node.input[2] in constants:
                tensor = constants[node.input[2]]
                old = numpy_helper.to_array(tensor)
                new = (old - shifts[name].reshape(old.shape)).astype(np.float32)
                if is_exact(old):
                    new = nearest(new)
                if readers[tensor.name] > 1:
                    node.input[2] = f"{name}::bias"
                    copy.graph.initializer.append(numpy_helper.from_array(new, node.input[2]))
                    readers[tensor.name] -= 1
                else:
                    tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return copy
