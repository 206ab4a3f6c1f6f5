"""What a report says of layers and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx_dfmpc.spec.planned import Role
from onnx_dfmpc.spec.widths import Width

Progress = Callable[[str, int, int], None]
"""Called with ``(stage, steps finished, steps)``."""


@dataclass(frozen=True)
class LayerReport:
    """One row of the report: what was done to a layer, what it cost, what it bought. SQNR in dB, sizes in
    bytes on disk; ``kernel`` is the operator with which ONNX Runtime computes it, where activations are in 8
    bits, and "" elsewhere. ``codes_of`` is the layer whose codes it shares, "" where they are its own:
    ``bytes`` are those of the rest then.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    role: Role
    bits: Width
    storage: str
    bytes: int
    source: str
    gain_min: float
    gain_max: float
    predicted_sqnr_db: float | None
    measured_sqnr_db: float | None
    reason: str
    kernel: str = ""
    notes: tuple[str, ...] = ()
    codes_of: str = ""


INTEGER_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
"""What ONNX Runtime calls its integer kernels for layers."""


@dataclass(frozen=True)
class ActivationRange:
    """One quantized activation, and the range of its 8 bits; ``like`` is the activation with which it shares
    them, "" where they are its own.
    """

    name: str
    low: float
    high: float
    like: str = ""


@dataclass(frozen=True)
class IntegerActivations:
    """Activations of a model in 8 bits.

    Attributes
    ----------
    ranges : tuple of ActivationRange
    layers : int
        Layers that are computed in integers.
    floats : mapping of str to str
        Outputs of the layers that are not, and why.
    kernels : mapping of str to int
        What ONNX Runtime made of the model on this machine: nodes by operator.
    saturates : bool
        Whether integer kernels saturate on this machine where weights use 8 bits.
    sqnr_db : float or None
        Expected output SQNR against the same weights with float activations.
    """

    ranges: tuple[ActivationRange, ...]
    layers: int
    floats: Mapping[str, str]
    kernels: Mapping[str, int]
    saturates: bool = False
    sqnr_db: float | None = None

    @property
    def fused(self) -> int:
        """Layers that ONNX Runtime computes with integer kernels."""
        return sum(self.kernels.get(op, 0) for op in INTEGER_LAYERS)


@dataclass(frozen=True)
class WeightHistogram:
    """Weights of one layer in equal bins from ``low`` to ``high``, before and after, as shares of the largest
    in their channel.
    """

    name: str
    low: float
    high: float
    float_counts: tuple[int, ...]
    quantized_counts: tuple[int, ...]


@dataclass(frozen=True)
class Advice:
    """A change to a command that helps. It was tried, alone: a run with it has these numbers.

    Attributes
    ----------
    flag, value : str
        As on the command line, before a shell's quotes. ``--set`` is added to the command, and its regular
        expression matches one layer alone; a target takes the place of the present one.
    extra_bytes : int
        In the file; external data may take a few more or less.
    gain_db : float
        By how much the output SQNR rises, in dB, on the same samples.
    """

    flag: str
    value: str
    extra_bytes: int
    gain_db: float


@dataclass(frozen=True)
class LayerEffect:
    """What quantizing one layer does, among the others and alone.

    Attributes
    ----------
    name, op : str
    bits : float or None
        None where the file does not tell.
    bytes : int
        Of its weight in the file: codes, scales, zero points, nodes.
    sqnr_db, cosine : float or None
        Of its output, after its batch norm, in the quantized network against the float one. None where it is
        not finite.
    own_sqnr_db : float or None
        Of the network's worst output when this layer alone is quantized, in dB; infinite where nothing
        differs, None where it is not finite.
    own_top1_agreement : float or None
        Fraction of samples whose highest score stays the same then; None for a network without scores.
    own_share : float
        Of the noise of all layers, each alone.
    """

    name: str
    op: str
    bits: Width | None
    bytes: int
    sqnr_db: float | None
    cosine: float | None
    own_sqnr_db: float | None
    own_top1_agreement: float | None
    own_share: float = 0.0


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


@dataclass(frozen=True)
class KindNoise:
    """SQNR of the worst output, in dB, on synthetic inputs of one kind, and how likely that kind is."""

    name: str
    weight: float
    sqnr_db: float


@dataclass(frozen=True)
class Expectation:
    """Output SQNR, in dB, that is expected on real inputs: a point, and the interval that the plausible kinds
    of inputs span.
    """

    sqnr_db: float
    low_db: float
    high_db: float
    kinds: tuple[KindNoise, ...] = ()
