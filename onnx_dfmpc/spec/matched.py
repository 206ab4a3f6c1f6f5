"""What matching finds: the layers of a graph, the chains between them, and the nodes that stay float."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from onnx_dfmpc.spec.arrays import Array

Edge = Literal["", "first", "last"]


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A BatchNormalization node after a layer, with its parameters as float64 arrays of shape (o,).

    ``y = gamma / sqrt(var + epsilon) * (x - mean) + beta``
    """

    node: str
    output: str
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    epsilon: float

    @property
    def sigma(self) -> Array:
        """Standard deviation of the layer's output, shape (o,)."""
        sigma: Array = np.sqrt(self.var + self.epsilon)
        return sigma


@dataclass(frozen=True, eq=False)
class Layer:
    """One weighted node that can be quantized."""

    name: str  # the node's, or its output's where it has none; unique in a model
    op_type: str  # a key of `onnx_dfmpc.spec.ops.OPS`
    weight: str  # the initializer, or the output of a Constant node, that holds it: Identity resolved
    shape: tuple[int, ...]  # of the weight as stored
    axis: int  # output-channel axis of the weight as stored, 0 or 1
    group: int  # number of groups; 1 for a matrix
    bias: str | None  # constant added per output channel: the node's own input, or that of a MatMul's Add
    bias_node: str  # node that adds it, the layer itself or the Add; "" where there is no bias yet
    input: str  # the data
    output: str  # of the node itself, before an Add or a batch norm
    channels: int  # output channels, all groups together
    batch_norm: BatchNorm | None = None  # the one that alone consumes the output, if it is not folded
    activation: str = ""  # "Relu", "Clip", "HardSwish", "SiLU", ... or "" when nothing follows directly
    edge: Edge = ""  # "first" where no weighted node comes before it, "last" where none comes after it
    notes: tuple[str, ...] = ()  # remarks for the report, such as "weight shared with 'conv2'"
    vectors: tuple[float, ...] = ()  # widths at which rows of a table suit the weight, once that is known
    large_bias: bool = False  # the bias of the quantized layer turned out to be too large for 16 bits

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def end(self) -> str:
        """Output of the batch norm, or of the node itself where there is none (before a MatMul's Add)."""
        return self.output if self.batch_norm is None else self.batch_norm.output


@dataclass(frozen=True)
class PlainWeight:
    """A weight of which nobody knows what it is multiplied by: the table of a Gather, the matrices of a
    recurrent network, a weight in the body of an If, Loop or Scan. It is rounded to the nearest code.
    """

    name: str  # its first reader's, with what it is there: "rnn.W"; unique in a model
    op_type: str  # of that reader
    weight: str  # the initializer of the main graph, or the output of a Constant node, that holds it
    shape: tuple[int, ...]
    axis: int  # along which every index has a scale
    notes: tuple[str, ...] = ()  # remarks for the report

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Chain:
    """Producer -> (batch norm) -> (activation) -> ... -> consumers, all by layer name.

    ``homogeneous`` says that every node between producer and consumers commutes with a positive factor per
    channel and that channel j of the producer is input channel j of every consumer, so that a coefficient may
    move from the producer to the consumers. ``path`` lists the op types in between, for the reader.
    """

    producer: str
    consumers: tuple[str, ...]
    activation: str
    path: tuple[str, ...]
    homogeneous: bool
    reason: str = ""


@dataclass(frozen=True)
class Skipped:
    """A weighted node that stays float, and why, in words."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, eq=False)
class MatchReport:
    """What matching found: every weighted node is in ``layers`` or in ``skipped``, once, or reads one of
    ``plain``.

    ``layers`` are in topological order, ``chains`` say which of them follow each other. ``matched["conv"]``
    is the layer of that name. ``left`` says why other weights that no layer reads stay float, by the name of
    the initializer.
    """

    layers: tuple[Layer, ...]
    chains: tuple[Chain, ...]
    skipped: tuple[Skipped, ...]
    weighted_nodes: int
    plain: tuple[PlainWeight, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[Layer | PlainWeight, ...]:
        """Layers, then the weights that are rounded to nearest."""
        return (*self.layers, *self.plain)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in topological order."""
        return tuple(layer.name for layer in self.layers)

    def sharing(self, widths: Mapping[str, Hashable]) -> dict[str, str]:
        """Layers that share the codes of an earlier one, and that one, by name: both read the same weight, as
        the same rows, and have the same width. Layers that are not in ``widths`` share nothing.
        """
        first: dict[Hashable, str] = {}
        names = {
            layer.name: first.setdefault(
                (layer.weight, layer.axis, layer.group, widths[layer.name]), layer.name
            )
            for layer in self.layers
            if layer.name in widths
        }
        return {name: other for name, other in names.items() if name != other}

    def without(self, reasons: Mapping[str, str]) -> MatchReport:
        """The same with some of the weights among those that stay float, each for its reason."""
        lost = (one for one in self.weights if one.name in reasons)
        skipped = (Skipped(one.name, one.op_type, reasons[one.name]) for one in lost)
        return replace(
            self,
            layers=tuple(layer for layer in self.layers if layer.name not in reasons),
            chains=tuple(c for c in self.chains if not {c.producer, *c.consumers} & reasons.keys()),
            skipped=(*self.skipped, *skipped),
            plain=tuple(one for one in self.plain if one.name not in reasons),
        )

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
