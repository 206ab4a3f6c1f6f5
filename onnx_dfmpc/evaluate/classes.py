"""What two models say about classes, and how sure one can be that they differ (pure NumPy)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_dfmpc.errors import RecipeError

FEW = 5
"""Classes in a top-5."""

NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""

ENOUGH = 30
"""Labelled samples from which a share that is no better than chance means something."""


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
    if (
        output.shape[2:] not in ((), (1, 1))
        or output.ndim < 2
        or output.shape[0] != count
        or output.shape[1] < 2
    ):
        return None
    return output.reshape(output.shape[:2])


def log_probabilities(scores: NDArray[np.generic]) -> NDArray[np.float64]:
    """Logarithms of class probabilities: of scores that are probabilities already, or of the softmax of
    others.

    Parameters
    ----------
    scores : array, shape (N, classes)

    Returns
    -------
    float64 array, shape (N, classes)

    Examples
    --------
    >>> np.exp(log_probabilities(np.array([[0.25, 0.75]]))).round(6).tolist(), np.exp(log_probabilities(np.array([[5.0, 5.0]]))).tolist()
    ([[0.25, 0.75]], [[0.5, 0.5]])
    """
    values = scores.astype(np.float64)
    if values.size and values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < 1e-3:
        certain: NDArray[np.float64] = np.log(np.maximum(values, np.finfo(np.float32).tiny))
        return certain
    shifted = values - values.max(axis=1, keepdims=True)
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


def divergence(reference: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of every row, ``sum_k p_k (log p_k - log q_k)``, in nats.

    Parameters
    ----------
    reference, other : arrays, shape (N, classes)
        Scores or probabilities: p of the first, q of the second.

    Returns
    -------
    float64 array, shape (N,)
        At least 0.
    """
    p, q = log_probabilities(reference), log_probabilities(other)
    found: NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return found


def among_best(
    scores: NDArray[np.generic], classes: NDArray[np.integer], count: int = FEW
) -> NDArray[np.bool_]:
    """Whether fewer than `count` classes have a higher score than the given one, for every row.

    Parameters
    ----------
    scores : array, shape (N, classes)
    classes : int array, shape (N,)
    count : int
    """
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    among: NDArray[np.bool_] = np.greater(scores, own).sum(axis=1) < count
    return among


def paired_interval(only_first: int, only_second: int, samples: int) -> tuple[float, float]:
    """95 % confidence interval of the difference of two shares that were measured on the same samples, second
    minus first.

    The adjusted Wald interval of Bonett and Price (2012, British Journal of Mathematical and Statistical
    Psychology 65, 479-488), which Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33, 2850-2875)
    recommend. With b and c the samples that only the first and only the second gets right, ``p1 = (b + 1) /
    (n + 2)`` and ``p2 = (c + 1) / (n + 2)``,

        p2 - p1 -+ z sqrt((p1 + p2 - (p2 - p1)^2) / (n + 2)).

    Samples on which both agree say nothing about the difference: models that err on the same samples are told
    apart by far fewer of them than two independent shares would need.

    Parameters
    ----------
    only_first, only_second : int
        b and c.
    samples : int
        n.

    Returns
    -------
    (float, float)
        Low and high, fractions.

    Examples
    --------
    >>> [round(limit, 4) for limit in paired_interval(12, 4, 1000)]
    [-0.0163, 0.0003]
    """
    first, second = (only_first + 1) / (samples + 2), (only_second + 1) / (samples + 2)
    centre = second - first
    half = NORMAL_95 * math.sqrt((first + second - centre**2) / (samples + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def check_classes(labels: NDArray[np.int64], outputs: Iterable[tuple[str, Any]], count: int) -> None:
    """Raise RecipeError unless labels are classes of the first output that is a classification.

    Parameters
    ----------
    labels : int array
    outputs : iterable of (str, object)
        Outputs of one run, by name; those that are no arrays are passed over.
    count : int
        Samples in that run.
    """
    for name, output in outputs:
        scores = class_scores(output, count) if isinstance(output, np.ndarray) else None
        if scores is None:
            continue
        classes, low, high = scores.shape[1], labels.min(), labels.max()
        if low < 0 or high >= classes:
            hint = "labels are class indices, counted from 0" + (
                ": subtract 1" if low > 0 and high == classes else ""
            )
            raise RecipeError(
                f"labels from {low} to {high} for the {classes} classes of output {name!r}", hint=hint
            )
        return
    raise RecipeError(
        "there are labels, but no output has the shape (N, classes)", hint="leave the labels out"
    )


@dataclass(frozen=True)
class LabelScore:
    """What both models get right on labelled samples.

    Attributes
    ----------
    labelled : int
        Number of labelled samples.
    top1_float, top1_quantized : float
        Fractions.
    top1_interval : (float, float)
        Of quantized minus float, 95 %, paired.
    top5_float, top5_quantized : float or None
        None for five classes or fewer.
    """

    labelled: int
    top1_float: float
    top1_quantized: float
    top1_interval: tuple[float, float]
    top5_float: float | None = None
    top5_quantized: float | None = None


class LabelTally:
    """Counts of samples that both models get right, added up batch by batch."""

    def __init__(self) -> None:
        self._labelled = self._only_float = self._only_quantized = self._classes = 0
        self._top1 = np.zeros(2, np.int64)
        self._top5: NDArray[np.int64] | None = np.zeros(2, np.int64)

    def add(self, scores: NDArray[np.generic], other: NDArray[np.generic], labels: NDArray[np.int64]) -> None:
        """Add the scores of both models, shape (N, classes), for labels of shape (N,)."""
        count = scores.shape[1]
        right = np.stack([side.argmax(axis=1) == labels for side in (scores, other)])
        self._classes = count
        self._labelled += len(labels)
        self._top1 += right.sum(axis=1)
        self._only_float += int((right[0] & ~right[1]).sum())
        self._only_quantized += int((right[1] & ~right[0]).sum())
        if count > FEW and self._top5 is not None:
            self._top5 += np.array([among_best(side, labels).sum() for side in (scores, other)])
        else:
            self._top5 = None

    def remarks(self) -> tuple[str, ...]:
        """Whether the float model looks as if it got something else than it was made for."""
        if self._labelled < ENOUGH:
            return ()
        expected = self._labelled / self._classes
        chance = expected + NORMAL_95 * math.sqrt(expected * (1 - 1 / self._classes))
        if self._top1[0] > chance:
            return ()
        return (
            "the float model is right hardly more often than by chance: are these the data and labels that it was trained for?",
        )

    def score(self) -> LabelScore | None:
        """Shares and their difference; None where nothing was added."""
        count = self._labelled
        if not count:
            return None
        top5 = (None, None) if self._top5 is None else tuple(float(right / count) for right in self._top5)
        interval = paired_interval(self._only_float, self._only_quantized, count)
        return LabelScore(
            count, float(self._top1[0] / count), float(self._top1[1] / count), interval, top5[0], top5[1]
        )
