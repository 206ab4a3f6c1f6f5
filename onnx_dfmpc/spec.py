"""The frozen dataclasses that travel between the rooms.

Data flows one way: ``Layer`` and ``Chain`` come from matching, ``LayerPlan`` says how many bits, ``QuantizedWeight`` and
``QuantizedLayer`` are the numbers to store, ``LayerReport`` is what the user reads. Arrays are never modified in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.matrices import Covariance

Array = NDArray[np.floating]
Codes = NDArray[np.int8]

OpType = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
Role = Literal["low", "high", "edge", "inner"]
Edge = Literal["", "first", "last"]
Grid = Literal["ternary", "symmetric", "asymmetric"]
Rounding = Literal["nearest", "squant", "covariance"]


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
        Name of the initializer, or of the Constant node's output, that holds the float weight (Identity nodes resolved).
    shape : tuple of int
        Shape of the weight as stored.
    axis : int
        Output-channel axis of the stored weight: Conv 0, ConvTranspose 1, Gemm(transB=1) 0, Gemm(transB=0) and MatMul 1.
    group : int
        Number of groups; 1 for Gemm and MatMul.
    bias : str or None
        Constant that is added to the output, per output channel: the node's own third input, or, for MatMul, the constant of the Add
        behind it.
    bias_node : str
        Name of the node that adds the bias: the layer itself, or the Add behind a MatMul; "" where there is no bias yet.
    input, output : str
        Names of the data input and of the node's output.
    channels : int
        Number of output channels ``o`` (group included).
    batch_norm : BatchNorm or None
        The BatchNormalization that alone consumes the output; None where it is folded or absent.
    activation : str
        "Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "SiLU", "Sigmoid", ... or "" when nothing follows directly.
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


@dataclass(frozen=True)
class Chain:
    """Producer -> (batch norm) -> (activation) -> ... -> consumers, all by layer name.

    ``homogeneous`` says that every node between producer and consumers commutes with a positive factor per channel and that channel j of
    the producer is input channel j of every consumer, so that a coefficient may move from the producer to the consumers.
    ``path`` lists the op types in between, for the reader.
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
    """What matching found: every weighted node is in ``layers`` or in ``skipped``, once."""

    layers: tuple[Layer, ...]
    chains: tuple[Chain, ...]
    skipped: tuple[Skipped, ...]
    weighted_nodes: int


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Second-order statistics of what an output channel of a layer sees.

    Attributes
    ----------
    mean : float64 array, shape (g, n)
        Mean of the ``n`` inputs (input channels times kernel taps, taps innermost) in each of the ``g`` groups; zero padding counts.
    covariance : float32 array, shape (g, n, n), or Kronecker
        See ``matrices``: of many inputs, only the factors are known.
    samples : int
        Number of input patches it was measured on; 0 where it was computed in closed form.
    provider : str
        Where it comes from, for the report.
    """

    mean: Array
    covariance: Covariance
    samples: int
    provider: str


@dataclass(frozen=True, eq=False)
class Outputs:
    """Mean and variance of a layer's output (without its bias) in the float network, and in the network quantized up to and including it.

    Arrays of shape (o,), float64, for the same inputs of the network and before any correction of this layer.
    """

    mean: Array
    variance: Array
    quantized_mean: Array
    quantized_variance: Array


@dataclass(frozen=True)
class Form:
    """How codes are put into the file: which element types, what ONNX Runtime unpacks when it loads them, in front of which nodes, and
    whether batch norm goes into scales and biases, wherever it can.
    """

    storage: Literal["native", "portable", "compact"] = "native"
    unpack: Literal["none", "int8", "float"] = "none"
    weight_format: Literal["dq", "qdq"] = "dq"
    fold_batch_norm: Literal["no", "yes"] = "no"


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is to be stored.

    Attributes
    ----------
    reason : str
        Why it got its bits, in words.
    noise : float or None
        Predicted noise power at the network's output, relative to the signal there, when this layer alone is quantized.
    bytes : int or None
        Predicted bytes on disk of its weight: codes, scales, zero points, nodes.
    """

    name: str
    bits: int
    role: Role
    grid: Grid
    rounding: Rounding
    per_channel: bool
    reason: str = ""
    noise: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class QuantPlan:
    """Bits per layer for one model: plain data, JSON in and out (see ``plans``).

    Attributes
    ----------
    model_sha256 : str
        Of the model that the plan is for.
    layers : tuple of LayerPlan
        In topological order.
    skipped : tuple of Skipped
        Every weighted node that stays float, and why.
    model_name : str
        Name of the model's file, for the reader.
    form : Form
        How codes are put into the file.
    recipe : mapping
        Plain data of the recipe that it was made with.
    predicted_bytes : int or None
        Bytes of the whole file.
    predicted_sqnr_db : float or None
        Of the network's output.
    provider : str
        Where the predicted noise comes from, as in `CostTable`; "" where there is none.
    """

    model_sha256: str
    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...] = ()
    model_name: str = ""
    form: Form = Form()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    predicted_bytes: int | None = None
    predicted_sqnr_db: float | None = None
    provider: str = ""

    def __getitem__(self, name: str) -> LayerPlan:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


