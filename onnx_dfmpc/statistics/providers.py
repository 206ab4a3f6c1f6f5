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
from onnx_dfmpc.statistics.closed_form import closed_form


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


class ClosedForm:
    """From the initializers alone; nothing is run."""

    def __init__(
        self, proto: ModelProto, layers: Sequence[Layer], *, input_range: tuple[float, float] | None
    ) -> None:
        self._statistics = closed_form(proto, layers, input_range=input_range)

    def measure(self, layer: Layer) -> InputStatistics:
        """Statistics of a layer's input."""
        return self._statistics[layer.name]

    def respond(self, layer: Layer, weight: Value) -> None:
        """Nothing is run."""

    def commit(self, layer: Layer, gain: Array, shift: Array) -> None:
        """Nothing to remember."""

    def skip(self, layer: Layer) -> None:
        """Nothing to remember."""
