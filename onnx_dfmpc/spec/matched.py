"""What matching finds: the layers of a graph, the chains between them, and the nodes that stay float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnx_dfmpc.spec.arrays import Array

OpType = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
Edge = Literal["", "first", "last"]


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A BatchNormalization node behind a layer, with its parameters as float64 arrays of shape (o,).

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
    """One weighted node that can be quantized.

    Attributes
    ----------
    name : str
        Name of the node, or the name of its output where the node has none. Unique in a model.
    weight : str
        Name of the initializer, or of the Constant node's output, that holds the float weight (Identity nodes
        resolved).
    shape : tuple of int
        Shape of the weight as stored.
    axis : int
        Output-channel axis of the stored weight: Conv 0, ConvTranspose 1, Gemm(transB=1) 0, Gemm(transB=0)
        and MatMul 1.
    group : int
        Number of groups; 1 for Gemm and MatMul.
    bias : str or None
        Constant that is added to the output, per output channel: the node's own third input, or, for MatMul,
        the constant of the Add behind it.
    bias_node : str
        Name of the node that adds the bias: the layer itself, or the Add behind a MatMul; "" where there is
        no bias yet.
    input, output : str
        Names of the data input and of the node's output.
    channels : int
        Number of output channels ``o`` (group included).
    batch_norm : BatchNorm or None
        The BatchNormalization that alone consumes the output; None where it is folded or absent.
    activation : str
        "Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "SiLU", "Sigmoid", ... or "" when nothing follows
        directly.
    edge : {"", "first", "last"}
        "first" where no weighted node comes before it, "last" where none comes behind it.
    notes : tuple of str
        Remarks for the report, such as "weight shared with conv2: copied".
    """

    name: str
    op_type: OpType
    index: int
    weight: str
    shape: tuple[int, ...]
    axis: int
    group: int
    bias: str | None
    bias_node: str
    input: str
    output: str
    channels: int
    batch_norm: BatchNorm | None = None
    activation: str = ""
    edge: Edge = ""
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def end(self) -> str:
        """Name of the output after the batch norm, where there is one."""
        return self.output if self.batch_norm is None else self.batch_norm.output


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
    """What matching found: every weighted node is in ``layers`` or in ``skipped``, once.

    Attributes
    ----------
    layers : tuple of Layer
        What can be quantized, in topological order.
    chains : tuple of Chain
        Which layers follow each other, and through what.
    skipped : tuple of Skipped
        What stays float, and why.
    weighted_nodes : int
    """

    layers: tuple[Layer, ...]
    chains: tuple[Chain, ...]
    skipped: tuple[Skipped, ...]
    weighted_nodes: int