@dataclass(frozen=True, eq=False)
class CostTable:
    """What every layer costs at every width, in predicted noise and in bytes.

    Attributes
    ----------
    layers : tuple of str
        Names, in topological order.
    widths : tuple of int
        Bits, ascending.
    noise : float64 array, shape (layers, widths)
        Predicted noise power at the network's output, relative to the signal there, when this layer alone has that width.
        Noise of several layers adds up.
    sizes : int64 array, shape (layers, widths)
        Bytes on disk of the layer's weight: codes, scales, zero points, nodes.
    base : int
        Bytes of everything else in the file, whatever the widths.
    provider : str
        Where the noise comes from: "bn", "probe" or "measured".
    spare : int
        Bytes of `base` that are not there when every layer has its smallest size: what only wider codes need to be unpacked.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    noise: Array
    sizes: NDArray[np.int64]
    base: int
    provider: str
    spare: int = 0


@dataclass(frozen=True)
class SweepPoint:
    """What one budget buys.

    Attributes
    ----------
    budget : int
        Bytes that were allowed.
    bytes : int or None
        Predicted bytes of the whole file; None where the budget cannot be met.
    nominal_bits : float or None
        Mean bits per quantized weight.
    predicted_sqnr_db : float or None
        Of the network's output.
    measured_sqnr_db, top1 : float or None
        Of the output and as a fraction, where it was quantized and measured.
    """

    budget: int
    bytes: int | None = None
    nominal_bits: float | None = None
    predicted_sqnr_db: float | None = None
    measured_sqnr_db: float | None = None
    top1: float | None = None


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Integer codes and their grid, in the layout of the stored weight.

    ``W ~ scale * (codes - zero_point)`` broadcast along ``axis``; ``axis`` is None for one grid per tensor.

    Attributes
    ----------
    codes : int array, shape of the weight
        Between ``-2**(bits-1)`` and ``2**(bits-1) - 1`` when ``signed``, else between 0 and ``2**bits - 1``.
    scale : float32 array, shape (channels along axis,) or ()
    zero_point : int array like scale, or None for zero
    bits : int
        Nominal bits, 2 to 8. Ternary is 2 bits with codes -1, 0, 1.
    """

    codes: NDArray[np.integer]
    scale: Array
    zero_point: NDArray[np.integer] | None
    bits: int
    signed: bool
    axis: int | None

    def dequantize(self) -> NDArray[np.float32]:
        """Float weight that the codes stand for, shape of ``codes``, as ONNX DequantizeLinear computes it."""
        expand = tuple(-1 if d == self.axis else 1 for d in range(self.codes.ndim))
        codes = self.codes.astype(np.float32)
        if self.zero_point is not None:
            codes = codes - np.reshape(self.zero_point, expand if self.axis is not None else ()).astype(np.float32)
        return codes * np.reshape(self.scale, expand if self.axis is not None else ()).astype(np.float32)


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """Everything rewrite needs to know about one layer.

    ``batch_norm`` replaces the parameters of the layer's BatchNormalization; ``bias`` (float32, shape (channels,)) replaces the layer's
    bias, and is added as a new one where there was none. None leaves what is there.
    """

    name: str
    weight: QuantizedWeight
    bias: NDArray[np.float32] | None = None
    batch_norm: BatchNorm | None = None
    gain: Array | None = None
    predicted_sqnr_db: float | None = None
    provider: str = ""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class LayerReport:
    """One row of the report: what was done to a layer, what it cost, what it bought. SQNR in dB, sizes in bytes on disk."""

    name: str
    op: str
    shape: tuple[int, ...]
    role: Role
    bits: int
    storage: str
    bytes: int
    provider: str
    gain_min: float
    gain_max: float
    predicted_sqnr_db: float | None
    measured_sqnr_db: float | None
    reason: str
    notes: tuple[str, ...] = ()
    gain_quartiles: tuple[float, float, float] | None = None
    bias_shift_rms: float | None = None
    bias_shift_max: float | None = None


