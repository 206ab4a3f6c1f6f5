"""How far the outputs of one model are from those of another, added up batch by batch in float64 (pure
NumPy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.evaluate.classes import TOP, LabelTally, among_best, class_scores, divergence
from onnx_dfmpc.evaluate.validation import OutputMetrics, ValidationReport
from onnx_dfmpc.spec import sqnr_db


@dataclass
class Comparison:
    """Running sums over pairs of arrays; the metrics are properties and may be read at any time.

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
        """Add one batch: two arrays of finite numbers, of one shape."""
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
        """Signal to quantization noise, ``10 log10(sum a^2 / sum (a - b)^2)``, in dB; infinite where nothing
        differs.
        """
        if self._reference == 0.0 < self._noise:
            return -math.inf
        return sqnr_db(self._noise / self._reference if self._noise else 0.0)

    @property
    def rms(self) -> float:
        """Root mean square of the reference."""
        return math.sqrt(self._reference / self.elements) if self.elements else 0.0

    @property
    def rms_noise(self) -> float:
        """Root mean square of the difference."""
        return math.sqrt(self._noise / self.elements) if self.elements else 0.0

    @property
    def mean_abs(self) -> float:
        """Mean absolute difference."""
        return self._absolute / self.elements if self.elements else 0.0


def is_finite(array: NDArray[Any]) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


@dataclass
class _OutputTally:
    """Sums over one output."""

    pair: Comparison = field(default_factory=Comparison)
    classified: int = 0
    same_top1: int = 0
    same_top5: int | None = 0
    divergence: float = 0.0
    comparable: bool = True

    def add_classes(self, scores: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        best = scores.argmax(axis=1)
        self.classified += len(best)
        self.same_top1 += int((best == other.argmax(axis=1)).sum())
        self.divergence += float(divergence(scores, other).sum())
        if scores.shape[1] > TOP and self.same_top5 is not None:
            self.same_top5 += int(among_best(other, best).sum())
        else:
            self.same_top5 = None

    def metrics(self, name: str) -> OutputMetrics:
        if not self.comparable:
            return OutputMetrics(name, None, None, None, None)
        pair, count = self.pair, self.classified
        metrics = OutputMetrics(name, pair.cosine, pair.sqnr_db, pair.max_abs, pair.mean_abs)
        if not count:
            return metrics
        return replace(
            metrics,
            top1_agreement=self.same_top1 / count,
            top5_agreement=None if self.same_top5 is None else self.same_top5 / count,
            kl=self.divergence / count,
        )


def joined(value: Any) -> Any:
    """A sequence of tensors as one tensor; any other output as it is."""
    tensors = isinstance(value, list) and value and all(isinstance(one, np.ndarray) for one in value)
    return np.concatenate([one.ravel() for one in value]) if tensors else value


class Tally:
    """Everything that adds up over the batches of a validation.

    ``names`` are the outputs in the order in which `add` gets them. ``labels`` (samples,), checked by
    `check_classes`, belong to the first output that is a classification. Without ``classes`` no output is
    taken for one: which class a synthetic input gets says nothing.
    """

    def __init__(
        self, names: Sequence[str], labels: NDArray[np.int64] | None = None, *, classes: bool = True
    ) -> None:
        self.labels, self.classes = labels, classes
        self.not_finite: dict[str, str] = {}
        self.failures: dict[str, str] = {}  # by what failed, so that each is told once and not batch by batch
        self.unread: dict[str, str] = {}  # outputs of text or of maps: a failure where there are no others
        self._outputs = {name: _OutputTally() for name in names}
        self._classifier: str | None = None
        self._right = LabelTally()

    def add(self, start: int, stop: int, expected: Sequence[Any], actual: Sequence[Any]) -> None:
        """Add the outputs of both models for the samples from ``start`` to ``stop``."""
        where = f"sample {start}" if stop - start == 1 else f"samples {start} to {stop - 1}"
        pairs = zip(self._outputs.items(), map(joined, expected), map(joined, actual), strict=True)
        for (name, tally), a, b in pairs:
            if not self._check(name, a, b, where):
                tally.comparable = False
                continue
            tally.pair.add(a, b)
            if not self.classes:
                continue
            scores, other = class_scores(a, stop - start), class_scores(b, stop - start)
            if scores is None or other is None:
                continue
            tally.add_classes(scores, other)
            if self.labels is not None and self._classifier in (None, name):
                self._classifier = name
                self._right.add(scores, other, self.labels[start:stop])

    def _check(self, name: str, a: Any, b: Any, where: str) -> bool:
        """Whether both outputs can be compared; if not, the first reason is kept."""
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in (a, b)):
            self.unread.setdefault(name, f"output {name!r} is not a tensor of numbers")
            return False
        if a.shape != b.shape:
            shapes = f"has shape {a.shape} in the float model, {b.shape} in the quantized"
            self.failures.setdefault(name, f"output {name!r} {shapes} ({where})")
            return False
        finite = True
        for which, array in (("float", a), ("quantized", b)):
            if not is_finite(array):
                kind = "NaN" if np.isnan(array).any() else "infinity"
                reason = f"{which} model: {kind} in output {name!r} ({where})"
                self.not_finite.setdefault(f"{which} {name}", reason)
                finite = False
        return finite

    def pairs(self) -> dict[str, Comparison]:
        """Sums over the outputs that could be compared, by name."""
        return {name: tally.pair for name, tally in self._outputs.items() if tally.comparable}

    def report(self, *, lenient: bool = False, **context: Any) -> ValidationReport:
        """Metrics so far; ``context`` are the other attributes of the `ValidationReport`. Where it is
        ``lenient``, outputs that are not finite are worth a note only.
        """
        not_finite, unread = tuple(self.not_finite.values()), tuple(self.unread.values())
        nothing = len(unread) == len(self._outputs)
        report = ValidationReport(
            outputs=tuple(tally.metrics(name) for name, tally in self._outputs.items()),
            failures=(
                *self.failures.values(),
                *(unread if nothing else ()),
                *(() if lenient else not_finite),
            ),
            **context,
            **self._right.scores(),
        )
        ignored = () if nothing else tuple(f"{one}: not compared" for one in unread)
        notes = (*report.notes, *self._right.remarks(), *ignored, *(not_finite if lenient else ()))
        return replace(report, notes=notes)
