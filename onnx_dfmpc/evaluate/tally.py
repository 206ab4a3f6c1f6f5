"""Everything that adds up over the batches of a validation, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.evaluate.classes import FEW, LabelTally, among_best, class_scores, divergence
from onnx_dfmpc.evaluate.gates import gate_results
from onnx_dfmpc.evaluate.metrics import Comparison, is_finite
from onnx_dfmpc.evaluate.validation import OutputMetrics, ValidationReport
from onnx_dfmpc.recipe import Gates


@dataclass
class _OutputTally:
    pair: Comparison = field(default_factory=Comparison)
    classified: int = 0
    agreed: int = 0
    agreed5: int | None = 0
    divergence: float = 0.0
    comparable: bool = True

    def add_classes(self, scores: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        best = scores.argmax(axis=1)
        self.classified += len(best)
        self.agreed += int((best == other.argmax(axis=1)).sum())
        self.divergence += float(divergence(scores, other).sum())
        if scores.shape[1] > FEW and self.agreed5 is not None:
            self.agreed5 += int(among_best(other, best).sum())
        else:
            self.agreed5 = None

    def metrics(self, name: str) -> OutputMetrics:
        if not self.comparable:
            return OutputMetrics(name, None, None, None, None)
        pair, count = self.pair, self.classified
        known = OutputMetrics(name, pair.cosine, pair.sqnr_db, pair.max_abs, pair.mean_abs)
        if not count:
            return known
        return replace(
            known,
            top1_agreement=self.agreed / count,
            top5_agreement=None if self.agreed5 is None else self.agreed5 / count,
            kl=self.divergence / count,
        )


class Tally:
    """Everything that adds up over the batches of a validation.

    Parameters
    ----------
    names : sequence of str
        Outputs, in the order in which `add` gets them.
    labels : int array, shape (samples,), optional
        Class indices, checked by `check_classes`. They belong to the first output that is a classification.
    """

    def __init__(self, names: Sequence[str], labels: NDArray[np.int64] | None = None) -> None:
        self.labels = labels
        self.failures: dict[str, str] = {}
        self._outputs = {name: _OutputTally() for name in names}
        self._classifier: str | None = None
        self._right = LabelTally()

    def add(self, start: int, stop: int, expected: Sequence[Any], actual: Sequence[Any]) -> None:
        """Add the outputs of both models for the samples from `start` to `stop`."""
        for (name, tally), a, b in zip(self._outputs.items(), expected, actual, strict=True):
            if not self._compare(
                name, a, b, f"sample {start}" if stop - start == 1 else f"samples {start} to {stop - 1}"
            ):
                tally.comparable = False
                continue
            tally.pair.add(a, b)
            scores, other = class_scores(a, stop - start), class_scores(b, stop - start)
            if scores is None or other is None:
                continue
            tally.add_classes(scores, other)
            if self.labels is not None and self._classifier in (None, name):
                self._classifier = name
                self._right.add(scores, other, self.labels[start:stop])

    def _compare(self, name: str, a: Any, b: Any, where: str) -> bool:
        """Whether both outputs can be compared; if not, the first reason is kept."""
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in (a, b)):
            self.failures.setdefault(name, f"output {name!r} is not a tensor of numbers")
            return False
        if a.shape != b.shape:
            self.failures.setdefault(
                name,
                f"output {name!r} has shape {a.shape} in the float model, {b.shape} in the quantized ({where})",
            )
            return False
        finite = True
        for which, array in (("float", a), ("quantized", b)):
            if not is_finite(array):
                kind = "NaN" if np.isnan(array).any() else "infinity"
                self.failures.setdefault(
                    f"{which} {name}", f"{which} model: {kind} in output {name!r} ({where})"
                )
                finite = False
        return finite

    def report(self, gates: Gates, **context: Any) -> ValidationReport:
        """Metrics and gates.

        Parameters
        ----------
        gates : Gates
        context
            The other attributes of the `ValidationReport`.

        Raises
        ------
        RecipeError
            A gate on top-1 for a model, or an output, that has no shape (N, classes).
        """
        outputs = tuple(tally.metrics(name) for name, tally in self._outputs.items())
        failures, score = tuple(self.failures.values()), self._right.score()
        report = ValidationReport(
            outputs=outputs, failures=failures, **context, **({} if score is None else vars(score))
        )
        notes = (*report.notes, *self._right.remarks())
        return replace(report, notes=notes, gates=tuple(gate_results(gates, report)))