@dataclass(frozen=True)
class WeightHistogram:
    """Weights of one layer in equal bins from ``low`` to ``high``, before and after, as shares of the largest in their channel."""

    name: str
    low: float
    high: float
    float_counts: tuple[int, ...]
    quantized_counts: tuple[int, ...]


@dataclass(frozen=True)
class Suggestion:
    """More bits for a layer that stands out, what they cost and what they are predicted to bring.

    Attributes
    ----------
    set : str
        ``REGEX=BITS``, for ``--set`` and for `Recipe.set`; matches this layer alone.
    bits : int
    extra_bytes : int
        In the file.
    own_sqnr_db : float
        `LayerEffect.own_sqnr_db` to expect, in dB.
    gain_db : float
        By how much the noise of all layers together is expected to fall, in dB.
    """

    set: str
    bits: int
    extra_bytes: int
    own_sqnr_db: float
    gain_db: float


@dataclass(frozen=True)
class LayerEffect:
    """What quantizing one layer does, among the others and alone.

    Attributes
    ----------
    name, op : str
    bits : int or None
        None where the file does not tell.
    bytes : int
        Of its weight in the file: codes, scales, zero points, nodes.
    sqnr_db, cosine : float or None
        Of its output, behind its batch norm, in the quantized network against the float one. None where it is not finite.
    own_sqnr_db : float or None
        Of the network's worst output when this layer alone is quantized, in dB; infinite where nothing differs, None where it is not
        finite.
    own_top1_agreement : float or None
        Fraction of samples whose highest score stays the same then; None for a network without scores.
    own_share : float
        Of the noise of all layers, each alone.
    suggestion : Suggestion or None
    """

    name: str
    op: str
    bits: int | None
    bytes: int
    sqnr_db: float | None
    cosine: float | None
    own_sqnr_db: float | None
    own_top1_agreement: float | None
    own_share: float = 0.0
    suggestion: Suggestion | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of one inference over many runs: quartiles and the least."""

    name: str
    median: float
    first_quartile: float
    third_quartile: float
    least: float


@dataclass(frozen=True)
class Latency:
    """Inference of the float model and of the quantized one with different session options, run in turn.

    Attributes
    ----------
    timings : tuple of Timing
        "float" first, then "quantized, default" and "quantized, recommended" where both apply.
    runs : int
        Of each.
    threads : int
        Of a session.
    batch : int
        Samples in every run.
    """

    timings: tuple[Timing, ...]
    runs: int
    threads: int
    batch: int
