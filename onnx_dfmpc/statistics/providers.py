"""The providers behind one interface: measure a layer's input, run it with a quantized weight, commit to how
its output is corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from onnx import ModelProto

from onnx_dfmpc.linalg.matrices import Diagonal
from onnx_dfmpc.runtime.batches import Value
from onnx_dfmpc.spec import Array, InputStatistics, Layer, Outputs
from onnx_dfmpc.statistics.analytic import analytic_layers
from onnx_dfmpc.statistics.probe import Feeds, Probe


class Provider(Protocol):
    """Statistics of the layers' inputs, asked for in topological order; after each layer `commit` or `skip`
    it.
    """

    def measure(self, layer: Layer) -> InputStatistics:
        """Statistics of a layer's input in the float network."""

    def respond(self, layer: Layer, weight: Value) -> Outputs | None:
        """Moments of a layer's output, float and quantized; None where nothing is run."""

    def commit(self, layer: Layer, gain: Array, shift: Array) -> None:
        """Go on from a layer whose quantized output is corrected by ``gain`` and ``shift``."""

    def skip(self, layer: Layer) -> None:
        """Go on from a layer that stays as it is in both networks."""


class NoStatistics:
    """For plain rounding, which asks nothing about a layer's input: mean 0, variance 1, no correlation."""

    def measure(self, layer: Layer) -> InputStatistics:
        """NoStatistics inputs."""
        g, n = layer.group, layer.size // layer.channels
        return InputStatistics(np.zeros((g, n)), Diagonal(np.ones((g, n))), 0, "none")

    def respond(self, layer: Layer, weight: Value) -> None:
        """Nothing is run."""

    def commit(self, layer: Layer, gain: Array, shift: Array) -> None:
        """Nothing to remember."""

    def skip(self, layer: Layer) -> None:
        """Nothing to remember."""


class Analytic:
    """Closed form where the operators are known; where they are not, a probe measures in the float network.

    Parameters
    ----------
    proto : ModelProto
    layers : sequence of Layer
        In topological order.
    feeds : sequence of mapping
        Synthetic inputs for the probe.
    input_range : (float, float) or None
        Of the network's inputs; None is mean 0 and variance 1.
    seed : int
    """

    def __init__(
        self,
        proto: ModelProto,
        layers: Sequence[Layer],
        feeds: Feeds,
        *,
        input_range: tuple[float, float] | None,
        seed: int = 0,
    ) -> None:
        low, high = input_range or (-2.0, 2.0)
        # Synthetic inputs fill their range with two standard deviations to each side.
        self._found = analytic_layers(proto, layers, input_mean=(low + high) / 2, input_std=(high - low) / 4)
        self._fallback = Probe(proto, feeds, provider="probe", seed=seed)
        self._passed: list[Layer] = []

    def measure(self, layer: Layer) -> InputStatistics:
        """Statistics of a layer's input, from the closed form if there is one."""
        statistics = next(found for candidate, found in self._found if candidate.name == layer.name)
        if isinstance(statistics, InputStatistics):
            return statistics
        for passed in self._passed:
            self._fallback.skip(passed)
        self._passed.clear()
        return self._fallback.measure(layer)

    def respond(self, layer: Layer, weight: Value) -> None:
        """Nothing is run."""

    def commit(self, layer: Layer, gain: Array, shift: Array) -> None:
        """Remember the layer, in case a later one needs the probe."""
        self._passed.append(layer)

    def skip(self, layer: Layer) -> None:
        """Remember the layer, in case a later one needs the probe."""
        self._passed.append(layer)
