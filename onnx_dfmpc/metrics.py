"""How far the outputs moved, added up batch by batch in float64, and what the user's gates say to it (pure NumPy)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.recipe import GATE_KEYS, Recipe, nearest

__all__ = ["Comparison", "DefaultRun", "Gate", "OutputMetrics", "Tally", "ValidationReport", "check_gates", "class_scores", "is_finite"]

Output = NDArray[Any]


def class_scores(output: NDArray[np.generic], count: int) -> NDArray[np.generic] | None:
    """Class scores of an output, shape (count, classes), or None where the output is not a classification.

    Parameters
    ----------
    output : array, shape (N, classes) or (N, classes, 1, 1)
        One output of one run.
    count : int
        Number of samples in the run.

    Examples
    --------
    >>> class_scores(np.zeros((2, 10, 1, 1)), 2).shape
    (2, 10)
    >>> class_scores(np.zeros((2, 10, 4)), 2) is None
    True
    """
    if output.shape[2:] not in ((), (1, 1)) or output.ndim < 2 or output.shape[0] != count or output.shape[1] < 2:
        return None
    return output.reshape(output.shape[:2])


@dataclass
class Comparison:
    """Running sums over pairs of arrays; the metrics are properties and may be read at any time.

    Examples
    --------
    >>> pair = Comparison()
    >>> pair.add(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    >>> pair.max_abs, round(pair.sqnr_db, 2)
    (0.5, 20.0)
    """

    elements: int = 0
    max_abs: float = 0.0
    _reference: float = 0.0
    _other: float = 0.0
    _product: float = 0.0
    _noise: float = 0.0
    _absolute: float = 0.0

    def add(self, reference: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        """Add one batch.

        Parameters
        ----------
        reference, other : numeric arrays of one shape
            All finite.
        """
        a, b = (np.ravel(array).astype(np.float64) for array in (reference, other))
        difference = a - b
        self.elements += a.size
        self._reference += float(a @ a)
        self._other += float(b @ b)
        self._product += float(a @ b)
        self._noise += float(difference @ difference)
        absolute = np.abs(difference)
        self._absolute += float(absolute.sum())
        self.max_abs = max(self.max_abs, float(absolute.max(initial=0.0)))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two, over everything added; 1 for two zeros, 0 for one."""
        if self._noise == 0.0:
            return 1.0
        if self._reference == 0.0 or self._other == 0.0:
            return 0.0
        return max(-1.0, min(1.0, self._product / (math.sqrt(self._reference) * math.sqrt(self._other))))

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, ``10 log10(sum a^2 / sum (a - b)^2)``, in dB; infinite where nothing differs."""
        if self._noise == 0.0:
            return math.inf
        if self._reference == 0.0:
            return -math.inf
        return 10.0 * (math.log10(self._reference) - math.log10(self._noise))

    @property
    def mean_abs(self) -> float:
        """Mean absolute difference."""
        return self._absolute / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class OutputMetrics:
    """How far one output moved, over all samples.

    ``top1_agreement`` is the fraction of samples whose highest score is the same class; None for an output that is not (N, classes).
    The other metrics are None where the outputs could not be compared (see ``ValidationReport.failures``).
    """

    name: str
    cosine: float | None
    sqnr_db: float | None
    max_abs: float | None
    mean_abs: float | None
    top1_agreement: float | None = None


@dataclass(frozen=True)
class Gate:
    """A limit that the user set, and whether it holds. ``value`` is None where the outputs could not be compared."""

    name: str
    limit: float
    value: float | None
    passed: bool


@dataclass(frozen=True)
class DefaultRun:
    """The quantized model on one batch with default session options, against itself with ``session.disable_quant_qdq=1``."""

    samples: int
    max_abs: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class ValidationReport:
    """Float against quantized. Truthy when nothing failed and every gate holds.

    Attributes
    ----------
    samples : int
    data : str
        Where the samples come from, in words.
    synthetic : bool
        True for generated inputs: a sanity check, not accuracy.
    outputs : tuple of OutputMetrics
    top1_float, top1_quantized : float or None
        Fractions of the labelled samples that each model gets right.
    labelled : int
        Number of labelled samples.
    gates : tuple of Gate
    failures : tuple of str
        What went wrong: NaN, infinity, shapes that differ, a session that cannot be created.
    weight_only : bool
        True when the quantized model ran with ``session.disable_quant_qdq=1``.
    default_run : DefaultRun or None
    notes : tuple of str
        What was done to the data on the way.
    """

    samples: int
    data: str
    synthetic: bool
    outputs: tuple[OutputMetrics, ...]
    top1_float: float | None = None
    top1_quantized: float | None = None
    labelled: int = 0
    gates: tuple[Gate, ...] = ()
    failures: tuple[str, ...] = ()
    weight_only: bool = True
    default_run: DefaultRun | None = None
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.failures and all(gate.passed for gate in self.gates)

    def _worst(self, metric: str, pick: Callable[[Iterable[float]], float] = min) -> float | None:
        values = [getattr(output, metric) for output in self.outputs]
        known = [value for value in values if value is not None]
        if len(known) < len(values) and metric != "top1_agreement":
            return None
        return pick(known) if known else None

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
        return self.top1_float - self.top1_quantized


def is_finite(array: Output) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_gates(gates: Mapping[str, float] | None, *, labelled: bool) -> dict[str, float]:
    """Return the gates that are set, as floats.

    Raises
    ------
    RecipeError
        An unknown name, a limit that makes no sense, or a gate on top-1 without labels.
    """
    for name in gates or {}:
        if name not in GATE_KEYS:
            raise RecipeError(f"unknown gate {name!r}", hint=nearest(name, GATE_KEYS) or "gates: " + ", ".join(GATE_KEYS))
    limits = Recipe.from_dict(gates or {}).gates
    if "max_top1_drop" in limits and not labelled:
        raise RecipeError("max_top1_drop needs labelled data", hint="give --data and --labels, or use min_top1_agreement")
    return limits


@dataclass
class _OutputTally:
    pair: Comparison = field(default_factory=Comparison)
    classified: int = 0
    agreed: int = 0
    comparable: bool = True

    def metrics(self, name: str) -> OutputMetrics:
        if not self.comparable:
            return OutputMetrics(name, None, None, None, None)
        pair = self.pair
        agreement = self.agreed / self.classified if self.classified else None
        return OutputMetrics(name, pair.cosine, pair.sqnr_db, pair.max_abs, pair.mean_abs, agreement)


class Tally:
    """Everything that adds up over the batches of a validation.

    Parameters
    ----------
    names : sequence of str
        Outputs, in the order in which `add` gets them.
    labels : int array, shape (samples,), optional
        Class indices. They belong to the first output that is a classification.
    """

    def __init__(self, names: Sequence[str], labels: NDArray[np.int64] | None = None) -> None:
        self.labels = labels
        self.failures: dict[str, str] = {}
        self._outputs = {name: _OutputTally() for name in names}
        self._classifier: str | None = None
        self._labelled = 0
        self._right = np.zeros(2, np.int64)

    def add(self, start: int, stop: int, expected: Sequence[Any], actual: Sequence[Any]) -> None:
        """Add the outputs of both models for the samples from `start` to `stop`."""
        for (name, tally), a, b in zip(self._outputs.items(), expected, actual, strict=True):
            if not self._compare(name, a, b, f"sample {start}" if stop - start == 1 else f"samples {start} to {stop - 1}"):
                tally.comparable = False
                continue
            tally.pair.add(a, b)
            scores, other = class_scores(a, stop - start), class_scores(b, stop - start)
            if scores is None or other is None:
                continue
            classes = np.stack([scores.argmax(axis=1), other.argmax(axis=1)])
            tally.classified += stop - start
            tally.agreed += int((classes[0] == classes[1]).sum())
            if self.labels is not None and self._classifier in (None, name):
                self._classifier = name
                self._score(name, scores.shape[1], self.labels[start:stop], classes)

    def _compare(self, name: str, a: Any, b: Any, where: str) -> bool:
        """Whether both outputs can be compared; if not, the first reason is kept."""
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in (a, b)):
            self.failures.setdefault(name, f"output {name!r} is not a tensor of numbers")
            return False
        if a.shape != b.shape:
            self.failures.setdefault(name, f"output {name!r} has shape {a.shape} in the float model, {b.shape} in the quantized ({where})")
            return False
        finite = True
        for which, array in (("float", a), ("quantized", b)):
            if not is_finite(array):
                kind = "NaN" if np.isnan(array).any() else "infinity"
                self.failures.setdefault(f"{which} {name}", f"{which} model: {kind} in output {name!r} ({where})")
                finite = False
        return finite

    def _score(self, name: str, count: int, labels: NDArray[np.int64], classes: NDArray[np.intp]) -> None:
        if labels.min() < 0 or labels.max() >= count:
            raise RecipeError(
                f"labels from {labels.min()} to {labels.max()} for the {count} classes of output {name!r}",
                hint="labels are class indices, counted from 0",
            )
        self._labelled += len(labels)
        self._right += (classes == labels).sum(axis=1)

    def report(self, limits: Mapping[str, float], **context: Any) -> ValidationReport:
        """Metrics and gates.

        Parameters
        ----------
        limits : mapping
            From `check_gates`.
        context
            The other attributes of the `ValidationReport`.

        Raises
        ------
        RecipeError
            Labels or a gate on top-1 for a model without an output of shape (N, classes).
        """
        outputs = tuple(tally.metrics(name) for name, tally in self._outputs.items())
        failures = tuple(self.failures.values())
        if self.labels is not None and not self._labelled and not failures:
            raise RecipeError("there are labels, but no output has the shape (N, classes)", hint="leave the labels out")
        right = self._right / self._labelled if self._labelled else (None, None)
        report = ValidationReport(
            outputs=outputs, top1_float=_fraction(right[0]), top1_quantized=_fraction(right[1]), labelled=self._labelled,
            failures=failures, **context,
        )  # fmt: skip
        if "min_top1_agreement" in limits and report.top1_agreement is None and not failures:
            raise RecipeError("min_top1_agreement needs an output of shape (N, classes), this model has none")
        return replace(report, gates=tuple(_gate(name, limit, report) for name, limit in limits.items()))


def _fraction(value: float | None) -> float | None:
    return None if value is None else float(value)


def _gate(name: str, limit: float, report: ValidationReport) -> Gate:
    kind, metric = name.split("_", 1)
    value = getattr(report, metric)
    passed = value is not None and (value >= limit if kind == "min" else value <= limit)
    return Gate(name, limit, value, passed)
