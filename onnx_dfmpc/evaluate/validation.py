"""What a validation reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

DIGITS = 12
"""Of a number that is typed, and of a difference of shares, which would else miss a limit that it meets: 0.92
- 0.91 > 0.01.
"""


def typed(number: float | None) -> str:
    """A limit as it was typed; "" where there is none.

    >>> typed(0.01), typed(0.9999999)
    ('0.01', '0.9999999')
    """
    return "" if number is None else f"{number:.{DIGITS}g}"


def measured(value: float | None, limit: float | None) -> str:
    """A value in six digits, or in as many as tell it from its limit.

    >>> measured(0.99512345678, 0.99), measured(0.98999999, 0.99)
    ('0.995123', '0.98999999')
    """
    if value is None:
        return "not measured"
    short = f"{value:.6g}"
    return typed(value) if limit is not None and short == f"{limit:.6g}" else short


@dataclass(frozen=True)
class OutputMetrics:
    """How far one output moved, over all samples.

    ``cosine``, ``sqnr_db`` (dB), ``max_abs`` and ``mean_abs`` are None where the outputs could not be
    compared (see ``ValidationReport.failures``), the others also for an output that is not of shape (N,
    classes), and for synthetic inputs.

    Attributes
    ----------
    top1_agreement : float or None
        Fraction of samples whose highest score is the same class.
    top5_agreement : float or None
        Fraction of samples whose highest score in the float model is among the five highest in the quantized
        one; None for five classes or fewer.
    kl : float or None
        Kullback-Leibler divergence of the class probabilities, float from quantized, in nats, mean over the
        samples.
    """

    name: str
    cosine: float | None
    sqnr_db: float | None
    max_abs: float | None
    mean_abs: float | None
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Gate:
    """A limit that the user set, and whether it holds; ``value`` is None where nothing could be compared."""

    name: str
    limit: float
    value: float | None
    passed: bool

    def __str__(self) -> str:
        verdict = "PASSED" if self.passed else "FAILED"
        return f"{verdict} {self.name}: {measured(self.value, self.limit)}, limit {typed(self.limit)}"


@dataclass(frozen=True)
class DefaultRun:
    """The quantized model on one batch with default session options, against itself with
    ``session.disable_quant_qdq=1``.
    """

    samples: int
    max_abs: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class ValidationReport:
    """Float model against quantized model; made by `validate`. Truthy when nothing failed and every gate
    holds.

    Attributes
    ----------
    samples : int
    data : str
        Where the samples come from, in words.
    synthetic : bool
        True for generated inputs: a sanity check, not accuracy. Classes are not compared then.
    outputs : tuple of OutputMetrics
        For each output its name, cosine, SQNR in dB, largest and mean absolute difference, and for
        classifications the agreement of the classes.
    top1_float, top1_quantized : float or None
        Fractions of the labelled samples that each model gets right.
    top1_interval : (float, float) or None
        95 % confidence interval of their difference, quantized minus float; paired, since both models see the
        same samples.
    top5_float, top5_quantized : float or None
        Fractions of the labelled samples whose class is among the five highest scores; None for five classes
        or fewer.
    labelled : int
        Number of labelled samples.
    gates : tuple of Gate
        The limits that were set, each with its value and whether it holds.
    failures : tuple of str
        What went wrong: NaN, infinity, shapes that differ, a session that cannot be created.
    weight_only : bool
        True when the quantized model ran with ``session.disable_quant_qdq=1``.
    default_run : DefaultRun or None
        The same model with default session options, on one batch.
    notes : tuple of str
        Remarks, such as casts of the data.
    command : str
        Repeats it from a shell; "" where something is not a file.

    Examples
    --------
    >>> output = OutputMetrics("scores", cosine=0.999, sqnr_db=27.0, max_abs=0.4, mean_abs=0.1)
    >>> gate = Gate("min_cosine", limit=0.9995, value=0.999, passed=False)
    >>> report = ValidationReport(100, "test.npz, 100 samples", synthetic=False, outputs=(output,),
    ...     top1_float=0.92, top1_quantized=0.91, gates=(gate,))
    >>> bool(report), report.sqnr_db, report.top1_drop
    (False, 27.0, 0.01)
    >>> print(report.gates[0])
    FAILED min_cosine: 0.999, limit 0.9995
    """

    samples: int
    data: str
    synthetic: bool
    outputs: tuple[OutputMetrics, ...]
    top1_float: float | None = None
    top1_quantized: float | None = None
    top1_interval: tuple[float, float] | None = None
    top5_float: float | None = None
    top5_quantized: float | None = None
    labelled: int = 0
    gates: tuple[Gate, ...] = ()
    failures: tuple[str, ...] = ()
    weight_only: bool = True
    default_run: DefaultRun | None = None
    notes: tuple[str, ...] = ()
    command: str = ""

    def __bool__(self) -> bool:
        return not self.failures and all(gate.passed for gate in self.gates)

    def _worst(self, metric: str, pick: Callable[[Iterable[float]], float] = min) -> float | None:
        """Of all outputs; None where one of them could not be compared."""
        values = [getattr(output, metric) for output in self.outputs]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values) and metric != "top1_agreement":  # which not every output has
            return None
        return pick(numbers) if numbers else None

    @property
    def cosine(self) -> float | None:
        """Lowest cosine of all outputs."""
        return self._worst("cosine")

    @property
    def sqnr_db(self) -> float | None:
        """Lowest SQNR of all outputs, in dB."""
        return self._worst("sqnr_db")

    @property
    def max_abs(self) -> float | None:
        """Largest absolute difference in any output."""
        return self._worst("max_abs", max)

    @property
    def top1_agreement(self) -> float | None:
        """Lowest top-1 agreement of the outputs that are classifications, a fraction."""
        return self._worst("top1_agreement")

    @property
    def top1_drop(self) -> float | None:
        """Top-1 of the float model minus top-1 of the quantized one, a fraction."""
        if self.top1_float is None or self.top1_quantized is None:
            return None
        return round(self.top1_float - self.top1_quantized, DIGITS)


def next_steps(
    report: ValidationReport, per_layer: bool = False, activations_db: float | None = None
) -> tuple[str, ...]:
    """What to do where a validation has failed, in the words of the command line; ``per_layer`` says that the
    effect of each layer was measured, ``activations_db`` is the SQNR that 8-bit activations alone are
    expected to leave. Empty where nothing failed.
    """
    if report:
        return ()
    if any(failure.startswith("float model:") for failure in report.failures):
        fed = (
            "give it real inputs (--data)" if report.synthetic else "check how the data are scaled (--images)"
        )
        return (f"the float model itself fails on these inputs: {fed}, or their range (--input-range)",)
    where = (
        "give the worst layers more bits (--set NAME=8), or leave them float (--nodes-to-exclude NAME)"
        if per_layer
        else "--per-layer says which layers did it"
    )
    steps = [where, "more bits for all (--target-bits, --bits, --preset lossless) help, too"]
    if activations_db is not None:
        steps.insert(
            0,
            f"8-bit activations alone are expected to leave {activations_db:.1f} dB: where that is too "
            "little, leave --activations out, or keep layers and what they read in float "
            "(--nodes-to-exclude NAME)",
        )
    if report.synthetic:
        steps.append("real inputs (--data) tell more than synthetic ones")
    if any(gate.passed is False for gate in report.gates):
        steps.append("a gate that asks for more than is needed can be lowered")
    else:
        steps.append("--no-gate lets the model pass as it is")
    return tuple(steps)
